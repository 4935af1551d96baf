# SPDX-License-Identifier: Apache-2.0
"""A write-once LUN: every block takes one write; a second one is refused, and so is a read of a block never written.

* All or nothing per command: if any block of a write's range is written, nothing of the range is stored, and BlockWritten
  names the first such block.  BlankBlock likewise for reads.
* BlockWritten promises that the earlier data is as durable as the store makes it (`Durability`): a write that meets one still
  being committed waits for the end of that commit, and then is refused or, had it failed, stored.
* A reader never sees a block as written before its data can be read.
* Once `invalidate` returned, now and after every restart, reads and writes raise SnapshotInvalid.

`put_many` and `prepare_writes`-like callers get one commit for many ranges; every call is safe from any thread, and `close`
waits for the running ones.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import ClassVar, NoReturn

import pyroaring

from lun_backends import block_device
from lun_backends.durability import Durability
from lun_backends.files import os_error
from lun_backends.stores import contents, thin
from lun_backends.stores.superblock import State

EXTENTS_AT_ONCE = 512
"""Extents `extents` collects before it hands them on, so that `close` need not wait for a slow consumer."""


class WriteOnce(block_device.BlockDevice):
    """The write-once rule over a thin store, which it owns."""

    write_once: ClassVar[bool] = True

    def __init__(self, store: thin.ThinStore) -> None:
        self.store = store
        self.uuid = store.snapshot
        self.size = store.size
        self.block_size = store.block_size
        self.chunk_size = store.chunk_size
        self.commits_in_memory = store.durability is Durability.PROCESS_CRASH
        self._shift = store.block_size.bit_length() - 1
        self._blocks = store.size >> self._shift
        # One entry per call under way: append and pop are atomic, which counting is not.
        self._running: list[None] = []
        self._closed = False
        self._invalid: str | None = store.reason if store.state is State.INVALID else None
        self.recorded = self._invalid is not None
        """Whether it is on disk that it is invalid; its owner may see to that where `invalidate` could not."""
        self._stopped = self._invalid is not None  # closed or invalid: one test per call

    # -- the contract

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
                self.store.read(first, count, buffers)
        finally:
            self._running.pop()

    def read_now(self, offset: int, length: int, buffers: block_device.Buffers) -> bool:
        first = offset >> self._shift
        count = length >> self._shift
        self._running.append(None)
        try:
            if self._stopped:
                self._refuse()
            if first + count > self._blocks:
                raise block_device.OutOfRange(max(first, self._blocks))
            return not count or self.store.read(first, count, buffers, now=True)
        finally:
            self._running.pop()

    def writev(self, offset: int, buffers: block_device.Buffers, *, fua: bool = False) -> None:
        self._write(offset, block_device.total_length(buffers), buffers, fua)

    def write_zeroes(self, offset: int, length: int, *, discard: bool, fua: bool = False) -> None:
        if discard:
            raise block_device.NotSupported("discarding")
        self._write(offset, length, None, fua)

    def put_many(self, requests: Iterable[tuple[int, block_device.Buffers]]) -> list[block_device.BlockWritten | None]:
        """Write each (byte offset, buffers) of `requests`, all with one commit; one result per request, in order: None if it
        is stored and as durable as `writev` makes it, or the BlockWritten that refused it (also durable).

        A request is pulled only when the data of those before it is stored, so its buffers may be used again.  (A request
        that meets blocks being committed, by others or by this call, costs a commit of its own.)

        Raises OutOfRange, SpaceExhausted, MediumError, SnapshotInvalid, and whatever pulling a request raises, always after
        the requests before it were committed: they stay written, and a second attempt is told so.  A MediumError of a commit
        itself means that nothing since the commit before it is written.
        """
        store = self.store
        results: list[block_device.BlockWritten | None] = []
        batch = thin.Batch()
        self._running.append(None)
        try:
            if self._stopped:
                self._refuse()
            try:
                for offset, buffers in requests:
                    if self._stopped:
                        self._refuse()
                    try:
                        self._put(batch, offset, block_device.total_length(buffers), buffers)
                    except block_device.BlockWritten as written:
                        # one that was never raised: what raising leaves on it would keep the frames, and the frames it
                        results.append(block_device.BlockWritten(written.lba))
                    else:
                        results.append(None)
            finally:
                store.commit(batch)
        finally:
            self._running.pop()
        return results

    def flush(self) -> None:
        with self._call():
            self.store.flush()

    def extents(self, offset: int, length: int) -> Iterator[block_device.Extent]:
        first, count = offset >> self._shift, length >> self._shift
        end = first + count
        if end > self._blocks:
            raise block_device.OutOfRange(max(first, self._blocks))
        while first < end:
            found = []
            self._running.append(None)
            try:
                if self._stopped:
                    self._refuse()
                for start, blocks, written in self.store.extents(first, end - first):
                    kind = block_device.ExtentKind.DATA if written else block_device.ExtentKind.BLANK
                    found.append(block_device.Extent(start << self._shift, blocks << self._shift, kind))
                    first = start + blocks
                    if len(found) == EXTENTS_AT_ONCE:
                        break
            finally:
                self._running.pop()
            yield from found

    def close(self) -> None:
        if self._closed:
            return
        self._closed = self._stopped = True
        # For calls that began before: rare and short, so looking is cheaper than being told after every call.
        while self._running:
            time.sleep(0.0005)
        self.store.close()

    # -- what a snapshot needs beside it

    @property
    def reason(self) -> str | None:
        """Why it is invalid, None if it is not."""
        return self._invalid

    @property
    def syncs(self) -> thin.Syncs:
        """How often stable storage was waited for."""
        return self.store.syncs

    def invalidate(self, reason: str) -> None:
        """Give the snapshot up for ever: durable before this returns, and no read or write that begins later succeeds.
        Raises MediumError if it cannot be recorded; it is refused in this process all the same.  DeviceClosed.
        """
        with self._call():
            if self._invalid is None:
                self._invalid = reason
                self._stopped = True
            self.store.set_state(State.INVALID, self._invalid)
            self.recorded = True

    def discard(self, patience: float) -> bool:
        """Give the space of an invalid snapshot back, unless calls that began before it was are still running after
        `patience` seconds; gives whether it did.  Raises MediumError.
        """
        if self._invalid is None:
            raise ValueError("only the space of an invalid snapshot can be given back")
        end = time.monotonic() + patience
        while self._running:
            if time.monotonic() > end:
                return False
            time.sleep(0.0005)
        with self._call():
            try:
                self.store.discard()
            except OSError as error:
                raise block_device.MediumError(0, True, os_error.reason(error)) from error
        return True

    def chunks_on_their_way(self) -> list[int]:
        """The chunks with blocks that are being committed: `extents` may show them as written before they are durable.
        Raises DeviceClosed.
        """
        with self._call():
            return self.store.chunks_on_their_way()

    def set_durability(self, durability: Durability) -> None:
        """As `ThinStore.set_durability`; also DeviceClosed."""
        with self._call():
            self.store.set_durability(durability)
            self.commits_in_memory = durability is Durability.PROCESS_CRASH

    def used_bytes(self) -> int:
        """What it takes on disk, map included.  Raises DeviceClosed."""
        with self._call():
            return self.store.used_bytes()

    def written_bytes(self) -> int:
        """How much of it is written.  Raises DeviceClosed."""
        with self._call():
            return self.store.written_bytes()

    def verify(self, passed_over: pyroaring.BitMap = contents.NOTHING) -> Iterator[contents.ChunkReport]:
        """Read all that is written, but the chunks `passed_over`, and compare it with the checksums recorded; one report
        per chunk, in order of address.  Raises SnapshotInvalid, DeviceClosed between two of them.
        """
        reports = self.store.verify(passed_over)
        while True:
            with self._call():
                if self._stopped:
                    self._refuse()
                report = next(reports, None)
            if report is None:
                return
            yield report

    def check_headers(self) -> list[str]:
        """What is wrong with the superblocks and the header as they are on the disk, a phrase each.  Raises DeviceClosed."""
        with self._call():
            return self.store.check_headers()

    # -- inside

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        """Keep the device open for a call: `close` waits for it.  Raises DeviceClosed.

        Reads, writes and `extents` do the same in place, because every command pays for it.
        """
        self._running.append(None)
        try:
            self._refuse_if_closed()
            yield
        finally:
            self._running.pop()

    def _write(self, offset: int, length: int, buffers: block_device.Buffers | None, fua: bool) -> None:
        batch = thin.Batch()
        self._running.append(None)
        try:
            if self._stopped:
                self._refuse()
            self._put(batch, offset, length, buffers)
            self.store.commit(batch)
            if fua:
                self.store.flush()
        finally:
            self._running.pop()

    def _put(self, batch: thin.Batch, offset: int, length: int, buffers: block_device.Buffers | None) -> None:
        first, count = offset >> self._shift, length >> self._shift
        if first + count > self._blocks:
            raise block_device.OutOfRange(max(first, self._blocks))
        if count:
            self.store.put(batch, first, count, buffers)

    def _refuse(self) -> NoReturn:
        self._refuse_if_closed()
        raise block_device.SnapshotInvalid(self._invalid or "")

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise block_device.DeviceClosed
