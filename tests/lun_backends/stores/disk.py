# SPDX-License-Identifier: Apache-2.0
"""A directory on a file system with a journal, for sparse stores: that of the tests, or else one in an image."""

from __future__ import annotations

import atexit
import functools
import subprocess
import tempfile
from pathlib import Path

from lun_backends.files import storage_io
from lun_backends.stores import contract, sparse_header
from tests import peers


@functools.cache
def directory(kind: str = "ext4", options: str = "") -> Path:
    """Return a directory on a new file system, mounted until the tests end."""
    peers.need_root("a mount")
    place = Path(tempfile.mkdtemp(prefix="wolun-disk-"))
    image, mounted = place / "image", place / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(512 << 20)
    subprocess.run([peers.require(f"mkfs.{kind}"), "-q", image], check=True, capture_output=True)
    subprocess.run(["mount", "-o", ",".join(filter(None, ["loop", options])), image, mounted], check=True)
    atexit.register(_unmount, place)
    return mounted


def _unmount(place: Path) -> None:
    subprocess.run(["umount", "-l", place / "mounted"], check=False)
    (place / "image").unlink()
    (place / "mounted").rmdir()
    place.rmdir()


def with_journal(wanted: Path) -> Path:
    """Return `wanted` if sparse stores can be there, else a new directory elsewhere."""
    if _fits(wanted):
        return wanted
    return Path(tempfile.mkdtemp(dir=directory()))


def _fits(wanted: Path) -> bool:
    with tempfile.NamedTemporaryFile(dir=wanted) as file:
        try:
            sparse_header.check_place(Path(file.name), file.fileno(), storage_io.SYSTEM)
        except contract.StoreUnfit:
            return False
    return True
