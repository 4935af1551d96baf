# SPDX-License-Identifier: Apache-2.0
"""The stand-in, in a volume's chain, for a snapshot whose files are missing or damaged.

Every read and write of it raises SnapshotInvalid.  So do the views of all older snapshots where they need it, because its
pre-images are lost to them, too.  Nothing ever reads around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, NoReturn

from lun_backends import block_device
from lun_backends.block_device import Buffers, Extent


class LostDevice(block_device.BlockDevice):
    """A write-once device with only a size and the `reason` of its loss.

    `recorded` says whether the loss is on disk, too.  If it is not, the files may be good again at the next open.  Until then,
    no change may be made that the snapshot would have had to preserve.
    """

    write_once: ClassVar[bool] = True

    def __init__(self, size: int, block_size: int, reason: str, *, recorded: bool) -> None:
        self.size = size
        self.block_size = block_size
        self.reason = reason
        self.recorded = recorded

    def used_bytes(self) -> int:
        """Return 0: the files cannot be looked at."""
        return 0

    def written_bytes(self) -> int:
        """Return 0: no block can be read."""
        return 0

    @property
    def damaged_chunks(self) -> int:
        """Return 0: all of it is lost, and `reason` says so."""
        return 0

    def _refuse(self) -> NoReturn:
        raise block_device.SnapshotInvalid(self.reason)

    def watch(self, watcher: block_device.Watcher) -> bool:
        return False

    def readv(self, offset: int, buffers: Buffers) -> None:
        self._refuse()

    def read_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        self._refuse()

    def writev(self, offset: int, buffers: Buffers, *, fua: bool = False) -> None:
        self._refuse()

    def write_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        self._refuse()

    def write_zeroes(self, offset: int, length: int, *, discard: bool, fua: bool = False) -> None:
        self._refuse()

    def put_many(self, requests: Iterable[tuple[int, Buffers]]) -> Sequence[block_device.BlockWritten | None]:
        """Refuse, as every write."""
        self._refuse()

    def flush(self) -> None:
        """Do nothing: there are no writes to wait for."""

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._refuse()

    def close(self) -> None:
        """Do nothing: there is nothing to release."""
