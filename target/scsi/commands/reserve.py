# SPDX-License-Identifier: Apache-2.0
"""PERSISTENT RESERVE IN and OUT (SPC-4 6.16, 6.17), RESERVE and RELEASE of 6 and 10 bytes (SPC-2 7.16 ff., 7.21 ff.).

persistent_reservation.py has the meaning of these commands; this module has their parameters.  No PERSISTENT RESERVE
OUT, RESERVE or RELEASE runs on an event loop.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from lun_backends.block_device import WouldBlock
from target.scsi import sense, transfer
from target.scsi.logical_unit import ItlNexus
from target.scsi.reservations import persistent_reservation, transport_id
from target.scsi.reservations.persistent_reservation import InitiatorPort, Outcome, ReservationState, ReservationType
from target.scsi.task import Task

RELATIVE_TARGET_PORT = 1  # the only one, as INQUIRY page 83h reports
_LU_SCOPE = 0
_BASIC = struct.Struct(">QQ4xB3x")
_MOVE = struct.Struct(">QQxBHI")
SPEC_I_PT, ALL_TG_PT, APTPL, UNREG = 0x08, 0x04, 0x01, 0x02
MAX_LIST_BYTES = 65536

_COMPATIBLE_RESERVATION_HANDLING = 0x10
_SPECIFY_INITIATOR_PORTS_CAPABLE = 0x08
_ALL_TARGET_PORTS_CAPABLE = 0x04
_PERSIST_THROUGH_POWER_LOSS_CAPABLE = 0x01
_TYPE_MASK_VALID, _PERSIST_THROUGH_POWER_LOSS_ACTIVATED = 0x80, 0x01
_TYPE_MASK = 0xEA01  # all six


# -- PERSISTENT RESERVE IN ---------------------------------------------------------------------------------------


def _reply(task: Task, data: bytes) -> None:
    transfer.reply(task, data, int.from_bytes(task.cdb[7:9]))


def read_keys(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run READ KEYS: report a key for every registration, equal ones included."""
    state = itl.unit.reservations.state
    keys = [state.keys[port] for port in sorted(state.keys)]
    _reply(task, struct.pack(f">II{len(keys)}Q", state.generation, 8 * len(keys), *keys))


def read_reservation(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run READ RESERVATION; the key of an all registrants reservation is 0."""
    state = itl.unit.reservations.state
    held = state.reservation
    if held is None:
        _reply(task, struct.pack(">II", state.generation, 0))
        return
    key = 0 if held.type.all_registrants else state.keys[held.holder]
    _reply(task, struct.pack(">IIQ5xB2x", state.generation, 16, key, held.type))


def report_capabilities(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run REPORT CAPABILITIES (SPC-4 6.16.4)."""
    reservations = itl.unit.reservations
    flags = _COMPATIBLE_RESERVATION_HANDLING | _SPECIFY_INITIATOR_PORTS_CAPABLE | _ALL_TARGET_PORTS_CAPABLE
    flags |= _PERSIST_THROUGH_POWER_LOSS_CAPABLE if reservations.path is not None else 0
    now = _TYPE_MASK_VALID | (_PERSIST_THROUGH_POWER_LOSS_ACTIVATED if reservations.state.persists else 0)
    _reply(task, struct.pack(">HBBH2x", 8, flags, now, _TYPE_MASK))


def read_full_status(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run READ FULL STATUS: report the registered ports, and which of them hold the reservation."""
    state = itl.unit.reservations.state
    held = state.reservation
    data = bytearray()
    for port in sorted(state.keys):
        holds = held is not None and state.holds(port)
        kind = int(held.type) if held is not None and holds else 0
        name = transport_id.pack(port)
        data += struct.pack(">Q4xBB4xHI", state.keys[port], 1 if holds else 0, kind, RELATIVE_TARGET_PORT, len(name))
        data += name
    _reply(task, struct.pack(">II", state.generation, len(data)) + data)


# -- PERSISTENT RESERVE OUT --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Request:
    """The parameters of every service action except REGISTER AND MOVE."""

    key: int
    service_key: int
    type: ReservationType | None  # None: there is no such type
    flags: int
    more: bytes  # the parameter list, with the part after the first 24 bytes


def _parameters(task: Task, nowait: bool) -> bytes:
    length = int.from_bytes(task.cdb[5:9])
    if length < _BASIC.size or length > MAX_LIST_BYTES:
        raise sense.parameter_list_length()
    data = transfer.joined(task, length)
    if nowait:
        raise WouldBlock
    return data


def _type(task: Task, *, checked: bool) -> ReservationType | None:
    code = task.cdb[2] & 0x0F
    try:
        kind: ReservationType | None = ReservationType(code)
    except ValueError:
        kind = None
    if checked and (kind is None or task.cdb[2] >> 4 != _LU_SCOPE):
        raise sense.invalid_field(2)
    return kind


def _request(itl: ItlNexus, task: Task, nowait: bool, *, typed: bool = False) -> _Request:
    data = _parameters(task, nowait)
    key, service_key, flags = _BASIC.unpack_from(data)
    if flags & SPEC_I_PT:
        if task.cdb[1] & 0x1F != 0x00:  # only REGISTER may (SPC-4 6.17.3)
            raise sense.invalid_parameter(20, 3)
    elif len(data) != _BASIC.size:
        raise sense.parameter_list_length()
    return _Request(key, service_key, _type(task, checked=typed), flags, data)


def _persists(itl: ItlNexus, flags: int, byte: int) -> bool:
    if flags & APTPL and itl.unit.reservations.path is None:
        raise sense.invalid_parameter(byte, 0)
    return bool(flags & APTPL)


def _ports(itl: ItlNexus, data: bytes) -> list[InitiatorPort]:
    """Return the ports that SPEC_I_PT lists; a name without ISID stands for all of its ports that are logged in."""
    if len(data) < _BASIC.size + 4:
        raise sense.parameter_list_length()
    if int.from_bytes(data[24:28]) != len(data) - 28:
        raise sense.parameter_list_length()
    ports: list[InitiatorPort] = []
    position = 28
    while position < len(data):
        port, end = transport_id.unpack(data, position)
        ports += _resolved(itl, port, position)
        position = end
    return ports


def _resolved(itl: ItlNexus, port: InitiatorPort, position: int) -> list[InitiatorPort]:
    if port.isid:
        return [port]
    ports = list(itl.nexus.ports_of(port.initiator))
    if not ports:
        raise sense.invalid_parameter(position)
    return ports


def _run(itl: ItlNexus, task: Task, change: Callable[[ReservationState], Outcome], *, abort: bool = False) -> None:
    itl.unit.reservations.change(task, change, abort=abort)
    if itl.unit.changed_by is not None:
        what = f"PERSISTENT RESERVE OUT, service action {task.cdb[1] & 0x1F:02X}h, {itl.unit.name}"
        itl.unit.changed_by(itl.nexus.port.initiator, what)
    transfer.good(task)


def register(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run REGISTER, with SPEC_I_PT; ALL_TG_PT means nothing because there is one target port."""
    asked = _request(itl, task, nowait)
    persists = _persists(itl, asked.flags, 20)
    port = itl.nexus.port
    also: list[InitiatorPort] = []
    if asked.flags & SPEC_I_PT:
        if port in itl.unit.reservations.state.keys:  # SPC-4 5.12.7: only for a port that is not registered yet
            raise sense.invalid_parameter(20, 3)
        also = _ports(itl, asked.more)
    _run(
        itl,
        task,
        lambda state: persistent_reservation.register(
            state, port, asked.key, asked.service_key, also=also, persists=persists
        ),
    )


def register_and_ignore(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run REGISTER AND IGNORE EXISTING KEY."""
    asked = _request(itl, task, nowait)
    persists = _persists(itl, asked.flags, 20)
    port = itl.nexus.port
    _run(
        itl,
        task,
        lambda state: persistent_reservation.register(
            state, port, 0, asked.service_key, ignore_key=True, persists=persists
        ),
    )


def reserve(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run RESERVE."""
    asked = _request(itl, task, nowait, typed=True)
    kind = asked.type
    assert kind is not None
    _run(itl, task, lambda state: persistent_reservation.reserve(state, itl.nexus.port, asked.key, kind))


def release(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run RELEASE."""
    asked = _request(itl, task, nowait)
    kind = None if task.cdb[2] >> 4 != _LU_SCOPE else asked.type
    _run(itl, task, lambda state: persistent_reservation.release(state, itl.nexus.port, asked.key, kind))


def clear(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run CLEAR."""
    asked = _request(itl, task, nowait)
    _run(itl, task, lambda state: persistent_reservation.clear(state, itl.nexus.port, asked.key))


def _preempt(itl: ItlNexus, task: Task, nowait: bool, *, abort: bool) -> None:
    asked = _request(itl, task, nowait)
    kind = None if task.cdb[2] >> 4 != _LU_SCOPE else asked.type
    _run(
        itl,
        task,
        lambda state: persistent_reservation.preempt(state, itl.nexus.port, asked.key, asked.service_key, kind),
        abort=abort,
    )


def preempt(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run PREEMPT."""
    _preempt(itl, task, nowait, abort=False)


def preempt_and_abort(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run PREEMPT AND ABORT: GOOD only when no task of the preempted ports runs any longer."""
    _preempt(itl, task, nowait, abort=True)


def register_and_move(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run REGISTER AND MOVE."""
    data = _parameters(task, nowait)
    key, new_key, flags, target_port, length = _MOVE.unpack_from(data)
    if length != len(data) - _MOVE.size or length < 24:
        raise sense.parameter_list_length()
    persists = _persists(itl, flags, 17)
    to, end = transport_id.unpack(data, _MOVE.size)
    if end != len(data):
        raise sense.invalid_parameter(20)
    if target_port != RELATIVE_TARGET_PORT:
        raise sense.invalid_parameter(18)
    ports = _resolved(itl, to, _MOVE.size)
    if len(ports) != 1:  # a name without ISID, and several sessions of that name
        raise sense.invalid_parameter(_MOVE.size)

    def change(state: ReservationState) -> Outcome:
        return persistent_reservation.register_and_move(
            state, itl.nexus.port, key, new_key, ports[0], unregister=bool(flags & UNREG), persists=persists
        )

    _run(itl, task, change)


# -- SPC-2 -------------------------------------------------------------------------------------------------------


def reserve_spc2(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run RESERVE(6) and (10), for the whole unit and this session."""
    if nowait:
        raise WouldBlock
    itl.unit.reservations.reserve(itl)
    transfer.good(task)


def release_spc2(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run RELEASE(6) and (10)."""
    if nowait:
        raise WouldBlock
    itl.unit.reservations.release(itl)
    transfer.good(task)
