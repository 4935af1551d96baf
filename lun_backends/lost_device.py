# SPDX-License-Identifier: Apache-2.0
"""What stands in a volume's chain for a snapshot whose files are missing or damaged.

Everything asked of it answers SnapshotInvalid.  So do the views of all older snapshots where they need it - what it
held is lost to them too - and nothing ever reads around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, NoReturn

from lun_backends import block_device
from lun_backends.block_device import Buffers, Extent


class LostDevice(block_device.BlockDevice):
    """A write-once device of which only size and `reason` are known.

    `recorded` tells whether the loss is on disk, too: if not, the files may be good again at the next open, so nothing may
    be done until then that the snapshot would have had to know of.
    """

    write_once: ClassVar[bool] = True

    def __init__(self, size: int, block_size: int, reason: str, *, recorded: bool) -> None:
        self.size = size
        self.block_size = block_size
        self.reason = reason
        self.recorded = recorded

    def used_bytes(self) -> int:
        """Nothing that anyone could count."""
        return 0

    def written_bytes(self) -> int:
        """Nothing that could be read."""
        return 0

    def _refuse(self) -> NoReturn:
        raise block_device.SnapshotInvalid(self.reason)

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
        """As `WriteOnce.put_many`."""
        self._refuse()

    def flush(self) -> None:
        """Nothing is ever waiting."""

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._refuse()

    def close(self) -> None:
        """There is nothing to release."""
