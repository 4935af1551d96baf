# SPDX-License-Identifier: Apache-2.0
"""All operations at once: writers, readers of views, exports, snapshots taken and deleted, rollbacks.

Every snapshot is read when it is taken.  Every later read and export of it must return the same content, or an error that it
no longer exists, which is allowed for deleted snapshots only.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.backups import pieces
from lun_backends.durability import Durability
from lun_backends.volumes import errors, volume
from tests.powercut import promises, replay
from tests.powercut.promises import SECTOR

CHUNK = 4096
SECTORS = 48 * CHUNK // SECTOR
TURNS = 60


class Races:
    """One volume and its threads; `known` has the content of every snapshot that is not deleted yet."""

    def __init__(self, opened: volume.Volume, seed: int) -> None:
        self.volume = opened
        self.seed = seed
        self.known: dict[str, bytes] = {}
        self.ended = threading.Event()
        self.errors: list[BaseException] = []
        self.exports = 0

    def run(self) -> None:
        bodies: list[Callable[[random.Random], None]] = [self.write, self.write, self.export, self.read]
        threads = [threading.Thread(target=self.guard, args=(body, number)) for number, body in enumerate(bodies)]
        for thread in threads:
            thread.start()
        try:
            dice = random.Random(self.seed)
            for _ in range(TURNS):
                if self.errors:
                    break
                dice.choices((self.create, self.delete, self.restore), (5, 3, 2))[0](dice)
        finally:
            self.ended.set()
            for thread in threads:
                thread.join()
        if self.errors:
            raise self.errors[0]

    def guard(self, body: Callable[[random.Random], None], number: int) -> None:
        dice = random.Random(f"{self.seed}/{number}")
        try:
            while not self.ended.is_set():
                body(dice)
        except BaseException as error:  # noqa: BLE001 - raised by `run`
            self.errors.append(error)

    def write(self, dice: random.Random) -> None:
        first = dice.randrange(SECTORS)
        count = min(dice.choice((1, 3, 8, 20)), SECTORS - first)
        if dice.random() < 0.1:
            self.volume.device.write_zeroes(first * SECTOR, count * SECTOR, discard=dice.random() < 0.5)
        else:
            data = promises.content(dice.randrange(1, 1 << 40), first, count)
            self.volume.device.writev(first * SECTOR, [memoryview(data)], fua=dice.random() < 0.1)

    def export(self, dice: random.Random) -> None:
        """Export a whole snapshot, as a backup does."""
        name = self.pick(dice)
        if name is None:
            return
        before = self.known.get(name)
        whole = bytearray(SECTORS * SECTOR)
        try:
            for piece in pieces.export(self.volume.snapshot(name).view):
                if piece.data is not None:
                    whole[piece.offset : piece.offset + piece.length] = piece.data
        except (block_device.DeviceClosed, errors.NoSuchSnapshot):
            assert name not in self.known
            return
        assert before is None or bytes(whole) == before, f"an export of {name} is not that moment"
        self.exports += 1

    def read(self, dice: random.Random) -> None:
        name = self.pick(dice)
        if name is None:
            return
        before = self.known.get(name)
        first = dice.randrange(SECTORS)
        count = min(dice.choice((1, 8, 64)), SECTORS - first)
        data = bytearray(count * SECTOR)
        try:
            self.volume.snapshot(name).view.readv(first * SECTOR, [memoryview(data)])
        except (block_device.DeviceClosed, errors.NoSuchSnapshot):
            assert name not in self.known
            return
        assert before is None or data == before[first * SECTOR : (first + count) * SECTOR], f"{name} has changed"
        volume_now = bytearray(count * SECTOR)
        self.volume.device.readv(first * SECTOR, [memoryview(volume_now)])
        for index in range(count):
            version = promises.describe(bytes(volume_now[index * SECTOR : (index + 1) * SECTOR]), first + index)
            assert isinstance(version, int), f"sector {first + index} of the volume: {version}"

    def pick(self, dice: random.Random) -> str | None:
        names = list(self.known)
        return dice.choice(names) if names else None

    def create(self, dice: random.Random) -> None:
        if len(self.volume.snapshots) < 6:
            name = f"s{dice.getrandbits(40)}"
            view = self.volume.create_snapshot(name).view
            data = bytearray(view.size)
            view.readv(0, [memoryview(data)])
            self.known[name] = bytes(data)

    def delete(self, dice: random.Random) -> None:
        name = self.pick(dice)
        if name is not None:
            del self.known[name]
            self.volume.delete_snapshot(name)

    def restore(self, dice: random.Random) -> None:
        """Roll back, and check that the snapshots keep their content meanwhile."""
        name = self.pick(dice)
        if name is None:
            return
        self.volume.begin_rollback(name)
        going_on = threading.Thread(target=self.guard_once, args=(self.volume.continue_rollback,))
        going_on.start()
        content = self.known.pop(name)
        try:
            self.volume.delete_snapshot(name)  # done, if the rollback has ended already
        except errors.RollbackUnderWay:
            self.known[name] = content
        going_on.join()

    def guard_once(self, body: Callable[[], object]) -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - raised by `run`
            self.errors.append(error)


@pytest.fixture
def memory() -> Iterator[Path]:
    """Yield a directory in memory: on a disk, each sync would wait for the writers, which never pause."""
    with replay.scratch() as directory:
        yield directory


@pytest.mark.parametrize("seed", range(4))
def test_snapshots_never_change_whatever_else_runs(memory: Path, seed: int) -> None:
    durability = list(Durability)[seed % 2]
    opened = volume.Volume.create(
        memory / "v", "v", memory / "primary", size=SECTORS * SECTOR, chunk_size=CHUNK, durability=durability
    )
    races = Races(opened, seed)
    races.run()
    for name, expected in races.known.items():
        data = bytearray(len(expected))
        opened.snapshot(name).view.readv(0, [memoryview(data)])
        assert bytes(data) == expected
    assert {snapshot.name for snapshot in opened.snapshots} == set(races.known)
    assert races.exports
    opened.close()
