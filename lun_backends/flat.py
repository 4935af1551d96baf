# SPDX-License-Identifier: Apache-2.0
"""A file or a block device as it is: the primary of a volume.

Every byte of the device is the byte at the same offset of the file.  I/O is buffered (the default) or uses `O_DIRECT`.
Then the caller's buffers go straight to the device if their addresses allow it, else through an aligned buffer of this
module.

These operations are done without waiting:

| operation   | buffered                                                                        | O_DIRECT |
| ----------- | ------------------------------------------------------------------------------- | -------- |
| `read_now`  | `preadv2(RWF_NOWAIT)`: done if the page cache has all of it                     | nothing  |
| `write_now` | a write into the page cache, if no page has to be read first and the device is  | nothing  |
|             | not known to be slow                                                            |          |

A write into the page cache can still wait (dirty-page throttling, a journal commit, a frozen file system), even with
RWF_NOWAIT, which ext4 does not have at all.  So it is a call in place (`in_place`): if it waits, the loop goes on without
it.  And each is timed.  If two within 32 writes took longer than 2 ms, or a single one made the loop wait, workers do the
next writes, until 64 of them in a row were quick.  A single slow write proves nothing, because on a busy machine the
scheduler may have taken the time.

Closing while calls run is safe: the descriptor lives as long as the last call that uses it.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import get_ident
from time import monotonic

from lun_backends import block_device, in_place
from lun_backends.block_device import Buffers, Extent, ExtentKind
from lun_backends.files import backing_file, os_error, storage_io

_PAGE = mmap.PAGESIZE
_SLOW_WRITE = 0.002  # seconds; a copy into the page cache takes microseconds, so a slower one has waited for the disk
_SUSPICION = 32  # writes for which a slow one is remembered
_PROOF = 64  # quick writes of workers in a row, after which a slow device is trusted again
_BOUNCE = 1 << 20  # bytes moved at a time through an aligned buffer
_IOV_MAX = 1024  # buffers per system call (POSIX IOV_MAX on Linux)


class Flat(block_device.BlockDevice):
    """The file or block device at `path`; `direct` bypasses the page cache, `size` (bytes) leaves the rest unused.

    The file is locked, so it has one owner.  Raises CannotOpen.
    """

    def __init__(
        self,
        path: Path,
        *,
        block_size: int = 512,
        direct: bool = False,
        read_only: bool = False,
        size: int | None = None,
        io: storage_io.StorageIO = storage_io.SYSTEM,
    ) -> None:
        self.path = path
        self.block_size = block_size
        self.direct = direct
        self.read_only = read_only  # type: ignore[misc] # a class variable elsewhere, an option of each instance here
        descriptor = self._open()
        self._is_file = stat.S_ISREG(os.fstat(descriptor.fd).st_mode)
        self.physical_block_size = 0 if self._is_file else backing_file.physical_block_size(descriptor.fd)
        actual = os.lseek(descriptor.fd, 0, os.SEEK_END)
        self.size = actual - actual % block_size if size is None else size
        if not self.size:
            raise backing_file.CannotOpen(
                path, f"it is smaller than one block of {block_size} bytes", "make it larger first"
            )
        if actual < self.size:
            raise backing_file.CannotOpen(
                path, f"it has {actual} bytes, not {self.size}", "restore the part that was cut off"
            )
        self._descriptor = descriptor
        # The flags of a read that must not wait; None if the kernel cannot read without waiting.
        self._nowait_flags = self._probe_nowait()
        self._write_flags = (
            0 if direct else os.RWF_NOWAIT
        )  # of a write that must not wait; 0 once the kernel refused them
        self._proof = 0  # quick writes of workers that are needed before the next write in place
        self.began = 0.0  # see in_place.Caller
        self.executes = True
        self._suspicion = 0  # writes left in which another slow one counts
        # In memory there is no disk to wait for: a slow write waited for the processor, as a worker would.
        self._waits = backing_file.file_system(descriptor.fd) not in backing_file.MEMORY_FILE_SYSTEMS
        self._io = io
        # The plain call where possible, because every write makes it.
        self._pwritev: Callable[[int, Buffers, int, int], int] = (
            os.pwritev if io is storage_io.SYSTEM else _Recorded(io)
        )
        self._scratch = [memoryview(bytearray(_PAGE))]

    @property
    def descriptor(self) -> backing_file.Descriptor:
        """The open file.  A caller that keeps it keeps the lock, too, even after the device is closed."""
        return self._descriptor

    def _open(self) -> backing_file.Descriptor:
        flags = os.O_CLOEXEC | (os.O_RDONLY if self.read_only else os.O_RDWR) | (os.O_DIRECT if self.direct else 0)
        try:
            kind = self.path.stat().st_mode
            if stat.S_ISBLK(kind) and not self.read_only:
                flags |= os.O_EXCL  # EBUSY if it is mounted or otherwise in use by this kernel
            elif not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
                raise backing_file.CannotOpen(
                    self.path, "it is neither a file nor a block device", "give the path of one"
                )
            descriptor = backing_file.Descriptor(os.open(self.path, flags))
        except FileNotFoundError as error:
            raise backing_file.CannotOpen(self.path, "it does not exist", "create it, or correct the path") from error
        except PermissionError as error:
            raise backing_file.CannotOpen(
                self.path, "permission denied", "run as a user who may read and write it"
            ) from error
        except OSError as error:
            remedy = "check what uses it" if error.errno == errno.EBUSY else "check the path and the file system"
            if error.errno == errno.EINVAL and self.direct:
                remedy = "its file system has no O_DIRECT: use it buffered"
            raise backing_file.CannotOpen(self.path, os_error.reason(error), remedy) from error
        try:
            fcntl.flock(descriptor.fd, fcntl.LOCK_NB | (fcntl.LOCK_SH if self.read_only else fcntl.LOCK_EX))
        except OSError as error:
            raise backing_file.CannotOpen(
                self.path, "another process has it open", "stop the other process first"
            ) from error
        if self.direct:
            self._check_direct(descriptor.fd)
        return descriptor

    def found(self) -> os.stat_result:
        """Return what `stat` says of the open file or device.  Raises OSError if it is closed."""
        return os.fstat(self._descriptor.fd)

    def _check_direct(self, fd: int) -> None:
        """Raise CannotOpen unless O_DIRECT takes blocks of this size: read a block that has an odd number."""
        with mmap.mmap(-1, _PAGE) as page, memoryview(page) as view, view[: self.block_size] as block:
            try:
                os.preadv(fd, [block], self.block_size)
            except OSError as error:
                remedy = "use 4096-byte blocks, or the volume buffered"
                raise backing_file.CannotOpen(
                    self.path, f"O_DIRECT refuses {self.block_size}-byte blocks", remedy
                ) from error

    def _probe_nowait(self) -> int | None:
        if self.direct:
            return None
        try:
            os.preadv(self._descriptor.fd, [bytearray(self.block_size)], 0, os.RWF_NOWAIT)
        except BlockingIOError:
            return os.RWF_NOWAIT
        except OSError:
            return 0 if backing_file.file_system(self._descriptor.fd) in backing_file.MEMORY_FILE_SYSTEMS else None
        return os.RWF_NOWAIT

    def readv(self, offset: int, buffers: Buffers) -> None:
        length = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
        if offset + length > self.size:
            raise self._out_of_range(offset)
        descriptor = self._descriptor
        try:
            if os.preadv(descriptor.fd, buffers, offset) == length:
                return
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise self._error(error, offset, writing=False) from error
        self._move(descriptor.fd, offset, buffers, writing=False)

    def read_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        if offset + length > self.size:
            raise self._out_of_range(offset)
        flags = self._nowait_flags
        if flags is None:
            return False
        descriptor = self._descriptor
        try:
            return os.preadv(descriptor.fd, buffers, offset, flags) == length
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINVAL):
                raise self._error(error, offset, writing=False) from error
            return False

    def writev(self, offset: int, buffers: Buffers, *, fua: bool = False) -> None:
        length = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
        if offset + length > self.size:
            raise self._out_of_range(offset)
        if self.read_only:
            raise block_device.WriteProtected
        descriptor = self._descriptor
        began = monotonic() if self._proof and not fua else 0.0
        try:
            if self._pwritev(descriptor.fd, buffers, offset, os.RWF_DSYNC if fua else 0) == length:
                if began:
                    self._proof = max(0, self._proof - 1) if monotonic() - began <= _SLOW_WRITE else _PROOF
                return
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise self._error(error, offset, writing=True) from error
        self._move(descriptor.fd, offset, buffers, writing=True, flags=os.RWF_DSYNC if fua else 0)

    def write_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        if offset + length > self.size:
            raise self._out_of_range(offset)
        if self.read_only:
            raise block_device.WriteProtected
        if self._nowait_flags is None or self._proof:
            return False
        if not self._waits:
            return self._write_in_place(offset, length, buffers)
        loop = in_place.LOOPS.get(get_ident())
        if loop is not None and not loop.open:
            return False
        self.began = monotonic()
        if loop is None:
            done = self._write_in_place(offset, length, buffers)
        else:
            loop.enter(self)
            try:
                done = self._write_in_place(offset, length, buffers)
            finally:
                loop.leave()
        self._judge(monotonic() - self.began)
        return done

    def _write_in_place(self, offset: int, length: int, buffers: Buffers) -> bool:
        """Write without waiting, as far as the kernel can tell; return False if a worker must write."""
        descriptor = self._descriptor
        if self._write_flags:
            try:
                # If only a part could be written, a worker writes it again, along with the rest.
                return self._pwritev(descriptor.fd, buffers, offset, self._write_flags) == length
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return False
                if error.errno != errno.EOPNOTSUPP:
                    raise self._error(error, offset, writing=True) from error
                self._write_flags = 0
        if (offset | length) & (_PAGE - 1) and not self._edges_cached(descriptor, offset, offset + length):
            return False
        try:
            return self._pwritev(descriptor.fd, buffers, offset, 0) == length
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False  # more buffers than one call takes
            raise self._error(error, offset, writing=True) from error

    def distrust(self) -> None:
        """Let workers do the writes, until they have found the device quick."""
        self._proof = _PROOF

    def _judge(self, seconds: float) -> None:
        """Note how many seconds a write took that should not have waited."""
        if seconds > _SLOW_WRITE:
            if self._suspicion:
                self._proof = _PROOF
            self._suspicion = _SUSPICION
        elif self._suspicion:
            self._suspicion -= 1

    def _edges_cached(self, descriptor: backing_file.Descriptor, start: int, end: int) -> bool:
        """Return whether the kernel could write from byte `start` to `end` without reading a page from the disk first.

        It could if the pages that the write covers only in part are cached.  All threads share the scratch page,
        because no thread looks at its content.
        """
        flags = self._nowait_flags or 0
        for edge in {start - start % _PAGE if start % _PAGE else -1, end - end % _PAGE if end % _PAGE else -1}:
            if edge >= 0:
                try:
                    if os.preadv(descriptor.fd, self._scratch, edge, flags) < min(_PAGE, self.size - edge):
                        return False
                except OSError:  # EAGAIN; the write itself will meet and report any other error
                    return False
        return True

    def _move(self, fd: int, offset: int, buffers: Buffers, *, writing: bool, flags: int = 0) -> None:
        """Transfer the long way: after a short transfer, for more buffers than one call takes, and for unaligned ones."""
        views = [view for view in buffers if len(view)]
        while views:
            batch = views[:_IOV_MAX]
            try:
                done = self._pwritev(fd, batch, offset, flags) if writing else os.preadv(fd, batch, offset)
            except OSError as error:
                if error.errno == errno.EINVAL and self.direct:
                    self._bounce(fd, offset, views, writing=writing, flags=flags)
                    return
                raise self._error(error, offset, writing=writing) from error
            if not done:
                reason = "the file ends before the device does"
                raise block_device.MediumError(offset // self.block_size, writing, reason)
            offset += done
            while done:
                taken = min(done, len(views[0]))
                done -= taken
                if taken == len(views[0]):
                    views.pop(0)
                else:
                    views[0] = views[0][taken:]

    def _bounce(self, fd: int, offset: int, views: list[memoryview], *, writing: bool, flags: int) -> None:
        """Transfer through one page-aligned buffer, for buffers that O_DIRECT does not take."""
        left = block_device.total_length(views)
        with mmap.mmap(-1, min(_BOUNCE, left)) as aligned, memoryview(aligned) as whole:
            while left:
                length = min(_BOUNCE, left)
                with whole[:length] as piece:
                    if writing:
                        _copy(views, piece, into=True)
                    try:
                        done = self._pwritev(fd, [piece], offset, flags) if writing else os.preadv(fd, [piece], offset)
                    except OSError as error:
                        raise self._error(error, offset, writing=writing) from error
                    if done != length:
                        reason = f"{done} of {length} bytes were moved"
                        raise block_device.MediumError((offset + done) // self.block_size, writing, reason)
                    if not writing:
                        _copy(views, piece, into=False)
                offset += length
                left -= length

    def write_zeroes(self, offset: int, length: int, *, discard: bool, fua: bool = False) -> None:
        if offset + length > self.size:
            raise self._out_of_range(offset)
        if self.read_only:
            raise block_device.WriteProtected
        descriptor = self._descriptor
        mode = storage_io.FALLOC_KEEP_SIZE | (storage_io.FALLOC_PUNCH_HOLE if discard else storage_io.FALLOC_ZERO_RANGE)
        if length and not self._deallocate(descriptor.fd, mode, offset, length):
            step = min(length, _BOUNCE)
            with mmap.mmap(-1, step) as zeroes, memoryview(zeroes) as whole:
                for start in range(offset, offset + length, step):
                    with whole[: min(step, offset + length - start)] as piece:
                        self._move(descriptor.fd, start, [piece], writing=True)
        if fua:
            self.flush()

    def _deallocate(self, fd: int, mode: int, offset: int, length: int) -> bool:
        """Let the file system make zeroes; return whether it did."""
        if self._io is not storage_io.SYSTEM:
            return False  # so that a recorder or injector sees the zeroes as writes
        try:
            storage_io.fallocate(fd, mode, offset, length)
        except OSError as error:
            # EINVAL: a device whose own blocks are larger
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.EINTR):
                return False
            raise self._error(error, offset, writing=True) from error
        return True

    def make_room(self, size: int) -> None:
        """Make the file at least `size` bytes long, durably, or check that the block device is.

        `self.size` stays as it is until its owner sets it.  Raises CannotOpen, SpaceExhausted, MediumError,
        DeviceClosed.
        """
        descriptor = self._descriptor
        if descriptor.fd < 0:
            raise block_device.DeviceClosed
        try:
            actual = os.lseek(descriptor.fd, 0, os.SEEK_END)
            if actual < size and not self._is_file:
                raise backing_file.CannotOpen(
                    self.path, f"it has {actual} bytes, not {size}", "enlarge the device first"
                )
            if actual < size:
                self._io.ftruncate(descriptor.fd, size)
                self._io.fdatasync(descriptor.fd)
        except OverflowError as error:
            raise backing_file.too_large(self.path, size) from error
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise backing_file.too_large(self.path, size) from error
            raise self._error(error, self.size, writing=True) from error

    def flush(self) -> None:
        descriptor = self._descriptor
        if descriptor.fd < 0:
            raise block_device.DeviceClosed
        try:
            self._io.fdatasync(descriptor.fd)
        except OSError as error:
            raise self._error(error, 0, writing=True) from error

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        if offset + length > self.size:
            raise self._out_of_range(offset)
        descriptor = self._descriptor
        if descriptor.fd < 0:
            raise block_device.DeviceClosed
        end = offset + length
        while offset < end:
            try:
                data = os.lseek(descriptor.fd, offset, os.SEEK_DATA) if self._is_file else offset
                stop = os.lseek(descriptor.fd, data, os.SEEK_HOLE) if self._is_file and data < end else end
            except OSError as error:
                if error.errno != errno.ENXIO:  # ENXIO: no data from here to the end of the file
                    raise self._error(error, offset, writing=False) from error
                data = stop = end
            # A file system may answer in smaller units than logical blocks: a block with any data in it is data.
            data = max(offset, data - data % self.block_size)
            if data > offset:
                yield Extent(offset, min(data, end) - offset, ExtentKind.HOLE)
            offset = data
            if offset < end:
                stop = min(stop + -stop % self.block_size, end)
                yield Extent(offset, stop - offset, ExtentKind.DATA)
                offset = stop

    def close(self) -> None:
        if self._descriptor.fd < 0:
            return
        try:
            if not self.read_only:
                self.flush()
        finally:
            self._descriptor = backing_file.Descriptor(-1)

    def _out_of_range(self, offset: int) -> block_device.OutOfRange:
        return block_device.OutOfRange(max(offset, self.size) // self.block_size)

    def _error(self, error: OSError, offset: int, *, writing: bool) -> block_device.BlockDeviceError:
        """Return the contract's error for an error of the kernel.

        The kernel does not say where in the range it failed, so the error names the range's first block.
        """
        lba = offset // self.block_size
        match error.errno:
            case errno.EBADF if self._descriptor.fd < 0:
                return block_device.DeviceClosed()
            case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
                return block_device.SpaceExhausted(lba)
            case errno.EROFS | errno.EPERM if writing:
                return block_device.WriteProtected()
            case errno.EBADE:  # Linux turns RESERVATION CONFLICT into this
                return block_device.ReservationConflict()
        return block_device.MediumError(lba, writing, os_error.reason(error))


class _Recorded:
    """A `pwritev` that takes flags, over the `pwritev` of a `StorageIO`, which takes none."""

    def __init__(self, io: storage_io.StorageIO) -> None:
        self._io = io

    def __call__(self, fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        done = self._io.pwritev(fd, buffers, offset)
        if flags & os.RWF_DSYNC:
            self._io.fdatasync(fd)
        return done


def _copy(views: list[memoryview], flat: memoryview, *, into: bool) -> None:
    """Move the next `len(flat)` bytes of the scatter list into `flat`, or out of it, and drop them from the list."""
    at = 0
    while at < len(flat):
        view = views.pop(0)
        length = min(len(view), len(flat) - at)
        if into:
            flat[at : at + length] = view[:length]
        else:
            view[:length] = flat[at : at + length]
        at += length
        if length < len(view):
            views.insert(0, view[length:])
