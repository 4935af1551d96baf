# SPDX-License-Identifier: Apache-2.0
"""The reservations of units, as an administrator sees and clears them."""

from __future__ import annotations

import struct

import pytest

from target.administration.administration import Administration
from target.scsi.nexus import Nexus
from target.service.problems import Problem
from target.service.service import Service
from tests.target.scsi.harness import GOOD, Initiator

ANN, BOB = "iqn.2026-11.org.example:ann", "iqn.2026-11.org.example:bob"


def reserve_out(initiator: Initiator, action: int, key: int, new: int = 0, kind: int = 0, flags: int = 0) -> None:
    cdb = struct.pack(">BBB2xIB", 0x5F, action, kind, 24, 0)
    assert initiator.run(cdb, struct.pack(">QQ4xB3x", key, new, flags)).status == GOOD


@pytest.fixture
def ann(service: Service) -> Initiator:
    """Log an initiator in that holds the reservation of vol0, through restarts."""
    initiator = Initiator(service.inventory.scsi.open_nexus(ANN, tag="000000000001"))
    reserve_out(initiator, 0, 0, 0x666, flags=1)
    reserve_out(initiator, 1, 0x666, kind=3)
    return initiator


@pytest.fixture
def bob(service: Service, ann: Initiator) -> Nexus:
    initiator = Initiator(service.inventory.scsi.open_nexus(BOB, tag="000000000002"))
    reserve_out(initiator, 0, 0, 0x777)
    return initiator.nexus


@pytest.mark.usefixtures("ann")
def test_the_reservations_of_all_units_are_shown(admin: Administration) -> None:
    vol0, vol1 = admin.reservations()
    assert (vol0.unit, vol0.lun, vol0.type, vol0.persists) == ("vol0", 0, "exclusive-access", True)
    (registration,) = vol0.registrations
    assert (registration.initiator, registration.isid, registration.key) == (ANN, "000000000001", "0x0000000000000666")
    assert (registration.holds, registration.logged_in) == (True, True)
    assert (vol1.type, vol1.registrations, vol1.reserved_by) == (None, (), None)


def test_a_reserve_of_spc2_is_shown_and_cleared(admin: Administration, service: Service) -> None:
    initiator = Initiator(service.inventory.scsi.open_nexus(ANN))
    assert initiator.run(b"\x16" + bytes(5)).status == GOOD
    assert [unit.reserved_by for unit in admin.reservations()] == [ANN, None]
    admin.clear_reservations(0, None, force=True, dry_run=False)
    assert [unit.reserved_by for unit in admin.reservations()] == [None, None]


def test_the_reservation_of_a_lost_initiator_is_cleared(
    admin: Administration, service: Service, ann: Initiator, bob: Nexus
) -> None:
    service.inventory.scsi.close_nexus(ann.nexus)
    admin.clear_reservations(0, ANN.upper(), force=False, dry_run=True)
    assert len(admin.reservations()[0].registrations) == 2
    admin.clear_reservations(0, ANN.upper(), force=False, dry_run=False)
    vol0 = admin.reservations()[0]
    assert (vol0.type, [registration.initiator for registration in vol0.registrations]) == (None, [BOB])


def test_the_reservation_of_an_initiator_that_is_logged_in_is_cleared_only_by_force(
    admin: Administration, bob: Nexus
) -> None:
    for initiator in (None, ANN):
        with pytest.raises(Problem, match=f"in use by {ANN}"):
            admin.clear_reservations(0, initiator, force=False, dry_run=False)
    admin.clear_reservations(0, None, force=True, dry_run=False)
    assert admin.reservations()[0].registrations == ()


@pytest.mark.usefixtures("ann")
def test_units_and_initiators_without_reservations_are_refused_by_name(admin: Administration) -> None:
    with pytest.raises(Problem, match="there is no LUN 7: there are: 0, 1"):
        admin.clear_reservations(7, None, force=False, dry_run=False)
    with pytest.raises(Problem, match=f"{BOB} has no reservation on vol0: registered are: {ANN}"):
        admin.clear_reservations(0, BOB, force=False, dry_run=False)
