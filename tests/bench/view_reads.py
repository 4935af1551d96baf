# SPDX-License-Identifier: Apache-2.0
"""Read a view at random, with and without comparing checksums; print the processor's microseconds for a read of each kind.

Run in a process of its own (`python -m tests.bench.view_reads DIRECTORY`).  The numbers are, for reads of 4 KiB and of
64 KiB, that with `verify_reads` and that without.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from lun_backends import block_device, write_once
from lun_backends.durability import Durability
from lun_backends.volumes import volume

SIZE = 64 << 20
READS = 300
"""The reads that are timed together; the quickest of many such groups counts."""


def _microseconds(view: block_device.BlockDevice, length: int) -> float:
    """Return the processor time of a read from the page cache."""
    buffers = [memoryview(bytearray(length))]
    dice = random.Random(1)
    best = float("inf")
    for _ in range(40):
        offsets = [dice.randrange(SIZE // length) * length for _ in range(READS)]
        for turn in range(2):
            began = time.thread_time()
            for offset in offsets:
                view.readv(offset, buffers)
            if turn:
                best = min(best, time.thread_time() - began)
    return best / READS * 1e6


def main() -> None:
    """Measure once and print one line of four numbers."""
    directory = Path(sys.argv[1])
    (directory / "state").mkdir()
    opened = volume.Volume.create(
        directory / "state", "v", directory / "disk", size=SIZE, durability=Durability.PROCESS_CRASH
    )
    content = random.Random(2).randbytes(1 << 20)
    for offset in range(0, SIZE, len(content)):
        opened.device.writev(offset, [memoryview(content)])
    taken = opened.create_snapshot("s")
    for offset in range(0, SIZE, len(content)):
        opened.device.writev(offset, [memoryview(content)])
    assert isinstance(taken.write_once, write_once.WriteOnce)
    figures = []
    for length in (4096, 65536):
        for verify in (True, False):
            taken.write_once.verify_reads = verify
            figures.append(_microseconds(taken.view, length))
    sys.stdout.write(" ".join(map(str, figures)) + "\n")
    opened.close()


if __name__ == "__main__":
    main()
