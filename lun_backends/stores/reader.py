# SPDX-License-Identifier: Apache-2.0
"""The reading half of a thin store, which compares what it reads with its checksums.

A checksum covers a grain: 4 KiB, or the whole chunk in stores with a map of format 2.  Every read compares every grain that
it touches, each time.  A read that begins or ends within a grain reads the whole grain.

| grain                              | `read` with `verify` on        | `read` with it off | `read_checked`                 |
| --------------------------------- | ------------------------------ | ------------------ | ------------------------------ |
| it is written and has a checksum  | compares                       | reads              | compares                       |
| it has no checksum                | reads; nothing can be compared | reads              | reads; nothing can be compared |

A grain that is stored only in part has no checksum.

A grain that does not fit is read a second time, past the page cache, before it counts as damaged: the fault may be in
memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NamedTuple

import crc32c
import pyroaring

from lun_backends import block_device
from lun_backends.block_device import Buffers
from lun_backends.damage import Damage, OnDamage
from lun_backends.stores import chunk_file, contents
from lun_backends.stores.chunk_map import ZEROES, ChunkMap
from lun_backends.stores.contract import COMPUTE, UNVERIFIED, Origin

Piece = tuple[int, int, int]
"""Blocks of one chunk: chunk number, first block within it, number of blocks."""


class _Check(NamedTuple):
    """Grains of a chunk to be compared; `at` is the byte of what is read at which the first of them begins, or would."""

    chunk: int
    grain: int
    expected: list[int]
    """Their checksums, 0 for a grain that cannot be compared."""
    at: int
    place: int
    """The byte of the chunk file at which the chunk begins; -1 for zeroes."""


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

    def __init__(self, chunk_map: ChunkMap, file: chunk_file.ChunkFile, chunk_size: int | None = None) -> None:
        """Read from the file what the map says; `chunk_size` is the volume's, if that of the map is smaller."""
        superblock = chunk_map.superblock
        self.verify = True
        """Whether `read` compares grains with their checksums."""
        self._damaged = pyroaring.BitMap64()  # grains that any kind of read has found damaged
        self._map = chunk_map
        self._file = file
        self._snapshot = superblock.snapshot
        self._block_size = superblock.block_size
        self._chunk_size = superblock.chunk_size
        self._per_chunk = superblock.chunk_size // superblock.block_size
        self._per_grain = chunk_map.blocks_per_grain
        self._grains = superblock.chunk_size // chunk_map.grain
        self._reported = chunk_size or superblock.chunk_size  # the chunks of `damaged` and `found`, in bytes

    @property
    def damaged(self) -> pyroaring.BitMap64:
        """The chunks that any kind of read has found damaged since the store was opened."""
        grains = self._reported // self._map.grain
        return pyroaring.BitMap64({grain // grains for grain in self._damaged})

    def read(self, first: int, count: int, buffers: Buffers, *, now: bool = False) -> bool:
        """Fill `buffers` with `count` blocks from block `first` on; with `now` return False if that would wait.

        Raises BlankBlock, MediumError, DamagedBlocks.
        """
        chunk, start = divmod(first, self._per_chunk)
        if count == self._per_grain and start % count == 0 and len(buffers) == 1 and self.verify:
            # One whole grain: the most frequent read.
            chunk_map = self._map
            if chunk_map.missing(chunk, start, count):
                raise self._blank(chunk, start, count)
            slot = chunk_map.slot(chunk)
            if 0 < slot < ZEROES:
                place = slot * self._chunk_size + start * self._block_size
                if not self._file.read(place, buffers, count * self._block_size, first, now):
                    return False
                (expected,) = chunk_map.checksums(chunk, start // count, start // count + 1)
                if expected == crc32c.crc32c(buffers[0]):
                    if self._damaged:
                        self._damaged.discard(first // count)
                    return True
        elif start + count <= self._per_chunk and not self.verify:
            slot = self._slot(chunk, start, count)
            if slot != ZEROES:
                place = slot * self._chunk_size + start * self._block_size
                return self._file.read(place, buffers, count * self._block_size, first, now)
        return self._read(first, count, buffers, now=now, compare=self.verify)

    def read_checked(self, first: int, count: int, buffers: Buffers, on_damage: OnDamage | None = None) -> None:
        """Fill `buffers` as `read`, but compare every grain that has a checksum, whatever `verify` says.

        With `on_damage`, call it for damaged and unreadable blocks instead of raising an error.  Damaged blocks are
        read as they are, and unreadable ones as zeroes.  Raises BlankBlock, MediumError, DamagedBlocks.
        """
        if on_damage is None:
            self._read(first, count, buffers)
        else:
            self._read_all(first, count, buffers, on_damage, on_damage)

    def read_to_move(
        self,
        first: int,
        count: int,
        buffers: Buffers,
        on_damage: OnDamage,
        *,
        grain: int,
        size: int,
        accept_loss: bool,
    ) -> Origin:
        """Fill `buffers` with blocks of one chunk that go to another store; see `contract.Reader`."""
        found: list[Damage] = []
        unread: list[Damage] = []
        self._read_all(first, count, buffers, found.append, unread.append if accept_loss else None)
        for damage in unread:
            if not self._fills(first, count, damage, max(grain, self._map.grain), size):
                raise block_device.MediumError(damage.offset // self._block_size, False, damage.reason)
        for damage in found:
            if not self._fills(first, count, damage, max(grain, self._map.grain), size):
                lba = damage.offset // self._block_size
                raise block_device.DamagedBlocks(lba, False, f"{self._file.path}: {damage.reason}", damage)
        found += unread
        low = first // self._per_grain
        numbers = range(low, -(-(first + count) // self._per_grain))
        checksums = [self._to_go_along(number, first, count) for number in numbers]
        for damage in found:
            on_damage(damage)
            at = damage.offset // self._block_size
            for number in range(at // self._per_grain, -(-(at + damage.length // self._block_size) // self._per_grain)):
                if checksums[number - low] <= 0:  # it gets one that neither zeroes nor its data fit
                    chunk, grain_of = divmod(number, self._grains)
                    recorded = self._map.checksums(chunk, grain_of, grain_of + 1)[0]
                    length = self._map.grain_length(chunk, grain_of)
                    checksums[number - low] = recorded or chunk_file.checksum_of_zeroes(length) ^ 1 or 2
        return Origin(self._map.grain, tuple(checksums), bool(found))

    def _to_go_along(self, number: int, first: int, count: int) -> int:
        """Return the checksum of a grain, by its number, that goes along with blocks; or COMPUTE or UNVERIFIED."""
        chunk, grain = divmod(number, self._grains)
        (recorded,) = self._map.checksums(chunk, grain, grain + 1)
        whole = self._map.grain_mask(chunk, grain).bit_count()
        if not recorded or self._map.missing(chunk, grain * self._per_grain, whole):
            return UNVERIFIED
        begin = number * self._per_grain
        return recorded if first <= begin and begin + whole <= first + count else COMPUTE

    def _fills(self, first: int, count: int, damage: Damage, grain: int, size: int) -> bool:
        """Return whether the blocks fill the grains, of `grain` bytes, that have the damage, up to byte `size`."""
        begin = damage.offset // grain * grain
        end = min(-(-(damage.offset + damage.length) // grain) * grain, size, self._map.superblock.size)
        return first * self._block_size <= begin and end <= (first + count) * self._block_size

    def found(self, chunk: int, *, damaged: bool) -> None:
        """Note the result of a comparison elsewhere."""
        self.note(chunk * self._reported, 1 if damaged else self._reported, damaged=damaged)

    def note(self, offset: int, length: int, *, damaged: bool) -> None:
        """Note the result of a comparison of bytes of the LUN."""
        grains = range(offset // self._map.grain, -(-(offset + length) // self._map.grain))
        if damaged:
            self._damaged.update(grains)
        elif self._damaged:
            self._damaged -= pyroaring.BitMap64(grains)

    def _slot(self, chunk: int, start: int, count: int) -> int:
        """Return the slot of blocks of a chunk.  Raises BlankBlock, MediumError."""
        if self._map.missing(chunk, start, count):
            raise self._blank(chunk, start, count)
        slot = self._map.slot(chunk)
        if not slot:
            if not self._map.written(chunk):  # an interrupted commit left the bits
                raise block_device.BlankBlock(chunk * self._per_chunk + start)
            why = f"{self._map.path}: the map has lost where the chunk is"
            raise block_device.MediumError(chunk * self._per_chunk + start, False, why)
        return slot

    def _blank(self, chunk: int, start: int, count: int) -> block_device.BlankBlock:
        missing = self._map.missing(chunk, start, count) or 1 << start
        return block_device.BlankBlock(chunk * self._per_chunk + contents.lowest(missing))

    def _read_all(
        self, first: int, count: int, buffers: Buffers, on_damage: OnDamage, on_unread: OnDamage | None
    ) -> None:
        """Read blocks as far as they can be read; call `on_damage` for damaged ones, `on_unread` for unreadable ones.

        Unreadable blocks become zeroes.  Without `on_unread`, raise MediumError for them.  Raises BlankBlock.
        """
        found: list[Damage] = []
        try:
            self._read(first, count, buffers, on_damage=found.append)
            for damage in found:
                on_damage(damage)
            return
        except block_device.MediumError as error:
            if on_unread is None:
                raise
            end = min(first // self._per_grain * self._per_grain + self._per_grain, first + count)
            if end == first + count:
                for buffer in buffers:
                    buffer[:] = bytes(len(buffer))
                length = count * self._block_size
                on_unread(Damage(first * self._block_size, length, error.reason, self._snapshot))
                return
        done = 0
        while first < end:  # one grain after the other
            length = (end - first) * self._block_size
            part = block_device.slice_buffers(buffers, done, length)
            self._read_all(first, end - first, part, on_damage, on_unread)
            done += length
            count -= end - first
            first, end = end, end + min(count, self._per_grain)

    def _read(
        self,
        first: int,
        count: int,
        buffers: Buffers,
        *,
        now: bool = False,
        compare: bool = True,
        on_damage: OnDamage | None = None,
    ) -> bool:
        """Read blocks and compare the grains that have any of them.

        Raises BlankBlock, MediumError, and DamagedBlocks if there is no `on_damage`.
        """
        block_size = self._block_size
        runs: list[list[int]] = []  # [place in the chunk file or -1 for zeroes, bytes]; adjacent places are joined
        checks: list[_Check] = []
        head = tail = done = 0  # bytes that are read before the blocks, and behind them, because a grain has them, too
        for chunk, start, blocks in pieces(first, count, self._per_chunk):
            slot = self._slot(chunk, start, blocks)
            before = behind = 0
            begin = -1 if slot == ZEROES else slot * self._chunk_size
            if compare:
                first_grain, end_grain = start // self._per_grain, -(-(start + blocks) // self._per_grain)
                # The bits were read before the checksums, because a checksum is complete only if the bits are.
                expected = self._map.checksums(chunk, first_grain, end_grain)
                before = self._beside(chunk, first_grain, expected, 0, start - first_grain * self._per_grain)
                whole = self._map.grain_length(chunk, end_grain - 1) // block_size
                short = (end_grain - 1) * self._per_grain + whole - start - blocks
                behind = self._beside(chunk, end_grain - 1, expected, -1, short)
                at = done + (before - start + first_grain * self._per_grain) * block_size
                checks.append(_Check(chunk, first_grain, expected, at, begin))
            head, tail = (before if not done else head), behind
            length = (before + blocks + behind) * block_size
            place = -1 if begin < 0 else begin + (start - before) * block_size
            if runs and (place == -1 == runs[-1][0] or (place >= 0 <= runs[-1][0] and sum(runs[-1]) == place)):
                runs[-1][1] += length
            else:
                runs.append([place, length])
            done += length
        into = buffers
        if head or tail:
            spare = _buffer((head + tail) * block_size)
            into = [spare[: head * block_size], *buffers, spare[head * block_size :]]
        done = 0
        for place, length in runs:
            part = into if len(runs) == 1 else block_device.slice_buffers(into, done, length)
            if place < 0:
                for buffer in part:
                    buffer[:] = bytes(len(buffer))
            elif not self._file.read(place, part, length, max(first, first - head + done // block_size), now):
                return False
            done += length
        for check in checks:
            at = check.at
            for grain, checksum in enumerate(check.expected, check.grain):
                if checksum and (
                    self._damaged or len(into) > 1 or crc32c.crc32c(into[0][at : at + self._map.grain]) != checksum
                ):
                    part = block_device.slice_buffers(into, at, self._map.grain)
                    if chunk_file.checksum(part) != checksum:
                        if now:
                            return False  # a caller that may wait compares again
                        self._compare_again(check, grain, part, first, count, on_damage)
                    elif self._damaged:
                        self._damaged.discard(check.chunk * self._grains + grain)
                at += self._map.grain
        return True

    def _beside(self, chunk: int, grain: int, expected: list[int], number: int, blocks: int) -> int:
        """Return how many blocks of a grain have to be read beside the wanted ones, of which it has `blocks` more.

        A grain that is not written as a whole has no checksum: clear it in `expected`.
        """
        if not blocks or not expected[number]:
            return 0
        whole = self._map.grain_mask(chunk, grain)
        if self._map.missing(chunk, contents.lowest(whole), whole.bit_count()):
            expected[number] = 0
            return 0
        return blocks

    def _compare_again(
        self, check: _Check, number: int, buffers: Buffers, first: int, count: int, on_damage: OnDamage | None
    ) -> None:
        """Read a grain that does not fit again, past the page cache.  Raises DamagedBlocks, MediumError."""
        block_size = self._block_size
        grain = (check.chunk * self._per_chunk) + number * self._per_grain
        length = self._map.grain_length(check.chunk, number)
        if check.place >= 0:
            slot = self._map.slot(check.chunk)  # a log may have moved the grain, when the rest of it was written
            place = slot * self._chunk_size + number * self._map.grain
            self._file.forget(place, length)
            self._file.read(place, buffers, length, max(first, grain), False)
        actual, expected = chunk_file.checksum(buffers), check.expected[number - check.grain]
        offset = grain * block_size
        self.note(offset, length, damaged=actual != expected)
        if actual == expected:
            return
        lba = max(first, grain)
        end = min(first + count, grain + length // block_size)
        reason = f"CRC32C is {actual:#010x}, was {expected:#010x} when written"
        damage = Damage(lba * block_size, (end - lba) * block_size, reason, self._snapshot)
        if on_damage is None:
            raise block_device.DamagedBlocks(lba, False, f"{self._file.path}: {reason}", damage)
        on_damage(damage)


def _buffer(length: int) -> memoryview:
    """Return this thread's buffer for what nobody asked for."""
    view: memoryview | None = getattr(_scratch, "view", None)
    if view is None or len(view) < length:
        view = _scratch.view = memoryview(bytearray(length))
    return view[:length]
