# SPDX-License-Identifier: Apache-2.0
"""READ, WRITE, PRE-FETCH, SYNCHRONIZE CACHE and READ CAPACITY on all kinds of units."""

from __future__ import annotations

import os
import struct

import pytest

from lun_backends import block_device
from target.scsi import transfer
from target.scsi.logical_unit import UnitKind
from tests.memory_device import MemoryDevice
from tests.target.scsi.harness import CHECK, CONDITION_MET, GOOD, Bench, Result, block_cdb, cdb10, cdb16

READS = [0x08, 0x28, 0xA8, 0x88]
WRITES = [0x0A, 0x2A, 0xAA, 0x8A]
LONG_READS, LONG_WRITES = READS[1:], WRITES[1:]

BLOCKS = 2048  # of the default device


def pattern(blocks: int, block_size: int = 512) -> bytes:
    return os.urandom(blocks * block_size)


def illegal(result: Result, asc: int) -> bool:
    return (result.status, result.key, result.asc) == (CHECK, 0x5, asc)


@pytest.mark.parametrize(("write", "read"), list(zip(WRITES, READS, strict=True)))
@pytest.mark.parametrize("nowait", [False, True])
def test_written_data_is_read_back(primary: Bench, write: int, read: int, nowait: bool) -> None:
    data = pattern(3)
    assert primary.run(block_cdb(write, 5, 3), data, nowait=nowait).status == GOOD
    assert primary.device.data[5 * 512 : 8 * 512] == data
    assert primary.run(block_cdb(read, 5, 3), nowait=nowait) == Result(GOOD, data, b"")


@pytest.mark.parametrize(("write", "read"), list(zip(WRITES, READS, strict=True)))
def test_blocks_of_4096_bytes(write: int, read: int) -> None:
    bench = Bench(device=MemoryDevice(block_size=4096))
    data = pattern(2, 4096)
    assert bench.run(block_cdb(write, 3, 2), data).status == GOOD
    assert bench.device.data[3 * 4096 : 5 * 4096] == data
    assert bench.run(block_cdb(read, 3, 2)).data == data


def test_a_count_of_0_is_256_blocks_in_6_byte_cdbs(primary: Bench) -> None:
    data = pattern(256)
    assert primary.run(block_cdb(0x0A, 1, 0), data).status == GOOD
    assert primary.run(block_cdb(0x08, 1, 0)).data == data


@pytest.mark.parametrize("opcode", LONG_READS + LONG_WRITES)
def test_a_count_of_0_transfers_nothing_but_needs_a_valid_lba(primary: Bench, opcode: int) -> None:
    assert primary.run(block_cdb(opcode, BLOCKS - 1, 0)) == Result(GOOD, b"", b"")
    assert illegal(primary.run(block_cdb(opcode, BLOCKS, 0)), 0x2100)
    assert not primary.device.calls


@pytest.mark.parametrize("opcode", READS + WRITES)
def test_beyond_the_end(primary: Bench, opcode: int) -> None:
    data = pattern(2) if opcode in WRITES else b""
    assert primary.run(block_cdb(opcode, BLOCKS - 2, 2), data).status == GOOD
    for lba in (BLOCKS - 1, BLOCKS, BLOCKS + 5):
        result = primary.run(block_cdb(opcode, lba, 2), data)
        assert illegal(result, 0x2100)
        assert result.information == max(lba, BLOCKS)
        assert result.data == b""


@pytest.mark.parametrize("opcode", [0x88, 0x8A])
def test_an_lba_that_only_16_byte_cdbs_hold(primary: Bench, opcode: int) -> None:
    data = pattern(1) if opcode == 0x8A else b""
    assert illegal(primary.run(cdb16(opcode, (1 << 64) - 1, 1), data), 0x2100)


@pytest.mark.parametrize("opcode", LONG_READS + LONG_WRITES)
def test_more_than_the_maximum_transfer_length(opcode: int) -> None:
    bench = Bench(device=MemoryDevice(2 * transfer.MAX_TRANSFER_BYTES, block_size=4096))
    most = transfer.MAX_TRANSFER_BYTES // 4096
    result = bench.run(block_cdb(opcode, 0, most + 1))
    assert illegal(result, 0x2400)
    assert result.field == ({0x1: 7, 0x4: 10, 0x5: 6}[opcode >> 5], None)
    if opcode in LONG_READS:
        assert len(bench.run(block_cdb(opcode, 0, most)).data) == transfer.MAX_TRANSFER_BYTES


@pytest.mark.parametrize("opcode", LONG_READS + LONG_WRITES)
@pytest.mark.parametrize("bit", [7, 6, 5])
def test_protection_information_is_refused(primary: Bench, opcode: int, bit: int) -> None:
    result = primary.run(block_cdb(opcode, 0, 1, flags=1 << bit), pattern(1))
    assert illegal(result, 0x2400)
    assert result.field == (1, bit)
    assert not primary.device.calls


@pytest.mark.parametrize("opcode", READS + WRITES)
def test_naca_is_refused(primary: Bench, opcode: int) -> None:
    cdb = bytearray(block_cdb(opcode, 0, 1))
    cdb[-1] = 0x04
    result = primary.run(bytes(cdb), pattern(1))
    assert illegal(result, 0x2400)
    assert result.field == (len(cdb) - 1, 2)
    assert not primary.device.calls


@pytest.mark.parametrize("opcode", LONG_READS)
@pytest.mark.parametrize("flags", [0x10, 0x02])
def test_dpo_and_fua_nv_mean_nothing(primary: Bench, opcode: int, flags: int) -> None:
    assert primary.run(block_cdb(opcode, 0, 1, flags=flags)).status == GOOD
    assert not primary.device.calls["flush"]


@pytest.mark.parametrize("opcode", LONG_READS)
def test_a_read_with_fua_flushes_first_and_waits(primary: Bench, opcode: int) -> None:
    with pytest.raises(block_device.WouldBlock):
        primary.run(block_cdb(opcode, 0, 1, flags=0x08), nowait=True)
    assert not primary.device.calls
    assert primary.run(block_cdb(opcode, 0, 1, flags=0x08)).status == GOOD
    assert primary.device.calls["flush"] == 1


@pytest.mark.parametrize("opcode", LONG_WRITES)
def test_a_write_with_fua_is_stable_and_waits(primary: Bench, opcode: int) -> None:
    cdb, data = block_cdb(opcode, 0, 1, flags=0x18), pattern(1)
    with pytest.raises(block_device.WouldBlock):
        primary.run(cdb, data, nowait=True)
    assert not primary.device.calls
    assert primary.run(cdb, data).status == GOOD
    assert primary.device.calls["fua"] == 1


@pytest.mark.parametrize("opcode", READS + WRITES)
def test_would_block_leaves_the_results_alone(opcode: int) -> None:
    bench = Bench(device=MemoryDevice(blocking=True))
    task = bench.initiator.task(block_cdb(opcode, 0, 1), pattern(1) if opcode in WRITES else b"")
    before = (0x77, b"sense", (memoryview(b"data"),))
    task.status, task.sense, task.data_in = before
    with pytest.raises(block_device.WouldBlock):
        bench.initiator.nexus.execute(task, nowait=True)
    assert (task.status, task.sense, task.data_in) == before
    assert not bench.unit.running
    bench.initiator.nexus.execute(task, nowait=False)
    assert task.status == GOOD
    assert task.sense == b""


@pytest.mark.parametrize("opcode", WRITES)
def test_too_little_data_out_that_ends_in_a_block_writes_nothing(primary: Bench, opcode: int) -> None:
    result = primary.run(block_cdb(opcode, 0, 2), pattern(1)[:200])
    assert illegal(result, 0x0E03)
    assert result.residual_out == 824
    assert not primary.device.calls


@pytest.mark.parametrize("opcode", WRITES)
def test_fewer_whole_blocks_than_the_cdb_says_are_written(primary: Bench, opcode: int) -> None:
    primary.device.fill(b"x" * 1024)
    data = pattern(1)
    result = primary.run(block_cdb(opcode, 0, 2), data)
    assert (result.status, result.residual_out) == (GOOD, 512)
    assert primary.device.data[:1024] == data + b"x" * 512
    result = primary.run(block_cdb(opcode, 0, 1))
    assert (result.status, result.residual_out) == (GOOD, 512)
    assert primary.device.data[:512] == data


@pytest.mark.parametrize("opcode", WRITES)
def test_surplus_data_out_is_not_written(primary: Bench, opcode: int) -> None:
    data = pattern(3)
    result = primary.run(block_cdb(opcode, 0, 1), data)
    assert (result.status, result.residual_out) == (GOOD, -1024)
    assert primary.device.data[:1024] == data[:512] + bytes(512)


def test_the_device_gets_the_fabrics_own_buffers(primary: Bench) -> None:
    primary.device.fill(b"x" * 1024)
    buffer = memoryview(bytearray(1024))
    task = primary.initiator.task(cdb10(0x28, 0, 2))
    task.allocate = lambda length: [buffer[:length]]
    primary.initiator.nexus.execute(task, nowait=True)
    assert buffer == b"x" * 1024
    assert [piece.obj for piece in task.data_in] == [buffer.obj]


@pytest.mark.parametrize("read", READS)
def test_a_blank_block_ends_the_read_with_the_data_before_it(write_once: Bench, read: int) -> None:
    data = pattern(2)
    write_once.device.fill(data, 4 * 512)
    result = write_once.run(block_cdb(read, 4, 6))
    assert (result.status, result.key, result.asc, result.information) == (CHECK, 0x8, 0x0000, 6)
    assert result.data == data
    result = write_once.run(block_cdb(read, 6, 1))
    assert (result.key, result.information, result.data) == (0x8, 6, b"")


def test_a_blank_block_read_without_waiting(write_once: Bench) -> None:
    write_once.device.fill(pattern(1))
    assert write_once.run(cdb10(0x28, 0, 2), nowait=True).information == 1


def test_unreadable_leading_data_is_left_out(write_once: Bench) -> None:
    write_once.device.inject("readv", block_device.BlankBlock(2))
    write_once.device.inject("readv", block_device.MediumError(0, writing=False, reason="rot"))
    result = write_once.run(cdb10(0x28, 0, 4))
    assert (result.key, result.information, result.data) == (0x8, 2, b"")


@pytest.mark.parametrize("write", WRITES)
def test_a_written_block_refuses_the_whole_write(write_once: Bench, write: int) -> None:
    assert write_once.run(block_cdb(write, 5, 2), pattern(2)).status == GOOD
    before = bytes(write_once.device.data), bytes(write_once.device.written)
    result = write_once.run(block_cdb(write, 3, 4), pattern(4))
    assert (result.status, result.key, result.asc, result.information) == (CHECK, 0x8, 0x0000, 5)
    assert (bytes(write_once.device.data), bytes(write_once.device.written)) == before


@pytest.mark.parametrize("write", WRITES)
def test_a_view_refuses_writes(view: Bench, write: int) -> None:
    result = view.run(block_cdb(write, 0, 1), pattern(1))
    assert (result.status, result.key, result.asc) == (CHECK, 0x7, 0x2700)
    assert not view.device.calls


def test_an_lba_beyond_32_bits_is_reported_in_descriptor_format() -> None:
    class Sparse(MemoryDevice):
        """A device that claims 16 TiB."""

        def readv(self, offset: int, buffers: block_device.Buffers) -> None:
            raise block_device.BlankBlock(offset // 512)

    device = Sparse(write_once=True)
    device.size = 16 << 40
    bench = Bench(UnitKind.WRITE_ONCE, device)
    result = bench.run(cdb16(0x88, 0x4_0000_0000, 1))
    assert result.sense[0] == 0x72
    assert (result.key, result.information) == (0x8, 0x4_0000_0000)
    assert bench.run(bytes.fromhex("25")).data == bytes.fromhex("ffffffff00000200")


@pytest.mark.parametrize("opcode", [0x34, 0x90])
def test_pre_fetch(any_kind: Bench, opcode: int) -> None:
    assert any_kind.run(block_cdb(opcode, 0, 16)).status == CONDITION_MET
    assert any_kind.run(block_cdb(opcode, 0, 16, flags=0x02), nowait=True).status == CONDITION_MET
    assert any_kind.run(block_cdb(opcode, 5, 0)).status == CONDITION_MET
    assert illegal(any_kind.run(block_cdb(opcode, BLOCKS - 1, 2)), 0x2100)


@pytest.mark.parametrize("opcode", [0x35, 0x91])
@pytest.mark.parametrize("immed", [0x00, 0x02])
def test_synchronize_cache(any_kind: Bench, opcode: int, immed: int) -> None:
    with pytest.raises(block_device.WouldBlock):
        any_kind.run(block_cdb(opcode, 0, 0, flags=immed), nowait=True)
    assert any_kind.run(block_cdb(opcode, 0, 0, flags=immed)).status == GOOD
    assert any_kind.run(block_cdb(opcode, 5, 5, flags=immed)).status == GOOD
    assert any_kind.device.calls["flush"] == 2
    assert illegal(any_kind.run(block_cdb(opcode, BLOCKS - 1, 2, flags=immed)), 0x2100)


def test_synchronize_cache_reports_a_medium_error(primary: Bench) -> None:
    primary.device.inject("flush", block_device.MediumError(0, writing=True, reason="EIO"))
    result = primary.run(cdb10(0x35, 0, 0))
    assert (result.status, result.key, result.asc) == (CHECK, 0x3, 0x0C00)


def test_read_capacity_10(any_kind: Bench) -> None:
    assert any_kind.run(bytes([0x25])).data == struct.pack(">II", BLOCKS - 1, 512)


@pytest.mark.parametrize(
    ("kind", "thin"), [(UnitKind.PRIMARY, 0xC0), (UnitKind.SNAPSHOT_VIEW, 0xC0), (UnitKind.WRITE_ONCE, 0x80)]
)
def test_read_capacity_16(kind: UnitKind, thin: int) -> None:
    data = Bench(kind).run(struct.pack(">BB8xI2x", 0x9E, 0x10, 0x20)).data
    assert len(data) == 32
    assert struct.unpack_from(">QIBBB", data) == (BLOCKS - 1, 512, 0, 0, thin)
    emulating = MemoryDevice(write_once=kind is UnitKind.WRITE_ONCE)
    emulating.physical_block_size = 4096
    bench = Bench(kind, emulating)
    assert struct.unpack_from(">QIBBB", bench.run(struct.pack(">BB8xI2x", 0x9E, 0x10, 0x20)).data)[3] == 3
    large = Bench(kind, MemoryDevice(block_size=4096, write_once=kind is UnitKind.WRITE_ONCE))
    assert struct.unpack_from(">QIBBB", large.run(struct.pack(">BB8xI2x", 0x9E, 0x10, 0x20)).data)[3] == 0


@pytest.mark.parametrize("length", [0, 1, 12, 31, 100])
def test_read_capacity_16_is_cut_to_the_allocation_length(primary: Bench, length: int) -> None:
    assert len(primary.run(struct.pack(">BB8xI2x", 0x9E, 0x10, length)).data) == min(length, 32)
