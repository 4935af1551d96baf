# SPDX-License-Identifier: Apache-2.0
"""`wolun volume`: create, show, change and delete volumes."""

from __future__ import annotations

from pathlib import Path

import click

from target import show
from target.commands import common


@click.group()
def volume() -> None:
    """Create, show, change and delete volumes."""


@volume.command("list")
@common.verb
def volume_list(context: common.Context) -> None:
    """List the volumes."""
    answer = context.client().volumes()
    context.answer(answer, lambda: show.volumes(answer) or "no volumes")


@volume.command("show")
@click.argument("name", metavar="VOLUME", shell_complete=common.volume_names)
@common.verb
def volume_show(context: common.Context, name: str) -> None:
    """Show VOLUME in detail."""
    answer = context.client().volume(name)
    context.answer(answer, lambda: show.volume(answer))


@volume.command("create")
@click.argument("name", metavar="VOLUME")
@click.argument("size", required=False)
@click.option("--lun", type=click.IntRange(0, 16383), help="The LUN.  Default: the lowest free one.")
@click.option("--hidden", is_flag=True, help="Give it no LUN: initiators do not see it.")
@click.option("--primary", type=click.Path(path_type=Path), metavar="PATH", help="The file or device with its data.")
@click.option("--block-size", type=click.Choice(["512", "4096"]), help="Bytes per logical block.")
@click.option("--chunk-size", metavar="SIZE", help="The unit of allocation of old data, 4KiB to 1MiB.")
@click.option(
    "--store", type=click.Choice(["map", "log", "sparse"]), help="The store that keeps old data.  Default: map."
)
@click.option("--durability", type=click.Choice(["power-loss", "process-crash"]), help="When old data counts as kept.")
@click.option("--limit", metavar="SIZE", help="How much old data all its snapshots may keep.")
@click.option("--on-error", type=click.Choice(["fail-writes", "drop-snapshot"]), help="If old data cannot be kept.")
@click.option("--adopt", is_flag=True, help="Serve the data that a deleted volume of this name left.")
@click.option("--new", is_flag=True, help="Remove the data that a deleted volume of this name left, for good.")
@click.option("--force", is_flag=True, help="Give it a LUN that initiators who are logged in know as another unit.")
@common.verb
def volume_create(
    context: common.Context,
    name: str,
    size: str | None,
    lun: int | None,
    hidden: bool,
    primary: Path | None,
    block_size: str | None,
    chunk_size: str | None,
    store: str | None,
    durability: str | None,
    limit: str | None,
    on_error: str | None,
    adopt: bool,
    new: bool,
    force: bool,
) -> None:
    """Create VOLUME of SIZE, like 10GiB, and serve it at once.

    A primary that exists needs no SIZE.  `wolun shell saveconfig` writes the volume into the configuration file.
    """
    from target import messages

    if adopt and new:
        raise click.UsageError("--adopt keeps the old data, and --new removes it: choose one of them")
    if hidden and lun is not None:
        raise click.UsageError("--hidden gives it no LUN: leave --lun out")
    asked = context.client()
    request = messages.CreateVolume(
        name,
        size,
        lun,
        hidden,
        None if primary is None else str(common.absolute(primary)),
        None if block_size is None else int(block_size),
        chunk_size,
        store=store,
        durability=durability,
        limit=limit,
        on_error=on_error,
        existing="adopt" if adopt else "new" if new else None,
    )
    asked.create_volume(request, force=force)
    answer = asked.volume(name)
    served = "is created" if answer.lun is None else f"is created, as LUN {answer.lun}"
    context.answer(answer, lambda: f"{name} {served}; `wolun shell saveconfig` keeps it in the configuration file")


@volume.command("delete")
@click.argument("name", metavar="VOLUME", shell_complete=common.volume_names)
@click.option(
    "--data", is_flag=True, help="Also remove its files in the state directory, with its snapshots, for good."
)
@click.option("--force", is_flag=True, help="Do it even if initiators use it.")
@click.option("--yes", is_flag=True, help="Do not ask before data is removed.")
@common.verb
def volume_delete(context: common.Context, name: str, data: bool, force: bool, yes: bool) -> None:
    """Stop serving VOLUME.  Its data stays, unless --data is given.

    On a terminal, --data asks before it removes anything, unless --yes is given.
    """
    from target import messages

    if data:
        common.confirm(context, f"The data of {name} and of its snapshots is lost for good.  Remove it?", yes=yes)
    context.client().delete_volume(name, force=force, data=data)
    kept = "with its data" if data else "; its data is kept"
    context.answer(messages.Deleted(name, data), lambda: f"{name} is deleted{' ' if data else ''}{kept}")


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


@volume.command("limit")
@click.argument("name", metavar="VOLUME", shell_complete=common.volume_names)
@click.option("--iops", type=click.IntRange(1), help="Commands per second that read or change blocks.")
@click.option("--bandwidth", type=common.SIZE, help="Bytes per second, read and written together, like 100MiB.")
@click.option(
    "--burst", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="Seconds of that at once."
)
@click.option("--none", "unlimited", is_flag=True, help="No limit.")
@common.verb
def volume_limit(
    context: common.Context, name: str, iops: int | None, bandwidth: int | None, burst: float, unlimited: bool
) -> None:
    """Limit how many commands and bytes per second the initiators of VOLUME may have together.

    It acts at once.  Commands beyond the limit wait, and sessions take turns.  `wolun volume show` and the metrics tell how much it
    holds up.
    """
    from target import messages

    if unlimited is (iops is not None or bandwidth is not None):
        raise click.UsageError("give --iops, --bandwidth or both; or --none")
    rate = None if unlimited else messages.Rate(iops, bandwidth, burst)
    asked = context.client()
    asked.change_volume(name, messages.ChangeVolume(rate=rate, unlimited=unlimited), force=False)
    answer = asked.volume(name)
    context.answer(answer, lambda: show.volume(answer))


@volume.command("store")
@click.argument("name", metavar="VOLUME", shell_complete=common.volume_names)
@click.argument("kind", type=click.Choice(["map", "log"]))
@click.option("--later", is_flag=True, help="Only for later snapshots: existing ones keep their store.")
@common.verb
def volume_store(context: common.Context, name: str, kind: str, later: bool) -> None:
    """Change the store that keeps the old data of VOLUME, and convert its snapshots, while they are in use.

    `log` makes first writes faster with durability power-loss, and `map` with process-crash.  A conversion copies one
    snapshot after the other, and needs as much free space as the largest of them for a while.  If it is stopped or
    killed, each snapshot has the old store or the new one: run the command again to go on.

    The newest snapshot is left as it is, because writers need it.  Convert it once there is a newer one.
    `wolun shell saveconfig` keeps the change in the configuration file.
    """
    from target import messages

    asked = context.client()
    request = messages.ChangeStore(kind, not later)
    job = common.follow(context, asked, lambda: asked.set_store(name, request), "converting")
    answer = asked.result(messages.Conversion, job)
    context.answer(answer, lambda: show.conversion(answer))


@volume.command("resize")
@click.argument("name", metavar="VOLUME")
@click.argument("size", type=common.SIZE)
@common.verb
def volume_resize(context: common.Context, name: str, size: int) -> None:
    """Make VOLUME larger, to SIZE (like 2GiB), while it is in use.  Its snapshots keep their size."""
    answer = context.client().resize_volume(name, size)
    context.answer(answer, lambda: show.resized(answer))


@volume.command("receive")
@click.argument("name", metavar="VOLUME", shell_complete=common.volume_names)
@click.option(
    "--lun", type=click.IntRange(0, 16383), help="The LUN of a new volume.  Default: initiators do not see it."
)
@click.option("--keep", type=click.IntRange(1), metavar="N", help="Afterwards, keep the newest N snapshots received.")
@click.option(
    "--force", is_flag=True, help="Take back what was changed here since the stream's base, or replace the content."
)
@common.verb
def volume_receive(context: common.Context, name: str, lun: int | None, keep: int | None, force: bool) -> None:
    """Receive a stream of `wolun send` from standard input into VOLUME, and take the snapshot that it ends with.

    A full stream makes VOLUME.  A stream of changes needs a VOLUME that has the snapshot on which it stands, which is compared
    by identity.

    VOLUME is a replica: it takes no writes here until `wolun volume promote`.

    If the stream is interrupted, what has come stays, and the command tells the TOKEN for `wolun send --resume`.
    """
    from target.commands import receiving

    receiving.receive(context, name, lun=lun, keep=keep, force=force)


@volume.command("promote")
@click.argument("name", metavar="VOLUME", shell_complete=common.volume_names)
@common.verb
def volume_promote(context: common.Context, name: str) -> None:
    """Make the replica VOLUME an ordinary volume, which takes writes.

    If it has a part of a stream, it first gets the content of its newest received snapshot again.
    """
    asked = context.client()
    job = common.follow(context, asked, lambda: asked.promote_volume(name), "promoting")
    context.answer(job, lambda: f"{name} takes writes now, and is no replica any longer")
