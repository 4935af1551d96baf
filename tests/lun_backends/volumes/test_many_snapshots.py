# SPDX-License-Identifier: Apache-2.0
"""A volume with as many snapshots as lun_backends/README.md promises: nothing depends on how many there are but time."""

from __future__ import annotations

import os
import random
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends.files import backing_file, storage_io
from lun_backends.volumes import volume
from tests.lun_backends.volumes.sample import CHUNK, SIZE, read

pytestmark = pytest.mark.timeout(900)  # the manifest is written anew for each snapshot: minutes on a busy machine

COUNT = 5000
_DESCRIPTORS = 3 * COUNT + 1000
_MEMORY = Path("/dev/shm")


class _Unsynced(storage_io.StorageIO):
    """System calls without the waits for a disk, and without reserved space: no power is cut here, and no disk is full."""

    def reserve(self, fd: int, offset: int, length: int) -> None:
        pass

    def fdatasync(self, fd: int) -> None:
        pass

    def sync_map(self, fd: int) -> None:
        pass

    def fsync_directory(self, path: Path) -> None:
        pass


_IO = _Unsynced()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Return a directory, in memory where there is one, with enough descriptors for all files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, _DESCRIPTORS), max(hard, _DESCRIPTORS)))
    made = Path(tempfile.mkdtemp(dir=_MEMORY if _in_memory(_MEMORY) else tmp_path))
    yield made
    shutil.rmtree(made)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, max(hard, _DESCRIPTORS)))


def _in_memory(path: Path) -> bool:
    if not path.is_dir():
        return False
    fd = os.open(path, os.O_RDONLY)
    try:
        return backing_file.file_system(fd) in backing_file.MEMORY_FILE_SYSTEMS
    finally:
        os.close(fd)


def test_five_thousand_snapshots_of_a_volume(directory: Path) -> None:
    """Taking, listing, reading the oldest, rolling back to it, deleting in any order, and a restart in between."""
    made = volume.Volume.create(directory / "vol0", "vol0", directory / "disk.img", size=SIZE, chunk_size=CHUNK, io=_IO)
    made.device.writev(0, [memoryview(random.Random(1).randbytes(SIZE))])
    # Each snapshot differs from the next in one of the first 40 chunks; only the newest has chunk 50, none has chunk 60.
    expected = {}
    for number in range(COUNT):
        if number % 1250 in (0, 1249):
            expected[f"s{number}"] = read(made.device)
        made.create_snapshot(f"s{number}")
        made.device.writev(number % 40 * CHUNK, [memoryview(number.to_bytes(4, "little") * 128)])
    made.device.writev(50 * CHUNK, [memoryview(bytes(CHUNK))])

    _check(made, expected)
    made.close()
    made = volume.Volume.open(directory / "vol0", io=_IO)
    assert [snapshot.name for snapshot in made.snapshots] == [f"s{number}" for number in range(COUNT)]
    assert sum(snapshot.preserved_bytes for snapshot in made.snapshots) == (COUNT + 1) * CHUNK
    _check(made, expected)

    made.begin_rollback("s0")
    assert read(made.device) == expected["s0"]
    assert made.continue_rollback()
    _check(made, expected)

    doomed = [snapshot.name for snapshot in made.snapshots if snapshot.name not in expected]
    for name in random.Random(2).sample(doomed, 60):
        made.delete_snapshot(name)
    made.delete_snapshot("s0")
    del expected["s0"]
    made.close()
    made = volume.Volume.open(directory / "vol0", io=_IO)
    assert len(made.snapshots) == COUNT - 61
    _check(made, expected)
    made.close()


def _check(made: volume.Volume, expected: dict[str, bytes]) -> None:
    for name, content in expected.items():
        view = made.snapshot(name).view
        assert read(view) == content
        assert sum(extent.length for extent in view.extents(0, view.size)) == view.size
