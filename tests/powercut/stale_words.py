# SPDX-License-Identifier: Apache-2.0
"""Writes to a store whose map has words of an interrupted commit, and cuts the power at any moment.

The promise: such words never come to life.  No block is written that nobody wrote, and no checksum that was left accuses data
that came later.
"""

from __future__ import annotations

import random
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


def cut_everywhere(states: int, seed: int) -> int:
    """Try at least `states` states that cuts may leave; return how many.  Raises Violation."""
    rng = random.Random(seed)
    tried = 0
    with replay.scratch() as directory:
        root = directory / "root"
        root.mkdir()
        prepare(root)
        io = recorder.RecordingIO(root)
        write(root, io)
        check(root)
        model = disk.Disk(io.start)
        for event in io.log:
            if model.apply(event):
                for choice in model.choices(rng, -(-states // len(io.log)), replay.EXHAUSTIVE):
                    model.lay_out(root, choice)
                    check(root)
                    tried += 1
    return tried
