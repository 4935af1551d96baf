# SPDX-License-Identifier: Apache-2.0
"""What is done to a volume while its files are recorded, and again after a cut, to see that nothing needs repair.

A `Worker` does random things to an open volume and notes each before and after, for `promises`.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lun_backends import block_device, storage_io, volume, write_once
from lun_backends.stores.thin import Durability
from tests.powercut import promises
from tests.powercut.promises import SECTOR

DIRECTORY = "volume"
PRIMARY = "primary.raw"
MOST_SNAPSHOTS = 4

Take = Callable[[promises.Note], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A volume and how long it is worked on; bytes."""

    name: str
    chunk_size: int
    block_size: int
    size: int
    steps: int
    writers: int = 0  # threads that write while snapshots come and go; 0: one thread does everything
    durability: Durability = Durability.POWER_LOSS


SCENARIOS = (
    # The volume's end lies within its last chunk, wherever the geometry can have that.
    Scenario("small-chunks", 4096, 512, 24 * 4096 + 1536, steps=40),
    Scenario("large-chunks", 65536, 512, 5 * 65536 + 4608, steps=40),
    Scenario("shared-bytes", 4096, 4096, 40 * 4096, steps=40),  # eight chunks share a byte of the map's bits
    Scenario("medium-chunks", 16384, 4096, 12 * 16384 + 8192, steps=40),
    Scenario("writers", 4096, 512, 16 * 4096, steps=24, writers=3),
    Scenario("writers-large", 65536, 4096, 3 * 65536 + 4096, steps=24, writers=3),
)


def create(root: Path, scenario: Scenario) -> list[int]:
    """Make the volume with a first content under `root`; returns the versions of its sectors."""
    (root / DIRECTORY).mkdir(parents=True)
    versions = [0 if address // 8 % 5 == 4 else 1 for address in range(scenario.size // SECTOR)]
    with (root / PRIMARY).open("wb") as file:
        for address, version in enumerate(versions):
            file.write(promises.sector(version, address))
    volume.Volume.create(
        root / DIRECTORY,
        "v",
        root / PRIMARY,
        block_size=scenario.block_size,
        chunk_size=scenario.chunk_size,
        durability=scenario.durability,
    ).close()
    return versions


def open_volume(root: Path, io: storage_io.StorageIO = storage_io.SYSTEM) -> volume.Volume:
    """The volume that `create` made."""
    return volume.Volume.open(root / DIRECTORY, io=io)


class Worker:
    """Does random things to `device`, the notes go to `take`.  Versions and names begin where the last worker's ended."""

    def __init__(self, opened: volume.Volume, take: Take, rng: random.Random, *, first_version: int = 2) -> None:
        self.volume = opened
        self.take = take
        self.rng = rng
        self.versions = itertools.count(first_version)
        self.serials = itertools.count()
        self._names = itertools.count(first_version)
        self.blocks = opened.device.size // opened.device.block_size
        self.per_block = opened.device.block_size // SECTOR

    def run(self, steps: int) -> None:
        """`steps` random things, one after the other."""
        kinds = (self.write, self.zeroes, self.flush, self.put, self.create, self.delete)
        for _ in range(steps):
            self.rng.choices(kinds, (8, 1, 1, 3, 2, 1.5))[0]()

    def write(self) -> None:
        """Somewhere, mostly small, now and then larger than a chunk."""
        per_chunk = self.volume.chunk_size // self.volume.device.block_size
        count = self.rng.choice((1, 1, 2, per_chunk, self.rng.randint(1, 3 * per_chunk)))
        first = self.rng.randrange(self.blocks)
        self.write_at(first, min(count, self.blocks - first), fua=self.rng.random() < 0.25)

    def write_at(self, first: int, count: int, *, fua: bool) -> None:
        """Write blocks [first, first + count) of the volume."""
        begins = self._begin(first, count, next(self.versions))
        self._write(begins, fua=fua)

    def batch(self, firsts: list[int]) -> None:
        """Single blocks, their chunks preserved ahead with one commit, as a fabric does it."""
        size = self.volume.device.block_size
        all_begin = [self._begin(first, 1, next(self.versions)) for first in firsts]
        self.volume.device.prepare_writes([(first * size, size) for first in firsts])
        for begins in all_begin:
            self._write(begins, fua=False)

    def _begin(self, first: int, count: int, version: int) -> promises.WriteBegins:
        """Note that these blocks will be written."""
        note = promises.WriteBegins(next(self.serials), first * self.per_block, count * self.per_block, version)
        self.take(note)
        return note

    def _write(self, begins: promises.WriteBegins, *, fua: bool) -> None:
        data = memoryview(promises.content(begins.version, begins.first, begins.count))
        self.volume.device.writev(begins.first * SECTOR, [data], fua=fua)
        self.take(promises.WriteEnds(begins.serial, fua))

    def zeroes(self) -> None:
        """Write zeroes, or discard."""
        first = self.rng.randrange(self.blocks)
        count = self.rng.randint(1, min(16, self.blocks - first))
        begins = self._begin(first, count, 0)
        size = self.volume.device.block_size
        self.volume.device.write_zeroes(first * size, count * size, discard=self.rng.random() < 0.5)
        self.take(promises.WriteEnds(begins.serial, False))

    def flush(self) -> None:
        """Make all durable."""
        serial = next(self.serials)
        self.take(promises.FlushBegins(serial))
        self.volume.device.flush()
        self.take(promises.FlushEnds(serial))

    def put(self) -> None:
        """Write to the write-once LUN of the oldest snapshot (of no other: what is put there the older ones show, too)."""
        if self.volume.snapshots and not self.volume.snapshots[0].deleting:
            first = self.rng.randrange(self.blocks)
            self.put_at(first, min(self.rng.choice((1, 1, 2, 5)), self.blocks - first))

    def put_at(self, first: int, count: int) -> None:
        """Write blocks [first, first + count) of the oldest snapshot's write-once LUN, if they are blank."""
        snapshot = self.volume.snapshots[0]
        assert isinstance(snapshot.write_once, write_once.WriteOnce)
        first = min(first, self.blocks - count)
        version, serial = next(self.versions), next(self.serials)
        sectors = (first * self.per_block, count * self.per_block)
        self.take(promises.PutBegins(serial, snapshot.name, *sectors, version))
        stored = True
        try:
            snapshot.write_once.writev(
                first * self.volume.device.block_size, [memoryview(promises.content(version, *sectors))]
            )
        except block_device.BlockWritten:
            stored = False
        self.take(promises.PutEnds(serial, stored))

    def create(self) -> None:
        """Take a snapshot, unless there are many."""
        if len(self.volume.snapshots) >= MOST_SNAPSHOTS:
            return
        name = f"s{next(self._names)}"
        self.take(promises.CreateBegins(name))
        self.volume.create_snapshot(name)
        self.take(promises.CreateEnds(name))

    def delete(self) -> None:
        """Delete any snapshot; now and then stop on the way, and go on at the next turn."""
        if any(snapshot.deleting for snapshot in self.volume.snapshots):
            self.resume()
            return
        if not self.volume.snapshots:
            return
        name = self.rng.choice(self.volume.snapshots).name
        stop = self.rng.random() < 0.3
        self.take(promises.DeleteBegins(name))
        try:
            self.volume.delete_snapshot(name, cancelled=lambda: stop)
        except volume.DeletionStopped:
            return
        self.take(promises.DeleteEnds(name))

    def resume(self) -> None:
        """Go on with what was stopped."""
        names = [snapshot.name for snapshot in self.volume.snapshots if snapshot.deleting]
        self.volume.resume_deletions()
        for name in names:
            self.take(promises.DeleteEnds(name))

    def pin(self, name: str, unsure: Callable[[str], list[int]]) -> None:
        """Read what of a snapshot could be one or the other, because writes ran while it was taken, and note it."""
        view = self.volume.snapshot(name).view
        found = []
        for address in unsure(name):
            data = bytearray(SECTOR * self.per_block)
            start = address - address % self.per_block
            view.readv(start * SECTOR, [memoryview(data)])
            at = (address - start) * SECTOR
            version = promises.describe(bytes(data[at : at + SECTOR]), address)
            if not isinstance(version, int):
                raise promises.Violation(f"snapshot {name}, sector {address}: {version}")
            found.append((address, version))
        self.take(promises.Pinned(name, tuple(found)))


def run_writers(worker: Worker, scenario: Scenario, seed: int, unsure: Callable[[str], list[int]]) -> None:
    """Threads that write, each to blocks of its own in chunks shared by all, while snapshots are taken and deleted."""
    serials = itertools.count(1 << 20)
    stop = threading.Event()
    errors: list[BaseException] = []

    def write(number: int) -> None:
        rng = random.Random(f"{seed}/{number}")
        mine = Worker(worker.volume, worker.take, rng)
        mine.versions = worker.versions
        mine.serials = serials
        blocks = range(number, mine.blocks, scenario.writers)
        try:
            for _ in range(scenario.steps * 2):
                if stop.is_set():
                    return
                if rng.random() < 0.3:
                    mine.batch(rng.sample(blocks, 4))
                else:
                    mine.write_at(rng.choice(blocks), 1, fua=rng.random() < 0.2)
                if rng.random() < 0.1:
                    mine.flush()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that joins
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(scenario.writers)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(scenario.steps // 3):
            before = {snapshot.name for snapshot in worker.volume.snapshots}
            worker.rng.choices((worker.create, worker.delete, worker.put), (3, 2, 2))[0]()
            for name in {snapshot.name for snapshot in worker.volume.snapshots} - before:
                worker.pin(name, unsure)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
