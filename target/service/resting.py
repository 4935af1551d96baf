# SPDX-License-Identifier: Apache-2.0
"""LUN numbers of units that are gone: they rest before another unit may have them.

An initiator that knows a unit by its number continues to use the number.  Examples are a program that copies a disk,
and a host that logs in again after its connection was lost.  If another unit had the number then, its data would pass
for that of the old unit.  SCSI has sense data for the change, but many programs ignore it.  So a number rests

* while an initiator that sent a command to the old unit is logged in, and
* for `REST_SECONDS` afterwards, and at least as long after the unit went.

The same unit gets its number back at once.  The file survives the daemon, because after a restart, programs that still
know the old units log in again.  A restart begins the rest anew, because the file has no times: clocks may be wrong.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pydantic

from lun_backends.files import format as format_
from lun_backends.files import os_error, small_file
from target.service import lun_numbers

log = logging.getLogger(__name__)

REST_SECONDS = 600.0
"""A longer time than that for which hosts try to log in again: 120 s by default in Linux and in VMware's ESXi."""


@dataclass(frozen=True, slots=True)
class Rested:
    """The unit that a number belonged to, and the initiators that sent commands to it."""

    unit: uuid.UUID
    name: str
    initiators: frozenset[str] = frozenset()


@pydantic.dataclasses.dataclass(frozen=True)
class _File:
    luns: dict[int, Rested] = field(default_factory=dict)
    volumes: dict[int, uuid.UUID] = field(default_factory=dict)
    format: Literal[1] = 1


EVERYBODY = frozenset({"*"})
"""The initiators that may know a unit if their names were not kept."""

_TYPE = pydantic.TypeAdapter(_File)


class Resting:
    """The numbers that rest, in the file at `path`.  Thread-safe.

    `sessions` returns the names of the initiators that are logged in.  A file that cannot be written is logged, because
    no deletion may fail on a full disk; then the numbers rest until the daemon ends.  Raise lun_numbers.Damaged,
    OSError.
    """

    def __init__(
        self, path: Path, sessions: Callable[[], Collection[str]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._sessions = sessions
        self._clock = clock
        self._lock = threading.Lock()
        self._stored = _File()
        try:
            text = path.read_bytes()
            self._stored = _TYPE.validate_json(text, strict=False)
        except FileNotFoundError:
            pass
        except pydantic.ValidationError as error:
            if newer := format_.newer(text, 1):
                raise lun_numbers.Damaged(f"{path}: {newer}: {format_.REMEDY}") from error
            what = error.errors(include_url=False)[0]["msg"]
            raise lun_numbers.Damaged(
                f"{path} is damaged ({what}): restore it from a backup, or delete it when no initiator is logged in"
            ) from error
        self._luns = dict(self._stored.luns)
        self._volumes = dict(self._stored.volumes)
        self._since = dict.fromkeys(self._luns, clock())  # when an initiator that knows the old unit was last logged in

    def put(self, number: int, unit: uuid.UUID, name: str, initiators: Collection[str]) -> None:
        """Let a number rest, because its unit goes."""
        with self._lock:
            self._luns[number] = Rested(unit, name, frozenset(initiators))
            self._since[number] = self._clock()
            self._store()

    def taken(self, number: int, unit: uuid.UUID, *, fixed: bool = False) -> Rested | None:
        """End the rest of a number, because a unit has it now.  Return the unit before, if that was another one.

        The number of a volume is `fixed` by the configuration.  It is remembered while the volume has it, because the
        configuration may give it to another volume while no daemon runs.
        """
        with self._lock:
            before = self._luns.pop(number, None)
            self._since.pop(number, None)
            known = self._volumes.get(number)
            if fixed:
                self._volumes[number] = unit
            else:
                self._volumes.pop(number, None)
            self._store()
        if before is None and known is not None:
            before = Rested(known, "another volume", EVERYBODY)
        return None if before is None or before.unit == unit else before

    def look(self) -> None:
        """Note the numbers that logged-in initiators know, and end the rest of numbers that have rested long enough.

        The daemon calls it several times a minute.
        """
        with self._lock:
            self._look()

    def all(self) -> Mapping[int, Rested]:
        """Return the numbers that rest, and the units that they belonged to."""
        with self._lock:
            self._look()
            return dict(self._luns)

    def users(self, number: int, unit: uuid.UUID | None) -> tuple[str, list[str]]:
        """Return the name of the unit that a number belonged to, and the logged-in initiators that know that unit.

        Return no initiator if the number belonged to `unit` itself.
        """
        with self._lock:
            rested = self._luns.get(number)
        if rested is None or rested.unit == unit:
            return "", []
        return rested.name, sorted(_known(rested, set(self._sessions())))

    def _look(self) -> None:
        if not self._luns:
            return
        now, here = self._clock(), set(self._sessions())
        for number, rested in list(self._luns.items()):
            if _known(rested, here):
                self._since[number] = now
            elif now - self._since[number] >= REST_SECONDS:
                del self._luns[number], self._since[number]

    def _store(self) -> None:
        content = _File(dict(self._luns), dict(self._volumes))
        if content == self._stored:
            return
        try:
            small_file.replace(self._path, _TYPE.dump_json(content, indent=2) + b"\n")
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, os_error.reason(error))
        else:
            self._stored = content


def _known(rested: Rested, here: set[str]) -> set[str]:
    """Return which of the initiators that are `here` know the old unit."""
    return here if "*" in rested.initiators else here & rested.initiators
