# SPDX-License-Identifier: Apache-2.0
"""The content of a snapshot's view, piece by piece, as an export reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lun_backends import block_device
from lun_backends.block_device import Extent, ExtentKind

_STEP = 1 << 20  # bytes read at a time


@dataclass(frozen=True, slots=True)
class ExportPiece:
    """`length` bytes from byte `offset` on: `data`, or None for a hole.  The data is valid until the next piece is asked for."""

    offset: int
    length: int
    data: memoryview | None


def export(view: block_device.BlockDevice) -> Iterator[ExportPiece]:
    """Yield all of a device, in pieces of at most 1 MiB of data.  A hole is one piece, however long.  Raises what reads raise."""
    whole = memoryview(bytearray(_STEP))
    for extent in view.extents(0, view.size):
        yield from _read(view, extent, whole)


def _read(view: block_device.BlockDevice, extent: Extent, whole: memoryview) -> Iterator[ExportPiece]:
    if extent.kind is ExtentKind.HOLE:
        yield ExportPiece(extent.offset, extent.length, None)
        return
    end = extent.offset + extent.length
    for offset in range(extent.offset, end, _STEP):
        piece = whole[: min(_STEP, end - offset)]
        view.readv(offset, [piece])
        yield ExportPiece(offset, len(piece), piece)
