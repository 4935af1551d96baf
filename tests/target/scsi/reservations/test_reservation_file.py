# SPDX-License-Identifier: Apache-2.0
"""The file in which reservations outlive the daemon."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from target.scsi.reservations import reservation_file
from target.scsi.reservations.persistent_reservation import (
    InitiatorPort,
    Reservation,
    ReservationState,
    ReservationType,
)
from tests.target.scsi.harness import (
    Bench,
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"format": 1, "registrations": [], "reservation": null}',
        '{"format": 1, "registrations": [{"initiator": "a", "isid": "1", "key": "0x0"}], "reservation": null}',
        '{"format": 1, "registrations": [{"initiator": "a", "isid": "1", "key": "nine"}], "reservation": null}',
        '{"format": 1, "registrations": [{"initiator": "a", "isid": "1", "key": "0x1"}], '
        '"reservation": {"type": 1, "initiator": "b", "isid": "1"}}',
    ],
)
def test_a_damaged_file_stops_the_unit(tmp_path: Path, text: str) -> None:
    (tmp_path / "reservations.json").write_text(text)
    with pytest.raises(reservation_file.ReservationFileDamaged, match=r"reservations\.json is damaged"):
        Bench(state_dir=tmp_path)


def test_a_file_of_a_newer_version_stops_the_unit(tmp_path: Path) -> None:
    (tmp_path / "reservations.json").write_text('{"format": 2, "registrations": [], "reservation": null}')
    with pytest.raises(reservation_file.ReservationFileDamaged, match="it was made by a newer wolun"):
        Bench(state_dir=tmp_path)


ONE, TWO = InitiatorPort("iqn.2026-11.x:one", "000000000001"), InitiatorPort("iqn.2026-11.x:two", "")
HELD = ReservationState(
    MappingProxyType({ONE: (1 << 64) - 1, TWO: 7}),
    Reservation(ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, ONE),
    persists=True,
)


def test_no_file_is_an_empty_state(tmp_path: Path) -> None:
    assert reservation_file.load(tmp_path / "missing.json") == ReservationState()


@pytest.mark.parametrize("state", [HELD, replace(HELD, reservation=None)], ids=["reserved", "registered"])
def test_a_stored_state_is_loaded_but_for_its_generation(tmp_path: Path, state: ReservationState) -> None:
    path = tmp_path / "volume" / "unit.json"
    reservation_file.store(path, replace(state, generation=9))
    assert reservation_file.load(path) == state


def test_names_with_capitals_of_older_versions_are_those_of_logins(tmp_path: Path) -> None:
    older = """{"registrations": [{"initiator": "iqn.2026-11.X:One", "isid": "000000000001", "key": "0x7"}],
        "reservation": {"type": 1, "initiator": "iqn.2026-11.X:One", "isid": "000000000001"}, "format": 1}"""
    (tmp_path / "unit.json").write_text(older)
    state = reservation_file.load(tmp_path / "unit.json")
    assert dict(state.keys) == {ONE: 7}
    assert state.reservation == Reservation(ReservationType.WRITE_EXCLUSIVE, ONE)


def test_a_state_that_does_not_persist_removes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "unit.json"
    reservation_file.store(path, HELD)
    reservation_file.store(path, replace(HELD, persists=False))
    assert not path.exists()
    reservation_file.store(path, ReservationState())  # twice is allowed
    assert list(tmp_path.iterdir()) == []
