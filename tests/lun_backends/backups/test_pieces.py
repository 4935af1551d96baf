# SPDX-License-Identifier: Apache-2.0
"""The pieces of an export: all data once and in order, holes in one piece."""

from __future__ import annotations

import random

from lun_backends.backups import pieces
from tests.memory_device import MemoryDevice

MIB = 1 << 20


def test_the_pieces_have_all_data_of_the_device() -> None:
    dice = random.Random(3)
    device = MemoryDevice(9 * MIB + 512)
    device.fill(dice.randbytes(2 * MIB + 1536), 0)
    device.fill(dice.randbytes(512), 9 * MIB)
    end = 0
    content = bytearray()
    shape: list[tuple[int, bool]] = []
    for piece in pieces.export(device):
        assert piece.offset == end
        assert piece.data is None or len(piece.data) == piece.length <= MIB
        content += bytes(piece.length) if piece.data is None else piece.data
        shape.append((piece.length, piece.data is None))
        end += piece.length
    assert content == device.data
    assert shape == [(MIB, False), (MIB, False), (1536, False), (7 * MIB - 1536, True), (512, False)]


def test_an_empty_device_is_one_hole() -> None:
    device = MemoryDevice(100 * MIB)
    assert [(piece.offset, piece.length, piece.data) for piece in pieces.export(device)] == [(0, 100 * MIB, None)]
    assert not device.calls["readv"]
