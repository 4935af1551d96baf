# SPDX-License-Identifier: Apache-2.0
"""The slow half of copy-on-write, which copies grains of a primary into the current write-once device.

`copy_on_write` decides when a grain needs a copy, and this module makes the copy.  The docstring of `copy_on_write` has
the argument why both halves together are right.  This is its part about the claims:

* A writer takes its claim before it reads the primary for the copy, and releases it after the commit.  So no write of
  this node can change a grain while it is read.
* Claims belong to the volume, not to the snapshot.  `side` is checked under the lock of the claims: nothing is claimed
  for a snapshot that is no longer current.
* No thread waits for a claim while it holds one.  A write that meets claims of other threads first copies and commits
  the chunks that it could claim itself, and only then waits.

With a `copy_timeout`, another thread makes the copy, and the write waits for at most that time.  The claims belong to
the copy: they last until it has ended, however late, so that the grains which it still reads cannot change.

A copy covers the grains that the write touches, and more in two cases:

| case                                                    | copied                                                 |
| ------------------------------------------------------- | ------------------------------------------------------ |
| the device checksums only larger units (`Side.unit`)    | the units that the write touches                       |
| the write begins where an earlier first write ended     | ahead to the end of the chunk, so that the next writes |
| (`_goes_on`): the writer is sequential                  | of this writer find their grains preserved             |

Nobody waits for a grain that is only copied ahead.  A copy that fails is tried again without what is ahead.
"""

from __future__ import annotations

import collections
import enum
import mmap
import resource
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from lun_backends import block_device, in_place, in_time, tracking
from lun_backends.block_device import Buffers, Extent, ExtentKind
from lun_backends.tracking import SHIFT

_ROUND = 8 << 20  # bytes claimed and committed at a time: other writers may have to wait that long for a huge write
_ROUND_NOW = 2 << 20  # bytes copied at a time on an event loop: other commands may have to wait that long
_RUN = 1 << 20  # bytes copied per system call: page cache in larger folios costs half as much per byte
# Seconds for a round on an event loop.  A round usually takes a tenth of that.  So a round that took longer, and
# yielded the processor meanwhile, waited for the disk.
_SLOW_ROUND = 0.01
# Rounds in which a second slow one counts: a single one may have met a commit of the file system's journal.
_SUSPICION = 16
# Quick rounds of workers in a row, after which copies are made in place again.  Until then they take three times as long.
_PROOF = 16
_STREAMS = 16  # sequential writers of a volume that are told apart


class WriteOnceSide(Protocol):
    """The part of a write-once device that copy-on-write needs."""

    @property
    def size(self) -> int: ...

    @property
    def grain(self) -> int:
        """The bytes that it checksums together; 0 if it does not matter how much is put."""
        ...

    @property
    def commits_in_memory(self) -> bool:
        """Whether `put_many` waits for no disk, so that an event loop may call it."""
        ...

    def extents(self, offset: int, length: int) -> Iterator[Extent]: ...

    def put_many(self, requests: Iterable[tuple[int, Buffers]]) -> Sequence[block_device.BlockWritten | None]:
        """Write each (offset, buffers), or return the BlockWritten that refused it; all is committed when it returns."""
        ...


@dataclass
class Counters:
    """Counts of the work of copy-on-write, for the metrics."""

    copies: int = 0  # grains preserved
    futile_copies: int = 0  # grains that turned out to be preserved already
    copied_bytes: int = 0
    commits: int = 0
    failures: int = 0
    waits: int = 0  # writes that waited for another write's copy


class Decision(enum.Enum):
    """The fate of a write whose copy failed."""

    REFUSE = enum.auto()  # refuse it (PreserveFailed)
    LATER = enum.auto()  # refuse it, too; it comes again, and is no failure: a fence was in the way
    AGAIN = enum.auto()  # try the copy again: room was made meanwhile
    INVALIDATED = (
        enum.auto()
    )  # the snapshot is invalid *and marked so on disk*: copy-on-write disarms, the write goes on


ErrorPolicy = Callable[[WriteOnceSide, block_device.BlockDeviceError, float], Decision]
"""Decides about a copy that failed; the last argument is the `time.monotonic()` at which it began.

Several threads may call it at once, also for a side that was invalidated a moment ago."""


def fail_writes(_side: WriteOnceSide, _error: block_device.BlockDeviceError, _began: float) -> Decision:
    """Refuse the write (`on_error: fail-writes`): the snapshot is safe."""
    return Decision.REFUSE


class _AheadFailed(Exception):
    """A copy failed that covered more than its write needs."""


class _Piece(NamedTuple):
    """Bytes that are put with one request; `shown` if the device has shown them as written, though perhaps not yet durable."""

    offset: int
    length: int
    shown: bool = False

    @property
    def grains(self) -> tracking.Grains:
        """The grains that it touches."""
        return self.offset >> SHIFT, -(-(self.offset + self.length) >> SHIFT)

    def halves(self) -> tuple[_Piece, ...]:
        """Return it as two pieces of whole grains; nothing for a single grain."""
        half = tracking.count(self.length) + 1 >> 1 << SHIFT
        if half >= self.length:
            return ()
        return _Piece(self.offset, half), _Piece(self.offset + half, self.length - half)


class Side:
    """The current write-once device and its tracker; the next snapshot replaces both together.

    `unit` is the number of grains, a power of two, that are copied together.
    """

    __slots__ = ("device", "tracker", "unit")

    def __init__(self, device: WriteOnceSide, tracker: tracking.Tracker, unit: int) -> None:
        self.device = device
        self.tracker = tracker
        self.unit = unit


class Preserver:
    """Preserves grains of `primary` in the device of the current `side`, ahead to the end of chunks; thread-safe.

    `disarm` is called when `on_error` has invalidated the snapshot.
    """

    def __init__(
        self,
        primary: block_device.BlockDevice,
        chunk_size: int,
        on_error: ErrorPolicy,
        copy_timeout: float | None,
        disarm: Callable[[], None],
    ) -> None:
        self.primary = primary
        self.size = primary.size
        self.on_error = on_error
        self.copy_timeout = copy_timeout
        self.counters = Counters()
        self.side: Side | None = None
        self._closed = False
        self._block_size = primary.block_size
        self._per_chunk = chunk_size >> SHIFT
        self._disarm = disarm
        self._helpers = in_time.Helpers("copy-on-write")
        self._round = max(self._per_chunk, _ROUND >> SHIFT)
        self._round_now = max(self._per_chunk, _ROUND_NOW >> SHIFT)
        self._proof = 0  # quick rounds of workers that are needed before the next one in place
        self.began = 0.0  # see in_place.Caller
        self.executes = False
        self._suspicion = 0  # rounds left in which another slow one counts
        self._claims = tracking.BitMap()
        self._streams: dict[int, None] = {}  # the ends of the latest first writes: grain numbers, the latest last
        self._claiming = threading.Lock()
        self._released = threading.Condition(self._claiming)
        self._buffers = threading.local()

    def close(self) -> None:
        """Preserve nothing more; later calls raise DeviceClosed."""
        self._closed = True
        self.side = None
        self._disarm = _nothing  # break the reference circle with the owner, because the garbage collector seldom runs

    def preserve(self, spans: Sequence[tuple[int, int]]) -> None:
        """Return when all grains of `spans` are preserved in the current snapshot, or in one that was current a moment ago.

        Raises PreserveFailed, DeviceClosed.
        """
        side = self.side
        if self._closed:
            raise block_device.DeviceClosed
        done, ahead = False, True
        while not done and side is not None and side is self.side:
            try:
                done, busy = self._preserve_round(side, spans, ahead=ahead)
            except _AheadFailed:
                ahead = False
                continue
            if done and busy:
                self._wait(side, busy)
                done = False

    def preserve_now(self, ranges: Sequence[tuple[int, int]]) -> bool:
        """Copy grains of the ranges from page cache to page cache, without waiting; return False if none may be.

        This leaves out grains that cannot be copied without waiting, and copies that fail; their writes meet the error.
        """
        side = self.side
        if side is None or not side.device.commits_in_memory or self.copy_timeout is not None or self._proof:
            return False
        loop = in_place.LOOPS.get(threading.get_ident())
        if loop is not None and not loop.open:
            return False
        self.began = began = time.monotonic()
        waits = _waits()
        if loop is None:
            self._preserve_round(side, self.spans(ranges), now=True)
        else:
            loop.enter(self)
            try:
                self._preserve_round(side, self.spans(ranges), now=True)
            finally:
                loop.leave()
        ended = time.monotonic()
        if ended - began > _SLOW_ROUND and _waits() != waits:
            if self._suspicion:
                self._proof = _PROOF
            self._suspicion = _SUSPICION
        elif self._suspicion:
            self._suspicion -= 1
        return True

    def distrust(self) -> None:
        """Let workers make the copies, until these were quick."""
        self._proof = _PROOF

    def spans(self, ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the (first, last) grain of every range on the device; writes to other ranges fail by themselves."""
        return [
            (offset >> SHIFT, (offset + length - 1) >> SHIFT)
            for offset, length in ranges
            if length and offset + length <= self.size
        ]

    def _preserve_round(
        self, side: Side, spans: Sequence[tuple[int, int]], *, now: bool = False, ahead: bool = True
    ) -> tuple[bool, tracking.BitMap]:
        """Claim and preserve missing grains, at most one round of them.

        Return two values: whether all grains are preserved that no other thread had claimed, and the grains that other
        threads had claimed.  Raises _AheadFailed.
        """
        mine: list[tracking.Grains] = []
        busy = tracking.BitMap()
        known, unit = side.tracker.known, side.unit
        left = self._round_now if now else self._round
        beyond = tracking.count(min(self.size, side.device.size))
        done, extended = True, False
        with self._claiming:
            if side is not self.side:
                return True, busy  # a new snapshot came before the claim: by now the chunks may have changed
            start = stop = 0
            for first, last in spans:
                if start <= first and last < stop:
                    continue  # as in a batch of a sequential writer
                if (first in known) if first == last else known.contains_range(first, last + 1):
                    continue
                begin, end = first & -unit, min((last | unit - 1) + 1, beyond)
                if ahead and self._goes_on(first, last):
                    needed, end = end, min((last | self._per_chunk - 1) + 1, beyond)
                    extended = extended or end > needed
                for start, stop in self._free(known, begin, end, first, last, busy):
                    stop = min(stop, max(start, start + left & -unit))
                    if stop > start:
                        self._claims.add_range(start, stop)
                        mine.append((start, stop))
                        left -= stop - start
                    if not left or stop <= start:
                        done = False
                        break
        if mine:
            for start, stop in mine if busy else ():
                busy.remove_range(start, stop)  # ranges may share a grain, and the first of them claimed it
            mine.sort()
            if now:
                self._copy_now(side, mine)
            else:
                done = self._copy(side, mine, extended=extended) and done
        return done, busy

    def _goes_on(self, first: int, last: int) -> bool:
        """Note a first write to the grains, and return whether it goes on where an earlier one ended (claims' lock held)."""
        streams = self._streams
        if found := first in streams:  # it stays there, because a copy that failed in place is tried again elsewhere
            last |= self._per_chunk - 1
        streams[last + 1] = None
        if len(streams) > 2 * _STREAMS:
            del streams[next(iter(streams))]
        return found

    def _free(
        self, known: tracking.BitMap, begin: int, end: int, first: int, last: int, busy: tracking.BitMap
    ) -> Iterable[tracking.Grains]:
        """Return the grains of [begin, end) that are neither known nor claimed (claims' lock held).

        Add those between `first` and `last` that others have claimed to `busy`.
        """
        if not (known.range_cardinality(begin, end) or self._claims.range_cardinality(begin, end)):
            return ((begin, end),)
        missing = tracking.BitMap()
        missing.add_range(begin, end)
        missing -= known
        claimed = missing & self._claims
        if claimed:
            missing -= claimed
            claimed.remove_range(0, first)
            claimed.remove_range(last + 1, end)
            busy |= claimed
        return tracking.runs(missing)

    def _wait(self, side: Side, busy: tracking.BitMap) -> None:
        """Return when no grain of `busy` is claimed.  The caller holds no claims.  Raises PreserveFailed."""
        began = time.monotonic()
        with self._claiming:
            self.counters.waits += 1
            free = self._released.wait_for(lambda: self._claims.isdisjoint(busy), self.copy_timeout)
        if not free:
            grain = busy.min()
            self._decide(side, block_device.CopyTimedOut(self._first_lba(grain), self.copy_timeout or 0), began, grain)

    def _copy(self, side: Side, grains: list[tracking.Grains], *, extended: bool) -> bool:
        """Copy claimed grains; return False if the copy has to be tried again.  Raises PreserveFailed, _AheadFailed."""
        began = time.monotonic()
        first = grains[0][0]
        try:
            if self.copy_timeout is None:
                self._copy_claimed(side, grains)
                if self._proof:
                    self._proof = max(0, self._proof - 1) if time.monotonic() - began <= _SLOW_ROUND else _PROOF
            else:
                self._helpers.run(lambda: self._copy_claimed(side, grains), self.copy_timeout)
        except in_time.TimedOut:
            late = block_device.CopyTimedOut(self._first_lba(first), self.copy_timeout or 0)
            return self._decide(side, late, began, first)
        except block_device.BlockDeviceError as error:
            if extended:
                raise _AheadFailed from error
            return self._decide(side, error, began, first)
        return True

    def _decide(self, side: Side, error: block_device.BlockDeviceError, began: float, grain: int) -> bool:
        """Let the policy decide; return False if the copy has to be tried again.  Raises PreserveFailed."""
        if side is not self.side:
            return True  # a new snapshot came meanwhile, and this one may be closed; the caller looks again
        decision = self.on_error(side.device, error, began)
        self.counters.failures += decision is not Decision.LATER
        match decision:
            case Decision.AGAIN:
                return False
            case Decision.INVALIDATED:
                if side is self.side:
                    self._disarm()
                return True
        if side is not self.side:
            return True  # a new snapshot came meanwhile, and this one may be deleted
        raise block_device.PreserveFailed(_lba(error, self._first_lba(grain)), error) from error

    def _copy_claimed(self, side: Side, grains: list[tracking.Grains]) -> None:
        """Copy claimed grains with one commit and add them to the tracker; release the claims in any case."""
        try:
            _, there = self._put(side.device, self._pieces(side, grains))
            side.tracker.add_all(grains)
            self._count(grains, there)
        finally:
            self._release(grains)

    def _copy_now(self, side: Side, grains: list[tracking.Grains]) -> None:
        """Copy the claimed grains that need no waiting; `_copy` meets failures again, and decides about them."""
        try:
            stored, _ = self._put(side.device, self._pieces(side, grains), now=True)
            side.tracker.add_all(stored)
            self._count(stored, [])
        except block_device.BlockDeviceError:
            return
        finally:
            self._release(grains)

    def _count(self, copied: Iterable[tracking.Grains], there: Sequence[tracking.Grains]) -> None:
        futile = len(tracking.add_to(tracking.BitMap(), there)) if there else 0
        self.counters.copies += sum(end - first for first, end in copied) - futile
        self.counters.futile_copies += futile

    def _release(self, grains: Sequence[tracking.Grains]) -> None:
        with self._claiming:
            for first, end in grains:
                self._claims.remove_range(first, end)
            self._released.notify_all()

    def _put(
        self, device: WriteOnceSide, pieces: Iterable[_Piece], *, now: bool = False
    ) -> tuple[list[tracking.Grains], list[tracking.Grains]]:
        """Read pieces from the primary and put all that is blank, with one commit if nothing of them is written.

        Return the grains of which something was stored, and those of which something was there.  With `now`, this leaves
        out grains that would have to be read from the disk, and grains of which something is there.
        """
        waiting = collections.deque(pieces)
        order: list[_Piece] = []
        buffer = self._buffer()

        def requests() -> Iterator[tuple[int, Buffers]]:
            while waiting:
                piece = waiting.popleft()
                view = [buffer[: piece.length]]
                if not now:
                    self.primary.readv(piece.offset, view)
                elif not self.primary.read_now(piece.offset, piece.length, view):
                    if halves := piece.halves():
                        waiting.extendleft(reversed(halves))
                        continue
                    waiting.clear()  # the others are probably not in the page cache, either
                    return
                order.append(piece)
                self.counters.copied_bytes += piece.length
                yield piece.offset, view

        stored: list[tracking.Grains] = []
        there: list[tracking.Grains] = []
        while waiting:
            order.clear()
            results = device.put_many(requests())
            self.counters.commits += 1
            for piece, result in zip(order, results, strict=True):
                if result is None:
                    stored.append(piece.grains)
                elif piece.shown:
                    there.append(piece.grains)
                else:
                    waiting.extend(_blank_grains(device, piece) if now else _parts(device, piece, there))
        return stored, there

    def _pieces(self, side: Side, grains: Sequence[tracking.Grains]) -> Iterator[_Piece]:
        """Yield the bytes of ranges of grains, adjacent ones joined, up to the length of the buffer."""
        size = min(self.size, side.device.size)
        begin = end = grains[0][0] << SHIFT
        for first, stop in (*grains, (-1, -1)):
            if first << SHIFT != end:
                for offset in range(begin, end, _RUN):
                    yield _Piece(offset, min(_RUN, end - offset))
                begin = first << SHIFT
            end = min(stop << SHIFT, size)

    def _first_lba(self, grain: int) -> int:
        return (grain << SHIFT) // self._block_size

    def _buffer(self) -> memoryview:
        """Return this thread's buffer for one piece, page-aligned so that O_DIRECT takes it."""
        view: memoryview | None = getattr(self._buffers, "view", None)
        if view is None:
            view = memoryview(mmap.mmap(-1, _RUN))
            self._buffers.view = view
        return view


def _parts(device: WriteOnceSide, piece: _Piece, there: list[tracking.Grains]) -> Iterator[_Piece]:
    """Yield what is still to be put of a piece that was refused, and add the grains of the rest to `there`.

    The extents may show blocks that another writer put since, and that are not durable yet.  Putting those once more
    waits until they are.  Within a single grain, the piece itself has just done so.

    A written block stays written, so this ends: each refusal finds written blocks that the one before did not find.
    """
    first, end = piece.grains
    for extent in device.extents(piece.offset, piece.length):
        if extent.kind is ExtentKind.BLANK:
            yield _Piece(extent.offset, extent.length)
        elif end - first == 1:
            there.append(piece.grains)
        else:
            yield _Piece(extent.offset, extent.length, shown=True)


def _blank_grains(device: WriteOnceSide, piece: _Piece) -> Iterator[_Piece]:
    """Yield the parts of a refused piece whose grains are blank as a whole."""
    stop = piece.offset + piece.length
    for extent in device.extents(piece.offset, piece.length):
        if extent.kind is ExtentKind.BLANK:
            first, end = -(-extent.offset >> SHIFT) << SHIFT, extent.offset + extent.length
            if end != stop:
                end = end >> SHIFT << SHIFT
            if first < end:
                yield _Piece(first, end - first)


def _nothing() -> None:
    """Do nothing: a closed device has nothing to disarm."""


def _waits() -> int:
    """Return how often this thread yielded the processor to wait; preemption on a busy machine does not count."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def _lba(error: block_device.BlockDeviceError, otherwise: int) -> int:
    """Return the block that an error names, or `otherwise` if it names none."""
    match error:
        case (
            block_device.SpaceExhausted()
            | block_device.MediumError()
            | block_device.OutOfRange()
            | block_device.CopyTimedOut()
        ):
            return error.lba
    return otherwise
