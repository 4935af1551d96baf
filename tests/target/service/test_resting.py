# SPDX-License-Identifier: Apache-2.0
"""The number of a unit that is gone rests while somebody may take another unit for it."""

from __future__ import annotations

import errno
import uuid
from pathlib import Path

import pytest

from lun_backends.files import small_file
from target.service import lun_numbers, resting

ANN, BOB = "iqn.2026-11.org.example:ann", "iqn.2026-11.org.example:bob"
A, B = uuid.UUID(int=1), uuid.UUID(int=2)


class Bench:
    """A `Resting` with sessions and a clock that the test sets."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "resting.json"
        self.sessions: set[str] = set()
        self.now = 0.0
        self.restart()

    def restart(self) -> None:
        self.resting = resting.Resting(self.path, lambda: self.sessions, lambda: self.now)

    def numbers(self) -> set[int]:
        return set(self.resting.all())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_number_rests_for_a_while_even_if_nobody_knows_the_unit(bench: Bench) -> None:
    bench.resting.put(5, A, "vol0@a", ())
    bench.now = resting.REST_SECONDS - 1
    assert bench.numbers() == {5}
    bench.now = resting.REST_SECONDS
    assert bench.numbers() == set()


def test_number_rests_while_an_initiator_that_knows_the_unit_is_logged_in_and_a_while_after(bench: Bench) -> None:
    bench.sessions = {ANN, BOB}
    bench.resting.put(5, A, "vol0@a", {ANN})
    assert bench.resting.users(5, B) == ("vol0@a", [ANN])
    assert bench.resting.users(5, A) == ("", [])
    bench.now = 10 * resting.REST_SECONDS
    assert bench.numbers() == {5}
    bench.sessions = {BOB}
    bench.now += resting.REST_SECONDS - 1
    assert bench.numbers() == {5}
    assert bench.resting.users(5, B) == ("vol0@a", [])
    bench.now += 1
    assert bench.numbers() == set()


def test_restart_begins_the_rest_anew_and_remembers_the_initiators(bench: Bench) -> None:
    bench.resting.put(5, A, "vol0@a", {ANN})
    bench.resting.put(6, B, "vol0@b", ())
    bench.now = resting.REST_SECONDS - 1
    bench.restart()
    bench.now += resting.REST_SECONDS - 1
    assert bench.numbers() == {5, 6}
    bench.sessions = {ANN}
    bench.now += 1
    assert bench.numbers() == {5}


def test_unit_that_comes_back_gets_its_number_and_another_learns_who_knows_the_old_one(bench: Bench) -> None:
    for unit, before in ((A, None), (B, resting.Rested(A, "vol0@a", frozenset({ANN})))):
        bench.resting.put(5, A, "vol0@a", {ANN})
        assert bench.resting.taken(5, unit) == before
        assert bench.numbers() == set()


def test_number_of_a_volume_is_remembered_without_a_daemon(bench: Bench) -> None:
    assert bench.resting.taken(0, A, fixed=True) is None
    bench.restart()
    assert bench.resting.taken(0, A, fixed=True) is None
    bench.restart()
    before = bench.resting.taken(0, B, fixed=True)
    assert before is not None
    assert (before.unit, before.initiators) == (A, resting.EVERYBODY)


def test_any_initiator_may_know_a_unit_that_too_many_used(bench: Bench) -> None:
    bench.resting.put(5, A, "vol0@a", {"*"})
    bench.sessions = {BOB}
    assert bench.resting.users(5, None) == ("vol0@a", [BOB])
    bench.now = resting.REST_SECONDS
    assert bench.numbers() == {5}


def test_full_disk_stops_no_deletion(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(small_file, "replace", full)
        bench.resting.put(5, A, "vol0@a", ())
    assert bench.numbers() == {5}
    bench.resting.put(6, B, "vol0@b", ())
    bench.restart()
    assert bench.numbers() == {5, 6}


def test_file_of_a_newer_version_is_not_taken_for_damaged(bench: Bench) -> None:
    bench.path.write_text('{"format": 2}')
    with pytest.raises(lun_numbers.Damaged, match="made by a newer wolun"):
        bench.restart()


@pytest.mark.parametrize("text", ["", "{", '{"luns": {"x": 1}}'])
def test_damage_is_noticed(bench: Bench, text: str) -> None:
    bench.path.write_text(text)
    with pytest.raises(lun_numbers.Damaged, match=r"resting\.json is damaged"):
        bench.restart()
