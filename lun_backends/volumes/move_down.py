# SPDX-License-Identifier: Apache-2.0
"""Moves the pre-images of a snapshot in deletion to the next older one (rule 8, lun_backends/README.md).

A block goes down only where the older snapshot has none of its own: a write-once write, refused where it has.  What
went down is durable before the next batch starts; a move that is interrupted is simply run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lun_backends import block_device, preserving
from lun_backends.block_device import Buffers, ExtentKind

_BATCH = 8 << 20  # bytes per commit


def chunks(device: block_device.BlockDevice, chunk_size: int) -> Iterator[tuple[int, int]]:
    """(chunk, bytes written in it) of every chunk of a write-once device that has any, in order."""
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
    """Put all that `source` has and `target` has not into `target`; gives False if `cancelled` stopped it.  (A volume that
    was smaller when `target` was taken had nothing beyond its end.)

    `progress` gets (bytes looked at, bytes in all) after every batch.  Raises what reading and writing raise.
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
    """(offset, length) of all that is written below `size`, no piece across a chunk's end."""
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
    """One commit of `pieces`; gives those that met written blocks."""

    def requests() -> Iterator[tuple[int, Buffers]]:
        for offset, length in pieces:
            view = [buffer[:length]]
            source.readv(offset, view)
            yield offset, view

    results = target.put_many(requests())
    return [piece for piece, refused in zip(pieces, results, strict=True) if refused is not None]
