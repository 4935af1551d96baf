# SPDX-License-Identifier: Apache-2.0
"""`wolun volume`: change volumes."""

from __future__ import annotations

import click

from target import show
from target.commands import common


@click.group()
def volume() -> None:
    """Change volumes."""


@volume.command("resize")
@click.argument("name", metavar="VOLUME")
@click.argument("size", type=common.SIZE)
@common.verb
def volume_resize(context: common.Context, name: str, size: int) -> None:
    """Make VOLUME larger, to SIZE (like 2GiB), while it is in use.  Its snapshots keep their size."""
    answer = context.client().resize_volume(name, size)
    context.answer(answer, lambda: show.resized(answer))
