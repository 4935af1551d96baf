# SPDX-License-Identifier: Apache-2.0
"""The thin store in hard cases: interrupted commits, lost map pages, concurrent writers, failing disks, full disks, rot."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import random
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from lun_backends import block_device, write_once
from lun_backends.durability import Durability
from lun_backends.files import storage_io
from lun_backends.stores import chunk_file, contract, local, maps, store_file, thin
from lun_backends.stores.superblock import ARRAYS, PAGE, RECORDS, Superblock
from tests import peers
from tests.lun_backends import store_factory
from tests.lun_backends.store_factory import BLOCK, CHUNK, PER_CHUNK, FaultyIO, data

FULL = (1 << PER_CHUNK) - 1
FORMATS = (ARRAYS, RECORDS)


def verdicts(lun: write_once.WriteOnce) -> list[contract.Verdict]:
    return [report.verdict for report in lun.verify()]


@pytest.mark.parametrize("version", FORMATS)
@pytest.mark.parametrize("durability", list(Durability))
def test_bits_without_a_slot_do_not_come_to_life(tmp_path: Path, durability: Durability, version: int) -> None:
    store_factory.create(tmp_path, version=version).close()
    store_factory.poke(tmp_path, 3, bits=0b11110000, checksum=77)
    lun = store_factory.reopen(tmp_path, durability)
    with pytest.raises(block_device.BlankBlock):
        store_factory.read(lun, 3 * PER_CHUNK + 4)
    assert lun.written_bytes() == 0
    lun.writev(3 * CHUNK, data(1))
    with pytest.raises(block_device.BlankBlock):
        store_factory.read(lun, 3 * PER_CHUNK + 4)
    lun.writev(3 * CHUNK + BLOCK, data(2, PER_CHUNK - 1))
    assert verdicts(lun) == [contract.Verdict.GOOD]
    lun.close()


@pytest.mark.parametrize("version", FORMATS)
def test_stale_words_are_durably_gone_before_a_slot_is_published(tmp_path: Path, version: int) -> None:
    store_factory.create(tmp_path, version=version).close()
    store_factory.poke(tmp_path, 3, bits=0b11110000, checksum=77)
    io = FaultyIO()
    lun = store_factory.reopen(tmp_path, io=io)
    at_sync: list[tuple[int, int]] = []
    io.before["sync_map"] = lambda: at_sync.append(
        (store_factory.thin_of(lun)._map.slot(3), store_factory.thin_of(lun)._map.bits(3))
    )
    lun.writev(3 * CHUNK, data(1))
    assert at_sync == [(0, 0), (1, 1)]
    lun.close()


@pytest.mark.parametrize("version", FORMATS)
def test_a_checksum_left_on_a_partial_chunk_does_not_accuse_later_data(tmp_path: Path, version: int) -> None:
    lun = store_factory.create(tmp_path, version=version)
    lun.writev(0, data(1, 4))
    lun.close()
    store_factory.poke(tmp_path, 0, checksum=77)  # left by a commit that filled the chunk, but whose bits were lost
    io = FaultyIO()
    lun = store_factory.reopen(tmp_path, io=io)
    at_sync: list[int] = []
    io.before["sync_map"] = lambda: at_sync.append(store_factory.thin_of(lun)._map.checksums(0, 0, 1)[0])
    lun.writev(4 * BLOCK, data(2, 3))
    assert at_sync[0] == 0
    lun.close()
    store_factory.poke(tmp_path, 0, bits=FULL, checksum=0)  # bits without a checksum are not damage either
    lun = store_factory.reopen(tmp_path)
    assert verdicts(lun) == [contract.Verdict.UNVERIFIABLE]
    lun.close()


@pytest.mark.parametrize("version", FORMATS)
def test_any_mixture_of_map_words_leaves_at_most_new_blocks_blank(tmp_path: Path, version: int) -> None:
    """Cut a commit while the kernel writes its map pages back.

    Whatever arrived of a page or its words: old blocks are as before, new ones are blank or whole, and the store can be
    used.
    """
    chunks = 2 * PAGE // 8  # two pages of slots in format 2
    io = FaultyIO()
    lun = store_factory.create(tmp_path, size=chunks * CHUNK, io=io, version=version)
    old, new = [0, 511, 600], [1, 512, 600, 1000]
    for chunk in old:
        lun.writev(chunk * CHUNK, data(chunk, 3))
    map_path, chunks_path = thin.files(tmp_path / "s")
    before = map_path.read_bytes()
    stored: list[bytes] = []
    io.before["sync_map"] = lambda: stored.append(map_path.read_bytes())
    lun.put_many([(chunk * CHUNK + 3 * BLOCK, data(5000 + chunk, 5)) for chunk in new])
    after = stored[-1]
    kept = chunks_path.read_bytes()
    lun.close()
    parts: dict[int, list[int]] = {
        unit: [at for at in range(0, len(before), unit) if before[at : at + unit] != after[at : at + unit]]
        for unit in (8, PAGE)
    }
    dice = random.Random(1)
    mixtures: list[tuple[int, Sequence[bool]]] = [
        (PAGE, arrived) for arrived in itertools.product((False, True), repeat=len(parts[PAGE]))
    ]
    assert len(mixtures) >= 8
    mixtures += [(8, [dice.random() < 0.5 for _ in parts[8]]) for _ in range(100)]
    blanks = 0
    for unit, arrived in mixtures:
        mixed = bytearray(before)
        for offset, yes in zip(parts[unit], arrived, strict=True):
            if yes:
                mixed[offset : offset + unit] = after[offset : offset + unit]
        map_path.write_bytes(mixed)
        chunks_path.write_bytes(kept)
        lun = store_factory.reopen(tmp_path)
        for chunk in old:
            assert store_factory.read(lun, chunk * PER_CHUNK, 3) == b"".join(data(chunk, 3))
        for chunk in new:
            try:
                content = store_factory.read(lun, chunk * PER_CHUNK + 3, 5)
            except block_device.BlankBlock:
                blanks += 1
                lun.writev(chunk * CHUNK + 3 * BLOCK, data(9000 + chunk, 5))
                content = store_factory.read(lun, chunk * PER_CHUNK + 3, 5)
                assert content == b"".join(data(9000 + chunk, 5))
                if chunk not in old:
                    with pytest.raises(block_device.BlankBlock):
                        store_factory.read(lun, chunk * PER_CHUNK + 2)
            else:
                assert content == b"".join(data(5000 + chunk, 5))
        assert contract.Verdict.DAMAGED not in verdicts(lun)
        lun.close()
    assert blanks


def test_data_is_durable_before_the_map_says_so(tmp_path: Path) -> None:
    io = FaultyIO()
    lun = store_factory.create(tmp_path, io=io)
    seen: list[tuple[str, int]] = []

    def watch(name: str) -> None:
        io.before[name] = lambda: seen.append((name, store_factory.thin_of(lun)._map.written(0)))

    for name in ("pwritev", "fdatasync", "sync_map"):
        watch(name)
    lun.writev(0, data(1))
    assert seen == [("pwritev", 0), ("fdatasync", 0), ("sync_map", 1)]
    lun.close()


def test_process_crash_syncs_on_flush_and_fua_only(tmp_path: Path) -> None:
    io = FaultyIO()
    lun = store_factory.create(tmp_path, durability=Durability.PROCESS_CRASH, io=io)
    io.calls.clear()
    lun.put_many([(0, data(1, PER_CHUNK))])
    assert not {"fdatasync", "sync_map"} & set(io.calls)
    lun.flush()
    assert io.calls[-2:] == ["fdatasync", "sync_map"]
    lun.writev(CHUNK, data(1), fua=True)
    assert [call for call in io.calls[-8:] if call != "store"][-3:] == ["pwritev", "fdatasync", "sync_map"]
    lun.close()


class Gate:
    """A gate that stops every thread until it is opened."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.open.wait(30)


class Caller(threading.Thread):
    """A write on a thread of its own; `error` is the error that it raised."""

    def __init__(self, lun: write_once.WriteOnce, lba: int, blocks: int, seed: int) -> None:
        super().__init__()
        self.error: block_device.BlockDeviceError | None = None
        self._write: Callable[[], None] = lambda: lun.writev(lba * BLOCK, data(seed, blocks))
        self.start()

    def run(self) -> None:
        try:
            self._write()
        except block_device.BlockDeviceError as error:
            self.error = error


@pytest.mark.parametrize("name", ["fdatasync", "sync_map"])
def test_block_written_is_raised_only_for_durable_data(tmp_path: Path, name: str) -> None:
    io = FaultyIO()
    lun = store_factory.create(tmp_path, io=io)
    io.before[name] = gate = Gate()
    first = Caller(lun, 0, 4, 1)
    assert gate.reached.wait(30)
    second = Caller(lun, 3, 4, 2)
    second.join(0.05)
    assert second.is_alive()
    if name == "fdatasync":
        with pytest.raises(block_device.BlankBlock):
            store_factory.read(lun, 0)
    gate.open.set()
    first.join()
    second.join()
    assert first.error is None
    assert isinstance(second.error, block_device.BlockWritten)
    assert second.error.lba == 3
    lun.close()


def test_writers_that_come_during_a_commit_share_the_next(tmp_path: Path) -> None:
    io = FaultyIO()
    lun = store_factory.create(tmp_path, io=io)
    io.before["fdatasync"] = gate = Gate()
    before = lun.syncs.data
    callers = [Caller(lun, 0, 1, 1)]
    assert gate.reached.wait(30)
    callers += [Caller(lun, block, 1, block) for block in range(1, 33)]
    while len(store_factory.thin_of(lun)._group._queue) < 32:
        time.sleep(0.001)
    gate.open.set()
    for caller in callers:
        caller.join()
        assert caller.error is None
    assert lun.syncs.data == before + 2
    assert store_factory.read(lun, 1, 32) == b"".join(b"".join(data(block)) for block in range(1, 33))
    lun.close()


def test_two_put_many_that_want_each_others_blocks_both_end(tmp_path: Path) -> None:
    """Each of the two batches commits its own blocks before it waits."""
    lun = store_factory.create(tmp_path)
    barrier = threading.Barrier(2)
    answers: dict[int, Sequence[block_device.BlockWritten | None]] = {}

    def put(own: int, other: int) -> None:
        def requests() -> Iterator[tuple[int, list[memoryview]]]:
            yield own * CHUNK, data(own)
            barrier.wait(5)
            yield other * CHUNK, data(own)

        answers[own] = lun.put_many(requests())

    threads = [threading.Thread(target=put, args=pair, daemon=True) for pair in ((0, 1), (1, 0))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()  # daemon threads, so that a deadlock fails this test only
    assert [[answer and answer.lba for answer in answers[own]] for own in (0, 1)] == [[None, PER_CHUNK], [None, 0]]
    lun.close()


@pytest.mark.parametrize("name", ["fdatasync", "sync_map"])
def test_a_failed_sync_is_never_tried_again(tmp_path: Path, name: str) -> None:
    io = FaultyIO()
    lun = store_factory.create(tmp_path, io=io)
    lun.writev(0, data(1))
    io.fail(name)
    with pytest.raises(block_device.MediumError) as caught:
        lun.writev(3 * BLOCK, data(2))
    assert (caught.value.lba, caught.value.writing) == (3, True)
    del io.before[name]
    io.calls.clear()
    for lba in (0, 3, 9):  # BlockWritten would be wrong, too: it promises durable data
        with pytest.raises(block_device.MediumError):
            lun.writev(lba * BLOCK, data(3))
    assert not {"fdatasync", "sync_map"} & set(io.calls)
    assert store_factory.read(lun, 0) == b"".join(data(1))
    with pytest.raises(block_device.BlankBlock):
        store_factory.read(lun, 3)
    assert lun.written_bytes() == BLOCK
    lun.close()


def test_a_failed_sync_fails_all_writers_that_waited_for_it(tmp_path: Path) -> None:
    io = FaultyIO()
    lun = store_factory.create(tmp_path, io=io)
    gate = Gate()

    def fail() -> None:
        gate()
        raise OSError(errno.EIO, "rotten")

    io.before["fdatasync"] = fail
    callers = [Caller(lun, 0, 2, 1)]
    assert gate.reached.wait(30)
    callers += [Caller(lun, 1, 1, 2), Caller(lun, 20, 1, 3)]  # one write overlaps, the other does not
    gate.open.set()
    for caller in callers:
        caller.join()
        assert isinstance(caller.error, block_device.MediumError)
    lun.close()


@pytest.mark.parametrize("name", ["pwritev", "reserve"])
@pytest.mark.parametrize(
    ("code", "error"), [(errno.ENOSPC, block_device.SpaceExhausted), (errno.EIO, block_device.MediumError)]
)
def test_a_failed_write_stores_nothing_and_releases_its_blocks(
    tmp_path: Path, name: str, code: int, error: type[block_device.BlockDeviceError]
) -> None:
    io = FaultyIO()
    lun = store_factory.create(tmp_path, io=io)
    io.fail(name, code)
    with pytest.raises(error):
        lun.writev(2 * BLOCK, data(1, 20))
    with pytest.raises(error):
        lun.put_many([(2 * BLOCK, data(1, 20))])
    del io.before[name]
    with pytest.raises(block_device.BlankBlock):
        store_factory.read(lun, 2)
    used = store_factory.thin_of(lun)._next
    lun.writev(2 * BLOCK, data(2, 20))
    assert store_factory.thin_of(lun)._next == used  # the slots of the failed writes were used again
    assert store_factory.read(lun, 2, 20) == b"".join(data(2, 20))
    lun.close()


def test_a_read_error_names_its_block(tmp_path: Path) -> None:
    io = FaultyIO()
    lun = store_factory.create(tmp_path, io=io)
    lun.writev(9 * BLOCK, data(1, 4))
    io.fail("preadv")
    with pytest.raises(block_device.MediumError) as caught:
        store_factory.read(lun, 9, 4)
    assert (caught.value.lba, caught.value.writing) == (9, False)
    del io.before["preadv"]
    lun.close()


@pytest.mark.parametrize("durability", list(Durability))
def test_a_full_disk_refuses_writes_and_keeps_the_rest(tmp_path: Path, durability: Durability) -> None:
    peers.need_root("mounting a small file system")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], check=True)
    try:
        lun = store_factory.create(tmp_path, size=1 << 30, durability=durability)
        stored: list[int] = []
        with pytest.raises(block_device.SpaceExhausted):
            for chunk in range(0, 1 << 18, 300):  # far apart, so that the map needs space, too
                lun.put_many([(chunk * CHUNK, data(chunk, PER_CHUNK))])
                stored.append(chunk)
        assert stored
        for chunk in range(0, 1 << 18, 1000):  # no lookup touches a page without disk space (SIGBUS)
            if chunk not in stored:
                with pytest.raises(block_device.BlankBlock):
                    store_factory.read(lun, chunk * PER_CHUNK)
        lun.close()
        lun = store_factory.reopen(tmp_path, durability)
        for chunk in stored:
            assert store_factory.read(lun, chunk * PER_CHUNK, PER_CHUNK) == b"".join(data(chunk, PER_CHUNK))
        lun.invalidate("full")
        lun.close()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_verify_finds_rot(tmp_path: Path) -> None:
    lun = store_factory.create(tmp_path)
    for chunk in (0, 1, 2):
        lun.writev(chunk * CHUNK, data(chunk, PER_CHUNK))
    lun.writev(3 * CHUNK, data(3))
    lun.close()
    with thin.files(tmp_path / "s")[1].open("r+b") as file:
        file.seek(2 * CHUNK + 100)  # the second slot
        file.write(b"rot")
    lun = store_factory.reopen(tmp_path)
    reports = list(lun.verify())
    good, damaged, unverifiable = contract.Verdict.GOOD, contract.Verdict.DAMAGED, contract.Verdict.UNVERIFIABLE
    assert [(report.offset, report.verdict) for report in reports] == [
        (0, good),
        (CHUNK, damaged),
        (2 * CHUNK, good),
        (3 * CHUNK, unverifiable),
    ]
    assert "CRC32C" in reports[1].reason
    lun.close()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("truncate", "slots"),
        ("share", "slots"),
        ("short", "header"),
        ("magic", "magic"),
        ("version", "format version"),
        ("crc", "header CRC"),
        ("foreign", "snapshot"),
    ],
)
def test_damage_of_the_files_is_named_with_a_remedy(tmp_path: Path, change: str, field: str) -> None:
    lun = store_factory.create(tmp_path)
    lun.writev(0, data(1, 2 * PER_CHUNK))
    lun.close()
    chunks = thin.files(tmp_path / "s")[1]
    header = bytearray(chunks.read_bytes())
    match change:
        case "truncate":
            os.truncate(chunks, 2 * CHUNK)
        case "share":
            store_factory.poke(tmp_path, 1, slot=1)
        case "short":
            os.truncate(chunks, 10)
        case "magic" | "version" | "crc":
            header[{"magic": 0, "version": 8, "crc": 13}[change]] ^= 0xFF
            chunks.write_bytes(header)
        case "foreign":
            (tmp_path / "other").mkdir()
            superblock = Superblock(store_factory.VOLUME, store_factory.VOLUME, 64 * CHUNK, BLOCK, CHUNK)
            thin.ThinStore.create(tmp_path / "other" / "s", superblock).close()
            chunks.write_bytes((tmp_path / "other" / "s.chunks").read_bytes())
    with pytest.raises(store_file.StoreDamaged) as caught:
        store_factory.reopen(tmp_path)
    assert caught.value.field == field
    assert caught.value.remedy in str(caught.value)
    maps.open_existing(thin.files(tmp_path / "s")[0]).close()  # the failed open left no lock


def test_missing_files_are_named_and_remove_runs_twice(tmp_path: Path) -> None:
    store_factory.create(tmp_path).close()
    thin.files(tmp_path / "s")[1].unlink()
    with pytest.raises(store_file.StoreMissing):
        store_factory.reopen(tmp_path)
    local.remove(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []
    local.remove(tmp_path / "s")  # a second time, as after a crash


def test_a_failed_creation_leaves_no_file(tmp_path: Path) -> None:
    thin.files(tmp_path / "s")[0].write_bytes(b"precious")
    with pytest.raises(store_file.StoreUnavailable):
        store_factory.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["s.map"]


def test_a_closed_store_is_freed_at_once(tmp_path: Path) -> None:
    """A daemon seldom runs the garbage collector, so the memory of deleted snapshots must not wait for it."""
    lun = store_factory.create(tmp_path)
    lun.writev(0, data(1))
    gone = weakref.ref(lun), weakref.ref(lun.store)
    gc.collect()
    gc.disable()
    try:
        lun.close()
        del lun
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()


def blocks_of_chunk_file(path: Path) -> int:
    """Return the bytes that the chunk file has on disk, set aside or not."""
    return thin.files(path / "s")[1].stat().st_blocks * 512


def test_space_is_set_aside_ahead_of_the_writes_and_closing_frees_it(tmp_path: Path) -> None:
    chunk, count = 65536, 160
    io = FaultyIO()
    lun = store_factory.create(
        tmp_path, size=count * chunk, chunk_size=chunk, durability=Durability.PROCESS_CRASH, io=io
    )
    for number in range(count):
        lun.writev(number * chunk, [memoryview(bytes([number + 1]) * chunk)])
        length = thin.files(tmp_path / "s")[1].stat().st_size
        assert length == (number + 2) * chunk  # so that the next slot is still found at open
        assert length <= blocks_of_chunk_file(tmp_path) + chunk <= 2 * length + min(length, chunk_file.AHEAD)
    assert io.calls.count("set_aside") < 10
    used = lun.used_bytes()
    io.calls.clear()
    lun.close()
    assert "ftruncate" in io.calls
    assert blocks_of_chunk_file(tmp_path) <= (count + 1) * chunk
    lun = store_factory.reopen(tmp_path)
    assert used - chunk <= lun.used_bytes() <= used
    assert verdicts(lun) == [contract.Verdict.GOOD] * count
    lun.close()


def test_space_that_a_crash_left_set_aside_is_used_or_freed(tmp_path: Path) -> None:
    store_factory.create(tmp_path).close()
    file = thin.files(tmp_path / "s")[1]
    with file.open("r+b") as left:
        storage_io.SYSTEM.set_aside(left.fileno(), CHUNK, 1 << 20)
    lun = store_factory.reopen(tmp_path)
    lun.writev(0, data(1, PER_CHUNK))
    assert verdicts(lun) == [contract.Verdict.GOOD]
    lun.close()
    assert blocks_of_chunk_file(tmp_path) == file.stat().st_size == 2 * CHUNK


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSPC])
def test_writes_work_where_no_space_can_be_set_aside(tmp_path: Path, code: int) -> None:
    io = FaultyIO()
    lun = store_factory.create(tmp_path, io=io)
    io.fail("set_aside", code)
    lun.writev(0, data(1, 2 * PER_CHUNK))
    assert verdicts(lun) == [contract.Verdict.GOOD] * 2
    io.fail("ftruncate")
    lun.close()


def test_the_last_space_of_a_file_system_is_not_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io = FaultyIO()
    lun = store_factory.create(tmp_path, io=io)
    monkeypatch.setattr(chunk_file, "PLENTY", 1 << 62)
    lun.writev(0, data(1, PER_CHUNK))
    assert "set_aside" not in io.calls
    monkeypatch.undo()
    lun.writev(CHUNK, data(2, PER_CHUNK))
    assert "set_aside" in io.calls
    lun.close()


@pytest.mark.parametrize("durability", list(Durability))
@pytest.mark.parametrize(
    ("version", "fails_at"), [(ARRAYS, 0), (ARRAYS, 2), (ARRAYS, 4), (ARRAYS, 5), (RECORDS, 0), (RECORDS, 1)]
)
def test_a_map_without_room_for_its_words_leaves_blocks_blank(
    tmp_path: Path, durability: Durability, version: int, fails_at: int
) -> None:
    """A file system that writes changed pages to a new place refuses some words, or some of the records.

    The chunks 0, 1 and 3 are stored with two calls, in format 2 for each of slots, checksums and bits.  Once there is room
    again, they are written.
    """
    io = FaultyIO()
    lun = store_factory.create(tmp_path, durability=durability, io=io, version=version)
    stores = itertools.count()

    def store() -> None:
        if next(stores) == fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    io.before["store"] = store
    requests = [(chunk * CHUNK, data(chunk + 1, PER_CHUNK)) for chunk in (0, 1, 3)]
    with pytest.raises(block_device.SpaceExhausted):
        lun.put_many(iter(requests))
    assert [extent.kind for extent in lun.extents(0, lun.size)] == [block_device.ExtentKind.BLANK]
    assert lun.written_bytes() == 0
    assert not lun.store.broken
    del io.before["store"]
    assert lun.put_many(iter(requests)) == [None] * 3
    lun.close()
    lun = store_factory.reopen(tmp_path, durability)
    assert lun.written_bytes() == 3 * CHUNK
    assert verdicts(lun) == [contract.Verdict.GOOD] * 3
    lun.close()


@pytest.mark.parametrize("durability", list(Durability))
def test_a_map_that_is_cut_short_takes_no_words(tmp_path: Path, durability: Durability) -> None:
    """A store behind the new end would make the file long again, and written blocks blank."""
    lun = store_factory.create(tmp_path, durability=durability)
    lun.writev(0, data(1, PER_CHUNK))
    path = thin.files(tmp_path / "s")[0]
    batch = thin.Batch()
    store_factory.thin_of(lun).put(batch, 2 * PER_CHUNK, PER_CHUNK, data(2, PER_CHUNK))
    length = path.stat().st_size
    os.truncate(path, length - PAGE)
    with pytest.raises(block_device.MediumError, match="cut short"):
        store_factory.thin_of(lun).commit(batch)
    assert path.stat().st_size == length - PAGE
    with pytest.raises(block_device.MediumError, match="accepts no further writes"):
        store_factory.thin_of(lun).put(batch, 3 * PER_CHUNK, 1, data(3))
    lun.close()
    with pytest.raises(store_file.StoreDamaged, match="bytes long"):
        store_factory.reopen(tmp_path, durability)


def test_confirmations_of_a_store_without_syncs_reach_the_map(tmp_path: Path) -> None:
    io = FaultyIO()
    lun = store_factory.create(tmp_path, size=128 * CHUNK, durability=Durability.PROCESS_CRASH, io=io)
    for chunk in range(63):
        lun.writev(chunk * CHUNK, data(1, PER_CHUNK))
    assert not store_factory.thin_of(lun)._map.confirmed(0)
    lun.writev(63 * CHUNK, data(1, PER_CHUNK))
    assert all(store_factory.thin_of(lun)._map.confirmed(chunk) for chunk in range(64))
    lun.writev(64 * CHUNK, data(1, PER_CHUNK))
    lun.close()
    lun = store_factory.reopen(tmp_path)
    assert store_factory.thin_of(lun)._map.confirmed(64)
    lun.close()
