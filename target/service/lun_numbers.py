# SPDX-License-Identifier: Apache-2.0
"""The LUN numbers of snapshots: each snapshot keeps its two numbers over restarts, until it is deleted.

The number of a unit that is gone rests before another unit gets it (`resting`).

They are kept in one small file that is replaced as a whole (lun_backends.files.small_file).  A number is stored before
it is served, so no initiator ever sees a number that another snapshot could have after a crash.
"""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import pydantic

from lun_backends.files import format as format_
from lun_backends.files import small_file
from target.scsi import scsi_target
from target.service import problems


@dataclass(frozen=True, slots=True)
class Numbers:
    """The LUNs of one snapshot of a volume."""

    volume: str
    view: int
    write_once: int
    map_view: bool | None = None
    """Whether initiators see the view, as the administrator ordered; None: the configuration decides."""
    map_write_once: bool | None = None
    """The same for the write-once LUN."""


FORMAT: Final = 2
"""Format 2 has `map_view` and `map_write_once`."""


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class _File:
    snapshots: dict[uuid.UUID, Numbers]
    format: Literal[1, 2] = FORMAT


_TYPE = pydantic.TypeAdapter(_File)


class Damaged(Exception):
    """The file cannot be read; the text has the reason and the remedy."""


class LunNumbers:
    """The numbers in the file at `path`, without those in `reserved`, which volumes have.  Thread-safe.

    Raise Damaged, OSError.
    """

    def __init__(
        self,
        path: Path,
        reserved: Collection[int],
        resting: Callable[[], Collection[int]] = lambda: (),
        *,
        pools: Mapping[int, str] | None = None,
    ) -> None:
        """Read the file.  `resting` returns the numbers that no new unit may have yet.

        `pools` are the numbers that the pools of write-once LUNs have or had, and whose they are.
        """
        self._resting = resting
        self._pools = dict(pools or {})
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
            if newer := format_.newer(text, FORMAT):
                raise Damaged(f"{path}: {newer}: {format_.REMEDY}") from error
            what = error.errors(include_url=False)[0]["msg"]
            raise Damaged(
                f"{path} is damaged ({what}): restore it from a backup, or delete it; then the snapshots get new LUNs"
            ) from error

    def all(self) -> Mapping[uuid.UUID, Numbers]:
        """Return the numbers of all snapshots, by the snapshot's identity."""
        return dict(self._snapshots)

    def of(self, snapshot: uuid.UUID) -> Numbers | None:
        """Return the numbers of a snapshot, or None if it has none."""
        return self._snapshots.get(snapshot)

    def allot(self, snapshot: uuid.UUID, volume: str) -> Numbers:
        """Return the numbers of a snapshot: those it has, or the lowest two that are free.  Durable on return.

        Raise Problem if none are free, and OSError.
        """
        with self._lock:
            known = self._snapshots.get(snapshot)
            if known is not None:
                return known
            used = self._used()
            free = (number for number in range(scsi_target.MAX_LUN + 1) if number not in used)
            view, write_once = next(free, None), next(free, None)
            if view is None or write_once is None:
                raise problems.no_luns_left()
            numbers = Numbers(volume, view, write_once)
            self._store({**self._snapshots, snapshot: numbers})
            return numbers

    def order(self, snapshot: uuid.UUID, *, view: bool | None, write_once: bool | None) -> Numbers:
        """Note an order to map or unmap LUNs of a snapshot that has numbers; None changes nothing.  Raise OSError."""
        with self._lock:
            before = self._snapshots[snapshot]
            numbers = dataclasses.replace(
                before,
                map_view=before.map_view if view is None else view,
                map_write_once=before.map_write_once if write_once is None else write_once,
            )
            self._store({**self._snapshots, snapshot: numbers})
            return numbers

    def rename(self, snapshots: Collection[uuid.UUID], volume: str) -> None:
        """Note that these snapshots belong to the volume of that name now.  Raise OSError."""
        with self._lock:
            renamed = {
                identity: dataclasses.replace(numbers, volume=volume)
                for identity, numbers in self._snapshots.items()
                if identity in snapshots and numbers.volume != volume
            }
            if renamed:
                self._store({**self._snapshots, **renamed})

    def reserve(self, number: int) -> None:
        """Keep a number for a volume: no snapshot gets it.  Raise Problem if one has it, or a pool."""
        with self._lock:
            if number in self._pools:
                raise problems.lun_of_pool(number, self._pools[number])
            for numbers in self._snapshots.values():
                if number in (numbers.view, numbers.write_once):
                    raise problems.lun_taken(number, numbers.volume)
            self._reserved |= {number}

    def release(self, number: int) -> None:
        """Release a number that no volume has any longer."""
        with self._lock:
            self._reserved -= {number}

    def lowest_free(self) -> int:
        """Return a number for a new volume.  Raise Problem when there is none."""
        with self._lock:
            return self._lowest_free()

    def take_for_pool(self, pool: str) -> int:
        """Return the lowest free number, which belongs to that pool for ever.  Raise Problem when there is none."""
        with self._lock:
            number = self._lowest_free()
            self._pools[number] = pool
            return number

    def return_from_pool(self, number: int) -> None:
        """Free a number that a pool took, and under which no initiator has seen a unit."""
        with self._lock:
            self._pools.pop(number, None)

    def pool_of(self, number: int) -> str | None:
        """Return the pool that has or had a number; None for all other numbers."""
        return self._pools.get(number)

    def free(self, snapshots: Collection[uuid.UUID]) -> None:
        """Free the numbers of deleted snapshots.  Raise OSError."""
        with self._lock:
            kept = {identity: numbers for identity, numbers in self._snapshots.items() if identity not in snapshots}
            if len(kept) < len(self._snapshots):
                self._store(kept)

    def _used(self) -> set[int]:
        used = {number for numbers in self._snapshots.values() for number in (numbers.view, numbers.write_once)}
        used |= self._reserved
        used.update(self._pools, self._resting())
        return used

    def _lowest_free(self) -> int:
        used = self._used()
        for number in range(scsi_target.MAX_LUN + 1):
            if number not in used:
                return number
        raise problems.no_luns_left()

    def _store(self, snapshots: dict[uuid.UUID, Numbers]) -> None:
        small_file.replace(self._path, _TYPE.dump_json(_File(snapshots), indent=2) + b"\n")
        self._snapshots = snapshots
