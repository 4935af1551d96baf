# SPDX-License-Identifier: Apache-2.0
"""The chunk map as a file: its cost, its lock, its words, its length."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.stores import chunk_map, maps, record_map, store_file
from lun_backends.stores.superblock import ARRAYS, CHUNK_SIZES, PAGE, RECORDS, State
from tests.lun_backends.store_factory import make_map


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.map"


def test_a_new_map_is_opened_as_it_was_created(path: Path) -> None:
    made = make_map(path)
    made.close()
    opened = maps.open_existing(path)
    assert opened.superblock == made.superblock
    assert opened.superblock.state is State.EMPTY
    assert opened.damaged_superblock is None
    opened.close()


@pytest.mark.parametrize("version", [ARRAYS, RECORDS])
@pytest.mark.parametrize(
    ("block_size", "chunk_size"),
    [(512, 4096), (512, 16384), (512, 1 << 20), (4096, 4096), (4096, 8192), (4096, 65536), (4096, 1 << 20)],
)
def test_words_of_neighbours_do_not_touch(path: Path, block_size: int, chunk_size: int, version: int) -> None:
    made = make_map(
        path, size=9 * chunk_size + block_size, block_size=block_size, chunk_size=chunk_size, version=version
    )
    full = (1 << chunk_size // block_size) - 1
    units = chunk_size // made.grain
    for chunk in range(10):
        made.reserve(chunk)
    for chunk in (1, 3, 4):
        made.publish_many([(chunk, chunk + 1, full, 0, [7 + unit for unit in range(units)])])
    assert [made.written(chunk) for chunk in range(6)] == [0, full, 0, full, full, 0]
    assert made.checksums(3, 0, units) == [7 + unit for unit in range(units)]
    assert made.full_mask(9) == 1
    made.publish_many([(9, 20, 1, 0, [0])])
    assert made.written(9) == 1
    made.retract([(3, full)])
    assert [made.written(chunk) for chunk in range(6)] == [0, full, 0, 0, full, 0]
    assert made.missing(3, 0, 1) == 1
    assert not made.missing(4, 0, chunk_size // block_size)
    made.confirm([1, 4])
    made.close()
    opened = maps.open_existing(path)
    assert type(opened) is type(made)
    assert [opened.slot(chunk) for chunk in range(10)] == [0, 2, 0, 4, 5, 0, 0, 0, 0, 20]
    assert opened.written(4) == full
    assert [opened.confirmed(chunk) for chunk in range(6)] == [False, True, False, False, True, False]
    opened.close()


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
@pytest.mark.parametrize("block_size", [512, 4096])
def test_no_record_crosses_a_page_and_no_word_a_sector(path: Path, chunk_size: int, block_size: int) -> None:
    made = make_map(path, size=64 * chunk_size, block_size=block_size, chunk_size=chunk_size)
    assert isinstance(made, record_map.RecordMap)
    assert PAGE % made._size == 0
    assert made._sums * 4 <= made._slot_at == made._mask_at - 8
    assert made._mask_at % 8 == 0
    assert made._mask_at + made._masks * 8 == made._size
    assert made._mask_at // 512 == (made._size - 1) // 512  # the masks are lost together, or not
    if chunk_size <= 256 << 10:
        assert 512 % made._size == 0
    made.close()


def test_bits_are_published_one_by_one_and_together(path: Path) -> None:
    made = make_map(path, chunk_size=65536)
    made.reserve(2)
    model = 0
    for entries in ([(0, 8)], [(40, 16), (8, 1)], [(120, 8)], [(9, 23), (32, 8)]):
        masks = [((1 << count) - 1) << start for start, count in entries]
        made.publish_many([(2, 1, mask, start // 8, [0]) for mask, (start, _) in zip(masks, entries, strict=True)])
        for mask in masks:
            model |= mask
        assert made.written(2) == made.bits(2) == model
        for start in range(0, 128, 5):
            for count in (1, 3, 8, 33, 128 - start):
                wanted = ((1 << min(count, 128 - start)) - 1) << start
                assert made.missing(2, start, min(count, 128 - start)) == wanted & ~model
    made.close()


def test_a_map_of_64_tib_takes_little_memory_and_disk(path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from lun_backends.stores import maps
from lun_backends.stores.superblock import Superblock
from tests.lun_backends.store_factory import SNAPSHOT, VOLUME
path = Path({str(path)!r})
maps.create(path, Superblock(SNAPSHOT, VOLUME, 64 << 40, 512, 65536)).close()
m = maps.open_existing(path)
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
        maps.open_existing(path)
    made.close()
    maps.open_existing(path).close()


def test_creating_over_a_file_leaves_it_alone(path: Path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(store_file.StoreUnavailable, match="exists"):
        make_map(path)
    assert path.read_bytes() == b"precious"


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(store_file.StoreMissing, match="does not exist"):
        maps.open_existing(path)


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
        maps.open_existing(path)
    assert caught.value.field == field


@pytest.mark.parametrize("version", [ARRAYS, RECORDS])
def test_the_words_of_an_interrupted_commit_are_stale_and_cleaned(path: Path, version: int) -> None:
    made = make_map(path, version=version)
    for chunk in range(5):
        made.reserve(chunk)
    made.publish_many([(0, 0, 0xFF, 0, [5])])  # bits and checksum without a slot
    made.publish_many([(1, 1, 0x0F, 0, [9])])  # a checksum without all bits
    made.publish_many([(2, 2, 0x0F, 0, [0])])
    made.publish_many([(3, 0, 0x0F, 0, [0])])  # bits without a slot
    entries: list[chunk_map.Entry] = [(chunk, chunk + 1, 0xF0, 0, [0]) for chunk in range(5)]
    assert [made.is_stale(entry) for entry in entries] == [True, True, False, True, False]
    assert made.written(0) == made.written(3) == 0
    for chunk in (0, 1, 3):
        made.clean(chunk)
    assert not any(made.is_stale(entry) for entry in entries)
    assert [made.bits(0), made.bits(1), made.checksums(0, 0, 1), made.checksums(1, 0, 1)] == [0, 0x0F, [0], [0]]
    made.close()


@pytest.mark.parametrize("change", [1, 1 << 31, 1 << 32, 1 << 63, 0xFF00, 0xFF << 40])
def test_a_mask_that_does_not_fit_its_complement_is_damage_and_never_blank(path: Path, change: int) -> None:
    made = make_map(path, chunk_size=65536)
    assert isinstance(made, record_map.RecordMap)
    made.reserve(0)
    made.publish_many([(0, 1, 0xFF, 0, [7])])
    for word in (0, 1):  # one with bits, and a blank one
        place = chunk_map.WORDS + made._mask_at + 8 * word
        at = made._map[place : place + 8]
        made._io.store(made._fd, (int.from_bytes(at, "little") ^ change).to_bytes(8, "little"), place)
        half = 0xFFFFFFFF << 32 * word
        assert made.torn(0) == half
        assert made.written(0) & half == half
        for start in (32 * word, 32 * word + 24):
            with pytest.raises(block_device.MediumError, match="lost which blocks"):
                made.missing(0, start, 8)
        made._io.store(made._fd, at, place)
    assert not made.torn(0)
    made.close()
