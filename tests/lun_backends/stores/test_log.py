# SPDX-License-Identifier: Apache-2.0
"""The log-structured store in hard cases: kills, torn and foreign batches, rot of every byte, full disks, failing syncs."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.durability import Durability
from lun_backends.files import storage_io
from lun_backends.stores import chunk_file, contract, local, log, log_batch, log_file, log_map, space, store_file
from lun_backends.stores.settings import Kind
from tests.lun_backends.rotting import flip
from tests.lun_backends.store_factory import FaultyIO
from tests.lun_backends.stores import kinds
from tests.lun_backends.stores.kinds import data, put, put_many, read, written

PAGE = log_batch.PAGE
CHUNK = 16384
GEOMETRY = contract.Geometry(uuid.UUID(int=7), kinds.VOLUME, 8 * CHUNK + 1536, 512, CHUNK)
SIZE = GEOMETRY.size


def create(
    path: Path,
    durability: Durability = Durability.POWER_LOSS,
    io: storage_io.StorageIO = storage_io.SYSTEM,
    counted: space.Space | None = None,
) -> log.LogStore:
    store = local.create(Kind.LOG, path / "s", GEOMETRY, durability=durability, io=io, space=counted)
    assert isinstance(store, log.LogStore)
    return store


def reopen(
    path: Path, durability: Durability = Durability.POWER_LOSS, io: storage_io.StorageIO = storage_io.SYSTEM
) -> log.LogStore:
    store = local.open_existing(path / "s", durability=durability, io=io)
    assert isinstance(store, log.LogStore)
    return store


def killed(path: Path, to: Path) -> Path:
    """Return a copy of the files, as a killed process leaves them."""
    shutil.rmtree(to, ignore_errors=True)
    return shutil.copytree(path, to)


def settle(store: log.LogStore) -> None:
    """Wait for the helper."""
    while store._helper is not None:
        time.sleep(0.001)


def change(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


CONTENT = {
    0: (1, CHUNK),
    CHUNK + 512: (2, 3 * 512),
    4 * CHUNK: (3, 4096),
    6 * CHUNK + 4096: (4, 8192),
    8 * CHUNK: (5, 1536),
}


def fill(store: contract.Store) -> None:
    for offset, (seed, length) in CONTENT.items():
        assert put(store, offset, data(seed, length))
    store.put_many([contract.Put(2 * CHUNK // 512, 16, None)])


def truth() -> list[bytes | None]:
    """Return the content of each block, None if it is blank."""
    blocks: list[bytes | None] = [None] * (SIZE // 512)
    for offset, (seed, length) in CONTENT.items():
        content = data(seed, length)
        for at in range(0, length, 512):
            blocks[(offset + at) // 512] = content[at : at + 512]
    blocks[2 * CHUNK // 512 : 2 * CHUNK // 512 + 16] = [bytes(512)] * 16
    return blocks


def contents(store: contract.Store) -> list[bytes | str | None]:
    """Return the content of each block, None if it is blank, a string if it cannot be read."""
    blocks: list[bytes | str | None] = []
    for number in range(SIZE // 512):
        buffer = bytearray(512)
        try:
            store.reader.read(number, 1, [memoryview(buffer)])
            blocks.append(bytes(buffer))
        except block_device.BlankBlock:
            blocks.append(None)
        except block_device.MediumError:
            blocks.append("damaged")
    return blocks


@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("recent", [2, 8192])
def test_a_killed_process_loses_nothing(
    tmp_path: Path, durability: Durability, recent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "RECENT", recent)
    (tmp_path / "a").mkdir()
    store = create(tmp_path / "a", durability)
    fill(store)
    settle(store)
    for _ in range(3):
        again = reopen(killed(tmp_path / "a", tmp_path / "b"), durability)
        assert contents(again) == truth()
        assert (again.allocated_bytes, again.written_bytes()) == (store.allocated_bytes, store.written_bytes())
        assert again.check_headers() == []
        assert put(again, 5 * CHUNK, data(9, 8192))
        settle(again)
        last = reopen(killed(tmp_path / "b", tmp_path / "c"), durability)
        assert read(last, 5 * CHUNK, 8192) == data(9, 8192)
        last.close()
        again.close()
    store.close()


def test_a_grain_can_be_filled_block_by_block(tmp_path: Path) -> None:
    store = create(tmp_path)
    for block in (3, 0, 7, 1, 2, 6, 5, 4):
        assert put(store, CHUNK + block * 512, data(block, 512))
        assert not put(store, CHUNK + block * 512, data(99, 512))
    for _ in range(2):
        assert [report.verdict for report in store.verify()] == [contract.Verdict.GOOD]
        assert read(store, CHUNK, 4096) == b"".join(data(block, 512) for block in range(8))
        assert store.written_bytes() == 4096
        store.close()
        store = reopen(tmp_path)
    store.close()


def test_zeroes_take_no_space_and_can_be_added_to(tmp_path: Path) -> None:
    counted = space.Space()
    store = create(tmp_path, counted=counted)
    assert put(store, CHUNK, bytes(8192))
    store.put_many([contract.Put(0, 3, None)])
    assert (counted.used, store.allocated_bytes, store.written_bytes()) == (0, 0, 8192 + 3 * 512)
    assert put(store, 3 * 512, data(1, 512))
    assert (counted.used, store.allocated_bytes) == (4096, 4096)
    assert read(store, 0, 4 * 512) == bytes(3 * 512) + data(1, 512)
    store.close()
    store = reopen(tmp_path)
    assert read(store, 0, 4 * 512) == bytes(3 * 512) + data(1, 512)
    assert read(store, CHUNK, 8192) == bytes(8192)
    store.close()


def test_a_commit_is_one_write_and_one_sync(tmp_path: Path) -> None:
    io = FaultyIO()
    store = create(tmp_path, io=io)
    put(store, 0, data(1, 4096))
    settle(store)
    io.calls.clear()
    assert put_many(store, [(at * CHUNK, data(at, 4096)) for at in range(1, 8)]) == [True] * 7
    assert sorted(io.calls) == ["fdatasync", "pwritev"]
    store.close()


def test_a_large_put_is_divided_into_batches(tmp_path: Path) -> None:
    big = contract.Geometry(uuid.UUID(int=8), kinds.VOLUME, 4 << 20, 512, 65536)
    store = local.create(Kind.LOG, tmp_path / "s", big, durability=Durability.POWER_LOSS)
    assert put_many(store, [(4096, data(1, 4096)), (65536, data(2, 3 << 20))]) == [True, True]
    assert read(store, 65536, 3 << 20) == data(2, 3 << 20)
    again = local.open_existing(killed(tmp_path, tmp_path.parent / "killed") / "s", durability=Durability.POWER_LOSS)
    assert read(again, 65536, 3 << 20) == data(2, 3 << 20)
    assert written(again) == [(4096, 4096), (65536, 3 << 20)]
    again.close()
    store.close()


def headers(path: Path) -> list[log_batch.Header]:
    """Return the batches of a log, by walking it."""
    content = path.read_bytes()
    found, place = [], 1
    while header := log_batch.unpack(content[place * PAGE : (place + 1) * PAGE], GEOMETRY.snapshot, place):
        found.append(header)
        place = header.end
    return found


def test_a_torn_last_batch_ends_the_log(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    store = create(tmp_path / "a")
    fill(store)
    last = headers(tmp_path / "a/s.log")[-2]  # the very last has no pages: it is of zeroes
    for offset in (last.place * PAGE + 100, (last.place + 1) * PAGE + 5):
        path = killed(tmp_path / "a", tmp_path / "b")
        os.truncate(path / "s.log", last.end * PAGE)
        flip(path / "s.log", offset)
        again = reopen(path)
        blocks = truth()
        blocks[8 * CHUNK // 512 :] = [None] * 3
        blocks[2 * CHUNK // 512 : 2 * CHUNK // 512 + 16] = [None] * 16
        assert contents(again) == blocks
        assert (path / "s.log").stat().st_size == last.place * PAGE
        assert put(again, 8 * CHUNK, data(6, 1536))
        again.close()
        again = reopen(path)
        assert read(again, 8 * CHUNK, 1536) == data(6, 1536)
        again.close()
    store.close()


def test_rot_before_a_later_commit_is_no_end_of_the_log(tmp_path: Path) -> None:
    """With power-loss a later commit proves that the one before was durable: it must not be forgotten."""
    (tmp_path / "a").mkdir()
    store = create(tmp_path / "a")
    fill(store)
    batches = headers(tmp_path / "a/s.log")
    for batch in batches[:-2]:
        for offset in range(batch.place * PAGE, batch.end * PAGE, 1009):
            path = killed(tmp_path / "a", tmp_path / "b")
            flip(path / "s.log", offset)
            with pytest.raises(store_file.StoreDamaged, match="a later one"):
                reopen(path)
            assert (path / "s.log").read_bytes()[: batches[-1].end * PAGE] != b""
    store.close()


def test_without_syncs_a_torn_batch_ends_the_log(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    store = create(tmp_path / "a", Durability.PROCESS_CRASH)
    fill(store)
    second = headers(tmp_path / "a/s.log")[1]
    path = killed(tmp_path / "a", tmp_path / "b")
    flip(path / "s.log", second.place * PAGE + 70)
    again = reopen(path)
    assert written(again) == [(0, CHUNK)]
    again.close()
    store.close()


@pytest.mark.parametrize("field", ["snapshot", "sequence", "chain", "place"])
def test_a_batch_that_does_not_belong_there_ends_the_log(tmp_path: Path, field: str) -> None:
    (tmp_path / "a").mkdir()
    store = create(tmp_path / "a")
    put(store, 0, data(1, 4096))
    put(store, CHUNK, data(2, 4096))
    first, second = headers(tmp_path / "a/s.log")
    settle(store)
    path = killed(tmp_path / "a", tmp_path / "b")
    content = data(3, 4096)
    crcs = [chunk_file.checksum([memoryview(content)])]
    run = log_batch.Run(9, crcs, crcs, b"\xff", b"\xff", content)
    right = {"sequence": 3, "chain": second.crc, "place": second.end}
    wrong = {"sequence": 4, "chain": first.crc, "place": second.end + 1}
    values = right | ({field: wrong[field]} if field in wrong else {})
    owner = uuid.UUID(int=99) if field == "snapshot" else GEOMETRY.snapshot
    header, _ = log_batch.pack(owner, values["sequence"], 3, values["place"], values["chain"], log_batch.LAST, 0, [run])
    change(path / "s.log", second.end * PAGE, header + content)
    again = reopen(path)
    assert written(again) == [(0, 4096), (CHUNK, 4096)]
    again.close()
    header, _ = log_batch.pack(GEOMETRY.snapshot, 3, 3, second.end, second.crc, log_batch.LAST, 0, [run])
    change(path / "s.log", second.end * PAGE, header + content)
    again = reopen(killed(path, tmp_path / "c"))  # a right one counts, so the others were refused for their field
    assert written(again) == [(0, 4096), (CHUNK, 4096), (9 * 4096, 4096)]
    again.close()
    store.close()


@pytest.mark.parametrize("of", [".map", ".log"])
def test_rot_of_any_byte_is_found_or_harmless(tmp_path: Path, of: str) -> None:
    """After a clean close, as after a kill: no block reads wrong, and none that is written reads as blank.

    With WOLUN_EVERY_ROT in the environment, four times as many bytes rot.
    """
    (tmp_path / "a").mkdir()
    store = create(tmp_path / "a")
    fill(store)
    store.close()
    want = truth()
    path = killed(tmp_path / "a", tmp_path / "b")
    file = path / ("s" + of)
    size = file.stat().st_size
    records = log_map.LogMap.length_of(log.superblock(GEOMETRY)) - 2 * PAGE
    interesting = (
        [
            *range(0, 1200, 101),
            *range(8192, 8192 + 33 * 32, 11),
            *range(records - PAGE, records - PAGE + 6),
            *range(records, size, 401),
        ]
        if of == ".map"
        else range(0, size, 307)
    )
    seen = 0
    chosen = interesting[:: 1 if os.environ.get("WOLUN_EVERY_ROT") else 4]
    for offset in chosen:
        flip(file, offset)
        try:
            store = reopen(path)
        except store_file.StoreDamaged:
            seen += 1
        else:
            found = contents(store)
            for number, (is_, was) in enumerate(zip(found, want, strict=True)):
                if was is None:
                    continue  # rot of a blank record may give it words, which verify names
                partial = 8 * CHUNK // 512 > number >= (CHUNK + 512) // 512 and number < (CHUNK + 2048) // 512
                assert is_ == was or is_ == "damaged" or partial, (offset, number)
            seen += (
                found != want
                or bool(store.check_headers())
                or any(report.verdict is contract.Verdict.DAMAGED for report in store.verify())
            )
            store._map.recent.clear()
            store.close()
        flip(file, offset)
        if of == ".map" and file.stat().st_size != size:
            raise AssertionError(offset)
        shutil.copy(tmp_path / "a" / ("s" + of), file)
        shutil.copy(tmp_path / "a/s.map", path / "s.map")
        shutil.copy(tmp_path / "a/s.log", path / "s.log")
    assert seen > len(chosen) // 3


def test_a_full_disk_stores_nothing_and_breaks_nothing(tmp_path: Path) -> None:
    io = FaultyIO()
    store = create(tmp_path, io=io)
    put(store, 0, data(1, 4096))
    settle(store)
    calls: list[int] = []

    def half(fd: int, buffers: list[memoryview | bytes], offset: int) -> int:
        calls.append(offset)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "full")
        return os.pwritev(fd, [bytes(buffers[0])], offset)  # the header only

    real, io.pwritev = io.pwritev, half  # type: ignore[assignment,method-assign]
    for _ in range(2):
        calls.clear()
        with pytest.raises(block_device.SpaceExhausted):
            put(store, CHUNK, data(2, 8192))
    io.pwritev = real  # type: ignore[method-assign]
    assert (written(store), store.allocated_bytes, store.broken) == ([(0, 4096)], 4096, False)
    assert put(store, CHUNK, data(3, 4096))
    store.close()
    store = reopen(tmp_path)
    assert written(store) == [(0, 4096), (CHUNK, 4096)]
    assert read(store, CHUNK, 4096) == data(3, 4096)
    store.close()


def test_a_failed_sync_is_never_tried_again(tmp_path: Path) -> None:
    io = FaultyIO()
    store = create(tmp_path, io=io)
    put(store, 0, data(1, 4096))
    settle(store)
    io.fail("fdatasync")
    with pytest.raises(block_device.MediumError):
        put(store, CHUNK, data(2, 4096))
    io.before.clear()
    assert store.broken
    with pytest.raises(block_device.MediumError):
        put(store, 2 * CHUNK, data(2, 4096))
    assert read(store, 0, 4096) == data(1, 4096)
    assert written(store) == [(0, 4096)]
    store.close()
    store = reopen(tmp_path)
    assert read(store, 0, 4096) == data(1, 4096)
    store.close()


def test_the_index_needs_no_room_that_the_log_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk under the index loses nothing: the log has all of it."""
    monkeypatch.setattr(log, "RECENT", 2)
    io = FaultyIO()
    store = create(tmp_path, io=io)
    io.fail("store", errno.ENOSPC)
    fill(store)
    settle(store)
    assert contents(store) == truth()
    store.close()
    store = reopen(tmp_path)
    assert contents(store) == truth()
    store.close()


def test_the_checkpoint_comes_after_the_sync_of_the_index_and_that_after_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io = FaultyIO()
    store = create(tmp_path, Durability.PROCESS_CRASH, io=io)
    put_many(store, [(0, data(1, 4096)), (CHUNK, data(2, 4096))])
    io.calls.clear()
    store._write_index()
    order = [name for name in io.calls if name != "preadv"]
    assert order[0] == "fdatasync"
    assert order.index("store") < order.index("sync_map") < order.index("pwritev")
    assert store._map.recent == {}
    assert read(store, 0, 4096) == data(1, 4096)
    store.close()


def test_zeroes_ahead_never_meet_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "STEP", 4 * PAGE)
    monkeypatch.setattr(log_file, "LEAST_AHEAD", 8 * PAGE)
    store = create(tmp_path)
    threads = [
        threading.Thread(
            target=lambda first=first: [put(store, at * 4096, data(at, 4096)) for at in range(first, 32, 4)]
        )
        for first in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    settle(store)
    assert read(store, 0, 32 * 4096) == b"".join(data(at, 4096) for at in range(32))
    assert (tmp_path / "s.log").stat().st_size > store._file.tail * PAGE
    assert store.used_bytes() < (tmp_path / "s.log").stat().st_size + 65536
    store.close()
    assert (tmp_path / "s.log").stat().st_size == headers(tmp_path / "s.log")[-1].end * PAGE


def test_a_disk_without_plenty_is_not_asked_for_zeroes_with_every_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_file, "PLENTY", 1 << 62)
    tried: list[int] = []
    zero_ahead = log_file.LogFile.zero_ahead

    def counted(self: log_file.LogFile) -> None:
        tried.append(self.tail)
        zero_ahead(self)

    monkeypatch.setattr(log_file.LogFile, "zero_ahead", counted)
    store = create(tmp_path)
    for at in range(8):
        assert put(store, at * CHUNK, data(at, 4096))
        settle(store)
    assert len(tried) == 1
    store.close()


def test_disk_taken_by_random_grains(tmp_path: Path) -> None:
    geometry = contract.Geometry(uuid.UUID(int=8), kinds.VOLUME, 64 << 20, 512, 65536)
    store = local.create(Kind.LOG, tmp_path / "s", geometry, durability=Durability.POWER_LOSS)
    for first in range(0, 1024, 32):
        put_many(store, [(at * 65536, data(at, 4096)) for at in range(first, first + 32)])
    store.close()
    store = local.open_existing(tmp_path / "s", durability=Durability.POWER_LOSS)
    assert store.used_bytes() <= 1024 * 6 * 1024
    store.close()


def test_an_interrupted_creation_leaves_no_store(tmp_path: Path) -> None:
    failing: list[Callable[[FaultyIO], None]] = [
        lambda io: io.fail("sync_map"),
        lambda io: io.fail("fdatasync"),
        lambda io: io.fail("pwritev", errno.ENOSPC),
    ]
    for fail in failing:
        io = FaultyIO()
        fail(io)
        with pytest.raises(block_device.BlockDeviceError):
            create(tmp_path, io=io)
        assert list(tmp_path.iterdir()) == []
