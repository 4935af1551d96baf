# SPDX-License-Identifier: Apache-2.0
"""Which LUN numbers the snapshots have: the same over restarts, until the snapshot is deleted.

Kept in one small file, replaced as a whole: written beside, synced, renamed over, the directory synced.  Numbers are
stored before they are served, so no initiator ever saw a number that a crash could give to another snapshot.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydantic

from lun_backends.files import small_file
from target.scsi import scsi_target
from target.service import problems


@dataclass(frozen=True, slots=True)
class Numbers:
    """The LUNs of one snapshot of a volume."""

    volume: str
    view: int
    write_once: int


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class _File:
    snapshots: dict[uuid.UUID, Numbers]
    format: Literal[1] = 1


_TYPE = pydantic.TypeAdapter(_File)


class Damaged(Exception):
    """The file cannot be read; says why and what to do."""


class LunNumbers:
    """The numbers in the file at `path`, none of which may be in `reserved` (the volumes' own).  Thread-safe.

    Raises Damaged, OSError.
    """

    def __init__(self, path: Path, reserved: Collection[int]) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._reserved = frozenset(reserved)
        self._snapshots: dict[uuid.UUID, Numbers] = {}
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return
        try:
            self._snapshots = dict(_TYPE.validate_json(text, strict=False).snapshots)
        except pydantic.ValidationError as error:
            what = error.errors(include_url=False)[0]["msg"]
            raise Damaged(
                f"{path} is damaged ({what}): put it back from a backup, or delete it and let snapshots get new LUNs"
            ) from error

    def all(self) -> Mapping[uuid.UUID, Numbers]:
        """What is allotted now."""
        return dict(self._snapshots)

    def allot(self, snapshot: uuid.UUID, volume: str) -> Numbers:
        """The numbers of a snapshot: those it has, or the lowest two that are free.  Durable on return.

        Raises Problem when there are none, OSError.
        """
        with self._lock:
            known = self._snapshots.get(snapshot)
            if known is not None:
                return known
            used = {number for each in self._snapshots.values() for number in (each.view, each.write_once)}
            used |= self._reserved
            free = (number for number in range(scsi_target.MAX_LUN + 1) if number not in used)
            view, write_once = next(free, None), next(free, None)
            if view is None or write_once is None:
                raise problems.no_luns_left()
            numbers = Numbers(volume, view, write_once)
            self._store({**self._snapshots, snapshot: numbers})
            return numbers

    def reserve(self, number: int) -> None:
        """A volume has this number now: no snapshot gets it.  Raises Problem if one has it."""
        with self._lock:
            for numbers in self._snapshots.values():
                if number in (numbers.view, numbers.write_once):
                    raise problems.lun_taken(number, numbers.volume)
            self._reserved |= {number}

    def release(self, number: int) -> None:
        """No volume has this number any more."""
        with self._lock:
            self._reserved -= {number}

    def lowest_free(self) -> int:
        """A number for a new volume.  Raises Problem when there is none."""
        with self._lock:
            used = {number for each in self._snapshots.values() for number in (each.view, each.write_once)}
            used |= self._reserved
        for number in range(scsi_target.MAX_LUN + 1):
            if number not in used:
                return number
        raise problems.no_luns_left()

    def free(self, snapshots: Collection[uuid.UUID]) -> None:
        """Give back the numbers of snapshots that are no more.  Raises OSError."""
        with self._lock:
            kept = {identity: numbers for identity, numbers in self._snapshots.items() if identity not in snapshots}
            if len(kept) < len(self._snapshots):
                self._store(kept)

    def _store(self, snapshots: dict[uuid.UUID, Numbers]) -> None:
        small_file.replace(self._path, _TYPE.dump_json(_File(snapshots), indent=2) + b"\n")
        self._snapshots = snapshots
