# SPDX-License-Identifier: Apache-2.0
"""A store with a map of format 2, as an older version made it, is read, written on, verified and moved from.

`format_2` has the files, made by the last version that wrote that format: eleven chunks of 16 KiB and a short one.
"""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from lun_backends import block_device, write_once
from lun_backends.damage import Damage
from lun_backends.stores import contract, maps, superblock, thin
from tests.lun_backends import store_factory
from tests.lun_backends.store_factory import BLOCK, data, read

CHUNK = 16384
PER_CHUNK = CHUNK // BLOCK
SIZE = 11 * CHUNK + 3 * BLOCK
FILES = Path(__file__).parent / "format_2"
GOOD, DAMAGED, UNVERIFIABLE = contract.Verdict.GOOD, contract.Verdict.DAMAGED, contract.Verdict.UNVERIFIABLE
WHOLE = {
    **{chunk: b"".join(data(chunk, PER_CHUNK)) for chunk in (0, 1, 4, 9)},
    2: bytes(CHUNK),
    8: b"".join(data(8, 16)) + b"".join(data(88, 16)),
    11: b"".join(data(11, 3)),
}
PART = {6: (1, b"".join(data(6, 9)))}  # from its block 1 on


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    for path in thin.files(tmp_path / "s"):
        with gzip.open(FILES / f"{path.name}.gz") as packed, path.open("wb") as file:
            shutil.copyfileobj(packed, file)
    return thin.files(tmp_path / "s")


def verdicts(lun: write_once.WriteOnce) -> dict[int, contract.Verdict]:
    return {report.offset // CHUNK: report.verdict for report in lun.verify()}


def check(lun: write_once.WriteOnce) -> None:
    """Check the content that the older version stored."""
    for chunk, content in WHOLE.items():
        assert read(lun, chunk * PER_CHUNK, len(content) // BLOCK) == content
        assert read(lun, chunk * PER_CHUNK + 2) == content[2 * BLOCK : 3 * BLOCK]
    for chunk, (block, content) in PART.items():
        assert read(lun, chunk * PER_CHUNK + block, len(content) // BLOCK) == content


def test_it_is_read_and_verified(tmp_path: Path, files: tuple[Path, Path]) -> None:
    lun = store_factory.reopen(tmp_path)
    check(lun)
    assert store_factory.thin_of(lun).grain == CHUNK
    for chunk in (3, 5, 7, 10):
        with pytest.raises(block_device.BlankBlock):
            read(lun, chunk * PER_CHUNK)
    assert verdicts(lun) == {**dict.fromkeys(WHOLE, GOOD), 6: UNVERIFIABLE}
    assert lun.check_headers() == []
    lun.close()


def test_it_is_written_on_in_its_format(tmp_path: Path, files: tuple[Path, Path]) -> None:
    lun = store_factory.reopen(tmp_path)
    used = lun.used_bytes()
    lun.put_many([(3 * CHUNK, data(3, PER_CHUNK)), (5 * CHUNK, [memoryview(bytes(CHUNK))])])  # it marks no zeroes
    assert lun.used_bytes() >= used + 2 * CHUNK
    lun.writev(6 * CHUNK + 10 * BLOCK, data(66, PER_CHUNK - 10))
    lun.writev(6 * CHUNK, data(67))
    with pytest.raises(block_device.BlockWritten):
        lun.writev(4 * CHUNK, data(1))
    for _ in range(2):
        check(lun)
        assert read(lun, 3 * PER_CHUNK, PER_CHUNK) == b"".join(data(3, PER_CHUNK))
        assert read(lun, 5 * PER_CHUNK, PER_CHUNK) == bytes(CHUNK)
        assert read(lun, 6 * PER_CHUNK + 10, PER_CHUNK - 10) == b"".join(data(66, PER_CHUNK - 10))
        assert verdicts(lun) == dict.fromkeys([*WHOLE, 3, 5, 6], GOOD)
        lun.close()
        lun = store_factory.reopen(tmp_path)
    lun.close()
    with files[0].open("rb") as file:
        assert file.read(12)[8:] == superblock.ARRAYS.to_bytes(4, "little")
    maps.open_existing(files[0]).close()


def test_rot_in_it_is_found_whatever_part_of_the_chunk_is_read(tmp_path: Path, files: tuple[Path, Path]) -> None:
    lun = store_factory.reopen(tmp_path)
    assert read(lun, 4 * PER_CHUNK + 9) == WHOLE[4][9 * BLOCK : 10 * BLOCK]
    with files[1].open("r+b") as file:
        content = bytearray(file.read())
        content[content.index(WHOLE[4]) + 5 * BLOCK] ^= 1
        file.seek(0)
        file.write(content)
    for lba, blocks in ((0, PER_CHUNK), (9, 1), (5, 8)):
        with pytest.raises(block_device.DamagedBlocks):
            read(lun, 4 * PER_CHUNK + lba, blocks)
    assert verdicts(lun)[4] is DAMAGED
    lun.close()


@pytest.mark.parametrize("to_old", [False, True])
@pytest.mark.parametrize("damaged", [False, True])
def test_data_moves_between_the_formats(tmp_path: Path, files: tuple[Path, Path], to_old: bool, damaged: bool) -> None:
    (tmp_path / "new").mkdir()
    new = store_factory.create(tmp_path / "new", size=SIZE, chunk_size=CHUNK)
    old = store_factory.reopen(tmp_path)
    source, target = (new, old) if to_old else (old, new)
    chunk = 3 if to_old else 4
    content = b"".join(data(4, PER_CHUNK))
    if to_old:
        new.writev(chunk * CHUNK, [memoryview(content)])
    if damaged:
        path = store_factory.thin_of(source)._file.path
        whole = bytearray(path.read_bytes())
        whole[whole.index(content) + 9000] ^= 1
        with path.open("r+b") as file:
            file.write(whole)
    buffer = memoryview(bytearray(CHUNK))
    found: list[Damage] = []
    origin = source.read_to_move(chunk * CHUNK, [buffer], found.append, to=target, accept_loss=False)
    assert bool(found) == damaged
    assert target.put_moved([(chunk * CHUNK, [buffer], origin, False)]) == [True]
    assert {report.verdict for report in target.verify() if report.offset // CHUNK == chunk} == {
        DAMAGED if damaged else GOOD
    }
    old.close()
    new.close()
