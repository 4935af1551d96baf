# SPDX-License-Identifier: Apache-2.0
"""The description of blocks that a thin store is asked to put: their checksums, and whether they are zeroes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import crc32c

from lun_backends import block_device
from lun_backends.stores import chunk_file, contract, reader
from lun_backends.stores.chunk_map import ZEROES, ChunkMap, Entry


class Claim(NamedTuple):
    """Blocks of a chunk that are to be stored: their mask, the first grain that has one of them, a checksum for each grain.

    The checksum is 0 where the blocks do not fill the grain.  `zeroes`: all of them are zeroes, and may go without space.
    """

    chunk: int
    mask: int
    grain: int
    checksums: list[int]
    zeroes: bool


class Checksums:
    """The maker of the checksums of a store.  `described` may be called by any thread, `completed` by one at a time."""

    def __init__(self, chunk_map: ChunkMap, file: chunk_file.ChunkFile) -> None:
        self._map = chunk_map
        self._file = file
        self._block_size = chunk_map.superblock.block_size
        self._unverified: set[tuple[int, int]] = set()  # (chunk, grain) with blocks that came without a checksum

    def described(
        self, pieces: list[reader.Piece], buffers: block_device.Buffers | None, origin: contract.Origin | None
    ) -> list[Claim]:
        """Return what is known of each piece before it is stored: its mask, its checksums, and whether it is zeroes."""
        per_grain, block_size, grain_size = self._map.blocks_per_grain, self._block_size, self._map.grain
        claims: list[Claim] = []
        done = 0
        grains = self._map.blocks_per_chunk // per_grain
        begin = pieces[0][0] * grains + pieces[0][1] // per_grain
        for chunk, start, blocks in pieces:
            end = start + blocks
            first = start // per_grain
            checksums: list[int] = []
            zeroes = self._map.zero_marks
            if (
                start % per_grain == blocks % per_grain == 0
                and buffers is not None
                and len(buffers) == 1
                and origin is None
            ):
                view = buffers[0][done : done + blocks * block_size]
                checksums = [crc32c.crc32c(view[at : at + grain_size]) or 1 for at in range(0, len(view), grain_size)]
                zero = chunk_file.checksum_of_zeroes(grain_size)
                zeroes = zeroes and checksums[0] == zero == checksums[-1] and _are_zeroes([view])
                claims.append(Claim(chunk, ((1 << blocks) - 1) << start, first, checksums, zeroes))
                done += len(view)
                continue
            for grain in range(first, -(-end // per_grain)):
                low, high = max(start, grain * per_grain), min(end, (grain + 1) * per_grain)
                length = (high - low) * block_size
                checksum = 0
                if length != self._map.grain_length(chunk, grain):
                    zeroes = zeroes and buffers is None
                elif buffers is None:
                    checksum = chunk_file.checksum_of_zeroes(length)
                else:
                    part = block_device.slice_buffers(buffers, done, length)
                    checksum = chunk_file.checksum(part)
                    zeroes = zeroes and checksum == chunk_file.checksum_of_zeroes(length) and _are_zeroes(part)
                if origin is not None:
                    checksum = self._from(origin, chunk, grain, chunk * grains + grain - begin, checksum)
                checksums.append(checksum)
                done += length
            claims.append(Claim(chunk, ((1 << blocks) - 1) << start, first, checksums, zeroes))
        return claims

    def _from(self, origin: contract.Origin, chunk: int, grain: int, number: int, computed: int) -> int:
        """Return the checksum to record for a grain, number `number` of the blocks that come from another store.

        `computed` is the checksum of the data, 0 if the blocks do not fill the grain.
        """
        same = origin.grain == self._map.grain
        theirs = origin.checksums[number : number + 1] if same else origin.checksums
        if contract.UNVERIFIED in theirs:
            self._unverified.add((chunk, grain))
            return 0
        if not computed:
            return 0
        if same:
            return theirs[0] or computed
        return (computed ^ 1 or 2) if origin.damaged else computed

    def completed(self, claims: Sequence[Entry]) -> Sequence[Entry]:
        """Read back the grains that these claims complete, and return the claims with their checksums.

        A grain that cannot be read stays without a checksum, although it is written.  So does one with blocks that came
        without a checksum, because a grain that was never verified must not look verified.
        """
        if all(0 not in claim[4] for claim in claims):
            return claims
        after: dict[int, int] = {}
        for chunk, _, mask, *_ in claims:
            after[chunk] = (after[chunk] if chunk in after else self._map.written(chunk)) | mask
        return [
            (chunk, slot, mask, first, [
                checksum or self._checksum_of(chunk, slot, grain, after[chunk]) for grain, checksum in enumerate(sums, first)
            ])
            for chunk, slot, mask, first, sums in claims
        ]  # fmt: skip

    def is_unverified(self, chunk: int, grain: int) -> bool:
        """Return whether a grain has blocks that came without a checksum."""
        return (chunk, grain) in self._unverified

    def _checksum_of(self, chunk: int, slot: int, grain: int, written: int) -> int:
        """Return the checksum of a grain that is whole if the blocks of a mask are written, else 0."""
        whole = self._map.grain_mask(chunk, grain)
        if written & whole != whole or (chunk, grain) in self._unverified:
            return 0
        length = self._map.grain_length(chunk, grain)
        if slot == ZEROES:
            return chunk_file.checksum_of_zeroes(length)
        data = memoryview(bytearray(length))
        try:
            self._file.read(slot * self._map.superblock.chunk_size + grain * self._map.grain, [data], length, 0, False)
        except block_device.MediumError:
            return 0
        return chunk_file.checksum([data])


def _are_zeroes(buffers: block_device.Buffers) -> bool:
    return not any(buffer.tobytes().strip(b"\0") for buffer in buffers)
