# SPDX-License-Identifier: Apache-2.0
"""A write-once LUN: every block takes one write; a second one is refused, and so is a read of a block never written.

* A write is all or nothing per command.  If any block of its range is written, nothing of the range is stored, and
  BlockWritten names the first such block.  For reads, BlankBlock names the first blank block.
* BlockWritten promises that the earlier data is as durable as the store makes it (`Durability`).  A write that meets a
  block that is still being committed waits for the end of that commit.  Then it is refused or, if the commit failed,
  stored.
* A reader never sees a block as written before its data can be read.
* Once `invalidate` returned, reads and writes raise SnapshotInvalid, now and after every restart.

`exchange` puts another store with the same content in place, while the device is used.

`put_many` makes one commit for many ranges.  Every method may be called from any thread, and `close` waits for the
running calls.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar

import pyroaring

from lun_backends import block_device
from lun_backends.damage import OnDamage
from lun_backends.durability import Durability
from lun_backends.stores import contract

EXTENTS_AT_ONCE = 512
"""The extents that `extents` collects before it yields them, so that `close` does not wait for a slow consumer."""


class WriteOnce(block_device.BlockDevice):
    """The write-once rule over a store, which it owns."""

    write_once: ClassVar[bool] = True

    def __init__(self, store: contract.Store, *, marks: bool = False) -> None:
        """Take over the store; with `marks`, mark the chunks that `writev` and `write_zeroes` write to (`stores.outside`)."""
        self.store = store
        self._marks = marks
        self._reader = store.reader
        self._quick = store.lacks if isinstance(store, contract.Quick) else None
        self.uuid = store.snapshot
        self.size = store.size
        self.block_size = store.block_size
        self.chunk_size = store.chunk_size
        self.local = store.local
        self.lookup = block_device.BlockDevice.lookup if store.local else store.chunk_size
        self.commits_in_memory = store.local and store.durability is Durability.PROCESS_CRASH
        self._shift = store.block_size.bit_length() - 1
        self._blocks = store.size >> self._shift
        # One entry per running call: append and pop are atomic, counting is not.
        self._running: list[None] = []
        self._closed = False
        self.grain = store.grain
        """The smallest range that copy-on-write preserves, in bytes."""
        self._invalid = store.reason
        self.recorded = self._invalid is not None
        """Whether the disk says that the snapshot is invalid.  The owner may record that if `invalidate` could not."""
        self._stopped = self._invalid is not None  # closed or invalid: one test per call
        self._watchers: weakref.WeakSet[block_device.Watcher] = weakref.WeakSet()  # each is called once
        self._holding: threading.Event | None = None  # calls wait for it; then `_stopped` is set, too
        self._unsettled: str | None = None  # why no write is taken: it might be in the store that is not found again
        self._noted: list[tuple[int, int]] | None = None  # (first block, blocks) of the writes since `note_writes`

    # -- the contract

    def watch(self, watcher: block_device.Watcher) -> bool:
        self._watchers.add(watcher)
        return self._invalid is None

    def readv(self, offset: int, buffers: block_device.Buffers) -> None:
        first = offset >> self._shift
        count = (len(buffers[0]) if len(buffers) == 1 else block_device.total_length(buffers)) >> self._shift
        self._running.append(None)
        try:
            if self._stopped:
                self._refuse()
            if first + count > self._blocks:
                raise block_device.OutOfRange(max(first, self._blocks))
            if count:
                self._reader.read(first, count, buffers)
        finally:
            self._running.pop()

    def read_now(self, offset: int, length: int, buffers: block_device.Buffers) -> bool:
        first = offset >> self._shift
        count = length >> self._shift
        self._running.append(None)
        try:
            if self._stopped:
                if self._holding is not None:
                    return False
                self._refuse()
            if first + count > self._blocks:
                raise block_device.OutOfRange(max(first, self._blocks))
            return not count or self._reader.read(first, count, buffers, now=True)
        finally:
            self._running.pop()

    def read_checked(
        self,
        offset: int,
        buffers: block_device.Buffers,
        on_damage: OnDamage | None = None,
    ) -> None:
        first, count = offset >> self._shift, block_device.total_length(buffers) >> self._shift
        with self._call():
            if self._stopped:
                self._refuse()
            if first + count > self._blocks:
                raise block_device.OutOfRange(max(first, self._blocks))
            self._reader.read_checked(first, count, buffers, on_damage)

    def writev(self, offset: int, buffers: block_device.Buffers, *, fua: bool = False) -> None:
        self._write(offset, block_device.total_length(buffers), buffers, fua)

    def write_zeroes(self, offset: int, length: int, *, discard: bool, fua: bool = False) -> None:
        if discard:
            raise block_device.NotSupported("discarding")
        self._write(offset, length, None, fua)

    def put_many(
        self, requests: Iterable[tuple[int, block_device.Buffers]]
    ) -> Sequence[block_device.BlockWritten | None]:
        """Write each (byte offset, buffers) of `requests`, all with one commit.

        Return one result per request, in order: None if it is stored and as durable as `writev` makes it, or the
        BlockWritten that refused it (the earlier data is as durable).

        The next request is taken from `requests` only when the data of all earlier ones is stored, so requests may
        share buffers.  (A request that meets blocks being committed, by this call or another, costs a commit of its
        own.)

        Raise OutOfRange, SpaceExhausted, MediumError, SnapshotInvalid, and the errors of the iterator `requests`.  The
        requests before the failed one are committed first: they stay written, and a second attempt gets BlockWritten
        for them.  A MediumError of a commit itself means that nothing since the previous commit is written.
        """
        with self._call():
            if self._stopped:
                self._refuse()
            return self.store.put_many(self._puts(requests))

    def put_moved(self, requests: Iterable[tuple[int, block_device.Buffers, contract.Origin, bool]]) -> list[bool]:
        """Write each (byte offset, buffers, origin, marked) of `requests` as `put_many`, each within one chunk.

        The origin comes from `read_to_move` of the write-once LUN that had the blocks, and `marked` says whether the
        chunk is marked there.  Return for each request whether it is stored.
        """
        with self._call():
            if self._stopped:
                self._refuse()
            return [result is None for result in self.store.put_many(self._moved_puts(requests))]

    def read_to_move(
        self,
        offset: int,
        buffers: block_device.Buffers,
        on_damage: OnDamage,
        *,
        to: WriteOnce,
        accept_loss: bool,
    ) -> contract.Origin:
        """Read blocks of one chunk that go to the write-once LUN `to`, and return their origin, see `contract.Reader`."""
        first, count = offset >> self._shift, block_device.total_length(buffers) >> self._shift
        with self._call():
            if self._stopped:
                self._refuse()
            return self._reader.read_to_move(
                first, count, buffers, on_damage, grain=to.store.grain, size=to.size, accept_loss=accept_loss
            )

    def flush(self) -> None:
        with self._call():
            self.store.flush()

    def extents(self, offset: int, length: int) -> Iterator[block_device.Extent]:
        first, count = offset >> self._shift, length >> self._shift
        end = first + count
        if end > self._blocks:
            raise block_device.OutOfRange(max(first, self._blocks))
        while first < end:
            extents = []
            self._running.append(None)
            try:
                if self._stopped:
                    self._refuse()
                for start, blocks, written in self.store.extents(first, end - first):
                    kind = block_device.ExtentKind.DATA if written else block_device.ExtentKind.BLANK
                    extents.append(block_device.Extent(start << self._shift, blocks << self._shift, kind))
                    first = start + blocks
                    if len(extents) == EXTENTS_AT_ONCE:
                        break
            finally:
                self._running.pop()
            yield from extents

    def lacks(self, offset: int, length: int) -> bool:
        if self._quick is None:
            return super().lacks(offset, length)
        self._running.append(None)
        try:
            if self._stopped:
                self._refuse()
            if offset + length > self.size:
                raise block_device.OutOfRange(max(offset >> self._shift, self._blocks))
            return self._quick(offset >> self._shift, length >> self._shift)
        finally:
            self._running.pop()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = self._stopped = True
        # Wait for calls that began before.  Closing is rare and short, so polling costs less than a signal after every
        # call.
        while self._running:
            time.sleep(0.0005)
        self.store.close()

    # -- beyond the contract: for the snapshot

    @property
    def reason(self) -> str | None:
        """The reason why it is invalid, None if it is not."""
        return self._invalid

    @property
    def verify_reads(self) -> bool:
        """Whether reads compare what they read with its checksums, see `contract.Reader`."""
        return self._reader.verify

    @verify_reads.setter
    def verify_reads(self, on: bool) -> None:
        self._reader.verify = on

    def note_damage(self, offset: int) -> None:
        """Count the chunk with byte `offset` as damaged."""
        self._reader.found(offset // self.chunk_size, damaged=True)

    @property
    def damaged_chunks(self) -> int:
        """The number of chunks that were found damaged since it was opened."""
        return len(self._reader.damaged)

    def written_outside(self, chunk: int) -> bool:
        """Return whether an initiator wrote to the chunk of that number, see `stores.outside`."""
        return self.store.is_marked(chunk)

    @property
    def chunks_written_outside(self) -> pyroaring.BitMap64:
        """The numbers of the chunks that an initiator wrote to."""
        return self.store.marked

    @property
    def syncs(self) -> contract.Syncs:
        """The counts of the waits for stable storage."""
        return self.store.syncs

    def invalidate(self, reason: str) -> None:
        """Invalidate the snapshot for ever, durably; no read or write that begins later succeeds.

        Raise DeviceClosed, and MediumError if this cannot be recorded.  Then this process still refuses reads and
        writes.
        """
        with self._call():
            if self._invalid is None:
                self._invalid = reason
                self._stopped = True
                self._tell()
            self.store.invalidate(self._invalid)
            self.recorded = True

    def discard(self, patience: float) -> bool:
        """Free the space of an invalid snapshot and return True.

        Return False if calls that began before `invalidate` are still running after `patience` seconds.  Raises
        MediumError.
        """
        if self._invalid is None:
            raise ValueError("only the space of an invalid snapshot can be freed")
        end = time.monotonic() + patience
        while self._running:
            if time.monotonic() > end:
                return False
            time.sleep(0.0005)
        with self._call():
            self.store.discard()
        return True

    def on_their_way(self) -> list[tuple[int, int]]:
        """Return the (offset, length) of all blocks, in bytes, that are being committed.  Raises DeviceClosed.

        `extents` may show those blocks as written before they are durable.
        """
        shift = self._shift
        with self._call():
            return [(first << shift, count << shift) for first, count in self.store.on_their_way()]

    def set_durability(self, durability: Durability) -> None:
        """Set what commits survive, as `contract.Store.set_durability`.  Raises MediumError, DeviceClosed."""
        with self._call():
            self.store.set_durability(durability)
            self.commits_in_memory = self.local and durability is Durability.PROCESS_CRASH

    def used_bytes(self) -> int:
        """Return the space that it takes on disk, map included, in bytes.  Raises DeviceClosed."""
        with self._call():
            return self.store.used_bytes()

    def written_bytes(self) -> int:
        """Return how many bytes of it are written.  Raises DeviceClosed."""
        with self._call():
            return self.store.written_bytes()

    def verify(self, passed_over: pyroaring.BitMap = contract.NOTHING) -> Iterator[contract.ChunkReport]:
        """Read all written chunks, except those `passed_over`, and compare them with the recorded checksums.

        Yield reports in order of address, at least one for each chunk.  Raise SnapshotInvalid or DeviceClosed between two reports.
        """
        store = self.store
        reports = store.verify(passed_over)
        while True:
            with self._call():
                if self._stopped:
                    self._refuse()
                if store is not self.store:  # it was exchanged, and the new one has the same content
                    store = self.store
                    reports = store.verify(passed_over)
                report = next(reports, None)
            if report is None:
                return
            passed_over = passed_over | pyroaring.BitMap(
                range(report.offset // self.chunk_size, -(-(report.offset + report.length) // self.chunk_size))
            )
            yield report

    def check_headers(self) -> list[str]:
        """Return the faults of superblocks and header on the disk, a phrase each.  Raises DeviceClosed."""
        with self._call():
            return self.store.check_headers()

    # -- beyond the contract: for the conversion of a snapshot

    def note_writes(self) -> None:
        """Note the ranges of all writes that begin or end from now on, for `exchange`."""
        with self._held():
            self._noted = []

    def forget_writes(self) -> None:
        """Note no more writes."""
        self._noted = None

    def exchange(self, replaced: Callable[[Sequence[tuple[int, int]]], contract.Store]) -> contract.Store:
        """Put the store that `replaced` returns in place of the present one, which is returned, and which the caller closes.

        Calls that have begun end first, and new ones wait until `replaced` has returned.  It gets the (offset, length),
        in bytes, of all writes since `note_writes`, and must return a store with the same content.  If it raises an error,
        the present store stays; after Unsettled it takes no more writes.  Raises DeviceClosed, SnapshotInvalid.
        """
        with self._held():
            self._refuse_if_over()
            before = self.store
            ranges = [(first << self._shift, count << self._shift) for first, count in self._noted or ()]
            try:
                store = replaced(ranges)
            except contract.Unsettled as error:
                self._unsettled = str(error)
                raise
            store.reader.verify = self._reader.verify
            self._noted = None
            self.store = store
            self._reader = store.reader
            self._quick = store.lacks if isinstance(store, contract.Quick) else None
            self.grain = store.grain
            for chunk in before.reader.damaged:
                self._reader.found(chunk, damaged=True)
        return before

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Let calls that have begun end, and new ones wait.  One caller at a time."""
        released = threading.Event()
        self._holding = released
        self._stopped = True
        try:
            while self._running:
                time.sleep(0.0005)
            yield
        finally:
            self._holding = None
            self._stopped = self._closed or self._invalid is not None
            released.set()

    # -- inside

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        """Keep the device open for a call: `close` waits for it.  Raises DeviceClosed.

        Reads, writes and `extents` do the same in place, because every command pays for it.
        """
        self._running.append(None)
        try:
            if self._holding is not None:
                self._wait()
            self._refuse_if_closed()
            yield
        finally:
            self._running.pop()

    def _write(self, offset: int, length: int, buffers: block_device.Buffers | None, fua: bool) -> None:
        self._running.append(None)
        try:
            if self._stopped:
                self._refuse()
            first, count = self._range_to_write(offset, length)
            if count:
                self._tell()
                (refused,) = self.store.put_many([contract.Put(first, count, buffers, None, self._marks)])
                if refused is not None:
                    raise refused
            if fua:
                self.store.flush()
        finally:
            self._running.pop()

    def _tell(self) -> None:
        """Tell those who watch that they have to ask this device each time from now on."""
        if self._watchers:
            for watcher in list(self._watchers):
                watcher.ask(self)

    def _puts(self, requests: Iterable[tuple[int, block_device.Buffers]]) -> Iterator[contract.Put]:
        for offset, buffers in requests:
            if self._stopped:
                self._refuse_if_over()
            first, count = self._range_to_write(offset, block_device.total_length(buffers))
            yield contract.Put(first, count, buffers)

    def _moved_puts(
        self, requests: Iterable[tuple[int, block_device.Buffers, contract.Origin, bool]]
    ) -> Iterator[contract.Put]:
        for offset, buffers, origin, marked in requests:
            if self._stopped:
                self._refuse_if_over()
            first, count = self._range_to_write(offset, block_device.total_length(buffers))
            yield contract.Put(first, count, buffers, origin, marked)

    def _range(self, offset: int, length: int) -> tuple[int, int]:
        """Return (first block, blocks) of a range in bytes.  Raises OutOfRange."""
        first, count = offset >> self._shift, length >> self._shift
        if first + count > self._blocks:
            raise block_device.OutOfRange(max(first, self._blocks))
        return first, count

    def _range_to_write(self, offset: int, length: int) -> tuple[int, int]:
        """Return `_range`, and note it if writes are noted.  Raises OutOfRange, MediumError."""
        found = self._range(offset, length)
        if self._unsettled is not None:
            raise block_device.MediumError(found[0], True, self._unsettled)
        if self._noted is not None:
            self._noted.append(found)
        return found

    def _refuse(self) -> None:
        """Wait while calls are held; then raise DeviceClosed or SnapshotInvalid, if it is closed or invalid.

        The caller has one entry in `_running`, and has done nothing else yet.
        """
        self._wait()
        self._refuse_if_over()

    def _wait(self) -> None:
        """Wait while calls are held, without the caller's entry in `_running`, for which the holder waits."""
        while (released := self._holding) is not None:
            self._running.pop()
            released.wait()
            self._running.append(None)  # and look again: another holder may not have seen this entry

    def _refuse_if_over(self) -> None:
        self._refuse_if_closed()
        if self._invalid is not None:
            raise block_device.SnapshotInvalid(self._invalid)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise block_device.DeviceClosed
