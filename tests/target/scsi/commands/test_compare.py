# SPDX-License-Identifier: Apache-2.0
"""VERIFY, WRITE AND VERIFY, COMPARE AND WRITE."""

from __future__ import annotations

import os
import threading

import pytest

from lun_backends import block_device
from target.scsi import transfer
from tests.memory_device import MIB, MemoryDevice
from tests.target.scsi.harness import CHECK, GOOD, Bench, block_cdb, cdb10, cdb16, compare_and_write_cdb

VERIFIES = [0x2F, 0xAF, 0x8F]
WRITE_AND_VERIFIES = [0x2E, 0xAE, 0x8E]
BYTCHK_1, BYTCHK_2, BYTCHK_3 = 0x02, 0x04, 0x06
BLOCKS = 2048


def pattern(blocks: int) -> bytes:
    return os.urandom(blocks * 512)


def changed(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


@pytest.mark.parametrize("opcode", VERIFIES)
def test_verify_without_data_reads_the_medium(primary: Bench, opcode: int) -> None:
    assert primary.run(block_cdb(opcode, 0, 2)).status == GOOD
    primary.device.inject("readv", block_device.MediumError(1, writing=False, reason="rot"))
    result = primary.run(block_cdb(opcode, 0, 2))
    assert (result.key, result.asc, result.information) == (0x3, 0x1100, 1)


@pytest.mark.parametrize("opcode", VERIFIES)
def test_verify_compares(primary: Bench, opcode: int) -> None:
    data = pattern(4)
    primary.device.fill(data, 512)
    assert primary.run(block_cdb(opcode, 1, 4, BYTCHK_1), data).status == GOOD
    result = primary.run(block_cdb(opcode, 1, 4, BYTCHK_1), changed(data, 700))
    assert (result.status, result.key, result.asc, result.information) == (CHECK, 0xE, 0x1D00, 700)
    assert primary.run(block_cdb(opcode, 1, 4, BYTCHK_1), data[:-512]).asc == 0x0E03


@pytest.mark.parametrize("opcode", VERIFIES)
def test_verify_compares_every_block_with_one(primary: Bench, opcode: int) -> None:
    block = pattern(1)
    primary.device.fill(block * 5)
    assert primary.run(block_cdb(opcode, 0, 5, BYTCHK_3), block).status == GOOD
    primary.device.fill(changed(block, 3), 4 * 512)
    assert primary.run(block_cdb(opcode, 0, 5, BYTCHK_3), block).information == 4 * 512 + 3


@pytest.mark.parametrize("opcode", VERIFIES + WRITE_AND_VERIFIES)
def test_a_reserved_bytchk_is_refused(primary: Bench, opcode: int) -> None:
    result = primary.run(block_cdb(opcode, 0, 1, BYTCHK_2), pattern(1))
    assert (result.asc, result.field) == (0x2400, (1, 2))
    assert not primary.device.calls


@pytest.mark.parametrize("opcode", VERIFIES + WRITE_AND_VERIFIES)
@pytest.mark.parametrize("flags", [0, BYTCHK_1])
def test_a_count_of_0_verifies_nothing(primary: Bench, opcode: int, flags: int) -> None:
    assert primary.run(block_cdb(opcode, 5, 0, flags)).status == GOOD
    assert primary.run(block_cdb(opcode, BLOCKS, 0, flags)).asc == 0x2100
    assert not primary.device.calls


@pytest.mark.parametrize("opcode", VERIFIES + WRITE_AND_VERIFIES)
def test_beyond_the_end(primary: Bench, opcode: int) -> None:
    result = primary.run(block_cdb(opcode, BLOCKS - 1, 2), pattern(2))
    assert (result.asc, result.information) == (0x2100, BLOCKS)


@pytest.mark.parametrize("opcode", VERIFIES + WRITE_AND_VERIFIES)
@pytest.mark.parametrize("bit", [7, 6, 5, 0])
def test_protection_information_is_refused(primary: Bench, opcode: int, bit: int) -> None:
    result = primary.run(block_cdb(opcode, 0, 1, 1 << bit), pattern(1))
    assert (result.asc, result.field) == (0x2400, (1, bit))


def test_verify_of_more_than_one_step() -> None:
    blocks = 3 * transfer.OPTIMAL_TRANSFER_BYTES // 512 + 1
    bench = Bench(device=MemoryDevice(4 * MIB))
    data = pattern(blocks)
    bench.device.fill(data)
    assert bench.run(cdb10(0x2F, 0, blocks, BYTCHK_1), data).status == GOOD
    wrong = changed(data, len(data) - 1)
    assert bench.run(cdb10(0x2F, 0, blocks, BYTCHK_1), wrong).information == len(data) - 1


@pytest.mark.parametrize("opcode", VERIFIES + WRITE_AND_VERIFIES)
def test_no_command_runs_without_waiting(primary: Bench, opcode: int) -> None:
    with pytest.raises(block_device.WouldBlock):
        primary.run(block_cdb(opcode, 0, 1), pattern(1), nowait=True)
    assert not primary.device.calls


@pytest.mark.parametrize("opcode", VERIFIES)
def test_verify_of_a_blank_block(write_once: Bench, opcode: int) -> None:
    write_once.device.fill(pattern(1))
    result = write_once.run(block_cdb(opcode, 0, 2))
    assert (result.key, result.asc, result.information) == (0x8, 0, 1)


@pytest.mark.parametrize("opcode", WRITE_AND_VERIFIES)
@pytest.mark.parametrize("flags", [0, BYTCHK_1])
def test_write_and_verify(primary: Bench, opcode: int, flags: int) -> None:
    data = pattern(2)
    assert primary.run(block_cdb(opcode, 3, 2, flags), data).status == GOOD
    assert primary.device.data[3 * 512 : 5 * 512] == data
    assert primary.device.calls == {"writev": 1, "fua": 1, "readv": 1}


@pytest.mark.parametrize("opcode", WRITE_AND_VERIFIES)
def test_write_and_verify_finds_a_medium_that_lost_the_write(opcode: int) -> None:
    class Lying(MemoryDevice):
        def writev(self, offset: int, buffers: block_device.Buffers, *, fua: bool = False) -> None:
            pass

    bench = Bench(device=Lying())
    assert bench.run(block_cdb(opcode, 0, 1), b"x" * 512).status == GOOD
    result = bench.run(block_cdb(opcode, 0, 1, BYTCHK_1), b"x" * 512)
    assert (result.key, result.information) == (0xE, 0)


@pytest.mark.parametrize("opcode", WRITE_AND_VERIFIES)
def test_write_and_verify_keeps_the_rules_of_the_unit(view: Bench, write_once: Bench, opcode: int) -> None:
    assert view.run(block_cdb(opcode, 0, 1), pattern(1)).asc == 0x2700
    assert write_once.run(block_cdb(opcode, 0, 1), pattern(1)).status == GOOD
    result = write_once.run(block_cdb(opcode, 0, 1), pattern(1))
    assert (result.key, result.information) == (0x8, 0)


def test_compare_and_write(primary: Bench) -> None:
    old, new = pattern(3), pattern(3)
    primary.device.fill(old, 512)
    assert primary.run(compare_and_write_cdb(1, 3), old + new).status == GOOD
    assert primary.device.data[512 : 4 * 512] == new
    assert primary.device.calls["exclusive"] == 1


def test_compare_and_write_of_different_data_is_a_miscompare(primary: Bench) -> None:
    old = pattern(3)
    primary.device.fill(old)
    result = primary.run(compare_and_write_cdb(0, 3), changed(old, 1030) + pattern(3))
    assert (result.status, result.key, result.asc, result.information) == (CHECK, 0xE, 0x1D00, 1030)
    assert primary.device.data[: 3 * 512] == old
    assert not primary.device.calls["writev"]


def test_compare_and_write_with_fua(primary: Bench) -> None:
    assert primary.run(compare_and_write_cdb(0, 1, 0x08), bytes(512) + pattern(1)).status == GOOD
    assert primary.device.calls["fua"] == 1


def test_compare_and_write_refuses(primary: Bench, write_once: Bench, view: Bench) -> None:
    data = bytes(1024)
    assert primary.run(compare_and_write_cdb(BLOCKS - 1, 2), data * 2).asc == 0x2100
    assert primary.run(compare_and_write_cdb(0, 1, 0x20), data).field == (1, 5)
    assert primary.run(compare_and_write_cdb(0, 1), data[:-1]).asc == 0x0E03
    assert primary.run(compare_and_write_cdb(0, 1), data + bytes(1)).asc == 0x0E03
    assert primary.run(compare_and_write_cdb(0, 0)).status == GOOD
    with pytest.raises(block_device.WouldBlock):
        primary.run(compare_and_write_cdb(0, 1), data, nowait=True)
    assert not primary.device.calls
    assert write_once.run(compare_and_write_cdb(0, 1), data).asc == 0x2000
    assert view.run(compare_and_write_cdb(0, 1), data).asc == 0x2700


def test_compare_and_write_admits_no_write_between(primary: Bench) -> None:
    """Four threads count in one block with COMPARE AND WRITE, and repeat it until it succeeds: no count is lost."""
    rounds = 25

    def count() -> None:
        for _ in range(rounds):
            while True:
                old = primary.run(cdb10(0x28, 0, 1)).data
                new = (int.from_bytes(old) + 1).to_bytes(512)
                if primary.run(compare_and_write_cdb(0, 1), old + new).status == GOOD:
                    break

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert int.from_bytes(primary.device.data[:512]) == 4 * rounds


def test_an_aborted_verify_stops(primary: Bench) -> None:
    task = primary.initiator.task(cdb16(0x8F, 0, 4))
    task.aborted = True
    primary.initiator.nexus.execute(task, nowait=False)
    assert task.status == 0x40
    assert not primary.device.calls
