# SPDX-License-Identifier: Apache-2.0
"""The files that belong to the daemon: those that it serves, and all files in its state directory.

A job that writes a file must not replace one of them.  Its path may be a symbolic link, a hard link, a bind mount or
another name of a device.  So files are compared by device and inode, and devices by their number.  A file counts even
if it is not open, because the volume of a snapshot may be served again later.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lun_backends.volumes.volume import Volume
from target.service import volumes
from target.service.inventory import Inventory

_LINKS_FOLLOWED = 3
"""The levels of the state directory whose links to directories are followed: `volumes`, a volume, its `snapshots`."""


class _File(NamedTuple):
    """A file of a file system, or with `inode` None a block device."""

    device: int
    inode: int | None


def claim(inventory: Inventory, path: Path) -> str:
    """Return the owner of the file at `path`, like "it belongs to volume vol0"; empty if the daemon does not own it.

    A new file in one of the daemon's directories counts, too.
    """
    named: set[_File] = set()
    for follow in (True, False):
        with contextlib.suppress(OSError):
            named.update(_files(path.stat(follow_symlinks=follow)))
    above: set[_File] = set()
    with contextlib.suppress(OSError, RuntimeError):  # the caller refuses a path that leads nowhere
        place = path.parent.resolve()
        for directory in (place, *place.parents):
            above.update(_files(directory.stat()))
    for whose, found in _own(inventory):
        if any(file in named or (stat.S_ISDIR(found.st_mode) and file in above) for file in _files(found)):
            return whose
    return ""


def _files(found: os.stat_result) -> Iterator[_File]:
    yield _File(found.st_dev, found.st_ino)
    if stat.S_ISBLK(found.st_mode):
        yield _File(found.st_rdev, None)


def _own(inventory: Inventory) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (the owner as a text, the result of `stat`) for each file and directory of the daemon."""
    settings, state_dir = inventory.settings, inventory.state_dir
    for owner in list(inventory.open_volumes.values()):
        if isinstance(owner, Volume):
            with contextlib.suppress(OSError):
                yield f"it belongs to volume {owner.name}", owner.primary.found()
    for configured in settings.volumes:
        yield from _at(f"it belongs to volume {configured.name}", volumes.primary_path(configured, state_dir))
    for shared in settings.shared:
        for device in (shared.primary, shared.write_once, shared.log, *shared.pool):
            if device is not None:
                yield from _at(f"it belongs to the shared volume {shared.name}", Path(device))
    in_state = f"it is in the state directory {state_dir}"
    yield from _below(state_dir, in_state, set())
    yield from _at(in_state, state_dir)


def _at(whose: str, path: Path) -> Iterator[tuple[str, os.stat_result]]:
    with contextlib.suppress(OSError):
        yield whose, path.stat()


def _below(
    directory: Path, whose: str, seen: set[tuple[int, int]], depth: int = 0
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the content of a directory, with links and the files that they lead to; a directory comes after its content."""
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries]
    except OSError:
        return  # it is gone
    for name in names:
        path = directory / name
        of = f"it belongs to volume {name}" if depth == 1 and directory.name == "volumes" else whose
        try:
            found = path.lstat()
            if stat.S_ISLNK(found.st_mode):
                yield of, found
                found = path.stat()
                if stat.S_ISDIR(found.st_mode) and depth >= _LINKS_FOLLOWED:
                    continue
        except OSError:
            continue
        if stat.S_ISDIR(found.st_mode) and (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            yield from _below(path, of, seen, depth + 1)
        yield of, found
