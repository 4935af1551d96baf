# SPDX-License-Identifier: Apache-2.0
"""MODE SENSE, MODE SELECT and the mode pages."""

from __future__ import annotations

import struct

import pytest

from lun_backends.block_device import WouldBlock
from target.scsi.logical_unit import UnitKind
from tests.memory_device import MemoryDevice
from tests.target.scsi.harness import (
    CHECK,
    GOOD,
    TEST_UNIT_READY,
    Bench,
    Result,
    attention_of,
    cdb10,
    compare_and_write_cdb,
    unmap_cdb,
    unmap_list,
)


def mode_sense_6(bench: Bench, code: int, *, dbd: bool = True, control: int = 0, subpage: int = 0) -> bytes:
    result = bench.run(bytes([0x1A, 8 * dbd, control << 6 | code, subpage, 255, 0]))
    assert result.status == GOOD
    assert result.data[0] == len(result.data) - 1
    return result.data[1:]


def test_mode_pages(any_kind: Bench) -> None:
    protected = any_kind.unit.kind is UnitKind.SNAPSHOT_VIEW
    specific = 0x90 if protected else 0x10
    recovery = bytes([0x01, 10]) + bytes(10)
    caching = bytes([0x08, 18, 0 if protected else 0x04]) + bytes(17)
    control = bytes([0x0A, 10, 0x00, 0x10, 0, 0x40, 0, 0, 0xFF, 0xFF, 0, 0])
    exceptions = bytes([0x1C, 10]) + bytes(10)
    header = bytes([0, specific, 0])
    assert mode_sense_6(any_kind, 0x3F) == header + recovery + caching + control + exceptions
    assert mode_sense_6(any_kind, 0x3F, subpage=0xFF) == mode_sense_6(any_kind, 0x3F)
    assert mode_sense_6(any_kind, 0x08) == header + caching
    assert mode_sense_6(any_kind, 0x0A, control=2) == header + control
    assert mode_sense_6(any_kind, 0x0A, control=1) == header + control[:2] + bytes(10)


def test_mode_sense_block_descriptors() -> None:
    bench = Bench(device=MemoryDevice(block_size=4096))
    assert mode_sense_6(bench, 0x0A, dbd=False)[2:11] == b"\x08" + struct.pack(">II", 256, 4096)
    short = bench.run(bytes([0x5A, 0, 0x0A, 0, 0, 0, 0, 0, 255, 0])).data
    assert short[:16] == struct.pack(">HBBBxHII", 6 + 8 + 12, 0, 0x10, 0, 8, 256, 4096)
    long = bench.run(bytes([0x5A, 0x10, 0x0A, 0, 0, 0, 0, 0, 255, 0])).data
    assert long[:24] == struct.pack(">HBBBxHQ4xI", 6 + 16 + 12, 0, 0x10, 1, 16, 256, 4096)
    none = bench.run(bytes([0x5A, 0x08, 0x0A, 0, 0, 0, 0, 0, 255, 0])).data
    assert none[:8] == struct.pack(">HBBBxH", 6 + 12, 0, 0x10, 0, 0)
    assert short[16:] == long[24:] == none[8:]


def test_mode_sense_refuses(primary: Bench) -> None:
    assert primary.run(bytes([0x1A, 0, 0xC8, 0, 255, 0])).asc == 0x3900
    assert primary.run(bytes([0x1A, 0, 0x02, 0, 255, 0])).field == (2, None)
    assert primary.run(bytes([0x1A, 0, 0x08, 1, 255, 0])).field == (3, None)


def test_a_unit_beyond_32_bits_of_lba_starts_with_descriptor_sense() -> None:
    device = MemoryDevice()
    device.size = 512 * ((1 << 32) + 1)
    bench = Bench(device=device)
    assert mode_sense_6(bench, 0x0A)[3 + 2] & 0x04
    assert bench.run(b"\xc0").sense[0] == 0x72


SELECT_6, SELECT_10 = 0x15, 0x55
CACHING = bytes([0x08, 18, 0x04]) + bytes(17)
CONTROL = bytes([0x0A, 10, 0x00, 0x10, 0, 0x40, 0, 0, 0xFF, 0xFF, 0, 0])


def mode_select(
    bench: Bench, pages: bytes, *, opcode: int = SELECT_6, descriptor: bytes = b"", flags: int = 0x10
) -> Result:
    """Send MODE SELECT with a header, a block descriptor and pages."""
    if opcode == SELECT_6:
        data = bytes([0, 0, 0, len(descriptor)]) + descriptor + pages
        return bench.run(bytes([opcode, flags, 0, 0, len(data), 0]), data)
    long = 1 if len(descriptor) == 16 else 0
    data = struct.pack(">HBBBxH", 0, 0, 0, long, len(descriptor)) + descriptor + pages
    return bench.run(struct.pack(">BB5xHx", opcode, flags, len(data)), data)


@pytest.mark.parametrize("opcode", [SELECT_6, SELECT_10])
def test_mode_select_accepts_the_values_in_force(primary: Bench, opcode: int) -> None:
    assert mode_select(primary, CACHING + CONTROL, opcode=opcode).status == GOOD
    for blocks in (0, 0xFFFFFFFF, primary.unit.blocks):
        assert mode_select(primary, b"", opcode=opcode, descriptor=struct.pack(">II", blocks, 512)).status == GOOD
    assert primary.run(bytes([opcode, 0x10]) + bytes(4 if opcode == SELECT_6 else 8)).status == GOOD  # no list at all


def test_mode_select_accepts_a_long_block_descriptor(primary: Bench) -> None:
    for blocks in (0, (1 << 64) - 1, primary.unit.blocks):
        descriptor = struct.pack(">Q4xI", blocks, 512)
        assert mode_select(primary, CONTROL, opcode=SELECT_10, descriptor=descriptor).status == GOOD


@pytest.mark.parametrize("position", [1, 2, 9, 19])
def test_mode_select_refuses_another_value_with_a_pointer(primary: Bench, position: int) -> None:
    changed = bytearray(CACHING)
    changed[position] ^= 1
    result = mode_select(primary, bytes(changed) + bytes(1))
    assert (result.status, result.key, result.asc, result.field) == (CHECK, 0x5, 0x2600, (4 + position, None))


@pytest.mark.parametrize("opcode", [SELECT_6, SELECT_10])
def test_mode_select_refuses_malformed_lists(primary: Bench, opcode: int) -> None:
    header = 4 if opcode == SELECT_6 else 8
    assert mode_select(primary, CACHING, opcode=opcode, flags=0x11).field == (1, 0)  # SP
    assert mode_select(primary, bytes([0x02, 0]), opcode=opcode).field == (header, None)  # an unknown page
    assert mode_select(primary, bytes([0x48, 0]), opcode=opcode).field == (header, None)  # a subpage
    assert mode_select(primary, CACHING[:-1], opcode=opcode).asc == 0x1A00
    assert mode_select(primary, CACHING[:1], opcode=opcode).asc == 0x1A00
    assert mode_select(primary, b"", opcode=opcode, descriptor=bytes(4)).asc == 0x2600  # no such length
    short = bytes([opcode, 0x10, 0, 0, 2, 0]) if opcode == SELECT_6 else struct.pack(">BB5xHx", opcode, 0x10, 2)
    assert primary.run(short, bytes(2)).asc == 0x1A00


def test_mode_select_refuses_another_capacity_or_block_size(primary: Bench) -> None:
    assert mode_select(primary, b"", descriptor=struct.pack(">II", 5, 512)).field == (4, None)
    assert mode_select(primary, b"", descriptor=struct.pack(">II", 0, 4096)).field == (9, None)
    long = struct.pack(">Q4xI", 0, 4096)
    assert mode_select(primary, b"", opcode=SELECT_10, descriptor=long).field == (20, None)


NO_CACHE = bytes([0x08, 18, 0x00]) + bytes(17)


def test_write_cache_can_be_turned_off_and_on(primary: Bench) -> None:
    """Without it each command that writes ends when its data is on stable storage (SBC-4 6.5.5)."""
    second = primary.login("iqn.2026-11.x:two")
    assert mode_sense_6(primary, 0x08, control=1)[3 + 2] == 0x04  # WCE is changeable
    calls: list[str] = []

    def before(method: str, offset: int, length: int) -> None:
        calls.append(method)

    primary.device.before = before
    assert mode_select(primary, NO_CACHE).status == GOOD
    assert calls == ["flush"]
    assert mode_sense_6(primary, 0x08)[3:] == NO_CACHE
    assert attention_of(second) == 0x2A01
    assert attention_of(primary.initiator) == 0
    for cdb, data in (
        (cdb10(0x2A, 0, 1), bytes(512)),
        (cdb10(0x2E, 0, 1), bytes(512)),
        (cdb10(0x41, 0, 1), bytes(512)),
        (unmap_cdb(24), unmap_list((0, 8))),
        (compare_and_write_cdb(0, 1), bytes(1024)),
    ):
        calls.clear()
        assert second.run(cdb, data).status == GOOD
        assert calls[-1] == "flush", cdb
    assert mode_select(primary, CACHING).status == GOOD
    calls.clear()
    assert second.run(TEST_UNIT_READY).asc == 0x2A01
    assert second.run(cdb10(0x2A, 0, 1), bytes(512)).status == GOOD
    assert "flush" not in calls


def test_write_cache_is_not_turned_off_on_the_event_loop(primary: Bench) -> None:
    primary.run(cdb10(0x2A, 0, 1), bytes(512))
    task = primary.initiator.task(bytes([SELECT_6, 0x10, 0, 0, 24, 0]), bytes(4) + NO_CACHE)
    with pytest.raises(WouldBlock):
        primary.initiator.nexus.execute(task, nowait=True)
    assert primary.unit.write_cache
    primary.initiator.nexus.execute(task, nowait=False)
    assert not primary.unit.write_cache
    write = primary.initiator.task(cdb10(0x2A, 0, 1), bytes(512))
    with pytest.raises(WouldBlock):
        primary.initiator.nexus.execute(write, nowait=True)


def test_write_protected_unit_has_no_write_cache() -> None:
    bench = Bench(kind=UnitKind.SNAPSHOT_VIEW)
    assert mode_sense_6(bench, 0x08, control=1)[3:] == NO_CACHE
    assert mode_select(bench, CACHING).field == (4 + 2, None)
