# SPDX-License-Identifier: Apache-2.0
"""Snapshots keep their LUN numbers, and damage to the file of the numbers is noticed."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from target.service import lun_numbers, problems

A, B, C = (uuid.UUID(int=number) for number in (1, 2, 3))


def test_snapshot_gets_the_lowest_free_numbers_and_keeps_them(tmp_path: Path) -> None:
    path = tmp_path / "luns.json"
    numbers = lun_numbers.LunNumbers(path, reserved={0, 2})
    first = numbers.allot(A, "vol0")
    second = numbers.allot(B, "vol0")
    assert (first.view, first.write_once, second.view, second.write_once) == (1, 3, 4, 5)
    again = lun_numbers.LunNumbers(path, reserved={0, 2})
    assert again.all() == {A: first, B: second}
    assert again.allot(A, "vol0") == first


def test_freed_numbers_are_used_again(tmp_path: Path) -> None:
    path = tmp_path / "luns.json"
    numbers = lun_numbers.LunNumbers(path, reserved={0})
    first = numbers.allot(A, "vol0")
    numbers.allot(B, "vol0")
    numbers.free({A})
    assert lun_numbers.LunNumbers(path, reserved={0}).allot(C, "vol0") == first


def test_no_number_is_beyond_the_last_lun(tmp_path: Path) -> None:
    numbers = lun_numbers.LunNumbers(tmp_path / "luns.json", reserved=set(range(16383)))
    with pytest.raises(problems.Problem) as caught:
        numbers.allot(A, "vol0")
    assert caught.value.code == "no-luns-left"
    assert not numbers.all()


def test_file_of_a_newer_version_is_refused_as_such(tmp_path: Path) -> None:
    path = tmp_path / "luns.json"
    path.write_bytes(b'{"format": 3, "snapshots": {}}')
    with pytest.raises(lun_numbers.Damaged, match="made by a newer wolun"):
        lun_numbers.LunNumbers(path, set())
    assert path.read_bytes() == b'{"format": 3, "snapshots": {}}'


@pytest.mark.parametrize("text", [b"", b"{", b'{"format": 0, "snapshots": {}}', b'{"snapshots": {"x": 1}}', b"\0" * 40])
def test_damage_is_noticed_and_nothing_is_overwritten(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "luns.json"
    path.write_bytes(text)
    with pytest.raises(lun_numbers.Damaged, match=r"luns\.json is damaged"):
        lun_numbers.LunNumbers(path, reserved=set())
    assert path.read_bytes() == text
