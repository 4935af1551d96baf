# SPDX-License-Identifier: Apache-2.0
"""The loads of the measurements.  Foreign initiators make them: `iscsi-perf` of libiscsi, and `qemu-img bench`."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Sequence

from tests.bench import servers

_patterns = itertools.cycle(range(1, 256))


def iscsi_perf(
    url: str, *, blocks: int, in_flight: int, seconds: int, random: bool, prefix: Sequence[str] = ()
) -> float:
    """Return the average of iscsi-perf: reads per second, each of `blocks` 512-byte blocks.

    `prefix` precedes the command, for example taskset.
    """
    command = [
        *prefix,
        "iscsi-perf",
        "-m",
        str(in_flight),
        "-b",
        str(blocks),
        "-t",
        str(seconds),
        *(["-r"] if random else []),
        url,
    ]
    found = re.findall(r"iops average (\d+)", servers.run(command, timeout=seconds + 60))
    if not found:
        raise servers.BenchError(f"{' '.join(command)} printed no average")
    return float(found[-1])


def qemu_writes(url: str, *, count: int, step: int, offset: int = 0, in_flight: int = 32) -> float:
    """Return the rate of qemu-img bench: 4 KiB writes per second, `step` bytes apart, without the time to connect.

    Each call writes another byte than the one before, and never zero: a store keeps no copy of zeroes.
    """
    # fmt: off
    command = ["qemu-img", "bench", "-w", "-t", "none", "-f", "raw", "-d", str(in_flight), "-s", "4096", "-S", str(step),
               "-c", str(count), "-o", str(offset), "--pattern", str(next(_patterns)), url]
    # fmt: on
    found = re.search(r"Run completed in ([0-9.]+) seconds", servers.run(command))
    if found is None:
        raise servers.BenchError(f"{' '.join(command)} printed no time")
    return count / max(float(found[1]), 0.001)


def settle() -> None:
    """Wait for the write-back of the last round, so that it does not slow the next round."""
    servers.run(["sync"])
    time.sleep(0.3)
