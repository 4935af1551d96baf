# SPDX-License-Identifier: Apache-2.0
"""Writes to stores whose maps have special words, and cuts the power at any moment.

The words of an interrupted commit never come to life: no block is written that nobody wrote, and no checksum that was left
accuses data that came later.  Chunks of zeroes stay zeroes, and what is written beside the zeroes is blank or whole.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lun_backends import block_device
from lun_backends.files import storage_io
from lun_backends.stores import contract
from tests.lun_backends import store_factory
from tests.lun_backends.store_factory import BLOCK, CHUNK, PER_CHUNK, data
from tests.powercut import disk, recorder, replay
from tests.powercut.promises import Violation

CHUNKS = 4
LEFT = {0: 0xF0, 1: 0xFF, 2: 0}
"""The bits that are left of each chunk; all have a checksum, too, and none has a slot."""
PUT = {0: (0, 2), 1: (0, PER_CHUNK), 2: (0, PER_CHUNK), 3: (0, PER_CHUNK)}
"""The (first block, blocks) of each chunk that are written."""


def prepare(root: Path) -> None:
    """Make the store under `root`."""
    store_factory.create(root, size=CHUNKS * CHUNK).close()
    for chunk, bits in LEFT.items():
        store_factory.poke(root, chunk, bits=bits, checksum=77)


def write(root: Path, io: storage_io.StorageIO) -> None:
    """Write to each chunk, with a commit for each."""
    lun = store_factory.reopen(root, io=io)
    for chunk, (first, blocks) in PUT.items():
        lun.writev(chunk * CHUNK + first * BLOCK, data(chunk + 1, blocks))
    lun.close()


def check(root: Path) -> None:
    """Raise Violation if a block is written that nobody wrote, or a chunk is damaged."""
    lun = store_factory.reopen(root)
    try:
        for chunk, (first, blocks) in PUT.items():
            whole = b"".join(data(chunk + 1, blocks))
            for block in range(PER_CHUNK):
                try:
                    content = store_factory.read(lun, chunk * PER_CHUNK + block)
                except block_device.BlankBlock:
                    continue
                except block_device.MediumError as error:
                    raise Violation(f"block {block} of chunk {chunk}: {error}") from error
                at = (block - first) * BLOCK
                if not first <= block < first + blocks or content != whole[at : at + BLOCK]:
                    raise Violation(f"block {block} of chunk {chunk} came to life")
        for report in lun.verify():
            if report.verdict is contract.Verdict.DAMAGED:
                raise Violation(f"chunk {report.offset // CHUNK} is damaged: {report.reason}")
    finally:
        lun.close()


LARGE = 16384


def prepare_zeroes(root: Path) -> None:
    """Make a store of two chunks under `root`; the first grain of each is zeroes."""
    lun = store_factory.create(root, size=2 * LARGE, chunk_size=LARGE)
    lun.put_many([(chunk * LARGE, [memoryview(bytes(CHUNK))]) for chunk in range(2)])
    lun.close()


def write_beside_zeroes(root: Path, io: storage_io.StorageIO) -> None:
    """Write other data to the second grain of each chunk."""
    lun = store_factory.reopen(root, io=io)
    for chunk in range(2):
        lun.writev(chunk * LARGE + CHUNK, data(chunk + 1, PER_CHUNK))
    lun.close()


def check_zeroes(root: Path) -> None:
    """Raise Violation if a grain has other data than it was given."""
    lun = store_factory.reopen(root)
    try:
        for chunk in range(2):
            lba = chunk * LARGE // BLOCK
            try:
                if store_factory.read(lun, lba, PER_CHUNK) != bytes(CHUNK):
                    raise Violation(f"the zeroes of chunk {chunk} are gone")
                if store_factory.read(lun, lba + PER_CHUNK, PER_CHUNK) != b"".join(data(chunk + 1, PER_CHUNK)):
                    raise Violation(f"the data of chunk {chunk} is wrong")
            except block_device.BlankBlock as blank:
                if blank.lba < lba + PER_CHUNK:
                    raise Violation(f"the zeroes of chunk {chunk} are blank") from blank
            except block_device.MediumError as error:
                raise Violation(f"chunk {chunk}: {error}") from error
    finally:
        lun.close()


@dataclass(frozen=True)
class Case:
    """A store that is made, written to, and checked in every state that a cut leaves."""

    prepare: Callable[[Path], None]
    write: Callable[[Path, storage_io.StorageIO], None]
    check: Callable[[Path], None]


STALE = Case(prepare, write, check)
ZEROES = Case(prepare_zeroes, write_beside_zeroes, check_zeroes)


def cut_everywhere(case: Case, states: int, seed: int) -> int:
    """Try about `states` states that cuts may leave; return how many.  Raises Violation."""
    rng = random.Random(seed)
    tried = 0
    with replay.scratch() as directory:
        root = directory / "root"
        root.mkdir()
        case.prepare(root)
        io = recorder.RecordingIO(root)
        case.write(root, io)
        case.check(root)
        model = disk.Disk(io.start)
        for event in io.log:
            if model.apply(event):
                for choice in model.choices(rng, -(-states // len(io.log)), replay.EXHAUSTIVE):
                    model.lay_out(root, choice)
                    case.check(root)
                    tried += 1
    return tried
