# SPDX-License-Identifier: Apache-2.0
"""The identity of the machine's current boot.

With `durability: process-crash`, pre-images are in the page cache, which survives a killed daemon but no power cut.  So
the manifest of such a volume names the boot that uses it (`in_use`), from before the first write until the volume is
closed and synced.  The next open reads one of these:

| `in_use`         | what happened                               | the snapshots                                              |
| ---------------- | ------------------------------------------- | ---------------------------------------------------------- |
| nothing          | closed cleanly, or `power-loss`, or a       | good                                                       |
|                  | rollback was under way, which is synced     |                                                            |
| this boot        | the daemon was killed                       | good: the page cache has all; synced, if it is `power-loss`|
|                  |                                             | from now on                                                |
| another boot     | a power cut, a crash of the kernel, or the  | may lack pre-images of blocks that were overwritten, and   |
|                  | disk was taken to another machine           | nothing says which: all are marked invalid (see rule 9)   |

Rule 9 is in lun_backends/README.md.
"""

from __future__ import annotations

import uuid
from pathlib import Path

PATH = Path("/proc/sys/kernel/random/boot_id")

LOST = (
    "the machine went down while the volume was in use, and with durability process-crash its pre-images may not have "
    "been on disk yet"
)
"""The reason of a snapshot that is invalid because of another boot."""

_NEVER = f"unknown {uuid.uuid4()}"


def current() -> str:
    """Return a text that differs between any two boots.

    If the kernel has no such text, each process has a text of its own.  Then the next process does not trust snapshots
    that this process leaves unclean.
    """
    try:
        return PATH.read_text().strip() or _NEVER
    except OSError:
        return _NEVER
