# SPDX-License-Identifier: Apache-2.0
"""The file of a pool: its volume's identity, and the identities and LUN numbers of its write-once LUNs.

<state directory>/pools/<volume>/pool.json                              this file
<state directory>/pools/<volume>/<identity>.{map,chunks,outside}        the store of each LUN, of the log as well

A LUN is in the file before initiators see it, and its store is on the disk before it is in the file.  So a store without
an entry was never seen, and an entry without a store has lost its data.  A number of a retired LUN stays in the file for
ever: a node that slept may still write to that number, and another LUN there would take its data.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pydantic

from lun_backends.files import format as format_
from lun_backends.files import small_file
from target.service import lun_numbers

_DIRECTORY = "pools"
_NAME = "pool.json"


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class _File:
    volume: uuid.UUID
    log: uuid.UUID
    log_lun: int
    luns: dict[uuid.UUID, int]
    retired_luns: list[int]
    format: Literal[1] = 1


_TYPE = pydantic.TypeAdapter(_File)


@dataclass(frozen=True, slots=True)
class Members:
    """The content of the file."""

    volume: uuid.UUID
    log: uuid.UUID
    log_lun: int
    luns: Mapping[uuid.UUID, int] = field(default_factory=dict)  # the number of each write-once LUN, by its identity
    retired_luns: tuple[int, ...] = ()  # ascending


def directory(state_dir: Path, volume: str) -> Path:
    """Return the directory of a volume's pool."""
    return state_dir / _DIRECTORY / volume


def names(state_dir: Path) -> set[str]:
    """Return the volumes whose pools the state directory has."""
    return {path.parent.name for path in (state_dir / _DIRECTORY).glob(f"*/{_NAME}")}


def load(where: Path) -> Members | None:
    """Return the members of the pool in that directory; None if there is no file yet.  Raise lun_numbers.Damaged, OSError."""
    path = where / _NAME
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = _TYPE.validate_json(text, strict=False)
    except pydantic.ValidationError as error:
        if newer := format_.newer(text, 1):
            raise lun_numbers.Damaged(f"{path}: {newer}: {format_.REMEDY}") from error
        what = error.errors(include_url=False)[0]["msg"]
        raise lun_numbers.Damaged(
            f"{path} is damaged ({what}): restore it from a backup; without it nobody knows which write-once LUN is which"
        ) from error
    return Members(found.volume, found.log, found.log_lun, dict(found.luns), tuple(found.retired_luns))


def store(where: Path, members: Members) -> None:
    """Replace the file, durably.  Raise OSError."""
    content = _File(members.volume, members.log, members.log_lun, dict(members.luns), sorted(members.retired_luns))
    small_file.replace(where / _NAME, _TYPE.dump_json(content, indent=2) + b"\n")


def numbers(state_dir: Path) -> Mapping[int, str]:
    """Return all numbers that pools have or had, and whose, also of pools that are not configured any longer.

    Raise lun_numbers.Damaged, OSError.
    """
    found: dict[int, str] = {}
    for path in sorted((state_dir / _DIRECTORY).glob(f"*/{_NAME}")):
        members = load(path.parent)
        if members is not None:
            taken = (members.log_lun, *members.luns.values(), *members.retired_luns)
            found.update(dict.fromkeys(taken, path.parent.name))
    return found
