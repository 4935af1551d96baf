# SPDX-License-Identifier: Apache-2.0
"""Units keep their reservations over restarts, and a damaged file does not count as no reservation."""

from __future__ import annotations

from pathlib import Path

import pytest

from target.scsi.reservations import persistent_reservation, reservation_file
from target.service.inventory import view_uuid
from target.service.service import Service
from tests.target.service.conftest import Serve


def reservations(service: Service, tmp_path: Path, name: str = "vol0") -> Path:
    owner = service.inventory.volume(name)
    return tmp_path / "state" / "volumes" / name / "reservations" / f"{owner.uuid}.json"


def test_unit_has_the_reservations_of_its_file(serve: Serve, tmp_path: Path) -> None:
    service = serve()
    port = persistent_reservation.InitiatorPort("iqn.2026-11.x:a", "800000000001")
    state = persistent_reservation.ReservationState({port: 5}, None, persists=True)
    reservation_file.store(reservations(service, tmp_path), state)
    again = serve()
    assert again.inventory.scsi.luns[0].reservations.state.keys == {port: 5}
    assert not again.inventory.scsi.luns[1].reservations.state.keys


def test_damaged_file_keeps_the_volume_from_being_served(serve: Serve, tmp_path: Path) -> None:
    path = reservations(serve(), tmp_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{")
    service = serve()
    assert set(service.inventory.open_volumes) == {"vol1"}
    assert "is damaged" in service.inventory.failed["vol0"]
    assert 0 not in service.inventory.scsi.luns
    assert path.read_text() == "{"


@pytest.mark.parametrize("which", ["view", "write-once"])
def test_state_of_a_deleted_snapshot_is_deleted(service: Service, tmp_path: Path, which: str) -> None:
    service.snapshots.create_snapshot("vol0", "s")
    identity = service.inventory.find("vol0", "s")[1].uuid
    path = reservations(service, tmp_path).with_name(f"{view_uuid(identity) if which == 'view' else identity}.json")
    port = persistent_reservation.InitiatorPort("iqn.2026-11.x:a", "800000000001")
    reservation_file.store(path, persistent_reservation.ReservationState({port: 5}, None, persists=True))
    service.snapshots.delete_snapshot("vol0", "s").wait()
    assert not path.exists()
