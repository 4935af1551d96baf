# SPDX-License-Identifier: Apache-2.0
"""A raw image that is compressed with zstd (RFC 8878) from front to back; `zstd -d` makes the raw image of it."""

from __future__ import annotations

import os

LEVEL = 3
"""The level of zstd for images and streams: about as quick as a disk."""
_ZEROES = memoryview(bytes(1 << 20))


class Zstd:
    """A writer of a compressed raw image; see `image_file.Image`."""

    def __init__(self, fd: int, size: int) -> None:
        """Take an empty file."""
        import zstandard

        self._fd = fd
        self._size = size
        self._done = 0
        self._packer = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compressobj(size=size)

    def write(self, offset: int, data: memoryview) -> None:
        self._fill(offset)
        self._put(self._packer.compress(data))
        self._done = offset + len(data)

    def finish(self) -> None:
        self._fill(self._size)
        self._put(self._packer.flush())
        os.fsync(self._fd)

    def _fill(self, end: int) -> None:
        """Write the zeroes of a hole."""
        while self._done < end:
            zeroes = _ZEROES[: end - self._done]
            self._put(self._packer.compress(zeroes))
            self._done += len(zeroes)

    def _put(self, packed: bytes) -> None:
        left = memoryview(packed)
        while left:
            left = left[os.write(self._fd, left) :]
