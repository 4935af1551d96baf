# SPDX-License-Identifier: Apache-2.0
"""Start, takeover and stop of a daemon with many LUNs, measured: `python -m tests.kernel.many_luns [COUNT...]`.

A takeover is the start after a crash, when the kernel still has the LUNs.  The program prints the seconds and the
daemon's processor time.  A busy machine does not change the latter, which should grow in proportion to the number of
LUNs.

This is no test, because 250 LUNs take minutes and a machine of 3.5 GB (8 MB of ring for each).
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
    """Measure a daemon for each number of LUNs, and print a line for each."""
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
    """Return the seconds until initiators could log in, and the processor time that the daemon took, as text."""
    began = time.monotonic()
    start()
    elapsed = time.monotonic() - began
    fields = daemon.machine.output(f"cat /proc/$(cat {daemon.state}/pid)/stat").rpartition(")")[2].split()
    return f"{elapsed:.1f} s (processor {(int(fields[11]) + int(fields[12])) / 100:.1f} s)"


if __name__ == "__main__":
    main(tuple(map(int, sys.argv[1:])) or COUNTS)
