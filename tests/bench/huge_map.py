# SPDX-License-Identifier: Apache-2.0
"""Create, close and open a write-once LUN of 64 TiB; print the seconds, the bytes of memory gained, and the bytes on disk.

Run in a process of its own (`python -m tests.bench.huge_map DIRECTORY`), so that the measured memory is only that of the LUN.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from pathlib import Path

from lun_backends import write_once
from lun_backends.stores import thin
from lun_backends.stores.superblock import Superblock


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def main() -> None:
    """Measure once and print one line of three numbers."""
    path = Path(sys.argv[1]) / "huge"
    before, began = _resident(), time.perf_counter()
    thin.ThinStore.create(path, Superblock(uuid.uuid4(), uuid.uuid4(), 64 << 40, 512, 65536)).close()
    device = write_once.WriteOnce(thin.ThinStore.open(path))
    seconds, resident = time.perf_counter() - began, _resident() - before
    sys.stdout.write(f"{seconds} {resident} {device.used_bytes()}\n")
    device.close()


if __name__ == "__main__":
    main()
