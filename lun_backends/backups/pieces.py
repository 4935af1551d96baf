# SPDX-License-Identifier: Apache-2.0
"""The content of a snapshot's view, piece by piece, as an export reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lun_backends import block_device
from lun_backends.block_device import Extent, ExtentKind
from lun_backends.damage import OnDamage

_STEP = 1 << 20  # bytes read at a time


@dataclass(frozen=True, slots=True)
class ExportPiece:
    """`length` bytes from byte `offset` on: `data`, or None for a hole.  The data is valid until the next piece."""

    offset: int
    length: int
    data: memoryview | None


def export(view: block_device.BlockDevice, on_damage: OnDamage | None = None) -> Iterator[ExportPiece]:
    """Yield all of a device, in pieces of at most 1 MiB of data.  A hole is one piece, however long.

    All data is compared with its checksum.  `on_damage` and the errors are those of `read_checked`.
    """
    whole = memoryview(bytearray(_STEP))
    for extent in view.extents(0, view.size):
        yield from _read(view, extent, whole, on_damage)


def _read(
    view: block_device.BlockDevice, extent: Extent, whole: memoryview, on_damage: OnDamage | None
) -> Iterator[ExportPiece]:
    if extent.kind is ExtentKind.HOLE:
        yield ExportPiece(extent.offset, extent.length, None)
        return
    end = extent.offset + extent.length
    for offset in range(extent.offset, end, _STEP):
        piece = whole[: min(_STEP, end - offset)]
        view.read_checked(offset, [piece], on_damage)
        yield ExportPiece(offset, len(piece), piece)
