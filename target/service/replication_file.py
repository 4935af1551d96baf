# SPDX-License-Identifier: Apache-2.0
"""The file of the replications of a volume: what each receiver has, and what is on its way.

<state directory>/volumes/<name>/replications.json

| field     | meaning                                                                                       |
| --------- | --------------------------------------------------------------------------------------------- |
| `pending` | the snapshot that is to arrive next: by its name from the moment before it is taken           |
| `taken`   | the snapshots that this replication took and did not delete yet, by UUID                      |
| `arrived` | the newest snapshot that the receiver has, its moment, and the moment when it was there       |

A crash at any moment leaves at most a snapshot that the name in `pending` finds again.
"""

from __future__ import annotations

import dataclasses
import uuid
from pathlib import Path
from typing import Literal

import pydantic

from lun_backends.files import format as format_
from lun_backends.files import os_error, small_file
from target.service import problems

NAME = "replications.json"

_CONFIG = pydantic.ConfigDict(extra="forbid")


@pydantic.dataclasses.dataclass(frozen=True, config=_CONFIG)
class Arrived:
    """A snapshot that the receiver has."""

    uuid: uuid.UUID
    name: str
    taken_at: pydantic.AwareDatetime
    arrived_at: pydantic.AwareDatetime


@pydantic.dataclasses.dataclass(frozen=True, config=_CONFIG)
class Progress:
    """The state of one replication; see the module's table.  `due` is the moment for which the last snapshot was taken."""

    pending: str = ""
    due: pydantic.AwareDatetime | None = None
    taken: tuple[uuid.UUID, ...] = ()
    arrived: Arrived | None = None


@pydantic.dataclasses.dataclass(frozen=True, config=_CONFIG)
class _File:
    replications: dict[str, Progress] = dataclasses.field(default_factory=dict)
    format: Literal[1] = 1


_TYPE = pydantic.TypeAdapter(_File)


def load(directory: Path) -> dict[str, Progress]:
    """Return the state of each replication of a volume, by name.  Raise Problem."""
    path = directory / NAME
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        remedy = "check the permissions and the file system"
        raise problems.refused(f"{path} cannot be read", os_error.reason(error), remedy) from error
    try:
        return dict(_TYPE.validate_json(text, strict=False).replications)
    except pydantic.ValidationError as error:
        if newer := format_.newer(text, 1):
            raise problems.refused(f"{path} cannot be read", newer, format_.REMEDY) from error
        first = error.errors(include_url=False)[0]
        remedy = "delete it: the receiver tells what it has; then release and delete the snapshots called replica-..."
        raise problems.refused(f"{path} is damaged", str(first["msg"]), remedy) from error


def store(directory: Path, name: str, progress: Progress) -> None:
    """Replace the state of one replication, durably.  Raise Problem, OSError."""
    content = _File({**load(directory), name: progress})
    small_file.replace(directory / NAME, _TYPE.dump_json(content, indent=2) + b"\n")
