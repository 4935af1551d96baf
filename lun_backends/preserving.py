# SPDX-License-Identifier: Apache-2.0
"""The slow half of copy-on-write, which copies chunks of a primary into the current write-once device.

`copy_on_write` decides when a chunk needs a copy, and this module makes the copy.  The docstring of `copy_on_write` has
the argument why both halves together are right.  This is its part about the claims:

* A writer takes its claim before it reads the primary for the copy, and releases it after the commit.  So no write of
  this node can change a chunk while it is read.
* Claims belong to the volume, not to the snapshot.  `side` is checked under the lock of the claims: nothing is claimed
  for a snapshot that is no longer current.
* No thread waits for a claim while it holds one.  A write that meets claims of other threads first copies and commits
  the chunks that it could claim itself, and only then waits.

With a `copy_timeout`, another thread makes the copy, and the write waits for at most that time.  The claims belong to
the copy: they last until it has ended, however late, so that the chunks which it still reads cannot change.
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
from typing import Protocol

from lun_backends import block_device, in_place, in_time, tracking
from lun_backends.block_device import Buffers, Extent, ExtentKind

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


class WriteOnceSide(Protocol):
    """The part of a write-once device that copy-on-write needs."""

    @property
    def size(self) -> int: ...

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

    copies: int = 0  # chunks preserved
    futile_copies: int = 0  # chunks that turned out to be preserved already
    copied_bytes: int = 0
    commits: int = 0
    failures: int = 0
    waits: int = 0  # writes that waited for another write's copy


class Decision(enum.Enum):
    """The fate of a write whose copy failed."""

    REFUSE = enum.auto()  # refuse it (PreserveFailed)
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


class _Run:
    """Adjacent pieces of chunks, (chunk, (offset, length)) each."""

    __slots__ = ("length", "offset", "pieces")

    def __init__(self, pieces: list[tuple[int, tuple[int, int]]]) -> None:
        self.pieces = pieces
        self.offset = pieces[0][1][0]
        self.length = pieces[-1][1][0] + pieces[-1][1][1] - self.offset

    @property
    def chunks(self) -> list[int]:
        """The chunk of every piece."""
        return [chunk for chunk, _ in self.pieces]

    def parts(self) -> list[_Run]:
        """Return the pieces as runs of one piece each."""
        return [_Run([piece]) for piece in self.pieces]


class Side:
    """The current write-once device and its tracker; the next snapshot replaces both together."""

    __slots__ = ("device", "tracker")

    def __init__(self, device: WriteOnceSide, tracker: tracking.Tracker) -> None:
        self.device = device
        self.tracker = tracker


class Preserver:
    """Preserves chunks of `chunk_size` bytes of `primary` in the device of the current `side`; thread-safe.

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
        self._chunk_size = chunk_size
        self._disarm = disarm
        self._helpers = in_time.Helpers("copy-on-write")
        self._shift = chunk_size.bit_length() - 1
        self._run_length = max(chunk_size, _RUN)
        self._round = max(1, _ROUND >> self._shift)
        self._round_now = max(1, _ROUND_NOW >> self._shift)
        self._proof = 0  # quick rounds of workers that are needed before the next one in place
        self.began = 0.0  # see in_place.Caller
        self.executes = False
        self._suspicion = 0  # rounds left in which another slow one counts
        self._claims: set[int] = set()
        self._claiming = threading.Lock()
        self._released = threading.Condition(self._claiming)
        self._buffers = threading.local()

    def close(self) -> None:
        """Preserve nothing more; later calls raise DeviceClosed."""
        self._closed = True
        self.side = None
        self._disarm = _nothing  # break the reference circle with the owner, because the garbage collector seldom runs

    def preserve(self, spans: Sequence[tuple[int, int]]) -> None:
        """Return when all chunks of `spans` are preserved in the current snapshot, or in one that was current a moment ago.

        Raises PreserveFailed, DeviceClosed.
        """
        side = self.side
        if self._closed:
            raise block_device.DeviceClosed
        done = False
        while not done and side is not None and side is self.side:
            done, busy = self._preserve_round(side, spans)
            if done and busy:
                self._wait(side, busy)
                done = False

    def preserve_now(self, ranges: Sequence[tuple[int, int]]) -> bool:
        """Copy chunks of the ranges from page cache to page cache, without waiting; return False if none may be.

        This leaves out chunks that cannot be copied without waiting, and copies that fail; their writes meet the error.
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
        """Return the (first, last) chunk of every range on the device; writes to other ranges fail by themselves."""
        shift = self._shift
        return [
            (offset >> shift, (offset + length - 1) >> shift)
            for offset, length in ranges
            if length and offset + length <= self.size
        ]

    def _preserve_round(
        self, side: Side, spans: Sequence[tuple[int, int]], *, now: bool = False
    ) -> tuple[bool, set[int]]:
        """Claim and preserve missing chunks, at most one round of them.

        Return two values: whether all chunks are preserved that no other thread had claimed, and the chunks that other
        threads had claimed.
        """
        mine: list[int] = []
        busy: set[int] = set()
        known = side.tracker.known
        limit = self._round_now if now else self._round
        done = True
        with self._claiming:
            if side is not self.side:
                return True, busy  # a new snapshot came before the claim: by now the chunks may have changed
            for first, last in spans:
                if last > first and side.tracker.covers(first, last):
                    continue
                for chunk in range(first, last + 1):
                    if chunk in known:
                        continue
                    if chunk in self._claims:
                        busy.add(chunk)
                    elif len(mine) < limit:
                        self._claims.add(chunk)
                        mine.append(chunk)
                    else:
                        done = False
                        break
        busy.difference_update(mine)  # ranges may share a chunk, and the first of them claimed it
        if mine:
            mine.sort()
            if now:
                self._copy_now(side, mine)
            else:
                done = self._copy(side, mine) and done
        return done, busy

    def _wait(self, side: Side, busy: set[int]) -> None:
        """Return when no chunk of `busy` is claimed.  The caller holds no claims.  Raises PreserveFailed."""
        began = time.monotonic()
        with self._claiming:
            self.counters.waits += 1
            free = self._released.wait_for(lambda: self._claims.isdisjoint(busy), self.copy_timeout)
        if not free:
            chunk = min(busy)
            self._decide(side, block_device.CopyTimedOut(self._first_lba(chunk), self.copy_timeout or 0), began, chunk)

    def _copy(self, side: Side, chunks: list[int]) -> bool:
        """Copy claimed chunks; return False if the copy has to be tried again.  Raises PreserveFailed."""
        began = time.monotonic()
        try:
            if self.copy_timeout is None:
                self._copy_claimed(side, chunks)
                if self._proof:
                    self._proof = max(0, self._proof - 1) if time.monotonic() - began <= _SLOW_ROUND else _PROOF
            else:
                self._helpers.run(lambda: self._copy_claimed(side, chunks), self.copy_timeout)
        except in_time.TimedOut:
            late = block_device.CopyTimedOut(self._first_lba(chunks[0]), self.copy_timeout or 0)
            return self._decide(side, late, began, chunks[0])
        except block_device.BlockDeviceError as error:
            return self._decide(side, error, began, chunks[0])
        return True

    def _decide(self, side: Side, error: block_device.BlockDeviceError, began: float, chunk: int) -> bool:
        """Let the policy decide; return False if the copy has to be tried again.  Raises PreserveFailed."""
        if side is not self.side:
            return True  # a new snapshot came meanwhile, and this one may be closed; the caller looks again
        self.counters.failures += 1
        match self.on_error(side.device, error, began):
            case Decision.AGAIN:
                return False
            case Decision.INVALIDATED:
                if side is self.side:
                    self._disarm()
                return True
        if side is not self.side:
            return True  # a new snapshot came meanwhile, and this one may be deleted
        raise block_device.PreserveFailed(_lba(error, self._first_lba(chunk)), error) from error

    def _copy_claimed(self, side: Side, chunks: list[int]) -> None:
        """Copy claimed chunks with one commit and add them to the tracker; release the claims in any case."""
        try:
            _, futile = self._put(side.device, ((chunk, self._range(chunk, side)) for chunk in chunks))
            # Some of the blocks were taken: put the blank blocks of chunks that are written in part.  A written block
            # stays written, so this ends: each turn finds written blocks that the turn before did not find.
            partial = futile
            while partial:
                pieces = [
                    (chunk, (extent.offset, extent.length))
                    for chunk in partial
                    for extent in side.device.extents(*self._range(chunk, side))
                    if extent.kind is ExtentKind.BLANK
                ]
                partial = self._put(side.device, pieces)[1] if pieces else []
            side.tracker.add_many(chunks)
            self.counters.copies += len(chunks) - len(futile)
            self.counters.futile_copies += len(futile)
        finally:
            self._release(chunks)

    def _copy_now(self, side: Side, chunks: list[int]) -> None:
        """Copy the claimed chunks that need no waiting; `_copy` meets failures again, and decides about them."""
        try:
            tried, futile = self._put(side.device, ((chunk, self._range(chunk, side)) for chunk in chunks), now=True)
            side.tracker.add_many(sorted(set(tried).difference(futile)) if futile else tried)
            self.counters.copies += len(tried) - len(futile)
        except block_device.BlockDeviceError:
            return
        finally:
            self._release(chunks)

    def _release(self, chunks: Sequence[int]) -> None:
        with self._claiming:
            self._claims.difference_update(chunks)
            self._released.notify_all()

    def _put(
        self, device: WriteOnceSide, pieces: Iterable[tuple[int, tuple[int, int]]], *, now: bool = False
    ) -> tuple[list[int], list[int]]:
        """Read each (chunk, (offset, length)) from the primary and put it.

        Return the chunks that were put, and those of them that met written blocks.  With `now`, stop at the first chunk
        that the page cache does not have.  Adjacent chunks are put as one piece.  The write-once side refuses such a
        piece as a whole, so a refused piece is put again, chunk by chunk.
        """
        waiting = collections.deque(self._runs(pieces))
        order: list[_Run] = []
        buffer = self._buffer()

        def requests() -> Iterator[tuple[int, Buffers]]:
            while waiting:
                run = waiting.popleft()
                view = [buffer[: run.length]]
                if not now:
                    self.primary.readv(run.offset, view)
                elif not self.primary.read_now(run.offset, run.length, view):
                    if len(run.pieces) > 1:
                        waiting.clear()
                        waiting.extend(run.parts())
                        continue
                    return
                order.append(run)
                self.counters.copied_bytes += run.length
                yield run.offset, view

        tried: list[int] = []
        refused: list[int] = []
        while waiting:
            order.clear()
            results = device.put_many(requests())
            self.counters.commits += 1
            again: list[_Run] = []
            for run, result in zip(order, results, strict=True):
                if result is not None and len(run.pieces) > 1:
                    again += run.parts()
                    continue
                tried += run.chunks
                if result is not None:
                    refused += run.chunks
            waiting = collections.deque(again)
        return tried, sorted(set(refused))

    def _runs(self, pieces: Iterable[tuple[int, tuple[int, int]]]) -> Iterator[_Run]:
        """Yield `pieces` with adjacent ones joined, up to the length of the buffer."""
        run: list[tuple[int, tuple[int, int]]] = []
        end = length = 0
        for piece in pieces:
            _, (offset, size) = piece
            if run and (offset != end or length + size > self._run_length):
                yield _Run(run)
                run, length = [], 0
            run.append(piece)
            end = offset + size
            length += size
        if run:
            yield _Run(run)

    def _first_lba(self, chunk: int) -> int:
        return (chunk << self._shift) // self._block_size

    def _range(self, chunk: int, side: Side) -> tuple[int, int]:
        """Return (offset, length) in bytes of a chunk in a snapshot; the snapshot's last chunk may be shorter."""
        offset = chunk << self._shift
        return offset, min(self._chunk_size, min(self.size, side.device.size) - offset)

    def _buffer(self) -> memoryview:
        """Return this thread's buffer for one run, page-aligned so that O_DIRECT takes it."""
        view: memoryview | None = getattr(self._buffers, "view", None)
        if view is None:
            view = memoryview(mmap.mmap(-1, self._run_length))
            self._buffers.view = view
        return view


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
