# SPDX-License-Identifier: Apache-2.0
"""An atomic write is done as a whole or not at all, whenever a crash comes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.atomic_journal import AtomicJournal
from tests.memory_device import MemoryDevice

OLD, NEW = b"o" * 8192, os.urandom(8192)


@pytest.fixture
def device() -> MemoryDevice:
    device = MemoryDevice(1 << 16)
    device.fill(OLD, 4096)
    return device


def journal_at_the_write(device: MemoryDevice, path: Path) -> bytes:
    """Return the journal as it is when the first byte goes to the device."""
    seen: list[bytes] = []

    def before(method: str, offset: int, length: int) -> None:
        if method == "writev":
            seen.append(path.read_bytes())

    device.before = before
    AtomicJournal(path, device).writev(4096, [memoryview(NEW[:512]), memoryview(NEW[512:])])
    device.before = None
    assert device.data[4096:12288] == NEW
    return seen[0]


@pytest.mark.parametrize("torn", [0, 512, 4096, 8192])
def test_a_write_that_a_crash_cut_on_the_device_is_finished(device: MemoryDevice, tmp_path: Path, torn: int) -> None:
    path = tmp_path / "journal"
    path.write_bytes(journal_at_the_write(device, path))
    device.fill(NEW[:torn] + OLD[torn:], 4096)
    AtomicJournal(path, device)
    assert device.data[4096:12288] == NEW
    device.fill(OLD, 4096)
    AtomicJournal(path, device)  # once only: later writes are not undone
    assert device.data[4096:12288] == OLD


@pytest.mark.parametrize("damage", [0, 7, 9, 17, 21, 25, 4096, 12287])
def test_a_write_that_a_crash_cut_in_the_journal_is_forgotten(
    device: MemoryDevice, tmp_path: Path, damage: int
) -> None:
    path = tmp_path / "journal"
    whole = journal_at_the_write(device, path)
    device.fill(OLD, 4096)
    for broken in (whole[:damage], whole[:damage] + bytes([whole[damage] ^ 1]) + whole[damage + 1 :]):
        path.write_bytes(broken)
        AtomicJournal(path, device)
        assert device.data[4096:12288] == OLD


def test_the_journal_is_invalid_after_a_write_and_after_its_failure(device: MemoryDevice, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = AtomicJournal(path, device)
    journal.writev(4096, [memoryview(NEW)])
    device.fill(OLD, 4096)
    AtomicJournal(path, device)
    assert device.data[4096:12288] == OLD
    device.inject("writev", block_device.SpaceExhausted(8))
    with pytest.raises(block_device.SpaceExhausted):
        journal.writev(4096, [memoryview(NEW)])
    AtomicJournal(path, device)
    assert device.data[4096:12288] == OLD


def test_a_journal_that_cannot_be_written_fails_the_write(device: MemoryDevice, tmp_path: Path) -> None:
    with pytest.raises(block_device.MediumError):
        AtomicJournal(tmp_path / "missing" / "journal", device).writev(4096, [memoryview(NEW)])
    assert device.data[4096:12288] == OLD
