# SPDX-License-Identifier: Apache-2.0
"""The measurements: one function per part of the report, each with its own servers and directory."""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.bench import common, exports, loads, measure, processor, rados, servers, space, upkeep


def reads(settings: common.Settings) -> Iterator[measure.Row]:
    """Measure random and sequential reads against tgtd, each on its own page-cached file."""
    ours_file, peer_file = (
        common.filled(settings.directory / "ours.img"),
        common.filled(settings.directory / "peer.img"),
    )
    with (
        servers.wolun(settings.directory, common.volume("vol0", 0, ours_file)) as ours,
        servers.tgtd(settings.directory, peer_file) as peer,
    ):
        for work, blocks, in_flight, random, bar in (
            ("4 KiB random read, 32 in flight", 8, 32, True, 2.0),
            ("4 KiB random read, 1 in flight", 8, 1, True, 2.0),
            ("256 KiB sequential read, 8 in flight", 512, 8, False, 1.5),
        ):

            def side(
                url: str, blocks: int = blocks, in_flight: int = in_flight, random: bool = random
            ) -> Callable[[], float]:
                return lambda: loads.iscsi_perf(
                    url, blocks=blocks, in_flight=in_flight, seconds=settings.seconds, random=random
                )

            pair = measure.alternate(side(ours.url(0)), side(peer.url), settings.rounds)
            yield pair.row(work, unit="/s", at_least=bar, peer="tgtd")


def writes(settings: common.Settings) -> Iterator[measure.Row]:
    """Measure plain writes against tgtd, and writes to preserved chunks against writes without a snapshot."""
    files = [common.filled(settings.directory / f"{name}.img") for name in ("vol0", "vol1", "peer")]
    step = 4096
    count = min(settings.writes, common.GIB // step)

    def load(url: str) -> Callable[[], float]:
        def once() -> float:
            loads.settle()
            return loads.qemu_writes(url, count=count, step=step)

        return once

    volumes = common.volume("vol0", 0, files[0]) + common.volume("vol1", 1, files[1])
    with servers.wolun(settings.directory, volumes) as ours, servers.tgtd(settings.directory, files[2]) as peer:
        pair = measure.alternate(load(ours.url(0)), load(peer.url), settings.rounds)
        yield pair.row("4 KiB write, 32 in flight, no snapshot", unit="/s", at_least=1.5, peer="tgtd")
        ours.command("snapshot", "create", "vol1", "bench")
        loads.qemu_writes(ours.url(1), count=common.GIB // common.CHUNK, step=common.CHUNK)
        # A ratio this close to 1 needs longer loads: every block is written, whatever `--writes` says.
        count = common.GIB // step
        pair = measure.alternate(load(ours.url(1)), load(ours.url(0)), settings.rounds + 2)
        yield pair.row("4 KiB write, all of it preserved", unit="/s", at_least=0.97, peer="no snapshot")


def first_writes(settings: common.Settings) -> Iterator[measure.Row]:
    """Measure first writes, page cache to page cache, against qemu's copy-before-write filter."""
    ours_file, peer_file = (
        common.filled(settings.directory / "ours.img"),
        common.filled(settings.directory / "peer.img"),
    )
    with servers.wolun(settings.directory, common.volume("vol0", 0, ours_file)) as ours:
        for work, step, bar in (
            ("4 KiB first write per 64 KiB, process-crash", common.CHUNK, 4.0),
            ("4 KiB first write, sequential, process-crash", 4096, 1.5),
        ):

            def our_side(step: int = step) -> float:
                ours.command("snapshot", "create", "vol0", "bench")
                loads.settle()
                rate = loads.qemu_writes(ours.url(0), count=common.GIB // step, step=step)
                ours.command("snapshot", "delete", "vol0@bench")
                return rate

            def peer_side(step: int = step) -> float:
                with servers.copy_before_write(settings.directory, peer_file) as url:
                    loads.settle()
                    return loads.qemu_writes(url, count=common.GIB // step, step=step)

            pair = measure.alternate(our_side, peer_side, settings.rounds)
            yield pair.row(work, unit="/s", at_least=bar, peer="qsd copy-before-write")


def syncs(settings: common.Settings) -> Iterator[measure.Row]:
    """Count the syncing system calls per first write, with strace, 32 writes in flight and durability power-loss."""
    primary, trace = common.filled(settings.directory / "ours.img"), settings.directory / "strace.txt"
    count = min(4096, settings.writes)
    strace = [
        "strace",
        "-D",  # the tracer is the child, or SIGTERM would end it and leave the daemon
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-e",
        "trace=fdatasync,fsync,sync_file_range,msync",
        "-o",
        str(trace),
    ]
    volume = common.volume("vol0", 0, primary, durability="power-loss")
    with servers.wolun(settings.directory, volume, prefix=strace) as ours:
        ours.command("snapshot", "create", "vol0", "bench")
        before = trace.read_text()
        rate = loads.qemu_writes(ours.url(0), count=count, step=common.CHUNK)
        during = trace.read_text()[len(before) :]
    calls = {name: len(re.findall(rf"\b{name}\(", during)) for name in ("fdatasync", "fsync", "msync")}
    per_write = (calls["fdatasync"] + calls["fsync"]) / count
    yield measure.Row(
        "first write, power-loss, 32 in flight: fdatasync per write",
        f"{calls['fdatasync'] + calls['fsync']} fdatasync, {calls['msync']} msync, {count} writes at {rate:,.0f}/s",
        "-",
        f"{per_write:.3f}",
        "<= 0.15",
        per_write <= 0.15,
    )


def huge_map(settings: common.Settings) -> Iterator[measure.Row]:
    """Measure the creation and opening of a write-once LUN of 64 TiB, in a process of its own."""
    done = servers.run([sys.executable, "-m", "tests.bench.huge_map", str(settings.directory)])
    seconds, resident, disk = (float(word) for word in done.split())
    yield measure.Row(
        "create and open a write-once LUN of 64 TiB",
        f"{seconds:.3f} s, {resident / 2**20:.1f} MiB resident, {disk / 2**20:.2f} MiB on disk",
        "-",
        "-",
        "<= 0.2 s, 64 MiB, 1 MiB",
        seconds <= 0.2 and resident <= 64 * 2**20 and disk <= 2**20,
    )


def view_reads(settings: common.Settings) -> Iterator[measure.Row]:
    """Measure what the comparison of checksums costs a read of a view, in a process of its own."""
    directory = settings.directory / "view-reads"
    directory.mkdir()
    done = servers.run([sys.executable, "-m", "tests.bench.view_reads", str(directory)])
    figures = [float(word) for word in done.split()]
    for length, ours, without in (("4 KiB", figures[0], figures[1]), ("64 KiB", figures[2], figures[3])):
        result = f"{ours - without:+.1f} us"
        work = f"{length} read of a view, compared: processor time"
        yield measure.Row(work, f"{ours:.1f} us", f"verify_reads: false {without:.1f} us", result, "report", None)


@contextlib.contextmanager
def _writing(url: str, span: int) -> Iterator[None]:
    """Write 4 KiB at a time all over `span` bytes until the context ends."""
    stop = threading.Event()
    failures: list[str] = []

    def loop() -> None:
        while not stop.is_set():
            try:
                loads.qemu_writes(url, count=20000, step=span // 20000 // 4096 * 4096)
            except servers.BenchError as error:
                failures.append(str(error))
                return

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        time.sleep(0.5)
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise servers.BenchError(failures[0])


def held_writes(settings: common.Settings) -> Iterator[measure.Row]:
    """Measure how long `snapshot create` holds writes, idle and under load, on a sparse volume of 1 TiB."""
    primary = settings.directory / "sparse.img"
    primary.unlink(missing_ok=True)
    volume = common.volume("vol0", 0, primary, size="1TiB", durability="power-loss")
    with servers.wolun(settings.directory, volume) as ours:

        def take(number: int) -> float:
            answer = ours.command("snapshot", "create", "vol0", f"s{number}")
            if not isinstance(answer, dict):
                raise servers.BenchError("snapshot create printed no object")
            held = float(answer["writes_held_seconds"])
            ours.command("snapshot", "delete", f"vol0@s{number}")
            return held * 1000

        idle = [take(number) for number in range(7)]
        with _writing(ours.url(0), 1 << 34):
            loaded = [take(100 + number) for number in range(7)]
    for name, held in (("idle", idle), ("loaded", loaded)):
        middle = statistics.median(held)
        result = f"{middle:.1f} ms"
        yield measure.Row(
            f"snapshot create, 1 TiB, {name}: writes held", f"max {max(held):.1f} ms", "-", result, "aim < 20 ms", None
        )


def _oldest_and_newest(settings: common.Settings, ours: servers.Wolun, chain: int, bar: float) -> measure.Row:
    """Measure reads of the oldest view of the volume `many` against those of the newest, whose chain is one."""
    listed = ours.command("snapshot", "list", "many")
    if not isinstance(listed, list):
        raise servers.BenchError("snapshot list printed no list")

    def reading(lun: int) -> Callable[[], float]:
        return lambda: loads.iscsi_perf(ours.url(lun), blocks=8, in_flight=32, seconds=settings.seconds, random=True)

    pair = measure.alternate(reading(listed[0]["view_lun"]), reading(listed[-1]["view_lun"]), settings.rounds)
    return pair.row(f"4 KiB random read of the oldest of {chain} views", unit="/s", at_least=bar, peer="newest")


def thousand_views(settings: common.Settings) -> Iterator[measure.Row]:
    """Measure reads through a chain of 1,000 snapshots, each of which has eight chunks."""
    size, chain, per_snapshot = common.GIB // 2, 1000, 8
    primary = common.filled(settings.directory / "many.img", size)
    with servers.wolun(settings.directory, common.volume("many", 0, primary, size="512MiB")) as ours:
        for number in range(chain):
            ours.command("snapshot", "create", "many", f"s{number}")
            step, offset = size // per_snapshot, number * common.CHUNK
            loads.qemu_writes(ours.url(0), count=per_snapshot, step=step, offset=offset)
        yield _oldest_and_newest(settings, ours, chain, 0.7)


def many_snapshots(settings: common.Settings) -> Iterator[measure.Row]:
    """Measure first writes with ten snapshots instead of one (rule 8, lun_backends/README.md), and reads of a chain of ten."""
    size, chain = common.GIB // 2, 10
    volumes = ""
    for lun, name in enumerate(("many", "one")):
        primary = common.filled(settings.directory / f"{name}.img", size)
        volumes += common.volume(name, lun, primary, size="512MiB")
    with servers.wolun(settings.directory, volumes) as ours:
        # Each snapshot of the chain gets a share of the chunks, spread over the volume; the rest is in the primary.
        for number in range(chain):
            ours.command("snapshot", "create", "many", f"s{number}")
            shares = 2 * chain
            loads.qemu_writes(
                ours.url(0),
                count=size // common.CHUNK // shares,
                step=common.CHUNK * shares,
                offset=number * common.CHUNK,
            )
        yield _oldest_and_newest(settings, ours, chain, 0.85)
        ours.command("snapshot", "delete", f"many@s{chain - 1}")

        def first_writes_to(lun: int, name: str) -> Callable[[], float]:
            def once() -> float:
                ours.command("snapshot", "create", name, "bench")
                loads.settle()
                rate = loads.qemu_writes(ours.url(lun), count=size // common.CHUNK, step=common.CHUNK)
                ours.command("snapshot", "delete", f"{name}@bench")
                return rate

            return once

        # The ratio is close to 1 and the loads are short, so more rounds keep other work of the machine out of the median.
        pair = measure.alternate(first_writes_to(0, "many"), first_writes_to(1, "one"), 3 * settings.rounds)
        yield pair.row("4 KiB first write, ten snapshots", unit="/s", at_least=0.95, peer="one snapshot")


PARTS: dict[str, Callable[[common.Settings], Iterator[measure.Row]]] = {
    "reads": reads,
    "writes": writes,
    "first-writes": first_writes,
    "syncs": syncs,
    "huge-map": huge_map,
    "view-reads": view_reads,
    "held-writes": held_writes,
    "many-snapshots": many_snapshots,
    "thousand-views": thousand_views,
    "space": space.first_writes,
    "processor": processor.commands,
    "pinned": processor.pinned,
    "upkeep": upkeep.scattered,
    "exports": exports.half_written,
    "rados": rados.first_writes,
}


def machine() -> Sequence[str]:
    """Return the machine and the versions that were measured."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    kernel = os.uname()
    disk = subprocess.run(["stat", "-f", "-c", "%T", "."], capture_output=True, text=True, check=True).stdout.strip()
    return [
        f"{os.cpu_count()} cores, {model[1] if model else kernel.machine}; {kernel.sysname} {kernel.release}; {disk}",
        *servers.versions(),
    ]
