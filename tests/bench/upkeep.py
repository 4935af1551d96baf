# SPDX-License-Identifier: Apache-2.0
"""Work on a whole snapshot (diff, verify, rollback, deletion), against `cp` of as many bytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

from tests.bench import common, loads, measure, servers

GRAINS = 100_000
"""Grains of 4 KiB that the snapshot has, one in each 64 KiB of the volume."""


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def scattered(settings: common.Settings) -> Iterator[measure.Row]:
    """Measure each work once for each round, on a snapshot with scattered grains."""
    count = min(GRAINS, settings.writes)
    size = count * common.CHUNK
    primary, source, target = (settings.directory / name for name in ("ours.img", "source", "target"))
    common.filled(source, count * 4096)

    def copy() -> None:
        servers.run(["cp", "--sparse=never", str(source), str(target)])
        servers.run(["sync", str(target)])
        target.unlink()

    times: dict[str, list[float]] = {name: [] for name in ("cp", "diff", "diff --exact", "verify", "restore", "delete")}
    with servers.wolun(settings.directory, common.volume("vol0", 0, primary, size=str(size))) as ours:
        for number in range(1 + settings.rounds):
            name = f"vol0@s{number}"
            loads.qemu_writes(ours.url(0), count=count, step=common.CHUNK)
            ours.command("snapshot", "create", "vol0", f"s{number}")
            loads.qemu_writes(ours.url(0), count=count, step=common.CHUNK)
            loads.settle()
            for work, command in (
                ("diff", ("snapshot", "diff", name)),
                ("diff --exact", ("snapshot", "diff", "--exact", name)),
                ("verify", ("snapshot", "verify", name)),
                ("restore", ("snapshot", "restore", name, "--force", "--yes")),
                ("delete", ("snapshot", "delete", name)),
            ):
                taken = _seconds(lambda command=command: ours.command(*command))  # type: ignore[misc]
                if number:  # the first round warms up
                    times[work].append(taken)
            taken = _seconds(copy)
            if number:
                times["cp"].append(taken)
    copied = statistics.median(times.pop("cp"))
    for work, took in times.items():
        middle = statistics.median(took)
        ours_text = f"{middle:.2f} s ({min(took):.2f}-{max(took):.2f}), {middle / count * 1e6:.0f} us each"
        yield measure.Row(
            f"{work}, {count:,} scattered grains",
            ours_text,
            f"cp {copied:.2f} s",
            f"{middle / copied:.1f}",
            "report",
            None,
        )
