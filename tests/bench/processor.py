# SPDX-License-Identifier: Apache-2.0
"""Processor time per command, and one command in flight with target and initiator on one processor.

The rate of one read in flight over loopback depends on the processors that the scheduler chooses for the two processes.
With both on one processor it does not, so there the targets can be compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench import common, loads, measure, servers

PINNED = ("taskset", "-c", "0")
"""Runs a command on the first processor only."""


def _spent(pid: int) -> float:
    """Return the processor seconds of a process so far, its system calls included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def commands(settings: common.Settings) -> Iterator[measure.Row]:
    """Measure the target's processor time for a read, a write, and a first write of 4 KiB, 32 in flight."""
    files = [common.filled(settings.directory / f"{name}.img") for name in ("ours", "peer")]
    count = min(settings.writes, common.GIB // 4096)
    with (
        servers.wolun(settings.directory, common.volume("vol0", 0, files[0])) as ours,
        servers.tgtd(settings.directory, files[1]) as peer,
    ):

        def read(url: str) -> int:
            rate = loads.iscsi_perf(url, blocks=8, in_flight=32, seconds=settings.seconds, random=True)
            return round(rate * settings.seconds)

        def write(url: str) -> int:
            loads.qemu_writes(url, count=count, step=4096)
            return count

        def first_write(url: str) -> int:
            loads.qemu_writes(url, count=common.GIB // common.CHUNK, step=common.CHUNK)
            return common.GIB // common.CHUNK

        for work, load, bar in (("read", read, 5.0), ("write, no snapshot", write, None)):
            mine = _microseconds(ours.process.pid, load, ours.url(0))
            theirs = _microseconds(peer.process.pid, load, peer.url)
            yield measure.Row(
                f"4 KiB {work}, 32 in flight: processor time",
                f"{mine:.1f} us",
                f"tgtd {theirs:.1f} us",
                f"{mine:.1f} us",
                "report" if bar is None else f"<= {bar:.0f} us",
                None if bar is None else mine <= bar,
            )
        ours.command("snapshot", "create", "vol0", "bench")
        mine = _microseconds(ours.process.pid, first_write, ours.url(0))
        work = "4 KiB first write per 64 KiB, process-crash: processor time"
        yield measure.Row(work, f"{mine:.1f} us", "-", f"{mine:.1f} us", "report", None)


def _microseconds(pid: int, load: Callable[[str], int], url: str) -> float:
    """Return the processor microseconds that process `pid` spends on each command of a load."""
    before = _spent(pid)
    done = load(url)
    return (_spent(pid) - before) / done * 1e6


def pinned(settings: common.Settings) -> Iterator[measure.Row]:
    """Measure one read in flight, target and initiator on the same processor."""
    files = [common.filled(settings.directory / f"{name}.img") for name in ("ours", "peer")]
    with (
        servers.wolun(settings.directory, common.volume("vol0", 0, files[0]), prefix=PINNED) as ours,
        servers.tgtd(settings.directory, files[1], prefix=PINNED) as peer,
    ):

        def side(url: str) -> Callable[[], float]:
            return lambda: loads.iscsi_perf(
                url, blocks=8, in_flight=1, seconds=settings.seconds, random=True, prefix=PINNED
            )

        pair = measure.alternate(side(ours.url(0)), side(peer.url), settings.rounds)
        yield pair.row("4 KiB random read, 1 in flight, one processor", unit="/s", at_least=2.5, peer="tgtd")
