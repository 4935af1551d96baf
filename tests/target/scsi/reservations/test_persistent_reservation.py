# SPDX-License-Identifier: Apache-2.0
"""The rules of persistent reservations as functions from one state to the next."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.scsi.reservations import persistent_reservation as rules
from target.scsi.reservations.persistent_reservation import (
    Conflict,
    InitiatorPort,
    Outcome,
    Permission,
    Reservation,
    ReservationState,
    ReservationType,
)
from target.scsi.sense import CheckCondition

PORTS = [InitiatorPort(f"iqn.{name}", "000000000001") for name in ("one", "two", "three")]
ONE, TWO, THREE = PORTS
EVERYTHING, READ, NOTHING = Permission.EVERYTHING, Permission.READ, Permission.NOTHING

port = st.sampled_from(PORTS)
key = st.integers(0, 2)
kind = st.sampled_from(ReservationType)
Request = Callable[[ReservationState], Outcome]
requests = st.one_of(
    st.builds(
        lambda p, k, n, i, s: lambda state: rules.register(state, p, k, n, ignore_key=i, persists=s),
        port, key, key, st.booleans(), st.booleans(),
    ),
    st.builds(lambda p, k, t: lambda state: rules.reserve(state, p, k, t), port, key, kind),
    st.builds(lambda p, k, t: lambda state: rules.release(state, p, k, t), port, key, kind),
    st.builds(lambda p, k: lambda state: rules.clear(state, p, k), port, key),
    st.builds(lambda p, k, v, t: lambda state: rules.preempt(state, p, k, v, t), port, key, key, kind),
    st.builds(
        lambda p, k, n, to, u: lambda state: rules.register_and_move(
            state, p, k, n, to, unregister=u, persists=False
        ),
        port, key, key, port, st.booleans(),
    ),
)  # fmt: skip


@given(steps=st.lists(requests, max_size=40))
def test_every_state_is_sound(steps: list[Request]) -> None:
    """The holder is registered, the generation counts up, and each preempted port gets an attention."""
    state = ReservationState()
    for request in steps:
        try:
            outcome = request(state)
        except (Conflict, CheckCondition):
            continue
        after = outcome.state
        assert after.generation - state.generation in (0, 1)
        assert after.generation == state.generation + 1 or after.keys == state.keys
        assert after.persists <= bool(after.keys)
        assert 0 not in after.keys.values()
        if after.reservation is not None:
            assert after.reservation.holder in after.keys
            assert any(after.holds(registered) for registered in PORTS)
        for registered in PORTS:
            if after.holds(registered):
                assert after.access(registered) is EVERYTHING
        assert outcome.preempted.isdisjoint(after.keys)
        assert set(outcome.attentions) <= set(state.keys)
        assert outcome.preempted <= set(outcome.attentions)
        state = after


@pytest.mark.parametrize(
    ("type_", "registered", "others"),
    [
        (ReservationType.WRITE_EXCLUSIVE, READ, READ),
        (ReservationType.EXCLUSIVE_ACCESS, NOTHING, NOTHING),
        (ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, EVERYTHING, READ),
        (ReservationType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY, EVERYTHING, NOTHING),
        (ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS, EVERYTHING, READ),
        (ReservationType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS, EVERYTHING, NOTHING),
    ],
)
def test_each_type_leaves_its_permissions(type_: ReservationType, registered: Permission, others: Permission) -> None:
    state = ReservationState({ONE: 1, TWO: 2}, Reservation(type_, ONE))
    assert [state.access(p) for p in PORTS] == [EVERYTHING, registered, others]
    assert state.holds(TWO) is type_.all_registrants


def test_a_refused_request_leaves_the_state_as_it_was() -> None:
    state = ReservationState({ONE: 1}, Reservation(ReservationType.WRITE_EXCLUSIVE, ONE))
    with pytest.raises(Conflict):
        rules.register(state, TWO, 1, 2)
    with pytest.raises(Conflict):
        rules.reserve(state, ONE, 1, ReservationType.EXCLUSIVE_ACCESS)
    assert state == ReservationState({ONE: 1}, Reservation(ReservationType.WRITE_EXCLUSIVE, ONE))


def test_an_all_registrants_reservation_goes_to_another_holder() -> None:
    state = ReservationState({ONE: 1, TWO: 2}, Reservation(ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS, ONE))
    after = rules.register(state, ONE, 1, 0).state
    assert after.reservation == Reservation(ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS, TWO)
    assert rules.register(after, TWO, 2, 0).state.reservation is None


def test_the_generation_wraps_at_32_bits() -> None:
    assert rules.register(ReservationState(generation=0xFFFFFFFF), ONE, 0, 1).state.generation == 0


def test_a_reservation_ends_with_the_registration_of_its_holder() -> None:
    state = ReservationState({ONE: 1, TWO: 2}, Reservation(ReservationType.WRITE_EXCLUSIVE, ONE))
    assert rules.register(state, ONE, 1, 0).state.reservation is None
    assert rules.register(state, TWO, 2, 0).state.reservation == state.reservation
