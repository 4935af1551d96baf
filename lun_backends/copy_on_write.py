# SPDX-License-Identifier: Apache-2.0
"""Preserves every chunk of the primary before its first overwrite.

The design: before new data touches a chunk that is not known preserved, the chunk is copied from the primary to the
same address of the current write-once device and committed there; only then the write goes to the primary
(rule 1, lun_backends/README.md).
`BlockWritten` from that copy means that somebody else - another node, or this one before it was restarted - was first:
what is there is the pre-image, so the write goes on.

| chunk          | in the tracker | in claims | a write to it                                                  |
| -------------- | -------------- | --------- | -------------------------------------------------------------- |
| not preserved  | no             | no        | claims it, copies it, commits, adds it to the tracker, writes  |
| being copied   | no             | yes       | waits for the claim to end, then looks again                   |
| preserved      | yes            | no        | writes                                                         |

What keeps it right:

* From the last look at the tracker to the end of the write to the primary a write is inside the gate, all of it in one
  entry.  A barrier holds the gate, so no write can have looked at the old snapshot and change data under the new one.
* A claim is taken before the primary is read for the copy and released after the commit, so no write of this node can
  change a chunk while it is read.
* Copying is outside the gate, so a barrier does not wait for commits.  If a new snapshot overtakes a copy, the copy still
  goes to the snapshot it was begun for, and rightly: claims are the volume's, not the snapshot's, so the chunk cannot have
  changed.  Its writer then finds the chunk missing in the new snapshot and copies it there too.  For this, what is current
  is checked under the lock of the claims: nothing is claimed any more for a snapshot that is not.
* Nobody waits for a claim while holding one, nor inside the gate.  A write that meets claims of others first copies and
  commits what it could claim itself, and only then waits.  (The holder of the gate may wait: copying needs no gate.)

With a `copy_timeout` another thread makes the copy, and the write waits for it no longer than that.  The claims belong to the
copy: they last until it has ended, however late, so that what it still reads cannot have changed.

Without a snapshot `known` is a range that contains every chunk: the same fast path, no question asked.

While the volume is being rolled back (see `restoring`) an overlay answers reads, and a chunk that it has not settled yet is
not known: a write to it takes the long way and settles it first.

(Longer than most modules here: gate, claims and overlay keep one promise, and the argument above is about all of them.)
"""

from __future__ import annotations

import collections
import contextlib
import enum
import mmap
import resource
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from lun_backends import block_device, in_time, tracking, write_gate
from lun_backends.block_device import Buffers, Extent, ExtentKind

_ROUND = 8 << 20  # bytes claimed and committed at a time: so long others may have to wait for a huge write
_ROUND_NOW = 2 << 20  # bytes copied at a time on an event loop: so long others may have to wait for their turn
_RUN = 1 << 20  # bytes copied with one system call each way: page cache in larger folios costs half as much per byte
# Seconds for such a round.  It takes a tenth of that; so if it gave up the processor meanwhile, it waited for the disk.
_SLOW_ROUND = 0.01
_SUSPICION = (
    16  # rounds in which another slow one counts: a single one may have met a commit of the file system's journal
)
_SLOW_PERIOD = 1.0  # seconds for which copying is then left to workers, which takes three times as long
_EVERYTHING = range(1 << 63)


class WriteOnceSide(Protocol):
    """What copy-on-write needs of the write-once device it copies into."""

    @property
    def size(self) -> int: ...

    @property
    def commits_in_memory(self) -> bool:
        """Whether `put_many` waits for no disk, so that an event loop may call it."""
        ...

    def extents(self, offset: int, length: int) -> Iterator[Extent]: ...

    def put_many(self, requests: Iterable[tuple[int, Buffers]]) -> Sequence[block_device.BlockWritten | None]:
        """Write each (offset, buffers), or say why its blocks were taken; all is committed when it returns."""
        ...


@dataclass
class Counters:
    """What copy-on-write has done since it was made, for the metrics."""

    copies: int = 0  # chunks preserved
    futile_copies: int = 0  # chunks that turned out to be preserved already
    copied_bytes: int = 0
    commits: int = 0
    failures: int = 0
    waits: int = 0  # writes that waited for another's copy


class Decision(enum.Enum):
    """What becomes of a write whose copy failed."""

    REFUSE = enum.auto()  # it is refused (PreserveFailed)
    AGAIN = enum.auto()  # the copy is tried again: room was made meanwhile
    GIVE_UP = enum.auto()  # the snapshot is given up *and marked so on disk*: copy-on-write disarms, the write goes on


ErrorPolicy = Callable[[WriteOnceSide, block_device.BlockDeviceError, float], Decision]
"""Asked when a copy failed that began at that `time.monotonic()`.  May be called by several threads at once, and again for
a side that was given up a moment ago."""


def fail_writes(_side: WriteOnceSide, _error: block_device.BlockDeviceError, _began: float) -> Decision:
    """`on_error: fail-writes`: the snapshot is safe, the write is refused."""
    return Decision.REFUSE


class Overlay(Protocol):
    """What a volume reads as while its primary is behind: `pending` are the chunks that lie there with another content."""

    pending: tracking.BitMap

    def readv(self, offset: int, buffers: Buffers, *, nowait: bool = False) -> None: ...

    def extents(self, offset: int, length: int) -> Iterator[Extent]: ...

    def settle(self, spans: Sequence[tuple[int, int]]) -> None:
        """Bring the chunks of the (first, last) spans to the primary, for good.  Raises what preserving and writing raise."""
        ...


class _Settled:
    """The chunks a write may go to at once while there is an overlay."""

    __slots__ = ("_known", "_pending")

    def __init__(self, known: range | tracking.BitMap, pending: tracking.BitMap) -> None:
        self._known = known
        self._pending = pending

    def __contains__(self, chunk: int) -> bool:
        return chunk in self._known and chunk not in self._pending


class _Run:
    """Pieces of chunks, (chunk, (offset, length)) each, one behind the other."""

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
        """Its pieces, each by itself."""
        return [_Run([piece]) for piece in self.pieces]


class _Side:
    """The current write-once device with all that is known about it; replaced as a whole by the next snapshot."""

    __slots__ = ("device", "tracker")

    def __init__(self, device: WriteOnceSide, tracker: tracking.Tracker) -> None:
        self.device = device
        self.tracker = tracker


class CopyOnWrite(block_device.BlockDevice):
    """`primary`, with chunks of `chunk_size` bytes preserved on the armed write-once device before they change.

    Owns neither the primary nor the write-once device; `close` does not close them.
    """

    def __init__(
        self,
        primary: block_device.BlockDevice,
        chunk_size: int,
        on_error: ErrorPolicy = fail_writes,
        copy_timeout: float | None = None,
    ) -> None:
        if chunk_size < primary.block_size or chunk_size & (chunk_size - 1):
            raise ValueError(f"chunk size {chunk_size} is not a power-of-two number of blocks")
        self.primary = primary
        self.size = primary.size
        self.block_size = primary.block_size
        self.physical_block_size = primary.physical_block_size
        self.chunk_size = chunk_size
        self.chunks = -(-primary.size // chunk_size)
        self.on_error = on_error
        self.copy_timeout = copy_timeout
        self._helpers = in_time.Helpers("copy-on-write")
        self.gate = write_gate.WriteGate()
        self.counters = Counters()
        self._shift = chunk_size.bit_length() - 1
        self._run_length = max(chunk_size, _RUN)
        self._round = max(1, _ROUND >> self._shift)
        self._round_now = max(1, _ROUND_NOW >> self._shift)
        self._slow_until = 0.0
        self._suspicion = 0  # rounds left in which another slow one counts
        self._side: _Side | None = None
        # The chunks that need no copy: the tracker's bitmap, or everything.  Changes together with `_side`, under `hold`.
        self._known: range | tracking.BitMap | _Settled = _EVERYTHING
        self._overlay: Overlay | None = None
        self._bar: Callable[[], None] | None = None  # see `bar`
        self._source: block_device.BlockDevice | Overlay = primary  # what reads are answered from
        self._closed = False
        self._claims: set[int] = set()
        self._claiming = threading.Lock()
        self._released = threading.Condition(self._claiming)
        self._buffers = threading.local()

    # Arming ---------------------------------------------------------------------------------------------------------

    @property
    def tracker(self) -> tracking.Tracker | None:
        """What is known preserved in the current snapshot; None without one."""
        return None if self._side is None else self._side.tracker

    @property
    def write_once_side(self) -> WriteOnceSide | None:
        """The device that copies go to; None without a snapshot."""
        return None if self._side is None else self._side.device

    def hold(self) -> contextlib.AbstractContextManager[None]:
        """The barrier: no write is running while the context is open (rule 7).  `arm` and `disarm` belong inside."""
        return self.gate.hold()

    def arm(self, device: WriteOnceSide, tracker: tracking.Tracker | None = None) -> None:
        """Preserve into `device` from now on, starting from `tracker` (None: nothing is known).  Only within `hold`,
        or before the first write.
        """
        side = _Side(device, tracking.Tracker(self.chunks) if tracker is None else tracker)
        self._leave_out_what_is_beyond(side)
        self._side = side
        self._look()

    def disarm(self) -> None:
        """Preserve no more.  Only within `hold`, or from an `on_error` that gave the snapshot up."""
        self._side = None
        self._look()

    def cover(self, overlay: Overlay) -> None:
        """Read from `overlay`, and let it settle chunks before they are written to, until `uncover`.  Only within `hold`,
        or before the first read.
        """
        self._overlay = overlay
        self._source = overlay
        self._look()

    def uncover(self) -> None:
        """The primary has caught up with the overlay.  Only within `hold`."""
        self._overlay = None
        self._source = self.primary
        self._look()

    def bar(self, refuse: Callable[[], None] | None) -> None:
        """Call `refuse`, which raises, before every write, until `bar(None)`.  Only within `hold` will it meet
        every write that is answered later.
        """
        self._bar = refuse
        self._look()

    def resized(self) -> None:
        """The primary has grown.  Only within `hold`."""
        self.chunks = -(-self.primary.size // self.chunk_size)
        if self._side is not None:
            self._side.tracker.chunks = self.chunks
            self._leave_out_what_is_beyond(self._side)
        self.size = self.primary.size

    def _leave_out_what_is_beyond(self, side: _Side) -> None:
        """Of a snapshot taken when the volume was smaller, what came later needs no copy."""
        first = -(-side.device.size // self.chunk_size)
        if first < self.chunks:
            side.tracker.add_range(first, self.chunks - 1)

    def _look(self) -> None:
        """Set `_known` from everything it stands for."""
        if self._bar is not None:
            self._known = range(0)  # every write takes the long way
            return
        known = _EVERYTHING if self._side is None else self._side.tracker.known
        self._known = known if self._overlay is None else _Settled(known, self._overlay.pending)

    # The block device -----------------------------------------------------------------------------------------------

    def readv(self, offset: int, buffers: Buffers, *, nowait: bool = False) -> None:
        self._source.readv(offset, buffers, nowait=nowait)

    def read_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        if self._overlay is not None:
            return super().read_now(offset, length, buffers)
        return self.primary.read_now(offset, length, buffers)

    def writev(self, offset: int, buffers: Buffers, *, fua: bool = False, nowait: bool = False) -> None:
        length = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
        if nowait:
            if fua or not self.write_now(offset, length, buffers):
                raise block_device.WouldBlock
            return
        first = offset >> self._shift
        last = (offset + length - 1) >> self._shift
        gate = self.gate
        gate.enter()
        try:
            if (first in self._known) if first == last else self._covers(first, last):
                self.primary.writev(offset, buffers, fua=fua)
                return
        finally:
            gate.leave()
        self._preserve_and([(offset, length)], lambda: self.primary.writev(offset, buffers, fua=fua))

    def write_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        first = offset >> self._shift
        last = (offset + length - 1) >> self._shift
        gate = self.gate
        gate.enter(True)
        try:
            if (first in self._known) if first == last else self._covers(first, last):
                return self.primary.write_now(offset, length, buffers)
        finally:
            gate.leave()
        return False

    def write_zeroes(self, offset: int, length: int, *, discard: bool, fua: bool = False) -> None:
        self._preserve_and(
            [(offset, length)], lambda: self.primary.write_zeroes(offset, length, discard=discard, fua=fua)
        )

    def prepare_writes(self, ranges: Sequence[tuple[int, int]], *, nowait: bool = False) -> None:
        """With `nowait` copies what it can from page cache to page cache, on the caller's thread: handing each copy to a
        worker costs more than the copy.  What it leaves over (a chunk that must be read from the disk, one written in
        part, one that fails) the writes find missing, and wait for where waiting is allowed.
        """
        if nowait:
            self._preserve_now(ranges)
            return
        with contextlib.suppress(block_device.BlockDeviceError):  # a hint: the write itself meets the error again
            self._prepare(self._spans(ranges))

    def flush(self) -> None:
        self.primary.flush()

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        return self._source.extents(offset, length)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[block_device.BlockDevice]:
        with self.gate.hold():
            yield _Held(self)

    def close(self) -> None:
        """Refuse writes from now on, and return when none is running."""
        if not self._closed:
            with self.gate.hold():
                self._closed = True
                self._side = None
                self._known = range(0)  # so that every write takes the long way and finds the device closed

    # Preserving -----------------------------------------------------------------------------------------------------

    def preserve(self, offset: int, length: int) -> None:
        """Preserve the chunks of the range now, as a write to them would.  Raises PreserveFailed, DeviceClosed."""
        self._preserve(self._spans([(offset, length)]))

    def preserve_many(self, ranges: Iterable[tuple[int, int]]) -> None:
        """The same for many ranges, with one commit."""
        self._preserve(self._spans(ranges))

    def prepare_held(self, offset: int, length: int) -> None:
        """Do for the holder of the gate what a write to the range has to do first."""
        if (refuse := self._bar) is not None:
            refuse()
        self._prepare(self._spans([(offset, length)]))

    def _prepare(self, spans: Sequence[tuple[int, int]]) -> None:
        """Preserve the chunks, and settle them if there is an overlay."""
        self._preserve(spans)
        overlay = self._overlay
        if overlay is not None:
            overlay.settle(spans)

    def _covers(self, first: int, last: int) -> bool:
        if self._bar is not None:
            return False
        overlay = self._overlay
        if overlay is not None and overlay.pending.range_cardinality(first, last + 1):
            return False
        side = self._side
        if side is None:
            return not self._closed
        return side.tracker.covers(first, last)

    def _preserve_and(self, ranges: Sequence[tuple[int, int]], write: Callable[[], None]) -> None:
        """Preserve all chunks of `ranges`, then `write` in the same stay inside the gate as the last look."""
        spans = self._spans(ranges)
        while True:
            if (refuse := self._bar) is not None:
                refuse()
            self.gate.enter()
            try:
                if self._closed:
                    raise block_device.DeviceClosed
                if all(self._covers(first, last) for first, last in spans):
                    write()
                    return
            finally:
                self.gate.leave()
            self._prepare(spans)

    def _preserve(self, spans: Sequence[tuple[int, int]]) -> None:
        """Return when all chunks of `spans` were preserved in the snapshot that is current now, or a moment ago."""
        side = self._side
        if self._closed:
            raise block_device.DeviceClosed
        done = False
        while not done and side is not None and side is self._side:
            done, busy = self._preserve_round(side, spans)
            if done and busy:
                self._wait(side, busy)
                done = False

    def _preserve_now(self, ranges: Sequence[tuple[int, int]]) -> None:
        side = self._side
        began = time.monotonic()
        if (
            side is None
            or not side.device.commits_in_memory
            or self.copy_timeout is not None
            or began < self._slow_until
        ):
            raise block_device.WouldBlock
        waits = _waits()
        self._preserve_round(side, self._spans(ranges), nowait=True)
        ended = time.monotonic()
        if ended - began > _SLOW_ROUND and _waits() != waits:
            if self._suspicion:
                self._slow_until = ended + _SLOW_PERIOD
            self._suspicion = _SUSPICION
        elif self._suspicion:
            self._suspicion -= 1

    def _spans(self, ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """(first, last) chunk of every range that lies on the device; one that does not fails at the write itself."""
        shift = self._shift
        return [
            (offset >> shift, (offset + length - 1) >> shift)
            for offset, length in ranges
            if length and offset + length <= self.size
        ]

    def _preserve_round(
        self, side: _Side, spans: Sequence[tuple[int, int]], *, nowait: bool = False
    ) -> tuple[bool, set[int]]:
        """Claim and preserve what is missing, at most a round of it.

        Gives whether all that nobody else had claimed is preserved, and what others had claimed.
        """
        mine: list[int] = []
        busy: set[int] = set()
        known = side.tracker.known
        limit = self._round_now if nowait else self._round
        done = True
        with self._claiming:
            if side is not self._side:
                return True, busy  # overtaken before anything was claimed: by now the chunks may have changed
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
        busy.difference_update(mine)  # ranges may share a chunk, which the first of them claimed
        if mine:
            mine.sort()
            if nowait:
                self._copy_now(side, mine)
            else:
                done = self._copy(side, mine) and done
        return done, busy

    def _wait(self, side: _Side, busy: set[int]) -> None:
        """Return when none of `busy` is claimed; without claims of our own."""
        began = time.monotonic()
        with self._claiming:
            self.counters.waits += 1
            free = self._released.wait_for(lambda: self._claims.isdisjoint(busy), self.copy_timeout)
        if not free:
            chunk = min(busy)
            self._decide(side, block_device.CopyTimedOut(self._first_lba(chunk), self.copy_timeout or 0), began, chunk)

    def _copy(self, side: _Side, chunks: list[int]) -> bool:
        """Copy claimed chunks; gives whether that needs not be tried again.  Raises PreserveFailed."""
        began = time.monotonic()
        try:
            if self.copy_timeout is None:
                self._copy_claimed(side, chunks)
            else:
                self._helpers.run(lambda: self._copy_claimed(side, chunks), self.copy_timeout)
        except in_time.TimedOut:
            late = block_device.CopyTimedOut(self._first_lba(chunks[0]), self.copy_timeout or 0)
            return self._decide(side, late, began, chunks[0])
        except block_device.BlockDeviceError as error:
            return self._decide(side, error, began, chunks[0])
        return True

    def _decide(self, side: _Side, error: block_device.BlockDeviceError, began: float, chunk: int) -> bool:
        """Let the policy decide; gives whether the copy needs not be tried again.  Raises PreserveFailed."""
        if side is not self._side:
            return True  # overtaken by a new snapshot, and perhaps closed; the caller looks again
        self.counters.failures += 1
        match self.on_error(side.device, error, began):
            case Decision.AGAIN:
                return False
            case Decision.GIVE_UP:
                if side is self._side:
                    self.disarm()
                return True
        if side is not self._side:
            return True  # overtaken meanwhile, perhaps deleted
        raise block_device.PreserveFailed(_lba(error, self._first_lba(chunk)), error) from error

    def _copy_claimed(self, side: _Side, chunks: list[int]) -> None:
        """Copy claimed chunks with one commit and note them in the tracker; in any case release the claims."""
        try:
            _, futile = self._put(side.device, ((chunk, self._range(chunk, side)) for chunk in chunks))
            # Some of the blocks were taken: of a chunk written in part, put what is blank.  Nobody takes a written block
            # back, so this comes to an end: each turn finds blocks that the turn before did not.
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

    def _copy_now(self, side: _Side, chunks: list[int]) -> None:
        """Copy those of the claimed chunks that need no waiting; failures are for `_copy` to meet, and to decide about."""
        try:
            tried, futile = self._put(side.device, ((chunk, self._range(chunk, side)) for chunk in chunks), nowait=True)
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
        self, device: WriteOnceSide, pieces: Iterable[tuple[int, tuple[int, int]]], *, nowait: bool = False
    ) -> tuple[list[int], list[int]]:
        """Read each (chunk, (offset, length)) from the primary and put it; gives the chunks that were put, and those of
        them that met written blocks.  With `nowait` stops at the first that the page cache does not have.

        Neighbours go as one piece.  The write-once side refuses such a piece as a whole, so what it refuses is put again,
        chunk by chunk.
        """
        waiting = collections.deque(self._runs(pieces))
        order: list[_Run] = []
        buffer = self._buffer()

        def requests() -> Iterator[tuple[int, Buffers]]:
            while waiting:
                run = waiting.popleft()
                view = [buffer[: run.length]]
                try:
                    self.primary.readv(run.offset, view, nowait=nowait)
                except block_device.WouldBlock:
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
        """`pieces` with neighbours joined, as far as the buffer goes."""
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
        return (chunk << self._shift) // self.block_size

    def _range(self, chunk: int, side: _Side) -> tuple[int, int]:
        """(offset, length) in bytes of what a snapshot has of a chunk; its last one may be shorter."""
        offset = chunk << self._shift
        return offset, min(self.chunk_size, min(self.size, side.device.size) - offset)

    def _buffer(self) -> memoryview:
        """This thread's buffer of one run, page-aligned so that O_DIRECT takes it."""
        view: memoryview | None = getattr(self._buffers, "view", None)
        if view is None:
            view = memoryview(mmap.mmap(-1, self._run_length))
            self._buffers.view = view
        return view


def _waits() -> int:
    """How often this thread gave up the processor to wait; being put aside for others (a busy machine) does not count."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def _lba(error: block_device.BlockDeviceError, otherwise: int) -> int:
    """The block an error names, if it is of a kind that names one."""
    match error:
        case (
            block_device.SpaceExhausted()
            | block_device.MediumError()
            | block_device.OutOfRange()
            | block_device.CopyTimedOut()
        ):
            return error.lba
    return otherwise


class _Held(block_device.BlockDevice):
    """The device as the holder of its gate sees it: writes preserve, but do not pass the gate they hold."""

    def __init__(self, device: CopyOnWrite) -> None:
        self._device = device
        self.size = device.size
        self.block_size = device.block_size

    def readv(self, offset: int, buffers: Buffers, *, nowait: bool = False) -> None:
        self._device.readv(offset, buffers, nowait=nowait)

    def writev(self, offset: int, buffers: Buffers, *, fua: bool = False, nowait: bool = False) -> None:
        if nowait:
            raise block_device.WouldBlock
        self._device.prepare_held(offset, block_device.total_length(buffers))
        self._device.primary.writev(offset, buffers, fua=fua)

    def write_zeroes(self, offset: int, length: int, *, discard: bool, fua: bool = False) -> None:
        self._device.prepare_held(offset, length)
        self._device.primary.write_zeroes(offset, length, discard=discard, fua=fua)

    def flush(self) -> None:
        self._device.primary.flush()

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        return self._device.extents(offset, length)

    def close(self) -> None:
        """The device stays open; its owner closes it."""
