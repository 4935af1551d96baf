# SPDX-License-Identifier: Apache-2.0
"""The file in which a unit's persistent reservation outlives the daemon (APTPL, SPC-4 5.12.5).

The file is JSON and is replaced as a whole (lun_backends.files.small_file), so a crash leaves the old state or the new
state.  If there is no file, there is nothing to remember.  If the file cannot be understood, the daemon does not serve
the unit, because without the reservation, initiators that it excludes could write.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Literal

import pydantic

from lun_backends.files import format as format_
from lun_backends.files import small_file
from target import iscsi_name
from target.scsi.reservations.persistent_reservation import (
    InitiatorPort,
    Reservation,
    ReservationState,
    ReservationType,
)


class ReservationFileDamaged(Exception):
    """The file cannot be understood; the message has its path, the reason and the remedy."""


class ReservationFileNewer(ReservationFileDamaged):
    """A newer version of wolun made the file; the message has its path and the reason."""


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class _Registration:
    initiator: str
    isid: str
    key: str  # hexadecimal: many readers of JSON keep only 53 bits of a number


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class _Reservation:
    type: ReservationType
    initiator: str
    isid: str


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class _File:
    registrations: list[_Registration]
    reservation: _Reservation | None
    format: Literal[1] = 1


_TYPE = pydantic.TypeAdapter(_File)


def load(path: Path) -> ReservationState:
    """Return the stored state, or an empty one if there is no file.  Raises ReservationFileDamaged, OSError."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return ReservationState()
    try:
        file = _TYPE.validate_json(text, strict=False)
        keys = {_port(entry.initiator, entry.isid): int(entry.key, 16) for entry in file.registrations}
    except ValueError as error:
        if newer := format_.newer(text, 1):
            raise ReservationFileNewer(f"{path}: {newer}") from error
        reason = error.errors(include_url=False)[0]["msg"] if isinstance(error, pydantic.ValidationError) else error
        raise ReservationFileDamaged(
            f"{path} is damaged ({reason}): put it back from a backup, or delete it and let initiators reserve anew"
        ) from error
    held = file.reservation
    reservation = None if held is None else Reservation(held.type, _port(held.initiator, held.isid))
    if not keys or any(not 0 < key < 1 << 64 for key in keys.values()):
        raise ReservationFileDamaged(f"{path} is damaged (impossible keys): put it back from a backup, or delete it")
    if reservation is not None and reservation.holder not in keys:
        raise ReservationFileDamaged(
            f"{path} is damaged (its holder is not registered): put it back from a backup, or delete it"
        )
    return ReservationState(MappingProxyType(keys), reservation, persists=True)


def _port(initiator: str, isid: str) -> InitiatorPort:
    """Return a port as logins name it: older versions stored names with capitals."""
    return InitiatorPort(iscsi_name.comparable(initiator), isid)


def store(path: Path, state: ReservationState) -> None:
    """Store the state, or remove the stored one if it does not persist.  Durable on return.  Raises OSError."""
    if state.persists:
        held = state.reservation
        content = _File(
            [_Registration(port.initiator, port.isid, f"{key:#018x}") for port, key in sorted(state.keys.items())],
            None if held is None else _Reservation(held.type, held.holder.initiator, held.holder.isid),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        small_file.replace(path, _TYPE.dump_json(content, indent=2) + b"\n")
    else:
        small_file.remove(path)
