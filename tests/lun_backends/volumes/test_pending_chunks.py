# SPDX-License-Identifier: Apache-2.0
"""The file of pending chunks: it is read back, and damage is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from lun_backends import tracking
from lun_backends.files import storage_io
from lun_backends.volumes import pending_chunks


def test_pending_chunks_are_kept_until_they_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "p"
    total = 1 << 20
    chunks = tracking.BitMap([0, 1, 4063, 4064, 8127, 500_000, total - 1])
    made = pending_chunks.PendingChunks.create(path, chunks.copy(), total, storage_io.SYSTEM)
    made.remove([1, 4064, 500_000])
    made.close()
    opened = pending_chunks.PendingChunks.open(path, total, storage_io.SYSTEM)
    assert list(opened.chunks) == list(made.chunks) == [0, 4063, 8127, total - 1]
    opened.remove(list(opened.chunks))
    opened.close()
    assert not any(path.read_bytes())


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "larger"])
def test_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "p"
    pending_chunks.PendingChunks.create(path, tracking.BitMap([7, 9000]), 10000, storage_io.SYSTEM).close()
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[1024 + 100] ^= 4
    path.write_bytes(data[:-1] if damage == "cut" else data)
    if damage == "gone":
        path.unlink()
    with pytest.raises(pending_chunks.PendingDamaged, match=str(path)):
        pending_chunks.PendingChunks.open(path, 8500 if damage == "larger" else 10000, storage_io.SYSTEM)
