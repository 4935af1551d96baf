# SPDX-License-Identifier: Apache-2.0
"""`wolun snapshot mount`, `wolun clone mount` and `umount`: a file system of the past on this host."""

from __future__ import annotations

from pathlib import Path

import click

from target.commands import clone, common

_DIRECTORY = click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
_PARTITION = click.option("--partition", type=click.IntRange(1), metavar="N", help="Mount this partition.")


@click.command("mount")
@click.argument("which", type=common.SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@_DIRECTORY
@_PARTITION
@click.option("--rw", "writable", is_flag=True, help="Mount a clone of it, read-write.  `umount` deletes the clone.")
@common.verb
def snapshot_mount(
    context: common.Context, which: tuple[str, str], directory: Path, partition: int | None, writable: bool
) -> None:
    """Mount the file system of a snapshot on DIR, read-only, to get files back.

    With --rw, the command makes a clone of the snapshot and mounts that one: the file system replays its journal and can be
    written to.  The snapshot and the volume stay as they are.  `umount` deletes the clone, unless --keep is given there.

    It needs root, FUSE, and Debian's packages qemu-system-common and qemu-block-extra.  `access` must admit this host.

    The volume's own file system may be mounted, too: an XFS with the same UUID is mounted with `nouuid`.
    """
    from target.commands import mounting

    asked, place = context.client(), common.absolute(directory)
    there = mounting.mount_snapshot(asked, *which, place, partition, writable=writable)
    how = f"as clone {there.clone}, read-write" if writable else "read-only"
    context.answer(there, lambda: f"{there.what} is mounted on {directory}, {how} ({there.file_system})")


@click.command("mount")
@click.argument("name", metavar="CLONE", shell_complete=clone.clone_names)
@_DIRECTORY
@_PARTITION
@common.verb
def clone_mount(context: common.Context, name: str, directory: Path, partition: int | None) -> None:
    """Mount the file system of a clone on DIR, read-write.

    No initiator may have it mounted at the same time.  `umount` leaves the clone as it is then.

    It needs what `wolun snapshot mount` needs.
    """
    from target.commands import mounting

    there = mounting.mount_clone(context.client(), name, common.absolute(directory), partition)
    context.answer(there, lambda: f"{name} is mounted on {directory}, read-write ({there.file_system})")


@click.command("umount")
@_DIRECTORY
@click.option("--keep", is_flag=True, help="Keep the clone that `mount --rw` made.")
@click.option("--yes", is_flag=True, help="Do not ask before that clone is deleted.")
@common.verb
def umount(context: common.Context, directory: Path, keep: bool, yes: bool) -> None:
    """Unmount what `wolun snapshot mount` or `wolun clone mount` mounted on DIR.

    The clone that `wolun snapshot mount --rw` made is deleted with all that was written to it, unless --keep is given.  On a
    terminal, the command asks first, unless --yes is given.

    The daemon need not run to unmount a snapshot.  It must run to unmount a clone that stays.
    """
    from target.commands import mounting

    place = common.absolute(directory)
    gone = mounting.mounted(place)
    if gone.made and not keep:
        common.confirm(context, f"All that was written to {directory} is lost for good.  Unmount it?", yes=yes)
    mounting.umount(context.client(), gone, keep=keep)
    kept = f"; its clone {gone.clone} is kept" if gone.made and keep else ""
    context.answer(gone, lambda: f"{gone.what} is no longer mounted on {directory}{kept}")
