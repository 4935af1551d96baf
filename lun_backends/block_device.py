# SPDX-License-Identifier: Apache-2.0
"""The contract that every layer below a LUN implements and stacks on, and its errors.

A block device is an array of `size` bytes, addressed in bytes.  Every offset and length handed to it is a multiple of
`block_size`.  Data travels as scatter lists (`Buffers`): sequences of memoryviews of bytes, whose lengths add up to the
length of the transfer.  The views belong to the caller; a device uses them only until the call returns.

Every method may be called from any number of threads at once, and returns when it is done, on the caller's thread.  A
caller that must not wait for a disk (an event loop) uses `read_now`, `write_now` and `prepare_now` instead.  They never
wait: they return True if all is done, or False, having changed nothing that matters.  The caller then lets a worker
thread do the same with `readv`, `writev` or `prepare_writes`.

| method           | blank blocks          | written blocks of a write-once device | read-only device   |
| ---------------- | --------------------- | ------------------------------------- | ------------------ |
| `readv`          | `BlankBlock`          | read                                  | read               |
| `writev`         | written               | `BlockWritten`, nothing is stored     | `WriteProtected`   |
| `write_zeroes`   | written with zeroes   | `BlockWritten`, nothing is stored     | `WriteProtected`   |
| `extents`        | `ExtentKind.BLANK`    | `ExtentKind.DATA`                     | as it is           |

(Blank blocks exist on write-once devices only; a hole in a sparse primary reads as zeroes and is `ExtentKind.HOLE`.)

Durability: `writev` returns when the data is in the device's volatile cache.  `flush` returns when all writes that had
returned before it began are on stable storage.  A device may promise more: a write-once LUN with `durability:
power-loss` commits before `writev` returns.  `fua=True` asks for stable storage for that one write.
"""

from __future__ import annotations

import abc
import contextlib
import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from lun_backends.damage import Damage, OnDamage

Buffers = Sequence[memoryview]
"""A scatter list: memoryviews of format `B`, contiguous, in order of address."""


class BlockDeviceError(Exception):
    """A block device refused or failed a request.  Subclasses say why; callers turn them into sense data or text."""


@dataclass(eq=False)
class BlankBlock(BlockDeviceError):
    """A read met a block that was never written; `lba` is the first such block of the range."""

    lba: int

    def __str__(self) -> str:
        return f"block {self.lba} was never written"


@dataclass(eq=False)
class BlockWritten(BlockDeviceError):
    """A write met a block that is already written; `lba` is the first such block of the range.  Nothing was stored."""

    lba: int

    def __str__(self) -> str:
        return f"block {self.lba} is already written"


@dataclass(eq=False)
class SpaceExhausted(BlockDeviceError):
    """There is no room to store the block at `lba`.  Nothing was stored."""

    lba: int

    def __str__(self) -> str:
        return f"no space left to store block {self.lba}"


@dataclass(eq=False)
class OutOfRange(BlockDeviceError):
    """The range reaches beyond the device; `lba` is the first block of the range that lies beyond its end."""

    lba: int

    def __str__(self) -> str:
        return f"block {self.lba} is beyond the end of the device"


@dataclass(eq=False)
class WriteProtected(BlockDeviceError):
    """The device accepts no writes."""

    def __str__(self) -> str:
        return "the device is write-protected"


@dataclass(eq=False)
class NotSupported(BlockDeviceError):
    """The device cannot do `operation` by its nature, like deallocating on a write-once LUN."""

    operation: str

    def __str__(self) -> str:
        return f"the device does not support {self.operation}"


@dataclass(eq=False)
class MediumError(BlockDeviceError):
    """The medium failed at `lba`: an I/O error, or a checksum that does not fit; `writing` is the direction."""

    lba: int
    writing: bool
    reason: str

    def __str__(self) -> str:
        return f"{'write' if self.writing else 'read'} error at block {self.lba}: {self.reason}"


@dataclass(eq=False)
class DamagedBlocks(MediumError):
    """A read met blocks that do not fit their checksum; `damage` names them.  `read_checked` can still read them."""

    damage: Damage


@dataclass(eq=False)
class CopyTimedOut(BlockDeviceError):
    """The pre-image of the block at `lba` was not preserved within `seconds`."""

    lba: int
    seconds: float

    def __str__(self) -> str:
        return f"block {self.lba} was not preserved within {self.seconds:g} s"


@dataclass(eq=False)
class SnapshotInvalid(BlockDeviceError):
    """The snapshot was invalidated (`on_error: drop-snapshot`) and must no longer be read; `reason` says why."""

    reason: str

    def __str__(self) -> str:
        return f"the snapshot is invalid: {self.reason}"


@dataclass(eq=False)
class PreserveFailed(BlockDeviceError):
    """A write was refused because the pre-image at `lba` could not be preserved (`on_error: fail-writes`); `cause` says why."""

    lba: int
    cause: BlockDeviceError

    def __str__(self) -> str:
        return f"block {self.lba} could not be preserved, so the write was refused: {self.cause}"


@dataclass(eq=False)
class StateInDoubt(BlockDeviceError):
    """A write was refused because the next start could undo it.

    A change of the volume could neither be recorded nor taken back; `reason` says which change, and why.
    """

    reason: str

    def __str__(self) -> str:
        return f"the device takes no writes until its state can be recorded: {self.reason}"


@dataclass(eq=False)
class ReservationConflict(BlockDeviceError):
    """Another initiator reserved the device; the write was refused, and nothing was changed."""

    def __str__(self) -> str:
        return "the device is reserved by another initiator"


@dataclass(eq=False)
class NoAnswer(BlockDeviceError):
    """A device of another host did not answer, or its answer was lost; `reason` says more.  The command may have been carried out."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(eq=False)
class NotReady(BlockDeviceError):
    """The device takes no commands for now; `reason` says why.  `for_good`: until an administrator does something."""

    reason: str
    for_good: bool = False

    def __str__(self) -> str:
        return f"the device is not ready: {self.reason}"


class DeviceClosed(BlockDeviceError):
    """The device was closed before the call, or while it ran."""

    def __str__(self) -> str:
        return "the device is closed"


class WouldBlock(Exception):
    """A command cannot be done without waiting, and changed nothing that matters.  Run it again where waiting is allowed.

    Block devices do not raise it: they return False.  The device server (`target.scsi`) raises it for whole commands.
    """


class ExtentKind(enum.Enum):
    """The content of an extent."""

    DATA = "data"
    HOLE = "hole"  # reads as zeroes, takes no space
    BLANK = "blank"  # never written; a read raises BlankBlock


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes from byte `offset` on, all of one kind."""

    offset: int
    length: int
    kind: ExtentKind


def total_length(buffers: Buffers) -> int:
    """Return the number of bytes in a scatter list."""
    return sum(map(len, buffers))


def write_each(device: BlockDevice, requests: Iterable[tuple[int, Buffers]]) -> Sequence[BlockWritten | None]:
    """Write each (offset, buffers) to a write-once device, one after the other; return the BlockWritten that refused each."""
    results: list[BlockWritten | None] = []
    for offset, buffers in requests:
        try:
            device.writev(offset, buffers)
        except BlockWritten as written:
            # Append a new exception.  The raised one refers to its traceback and frames, and these refer to the
            # results. This circle would keep all buffers, up to the initiator's, until the garbage collector runs.
            results.append(BlockWritten(written.lba))
        else:
            results.append(None)
    return results


def slice_buffers(buffers: Buffers, start: int, length: int) -> list[memoryview]:
    """Return the part of a scatter list that begins at byte `start` and is `length` bytes long."""
    if len(buffers) == 1:
        return [buffers[0][start : start + length]]
    taken: list[memoryview] = []
    for buffer in buffers:
        if length <= 0:
            break
        if start >= len(buffer):
            start -= len(buffer)
            continue
        piece = buffer[start : start + length]
        taken.append(piece)
        length -= len(piece)
        start = 0
    return taken


class Watcher(Protocol):
    """A user of a write-once device who knows what the device has; see `BlockDevice.watch`."""

    def ask(self, link: BlockDevice) -> None:
        """Ask the device itself from now on."""


class BlockDevice(abc.ABC):
    """One layer of a LUN; the module's docstring says what every method promises."""

    size: int
    """Bytes; a multiple of `block_size`."""
    block_size: int
    """Bytes per logical block: 512 or 4096."""
    physical_block_size: int = 0
    """Bytes per block of the disk below, if that is known to be more than `block_size`; else 0."""
    local: bool = True
    """Whether `extents` and `read_now` never wait for another host."""
    commits_in_memory: bool = False
    """Whether a write-once device commits without waiting for a disk (`durability: process-crash`)."""
    grain: int = 0
    """The bytes that a write-once device checksums together, a power of two; 0 if it does not matter how much is put."""
    lookup: int = 1 << 20
    """The bytes about which a write-once device is asked at once, a power of two of at least 4 KiB (`view_index`)."""
    read_only: ClassVar[bool] = False
    write_once: ClassVar[bool] = False

    @abc.abstractmethod
    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill `buffers` from byte `offset` on.

        Raises BlankBlock, OutOfRange, MediumError, SnapshotInvalid, DeviceClosed.
        On an error the content of the buffers is undefined.
        """

    @abc.abstractmethod
    def writev(self, offset: int, buffers: Buffers, *, fua: bool = False) -> None:
        """Write `buffers` at byte `offset`; with `fua` return only when they are on stable storage.

        Raises BlockWritten, WriteProtected, OutOfRange, SpaceExhausted, MediumError, PreserveFailed, StateInDoubt,
        ReservationConflict, DeviceClosed.
        """

    @abc.abstractmethod
    def write_zeroes(self, offset: int, length: int, *, discard: bool, fua: bool = False) -> None:
        """Make `length` bytes from `offset` on read as zeroes; with `discard` free their space where possible.

        Raise the errors of `writev`, and NotSupported if the device cannot do this by its nature (discard on
        write-once).
        """

    @abc.abstractmethod
    def flush(self) -> None:
        """Return when every write that returned before this call is on stable storage.

        Raises MediumError, DeviceClosed.
        """

    @abc.abstractmethod
    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield the extents of the range, in order and without gaps; adjacent ones of a kind are merged if that is cheap."""

    @abc.abstractmethod
    def close(self) -> None:
        """Flush and release the device; later calls raise DeviceClosed.  Closing twice is allowed."""

    def lacks(self, offset: int, length: int) -> bool:
        """Return whether all blocks of the range are blank.  Raise the errors of `extents`."""
        return all(extent.kind is ExtentKind.BLANK for extent in self.extents(offset, length))

    def watch(self, watcher: Watcher) -> bool:
        """Call `watcher.ask` before this write-once device changes in another way than by copies of its snapshot.

        That is before an initiator writes to it, and before `invalidate` returns.  The device does not keep the watcher
        alive.  Return False if the device has changed in such a way already, so that it has to be asked each time.
        """
        return True

    def read_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        """Read without waiting.  Return True if done, False if that would wait.

        If it returns False, the content of the buffers is undefined.  `length` must be the total length of `buffers` in
        bytes.  Raise the errors of `readv`.
        """
        return False

    def read_checked(self, offset: int, buffers: Buffers, on_damage: OnDamage | None = None) -> None:
        """Read as `readv`, and compare all data that has a checksum.

        Code that takes data out of a snapshot for good reads with this method.  With `on_damage`, call it for damaged
        and unreadable blocks instead of raising an error.  Damaged blocks are read as they are, and unreadable blocks
        as zeroes.  A device without checksums only reads.  Raise the errors of `readv`.
        """
        self.readv(offset, buffers)

    def write_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        """Write without waiting.  Return True if done, False if that would wait.

        If it returns False, a part of the data may be written.  `length` must be the total length of `buffers` in
        bytes.  Raise the errors of `writev`.
        """
        return False

    def prepare_writes(self, ranges: Sequence[tuple[int, int]]) -> None:  # noqa: B027 - most devices have nothing to do
        """Do the work now that each of many coming writes would wait for.

        Copy-on-write preserves the pre-images of all of them with one commit.  `ranges` are (offset, length) in bytes.
        This is only a hint.  It raises no error, because the write itself meets the error again.
        """

    def prepare_now(self, ranges: Sequence[tuple[int, int]]) -> bool:
        """Prepare as many of the writes as is possible without waiting.

        Return False if nothing was prepared: there is nothing to do, or all of it would wait.  Then another try of the
        writes is futile.
        """
        return False

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[BlockDevice]:
        """Let running writes end, and hold all other writes to this device while the context is open.

        Yield a device through which the holder reads and writes (COMPARE AND WRITE, ORWRITE).  Raise NotSupported if
        the device cannot hold writes.
        """
        raise NotSupported("atomic read-modify-write")
        yield self  # never reached: it makes this function a generator, as contextmanager needs
