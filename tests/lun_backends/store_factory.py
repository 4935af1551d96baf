# SPDX-License-Identifier: Apache-2.0
"""Shared parts of the tests of the stores: small write-once LUNs, and a `StorageIO` that fails on demand."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from lun_backends import write_once
from lun_backends.durability import Durability
from lun_backends.files import storage_io
from lun_backends.stores import array_map, chunk_map, maps, record_map, thin
from lun_backends.stores.superblock import RECORDS, Superblock

SNAPSHOT = uuid.UUID(int=1)
VOLUME = uuid.UUID(int=2)
BLOCK = 512
CHUNK = 4096
PER_CHUNK = CHUNK // BLOCK


class FaultyIO(storage_io.StorageIO):
    """A `StorageIO` that calls `before[name]` before every call of that name; the call fails with the error that this raises."""

    def __init__(self) -> None:
        self.before: dict[str, Callable[[], None]] = {}
        self.calls: list[str] = []

    def fail(self, name: str, code: int = errno.EIO) -> None:
        """Let every call of `name` fail from now on."""

        def raise_it() -> None:
            raise OSError(code, os.strerror(code))

        self.before[name] = raise_it

    def _meet(self, name: str) -> None:
        self.calls.append(name)
        if action := self.before.get(name):
            action()

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        self._meet("preadv")
        return super().preadv(fd, buffers, offset, flags)

    def pwritev(self, fd: int, buffers: Sequence[memoryview | bytes], offset: int) -> int:
        self._meet("pwritev")
        return super().pwritev(fd, buffers, offset)

    def reserve(self, fd: int, offset: int, length: int) -> None:
        self._meet("reserve")
        super().reserve(fd, offset, length)

    def set_aside(self, fd: int, offset: int, length: int) -> None:
        self._meet("set_aside")
        super().set_aside(fd, offset, length)

    def ftruncate(self, fd: int, length: int) -> None:
        self._meet("ftruncate")
        super().ftruncate(fd, length)

    def fdatasync(self, fd: int) -> None:
        self._meet("fdatasync")
        super().fdatasync(fd)

    def store(self, fd: int, words: bytes, offset: int) -> None:
        self._meet("store")
        super().store(fd, words, offset)

    def sync_map(self, fd: int) -> None:
        self._meet("sync_map")
        super().sync_map(fd)


def create(
    path: Path,
    *,
    size: int = 64 * CHUNK,
    block_size: int = BLOCK,
    chunk_size: int = CHUNK,
    durability: Durability = Durability.POWER_LOSS,
    io: storage_io.StorageIO = storage_io.SYSTEM,
    version: int = RECORDS,
) -> write_once.WriteOnce:
    """Make a small write-once LUN, with a map of format `version`."""
    superblock = Superblock(SNAPSHOT, VOLUME, size, block_size, chunk_size, version=version)
    return write_once.WriteOnce(thin.ThinStore.create(path / "s", superblock, durability=durability, io=io))


def reopen(
    path: Path, durability: Durability = Durability.POWER_LOSS, io: storage_io.StorageIO = storage_io.SYSTEM
) -> write_once.WriteOnce:
    """Open the LUN that `create` made."""
    return write_once.WriteOnce(thin.ThinStore.open(path / "s", durability=durability, io=io))


def thin_of(device: write_once.WriteOnce) -> thin.ThinStore:
    """Return the thin store of a LUN, for tests of how it works inside."""
    assert isinstance(device.store, thin.ThinStore)
    return device.store


def data(seed: int, blocks: int = 1, block_size: int = BLOCK) -> list[memoryview]:
    """Return a scatter list of `blocks` blocks that differ from those of other seeds, in two buffers of uneven length."""
    content = b"".join((seed * 1000 + block).to_bytes(8, "little") * (block_size // 8) for block in range(blocks))
    cut = len(content) // 3
    return [memoryview(content)[:cut], memoryview(content)[cut:]]


def read(device: write_once.WriteOnce, lba: int, blocks: int = 1) -> bytes:
    """Return the content of some blocks."""
    block_size = device.block_size
    buffer = bytearray(blocks * block_size)
    view = memoryview(buffer)
    device.readv(lba * block_size, [view[: block_size // 2], view[block_size // 2 :]])
    return bytes(buffer)


def make_map(
    path: Path,
    *,
    size: int = 1 << 20,
    block_size: int = 512,
    chunk_size: int = 4096,
    version: int = RECORDS,
) -> chunk_map.ChunkMap:
    """Make a small chunk map."""
    return maps.create(path, Superblock(SNAPSHOT, VOLUME, size, block_size, chunk_size, version=version))


def poke(
    path: Path, chunk: int, *, slot: int | None = None, bits: int | None = None, checksum: int | None = None
) -> None:
    """Store words into the closed map of `create`, as the kernel might have written them back; `checksum`: of each unit."""
    made = maps.open_existing(thin.files(path / "s")[0])
    with contextlib.closing(made):
        made.reserve(chunk)
        store, fd = made._io.store, made._fd
        if isinstance(made, array_map.ArrayMap):
            layout, per_chunk = made.layout, made.blocks_per_chunk
            assert per_chunk >= 8
            places = [(layout.slots + chunk * 8, slot, 8), (layout.checksums + chunk * 4, checksum, 4)]
            places.append((layout.written + chunk * per_chunk // 8, bits, per_chunk // 8))
        else:
            assert isinstance(made, record_map.RecordMap)
            at = chunk_map.WORDS + chunk * made._size
            places = [(at + made._slot_at, slot, 8)]
            places += [(at + unit * 4, checksum, 4) for unit in range(made._sums)]
            for word in range(made._masks):
                half = None if bits is None else record_map.word(bits >> 32 * word & 0xFFFFFFFF)
                places.append((at + made._mask_at + word * 8, half, 8))
        for offset, value, width in places:
            if value is not None:
                store(fd, value.to_bytes(width, "little"), offset)


def overwrite(path: Path, offset: int, content: bytes) -> None:
    """Change bytes of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)
