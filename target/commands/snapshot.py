# SPDX-License-Identifier: Apache-2.0
"""`wolun snapshot`."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import click

from target import show
from target.commands import common


@click.group()
def snapshot() -> None:
    """Take, look at, export, go back to and delete snapshots."""


@snapshot.command("create")
@click.argument("volume", shell_complete=common.volume_names)
@click.argument("name")
@click.option(
    "--label", "labels", type=common.LABEL, multiple=True, metavar="KEY=VALUE", help="Give it a label; repeatable."
)
@common.verb
def snapshot_create(context: common.Context, volume: str, name: str, labels: tuple[tuple[str, str], ...]) -> None:
    """Take a snapshot of VOLUME called NAME."""
    answer = context.client().create_snapshot(volume, name, dict(labels))
    context.answer(answer, lambda: show.taken(answer))


@snapshot.command("create-group")
@click.argument("name")
@click.argument("volumes", nargs=-1, required=True, metavar="VOLUME...", shell_complete=common.volume_names)
@click.option(
    "--label", "labels", type=common.LABEL, multiple=True, metavar="KEY=VALUE", help="Give it a label; repeatable."
)
@common.verb
def snapshot_create_group(
    context: common.Context, name: str, volumes: tuple[str, ...], labels: tuple[tuple[str, str], ...]
) -> None:
    """Take a snapshot called NAME of every VOLUME, all at one moment.

    Writes to all of them are held meanwhile.  There are snapshots of all of them afterwards, or of none, even after a
    crash on the way.  From then on each is a snapshot like any other.
    """
    answer = context.client().create_group(name, volumes, dict(labels))
    context.answer(answer, lambda: "\n".join(show.taken(each) for each in answer))


@snapshot.command("label")
@click.argument("which", type=common.SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@click.argument("labels", type=common.LABEL, nargs=-1, required=True, metavar="KEY=VALUE...")
@common.verb
def snapshot_label(context: common.Context, which: tuple[str, str], labels: tuple[tuple[str, str], ...]) -> None:
    """Give a snapshot labels; KEY= takes one away."""
    answer = context.client().label_snapshot(*which, {key: value or None for key, value in labels})
    context.answer(answer, lambda: show.labels(answer.labels) or "no labels")


@snapshot.command("list")
@click.argument("volume", required=False, shell_complete=common.volume_names)
@common.verb
def snapshot_list(context: common.Context, volume: str | None) -> None:
    """The snapshots of VOLUME, or of all volumes, oldest first."""
    answer = context.client().snapshots(volume)
    context.answer(answer, lambda: show.snapshots(answer))


@snapshot.command("show")
@click.argument("which", type=common.SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@click.option("--map", "with_map", is_flag=True, help="Picture which parts of the volume have changed since.")
@common.verb
def snapshot_show(context: common.Context, which: tuple[str, str], with_map: bool) -> None:
    """One snapshot in detail."""
    asked = context.client()
    if not with_map:
        details = asked.snapshot(*which)
        context.answer(details, lambda: show.snapshot(details))
        return
    changes = asked.changes(*which, show.map_cells())
    context.answer(changes, lambda: show.change_map(changes))


@snapshot.command("export")
@click.argument("which", type=common.SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["raw", "qcow2"]),
    help="What FILE is to be. Left out: qcow2 if its name ends so, or with --since; else raw.",
)
@click.option(
    "--since",
    type=common.SNAPSHOT,
    metavar="VOLUME@SNAPSHOT",
    help="Write only what changed since this older snapshot, as a qcow2 image on top of that one's.",
)
@click.option(
    "--backing",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The older snapshot's image. Left out: beside FILE, called SNAPSHOT.qcow2, .img or .raw.",
)
@click.option(
    "--backing-format", type=click.Choice(["raw", "qcow2"]), help="What that image is, if it is not on this machine."
)
@click.option("--anyway", is_flag=True, help="Try even if there seems to be no room: zeroes take none.")
@common.verb
def snapshot_export(
    context: common.Context,
    which: tuple[str, str],
    file: Path,
    force: bool,
    format_: str | None,
    since: tuple[str, str] | None,
    backing: Path | None,
    backing_format: str | None,
    anyway: bool,
) -> None:
    """Write the volume as it was at that moment to FILE: all of it, or what changed since an older snapshot."""
    path = common.absolute(file)
    if since is None and (backing or backing_format):
        raise click.UsageError("--backing and --backing-format belong to --since")
    if since is not None:
        _same_volume(since, which)
        if format_ == "raw":
            raise click.UsageError("what changed --since can only be written as qcow2")
        names = [path.with_name(f"{since[1]}{suffix}") for suffix in (".qcow2", ".img", ".raw")]
        backing = (
            next((name for name in names if name.exists()), names[0]) if backing is None else common.absolute(backing)
        )
    if format_ is None:
        format_ = "qcow2" if since is not None or path.suffix == ".qcow2" else "raw"
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
    )
    job = common.follow(context, asked, begin, "exporting")
    on_top = "" if since is None else f", on top of {backing}"
    context.answer(job, lambda: f"{'@'.join(which)} is in {file}{on_top}")


@snapshot.command("verify")
@click.argument("which", type=common.SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@common.verb
def snapshot_verify(context: common.Context, which: tuple[str, str]) -> None:
    """Read all that a snapshot needs, and compare it with its checksums; exit status 1 if something is damaged."""
    from target import messages

    asked = context.client()
    job = common.follow(context, asked, lambda: asked.verify(*which), "verifying")
    found = asked.result(messages.Verification, job)
    context.answer(found, lambda: show.verification(found))
    if not found.sound:
        sys.exit(1)


@snapshot.command("diff")
@click.argument("since", type=common.SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@click.argument("to", type=common.SNAPSHOT, metavar="[VOLUME@SNAPSHOT]", required=False)
@click.option("--exact", is_flag=True, help="Compare the content, and leave out what is the same after all.")
@common.verb
def snapshot_diff(context: common.Context, since: tuple[str, str], to: tuple[str, str] | None, exact: bool) -> None:
    """What changed from the first snapshot to the second, or to now: what an incremental backup reads."""
    from target import messages

    if to is not None:
        _same_volume(since, to)
    asked = context.client()
    wanted = messages.FindChanges(None if to is None else to[1], exact)
    job = common.follow(context, asked, lambda: asked.diff(*since, wanted), "comparing")
    found = asked.result(messages.Difference, job)
    context.answer(found, lambda: show.difference(found))


@snapshot.command("delete")
@click.argument("which", type=common.SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@common.verb
def snapshot_delete(context: common.Context, which: tuple[str, str]) -> None:
    """Delete a snapshot and free its space."""
    asked = context.client()
    job = common.follow(context, asked, lambda: asked.delete_snapshot(*which), "deleting")
    context.answer(job, lambda: f"{'@'.join(which)} is deleted")


@snapshot.command("restore")
@click.argument("which", type=common.SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@click.option("--force", is_flag=True, help="Even if initiators reach the volume.")
@common.verb
def snapshot_restore(context: common.Context, which: tuple[str, str], force: bool) -> None:
    """Roll the volume back to that moment.

    The volume is at that moment at once, and can be used while its data is brought there; this goes on in the background
    if you press Ctrl-C, and after a crash.  All snapshots stay as they are, newer ones too; what is in none of them - the
    volume as it is now - is gone, so take one first if you may want it back.  Unmount the volume before: refused while
    initiators reach it, unless --force.
    """
    asked = context.client()
    job = common.follow(context, asked, lambda: asked.restore_snapshot(*which, force=force), "restoring", goes_on=True)
    context.answer(job, lambda: f"{which[0]} is as it was at {'@'.join(which)}")


def _same_volume(since: tuple[str, str], to: tuple[str, str]) -> None:
    if since[0] != to[0]:
        raise click.UsageError(f"{'@'.join(since)} and {'@'.join(to)} are snapshots of different volumes")
