# SPDX-License-Identifier: Apache-2.0
"""`wolun volume`: change volumes."""

from __future__ import annotations

from pathlib import Path

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
    """Accept the doubtful snapshots of VOLUME as true.

    Snapshots are doubtful if the volume's primary may have changed while it was not served.  Look at the primary first:
    `wolun status` says what differs.  Anything that was written to it meanwhile shows in the snapshots, too.

    If the configuration does not name VOLUME, its data stays in the state directory, and the alert about it ends.
    """
    answer = context.client().accept_volume(name)
    context.answer(answer, lambda: show.accepted(answer))


@volume.command("relocate")
@click.argument("name", metavar="VOLUME", shell_complete=common.volume_names)
@click.option("--from", "old", metavar="OLD", help="The name that the volume had before.")
@click.option(
    "--primary", type=click.Path(path_type=Path), metavar="PATH", help="The new place of the volume's file or device."
)
@click.option(
    "--force", is_flag=True, help="Take a primary that is not known to be the same; the snapshots become doubtful."
)
@common.verb
def volume_relocate(context: common.Context, name: str, old: str | None, primary: Path | None, force: bool) -> None:
    """Serve VOLUME with data that is in another place.

    Use it after a volume was renamed in the configuration (--from), or after its file or device moved (--primary,
    unless the configuration names the new place already).  wolun checks that the primary is the same.
    """
    from target import messages

    request = messages.Relocate(old, None if primary is None else str(common.absolute(primary)))
    answer = context.client().relocate_volume(name, request, force=force)
    context.answer(answer, lambda: show.relocated(answer))


@volume.command("resize")
@click.argument("name", metavar="VOLUME")
@click.argument("size", type=common.SIZE)
@common.verb
def volume_resize(context: common.Context, name: str, size: int) -> None:
    """Make VOLUME larger, to SIZE (like 2GiB), while it is in use.  Its snapshots keep their size."""
    answer = context.client().resize_volume(name, size)
    context.answer(answer, lambda: show.resized(answer))
