# SPDX-License-Identifier: Apache-2.0
"""Volumes in the state directory that the configuration does not name.

A volume that is renamed in the configuration, or removed from it, leaves its directory behind.  Without this module, a
new and empty disk could come up under the volume's LUN, and initiators would take that disk for their volume.  So a
small file remembers the LUN of each volume, and the volumes that an administrator set aside:

    <state directory>/volumes.json

A volume that is left behind and not set aside is an alert.  No new volume gets its LUN or its primary.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import pydantic

from lun_backends.files import format as format_
from lun_backends.files import small_file
from lun_backends.volumes import manifest
from target.service import lun_numbers

FORMAT: Final = 1


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class _File:
    luns: dict[uuid.UUID, Annotated[int, pydantic.Field(ge=0)]] = dataclasses.field(default_factory=dict)
    set_aside: tuple[uuid.UUID, ...] = ()
    format: Literal[1] = FORMAT


_TYPE = pydantic.TypeAdapter(_File)


@dataclass(frozen=True, slots=True)
class Left:
    """A volume that was left behind; `lun` is its last LUN, None if it had none or the LUN is unknown."""

    name: str
    directory: Path
    uuid: uuid.UUID | None  # None: its manifest cannot be read
    primary: Path | None
    snapshots: int
    lun: int | None


class LeftBehind:
    """The volumes left behind under one state directory.  Thread-safe.  Raise lun_numbers.Damaged, OSError."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "volumes.json"
        self._directory = state_dir / "volumes"
        self._lock = threading.Lock()
        self._file = _File()
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return
        try:
            self._file = _TYPE.validate_json(text, strict=False)
        except pydantic.ValidationError as error:
            if reason := format_.newer(text, FORMAT):
                raise lun_numbers.Damaged(f"{self._path}: {reason}: {format_.REMEDY}") from error
            what = error.errors(include_url=False)[0]["msg"]
            remedy = "restore it from a backup, or delete it; then only the alerts about volumes left behind suffer"
            raise lun_numbers.Damaged(f"{self._path} is damaged ({what}): {remedy}") from error

    def found(self, configured: Collection[str]) -> Iterator[Left]:
        """Yield the volumes that are not among the names `configured` and were not set aside, in order of name."""
        with contextlib.suppress(FileNotFoundError):
            for directory in sorted(self._directory.iterdir()):
                if directory.name not in configured and manifest.exists(directory):
                    left = self._left(directory)
                    if left.uuid not in self._file.set_aside:
                        yield left

    def find(self, name: str) -> Left | None:
        """Return the volume in the directory of that name, even if it was set aside."""
        directory = self._directory / name
        return self._left(directory) if manifest.exists(directory) else None

    def _left(self, directory: Path) -> Left:
        try:
            record = manifest.load(directory)
        except manifest.ManifestError:
            return Left(directory.name, directory, None, None, 0, None)
        lun = self._file.luns.get(record.uuid)
        return Left(directory.name, directory, record.uuid, record.primary.path, len(record.snapshots), lun)

    def serve(self, volume: uuid.UUID, lun: int | None) -> None:
        """Note that a volume is served under this LUN.  Raise OSError."""
        with self._lock:
            luns = {identity: number for identity, number in self._file.luns.items() if identity != volume}
            if lun is not None:
                luns[volume] = lun
            self._store(luns, tuple(identity for identity in self._file.set_aside if identity != volume))

    def set_aside(self, volume: uuid.UUID) -> None:
        """Note that a volume is left behind knowingly.  Raise OSError."""
        with self._lock:
            luns = {identity: number for identity, number in self._file.luns.items() if identity != volume}
            self._store(luns, (*(identity for identity in self._file.set_aside if identity != volume), volume))

    def forget(self, volume: uuid.UUID) -> None:
        """Forget a volume whose data is deleted.  Raise OSError."""
        with self._lock:
            luns = {identity: number for identity, number in self._file.luns.items() if identity != volume}
            self._store(luns, tuple(identity for identity in self._file.set_aside if identity != volume))

    def _store(self, luns: dict[uuid.UUID, int], set_aside: tuple[uuid.UUID, ...]) -> None:
        changed = _File(luns, set_aside)
        if changed != self._file:
            small_file.replace(self._path, _TYPE.dump_json(changed, indent=2) + b"\n")
            self._file = changed
