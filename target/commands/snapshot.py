# SPDX-License-Identifier: Apache-2.0
"""`wolun snapshot`: take, list, export, verify, roll back to and delete snapshots."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import click

from target import show
from target.commands import common, selection


@click.group()
def snapshot() -> None:
    """Take, show, export, verify, restore and delete snapshots."""


LABELS = click.option(
    "--label",
    "labels",
    type=common.LABEL,
    multiple=True,
    metavar="KEY=VALUE",
    help="Add a label to the snapshot; repeatable.",
)


HOLD = click.option("--hold", default="", metavar="REASON", help="Let nobody delete it, until it is released.")
EXPIRES = click.option(
    "--expires",
    type=common.MOMENT,
    metavar="WHEN",
    help="Delete it then: 12h, 30d, 8w, 2026-12-24 or 2026-12-24T18:00.",
)


@snapshot.command("create")
@click.argument("volume", shell_complete=common.volume_names)
@click.argument("name")
@LABELS
@HOLD
@EXPIRES
@click.option("--map/--no-map", "mapped", default=None, help="Whether initiators see its view.  Default: `map_views`.")
@common.verb
def snapshot_create(
    context: common.Context,
    volume: str,
    name: str,
    labels: tuple[tuple[str, str], ...],
    hold: str,
    expires: str | None,
    mapped: bool | None,
) -> None:
    """Take a snapshot of VOLUME and call it NAME."""
    asked = context.client()
    answer = asked.create_snapshot(volume, name, dict(labels), hold=hold, expires=expires or None, mapped=mapped)
    context.answer(answer, lambda: show.taken(answer))


@snapshot.command("create-group")
@click.argument("name")
@click.argument("volumes", nargs=-1, required=True, metavar="VOLUME...", shell_complete=common.volume_names)
@LABELS
@HOLD
@EXPIRES
@common.verb
def snapshot_create_group(
    context: common.Context,
    name: str,
    volumes: tuple[str, ...],
    labels: tuple[tuple[str, str], ...],
    hold: str,
    expires: str | None,
) -> None:
    """Take snapshots of volumes at one moment.

    Each VOLUME gets a snapshot called NAME.  wolun holds writes to all the volumes for that moment.  Afterwards either
    every volume has the snapshot or none has, even if the daemon crashes on the way.  Once taken, each snapshot is
    independent of the others.
    """
    answer = context.client().create_group(name, volumes, dict(labels), hold=hold, expires=expires or None)
    context.answer(answer, lambda: "\n".join(show.taken(snapshot) for snapshot in answer))


@snapshot.command("label")
@click.argument("which", type=common.SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@click.argument("labels", type=common.LABEL, nargs=-1, required=True, metavar="KEY=VALUE...")
@common.verb
def snapshot_label(context: common.Context, which: tuple[str, str], labels: tuple[tuple[str, str], ...]) -> None:
    """Add labels to a snapshot; KEY= removes one."""
    answer = context.client().label_snapshot(*which, {key: value or None for key, value in labels})
    context.answer(answer, lambda: show.labels(answer.labels) or "no labels")


@snapshot.command("hold")
@click.argument("which", type=common.SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@click.option("--reason", default="held by hand", show_default=True, help="Why, for those who want to delete it.")
@common.verb
def snapshot_hold(context: common.Context, which: tuple[str, str], reason: str) -> None:
    """Let nobody delete a snapshot: no command, no schedule, and no policy that makes room."""
    from target import messages

    answer = context.client().change_snapshot(*which, messages.ChangeSnapshot(hold=reason))
    context.answer(answer, lambda: f"{'@'.join(which)} is held: {answer.hold}")


@snapshot.command("release")
@click.argument("which", type=common.SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@common.verb
def snapshot_release(context: common.Context, which: tuple[str, str]) -> None:
    """End the hold of a snapshot."""
    from target import messages

    answer = context.client().change_snapshot(*which, messages.ChangeSnapshot(hold=""))
    context.answer(answer, lambda: f"{'@'.join(which)} is not held")


@snapshot.command("expire")
@click.argument("which", type=common.SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@click.argument("moment", type=common.MOMENT, metavar="WHEN")
@common.verb
def snapshot_expire(context: common.Context, which: tuple[str, str], moment: str) -> None:
    """Delete a snapshot at a moment: 12h, 30d, 8w, 2026-12-24, 2026-12-24T18:00, or never.

    A snapshot that is held then stays until it is released.
    """
    from target import messages

    answer = context.client().change_snapshot(*which, messages.ChangeSnapshot(expires=moment))
    then = "never expires" if answer.expires is None else f"expires at {show.moment(answer.expires)}"
    context.answer(answer, lambda: f"{'@'.join(which)} {then}")


@snapshot.command("rename")
@click.argument("which", type=common.SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@click.argument("name")
@common.verb
def snapshot_rename(context: common.Context, which: tuple[str, str], name: str) -> None:
    """Give a snapshot another NAME.  Its LUNs and its content stay as they are."""
    from target import messages

    answer = context.client().change_snapshot(*which, messages.ChangeSnapshot(name=name))
    context.answer(answer, lambda: f"{'@'.join(which)} is now {answer.volume}@{answer.name}")


@snapshot.command("map")
@click.argument("which", type=common.SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@click.option("--write-once", is_flag=True, help="Map its write-once LUN instead of its view, read-only by default.")
@common.verb
def snapshot_map(context: common.Context, which: tuple[str, str], write_once: bool) -> None:
    """Let initiators see the view of a snapshot, also after restarts."""
    from target import messages

    answer = context.client().change_snapshot(
        *which, messages.ChangeSnapshot(mapped=not write_once or None, mapped_write_once=write_once or None)
    )
    lun = answer.write_once_lun if write_once else answer.view_lun
    what = "the write-once LUN of " if write_once else ""
    context.answer(answer, lambda: f"LUN {lun} is {what}{'@'.join(which)}\n{show.RESCAN}")


@snapshot.command("unmap")
@click.argument("which", type=common.SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@click.option("--write-once", is_flag=True, help="Hide its write-once LUN instead of its view.")
@click.option("--force", is_flag=True, help="Do it even if an initiator uses the LUN.")
@common.verb
def snapshot_unmap(context: common.Context, which: tuple[str, str], write_once: bool, force: bool) -> None:
    """Hide the view of a snapshot from initiators, also after restarts.  The snapshot stays."""
    from target import messages

    request = messages.ChangeSnapshot(
        mapped=None if write_once else False, mapped_write_once=False if write_once else None, force=force
    )
    answer = context.client().change_snapshot(*which, request)
    context.answer(answer, lambda: f"initiators no longer see it\n{show.FORGET}")


WITH_LABELS = click.option(
    "--label",
    "labels",
    type=common.LABEL,
    multiple=True,
    metavar="KEY=VALUE",
    help="Only those with this label; repeatable.",
)


@snapshot.command("list")
@click.argument("which", type=common.VOLUME_OR_SNAPSHOTS, required=False, metavar="[VOLUME | VOLUME@PATTERN]")
@WITH_LABELS
@click.option(
    "--state",
    type=click.Choice(["active", "doubtful", "invalid", "deleting", "held"]),
    help="Only those in this state.",
)
@click.option("--sort", type=click.Choice(list(selection.ORDERS)), help="The order.  Default: as they were taken.")
@click.option("--reverse", is_flag=True, help="Turn the order round.")
@common.verb
def snapshot_list(
    context: common.Context,
    which: tuple[str, str] | None,
    labels: tuple[tuple[str, str], ...],
    state: str | None,
    sort: str | None,
    reverse: bool,
) -> None:
    """List snapshots, oldest first.

    Without VOLUME, list the snapshots of all volumes.  PATTERN is that of a shell, like 'nightly-*'.
    """
    volume, pattern = which or (None, "*")
    found = selection.chosen(context.client().snapshots(volume), pattern, labels, state)
    answer = selection.ordered(found, sort, reverse=reverse)
    context.answer(answer, lambda: show.snapshots(answer))


@snapshot.command("show")
@click.argument("which", type=common.SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@click.option("--map", "with_map", is_flag=True, help="Draw a map of the parts of the volume that have changed since.")
@common.verb
def snapshot_show(context: common.Context, which: tuple[str, str], with_map: bool) -> None:
    """Show one snapshot in detail."""
    asked = context.client()
    if not with_map:
        details = asked.snapshot(*which)
        context.answer(details, lambda: show.snapshot(details))
        return
    changes = asked.changes(*which, show.map_cells())
    context.answer(changes, lambda: show.change_map(changes), coloured=True)


@snapshot.command("export")
@click.argument("which", type=common.SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--force",
    is_flag=True,
    help="Overwrite FILE if it exists. With --since, also stand on any image, whatever it shows.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["raw", "qcow2", "vhd", "vhdx", "vmdk", "stream"]),
    help="The format of FILE. Default: what its name ends in; .img means raw. `stream` is that of `wolun send`, for -.",
)
@click.option(
    "--compress", is_flag=True, help="Compress: raw with zstd (FILE.zst), qcow2 in itself, a stream with zstd."
)
@click.option("--limit", type=common.RATE, metavar="RATE", help="The most data a second, like 50MiB/s.")
@click.option(
    "--since",
    type=common.SNAPSHOT,
    metavar="VOLUME@SNAPSHOT",
    help="Write only the changes since this older snapshot, as a qcow2 image on top of its image.",
)
@click.option(
    "--backing",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The image of the older snapshot. Default: SNAPSHOT.qcow2, .img or .raw beside FILE.",
)
@click.option(
    "--backing-format",
    type=click.Choice(["raw", "qcow2"]),
    help="The format of the older image, if that image is not on this machine.",
)
@click.option("--anyway", is_flag=True, help="Export even if there seems to be too little space; zeroes take none.")
@click.option("--damaged", is_flag=True, help="Export damaged blocks as they are, and unreadable ones as zeroes.")
@common.verb
def snapshot_export(
    context: common.Context,
    which: tuple[str, str],
    file: Path,
    force: bool,
    format_: str | None,
    compress: bool,
    limit: int | None,
    since: tuple[str, str] | None,
    backing: Path | None,
    backing_format: str | None,
    anyway: bool,
    damaged: bool,
) -> None:
    """Write a snapshot to an image file.

    FILE gets the whole content, or with --since only the changes since an older snapshot.

    All data is compared with its checksums.  If some is damaged, the command names the blocks and writes no file,
    unless --damaged is given.

    With --since, the older image must show the older snapshot: wolun writes the identity of the snapshot into each
    image.  Another image, or one of unknown content, is refused unless --force is given.

    With - for FILE, the command writes a raw image to standard output; with --since or --format stream, it writes a stream for
    `wolun volume receive`.  A FIFO gets a raw image.
    """
    from target import messages

    if str(file) == "-":
        _to_standard_output(context, which, format_, since, compress=compress, limit=limit, damaged=damaged)
        return
    if format_ == "stream":
        raise click.UsageError(f"a stream goes to standard output: write `wolun send {'@'.join(which)} > {file}`")
    path = common.absolute(file)
    if since is None and (backing or backing_format):
        raise click.UsageError("--backing and --backing-format need --since")
    if since is not None:
        _same_volume(since, which)
        if format_ not in (None, "qcow2"):
            raise click.UsageError("with --since the format must be qcow2")
        names = [path.with_name(f"{since[1]}{suffix}") for suffix in (".qcow2", ".img", ".raw")]
        backing = (
            next((name for name in names if name.exists()), names[0]) if backing is None else common.absolute(backing)
        )
    if format_ is None:
        format_ = "qcow2" if since is not None else "raw" if path.is_fifo() else messages.image_format(path)
    if format_ is None:
        ending = f"ends in {path.suffix}" if path.suffix else "has no ending"
        raise click.UsageError(
            f"the name does not say the format: it {ending}; give it with --format, or write {path.name}.img"
        )
    if compress and format_ not in messages.COMPRESSIBLE:
        raise click.UsageError(f"a {format_} image is not compressed: choose raw or qcow2")
    compress = compress or path.suffix == messages.COMPRESSED
    asked = context.client()
    begin = functools.partial(
        asked.export,
        *which,
        path,
        overwrite=force,
        image_format=format_,
        since=None if since is None else since[1],
        backing=backing,
        backing_format=backing_format,
        anyway=anyway,
        damaged=damaged,
        any_base=force,
        compress=compress,
        limit=limit,
        held=True,
    )
    job = common.follow(context, asked, begin, "exporting", held=True)
    common.warn_of_damage(job)
    on_top = "" if since is None else f", on top of {backing}"
    context.answer(job, lambda: f"{'@'.join(which)} is in {file}{on_top}")


@snapshot.command("verify")
@click.argument("which", type=common.SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@common.verb
def snapshot_verify(context: common.Context, which: tuple[str, str]) -> None:
    """Compare a snapshot with its checksums.

    This reads all data that the snapshot needs.  The exit status is 1 if some of it is damaged.
    """
    from target import messages

    asked = context.client()
    job = common.follow(context, asked, lambda: asked.verify(*which, held=True), "verifying", held=True)
    verification = asked.result(messages.Verification, job)
    context.answer(verification, lambda: show.verification(verification))
    if not verification.sound:
        sys.exit(1)


@snapshot.command("diff")
@click.argument("since", type=common.SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@click.argument("to", type=common.SNAPSHOT, metavar="[VOLUME@SNAPSHOT]", required=False)
@click.option("--exact", is_flag=True, help="Compare the content, and omit chunks with equal content.")
@click.option("--damaged", is_flag=True, help="With --exact, count damaged blocks as changed.")
@common.verb
def snapshot_diff(
    context: common.Context, since: tuple[str, str], to: tuple[str, str] | None, exact: bool, damaged: bool
) -> None:
    """List the extents that changed.

    They are the changes from the first snapshot to the second, or to now: the extents that an incremental backup reads.
    With --exact, the command stops at damaged blocks, unless --damaged is given.
    """
    from target import messages

    if damaged and not exact:
        raise click.UsageError("--damaged needs --exact: without it, no data is read")
    if to is not None:
        _same_volume(since, to)
    asked = context.client()
    request = messages.FindChanges(None if to is None else to[1], exact, damaged)
    job = common.follow(context, asked, lambda: asked.diff(*since, request, held=True), "comparing", held=True)
    difference = asked.result(messages.Difference, job)
    common.warn_of_damage(job)
    context.answer(difference, lambda: show.difference(difference))


@snapshot.command("delete")
@click.argument("which", type=common.SNAPSHOTS, metavar="VOLUME@SNAPSHOT | VOLUME@PATTERN")
@WITH_LABELS
@click.option("--dry-run", is_flag=True, help="Only list what would be deleted.")
@click.option("--force", is_flag=True, help="Delete it even if an initiator reads it.")
@click.option("--damaged", is_flag=True, help="Let the older snapshot lose blocks that cannot be read.")
@common.verb
def snapshot_delete(
    context: common.Context,
    which: tuple[str, str],
    labels: tuple[tuple[str, str], ...],
    dry_run: bool,
    force: bool,
    damaged: bool,
) -> None:
    """Delete a snapshot and free its space.

    Old data that older snapshots need moves to the next older one.  Damaged blocks stay damaged there, and the command
    names them.  Blocks that cannot be read stop the deletion, unless --damaged is given.

    The command refuses while an initiator reads the snapshot, unless --force is given.  Then its reads fail.

    With a PATTERN like 'vol0@nightly-*' or with --label, it deletes all snapshots that fit, oldest first, and leaves those
    that are held.
    """
    asked = context.client()
    several = bool(labels) or any(character in which[1] for character in "*?[")
    if not several and not dry_run:
        delete = functools.partial(asked.delete_snapshot, *which, damaged=damaged, force=force)
        job = common.follow(context, asked, delete, "deleting")
        common.warn_of_damage(job)
        context.answer(job, lambda: f"{'@'.join(which)} is deleted")
        return
    fitting = selection.chosen(asked.snapshots(which[0]), which[1], labels)
    victims = [snapshot for snapshot in fitting if not snapshot.hold]
    for snapshot in () if dry_run else victims:
        delete = functools.partial(asked.delete_snapshot, snapshot.volume, snapshot.name, damaged=damaged, force=force)
        common.warn_of_damage(common.follow(context, asked, delete, "deleting"))
    context.answer(victims, lambda: show.deleted(fitting, dry_run=dry_run))


@snapshot.command("restore")
@click.argument("which", type=common.SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@click.option("--force", is_flag=True, help="Roll back even if initiators can access the volume.")
@click.option(
    "--damaged", is_flag=True, help="Let the volume have damaged blocks as they are, and unreadable ones as zeroes."
)
@click.option("--outside", is_flag=True, help="Roll back even if initiators wrote to the snapshot's write-once LUN.")
@click.option("--yes", is_flag=True, help="Do not ask before the content is replaced.")
@common.verb
def snapshot_restore(
    context: common.Context, which: tuple[str, str], force: bool, damaged: bool, outside: bool, yes: bool
) -> None:
    """Roll the volume back to the moment of a snapshot.

    The volume has its old content at once and can be used immediately, while wolun copies the data in the background.
    Ctrl-C does not stop the copying, and it continues after a crash.  All snapshots stay as they are, newer ones too.
    The current content of the volume is lost unless a snapshot has it, so take a snapshot first if you may want it
    back.

    On a terminal, the command asks first, unless --yes is given.

    Unmount the volume first.  The command refuses to run while initiators can access it, unless --force is given.

    wolun reads the snapshot before the volume changes.  If some of it is damaged, the command names the blocks and the
    volume stays as it is, unless --damaged is given.  In the same way it names data that initiators wrote to a
    write-once LUN of the snapshot, because the volume may never have held it, unless --outside is given.
    """
    question = f"The content of {which[0]} is replaced by that of {'@'.join(which)}.  Roll back?"
    common.confirm(context, question, yes=yes)
    asked = context.client()
    begin = functools.partial(asked.restore_snapshot, *which, force=force, damaged=damaged, outside=outside)
    job = common.follow(context, asked, begin, "restoring", goes_on=True)
    common.warn_of_damage(job)
    context.answer(job, lambda: f"{which[0]} is rolled back to {'@'.join(which)}")


def _to_standard_output(
    context: common.Context,
    which: tuple[str, str],
    format_: str | None,
    since: tuple[str, str] | None,
    *,
    compress: bool,
    limit: int | None,
    damaged: bool,
) -> None:
    """Write a raw image, or a stream, to standard output."""
    from target import messages

    kind = format_ or ("raw" if since is None else "stream")
    if kind not in ("raw", "stream") or (kind == "raw" and since is not None):
        what = "changes" if kind == "raw" else kind
        raise click.UsageError(
            f"standard output takes raw images and streams only: {what} cannot be written from front to back as an image"
        )
    if since is not None:
        _same_volume(since, which)
    if sys.stdout.isatty():
        raise click.UsageError("standard output is a terminal: redirect it, or name a file")
    asked, subject = context.client(), "@".join(which)
    if format_ is None:
        common.say(f"wolun: {subject} is written {'as a raw image' if kind == 'raw' else 'as a stream'}", err=True)

    def begin(write: Callable[[bytes], object], progress: Callable[[int, int], None]) -> messages.Job:
        if kind == "stream":
            request = messages.Send(None if since is None else since[1], compress, limit, damaged)
            return asked.send(*which, request, write, progress=progress)
        if not compress:
            return asked.stream(*which, write, damaged=damaged, limit=limit, progress=progress)
        import zstandard

        packer = zstandard.ZstdCompressor(write_checksum=True).compressobj()
        job = asked.stream(
            *which, lambda data: write(packer.compress(data)), damaged=damaged, limit=limit, progress=progress
        )
        if job.state == "done":  # otherwise the reader must not take it for whole
            write(packer.flush())
        return job

    common.warn_of_damage(common.to_standard_output(context, "exporting", subject, begin))


def _same_volume(since: tuple[str, str], to: tuple[str, str]) -> None:
    if since[0] != to[0]:
        raise click.UsageError(f"{'@'.join(since)} and {'@'.join(to)} are snapshots of different volumes")
