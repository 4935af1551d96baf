# SPDX-License-Identifier: Apache-2.0
"""The write-once rule: first writes, refused second writes, blank reads, batches, states, and a killed process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends import block_device, write_once
from lun_backends.durability import Durability
from lun_backends.stores import contract
from tests.lun_backends import store_factory
from tests.lun_backends.store_factory import BLOCK, CHUNK, PER_CHUNK, data

BLANK, DATA = block_device.ExtentKind.BLANK, block_device.ExtentKind.DATA


@pytest.fixture(params=list(Durability))
def lun(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[write_once.WriteOnce]:
    device = store_factory.create(tmp_path, durability=request.param)
    yield device
    device.close()


def extents(device: write_once.WriteOnce) -> list[tuple[int, int, block_device.ExtentKind]]:
    return [(e.offset // BLOCK, e.length // BLOCK, e.kind) for e in device.extents(0, device.size)]


def test_the_first_write_is_stored_and_the_second_refused(lun: write_once.WriteOnce) -> None:
    lun.writev(3 * BLOCK, data(1, 2))
    with pytest.raises(block_device.BlockWritten) as caught:
        lun.writev(3 * BLOCK, data(2, 2))
    assert caught.value.lba == 3
    assert store_factory.read(lun, 3, 2) == b"".join(data(1, 2))


@pytest.mark.parametrize("first", [0, 5, PER_CHUNK - 1, 2 * PER_CHUNK])
@pytest.mark.parametrize("count", [1, 3, PER_CHUNK, 3 * PER_CHUNK + 5])
def test_a_write_stores_all_of_its_blocks_or_none(lun: write_once.WriteOnce, first: int, count: int) -> None:
    taken = first + count - 1
    lun.writev(taken * BLOCK, data(1))
    with pytest.raises(block_device.BlockWritten) as caught:
        lun.writev(first * BLOCK, data(2, count + 2))
    assert caught.value.lba == taken
    assert store_factory.read(lun, taken) == b"".join(data(1))
    assert [e for e in extents(lun) if e[2] is DATA] == [(taken, 1, DATA)]


def test_a_blank_block_is_named(lun: write_once.WriteOnce) -> None:
    lun.writev(0, data(1, PER_CHUNK + 3))
    lun.writev((PER_CHUNK + 4) * BLOCK, data(2, 10))
    for first, count, blank in [
        (0, 64, PER_CHUNK + 3),
        (PER_CHUNK + 3, 1, PER_CHUNK + 3),
        (5, PER_CHUNK, PER_CHUNK + 3),
        (40, 2, 40),
    ]:
        with pytest.raises(block_device.BlankBlock) as caught:
            store_factory.read(lun, first, count)
        assert caught.value.lba == blank


def test_reads_join_what_different_writes_stored(lun: write_once.WriteOnce) -> None:
    order = [9, 2, 5, 3, 4, 0, 1, 8, 6, 7]  # so that the slots have another order than the blocks
    for chunk in order:
        lun.writev(chunk * CHUNK, data(chunk, PER_CHUNK))
    want = b"".join(b"".join(data(chunk, PER_CHUNK)) for chunk in range(10))
    assert store_factory.read(lun, 0, 10 * PER_CHUNK) == want
    assert store_factory.read(lun, 3, 70) == want[3 * BLOCK : 73 * BLOCK]


def test_zeroes_are_written_and_nothing_is_discarded(lun: write_once.WriteOnce) -> None:
    lun.write_zeroes(2 * BLOCK, 3 * CHUNK, discard=False)
    assert store_factory.read(lun, 2, 3 * PER_CHUNK) == bytes(3 * CHUNK)
    with pytest.raises(block_device.BlockWritten):
        lun.write_zeroes(3 * BLOCK, BLOCK, discard=False, fua=True)
    with pytest.raises(block_device.NotSupported):
        lun.write_zeroes(0, BLOCK, discard=True)


def test_ranges_beyond_the_end_are_refused(tmp_path: Path) -> None:
    lun = store_factory.create(tmp_path, size=CHUNK + 3 * BLOCK)
    with pytest.raises(block_device.OutOfRange) as caught:
        lun.writev(CHUNK, data(1, 4))
    assert caught.value.lba == PER_CHUNK + 3
    with pytest.raises(block_device.OutOfRange):
        store_factory.read(lun, PER_CHUNK + 3)
    lun.writev(CHUNK, data(1, 3))
    assert store_factory.read(lun, PER_CHUNK, 3) == b"".join(data(1, 3))
    assert [report.verdict for report in lun.verify()] == [contract.Verdict.GOOD]
    assert extents(lun) == [(0, PER_CHUNK, BLANK), (PER_CHUNK, 3, DATA)]
    lun.close()


def test_empty_transfers_do_nothing(lun: write_once.WriteOnce) -> None:
    lun.writev(0, [])
    lun.readv(lun.size, [])
    assert lun.put_many([]) == []


def test_put_many_answers_every_request_and_commits_once(tmp_path: Path) -> None:
    lun = store_factory.create(tmp_path)
    lun.writev(5 * BLOCK, data(1))
    buffer = bytearray(CHUNK)
    before = lun.syncs.data

    def requests() -> Iterator[tuple[int, list[memoryview]]]:
        for chunk in (2, 0, 3):
            buffer[:] = bytes([chunk + 1]) * CHUNK  # the buffer is used again for every request
            yield chunk * CHUNK, [memoryview(buffer)]

    answers = lun.put_many(requests())
    assert [answer and answer.lba for answer in answers] == [None, 5, None]
    assert lun.syncs.data == before + 1
    assert store_factory.read(lun, 2 * PER_CHUNK, 2 * PER_CHUNK) == b"\x03" * CHUNK + b"\x04" * CHUNK
    lun.close()


def test_put_many_refuses_a_second_write_of_the_same_batch(lun: write_once.WriteOnce) -> None:
    answers = lun.put_many([(0, data(1, 4)), (2 * BLOCK, data(2, 4)), (4 * BLOCK, data(3))])
    assert [answer and answer.lba for answer in answers] == [None, 2, None]
    assert store_factory.read(lun, 0, 5) == b"".join(data(1, 4) + data(3))


def test_put_many_keeps_the_requests_before_an_error(lun: write_once.WriteOnce) -> None:
    def requests() -> Iterator[tuple[int, list[memoryview]]]:
        yield 0, data(1)
        raise block_device.MediumError(7, False, "the primary cannot be read")

    with pytest.raises(block_device.MediumError):
        lun.put_many(requests())
    with pytest.raises(block_device.OutOfRange):
        lun.put_many([(BLOCK, data(2)), (lun.size, data(3))])
    assert store_factory.read(lun, 0, 2) == b"".join(data(1) + data(2))


def test_reads_of_cached_data_need_no_waiting_and_writes_do(lun: write_once.WriteOnce) -> None:
    assert not lun.write_now(0, BLOCK, data(1))
    lun.writev(0, data(1))
    buffer = bytearray(BLOCK)
    if lun.read_now(0, BLOCK, [memoryview(buffer)]):  # where the file system knows whether it would wait
        assert bytes(buffer) == b"".join(data(1))
    with pytest.raises(block_device.BlankBlock):
        lun.read_now(BLOCK, BLOCK, [memoryview(buffer)])


def assert_invalid(lun: write_once.WriteOnce) -> None:
    for act in (
        lambda: store_factory.read(lun, 0),
        lambda: lun.writev(BLOCK, data(1)),
        lambda: lun.put_many([(BLOCK, data(1))]),
        lambda: list(lun.extents(0, lun.size)),
        lambda: list(lun.verify()),
    ):
        with pytest.raises(block_device.SnapshotInvalid, match="no space left"):
            act()


def test_an_invalid_lun_stays_invalid(tmp_path: Path) -> None:
    lun = store_factory.create(tmp_path)
    lun.writev(0, data(1))
    begun = lun.extents(0, lun.size)
    lun.invalidate("no space left")
    with pytest.raises(block_device.SnapshotInvalid):
        next(begun)
    assert_invalid(lun)
    lun.close()
    lun = store_factory.reopen(tmp_path)
    assert lun.store.reason == "no space left"
    assert_invalid(lun)
    lun.close()


def test_a_closed_lun_refuses_every_call(lun: write_once.WriteOnce) -> None:
    lun.writev(0, data(1))
    lun.close()
    lun.close()
    for act in (
        lambda: store_factory.read(lun, 0),
        lambda: lun.writev(BLOCK, data(1)),
        lun.flush,
        lun.used_bytes,
        lambda: lun.put_many([]),
    ):
        with pytest.raises(block_device.DeviceClosed):
            act()


def test_close_waits_for_running_calls(lun: write_once.WriteOnce) -> None:
    pulled, go_on = threading.Event(), threading.Event()
    answers: list[object] = []

    def requests() -> Iterator[tuple[int, list[memoryview]]]:
        yield 0, data(1)
        pulled.set()
        go_on.wait(10)

    putting = threading.Thread(target=lambda: answers.append(lun.put_many(requests())), daemon=True)
    putting.start()
    pulled.wait()
    closing = threading.Thread(target=lun.close)
    closing.start()
    closing.join(0.02)
    waits = closing.is_alive()
    go_on.set()
    putting.join()
    closing.join()
    assert waits
    assert answers == [[None]]


def test_used_and_written_bytes_count_chunks_and_blocks(tmp_path: Path) -> None:
    lun = store_factory.create(tmp_path, size=1 << 40)
    lun.writev(0, data(1, 3))
    assert lun.written_bytes() == 3 * BLOCK
    lun.writev(1 << 39, data(1, 5))
    lun.writev(3 * BLOCK, data(1, 1))
    assert lun.written_bytes() == 9 * BLOCK
    assert 9 * BLOCK <= lun.used_bytes() < 1 << 20
    lun.close()
    lun = store_factory.reopen(tmp_path)
    lun.writev(4 * BLOCK, data(1))
    assert lun.written_bytes() == 10 * BLOCK
    assert extents(lun) == [
        (0, 5, DATA),
        (5, (1 << 30) - 5, BLANK),
        (1 << 30, 5, DATA),
        ((1 << 30) + 5, (1 << 30) - 5, BLANK),
    ]
    lun.close()


def test_many_extents_come_in_order_without_gaps(tmp_path: Path) -> None:
    lun = store_factory.create(tmp_path, size=1 << 20)
    lun.put_many((block * BLOCK, data(block)) for block in range(0, 2048, 2))
    kinds = [(block, 1, DATA if block % 2 == 0 else BLANK) for block in range(2048)]
    assert extents(lun) == kinds
    lun.close()


_WRITER = """
import sys
from pathlib import Path
from lun_backends.durability import Durability
from lun_backends.stores.superblock import State
from tests.lun_backends import store_factory
path, durability = Path(sys.argv[1]), Durability(sys.argv[2])
lun = store_factory.create(path, size=1 << 30, durability=durability)
for number in range(1 << 18):
    if number % 3:
        lun.writev(number * store_factory.CHUNK + store_factory.BLOCK, store_factory.data(number, 5))
    else:
        lun.put_many([(number * store_factory.CHUNK, store_factory.data(number, store_factory.PER_CHUNK))])
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("durability", list(Durability))
def test_a_killed_process_loses_nothing_it_acknowledged(tmp_path: Path, durability: Durability) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path), durability.value], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) == 200:
            break
    os.kill(child.pid, signal.SIGKILL)
    acknowledged = [200, *map(int, child.stdout.read().split()[:-1])]  # the last line may be cut
    child.wait()
    lun = store_factory.reopen(tmp_path, durability)
    for number in range(acknowledged[-1] + 1):
        if number % 3:
            assert store_factory.read(lun, number * PER_CHUNK + 1, 5) == b"".join(data(number, 5))
            with pytest.raises(block_device.BlankBlock):
                store_factory.read(lun, number * PER_CHUNK)
        else:
            assert store_factory.read(lun, number * PER_CHUNK, PER_CHUNK) == b"".join(data(number, PER_CHUNK))
    assert contract.Verdict.DAMAGED not in {report.verdict for report in lun.verify()}
    lun.close()
