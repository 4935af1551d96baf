# SPDX-License-Identifier: Apache-2.0
"""UNMAP, WRITE SAME, GET LBA STATUS."""

from __future__ import annotations

import os
import struct

import pytest

from lun_backends import block_device
from lun_backends.block_device import Extent, ExtentKind
from target.scsi import transfer
from target.scsi.commands import thin
from target.scsi.logical_unit import UnitKind
from target.scsi.task import Task
from tests.memory_device import MIB, MemoryDevice
from tests.target.scsi.harness import (
    CHECK,
    GOOD,
    Bench,
    block_cdb,
    cdb10,
    cdb16,
    get_lba_status_cdb,
    lba_status,
    unmap_cdb,
    unmap_list,
)

WRITE_SAMES = [0x41, 0x93]
UNMAP, NDOB = 0x08, 0x01
BLOCKS = 2048
MAPPED, DEALLOCATED = 0, 1


@pytest.fixture
def full() -> Bench:
    bench = Bench()
    bench.device.fill(os.urandom(MIB))
    return bench


def unmap(bench: Bench, *ranges: tuple[int, int]) -> tuple[int, int, tuple[int, int | None] | None]:
    parameters = unmap_list(*ranges)
    result = bench.run(unmap_cdb(len(parameters)), parameters)
    return result.status, result.asc, result.field if result.sense else None


def test_unmap(full: Bench) -> None:
    before = bytes(full.device.data)
    assert unmap(full, (8, 8), (BLOCKS - 1, 1), (100, 0), (BLOCKS, 0))[0] == GOOD
    zeroes = bytes(8 * 512)
    assert full.device.data == before[: 8 * 512] + zeroes + before[16 * 512 : -512] + bytes(512)
    assert lba_status(full.run(get_lba_status_cdb(0, 1000)).data) == [
        (0, 8, MAPPED),
        (8, 8, DEALLOCATED),
        (16, BLOCKS - 17, MAPPED),
        (BLOCKS - 1, 1, DEALLOCATED),
    ]


def test_unmap_of_nothing(full: Bench) -> None:
    assert full.run(unmap_cdb(0)).status == GOOD
    assert unmap(full)[0] == GOOD
    assert not full.device.calls


def test_a_bad_descriptor_stops_unmap_before_the_first(full: Bench) -> None:
    assert unmap(full, (0, 8), (BLOCKS - 1, 2))[1] == 0x2100
    assert not full.device.calls


@pytest.mark.parametrize("length", [1, 7])
def test_an_unmap_list_too_short_for_its_header(full: Bench, length: int) -> None:
    assert full.run(unmap_cdb(length), bytes(length)).asc == 0x1A00


def test_an_unmap_list_shorter_than_it_says(full: Bench) -> None:
    parameters = unmap_list((0, 1), (8, 1))
    assert full.run(unmap_cdb(len(parameters) - 16), parameters[:-16]).asc == 0x1A00
    assert full.run(unmap_cdb(len(parameters)), parameters[:-16]).asc == 0x0E03
    assert not full.device.calls


def test_an_incomplete_last_descriptor_is_ignored(full: Bench) -> None:
    parameters = bytearray(unmap_list((0, 1), (8, 1)))
    parameters[2:4] = (31).to_bytes(2)
    assert full.run(unmap_cdb(len(parameters)), bytes(parameters)).status == GOOD
    assert full.device.calls["write_zeroes"] == 1


def test_the_limits_of_unmap() -> None:
    device = MemoryDevice(block_size=512)
    device.size = 1 << 40
    bench = Bench(device=device)
    assert unmap(bench, *[(0, 0)] * (transfer.MAX_UNMAP_DESCRIPTORS + 1)) == (CHECK, 0x2600, (2, None))
    most = transfer.MAX_UNMAP_BYTES // 512
    assert unmap(bench, (0, most), (most, 1)) == (CHECK, 0x2600, (32, None))
    assert not device.calls


def test_anchor_is_refused(full: Bench) -> None:
    assert full.run(unmap_cdb(24, flags=1), unmap_list((0, 1))).field == (1, 0)
    assert full.run(block_cdb(0x41, 0, 1, 0x18), bytes(512)).field == (1, 4)
    assert full.run(block_cdb(0x93, 0, 1, 0x18), bytes(512)).field == (1, 4)


@pytest.mark.parametrize("opcode", WRITE_SAMES)
def test_write_same(full: Bench, opcode: int) -> None:
    before, block = bytes(full.device.data), os.urandom(512)
    assert full.run(block_cdb(opcode, 3, 5), block).status == GOOD
    assert full.device.data == before[: 3 * 512] + block * 5 + before[8 * 512 :]


@pytest.mark.parametrize("opcode", WRITE_SAMES)
def test_write_same_in_more_than_one_step(opcode: int) -> None:
    bench = Bench(device=MemoryDevice(4 * MIB))
    blocks = 2 * transfer.OPTIMAL_TRANSFER_BYTES // 512 + 3
    assert bench.run(block_cdb(opcode, 1, blocks), b"ab" * 256).status == GOOD
    assert bench.device.data == bytes(512) + b"ab" * 256 * blocks + bytes(4 * MIB - 512 * (blocks + 1))


@pytest.mark.parametrize("opcode", WRITE_SAMES)
@pytest.mark.parametrize("flags", [0, UNMAP])
def test_write_same_of_zeroes(full: Bench, opcode: int, flags: int) -> None:
    assert full.run(block_cdb(opcode, 8, 8, flags), bytes(512)).status == GOOD
    assert full.device.data[8 * 512 : 16 * 512] == bytes(8 * 512)
    assert lba_status(full.run(get_lba_status_cdb(8, 24)).data)[0][2] == (DEALLOCATED if flags else MAPPED)
    assert not full.device.calls["writev"]


@pytest.mark.parametrize("opcode", WRITE_SAMES)
def test_write_same_with_unmap_unmaps_whatever_the_data(full: Bench, opcode: int) -> None:
    assert full.run(block_cdb(opcode, 8, 8, UNMAP), b"x" * 512).status == GOOD
    assert full.device.data[8 * 512 : 16 * 512] == bytes(8 * 512)
    assert lba_status(full.run(get_lba_status_cdb(8, 24)).data)[0][2] == DEALLOCATED


@pytest.mark.parametrize("flags", [NDOB, NDOB | UNMAP])
def test_write_same_without_a_data_out_buffer(full: Bench, flags: int) -> None:
    assert full.run(cdb16(0x93, 8, 8, flags)).status == GOOD
    assert full.device.data[8 * 512 : 16 * 512] == bytes(8 * 512)


@pytest.mark.parametrize("opcode", WRITE_SAMES)
def test_write_same_to_the_end(full: Bench, opcode: int) -> None:
    assert full.run(block_cdb(opcode, 1000, 0), b"z" * 512).status == GOOD
    assert full.device.data[1000 * 512 :] == b"z" * 512 * (BLOCKS - 1000)


@pytest.mark.parametrize("opcode", WRITE_SAMES)
@pytest.mark.parametrize("flags", [0, UNMAP])
def test_write_same_refuses(full: Bench, opcode: int, flags: int) -> None:
    assert full.run(block_cdb(opcode, BLOCKS, 0, flags), bytes(512)).asc == 0x2100
    assert full.run(block_cdb(opcode, BLOCKS - 1, 2, flags), bytes(512)).asc == 0x2100
    assert full.run(block_cdb(opcode, 0, 1, flags | 0x20), bytes(512)).field == (1, 5)
    for size in (0, 256, 1024):
        assert full.run(block_cdb(opcode, 0, 1, flags), bytes(size)).asc == 0x0E03
    with pytest.raises(block_device.WouldBlock):
        full.run(block_cdb(opcode, 0, 1, flags), bytes(512), nowait=True)
    assert not full.device.calls


@pytest.mark.parametrize("opcode", WRITE_SAMES)
def test_write_same_of_more_than_the_maximum(opcode: int) -> None:
    device = MemoryDevice(block_size=512)
    device.size = 1 << 40
    bench = Bench(device=device)
    result = bench.run(block_cdb(opcode, 0, 0), bytes(512))
    assert (result.asc, result.field) == (0x2400, (10 if opcode == 0x93 else 7, None))
    if opcode == 0x93:
        assert bench.run(cdb16(opcode, 0, transfer.MAX_WRITE_SAME_BYTES // 512 + 1), bytes(512)).asc == 0x2400
    assert not device.calls


def test_a_long_command_stops_when_it_is_aborted() -> None:
    bench = Bench(device=MemoryDevice(4 * MIB))
    task = bench.initiator.task(cdb10(0x41, 0, 0), b"x" * 512)

    def abort(method: str, offset: int, length: int) -> None:
        task.aborted = True

    bench.device.before = abort
    bench.initiator.nexus.execute(task, nowait=False)
    assert task.status == 0x40
    assert bench.device.calls["writev"] == 1


@pytest.mark.parametrize("kind", [UnitKind.WRITE_ONCE, UnitKind.SNAPSHOT_VIEW])
def test_units_other_than_primaries_refuse_deallocation(kind: UnitKind) -> None:
    bench = Bench(kind)
    expected = (0x5, 0x2000) if kind is UnitKind.WRITE_ONCE else (0x7, 0x2700)
    for cdb, data in (
        (unmap_cdb(24), unmap_list((0, 1))),
        (cdb10(0x41, 0, 1), bytes(512)),
        (cdb10(0x41, 0, 1, UNMAP), bytes(512)),
        (cdb16(0x93, 0, 1, UNMAP), bytes(512)),
        (cdb16(0x93, 0, 1, NDOB), b""),
    ):
        result = bench.run(cdb, data)
        assert (result.key, result.asc) == expected
    assert not bench.device.calls


def test_get_lba_status_of_a_write_once_unit_reports_written_blocks(write_once: Bench) -> None:
    assert lba_status(write_once.run(get_lba_status_cdb(0, 24)).data) == [(0, BLOCKS, DEALLOCATED)]
    write_once.run(cdb10(0x2A, 10, 5), bytes(5 * 512))
    write_once.run(cdb10(0x2A, 100, 1), bytes(512))
    assert lba_status(write_once.run(get_lba_status_cdb(0, 1000)).data) == [
        (0, 10, DEALLOCATED),
        (10, 5, MAPPED),
        (15, 85, DEALLOCATED),
        (100, 1, MAPPED),
        (101, BLOCKS - 101, DEALLOCATED),
    ]
    assert lba_status(write_once.run(get_lba_status_cdb(12, 40)).data) == [(12, 3, MAPPED), (15, 85, DEALLOCATED)]


@pytest.mark.parametrize("length", [0, 4, 8, 12, 23, 24, 39])
def test_get_lba_status_is_cut_to_the_allocation_length(primary: Bench, length: int) -> None:
    result = primary.run(get_lba_status_cdb(0, length))
    assert result.status == GOOD
    assert result.data == (struct.pack(">I4xQIBB2x", 20, 0, BLOCKS, DEALLOCATED, 0))[:length]


def test_get_lba_status_refuses(primary: Bench) -> None:
    assert primary.run(get_lba_status_cdb(BLOCKS, 24)).asc == 0x2100
    assert primary.run(get_lba_status_cdb(BLOCKS - 1, 24)).status == GOOD
    with pytest.raises(block_device.WouldBlock):
        primary.run(get_lba_status_cdb(0, 24), nowait=True)


def test_get_lba_status_merges_neighbours_and_splits_long_extents() -> None:
    class Huge(MemoryDevice):
        """A device of 5 Gi blocks: 4.5 Gi of holes in two pieces, then data."""

        def extents(self, offset: int, length: int) -> list[Extent]:  # type: ignore[override] # a list is iterable too
            gi = 512 << 30
            return [
                Extent(0, gi, ExtentKind.HOLE),
                Extent(gi, 7 * gi // 2, ExtentKind.HOLE),
                Extent(9 * gi // 2, gi // 2, ExtentKind.DATA),
            ]

    device = Huge()
    device.size = 5 * 512 << 30
    descriptors = lba_status(Bench(device=device).run(get_lba_status_cdb(0, 1000)).data)
    assert descriptors == [
        (0, 0xFFFFFFFF, DEALLOCATED),
        (0xFFFFFFFF, (1 << 29) + 1, DEALLOCATED),
        (9 << 29, 1 << 29, MAPPED),
    ]


def test_get_lba_status_bounds_its_descriptors(monkeypatch: pytest.MonkeyPatch, write_once: Bench) -> None:
    for lba in range(0, 40, 2):
        write_once.device.fill(bytes(512), lba * 512)
    monkeypatch.setattr(thin, "MAX_STATUS_DESCRIPTORS", 7)
    assert len(lba_status(write_once.run(get_lba_status_cdb(0, 0xFFFFFFFF)).data)) == 7


def test_an_aborted_task_does_not_end_with_good(full: Bench) -> None:
    task: Task = full.initiator.task(cdb10(0x41, 0, 1), bytes(512))
    task.aborted = True
    full.initiator.nexus.execute(task, nowait=False)
    assert (task.status, task.sense, full.device.calls["write_zeroes"]) == (0x40, b"", 0)
