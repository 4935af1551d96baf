# SPDX-License-Identifier: Apache-2.0
"""The reading half of a thin store, which compares chunks with their checksums.

A checksum covers a whole chunk.  So the first read of any part of a chunk reads all of it:

| chunk                        | `read` with `verify` on                          | `read_checked`                        |
| ---------------------------- | ------------------------------------------------ | ------------------------------------- |
| it was found good            | reads; compares nothing                          | compares                              |
| it has a checksum            | compares; a chunk that fits is good from then on | compares                              |
| it has no checksum           | reads; nothing can be compared                   | reads; nothing can be compared        |

The reader remembers the chunks that were found good, until the store is closed.  So `read` finds damage that is there
when a chunk is first read: rot, or the effect of a bad cable, a bad disk or a bad copy of the files.  It does not find
rot that comes later while the store is open; `read_checked` and `verify` do.  A chunk that is stored only in part has
no checksum.  Nor has a chunk whose last blocks were committed at the moment of a crash.

A chunk that does not fit is read a second time, past the page cache, before it counts as damaged: the fault may be in
memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pyroaring

from lun_backends import block_device
from lun_backends.block_device import Buffers
from lun_backends.damage import Damage, OnDamage
from lun_backends.stores import chunk_file, contents
from lun_backends.stores.chunk_map import ChunkMap
from lun_backends.stores.contract import COMPUTE, UNVERIFIED

Piece = tuple[int, int, int]
"""Blocks of one chunk: chunk number, first block within it, number of blocks."""

_scratch = threading.local()


def pieces(first: int, count: int, per_chunk: int) -> Iterator[Piece]:
    """Yield the parts of a range of blocks, one for each chunk of `per_chunk` blocks."""
    end = first + count
    while first < end:
        chunk, start = divmod(first, per_chunk)
        blocks = min(per_chunk - start, end - first)
        yield chunk, start, blocks
        first += blocks


class Reader:
    """The reader of a thin store.  Thread-safe.  Ranges are in blocks, and lie within the store."""

    def __init__(self, chunk_map: ChunkMap, file: chunk_file.ChunkFile) -> None:
        superblock = chunk_map.superblock
        self.verify = True
        """Whether `read` compares chunks with their checksums."""
        self.damaged = pyroaring.BitMap64()
        """The chunks that any kind of read has found damaged since the store was opened."""
        self._map = chunk_map
        self._file = file
        self._good = pyroaring.BitMap64()
        self._snapshot = superblock.snapshot
        self._block_size = superblock.block_size
        self._chunk_size = superblock.chunk_size
        self._per_chunk = superblock.chunk_size // superblock.block_size

    def read(self, first: int, count: int, buffers: Buffers, *, now: bool = False) -> bool:
        """Fill `buffers` with `count` blocks from block `first` on; with `now` return False if that would wait.

        Raises BlankBlock, MediumError, DamagedBlocks.
        """
        chunk_map = self._map
        per_chunk = self._per_chunk
        block_size = self._block_size
        chunk, start = divmod(first, per_chunk)
        if start + count <= per_chunk:
            mask = ((1 << count) - 1) << start
            if missing := mask & ~chunk_map.written(chunk):
                raise block_device.BlankBlock(chunk * per_chunk + contents.lowest(missing))
            if self.verify and chunk not in self._good:
                return self._read_pieces(first, count, buffers, now=now)
            return self._file.read(self._place(chunk, start), buffers, count * block_size, first, now)
        runs: list[list[int]] = []  # [place in the chunk file, bytes]; adjacent places are joined
        for chunk, start, blocks in pieces(first, count, per_chunk):
            mask = ((1 << blocks) - 1) << start
            if missing := mask & ~chunk_map.written(chunk):
                raise block_device.BlankBlock(chunk * per_chunk + contents.lowest(missing))
            if self.verify and chunk not in self._good:
                return self._read_pieces(first, count, buffers, now=now)
            place = self._place(chunk, start)
            if runs and sum(runs[-1]) == place:
                runs[-1][1] += blocks * block_size
            else:
                runs.append([place, blocks * block_size])
        done = 0
        for place, length in runs:
            part = buffers if len(runs) == 1 else block_device.slice_buffers(buffers, done, length)
            if not self._file.read(place, part, length, first + done // block_size, now):
                return False
            done += length
        return True

    def read_checked(self, first: int, count: int, buffers: Buffers, on_damage: OnDamage | None = None) -> None:
        """Fill `buffers` as `read`, but compare every chunk that has a checksum, whatever `verify` says.

        With `on_damage`, call it for damaged and unreadable blocks instead of raising an error.  Damaged blocks are
        read as they are, and unreadable ones as zeroes.  Raises BlankBlock, MediumError, DamagedBlocks.
        """
        self._read_pieces(first, count, buffers, always=True, on_damage=on_damage)

    def read_to_move(
        self,
        first: int,
        count: int,
        buffers: Buffers,
        on_damage: OnDamage,
        *,
        fills: bool,
        accept_loss: bool,
    ) -> int:
        """Fill `buffers` with blocks of one chunk that go to another store, and return their origin.

        The origin is COMPUTE, UNVERIFIED or the checksum that has to go along.  `fills` says that the blocks fill a
        chunk of the other store.  Only then can damage go along: the data goes as it is, with a checksum that it does
        not fit, and `on_damage` is called.  So the data is damaged there, too.  With `accept_loss`, zeroes with such a
        checksum replace blocks that cannot be read.

        Raise MediumError if the blocks cannot be read, and DamagedBlocks if they are damaged and only a part of a
        chunk, because the other store would forget the damage.
        """
        chunk, start = divmod(first, self._per_chunk)
        length, whole = count * self._block_size, self._map.chunk_length(chunk)
        full = self._map.written(chunk) == self._map.full_mask(chunk)
        expected = self._map.checksum(chunk) if full else 0
        try:
            self._read_piece((chunk, start, count), buffers, length, now=False, always=True)
        except block_device.DamagedBlocks as error:
            if not fills:
                raise
            on_damage(error.damage)
            return expected
        except block_device.MediumError as error:
            if not (accept_loss and full and fills):
                raise
            for buffer in buffers:
                buffer[:] = bytes(len(buffer))
            on_damage(Damage(first * self._block_size, length, error.reason, self._snapshot))
            return expected or (chunk_file.checksum(buffers) ^ 1 or 2)
        if not expected:
            return UNVERIFIED
        return expected if length == whole else COMPUTE

    def found(self, chunk: int, *, damaged: bool) -> None:
        """Note the result of a comparison."""
        if damaged:
            self._good.discard(chunk)
            self.damaged.add(chunk)
        else:
            self._good.add(chunk)
            if self.damaged:
                self.damaged.discard(chunk)

    def _read_pieces(
        self,
        first: int,
        count: int,
        buffers: Buffers,
        *,
        now: bool = False,
        always: bool = False,
        on_damage: OnDamage | None = None,
    ) -> bool:
        """Read chunk by chunk, and compare the chunks that are not known to be good; with `always`, compare all."""
        done = 0
        for piece in pieces(first, count, self._per_chunk):
            length = piece[2] * self._block_size
            part = block_device.slice_buffers(buffers, done, length)
            try:
                if not self._read_piece(piece, part, length, now=now, always=always):
                    return False
            except block_device.MediumError as error:
                if on_damage is None:
                    raise
                if isinstance(error, block_device.DamagedBlocks):
                    on_damage(error.damage)
                else:
                    for buffer in part:
                        buffer[:] = bytes(len(buffer))
                    on_damage(Damage((first * self._block_size) + done, length, error.reason, self._snapshot))
            done += length
        return True

    def _read_piece(self, piece: Piece, buffers: Buffers, length: int, *, now: bool, always: bool) -> bool:
        chunk, start, blocks = piece
        lba = chunk * self._per_chunk + start
        mask = ((1 << blocks) - 1) << start
        written = self._map.written(chunk)
        if missing := mask & ~written:
            raise block_device.BlankBlock(chunk * self._per_chunk + contents.lowest(missing))
        place = self._place(chunk, start)
        # Read the bits before the checksum, because the checksum is complete only if the bits are.
        full = written == self._map.full_mask(chunk)
        expected = self._map.checksum(chunk) if full and (always or chunk not in self._good) else 0
        if not expected:
            return self._file.read(place, buffers, length, lba, now)
        whole = self._map.chunk_length(chunk)
        into = buffers if length == whole else [_buffer(whole)]
        actual = self._compare(chunk, into, whole, expected, now=now)
        if actual is None:
            return False
        if into is not buffers:
            at = start * self._block_size
            for buffer in buffers:
                buffer[:] = into[0][at : at + len(buffer)]
                at += len(buffer)
        if actual != expected:
            reason = f"CRC32C is {actual:#010x}, was {expected:#010x} when written"
            damage = Damage(lba * self._block_size, length, reason, self._snapshot)
            raise block_device.DamagedBlocks(lba, False, f"{self._file.path}: {reason}", damage)
        return True

    def _compare(self, chunk: int, into: Buffers, length: int, expected: int, *, now: bool) -> int | None:
        """Read a whole chunk, and return its checksum; None if that would wait."""
        lba = chunk * self._per_chunk
        place = self._map.slot(chunk) * self._chunk_size
        actual = 0
        for _ in range(2):
            if not self._file.read(place, into, length, lba, now):
                return None
            actual = chunk_file.checksum(into)
            if actual == expected:
                self.found(chunk, damaged=False)
                return actual
            if now:
                return None  # a caller that may wait compares again
            self._file.forget(place, length)
        self.found(chunk, damaged=True)
        return actual

    def _place(self, chunk: int, start: int) -> int:
        """Return the place of written blocks in the chunk file, in bytes.  Raises MediumError."""
        slot = self._map.slot(chunk)
        if not slot:
            why = f"{self._map.path}: the map has lost where the chunk is"
            raise block_device.MediumError(chunk * self._per_chunk + start, False, why)
        return slot * self._chunk_size + start * self._block_size


def _buffer(length: int) -> memoryview:
    """Return this thread's buffer for one chunk."""
    view: memoryview | None = getattr(_scratch, "view", None)
    if view is None or len(view) < length:
        view = _scratch.view = memoryview(bytearray(length))
    return view[:length]
