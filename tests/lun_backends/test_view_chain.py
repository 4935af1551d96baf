# SPDX-License-Identifier: Apache-2.0
"""The index of a chain against a plain model: after every step of a random history, all views are read and compared.

Steps also come between a view's first look and its read of the primary.  Each rule of `view_chain` and `view_index` has a
mutant, and the model finds every one of them.
"""

from __future__ import annotations

import contextlib
import random
import types
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from lun_backends import block_device, snapshot_view, view_chain, view_index
from lun_backends.tracking import GRAIN
from tests.lun_backends.memory_side import MemorySide, read
from tests.memory_device import MemoryDevice

GRAINS = 4
SIZE = GRAINS * GRAIN + 512  # the last grain is one block
BLOCKS = SIZE // 512
HISTORIES = 25
STEPS = 40


class Side(MemorySide):
    """A device of which two grains are asked at once."""

    lookup = 2 * GRAIN

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.watchers: list[block_device.Watcher] = []

    def watch(self, watcher: block_device.Watcher) -> bool:
        self.watchers.append(watcher)
        return True

    def has(self, grain: int) -> bool:
        return self._find(grain * GRAIN, min(GRAIN, SIZE - grain * GRAIN), 0) is None


class History:
    """A volume in memory, and what every view has to show."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.primary = MemoryDevice(SIZE)
        self.primary.fill(self.dice.randbytes(SIZE))
        self.chain = view_chain.Chain()
        self.sides: list[Side] = []
        self.views: dict[Side, snapshot_view.SnapshotView] = {}
        self.moments: dict[Side, bytes] = {}
        self.armed: Side | None = None
        self.known: set[int] = set()
        self.leaving: Side | None = None

    def write(self) -> None:
        first = self.dice.randrange(BLOCKS)
        data = self.dice.randbytes(512 * min(self.dice.choice((1, 3, 8, 30)), BLOCKS - first))
        if self.armed is not None:
            for grain in range(first // 8, -(-(first * 512 + len(data)) // GRAIN)):
                if grain not in self.known and not self.armed.has(grain):
                    self.copy(self.armed, grain)
                self.known.add(grain)
        self.primary.fill(data, first * 512)

    def copy(self, side: Side, grain: int) -> None:
        for lba in range(grain * 8, min(grain * 8 + 8, BLOCKS)):
            if not side.written[lba]:
                side.fill(bytes(self.primary.data[lba * 512 : lba * 512 + 512]), lba * 512)

    def take(self) -> None:
        late, before = self.armed, set(self.known)
        side = Side()
        self.chain.append(side)
        self.sides.append(side)
        self.views[side] = snapshot_view.SnapshotView(self.primary, self.chain, side)
        self.moments[side] = bytes(self.primary.data)
        self.armed, self.known = side, set()
        if late is not None and self.dice.random() < 0.3:  # a copy that began before
            grain = self.dice.randrange(GRAINS)
            if grain not in before and not late.has(grain) and late is not self.leaving:
                self.copy(late, grain)

    def begin_deleting(self) -> None:
        """Make the next older one armed, if this is the newest.  The grains that it has are known."""
        if self.leaving is not None or not self.sides:
            return
        side = self.leaving = self.dice.choice(self.sides)
        del self.views[side]
        self.moments.pop(side, None)
        index = self.sides.index(side)
        if side is self.armed and index:
            self.known |= {grain for grain in range(GRAINS + 1) if side.has(grain)}
            self.armed = self.sides[index - 1]
            self.chain.arm(self.armed)

    def end_deleting(self) -> None:
        side = self.leaving
        if side is None:
            return
        index = self.sides.index(side)
        if index:
            older = self.sides[index - 1]
            for lba in range(BLOCKS):
                if side.written[lba] and not older.written[lba]:
                    older.fill(bytes(side.data[lba * 512 : lba * 512 + 512]), lba * 512)
        self.sides.remove(side)
        if self.armed is side:
            self.armed, self.known = (self.sides[-1], set()) if self.sides else (None, set())
        self.leaving = None
        self.chain.replace(self.sides)
        side.closed = True

    def write_outside(self) -> None:
        """Write to a device as an initiator may: a block, so that the grain is there in part."""
        side = self.dice.choice(self.sides)
        blank = [lba for lba in range(BLOCKS) if not side.written[lba]]
        if not blank or side is self.leaving or side is self.armed:
            return
        for watcher in side.watchers:
            watcher.ask(side)
        for lba in self.dice.sample(blank, min(3, len(blank))):
            side.fill(self.dice.randbytes(512), lba * 512)
        for older in self.sides[: self.sides.index(side) + 1]:
            self.moments.pop(older, None)  # they show it now, as the brute force below says

    def expected(self, side: Side) -> bytes:
        """Return what a view shows that asks every device for each block."""
        content = bytearray(self.primary.data)
        for newer in reversed(self.sides[self.sides.index(side) :]):
            for lba in range(BLOCKS):
                if newer.written[lba]:
                    content[lba * 512 : lba * 512 + 512] = newer.data[lba * 512 : lba * 512 + 512]
        return bytes(content)

    def step(self) -> None:
        steps = [self.write, self.take, self.begin_deleting, self.end_deleting, self.write_outside]
        while True:
            step = self.dice.choices(steps, (6, 3, 2, 2, 0.5))[0]
            if step not in (self.take, self.write_outside) or (step == self.take) == (len(self.sides) < 6):
                break
        step()

    def compare(self) -> None:
        for side, view in list(self.views.items()):
            whole = self.expected(side)
            assert self.moments.get(side, whole) == whole, "the model is wrong"
            if self.dice.random() < 0.4:
                self.compare_while(side, view)
                whole = self.expected(side)
            assert read(view, 0, SIZE) == whole
            first = self.dice.randrange(BLOCKS)
            count = min(self.dice.choice((1, 1, 8, 20)), BLOCKS - first) * 512
            data = bytearray(count)
            view.read_now(first * 512, count, [memoryview(data)])
            assert data == whole[first * 512 : first * 512 + count]

    def compare_while(self, side: Side, view: snapshot_view.SnapshotView) -> None:
        """Let writes, snapshots and a deletion come between the first look and the read of the primary."""
        moment = self.moments.get(side)

        def meanwhile(method: str, _offset: int, _length: int) -> None:
            if method == "readv":
                self.primary.before = None
                for _ in range(3):
                    self.dice.choice((self.write, self.write, self.take if len(self.sides) < 8 else self.write))()
                if self.leaving is None and self.dice.random() < 0.5:
                    self.begin_deleting()
                    self.write()

        self.primary.before = meanwhile
        try:
            first = self.dice.randrange(BLOCKS)
            count = min(self.dice.choice((1, 8, 200)), BLOCKS - first) * 512
            data = read(view, first * 512, count)
            if moment is not None:
                assert data == moment[first * 512 : first * 512 + count]
        finally:
            self.primary.before = None


def run(histories: int = HISTORIES) -> None:
    for seed in range(histories):
        history = History(seed)
        history.take()
        for _ in range(STEPS):
            history.step()
            history.compare()


def test_views_show_what_asking_every_device_would() -> None:
    run()


def test_the_index_may_be_too_small() -> None:
    with (
        mock.patch.object(view_index, "MOST", 1000),
        mock.patch.object(view_index.Index.__init__, "__defaults__", (1 << 20, 1000)),
    ):
        run(8)


@contextlib.contextmanager
def mutated(module: types.ModuleType, before: str, after: str) -> Iterator[None]:
    """Replace a piece of a module's code, which must occur in it."""
    assert module.__file__ is not None
    source = Path(module.__file__).read_text()
    assert source.count(before) >= 1, f"the code has changed: {before}"
    changed = types.ModuleType(module.__name__)
    with mock.patch.dict("sys.modules", {module.__name__: changed}):
        exec(compile(source.replace(before, after), module.__file__, "exec"), changed.__dict__)
    with contextlib.ExitStack() as patches:
        for name in ("Chain", "Table", "SnapshotView", "Index"):
            if hasattr(module, name) and getattr(module, name).__module__ == module.__name__:
                for user in (snapshot_view, view_chain, view_index):
                    if hasattr(user, name):
                        patches.enter_context(mock.patch.object(user, name, getattr(changed, name)))
        yield


MUTANTS = {
    "no second look": (
        snapshot_view,
        "if self._chain.table is table and (armed < own or device.lacks(offset, length)):",
        "if True:",
    ),
    "no second look at several grains": (snapshot_view, "blank = _ask(table.devices[number], number, blank)", "pass"),
    "a chain that changed meanwhile is not noticed": (snapshot_view, "if self._chain.table is not table:", "if False:"),
    "the armed device is not the one that copies go to": (
        view_chain,
        "if link is not self._armed and link in table.numbers:",
        "if False:",
    ),
    "the armed device counts as settled": (view_chain, "asked.add(numbers[armed])", "pass"),
    "what was armed again is not asked once more": (
        view_chain,
        "if number < self.table.cover and number not in asked:",
        "if False:",
    ),
    "a watched device goes on to be looked up": (
        view_chain,
        "if link in table.numbers and link not in self._always:",
        "if False:",
    ),
    "the index outlives a device that was asked": (
        view_chain,
        "if any(table.devices[number] not in kept for number in table.asked):",
        "if False:",
    ),
    "the number of a device that left means nothing": (
        view_chain,
        "devices[begin:end] = [older] * (end - begin)",
        "pass",
    ),
    "a part of a grain counts as the grain": (view_index, "PART = -1", "PART = 0"),
    "an entry is not extended": (
        view_index,
        "if known is not None and first >= devices.cover:",
        "if known is not None:",
    ),
    "what moved to an older device is not looked at": (view_index, "(own == number or own < first)", "own == number"),
    "a view takes copies of older snapshots": (
        snapshot_view,
        "bits = entry.grains[(offset & index.span - 1) >> tracking.SHIFT] >> own",
        "bits = entry.grains[(offset & index.span - 1) >> tracking.SHIFT] >> own - 1 if own else 0",
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_model_finds_each_broken_rule(mutant: str) -> None:
    with (
        mutated(*MUTANTS[mutant]),
        pytest.raises((AssertionError, block_device.BlockDeviceError, KeyError)),
    ):
        run(400)
