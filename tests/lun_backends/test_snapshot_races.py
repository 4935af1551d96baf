# SPDX-License-Identifier: Apache-2.0
"""Volumes under fire: random histories against a plain model, readers against writers, snapshots under writers, kill -9."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lun_backends import block_device, restoring, snapshot_view, volume
from lun_backends.block_device import ExtentKind
from lun_backends.stores.thin import Durability
from tests.memory_device import MemoryDevice

CHUNK = 4096
BLOCK = 512
BLOCKS = 5 * CHUNK // BLOCK + 3  # the last chunk is not whole
MOST_BLOCKS = 8 * CHUNK // BLOCK + 1
PLACES = st.integers(0, MOST_BLOCKS - 1)


def read(device: block_device.BlockDevice, offset: int, length: int) -> bytes:
    data = bytearray(length)
    device.readv(offset, [memoryview(data)])
    return bytes(data)


class History(RuleBasedStateMachine):
    """A volume and its snapshots against lists of block fills."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.now: list[int] = [0] * BLOCKS
        self.moments: dict[str, list[int]] = {}
        self.stopped: set[str] = set()
        self.names = 0
        self.blocks = BLOCKS

    @property
    def busy(self) -> bool:
        """Whether a rollback is under way."""
        return self.volume.restoring is not None

    @initialize(chunks_at_once=st.integers(1, 3), durability=st.sampled_from(Durability))
    def create(self, chunks_at_once: int, durability: Durability) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(restoring, "ROUND", chunks_at_once * CHUNK)
        root = Path(self.directory.name)
        self.volume = volume.Volume.create(
            root / "state", "v", root / "disk", size=BLOCKS * BLOCK, chunk_size=CHUNK, durability=durability
        )

    @rule(first=PLACES, count=st.integers(1, 20), fill=st.integers(1, 255), prepare=st.booleans())
    def write(self, first: int, count: int, fill: int, prepare: bool) -> None:
        first %= self.blocks
        count = min(count, self.blocks - first)
        data = [memoryview(bytes([fill]) * (count * BLOCK))]
        try:
            if prepare:
                self.volume.device.prepare_writes([(first * BLOCK, count * BLOCK)])
            self.volume.device.writev(first * BLOCK, data, nowait=prepare)
        except block_device.WouldBlock:  # the disk was slow lately, or a page is not cached
            self.volume.device.writev(first * BLOCK, data)
        self.now[first : first + count] = [fill] * count

    @rule(first=PLACES, count=st.integers(1, 20), discard=st.booleans(), alone=st.booleans())
    def zero(self, first: int, count: int, discard: bool, alone: bool) -> None:
        first %= self.blocks
        count = min(count, self.blocks - first)
        if alone:
            with self.volume.device.exclusive() as device:
                device.write_zeroes(first * BLOCK, count * BLOCK, discard=discard)
        else:
            self.volume.device.write_zeroes(first * BLOCK, count * BLOCK, discard=discard)
        self.now[first : first + count] = [0] * count

    @precondition(lambda self: len(self.volume.snapshots) < 5 and not self.busy)
    @rule()
    def snapshot(self) -> None:
        self.names += 1
        self.volume.create_snapshot(f"s{self.names}")
        self.moments[f"s{self.names}"] = list(self.now)

    @precondition(lambda self: self.moments and not self.busy)
    @rule(data=st.data(), stop=st.booleans())
    def delete(self, data: st.DataObject, stop: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.moments)))
        try:
            self.volume.delete_snapshot(name, cancelled=lambda: stop)
        except volume.DeletionStopped:
            assert stop
            self.stopped.add(name)
        del self.moments[name]
        self.stopped &= {snapshot.name for snapshot in self.volume.snapshots}

    @precondition(lambda self: self.moments and not self.busy)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.moments)))
        self.volume.begin_restore(name)
        moment = self.moments[name]
        self.now = [*moment, *[0] * (self.blocks - len(moment))]

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def everything_else_is_refused_meanwhile(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.moments)))
        for attempt in (
            lambda: self.volume.create_snapshot("another"),
            lambda: self.volume.delete_snapshot(name),
            lambda: self.volume.resume_deletions(),
            lambda: self.volume.begin_restore(name),
            lambda: self.volume.resize((self.blocks + 1) * BLOCK),
        ):
            with pytest.raises(volume.RestoreUnderWay):
                attempt()

    @precondition(lambda self: self.busy)
    @rule(rounds=st.integers(0, 4))
    def restore_goes_on(self, rounds: int) -> None:
        left = iter(range(rounds))
        ended = self.volume.continue_restore(cancelled=lambda: next(left, None) is None)
        assert ended is (self.volume.restoring is None)

    @precondition(lambda self: self.blocks < MOST_BLOCKS and not self.busy)
    @rule(more=st.integers(1, 12))
    def grow(self, more: int) -> None:
        more = min(more, MOST_BLOCKS - self.blocks)
        self.blocks += more
        self.volume.resize(self.blocks * BLOCK)
        self.now += [0] * more

    @precondition(lambda self: self.stopped and not self.busy)
    @rule()
    def resume(self) -> None:
        self.volume.resume_deletions()
        self.stopped.clear()

    @precondition(lambda self: self.moments)
    @rule(first=PLACES)
    def stranger_writes_to_the_write_once_lun(self, first: int) -> None:
        """Another node preserves one block, which must leave the rest of its chunk to be preserved by us."""
        first %= self.blocks
        newest = self.volume.snapshots[-1]
        if (
            newest.deleting
            or first >= len(self.moments[newest.name])
            or self.now[first] != self.moments[newest.name][first]
        ):
            return
        try:
            newest.write_once.writev(first * BLOCK, [memoryview(bytes([self.now[first]]) * BLOCK)])
        except block_device.BlockWritten:
            return

    @rule()
    def reopen(self) -> None:
        self.volume.close()
        self.volume = volume.Volume.open(self.volume.directory)

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        assert self.volume.device.size == self.blocks * BLOCK
        assert read(self.volume.device, 0, self.blocks * BLOCK) == content(self.now)
        holes = [each for each in self.volume.device.extents(0, self.blocks * BLOCK) if each.kind is ExtentKind.HOLE]
        for hole in holes:
            assert not any(self.now[hole.offset // BLOCK : (hole.offset + hole.length) // BLOCK])
        active = {snapshot.name: snapshot for snapshot in self.volume.snapshots if not snapshot.deleting}
        assert list(active) == list(self.moments)
        for name, moment in self.moments.items():
            assert active[name].view.size == len(moment) * BLOCK
            assert read(active[name].view, 0, len(moment) * BLOCK) == content(moment), name
            exported = b"".join(bytes(p.length) if p.data is None else bytes(p.data) for p in self.volume.export(name))
            assert exported == content(moment)

    def teardown(self) -> None:
        if hasattr(self, "volume"):
            self.volume.close()
            self.patch.undo()
        self.directory.cleanup()


def content(fills: list[int]) -> bytes:
    return b"".join(bytes([fill]) * BLOCK for fill in fills)


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


@pytest.fixture
def made(tmp_path: Path) -> volume.Volume:
    return volume.Volume.create(
        tmp_path / "state",
        "v",
        tmp_path / "disk",
        size=64 * CHUNK,
        chunk_size=CHUNK,
        durability=Durability.PROCESS_CRASH,
    )


def run_all(*bodies: Callable[[], None]) -> None:
    """Run each in a thread of its own, and raise what one of them raised."""
    failures: list[BaseException] = []

    def guarded(body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - handed to the test below, which raises it
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_rule_3_a_block_preserved_while_the_primary_was_read_comes_from_the_copy(made: volume.Volume) -> None:
    """The write comes exactly between the look at the write-once side and the read of the primary; once more behind a
    new snapshot, so that only the chain as it is afterwards has the copy."""
    for behind_a_new_snapshot in (False, True):
        name = f"s{behind_a_new_snapshot}"
        before = read(made.device, 0, 2 * CHUNK)
        view = made.create_snapshot(name).view
        primary = made.primary
        original = primary.readv

        def overtaken(*arguments: object, **options: object) -> None:
            primary.readv = original  # type: ignore[method-assign]  # noqa: B023 - used before the loop goes on
            if behind_a_new_snapshot:  # noqa: B023 - likewise
                made.create_snapshot("meanwhile")
            made.device.writev(512, [memoryview(os.urandom(CHUNK))])
            original(*arguments, **options)  # type: ignore[arg-type]  # noqa: B023 - likewise

        primary.readv = overtaken  # type: ignore[method-assign]
        assert read(view, 0, 2 * CHUNK) == before
    made.close()


def test_views_never_change_while_writers_race_them(made: volume.Volume) -> None:
    made.device.writev(0, [memoryview(random.Random(1).randbytes(made.device.size))])
    stop = threading.Event()
    moments: list[tuple[volume.Snapshot, bytes]] = []

    def write(seed: int) -> None:
        rng = random.Random(seed)
        while not stop.is_set():
            blocks = rng.randrange(1, 12)
            first = rng.randrange(made.device.size // BLOCK - blocks + 1)
            made.device.writev(first * BLOCK, [memoryview(rng.randbytes(blocks * BLOCK))])

    def check(seed: int) -> None:
        rng = random.Random(seed)
        while not stop.is_set():
            if moments:
                snapshot, moment = rng.choice(moments)
                length = rng.randrange(1, 24) * BLOCK
                offset = rng.randrange((len(moment) - length) // BLOCK + 1) * BLOCK
                assert read(snapshot.view, offset, length) == moment[offset : offset + length]

    def take() -> None:
        try:
            for turn in range(8):
                snapshot = made.create_snapshot(f"s{turn}")
                # What it must show for ever is what it shows at first: whoever changes it later is found out.
                moments.append((snapshot, read(snapshot.view, 0, made.device.size)))
                threading.Event().wait(0.05)
                if turn % 3 == 2:
                    victim = moments.pop(1)[0]
                    threading.Event().wait(0.01)  # readers that drew it just now are done, or meet DeviceClosed
                    made.delete_snapshot(victim.name)
        finally:
            stop.set()

    def check_tolerantly() -> None:
        while not stop.is_set():
            try:
                check(3)
            except block_device.DeviceClosed:  # the one deleted between the choice and the read
                continue

    run_all(lambda: write(1), lambda: write(2), check_tolerantly, take)
    for snapshot, moment in moments:
        assert read(snapshot.view, 0, made.device.size) == moment
    made.close()


def test_a_snapshot_under_writers_is_a_consistent_cut(made: volume.Volume) -> None:
    """Each writer writes n to its first place, then n to its second, far away: at every moment, first - second is 0 or 1."""
    writers = 3
    stop = threading.Event()
    apart = 32 * CHUNK

    def write(number: int) -> None:
        sequence = 0
        while not stop.is_set():
            sequence += 1
            data = [memoryview(struct.pack("<Q", sequence) * (BLOCK // 8))]
            made.device.writev(number * CHUNK, data)
            made.device.writev(apart + number * CHUNK, data)

    def take() -> None:
        try:
            for turn in range(25):
                view = made.create_snapshot(f"s{turn}").view
                for number in range(writers):
                    first, second = (
                        struct.unpack("<64Q", read(view, place + number * CHUNK, BLOCK)) for place in (0, apart)
                    )
                    assert len(set(first)) == len(set(second)) == 1, "a torn block"
                    assert first[0] - second[0] in (0, 1)
        finally:
            stop.set()

    run_all(*(lambda number=number: write(number) for number in range(writers)), take)
    made.close()


def test_a_snapshot_goes_only_when_reads_that_began_before_have_ended() -> None:
    primary, own, newer = (
        MemoryDevice(CHUNK),
        MemoryDevice(CHUNK, write_once=True),
        MemoryDevice(CHUNK, write_once=True),
    )
    newer.fill(b"\x77" * CHUNK)
    chain = snapshot_view.Chain([own, newer])
    view = snapshot_view.SnapshotView(primary, chain, own)
    reading, go_on, replaced = threading.Event(), threading.Event(), threading.Event()

    def stop(method: str, _offset: int, _length: int) -> None:
        if method == "readv":
            reading.set()
            assert go_on.wait(60)

    newer.before = stop
    seen: list[bytes] = []

    def replace() -> None:
        assert reading.wait(60)
        chain.replace([own])
        replaced.set()
        newer.close()

    threads = [threading.Thread(target=lambda: seen.append(read(view, 0, CHUNK))), threading.Thread(target=replace)]
    for thread in threads:
        thread.start()
    while len(chain.links) > 1:
        assert not replaced.wait(0.01)
    assert not replaced.wait(0.05)
    go_on.set()
    for thread in threads:
        thread.join()
    assert seen == [b"\x77" * CHUNK]
    assert read(view, 0, CHUNK) == bytes(CHUNK)  # a later read takes the new chain


CHILD = """
import random, sys
from pathlib import Path
from lun_backends import volume
opened = volume.Volume.open(Path(sys.argv[1]))
rng = random.Random(int(sys.argv[2]))
print("ready", flush=True)
while True:
    blocks = rng.randrange(1, 20)
    first = rng.randrange(opened.device.size // 512 - blocks + 1)
    opened.device.writev(first * 512, [memoryview(rng.randbytes(blocks * 512))])
"""


def test_views_are_exact_after_kill_9_of_a_writer(tmp_path: Path) -> None:
    made = volume.Volume.create(tmp_path / "state", "v", tmp_path / "disk", size=256 * CHUNK, chunk_size=CHUNK)
    made.device.writev(0, [memoryview(random.Random(1).randbytes(made.device.size))])
    moments = {}
    rng = random.Random(2)
    for turn in range(4):
        moments[f"s{turn}"] = read(made.device, 0, made.device.size)
        made.create_snapshot(f"s{turn}")
        made.close()
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(made.directory), str(turn)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with child.stdout:
            threading.Event().wait(rng.random() * 0.3)
            child.send_signal(signal.SIGKILL)
            child.wait()
        made = volume.Volume.open(made.directory)
        for snapshot in made.snapshots:
            assert read(snapshot.view, 0, made.device.size) == moments[snapshot.name]
    made.close()


def test_the_memory_device_keeps_the_contract_the_views_rely_on() -> None:
    """A read of a write-once device that meets a blank block says so, wherever in the range it is."""
    device = MemoryDevice(CHUNK, write_once=True)
    device.fill(bytes(512))
    with pytest.raises(block_device.BlankBlock):
        read(device, 0, 1024)
