# SPDX-License-Identifier: Apache-2.0
"""`wolun volume`: change volumes."""

from __future__ import annotations

import click

from target import show
from target.commands import common


@click.group()
def volume() -> None:
    """Change volumes."""


@volume.command("accept")
@click.argument("name", metavar="VOLUME", shell_complete=common.volume_names)
@common.verb
def volume_accept(context: common.Context, name: str) -> None:
    """Take the doubtful snapshots of VOLUME for true.

    Snapshots are doubtful if the volume's primary may have changed while it was not served.  Look at the primary first:
    `wolun status` says what differs.  Whatever was written to it meanwhile shows in the snapshots, too.
    """
    answer = context.client().accept_volume(name)
    context.answer(answer, lambda: show.accepted(answer))


@volume.command("resize")
@click.argument("name", metavar="VOLUME")
@click.argument("size", type=common.SIZE)
@common.verb
def volume_resize(context: common.Context, name: str, size: int) -> None:
    """Make VOLUME larger, to SIZE (like 2GiB), while it is in use.  Its snapshots keep their size."""
    answer = context.client().resize_volume(name, size)
    context.answer(answer, lambda: show.resized(answer))
