# SPDX-License-Identifier: Apache-2.0
"""Moves the pre-images of a snapshot in deletion to the next older one (rule 8, lun_backends/README.md).

A block goes down only where the older snapshot has none of its own: it is a write-once write, which is refused where there is
one.  Each batch is durable before the next one starts.  A move that is interrupted is simply run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lun_backends import block_device, preserving
from lun_backends.block_device import Buffers, ExtentKind

_BATCH = 8 << 20  # bytes per commit


def chunks(device: block_device.BlockDevice, chunk_size: int) -> Iterator[tuple[int, int]]:
    """Yield (chunk, bytes written in it) for every chunk of a write-once device that has any, in order."""
    current, written = -1, 0
    for extent in device.extents(0, device.size):
        if extent.kind is ExtentKind.BLANK:
            continue
        offset, end = extent.offset, extent.offset + extent.length
        while offset < end:
            chunk = offset // chunk_size
            stop = min(end, (chunk + 1) * chunk_size)
            if chunk != current:
                if written:
                    yield current, written
                current, written = chunk, 0
            written += stop - offset
            offset = stop
    if written:
        yield current, written


def move_down(
    source: block_device.BlockDevice,
    target: preserving.WriteOnceSide,
    chunk_size: int,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> bool:
    """Put all blocks that `source` has and `target` lacks into `target`.  Return False if `cancelled` stopped it.

    Blocks beyond the end of `target` are left out: the volume was smaller when `target` was taken.

    Calls `progress` with (bytes looked at, bytes in all) after every batch.  Raises the errors of reading and writing.
    """
    total = sum(written for _, written in chunks(source, chunk_size))
    done = 0
    buffer = memoryview(bytearray(chunk_size))
    for batch in _batches(_pieces(source, target.size, chunk_size)):
        if cancelled is not None and cancelled():
            return False
        refused = _put(source, target, batch, buffer)
        while refused:
            blank = [
                (extent.offset, extent.length)
                for offset, length in refused
                for extent in target.extents(offset, length)
                if extent.kind is ExtentKind.BLANK
            ]
            refused = _put(source, target, blank, buffer) if blank else []
        done += sum(length for _, length in batch)
        if progress is not None:
            progress(done, total)
    return True


def _pieces(source: block_device.BlockDevice, size: int, chunk_size: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of all that is written below `size`; no piece crosses the end of a chunk."""
    for extent in source.extents(0, min(size, source.size)):
        if extent.kind is not ExtentKind.BLANK:
            offset, end = extent.offset, extent.offset + extent.length
            while offset < end:
                stop = min(end, (offset // chunk_size + 1) * chunk_size)
                yield offset, stop - offset
                offset = stop


def _batches(pieces: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    batch: list[tuple[int, int]] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += piece[1]
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _put(
    source: block_device.BlockDevice,
    target: preserving.WriteOnceSide,
    pieces: list[tuple[int, int]],
    buffer: memoryview,
) -> list[tuple[int, int]]:
    """Write `pieces` with one commit.  Return those that met written blocks."""

    def requests() -> Iterator[tuple[int, Buffers]]:
        for offset, length in pieces:
            view = [buffer[:length]]
            source.readv(offset, view)
            yield offset, view

    results = target.put_many(requests())
    return [piece for piece, refused in zip(pieces, results, strict=True) if refused is not None]
