# SPDX-License-Identifier: Apache-2.0
"""A block device in memory that keeps the contract exactly, for tests of everything that stacks on a block device.

It keeps the contract of `lun_backends.block_device` as a primary or (`write_once=True`) as a write-once device.  It checks that
its callers keep the contract, too (alignment, lengths).  A test can make it misbehave:

* `blocking=True`: nothing is done without waiting;
* `inject(method, error, times)`: the next calls of that method raise the error and change nothing;
* `before`: called with (method, offset, length) before every operation, without the lock held; it may wait, raise,
  or return False to say that the operation would wait for the disk.

`calls` counts the calls of each method that were carried out.  `prepared` lists the ranges of `prepare_writes` and
`prepare_now`.
"""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

from lun_backends import block_device
from lun_backends.block_device import Buffers, Extent, ExtentKind

MIB = 1 << 20


class MemoryDevice(block_device.BlockDevice):
    """A device of `size` bytes; unwritten blocks are holes (primary) or blank (write-once)."""

    def __init__(
        self,
        size: int = MIB,
        *,
        block_size: int = 512,
        write_once: bool = False,
        read_only: bool = False,
        blocking: bool = False,
    ) -> None:
        assert size > 0
        assert size % block_size == 0
        self.size = size
        self.block_size = block_size
        self.write_once = write_once  # type: ignore[misc] # a class variable elsewhere, an option of each instance here
        self.read_only = read_only  # type: ignore[misc] # likewise
        self.blocking = blocking
        self.data = bytearray(size)
        self.written = bytearray(size // block_size)  # 1: the block holds data
        self.before: Callable[[str, int, int], object] | None = None
        self.calls: collections.Counter[str] = collections.Counter()
        self.prepared: list[list[tuple[int, int]]] = []
        self.closed = False
        self._errors: dict[str, list[Exception]] = collections.defaultdict(list)
        self._lock = threading.RLock()

    def inject(self, method: str, error: Exception, times: int = 1) -> None:
        """Let the next `times` calls of `method` raise `error`."""
        self._errors[method] += [error] * times

    def fill(self, data: bytes, offset: int = 0) -> None:
        """Store `data` without checking any rule."""
        self.data[offset : offset + len(data)] = data
        self._mark(offset, len(data), 1)

    def readv(self, offset: int, buffers: Buffers) -> None:
        self._enter("readv", offset, block_device.total_length(buffers))
        self._read(offset, buffers)

    def read_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        assert length == block_device.total_length(buffers)
        if self.blocking or not self._enter("readv", offset, length):
            return False
        self._read(offset, buffers)
        return True

    def _read(self, offset: int, buffers: Buffers) -> None:
        length = block_device.total_length(buffers)
        with self._lock:
            if self.write_once:
                blank = self._find(offset, length, 0)
                if blank is not None:
                    raise block_device.BlankBlock(blank)
            for buffer in buffers:
                buffer[:] = self.data[offset : offset + len(buffer)]
                offset += len(buffer)

    def writev(self, offset: int, buffers: Buffers, *, fua: bool = False) -> None:
        self._enter("writev", offset, block_device.total_length(buffers))
        self._write(offset, buffers, fua=fua)

    def write_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        assert length == block_device.total_length(buffers)
        if self.blocking or not self._enter("writev", offset, length):
            return False
        self._write(offset, buffers)
        return True

    def _write(self, offset: int, buffers: Buffers, *, fua: bool = False) -> None:
        length = block_device.total_length(buffers)
        with self._lock:
            self._check_write(offset, length)
            self._mark(offset, length, 1)
            for buffer in buffers:
                self.data[offset : offset + len(buffer)] = buffer
                offset += len(buffer)
            if fua:
                self.calls["fua"] += 1

    def write_zeroes(self, offset: int, length: int, *, discard: bool, fua: bool = False) -> None:
        self._enter("write_zeroes", offset, length)
        with self._lock:
            if discard and self.write_once and not self.read_only:
                raise block_device.NotSupported("deallocating")
            self._check_write(offset, length)
            self.data[offset : offset + length] = bytes(length)
            self._mark(offset, length, 0 if discard else 1)
            if fua:
                self.calls["fua"] += 1

    def flush(self) -> None:
        self._enter("flush", 0, 0)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._enter("extents", offset, length)
        unwritten = ExtentKind.BLANK if self.write_once else ExtentKind.HOLE
        end = offset + length
        while offset < end:
            kind = self.written[offset // self.block_size]
            with self._lock:
                other = self._find(offset, end - offset, 1 - kind)
            stop = end if other is None else other * self.block_size
            yield Extent(offset, stop - offset, ExtentKind.DATA if kind else unwritten)
            offset = stop

    def close(self) -> None:
        self.closed = True

    def prepare_writes(self, ranges: Sequence[tuple[int, int]]) -> None:
        self.prepared.append(list(ranges))

    def prepare_now(self, ranges: Sequence[tuple[int, int]]) -> bool:
        if self.blocking:
            return False
        self.prepared.append(list(ranges))
        return True

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[block_device.BlockDevice]:
        if self.write_once:
            raise block_device.NotSupported("atomic read-modify-write")
        if self.read_only:
            raise block_device.WriteProtected
        with self._lock:
            self.calls["exclusive"] += 1
            yield self

    def _enter(self, method: str, offset: int, length: int) -> bool:
        """Begin an operation: check the caller's side of the contract, then raise the error that a test injected.

        Return False if `before` said that the operation would wait.
        """
        assert offset >= 0
        assert offset % self.block_size == 0
        assert length % self.block_size == 0
        if self.before is not None and self.before(method, offset, length) is False:
            return False
        if self._errors[method]:
            raise self._errors[method].pop(0)
        if self.closed:
            raise block_device.DeviceClosed
        if offset + length > self.size:
            raise block_device.OutOfRange(max(offset, self.size) // self.block_size)
        self.calls[method] += 1
        return True

    def _check_write(self, offset: int, length: int) -> None:
        if self.read_only:
            raise block_device.WriteProtected
        if self.write_once:
            written = self._find(offset, length, 1)
            if written is not None:
                raise block_device.BlockWritten(written)

    def _find(self, offset: int, length: int, state: int) -> int | None:
        """Return the first block of the range in that state."""
        lba = self.written.find(state, offset // self.block_size, (offset + length) // self.block_size)
        return None if lba < 0 else lba

    def _mark(self, offset: int, length: int, state: int) -> None:
        blocks = length // self.block_size
        first = offset // self.block_size
        self.written[first : first + blocks] = bytes([state]) * blocks
