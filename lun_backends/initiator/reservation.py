# SPDX-License-Identifier: Apache-2.0
"""PERSISTENT RESERVE IN and OUT as an initiator sends them (SPC-4 5.12, 6.15, 6.16).

A registration belongs to an I_T nexus.  LIO goes by the initiator's name alone, so there all sessions of a name share one.
Every REGISTER has APTPL: the registrations and the reservation outlive a loss of power at the device.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from lun_backends import block_device
from lun_backends.initiator.unit import (
    ILLEGAL_REQUEST,
    INVALID_COMMAND_OPERATION_CODE,
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST,
    CheckCondition,
    Unit,
)

_IN, _OUT = 0x5E, 0x5F
_READ_KEYS, _READ_RESERVATION, _REPORT_CAPABILITIES, _READ_FULL_STATUS = range(4)
_REGISTER, _RESERVE, _RELEASE, _CLEAR, _PREEMPT, _PREEMPT_AND_ABORT, _REGISTER_AND_IGNORE = range(7)
_LENGTH = 0xFFFF
_APTPL = 0x01
_PARAMETERS = struct.Struct(">QQ4xB3x")
_ISCSI = 5  # protocol identifier of a TransportID (SPC-4 7.6.4.6)
_PTPL_C = 0x01  # byte 2 of REPORT CAPABILITIES
_TMV = 0x80  # byte 3: the type mask is valid
_PTPL_A = 0x01


class Type(enum.IntEnum):
    """The type of a persistent reservation (SPC-4 table 65)."""

    WRITE_EXCLUSIVE = 0x1
    EXCLUSIVE_ACCESS = 0x3
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 0x5
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 0x6
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 0x7
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 0x8


# Where REPORT CAPABILITIES has the types, in bytes 4 and 5 (SPC-4 table 231).
_TYPE_BITS = {
    Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS: 0x8000,
    Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY: 0x4000,
    Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY: 0x2000,
    Type.EXCLUSIVE_ACCESS: 0x0800,
    Type.WRITE_EXCLUSIVE: 0x0200,
    Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS: 0x0001,
}


class Unsuitable(block_device.BlockDeviceError):
    """A device whose reservations cannot fence the nodes of a cluster; the message says what it lacks."""


@dataclass(frozen=True, slots=True)
class Keys:
    """READ KEYS: a key for each registered nexus, equal ones included."""

    generation: int
    keys: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """READ RESERVATION: the key is 0 for the types of all registrants."""

    key: int
    type: Type


@dataclass(frozen=True, slots=True)
class Registration:
    """A registered nexus, from READ FULL STATUS.  `initiator` is its iSCSI name, or another TransportID in hexadecimal."""

    key: int
    holds: bool
    initiator: str
    isid: str  # hexadecimal digits; empty if the device goes by the name alone


@dataclass(frozen=True, slots=True)
class Capabilities:
    """REPORT CAPABILITIES."""

    persists: bool  # PTPL_C: reservations can outlive a loss of power
    active: bool  # PTPL_A: they do now
    types: frozenset[Type]


def read_keys(unit: Unit) -> Keys:
    """Return all registered keys.  Raise the errors of Unit.execute."""
    generation, data = _in(unit, _READ_KEYS)
    return Keys(generation, struct.unpack(f">{len(data) // 8}Q", data[: len(data) & ~7]))


def read_reservation(unit: Unit) -> Held | None:
    """Return the reservation; None if there is none.  Raise Unsuitable, and the errors of Unit.execute."""
    _, data = _in(unit, _READ_RESERVATION)
    if len(data) < 16:
        return None
    key, scope_and_type = struct.unpack_from(">Q5xB", data)
    try:
        return Held(key, Type(scope_and_type & 0x0F))
    except ValueError as error:
        raise Unsuitable(f"{unit.address} has a reservation of the unknown type {scope_and_type & 0x0F:X}h") from error


def read_full_status(unit: Unit) -> tuple[Registration, ...]:
    """Return all registrations.  Raise the errors of Unit.execute."""
    _, data = _in(unit, _READ_FULL_STATUS)
    found: list[Registration] = []
    position = 0
    while position + 24 <= len(data):
        key, flags, length = struct.unpack_from(">Q4xB7xI", data, position)
        name = data[position + 24 : position + 24 + length]
        found.append(Registration(key, bool(flags & 0x01), *_transport_id(name)))
        position += 24 + length
    return tuple(found)


def report_capabilities(unit: Unit) -> Capabilities:
    """Return what the reservations of the unit can do.  Raise Unsuitable if it has none, and the errors of Unit.execute."""
    try:
        data = unit.execute(struct.pack(">BB5xHx", _IN, _REPORT_CAPABILITIES, 8), in_length=8).ljust(8, b"\0")
    except CheckCondition as refused:
        if _is_unknown(refused):
            raise Unsuitable(
                f"{unit.address} does not report persistent reservations: use a primary on an array that has them (SPC-3 or later)"
            ) from refused
        raise
    if data[3] & _TMV:
        mask = int.from_bytes(data[4:6])
    else:
        mask = sum(_TYPE_BITS[kind] for kind in Type if kind <= Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY)  # SPC-2's
    types = frozenset(kind for kind, bit in _TYPE_BITS.items() if mask & bit)
    return Capabilities(bool(data[2] & _PTPL_C), bool(data[3] & _PTPL_A), types)


def fence_type(unit: Unit) -> Type:
    """Return the type with which a cluster fences this unit: 8h if it has that, else 7h.

    Raise Unsuitable if it has neither, or if a loss of power would end its reservations.  Raise the errors of
    Unit.execute.
    """
    able = report_capabilities(unit)
    if not able.persists:
        raise Unsuitable(
            f"{unit.address} forgets reservations when it loses power (PTPL_C is 0), and then every node may write: use "
            "another array"
        )
    for kind in (Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS, Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS):
        if kind in able.types:
            return kind
    raise Unsuitable(
        f"{unit.address} has no reservations for all registrants (types 8h and 7h), which keep the fence when a node ends: "
        "use another array"
    )


def register(unit: Unit, old: int, new: int) -> None:
    """Change the key of this nexus from `old` (0: not registered) to `new` (0: unregister).

    Raise ReservationConflict if `old` is not its key, and the other errors of Unit.execute.
    """
    _out(unit, _REGISTER, old, new, flags=_APTPL)


def register_and_ignore(unit: Unit, new: int) -> None:
    """Register this nexus with that key, whatever key it has (REGISTER AND IGNORE EXISTING KEY)."""
    _out(unit, _REGISTER_AND_IGNORE, 0, new, flags=_APTPL)


def own_key(unit: Unit) -> int | None:
    """Return the key of this nexus; None if it is not registered.  Raise the errors of Unit.execute.

    READ FULL STATUS would need this nexus's TransportID, which Linux shows for few transports.  So each key of READ KEYS
    is registered again in its own place: the device refuses that with a conflict unless it is this nexus's key.
    """
    for key in sorted(set(read_keys(unit).keys)):
        try:
            register(unit, key, key)
        except block_device.ReservationConflict:
            continue
        return key
    return None


def reserve(unit: Unit, own: int, kind: Type) -> None:
    """Reserve the unit.  This succeeds, too, if this nexus holds a reservation of that type already.

    Raise ReservationConflict, and the other errors of Unit.execute.
    """
    _out(unit, _RESERVE, own, 0, kind=kind)


def preempt(unit: Unit, own: int, victim: int, kind: Type) -> None:
    """Remove all other registrations with the key `victim` (0: all); their commands go on (SPC-4 5.12.11).

    Raise ReservationConflict, and the other errors of Unit.execute.
    """
    _out(unit, _PREEMPT, own, victim, kind=kind)


def preempt_and_abort(unit: Unit, own: int, victim: int, kind: Type) -> None:
    """Remove all other registrations with the key `victim` (0: all), and have their commands aborted (SPC-4 5.12.11).

    Raise ReservationConflict, and the other errors of Unit.execute.  `unit.TaskAborted` means that another nexus did
    the same at the same time.
    """
    _out(unit, _PREEMPT_AND_ABORT, own, victim, kind=kind)


def clear(unit: Unit, own: int) -> None:
    """Remove the reservation and all registrations.  Raise ReservationConflict, and the errors of Unit.execute."""
    _out(unit, _CLEAR, own, 0)


def _in(unit: Unit, action: int) -> tuple[int, bytes]:
    data = unit.execute(struct.pack(">BB5xHx", _IN, action, _LENGTH), in_length=_LENGTH)
    if len(data) < 8:
        raise Unsuitable(f"{unit.address} answered PERSISTENT RESERVE IN with {len(data)} bytes")
    generation, length = struct.unpack_from(">II", data)
    return generation, data[8 : 8 + length]


def _out(unit: Unit, action: int, own: int, service_key: int, *, kind: int = 0, flags: int = 0) -> None:
    try:
        unit.execute(
            struct.pack(">BBB2xIx", _OUT, action, kind, _PARAMETERS.size), _PARAMETERS.pack(own, service_key, flags)
        )
    except CheckCondition as refused:
        if _is_unknown(refused):
            raise Unsuitable(f"{unit.address} refuses PERSISTENT RESERVE OUT: {refused.sense}") from refused
        raise


def _is_unknown(refused: CheckCondition) -> bool:
    return refused.sense.key == ILLEGAL_REQUEST and refused.sense.asc in (
        INVALID_COMMAND_OPERATION_CODE,
        INVALID_FIELD_IN_CDB,
        INVALID_FIELD_IN_PARAMETER_LIST,
    )


def _transport_id(raw: bytes) -> tuple[str, str]:
    if not raw or raw[0] & 0x0F != _ISCSI or len(raw) < 4:
        return raw.hex(), ""
    name = raw[4 : 4 + int.from_bytes(raw[2:4])].rstrip(b"\0").decode(errors="replace")
    if raw[0] >> 6 == 1:
        name, _, isid = name.partition(",i,0x")
        return name, isid.lower()
    return name, ""
