# SPDX-License-Identifier: Apache-2.0
"""The file descriptors of the daemon: how many it may have, and how many it has.

Each snapshot takes two, or three while its data is used (`lun_backends.files.reopened`), each session one.  The usual soft limit of 1024 is there for programs that call select(2), which
takes no larger number (setrlimit(2), systemd.exec(5)).  The daemon does not, so it raises that limit to the hard one.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Final

from lun_backends.files import reopened

PER_SNAPSHOT: Final = 2
RESERVED: Final = 1024
"""Descriptors for everything else: sessions, the control socket, exports."""
LOW_PERCENT: Final = 90
"""The part of the limit from which on the daemon warns."""

_OPEN: Final = Path("/proc/self/fd")


def raise_limit() -> int:
    """Raise the soft limit of open files to the hard one, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def limit() -> int:
    """Return how many descriptors the process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def used() -> int:
    """Return how many descriptors the process has."""
    return len(os.listdir(_OPEN))  # noqa: PTH208 - there may be thousands, and a path for each is of no use


def enough_for(most: int) -> int:
    """Return about how many snapshots `most` descriptors are enough for."""
    return max(0, most - reopened.share(most) - RESERVED) // PER_SNAPSHOT
