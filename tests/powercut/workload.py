# SPDX-License-Identifier: Apache-2.0
"""The work on a volume: while its files are recorded, and again after a cut, to show that nothing needs repair.

A `Worker` does random operations on an open volume.  It notes the beginning and the end of each, for `promises`.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lun_backends import block_device, tracking, write_once
from lun_backends.durability import Durability
from lun_backends.files import storage_io
from lun_backends.stores import settings
from lun_backends.volumes import errors, manifest, volume
from lun_backends.volumes.snapshot import Snapshot
from tests.powercut import promises
from tests.powercut.promises import SECTOR

DIRECTORY = "volume"
PRIMARY = "primary.raw"
MOST_SNAPSHOTS = 4

Take = Callable[[promises.Note], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A volume (sizes are in bytes), and the number of operations on it."""

    name: str
    chunk_size: int
    block_size: int
    size: int
    steps: int
    writers: int = 0  # threads that write while snapshots come and go; 0: one thread does everything
    durability: Durability = Durability.POWER_LOSS
    several: bool = False  # several deletions may be under way at once
    store: settings.Kind = settings.Kind.MAP


SCENARIOS = (
    # The volume ends within its last chunk, wherever the geometry allows that.
    Scenario("small-chunks", 4096, 512, 24 * 4096 + 1536, steps=40),
    Scenario("large-chunks", 65536, 512, 5 * 65536 + 4608, steps=40),
    Scenario("shared-bytes", 4096, 4096, 40 * 4096, steps=40),  # eight chunks share a byte of the map's bits
    Scenario("medium-chunks", 16384, 4096, 12 * 16384 + 8192, steps=40),
    Scenario("process-crash", 4096, 512, 16 * 4096, steps=40, durability=Durability.PROCESS_CRASH),
    Scenario("deletions", 4096, 512, 12 * 4096 + 512, steps=40, several=True),
    Scenario("grains", 16384, 512, 3 * 16384 + 5632, steps=40, several=True),
    Scenario("grains-and-writers", 65536, 512, 2 * 65536, steps=24, writers=3),
    Scenario("writers", 4096, 512, 16 * 4096, steps=24, writers=3),
    Scenario("writers-large", 65536, 4096, 3 * 65536 + 4096, steps=24, writers=3),
    Scenario("log", 65536, 512, 2 * 65536 + 4608, steps=40, several=True, store=settings.Kind.LOG),
    Scenario("log-small", 4096, 4096, 40 * 4096, steps=40, several=True, store=settings.Kind.LOG),
    Scenario("log-writers", 65536, 512, 2 * 65536, steps=24, writers=3, store=settings.Kind.LOG),
    Scenario(
        "log-process-crash",
        16384,
        512,
        3 * 16384 + 5632,
        steps=40,
        durability=Durability.PROCESS_CRASH,
        store=settings.Kind.LOG,
    ),
)


def create(root: Path, scenario: Scenario) -> list[int]:
    """Make the volume with a first content under `root`.  Return the versions of its sectors."""
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
        store=settings.Settings(scenario.store),
    ).close()
    return versions


def open_volume(root: Path, io: storage_io.StorageIO = storage_io.SYSTEM) -> volume.Volume:
    """Open the volume that `create` made."""
    return volume.Volume.open(root / DIRECTORY, io=io)


class Worker:
    """A source of random operations on a volume; the notes go to `take`.  Versions and names go on from the last worker's."""

    def __init__(self, opened: volume.Volume, take: Take, rng: random.Random, *, first_version: int = 2) -> None:
        self.volume = opened
        self.take = take
        self.rng = rng
        self.versions = itertools.count(first_version)
        self.serials = itertools.count()
        self._names = itertools.count(first_version)
        self.most_blocks = opened.device.size // opened.device.block_size + 4 * (
            opened.chunk_size // opened.device.block_size
        )
        self.per_block = opened.device.block_size // SECTOR
        self.several = False  # whether a deletion may begin while another is stopped

    @property
    def blocks(self) -> int:
        """The number of blocks of the volume."""
        return self.volume.device.size // self.volume.device.block_size

    def run(self, steps: int) -> None:
        """Do `steps` random operations, one after the other."""
        kinds: dict[Callable[[], None], float] = {
            self.write: 8,
            self.write_back: 1,
            self.zeroes: 1,
            self.flush: 1,
            self.put: 3,
            self.put_zeroes: 1,
            self.create: 2,
            self.delete: 1.5,
            self.restore: 0.7,
            self.there_and_back: 0.5,
            self.resize: 0.3,
            self.delete_two: 1.0 if self.several else 0.0,
        }
        for _ in range(steps):
            self.rng.choices(list(kinds), list(kinds.values()))[0]()

    def write(self) -> None:
        """Write somewhere: mostly a little, now and then more than a chunk."""
        per_chunk = self.volume.chunk_size // self.volume.device.block_size
        count = self.rng.choice((1, 1, 2, per_chunk, self.rng.randint(1, 3 * per_chunk)))
        first = self.rng.randrange(self.blocks)
        self.write_at(first, min(count, self.blocks - first), fua=self.rng.random() < 0.25)

    def write_at(self, first: int, count: int, *, fua: bool) -> None:
        """Write blocks [first, first + count) of the volume."""
        begins = self._begin(first, count, next(self.versions))
        self._write(begins, fua=fua)

    def batch(self, firsts: list[int]) -> None:
        """Write single blocks.  Preserve their chunks ahead with one commit, as a fabric does."""
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

    def there_and_back(self) -> None:
        """Write a block, durably; write its content in a snapshot; then go back to a snapshot."""
        if self._good() and self.volume.rolling_back_to is None:
            view = self.rng.choice(self._good()).view
            block = self.rng.randrange(view.size // view.block_size)
            self.write_at(block, 1, fua=True)
            self._write_as_in(view, block)
            self.restore()

    def write_back(self) -> None:
        """Write a block with its content in a snapshot: blocks that are equal in memory may differ on the disk."""
        if self._good():
            view = self.rng.choice(self._good()).view
            self._write_as_in(view, self.rng.randrange(view.size // view.block_size))

    def _good(self) -> list[Snapshot]:
        return [snapshot for snapshot in self.volume.snapshots if snapshot.state is manifest.SnapshotState.ACTIVE]

    def _write_as_in(self, view: block_device.BlockDevice, block: int) -> None:
        data = bytearray(view.block_size)
        view.readv(block * view.block_size, [memoryview(data)])
        found = {
            promises.describe(bytes(data[at * SECTOR : (at + 1) * SECTOR]), block * self.per_block + at)
            for at in range(self.per_block)
        }
        if len(found) == 1 and isinstance(version := found.pop(), int):
            self._write(self._begin(block, 1, version), fua=False)

    def zeroes(self) -> None:
        """Write zeroes, or discard."""
        first = self.rng.randrange(self.blocks)
        count = self.rng.randint(1, min(16, self.blocks - first))
        begins = self._begin(first, count, 0)
        size = self.volume.device.block_size
        self.volume.device.write_zeroes(first * size, count * size, discard=self.rng.random() < 0.5)
        self.take(promises.WriteEnds(begins.serial, False))

    def flush(self) -> None:
        """Make all writes durable."""
        serial = next(self.serials)
        self.take(promises.FlushBegins(serial))
        self.volume.device.flush()
        self.take(promises.FlushEnds(serial))

    def put(self) -> None:
        """Write to the write-once LUN of the oldest snapshot, because blocks put into a newer one show in all older ones."""
        # (Not during a rollback to that snapshot, because the volume would show the blocks, too.)
        if self.volume.snapshots and not self.volume.snapshots[0].deleting and self.volume.rolling_back_to is None:
            first = self.rng.randrange(self.blocks)
            self.put_at(first, min(self.rng.choice((1, 1, 2, 5)), self.blocks - first))

    def put_zeroes(self) -> None:
        """Write zeroes to a grain of the oldest snapshot's write-once LUN, and then other data to a block beside it."""
        if self.volume.snapshots and not self.volume.snapshots[0].deleting and self.volume.rolling_back_to is None:
            grain = 4096 // self.volume.device.block_size
            first = self.rng.randrange(self.blocks // grain) * grain
            self.put_at(first, grain, 0)
            self.put_at(min(first + grain, self.blocks - 1), 1)

    def put_at(self, first: int, count: int, version: int | None = None) -> None:
        """Write blocks [first, first + count) of the oldest snapshot's write-once LUN, if they are blank."""
        snapshot = self.volume.snapshots[0]
        assert isinstance(snapshot.write_once, write_once.WriteOnce)
        blocks = snapshot.write_once.size // snapshot.write_once.block_size
        first = min(first, blocks - 1)
        count = min(count, blocks - first)
        version = next(self.versions) if version is None else version
        serial = next(self.serials)
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
        if len(self.volume.snapshots) >= MOST_SNAPSHOTS or self.volume.rolling_back_to is not None:
            return
        name = f"s{next(self._names)}"
        self.take(promises.CreateBegins(name))
        self.volume.create_snapshot(name)
        self.take(promises.CreateEnds(name))

    def delete(self) -> None:
        """Delete any snapshot.  Now and then stop on the way: then go on at the next turn, or with `several` delete another."""
        if any(snapshot.deleting for snapshot in self.volume.snapshots) and not (
            self.several and self.rng.random() < 0.5
        ):
            self.resume()
            return
        names = [snapshot.name for snapshot in self.volume.snapshots if not snapshot.deleting]
        if not names or self.volume.rolling_back_to is not None:
            return
        self._delete(self.rng.choice(names), stop=self.rng.random() < 0.3)

    def delete_two(self) -> None:
        """Delete the newest snapshot after a stopped deletion of the next older one, then write to chunks of the older one."""
        if self.volume.rolling_back_to is not None or any(snapshot.deleting for snapshot in self.volume.snapshots):
            return
        while len(self.volume.snapshots) < 3:
            self.create()
        for _ in range(2):
            self.write()
        if len(self.volume.snapshots) < MOST_SNAPSHOTS:
            self.create()
        *_, first, second = self.volume.snapshots
        per_grain = tracking.GRAIN // self.volume.device.block_size
        grains = list(tracking.add_to(tracking.BitMap(), tracking.touched(first.write_once)))
        self._delete(first.name, stop=True)
        self._delete(second.name, stop=self.rng.random() < 0.5)
        for grain in self.rng.sample(grains, min(3, len(grains))):
            self.write_at(grain * per_grain, 1, fua=False)

    def _delete(self, name: str, *, stop: bool) -> None:
        before = [
            snapshot.name for snapshot in self.volume.snapshots if snapshot.deleting
        ]  # the oldest takes them along
        self.take(promises.DeleteBegins(name))
        try:
            self.volume.delete_snapshot(name, cancelled=lambda: stop)
        except errors.DeletionStopped:
            return
        self.take(promises.DeleteEnds(name))
        for other in [other for other in before if other not in {snapshot.name for snapshot in self.volume.snapshots}]:
            self.take(promises.DeleteEnds(other))

    def resume(self) -> None:
        """Go on with stopped operations; a rollback has to end first."""
        self.volume.continue_rollback()
        names = [snapshot.name for snapshot in self.volume.snapshots if snapshot.deleting]
        self.volume.resume_deletions()
        for name in names:
            self.take(promises.DeleteEnds(name))

    def restore(self) -> None:
        """Roll back to a snapshot, or go on with a rollback."""
        if self.volume.rolling_back_to is None:
            if not self._good():
                return
            name = self.rng.choice(self._good()).name
            self.take(promises.RestoreBegins(name))
            self.volume.begin_rollback(name, accept_outside=True)
            self.take(promises.RestoreEnds(name))
        stop = self.rng.random() < 0.4
        self.volume.continue_rollback(cancelled=lambda: stop)

    def resize(self) -> None:
        """Let the volume grow a little."""
        blocks = self.blocks + self.rng.randint(1, 2 * self.volume.chunk_size // self.volume.device.block_size)
        if blocks <= self.most_blocks and self.volume.rolling_back_to is None:
            self.take(promises.ResizeBegins(blocks * self.per_block))
            self.volume.resize(blocks * self.volume.device.block_size)
            self.take(promises.ResizeEnds(blocks * self.per_block))

    def pin(self, name: str, unsure: Callable[[str], list[int]]) -> None:
        """Read the sectors of a snapshot that may have either version, because writes ran while it was taken, and note them."""
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
    """Run threads that write, each to its own blocks in chunks that all share, while snapshots are taken and deleted."""
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
        except BaseException as error:  # noqa: BLE001 - raised by the thread that joins
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
