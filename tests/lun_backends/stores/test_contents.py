# SPDX-License-Identifier: Apache-2.0
"""Extents and verdicts of a store, compared with a model of its blocks."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pyroaring
import pytest

from lun_backends import write_once
from lun_backends.stores import contents, contract, store_file, thin
from tests.lun_backends import store_factory
from tests.lun_backends.store_factory import BLOCK, CHUNK, PER_CHUNK, data

CHUNKS = 3000  # several pages of slots


@pytest.fixture
def lun(tmp_path: Path) -> Iterator[write_once.WriteOnce]:
    device = store_factory.create(tmp_path, size=CHUNKS * CHUNK - BLOCK)  # the last chunk is short
    yield device
    device.close()


def test_extents_and_chunks_equal_those_of_a_model(lun: write_once.WriteOnce) -> None:
    dice = random.Random(1)
    blocks = CHUNKS * PER_CHUNK - 1
    model = bytearray(blocks)
    for first in (0, blocks - 1, *(dice.randrange(blocks) for _ in range(60))):
        length = min(dice.choice((1, 3, PER_CHUNK, 40)), blocks - first)
        if not any(model[first : first + length]):
            lun.writev(first * BLOCK, data(first, length))
            model[first : first + length] = b"\1" * length
    for first, count in ((0, blocks), (1, blocks - 2), *((dice.randrange(blocks), 0) for _ in range(40))):
        length = count or dice.randrange(1, blocks - first + 1)
        end = first
        kinds: list[bool] = []
        for begin, run, written in lun.store.extents(first, length):
            assert (begin, run > 0) == (end, True)
            assert set(model[begin : begin + run]) == {int(written)}
            kinds.append(written)
            end = begin + run
        assert end == first + length
        assert all(left != right for left, right in itertools.pairwise(kinds))  # neighbours are merged
    for chunk, mask in store_factory.thin_of(lun).chunks_written(0, CHUNKS):
        bits = model[chunk * PER_CHUNK : (chunk + 1) * PER_CHUNK]
        assert mask == sum(bit << number for number, bit in enumerate(bits)) != 0


def test_verify_passes_over_chunks_and_judges_the_others(lun: write_once.WriteOnce, tmp_path: Path) -> None:
    lun.writev(0, data(0, PER_CHUNK))
    lun.writev(7 * CHUNK, data(1, PER_CHUNK))
    lun.writev(2000 * CHUNK, data(2, 1))
    lun.flush()
    chunks = thin.files(tmp_path / "s")[1]
    with chunks.open("r+b") as file:
        file.seek(2 * CHUNK + 9)
        file.write(b"rot")
    verdicts = {report.offset // CHUNK: report.verdict for report in lun.verify()}
    assert verdicts == {
        0: contract.Verdict.GOOD,
        7: contract.Verdict.DAMAGED,
        2000: contract.Verdict.UNVERIFIABLE,
    }
    assert [report.offset for report in lun.verify(pyroaring.BitMap([0, 7]))] == [2000 * CHUNK]


def test_a_slot_beyond_the_chunk_file_is_found_at_open(tmp_path: Path) -> None:
    lun = store_factory.create(tmp_path)
    for number in range(3):
        lun.writev(number * CHUNK, data(number, PER_CHUNK))
    contents.check_slots(store_factory.thin_of(lun)._map, 4)
    with pytest.raises(store_file.StoreDamaged, match="chunk 2 is in slot 3, the chunk file ends before slot 3"):
        contents.check_slots(store_factory.thin_of(lun)._map, 3)
    lun.close()


@pytest.mark.parametrize(("mask", "bit"), [(1, 0), (0b1000, 3), (0b1010, 1), (1 << 255, 255)])
def test_lowest_returns_the_lowest_bit(mask: int, bit: int) -> None:
    assert contents.lowest(mask) == bit
