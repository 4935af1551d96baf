# SPDX-License-Identifier: Apache-2.0
"""Deletes a snapshot that has a rotten chunk, and cuts the power at any moment: the chunk must stay damaged.

The promise: an older snapshot that needs the chunk never shows it as good, and never as merely unverifiable.  All other chunks
are exact.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from lun_backends import block_device, write_once
from lun_backends.backups import verification
from lun_backends.files import storage_io
from lun_backends.stores import contract
from lun_backends.volumes import volume
from tests.lun_backends import rotting
from tests.powercut import disk, recorder, replay
from tests.powercut.promises import Violation

CHUNK = 4096
SIZE = 12 * CHUNK + 512
ROTTEN = (5, 12)  # the last one is short
OLD = random.Random(1).randbytes(SIZE)


def prepare(root: Path) -> None:
    """Make a volume with snapshots `a` and `b` under `root`; `b` has chunks 2 to 7 and 12, two of them rotten."""
    made = volume.Volume.create(root / "v", "v", root / "primary", size=SIZE, chunk_size=CHUNK)
    made.device.writev(0, [memoryview(OLD)])
    made.create_snapshot("a")
    made.device.writev(2 * CHUNK, [memoryview(bytes(CHUNK))])
    taken = made.create_snapshot("b")
    made.device.writev(2 * CHUNK, [memoryview(bytes([7]) * 6 * CHUNK)])
    made.device.writev(12 * CHUNK, [memoryview(bytes(512))])
    made.create_snapshot("c")
    for chunk in ROTTEN:
        rotting.rot(taken, chunk)
    made.close()


def delete(root: Path, io: storage_io.StorageIO) -> None:
    """Delete snapshot `b`, or go on with its deletion."""
    opened = volume.Volume.open(root / "v", io=io)
    try:
        if any(snapshot.deleting for snapshot in opened.snapshots):
            opened.resume_deletions()
        elif any(snapshot.name == "b" for snapshot in opened.snapshots):
            opened.delete_snapshot("b")
    finally:
        opened.close()


def check(root: Path) -> None:
    """Raise Violation if the rotten chunks are not damaged, or any other is."""
    opened = volume.Volume.open(root / "v")
    try:
        if any(snapshot.deleting for snapshot in opened.snapshots):
            opened.resume_deletions()
        damaged = {
            checked.report.offset // CHUNK
            for checked in verification.verify(opened, "a")
            if checked.report.verdict is contract.Verdict.DAMAGED
        }
        if damaged != set(ROTTEN):
            raise Violation(f"verify says that chunks {sorted(damaged)} are damaged")
        view = opened.snapshot("a").view
        for chunk in range(-(-SIZE // CHUNK)):
            expected = OLD[chunk * CHUNK : (chunk + 1) * CHUNK]
            data = bytearray(len(expected))
            try:
                view.readv(chunk * CHUNK, [memoryview(data)])
            except block_device.DamagedBlocks as error:
                if chunk not in ROTTEN:
                    raise Violation(f"chunk {chunk}: {error}") from error
            else:
                if chunk in ROTTEN or data != expected:
                    raise Violation(f"chunk {chunk} is rotten or wrong, and reads as good")
        if not isinstance(opened.snapshot("a").write_once, write_once.WriteOnce):
            raise Violation("the snapshot is lost")
    finally:
        opened.close()


def cut_everywhere(states: int, seed: int) -> int:
    """Try about `states` states that cuts of the deletion may leave, some of them cut again; return how many.

    Raises Violation.
    """
    with replay.scratch() as directory:
        root = directory / "root"
        root.mkdir()
        prepare(root)
        io = recorder.RecordingIO(root)
        delete(root, io)
        check(root)
        return _replay(root, io, states, random.Random(seed), again=lambda rng: _cut_again(root, rng))


def _cut_again(root: Path, rng: random.Random) -> int:
    io = recorder.RecordingIO(root)
    delete(root, io)
    return _replay(root, io, 12, rng)


def _replay(
    root: Path,
    io: recorder.RecordingIO,
    states: int,
    rng: random.Random,
    again: Callable[[random.Random], int] | None = None,
) -> int:
    model = disk.Disk(io.start)
    tried = 0
    for cut, event in enumerate(io.log, 1):
        if not model.apply(event):
            continue
        left = max(1, states - tried)
        for choice in model.choices(rng, -(-left // (len(io.log) - cut + 1)), replay.EXHAUSTIVE):
            model.lay_out(root, choice)
            tried += 1
            if again is not None and not rng.randrange(4):
                tried += again(rng)
            else:
                check(root)
    return tried
