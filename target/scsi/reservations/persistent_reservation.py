# SPDX-License-Identifier: Apache-2.0
"""Persistent reservations (SPC-4 5.12): registered ports with their keys, the reservation, and the permissions it leaves.

This module has values and rules only.  Every service action of PERSISTENT RESERVE OUT is a function that returns the
next `ReservationState` and the unit attentions to raise.  So `reservations.py`, which keeps the state, can store the
next state before it is in force, and a refused request has changed nothing.

A registration belongs to an I_T nexus.  There is one target port, so the initiator port (iSCSI name and ISID) names an
I_T nexus.  A registration survives the session.  These are the permissions of a reservation, by its type:

| type | | other registered ports | other ports |
| --- | --- | --- | --- |
| 1h | write exclusive                           | read       | read |
| 3h | exclusive access                          | nothing    | nothing |
| 5h | write exclusive, registrants only         | everything | read |
| 6h | exclusive access, registrants only        | everything | nothing |
| 7h | write exclusive, all registrants          | everything, as holders | read |
| 8h | exclusive access, all registrants         | everything, as holders | nothing |
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from target.scsi import sense
from target.scsi.sense import Asc

MAX_REGISTRATIONS = 1024
"""The bound for one unit: registrations outlive their sessions, and an initiator may log in with a new ISID every time."""
MAX_REGISTRATIONS_EACH = 64
"""The bound for the registrations that one initiator makes, for its own ports and for others, so that no initiator takes the
room of the others.  Who made a registration is not stored: after a restart each counts as its port's own."""


@dataclass(frozen=True, slots=True, order=True)
class InitiatorPort:
    """An initiator port: iSCSI name and, in hexadecimal digits, ISID."""

    initiator: str
    isid: str


class ReservationType(enum.IntEnum):
    """The types of SPC-4 table 65; see the module's docstring."""

    WRITE_EXCLUSIVE = 0x1
    EXCLUSIVE_ACCESS = 0x3
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 0x5
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 0x6
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 0x7
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 0x8

    @property
    def all_registrants(self) -> bool:
        """Whether every registered port holds the reservation."""
        return self >= ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS

    @property
    def registrants_may(self) -> bool:
        """Whether every registered port may do everything."""
        return self >= ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY

    @property
    def others_read(self) -> bool:
        """Whether the other ports may read."""
        return self in (
            ReservationType.WRITE_EXCLUSIVE,
            ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
            ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS,
        )


class Permission(enum.Enum):
    """The permission of a nexus on the unit."""

    EVERYTHING = "everything"
    READ = "read"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Reservation:
    """A reservation of the unit; `holder` made it, and holds it alone unless all registrants hold it."""

    type: ReservationType
    holder: InitiatorPort


@dataclass(frozen=True, slots=True)
class ReservationState:
    """The registrations of a unit and its reservation."""

    keys: Mapping[InitiatorPort, int] = field(default_factory=lambda: MappingProxyType({}))
    reservation: Reservation | None = None
    generation: int = 0  # PRGENERATION
    persists: bool = False  # APTPL: it outlives the daemon
    makers: Mapping[InitiatorPort, str] = field(default_factory=lambda: MappingProxyType({}))
    """The initiator that registered a port of another one (SPEC_I_PT, REGISTER AND MOVE)."""

    def holds(self, port: InitiatorPort) -> bool:
        """Return whether the port is a persistent reservation holder."""
        held = self.reservation
        return held is not None and (port in self.keys if held.type.all_registrants else port == held.holder)

    def access(self, port: InitiatorPort) -> Permission:
        """Return the permission that the reservation leaves to a port."""
        held = self.reservation
        if held is None or self.holds(port) or (held.type.registrants_may and port in self.keys):
            return Permission.EVERYTHING
        return Permission.READ if held.type.others_read else Permission.NOTHING


class Conflict(Exception):
    """The request ends with RESERVATION CONFLICT and has changed nothing."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The state after a service action, the unit attentions to raise, and the ports whose tasks PREEMPT AND ABORT clears."""

    state: ReservationState
    attentions: Mapping[InitiatorPort, Asc] = field(default_factory=lambda: MappingProxyType({}))
    preempted: frozenset[InitiatorPort] = frozenset()


def _next(
    state: ReservationState, keys: Mapping[InitiatorPort, int], reservation: Reservation | None
) -> ReservationState:
    """Return the state with other registrations; a reservation without a holder ends."""
    if reservation is not None and reservation.type.all_registrants:
        if reservation.holder not in keys:
            reservation = replace(reservation, holder=min(keys)) if keys else None
    elif reservation is not None and reservation.holder not in keys:
        reservation = None
    return replace(
        state,
        keys=MappingProxyType(dict(keys)),
        reservation=reservation,
        generation=state.generation + 1 & 0xFFFFFFFF,
        persists=state.persists and bool(keys),
        makers=MappingProxyType({port: maker for port, maker in state.makers.items() if port in keys}),
    )


def _made(state: ReservationState, maker: InitiatorPort, others: Iterable[InitiatorPort]) -> ReservationState:
    """Return the state in which `maker` registered its own port or the `others` that had no registration."""
    makers = dict(state.makers)
    makers.pop(maker, None)
    makers |= {other: maker.initiator for other in others if other.initiator != maker.initiator}
    return replace(state, makers=MappingProxyType(makers))


def _attentions(ports: Iterable[InitiatorPort], asc: Asc) -> dict[InitiatorPort, Asc]:
    return dict.fromkeys(ports, asc)


def _check_room(before: ReservationState, after: ReservationState) -> None:
    """Raise CheckCondition if there are too many registrations, unless `before` had them, too."""
    new = after.keys.keys() - before.keys.keys()
    makers = {port: after.makers.get(port, port.initiator) for port in after.keys}
    counts = Counter(makers.values())
    if new and (len(makers) > MAX_REGISTRATIONS or any(counts[makers[port]] > MAX_REGISTRATIONS_EACH for port in new)):
        raise sense.illegal_request(Asc.INSUFFICIENT_REGISTRATION_RESOURCES)


def check_registered(state: ReservationState, port: InitiatorPort, key: int) -> None:
    """Raise Conflict unless the port is registered with this key, as all actions except REGISTER require."""
    if port not in state.keys or state.keys[port] != key:
        raise Conflict


def register(
    state: ReservationState,
    port: InitiatorPort,
    key: int,
    new_key: int,
    *,
    ignore_key: bool = False,
    also: Collection[InitiatorPort] = (),
    persists: bool = False,
) -> Outcome:
    """Do REGISTER, or with `ignore_key` REGISTER AND IGNORE EXISTING KEY; `also`: the ports of SPEC_I_PT.  Raises Conflict."""
    if not ignore_key and state.keys.get(port, 0) != key:
        raise Conflict
    keys = dict(state.keys)
    if new_key:
        keys[port] = new_key
        added = [other for other in also if other not in keys]
        for other in also:
            keys[other] = new_key
        after = _made(_next(state, keys, state.reservation), port, added)
        _check_room(state, after)
        return Outcome(replace(after, persists=persists))
    if port not in keys:
        return Outcome(state)
    del keys[port]
    # SPC-4 5.12.11.1: if a shared reservation ends here, the ports that shared it get a unit attention.
    held = state.reservation
    after = replace(_next(state, keys, held), persists=persists and bool(keys))
    released = held is not None and after.reservation is None and held.type.registrants_may
    return Outcome(after, _attentions(keys, Asc.RESERVATIONS_RELEASED) if released else {})


def reserve(state: ReservationState, port: InitiatorPort, key: int, kind: ReservationType) -> Outcome:
    """Do RESERVE.  Raises Conflict."""
    check_registered(state, port, key)
    held = state.reservation
    if held is not None:
        if not state.holds(port) or held.type is not kind:
            raise Conflict
        return Outcome(state)
    return Outcome(replace(state, reservation=Reservation(kind, port)))


def release(state: ReservationState, port: InitiatorPort, key: int, kind: ReservationType | None) -> Outcome:
    """Do RELEASE; `kind` is None for a type that does not exist.  Raises Conflict, CheckCondition."""
    check_registered(state, port, key)
    held = state.reservation
    if held is None or not state.holds(port):
        return Outcome(state)
    if held.type is not kind:
        raise sense.illegal_request(Asc.INVALID_RELEASE_OF_PERSISTENT_RESERVATION)
    others = [other for other in state.keys if other != port] if held.type.registrants_may else []
    return Outcome(replace(state, reservation=None), _attentions(others, Asc.RESERVATIONS_RELEASED))


def clear(state: ReservationState, port: InitiatorPort, key: int) -> Outcome:
    """Do CLEAR.  Raises Conflict."""
    check_registered(state, port, key)
    others = [other for other in state.keys if other != port]
    return Outcome(_next(state, {}, None), _attentions(others, Asc.RESERVATIONS_PREEMPTED))


def preempt(
    state: ReservationState, port: InitiatorPort, key: int, victims_key: int, kind: ReservationType | None
) -> Outcome:
    """Do PREEMPT, or the first half of PREEMPT AND ABORT (SPC-4 5.12.11.2).  Raises Conflict, CheckCondition."""
    check_registered(state, port, key)
    held = state.reservation
    shared = held is not None and held.type.all_registrants
    if not victims_key and not shared:
        raise sense.invalid_parameter(8)
    takes_over = held is not None and (not victims_key if shared else state.keys.get(held.holder) == victims_key)
    victims = {other for other, its in state.keys.items() if not victims_key or its == victims_key}
    if takes_over:
        if kind is None:
            raise sense.invalid_field(2)
        victims.discard(port)  # the port that takes the reservation stays registered
    elif not victims:
        raise Conflict
    keys = {other: its for other, its in state.keys.items() if other not in victims}
    new = Reservation(kind, port) if takes_over and kind is not None else held
    attentions = _attentions(victims - {port}, Asc.REGISTRATIONS_PREEMPTED)
    after = _next(state, keys, new)
    changed = held is not None and (after.reservation is None or after.reservation.type is not held.type)
    if changed and held is not None and held.type.registrants_may:
        attentions |= _attentions((other for other in keys if other != port), Asc.RESERVATIONS_RELEASED)
    return Outcome(after, attentions, frozenset(victims - {port}))


def register_and_move(
    state: ReservationState,
    port: InitiatorPort,
    key: int,
    new_key: int,
    to: InitiatorPort,
    *,
    unregister: bool,
    persists: bool,
) -> Outcome:
    """Do REGISTER AND MOVE (SPC-4 5.12.8).  Raises Conflict, CheckCondition."""
    check_registered(state, port, key)
    held = state.reservation
    if held is None or not state.holds(port) or held.type.all_registrants:
        raise Conflict
    if not new_key:
        raise sense.invalid_parameter(8)
    if to == port:
        raise sense.invalid_parameter(24)
    keys = {**state.keys, to: new_key}
    if unregister:
        del keys[port]
    after = _next(state, keys, Reservation(held.type, to))
    if to not in state.keys:
        after = _made(after, port, [to])
    _check_room(state, after)
    return Outcome(replace(after, persists=persists))


def remove(state: ReservationState, ports: Collection[InitiatorPort]) -> Outcome:
    """Remove the registrations of these ports, as an administrator asks for; a reservation that they hold ends.

    They get the unit attention of PREEMPT, and the ports that shared a reservation which ends here that of RELEASE.
    """
    removed = frozenset(port for port in ports if port in state.keys)
    if not removed:
        return Outcome(state)
    keys = {port: key for port, key in state.keys.items() if port not in removed}
    after = _next(state, keys, state.reservation)
    attentions = _attentions(removed, Asc.REGISTRATIONS_PREEMPTED)
    held = state.reservation
    if held is not None and after.reservation is None and held.type.registrants_may:
        attentions |= _attentions(keys, Asc.RESERVATIONS_RELEASED)
    return Outcome(after, attentions, removed)
