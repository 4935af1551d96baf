# SPDX-License-Identifier: Apache-2.0
"""How long many LUNs take to come up, to be taken over after a crash, and to go: `python -m tests.kernel.many_luns [COUNT...]`.

Beside the seconds, the processor time of the daemon is told, which a busy machine does not change: it should grow in
proportion to the number.  Run apart from the tests, for 250 LUNs take a machine of 3.5 GB (8 MB of ring for each) and minutes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tests.kernel import image, packages
from tests.kernel.guest_daemon import GuestDaemon
from tests.kernel.lab import Lab

COUNTS = (1, 50, 250)
MEMORY = 3584  # MiB
CONFIGURATION = """
target: iqn.2026-11.io.wolun:many
fabric: lio
access:
  networks: [0.0.0.0/0]
volumes:
"""


def main(counts: tuple[int, ...]) -> None:
    packages.ensure()
    with Lab(image.build(), ["solo"], memory=MEMORY) as lab:
        for count in counts:
            volumes = "".join(f"  - {{name: vol{lun}, lun: {lun}, size: 1MiB}}\n" for lun in range(count))
            daemon = GuestDaemon(lab["solo"], CONFIGURATION + volumes, name=f"with-{count}")
            started = _measured(daemon, daemon.start)
            daemon.kill()
            taken_over = _measured(daemon, daemon.start)
            began = time.monotonic()
            daemon.stop()
            stopped = time.monotonic() - began
            sys.stdout.write(f"{count} LUNs: start {started}, takeover {taken_over}, stop {stopped:.1f} s\n")
            sys.stdout.flush()


def _measured(daemon: GuestDaemon, start: Callable[[], None]) -> str:
    """How long it took until initiators could log in, and how much of the processor."""
    began = time.monotonic()
    start()
    elapsed = time.monotonic() - began
    fields = daemon.machine.output(f"cat /proc/$(cat {daemon.state}/pid)/stat").rpartition(")")[2].split()
    return f"{elapsed:.1f} s (processor {(int(fields[11]) + int(fields[12])) / 100:.1f} s)"


if __name__ == "__main__":
    main(tuple(map(int, sys.argv[1:])) or COUNTS)
