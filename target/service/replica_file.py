# SPDX-License-Identifier: Apache-2.0
"""The file of a volume that receives streams from another host: where it comes from, and how far it has come.

<state directory>/volumes/<name>/replica.json

| field       | meaning                                                                                                  |
| ----------- | -------------------------------------------------------------------------------------------------------- |
| `replica`   | the volume is a replica: it takes no writes here.  `wolun volume promote` ends that                      |
| `origins`   | for each snapshot that was received, by its UUID here, its identity: the UUID where it was first taken   |
| `partial`   | the stream that is under way, and the offset up to which its data is on stable storage                   |

A snapshot here has a UUID of its own, because two hosts must not serve two LUNs under one identity.  Its UUID is in
`origins` before the snapshot is taken, so a crash leaves no snapshot whose identity is unknown.  An entry without a
snapshot means nothing.  The file stays when the volume is promoted: its snapshots are the bases on which the old origin can
be brought up to date again.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pydantic

from lun_backends.backups import frames
from lun_backends.files import format as format_
from lun_backends.files import os_error, small_file
from lun_backends.volumes import interface
from target.service import problems

NAME = "replica.json"

_CONFIG = pydantic.ConfigDict(extra="forbid")


@pydantic.dataclasses.dataclass(frozen=True, config=_CONFIG)
class Partial:
    """A stream that is under way: of snapshot `identity` since snapshot `since`, applied before `offset`."""

    identity: uuid.UUID
    name: str
    since: uuid.UUID | None = None
    offset: int = 0

    @property
    def token(self) -> str:
        """The word with which the sender goes on."""
        return frames.Token(str(self.identity), str(self.since or ""), self.offset).encoded()


@pydantic.dataclasses.dataclass(frozen=True, config=_CONFIG)
class Replica:
    """The content of the file; see the module's table.  `source` is the volume's name at its sender, `source_uuid` its UUID."""

    source: str
    source_uuid: str
    replica: bool = True
    origins: dict[uuid.UUID, uuid.UUID] = dataclasses.field(default_factory=dict)
    partial: Partial | None = None
    format: Literal[1] = 1


_TYPE = pydantic.TypeAdapter(Replica)


def load(directory: Path) -> Replica | None:
    """Return what the file in a volume's directory says; None if there is none.  Raise Problem."""
    path = directory / NAME
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise problems.refused(
            f"{path} cannot be read", os_error.reason(error), "check the permissions and the file system"
        ) from error
    try:
        return _TYPE.validate_json(text, strict=False)
    except pydantic.ValidationError as error:
        if newer := format_.newer(text, 1):
            raise problems.refused(f"{path} cannot be read", newer, format_.REMEDY) from error
        first = error.errors(include_url=False)[0]
        remedy = "restore it from a backup; or delete it, and receive the volume anew under another name"
        raise problems.refused(f"{path} is damaged", str(first["msg"]), remedy) from error


def store(directory: Path, replica: Replica) -> None:
    """Replace the file, durably.  Raise OSError."""
    small_file.replace(directory / NAME, _TYPE.dump_json(replica, indent=2) + b"\n")


def is_replica(directory: Path) -> bool:
    """Return whether the volume takes no writes because it is a replica.  Raise Problem."""
    found = load(directory)
    return found is not None and found.replica


def identity(snapshot: interface.Snapshot, replica: Replica | None) -> uuid.UUID:
    """Return the identity of a snapshot: its UUID where it was first taken."""
    return snapshot.uuid if replica is None else replica.origins.get(snapshot.uuid, snapshot.uuid)


def identities(owner: interface.Volume, replica: Replica | None) -> Mapping[uuid.UUID, interface.Snapshot]:
    """Return the snapshots of a volume that can be read and are true, by their identities, oldest first."""
    return {
        identity(snapshot, replica): snapshot
        for snapshot in owner.snapshots
        if not snapshot.unreadable and not snapshot.doubt
    }
