# SPDX-License-Identifier: Apache-2.0
"""The sparse store in hard cases: file systems on which it is wrong, copied files, failed writes and syncs, a kill."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.files import storage_io
from lun_backends.stores import contract, space, sparse, sparse_header
from tests.lun_backends import store_factory
from tests.lun_backends.stores import disk, kinds
from tests.lun_backends.stores.kinds import data, put, read, written

KIND = kinds.KINDS["sparse"]
GRAIN = contract.GRAIN


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return disk.with_journal(tmp_path)


def make(place: Path, io: storage_io.StorageIO = storage_io.SYSTEM, **options: int) -> sparse.SparseStore:
    store = kinds.create(sparse.SparseStores(place, io), kinds.geometry(KIND, **options))
    assert isinstance(store, sparse.SparseStore)
    return store


def again(place: Path, store: contract.Store) -> contract.Store:
    return kinds.reopen(sparse.SparseStores(place), store.snapshot)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_other_file_systems_with_a_right_map_are_taken(kind: str) -> None:
    store = make(disk.directory(kind))
    assert put(store, GRAIN, bytes(GRAIN))
    assert put(store, 4 * GRAIN, data(1, 3 * GRAIN))
    assert written(store) == [(GRAIN, GRAIN), (4 * GRAIN, 3 * GRAIN)]
    store.close()
    store_again = again(disk.directory(kind), store)
    assert written(store_again) == [(GRAIN, GRAIN), (4 * GRAIN, 3 * GRAIN)]
    store_again.close()


def test_file_systems_with_a_wrong_map_are_refused() -> None:
    for place in (Path("/dev/shm"), disk.directory("ext4", "data=writeback")):
        with tempfile.TemporaryDirectory(dir=place) as directory:
            stores = sparse.SparseStores(Path(directory))
            with pytest.raises(contract.StoreUnfit, match="needs ext4 with a journal"):
                stores.check(new=True)
            with pytest.raises(contract.StoreUnfit, match="needs ext4 with a journal"):
                kinds.create(stores, kinds.geometry(KIND))
            assert list(Path(directory).iterdir()) == []


def test_a_copied_file_is_refused(place: Path) -> None:
    store = make(place)
    put(store, 0, bytes(GRAIN))
    store.close()
    path = place / f"{store.snapshot}.sparse"
    shutil.copy(path, place / "copy")
    (place / "copy").replace(path)
    with pytest.raises(contract.StoreDamaged, match="a copy does not keep which zeroes were written"):
        again(place, store)


def test_one_owner_at_a_time(place: Path) -> None:
    store = make(place)
    with pytest.raises(contract.StoreLocked):
        again(place, store)
    store.close()
    again(place, store).close()


def test_one_damaged_header_is_survived_and_named_and_two_are_refused(place: Path) -> None:
    store = make(place)
    path = place / f"{store.snapshot}.header"
    store_factory.overwrite(path, sparse_header.PAGE + 20, b"x")
    assert ["header" in fault for fault in store.check_headers()] == [True]
    store.invalidate("é" * 5000)
    store.close()
    store_factory.overwrite(path, 20, b"x")  # the newest copy, so the snapshot must not come to life again
    with pytest.raises(contract.StoreDamaged):
        again(place, store)


def test_a_newer_format_is_not_damage(place: Path) -> None:
    store = make(place)
    path = place / f"{store.snapshot}.header"
    store.close()
    with pytest.MonkeyPatch.context() as patch, path.open("r+b") as file:
        patch.setattr(sparse_header, "_VERSION", 2)
        page = store._header.pack().ljust(sparse_header.PAGE, b"\0")
        file.write(page * 2)
    with pytest.raises(contract.StoreNewer):
        again(place, store)


def test_a_write_that_fails_is_taken_back(place: Path) -> None:
    class Short(store_factory.FaultyIO):
        left = 0

        def pwritev(self, fd: int, buffers: list[memoryview | bytes], offset: int) -> int:  # type: ignore[override]
            if self.left == 0:
                return super().pwritev(fd, buffers, offset)
            self.left -= 1
            if self.left == 0:
                raise OSError(errno.ENOSPC, "full")
            return os.pwrite(fd, b"".join(buffers)[: GRAIN + 700], offset)  # a grain and a torn one

    io = Short()
    counted = space.Space()
    store = kinds.create(sparse.SparseStores(place, io), kinds.geometry(KIND), counted=counted)
    io.left = 2
    with pytest.raises(block_device.SpaceExhausted):
        put(store, 2 * GRAIN, data(1, 3 * GRAIN))
    assert written(store) == []
    assert counted.used == 0
    assert put(store, 2 * GRAIN, data(2, 3 * GRAIN))
    store.close()


def test_after_a_failed_sync_nothing_more_is_taken(place: Path) -> None:
    io = store_factory.FaultyIO()
    store = kinds.create(sparse.SparseStores(place, io), kinds.geometry(KIND))
    io.fail("fdatasync")
    for _ in range(2):
        with pytest.raises(block_device.MediumError, match="no further writes"):
            put(store, 0, data(1, GRAIN))
    assert store.broken
    io.before.clear()
    with pytest.raises(block_device.MediumError, match="an earlier commit failed"):
        put(store, GRAIN, data(1, GRAIN))
    store.close()


def test_a_pending_grain_is_blank_and_shows_after_its_commit(place: Path) -> None:
    io = store_factory.FaultyIO()
    store = kinds.create(sparse.SparseStores(place, io), kinds.geometry(KIND))
    put(store, 0, data(1, GRAIN))
    seen: list[object] = []

    def look() -> None:
        seen.append(written(store))
        seen.append(store.on_their_way())
        with pytest.raises(block_device.BlankBlock) as caught:
            read(store, 0, 2 * GRAIN)
        seen.append(caught.value.lba)

    io.before["fdatasync"] = look
    put(store, GRAIN, data(1, 2 * GRAIN))
    assert seen == [[(0, GRAIN)], (), GRAIN // 512]
    assert written(store) == [(0, 3 * GRAIN)]
    store.close()


def test_a_killed_process_loses_no_put_that_returned(place: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from lun_backends.durability import Durability
from tests.lun_backends.stores import kinds
from lun_backends.stores import sparse
stores = sparse.SparseStores(Path(sys.argv[1]))
store = kinds.create(stores, kinds.geometry(kinds.KINDS["sparse"], 512), Durability.PROCESS_CRASH)
print(store.snapshot, flush=True)
for number in range(1000):
    assert kinds.put(store, number * {GRAIN}, kinds.data(number, {GRAIN}))
    print(number, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code, place], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [next(process.stdout) for _ in range(300)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    numbers = [int(line) for line in lines[1:] if line.endswith("\n")]
    store = kinds.reopen(sparse.SparseStores(place), uuid.UUID(lines[0].strip()))
    for number in numbers:
        assert read(store, number * GRAIN, GRAIN) == data(number, GRAIN)
    assert len(written(store)) == 1
    store.close()
