# SPDX-License-Identifier: Apache-2.0
"""The move of the pre-images of a snapshot in deletion to the next older one (rule 8, lun_backends/README.md).

A block moves down only if the older snapshot has none of its own: the move is a write-once write, which is refused if
there is one.  Each batch is durable before the next one starts.  An interrupted move is run again.

The mark of a chunk that an initiator wrote to (`stores.outside`) goes along, too.

Rot must not become good data by a move.  So every unit (`stores.reader`) is compared with its checksum when it is read, and
the stored checksum moves with it:

| unit of the source               | the older snapshot lacks all of it       | the older snapshot has a part of it already    |
| -------------------------------- | ---------------------------------------- | ---------------------------------------------- |
| fits its checksum                | moved with its checksum                  | moved; the whole gets a checksum of its own    |
| does not fit: it is damaged      | moved with its checksum: damaged there   | the move stops: the damage would be forgotten  |
| has no checksum                  | moved without one: unverifiable there    | moved; the whole gets none                     |
| cannot be read                   | the move stops; with `accept_loss`: zeroes with a checksum that | the move stops          |
|                                  | they do not fit: damaged there           |                                                |
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

from lun_backends import block_device
from lun_backends.block_device import Buffers, ExtentKind
from lun_backends.damage import Damage, OnDamage
from lun_backends.stores import contract
from lun_backends.write_once import WriteOnce

_BATCH = 8 << 20  # bytes per commit


def move_down(
    source: WriteOnce,
    target: WriteOnce,
    chunk_size: int,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    on_damage: OnDamage | None = None,
    *,
    accept_loss: bool = False,
    ranges: Iterable[tuple[int, int]] | None = None,
) -> bool:
    """Put all blocks that `source` has and `target` lacks into `target`.  Return False if `cancelled` stopped it.

    With `ranges`, (offset, length) in bytes, put only blocks of those.

    Blocks beyond the end of `target` are left out: the volume was smaller when `target` was taken.

    Call `progress` with (bytes done, bytes in all) after every batch, and `on_damage` for blocks that were moved as
    damaged.  With `accept_loss`, blocks that cannot be read are moved as zeroes that count as damaged.  Raise the
    errors of reading and writing.
    """
    total = source.written_bytes()
    done = 0
    mover = _Mover(source, target, chunk_size, on_damage, accept_loss=accept_loss)
    for batch in _batches(_pieces(source, target.size, chunk_size, ranges)):
        if cancelled is not None and cancelled():
            return False
        left = batch
        while left:
            left = mover.put(
                [
                    (extent.offset, extent.length)
                    for offset, length in left
                    for extent in target.extents(offset, length)
                    if extent.kind is ExtentKind.BLANK
                ]
            )
        done += sum(length for _, length in batch)
        if progress is not None:
            progress(done, total)
    return True


def _pieces(
    source: block_device.BlockDevice, size: int, chunk_size: int, ranges: Iterable[tuple[int, int]] | None
) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of all that is written below `size`; no piece crosses the end of a chunk."""
    whole = [(0, min(size, source.size))]
    for extent in itertools.chain.from_iterable(source.extents(*one) for one in (whole if ranges is None else ranges)):
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


class _Mover:
    """The mover of pieces of chunks from `source` to `target`."""

    def __init__(
        self,
        source: WriteOnce,
        target: WriteOnce,
        chunk_size: int,
        on_damage: OnDamage | None,
        *,
        accept_loss: bool,
    ) -> None:
        self._source = source
        self._target = target
        self._chunk_size = chunk_size
        self._on_damage = on_damage
        self._accept_loss = accept_loss
        self._buffer = memoryview(bytearray(chunk_size))

    def put(self, pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Write `pieces` with one commit.  Return the pieces that met written blocks."""
        damaged: dict[int, list[Damage]] = collections.defaultdict(list)

        def requests() -> Iterator[tuple[int, Buffers, contract.Origin, bool]]:
            for offset, length in pieces:
                view = [self._buffer[:length]]
                origin = self._source.read_to_move(
                    offset,
                    view,
                    damaged[offset].append,
                    to=self._target,
                    accept_loss=self._accept_loss,
                )
                yield offset, view, origin, self._source.written_outside(offset // self._chunk_size)

        refused: list[tuple[int, int]] = []
        if pieces:
            for piece, stored in zip(pieces, self._target.put_moved(requests()), strict=True):
                if not stored:
                    refused.append(piece)
                    continue
                for damage in damaged[piece[0]]:
                    self._target.note_damage(damage.offset)
                    if self._on_damage is not None:
                        self._on_damage(dataclasses.replace(damage, kept_in=self._target.uuid))
        return refused
