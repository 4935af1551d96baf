# SPDX-License-Identifier: Apache-2.0
"""`Plain` does the same as `Nexus.execute`, or nothing."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lun_backends.block_device import MediumError
from target.scsi.logical_unit import UnitKind
from target.scsi.plain import Plain
from target.scsi.sense import Asc
from tests.memory_device import MemoryDevice
from tests.target.scsi.harness import GOOD, Bench, block_cdb, cdb10

SIZE = 64 << 10
BLOCKS = SIZE // 512
PLAIN = (0x28, 0x88, 0x2A, 0x8A)
WRITES = (0x2A, 0x8A)

commands = st.tuples(
    st.sampled_from((*PLAIN, *PLAIN, 0x08, 0xA8, 0x0A, 0xAA, 0x2E, 0x2F, 0x25, 0x00)),
    st.one_of(st.integers(0, 15), st.integers(BLOCKS - 4, BLOCKS + 4)),  # LBA
    st.integers(0, 12),  # blocks
    st.sampled_from((0, 0, 0, 0, 0x08, 0x10, 0x80)),  # flags
    st.sampled_from((0, 0, 0, 0, -512, 512)),  # difference between the buffers' length and the CDB's
)


def bench_of(kind: UnitKind) -> Bench:
    device = MemoryDevice(SIZE, write_once=kind is UnitKind.WRITE_ONCE, read_only=kind is UnitKind.SNAPSHOT_VIEW)
    device.fill(bytes(range(1, 129)) * 32)
    return Bench(kind, device)


class Shortest:
    """A nexus whose commands lie in one memory, as those of a ring do."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.plain = Plain(bench.initiator.nexus.reached[0])

    def run(self, cdb: bytes, buffer: bytearray) -> bool:
        memory = memoryview(b"\xff" * 24 + cdb.ljust(16, b"\0"))
        return self.plain.run(memory, 24, (memoryview(buffer),), len(buffer))


@pytest.mark.parametrize("kind", list(UnitKind), ids=lambda kind: kind.value)
@given(steps=st.lists(commands, max_size=30))
def test_plain_does_a_command_like_execute_or_not_at_all(
    kind: UnitKind, steps: list[tuple[int, int, int, int, int]]
) -> None:
    short, usual = Shortest(bench_of(kind)), bench_of(kind)
    for number, (opcode, lba, count, flags, more) in enumerate(steps):
        cdb = block_cdb(opcode, lba, count, flags).ljust(16, b"\0")
        buffer = bytearray(bytes([number | 0x80]) * max(0, count * 512 + more))
        before = bytes(short.bench.device.data)
        done = short.run(cdb, buffer)
        assert not short.bench.unit.running
        sent = bytes([number | 0x80]) * len(buffer)
        expected = usual.run(cdb, sent if opcode in WRITES else b"")
        if done:
            assert expected.status == GOOD
            assert opcode in PLAIN
            assert not flags
            if opcode not in WRITES:
                assert bytes(buffer) == expected.data
        else:
            assert bytes(short.bench.device.data) == before
            assert short.bench.run(cdb, sent if opcode in WRITES else b"") == expected
        assert short.bench.device.data == usual.device.data
    ours, theirs = short.bench.unit.counters, usual.unit.counters
    assert (ours.commands, ours.errors) == (theirs.commands, theirs.errors)
    assert (ours.bytes_read, ours.bytes_written) == (theirs.bytes_read, theirs.bytes_written)


@pytest.mark.parametrize("opcode", PLAIN, ids=hex)
def test_plain_commands_are_done(opcode: int) -> None:
    short = Shortest(bench_of(UnitKind.PRIMARY))
    assert short.run(block_cdb(opcode, 2, 3), bytearray(3 * 512))


def test_a_unit_attention_comes_first() -> None:
    short = Shortest(bench_of(UnitKind.PRIMARY))
    short.bench.unit.attention(0x2A, 0x09)
    assert not short.run(cdb10(0x28, 0, 1), bytearray(512))
    assert short.bench.run(cdb10(0x28, 0, 1)).asc == Asc.CAPACITY_DATA_HAS_CHANGED
    assert short.run(cdb10(0x28, 0, 1), bytearray(512))


def test_waiting_and_failing_commands_are_left_to_execute() -> None:
    short = Shortest(bench_of(UnitKind.PRIMARY))
    short.bench.device.blocking = True
    assert not short.run(cdb10(0x2A, 0, 1), bytearray(512))
    assert not short.run(cdb10(0x28, 0, 1), bytearray(512))
    short.bench.device.blocking = False
    short.bench.device.inject("readv", MediumError(0, False, "worn out"), times=2)
    assert not short.run(cdb10(0x28, 0, 1), bytearray(512))
    assert short.bench.run(cdb10(0x28, 0, 1)).key == 3
    assert short.bench.unit.counters.errors == 1


def test_writes_to_a_write_once_unit_are_left_to_execute() -> None:
    short = Shortest(bench_of(UnitKind.WRITE_ONCE))
    assert not short.run(cdb10(0x2A, 100, 1), bytearray(512))
    assert short.run(cdb10(0x28, 0, 1), bytearray(512))


def test_a_drain_waits_for_a_running_write() -> None:
    short = Shortest(bench_of(UnitKind.PRIMARY))
    reached, go_on, drained = threading.Event(), threading.Event(), threading.Event()

    def wait(method: str, offset: int, length: int) -> None:
        reached.set()
        assert go_on.wait(30)

    short.bench.device.before = wait
    writer = threading.Thread(target=short.run, args=(cdb10(0x2A, 0, 1), bytearray(512)))
    writer.start()
    assert reached.wait(30)

    def drain() -> None:
        short.bench.unit.drain()
        drained.set()

    waiter = threading.Thread(target=drain)
    waiter.start()
    assert not drained.wait(0.1)  # fails only if the drain does not wait
    go_on.set()
    writer.join()
    assert drained.wait(30)
    waiter.join()
