# SPDX-License-Identifier: Apache-2.0
"""Rot on demand: functions that flip a bit of a stored chunk in its file, as a disk does that fails silently."""

from __future__ import annotations

from pathlib import Path

from lun_backends import write_once
from lun_backends.stores import chunk_map, record_map
from lun_backends.volumes import interface
from tests.lun_backends import store_factory


def flip(path: Path, place: int) -> None:
    """Flip one bit of a file."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def rot(of: write_once.WriteOnce | interface.Snapshot, chunk: int, at: int = 77) -> None:
    """Flip a bit of byte `at` of a chunk that a write-once LUN stores."""
    device = of if isinstance(of, write_once.WriteOnce) else of.write_once
    assert isinstance(device, write_once.WriteOnce)
    slot = store_factory.thin_of(device)._map.slot(chunk)
    assert slot
    flip(store_factory.thin_of(device)._file.path, slot * device.chunk_size + at)


def forget_checksum(of: write_once.WriteOnce | interface.Snapshot, chunk: int) -> None:
    """Remove the checksum of a chunk, as a crash at the moment of its commit may do."""
    device = of if isinstance(of, write_once.WriteOnce) else of.write_once
    assert isinstance(device, write_once.WriteOnce)
    words = store_factory.thin_of(device)._map
    assert isinstance(words, record_map.RecordMap)
    words._io.store(words._fd, bytes(4 * words._sums), chunk_map.WORDS + chunk * words._size)
