# SPDX-License-Identifier: Apache-2.0
"""A volume with all its operations, compared with a plain model.

The histories are random, and all content is compared after every step.  A second volume is for groups.
"""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from pathlib import Path

import obstore.store
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lun_backends import block_device, write_once
from lun_backends.backups import differences, pieces, verification
from lun_backends.block_device import ExtentKind
from lun_backends.durability import Durability
from lun_backends.stores import contract
from lun_backends.stores import settings as store_settings
from lun_backends.tracking import GRAIN
from lun_backends.volumes import errors, group, rollback_overlay, volume
from target.exports import jobs, qcow2
from tests import ceph
from tests.lun_backends.stores import disk

BLOCK = 512
PER_GRAIN = GRAIN // BLOCK
BLOCKS = 5 * PER_GRAIN + 3  # the last grain is short
MOST_BLOCKS = 8 * PER_GRAIN + 1
OTHER_BLOCKS = 2 * PER_GRAIN
LOCAL = (store_settings.Kind.MAP, store_settings.Kind.LOG)
PLACES = st.integers(0, MOST_BLOCKS - 1)


def read(device: block_device.BlockDevice, offset: int, length: int) -> bytes:
    data = bytearray(length)
    device.readv(offset, [memoryview(data)])
    return bytes(data)


def shown(image: Path) -> bytes:
    """Check that QEMU finds a chain of images clean, and return the content that it reads."""
    subprocess.run(["qemu-img", "check", "-q", image], check=True, capture_output=True, timeout=60)
    raw = image.with_suffix(".shown")
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True, capture_output=True, timeout=60)
    return raw.read_bytes()


class History(RuleBasedStateMachine):
    """A volume and its snapshots, compared with lists of block fills."""

    store = store_settings.DEFAULT
    marks = True  # whether initiators may write to write-once LUNs

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(dir=self.place())
        self.now: list[int] = [0] * BLOCKS
        self.moments: dict[str, list[int]] = {}
        self.stopped: set[str] = set()
        self.names = 0
        self.blocks = BLOCKS
        self.other_now = [0] * OTHER_BLOCKS
        self.other_moments: dict[str, list[int]] = {}
        self.labels: dict[str, dict[str, str | None]] = {}

    def place(self) -> Path | None:
        """Return a directory in which the stores can be; None for the default one."""
        return None

    @property
    def busy(self) -> bool:
        """Return whether a rollback is under way."""
        return self.volume.rolling_back_to is not None

    @initialize(
        grains_at_once=st.integers(1, 3), durability=st.sampled_from(Durability), chunk=st.sampled_from((1, 2, 4))
    )
    def create(self, grains_at_once: int, durability: Durability, chunk: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(rollback_overlay, "ROUND", grains_at_once * GRAIN)
        root = Path(self.directory.name)
        self.volume = volume.Volume.create(
            root / "v",
            "v",
            root / "disk",
            size=BLOCKS * BLOCK,
            chunk_size=chunk * GRAIN,
            durability=durability,
            store=self.store,
        )
        self.other = volume.Volume.create(
            root / "w",
            "w",
            root / "other",
            size=OTHER_BLOCKS * BLOCK,
            chunk_size=chunk * GRAIN,
            durability=durability,
            store=self.store,
        )

    @rule(first=PLACES, count=st.integers(1, 20), fill=st.integers(1, 255), prepare=st.booleans())
    def write(self, first: int, count: int, fill: int, prepare: bool) -> None:
        first %= self.blocks
        count = min(count, self.blocks - first)
        data = [memoryview(bytes([fill]) * (count * BLOCK))]
        if prepare:
            self.volume.device.prepare_writes([(first * BLOCK, count * BLOCK)])
        # Not done at once if the disk was slow lately, or a page is not cached.
        if not prepare or not self.volume.device.write_now(first * BLOCK, count * BLOCK, data):
            self.volume.device.writev(first * BLOCK, data)
        self.now[first : first + count] = [fill] * count

    @rule(fill=st.integers(1, 255), backwards=st.booleans())
    def write_to_every_grain(self, fill: int, backwards: bool = False) -> None:
        places = range(0, self.blocks, PER_GRAIN)
        for first in reversed(places) if backwards else places:  # only forwards is sequential
            self.volume.device.writev(first * BLOCK, [memoryview(bytes([fill]) * BLOCK)])
            self.now[first] = fill

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
    @rule(fill=st.none() | st.integers(1, 255))
    def snapshot(self, fill: int | None) -> None:
        """Take a snapshot and, unless `fill` is None, write to every grain.

        The differences between snapshots matter in all later steps.
        """
        self.names += 1
        self.volume.create_snapshot(f"s{self.names}")
        self.moments[f"s{self.names}"] = list(self.now)
        if fill is not None:
            self.write_to_every_grain(fill, backwards=fill % 2 == 0)

    @rule(first=st.integers(0, OTHER_BLOCKS - 1), fill=st.integers(1, 255))
    def write_to_the_other(self, first: int, fill: int) -> None:
        self.other.device.writev(first * BLOCK, [memoryview(bytes([fill]) * BLOCK)])
        self.other_now[first] = fill

    @precondition(lambda self: len(self.volume.snapshots) < 5)
    @rule(twice=st.booleans())
    def group(self, twice: bool) -> None:
        self.names += 1
        name = f"s{self.names}"
        if self.busy:
            with pytest.raises(errors.RollbackUnderWay):
                group.create([self.other, self.volume], name)
            return
        group.create([self.volume, self.other], name)
        self.moments[name], self.other_moments[name] = list(self.now), list(self.other_now)
        if twice:
            with pytest.raises(errors.SnapshotExists):
                group.create([self.other, self.volume], name)

    @precondition(lambda self: self.other_moments)
    @rule(data=st.data())
    def delete_of_the_other(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.other_moments)))
        self.other.delete_snapshot(name)
        del self.other_moments[name]

    @precondition(lambda self: self.moments)
    @rule(data=st.data(), key=st.sampled_from("ab"), value=st.sampled_from(("x", "y", None)))
    def label(self, data: st.DataObject, key: str, value: str | None) -> None:
        name = data.draw(st.sampled_from(sorted(self.moments)))
        self.labels.setdefault(name, {}).update({key: value})
        self.volume.label_snapshot(name, {key: value})

    @precondition(lambda self: self.moments)
    @rule(data=st.data())
    def diff(self, data: st.DataObject) -> None:
        """Check that all differences are named, and with a comparison of the content nothing else."""
        since, to = self.two(data)
        if to is None and self.busy:
            with pytest.raises(errors.VolumeError):
                differences.changed(self.volume, since, to)
            return
        ranges = differences.changed(self.volume, since, to)
        old, new = self.moments[since], self.now if to is None else self.moments[to]
        differing = {
            block * BLOCK // GRAIN for block in range(len(new)) if block >= len(old) or old[block] != new[block]
        }
        assert differing <= grains(ranges)
        device = self.volume.device if to is None else self.volume.snapshot(to).view
        exact = [
            extent
            for _, differing in differences.differing(self.volume.snapshot(since).view, device, ranges)
            for extent in differing
        ]
        assert grains(exact) == differing

    @precondition(lambda self: len(self.moments) > 1)
    @rule(data=st.data())
    def export_since(self, data: st.DataObject) -> None:
        """Check that the changes since an older snapshot, on top of its image, give the younger snapshot."""
        since, to = self.two(data)
        if to is None:
            return
        place = Path(tempfile.mkdtemp(dir=self.directory.name))
        (place / "below.img").write_bytes(content(self.moments[since]))
        view = self.volume.snapshot(to).view
        fd = os.open(place / "image.qcow2", os.O_RDWR | os.O_CREAT)
        try:
            writer = qcow2.Writer(fd, view.size, GRAIN, qcow2.Backing("below.img", "raw"))
            for piece in jobs.whole_grains(view, differences.changed(self.volume, since, to), GRAIN):
                assert piece.data is not None
                writer.write(piece.offset, piece.data)
            writer.finish()
        finally:
            os.close(fd)
        assert shown(place / "image.qcow2") == content(self.moments[to])

    @precondition(lambda self: self.moments)
    @rule(data=st.data())
    def verify(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.moments)))
        for checked in verification.verify(self.volume, name):
            assert checked.report.verdict is not contract.Verdict.DAMAGED, checked
        assert verification.damaged_headers(self.volume, name) == []

    def two(self, data: st.DataObject) -> tuple[str, str | None]:
        """Draw a snapshot, and a younger one, or None for now."""
        names = list(self.moments)
        first = data.draw(st.integers(0, len(names) - 1))
        second = data.draw(st.integers(first + 1, len(names)))
        return names[first], names[second] if second < len(names) else None

    @precondition(lambda self: self.moments and not self.busy)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """Delete one or more snapshots, one after the other, each to its end or stopped on the way."""
        names = data.draw(st.lists(st.sampled_from(sorted(self.moments)), min_size=1, max_size=3, unique=True))
        for name in names:
            stop = data.draw(st.booleans())
            try:
                self.volume.delete_snapshot(name, cancelled=functools.partial(bool, stop))
            except errors.DeletionStopped:
                assert stop
                self.stopped.add(name)
            del self.moments[name]
        self.stopped &= {snapshot.name for snapshot in self.volume.snapshots}

    @precondition(lambda self: self.moments and not self.busy)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.moments)))
        self.volume.begin_rollback(name, accept_outside=True)
        moment = self.moments[name]
        self.now = [*moment, *[0] * (self.blocks - len(moment))]

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def everything_else_is_refused_meanwhile(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.moments)))
        target, oldest = self.volume.rolling_back_to, self.volume.snapshots[0]
        assert target is not None
        kept = target.name if name == oldest.name else name  # the oldest goes, if it is not needed
        for attempt in (
            lambda: self.volume.create_snapshot("another"),
            lambda: self.volume.delete_snapshot(kept),
            lambda: self.volume.resume_deletions(),
            lambda: self.volume.begin_rollback(name),
            lambda: self.volume.resize((self.blocks + 1) * BLOCK),
        ):
            with pytest.raises(errors.RollbackUnderWay):
                attempt()

    @precondition(lambda self: self.busy)
    @rule(rounds=st.integers(0, 4))
    def restore_goes_on(self, rounds: int) -> None:
        left = iter(range(rounds))
        ended = self.volume.continue_rollback(cancelled=lambda: next(left, None) is None)
        assert ended is (self.volume.rolling_back_to is None)

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
    def other_node_writes_to_the_write_once_lun(self, first: int) -> None:
        """Let another node preserve one block, or as much as a put must cover.

        The rest of the grain must still be preserved here.
        """
        newest = self.volume.snapshots[-1]
        if newest.deleting:
            return
        moment = self.moments[newest.name]
        assert isinstance(newest.write_once, write_once.WriteOnce)
        unit = newest.write_once.store.unit // BLOCK
        first = first % len(moment) // unit * unit
        end = min(first + unit, len(moment))
        if self.now[first:end] != moment[first:end]:
            return
        data = [memoryview(content(moment[first:end]))]
        try:
            if self.marks:
                newest.write_once.writev(first * BLOCK, data)
            else:
                newest.write_once.put_many([(first * BLOCK, data)])
        except block_device.BlockWritten:
            return

    @precondition(lambda self: self.store.kind in LOCAL and not self.busy)
    @rule(kind=st.sampled_from(LOCAL), existing=st.booleans())
    def convert(self, kind: store_settings.Kind, existing: bool) -> None:
        """Change the store of later snapshots, and of those that exist."""
        self.store = store_settings.Settings(kind)
        self.volume.set_store(kind)
        self.other.set_store(kind)
        if existing:
            for result in self.volume.convert_stores():
                assert result.reason or result.store is kind

    @rule()
    def reopen(self) -> None:
        self.volume.close()
        self.volume = volume.Volume.open(self.volume.directory, store=self.store)
        self.other.close()
        self.other = volume.Volume.open(self.other.directory, store=self.store)

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        assert self.volume.device.size == self.blocks * BLOCK
        assert read(self.volume.device, 0, self.blocks * BLOCK) == content(self.now)
        holes = [
            extent for extent in self.volume.device.extents(0, self.blocks * BLOCK) if extent.kind is ExtentKind.HOLE
        ]
        for hole in holes:
            assert not any(self.now[hole.offset // BLOCK : (hole.offset + hole.length) // BLOCK])
        active = {snapshot.name: snapshot for snapshot in self.volume.snapshots if not snapshot.deleting}
        assert list(active) == list(self.moments)
        for name, moment in self.moments.items():
            assert active[name].view.size == len(moment) * BLOCK
            assert read(active[name].view, 0, len(moment) * BLOCK) == content(moment), name
            exported = b"".join(
                bytes(p.length) if p.data is None else bytes(p.data)
                for p in pieces.export(self.volume.snapshot(name).view)
            )
            assert exported == content(moment)
            labels = {key: value for key, value in self.labels.get(name, {}).items() if value is not None}
            assert active[name].labels == labels
        assert [snapshot.name for snapshot in self.other.snapshots] == list(self.other_moments)
        for device, fills in (
            (self.other.device, self.other_now),
            *((snapshot.view, self.other_moments[snapshot.name]) for snapshot in self.other.snapshots),
        ):
            assert read(device, 0, OTHER_BLOCKS * BLOCK) == content(fills)

    def teardown(self) -> None:
        if hasattr(self, "volume"):
            self.volume.close()
            self.other.close()
            self.patch.undo()
        self.directory.cleanup()


def grains(ranges: list[differences.Range]) -> set[int]:
    return {grain for offset, length in ranges for grain in range(offset // GRAIN, -(-(offset + length) // GRAIN))}


def content(fills: list[int]) -> bytes:
    return b"".join(bytes([fill]) * BLOCK for fill in fills)


class LogHistory(History):
    """The same, and the first snapshots have log-structured stores."""

    store = store_settings.Settings(store_settings.Kind.LOG)


class SparseHistory(History):
    """The same with sparse stores."""

    store = store_settings.Settings(store_settings.Kind.SPARSE)

    def place(self) -> Path:
        return disk.with_journal(Path(tempfile.gettempdir()))


class ObjectsHistory(History):
    """The same with stores in an object store, in this process's memory.  Most chunks are larger than a grain."""

    store = store_settings.Settings(store_settings.Kind.OBJECTS, objects=store_settings.Objects("memory:///"))
    marks = False

    def __init__(self) -> None:
        super().__init__()
        memory = obstore.store.MemoryStore()
        self.memory = pytest.MonkeyPatch()
        self.memory.setattr(obstore.store, "from_url", lambda *_arguments, **_options: memory)

    def teardown(self) -> None:
        super().teardown()
        self.memory.undo()


class RadosHistory(History):
    """The same with stores in a Ceph cluster."""

    marks = False

    @property
    def store(self) -> store_settings.Settings:  # type: ignore[override]
        place = store_settings.Rados(ceph.Cluster.POOL, self.directory.name, conf=ceph.cluster().conf)
        return store_settings.Settings(store_settings.Kind.RADOS, rados=place)


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestLogHistory = LogHistory.TestCase
TestLogHistory.settings = settings(max_examples=8, stateful_step_count=30, deadline=None)
TestSparseHistory = SparseHistory.TestCase
TestSparseHistory.settings = settings(max_examples=5, stateful_step_count=30, deadline=None)
TestObjectsHistory = ObjectsHistory.TestCase
TestObjectsHistory.settings = settings(max_examples=4, stateful_step_count=30, deadline=None)
TestRadosHistory = RadosHistory.TestCase
TestRadosHistory.settings = settings(max_examples=2, stateful_step_count=20, deadline=None)
