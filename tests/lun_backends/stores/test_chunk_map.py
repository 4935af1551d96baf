# SPDX-License-Identifier: Apache-2.0
"""The chunk map as a file: its cost, its lock, its words, its length."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from lun_backends.stores import chunk_map, store_file
from lun_backends.stores.superblock import PAGE, State
from tests.lun_backends.store_factory import make_map


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.map"


def test_a_new_map_is_opened_as_it_was_created(path: Path) -> None:
    made = make_map(path)
    made.close()
    opened = chunk_map.ChunkMap.open(path)
    assert opened.superblock == made.superblock
    assert opened.superblock.state is State.EMPTY
    assert opened.damaged_superblock is None
    opened.close()


@pytest.mark.parametrize(
    ("block_size", "chunk_size"), [(512, 4096), (512, 1 << 20), (4096, 4096), (4096, 8192), (4096, 65536)]
)
def test_bits_of_neighbours_do_not_touch(path: Path, block_size: int, chunk_size: int) -> None:
    made = make_map(path, size=9 * chunk_size + block_size, block_size=block_size, chunk_size=chunk_size)
    full = (1 << chunk_size // block_size) - 1
    for chunk in range(10):
        made.reserve(chunk)
    for chunk in (1, 3, 4):
        assert made.publish(chunk, chunk + 1, full, 7) == full
    assert [made.written(chunk) for chunk in range(6)] == [0, full, 0, full, full, 0]
    assert made.full_mask(9) == 1
    assert made.publish(9, 20, 1, 0) == 1
    made.retract([(3, full)])
    assert [made.written(chunk) for chunk in range(6)] == [0, full, 0, 0, full, 0]
    made.close()
    opened = chunk_map.ChunkMap.open(path)
    assert [opened.slot(chunk) for chunk in range(10)] == [0, 2, 0, 4, 5, 0, 0, 0, 0, 20]
    assert opened.written(4) == full
    opened.close()


def test_a_map_of_64_tib_takes_little_memory_and_disk(path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from lun_backends.stores import chunk_map
from lun_backends.stores.superblock import Superblock
from tests.lun_backends.store_factory import SNAPSHOT, VOLUME
path = Path({str(path)!r})
chunk_map.ChunkMap.create(path, Superblock(SNAPSHOT, VOLUME, 64 << 40, 512, 65536)).close()
m = chunk_map.ChunkMap.open(path)
step = m.chunks // 100_000
assert not any(m.written(chunk) for chunk in range(0, m.chunks, step))
# ru_maxrss would count the memory of the test runner before this program was executed
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(peak.split()[1], m.disk_bytes())
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    resident, disk = map(int, run.stdout.split())
    assert resident < 64 << 10  # KiB
    assert disk < 1 << 20


def test_a_map_has_one_owner(path: Path) -> None:
    made = make_map(path)
    with pytest.raises(store_file.StoreLocked, match="in use"):
        chunk_map.ChunkMap.open(path)
    made.close()
    chunk_map.ChunkMap.open(path).close()


def test_creating_over_a_file_leaves_it_alone(path: Path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(store_file.StoreUnavailable, match="exists"):
        make_map(path)
    assert path.read_bytes() == b"precious"


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(store_file.StoreMissing, match="does not exist"):
        chunk_map.ChunkMap.open(path)


def test_a_file_larger_than_allowed_is_refused_and_removed(path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(store_file.StoreUnavailable, match="larger chunks"):
            make_map(path, size=1 << 40)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not path.exists()


@pytest.mark.parametrize(
    ("length", "field"), [(0, "superblock"), (100, "superblock"), (PAGE + 8, "file size"), (3 * PAGE, "file size")]
)
def test_a_file_of_the_wrong_length_is_damage(path: Path, length: int, field: str) -> None:
    make_map(path).close()
    os.truncate(path, length)
    with pytest.raises(store_file.StoreDamaged) as caught:
        chunk_map.ChunkMap.open(path)
    assert caught.value.field == field


def test_the_words_of_an_interrupted_commit_are_stale_and_cleaned(path: Path) -> None:
    made = make_map(path)
    for chunk in range(4):
        made.reserve(chunk)
    made.publish(0, 0, 0xFF, 5)  # bits and checksum without a slot
    made.publish(1, 1, 0x0F, 9)  # a checksum without all bits
    made.publish(2, 2, 0xFF, 9)
    assert [made.is_stale(chunk) for chunk in range(4)] == [True, True, False, False]
    assert made.written(0) == 0
    made.clean(0)
    made.clean(1)
    assert [made.is_stale(chunk) for chunk in range(4)] == [False] * 4
    assert [made.bits(0), made.bits(1), made.checksum(0), made.checksum(1)] == [0, 0x0F, 0, 0]
    made.close()
