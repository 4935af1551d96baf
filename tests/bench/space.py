# SPDX-License-Identifier: Apache-2.0
"""The disk space that a first write takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.bench import common, loads, measure, servers

BAR = 6.0
"""KiB of disk for a first write of 4 KiB."""


def _taken(directory: Path) -> int:
    """Return the bytes that the files below `directory` take on the disk."""
    servers.run(["sync"])  # a file system may choose the place of data, and so its size on disk, as late as this
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def first_writes(settings: common.Settings) -> Iterator[measure.Row]:
    """Measure what 4 KiB first writes take of the disk, one for each 64 KiB and one after the other."""
    primary = common.filled(settings.directory / "ours.img")
    for durability in ("process-crash", "power-loss"):
        directory = settings.directory / durability
        directory.mkdir()
        with servers.wolun(directory, common.volume("vol0", 0, primary, durability=durability)) as ours:
            for name, step, count in (
                ("one for each 64 KiB", common.CHUNK, common.GIB // common.CHUNK),
                ("sequential", 4096, min(settings.writes, common.GIB // 4096)),
            ):
                ours.command("snapshot", "create", "vol0", "bench")
                before = _taken(ours.state)
                loads.qemu_writes(ours.url(0), count=count, step=step)
                each = (_taken(ours.state) - before) / count / 1024
                ours.command("snapshot", "delete", "vol0@bench")
                work = f"disk for a 4 KiB first write, {name}, {durability}"
                yield measure.Row(work, f"{count} writes", "-", f"{each:.1f} KiB", f"<= {BAR:.0f} KiB", each <= BAR)
