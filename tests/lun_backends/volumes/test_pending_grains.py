# SPDX-License-Identifier: Apache-2.0
"""The file of pending grains: it is read back, and damage is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from lun_backends import tracking
from lun_backends.files import storage_io
from lun_backends.volumes import pending_grains


def test_pending_grains_are_kept_until_they_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "p"
    total = 1 << 20
    grains = tracking.BitMap([0, 1, 4063, 4064, 8127, 500_000, total - 1])
    made = pending_grains.PendingGrains.create(path, grains.copy(), total, storage_io.SYSTEM)
    made.remove([1, 4064, 500_000])
    made.close()
    opened = pending_grains.PendingGrains.open(path, total, storage_io.SYSTEM)
    assert list(opened.grains) == list(made.grains) == [0, 4063, 8127, total - 1]
    opened.remove(list(opened.grains))
    opened.close()
    assert not any(path.read_bytes())


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "larger"])
def test_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "p"
    pending_grains.PendingGrains.create(path, tracking.BitMap([7, 9000]), 10000, storage_io.SYSTEM).close()
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[1024 + 100] ^= 4
    path.write_bytes(data[:-1] if damage == "cut" else data)
    if damage == "gone":
        path.unlink()
    with pytest.raises(pending_grains.PendingDamaged, match=str(path)):
        pending_grains.PendingGrains.open(path, 8500 if damage == "larger" else 10000, storage_io.SYSTEM)


@pytest.mark.parametrize("crash", ["before", "renamed", "never"])
def test_a_file_of_whole_chunks_is_read_on(tmp_path: Path, crash: str) -> None:
    old, path = tmp_path / "p.pending", tmp_path / "p.unsettled"
    pending_grains.PendingGrains.create(old, tracking.BitMap([1, 3]), 4, storage_io.SYSTEM).close()
    before = old.read_bytes()
    if crash == "before":
        (tmp_path / "p.unsettled.new").write_bytes(b"a part of it")
    if crash == "renamed":
        pending_grains.take_over(old, path, 57, 16, storage_io.SYSTEM)
        old.write_bytes(before)
    pending_grains.take_over(old, path, 57, 16, storage_io.SYSTEM)
    opened = pending_grains.PendingGrains.open(path, 57, storage_io.SYSTEM)
    opened.close()
    assert list(opened.grains) == [*range(16, 32), *range(48, 57)]
    assert not old.exists()
