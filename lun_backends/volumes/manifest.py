# SPDX-License-Identifier: Apache-2.0
"""The manifest: the small JSON file that describes a volume and lists its snapshots.

It is replaced as a whole (see `files.small_file`), so a crash leaves the old one or the new one.  A snapshot exists
from the moment when a manifest that names it is durable.

| state      | meaning                                                                                              |
| ---------- | ---------------------------------------------------------------------------------------------------- |
| `active`   | can be read                                                                                          |
| `doubtful` | never stored here: `Manifest.doubtful` has the reason; can be read, see `identity`                   |
| `deleting` | has no view; its chunks are moving down to the next older snapshot; the next open continues this     |
| `invalid`  | never stored here: the snapshot's map, or a file beside it, records it (see `invalidation`)          |
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import functools
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, Literal

import pydantic

from lun_backends import names, refused
from lun_backends.durability import Durability
from lun_backends.files import format as format_
from lun_backends.files import os_error, small_file, storage_io
from lun_backends.stores.settings import Kind
from lun_backends.volumes import identity

_FILE = "volume.json"
_SPARE = "volume.json.spare"
_SPARE_BYTES = 16384  # forty snapshots

FORMAT: Final = 4
"""The format that is written.  Raise it with every new field: older versions refuse fields that they do not know.

| format | has in addition                               |
| ------ | --------------------------------------------- |
| 2      | `restoring_damaged`, `identity`, `doubtful`   |
| 3      | `notes`, `store`                              |
| 4      | `store: log`                                  |

New fields belong into `Manifest` itself.  There, an older version finds the format first, and can say that it is newer.
"""

LABELS_MAX = 64
"""Labels of one snapshot."""
LABEL_MAX = 256
"""Characters of a label's value."""


class Consistency(enum.Enum):
    """Who was quiet when a snapshot was taken."""

    CRASH = "crash"  # nobody: the content is that after a power cut
    FILE_SYSTEM = "file-system"  # a file system was frozen
    APPLICATION = "application"  # hooks quiesced an application


class SnapshotState(enum.Enum):
    """The state of a snapshot; see the module's table."""

    ACTIVE = "active"
    DELETING = "deleting"
    INVALID = "invalid"
    DOUBTFUL = "doubtful"


@dataclasses.dataclass(eq=False)
class ManifestError(refused.Refused):
    """The manifest at `path` cannot be used; `reason` is the fault of `field` (empty: of the whole file)."""

    path: Path
    field: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.path}, {self.field}" if self.field else f"{self.path}"
        return f"{where}: {self.reason}; {self.remedy}"


def _check_name(name: str) -> str:
    if not names.valid(name):
        raise ValueError(f"a name is {names.RULE}")
    return name


def bad_label(key: str, value: str) -> str:
    """Return the fault of a label; an empty text if the label is allowed."""
    if not names.valid(key):
        return f"{key!r} is no key for a label: a key is {names.RULE}"
    if len(value) > LABEL_MAX or not value.isprintable():
        return f"the value of label {key!r} is not at most {LABEL_MAX} printable characters"
    return ""


def _check_labels(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if problem := bad_label(key, value):
            raise ValueError(problem)
    if len(labels) > LABELS_MAX:
        raise ValueError(f"there are more than {LABELS_MAX} labels")
    return labels


def _check_power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError("must be a power of two")
    return value


def _check_block_size(value: int) -> int:
    if value not in (512, 4096):
        raise ValueError("must be 512 or 4096")
    return value


_Name = Annotated[str, pydantic.AfterValidator(_check_name)]
_PowerOfTwo = Annotated[int, pydantic.AfterValidator(_check_power_of_two)]
_Uuid = uuid.UUID  # where a field is called `uuid`
_Identity = identity.Identity
_CONFIG = pydantic.ConfigDict(extra="forbid")


@pydantic.dataclasses.dataclass(frozen=True, config=_CONFIG)
class SnapshotRecord:
    """One snapshot.  The names of its files contain its UUID."""

    name: _Name
    uuid: uuid.UUID
    taken_at: pydantic.AwareDatetime
    state: SnapshotState = SnapshotState.ACTIVE
    labels: Annotated[dict[str, str], pydantic.AfterValidator(_check_labels)] = dataclasses.field(default_factory=dict)
    scheduled: bool = False  # a schedule made it, and may delete it
    group: _Uuid | None = None  # the snapshot was taken only if this group was taken, see `group`

    @functools.cached_property
    def text(self) -> bytes:
        """Its JSON, made once: a volume with thousands of snapshots stores all of them with every change."""
        return _RECORD.dump_json(self, indent=2).replace(b"\n", b"\n    ")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _without_reason(cls, data: object) -> object:
        """Remove a field that older versions wrote, always empty."""
        return {key: value for key, value in data.items() if key != "reason"} if isinstance(data, dict) else data


@pydantic.dataclasses.dataclass(frozen=True, config=_CONFIG)
class Notes:
    """The remarks of administrators and hooks about a snapshot."""

    hold: str = ""  # why nobody may delete it; empty if it is not held
    expires: pydantic.AwareDatetime | None = None  # from when on a schedule may delete it
    consistency: Consistency = Consistency.CRASH


NOTHING: Final = Notes()
ChangeNotes = Callable[[Notes], Notes]


@pydantic.dataclasses.dataclass(frozen=True, config=_CONFIG)
class PrimaryRecord:
    """The file or device that holds the live data."""

    path: Path
    direct: bool = False


@pydantic.dataclasses.dataclass(frozen=True, config=_CONFIG)
class Manifest:
    """A volume.  `snapshots` are in order of age, oldest first.  `size`, `block_size` and `chunk_size` are in bytes."""

    name: _Name
    uuid: uuid.UUID
    created_at: pydantic.AwareDatetime  # for people who read the file
    primary: PrimaryRecord
    size: Annotated[int, pydantic.Field(gt=0)]
    block_size: Annotated[int, pydantic.AfterValidator(_check_block_size)]
    chunk_size: Annotated[_PowerOfTwo, pydantic.Field(ge=4096, le=1 << 20)]
    durability: Durability = Durability.POWER_LOSS
    snapshots: tuple[SnapshotRecord, ...] = ()
    epoch: Annotated[int, pydantic.Field(ge=0)] = 0  # how many snapshots were ever taken; for people who read the file
    in_use: str | None = None  # the boot that has the volume open with pre-images that are not synced: see `boot`
    restoring: _Uuid | None = (
        None  # the snapshot that the volume is being rolled back to (the field keeps its old name)
    )
    restoring_damaged: bool = False  # damaged blocks of that snapshot are taken as they are
    identity: _Identity | None = None  # of the primary, as it was seen last
    doubtful: dict[_Uuid, str] = dataclasses.field(
        default_factory=dict
    )  # why snapshots may not be true, see `identity`
    notes: dict[_Uuid, Notes] = dataclasses.field(default_factory=dict)  # of the snapshots that have any
    store: Kind = Kind.MAP  # of the snapshots
    format: Literal[1, 2, 3, 4] = FORMAT

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if self.size % self.block_size:
            raise ValueError(f"size is not a multiple of the block size {self.block_size}")
        count = len(self.snapshots)
        names = {snapshot.name for snapshot in self.snapshots}
        # `int`, because the hash of a UUID is computed in Python.
        if len(names) < count or len({snapshot.uuid.int for snapshot in self.snapshots}) < count:
            raise ValueError("two snapshots have the same name or the same UUID")
        if self.restoring is not None and all(snapshot.uuid != self.restoring for snapshot in self.snapshots):
            raise ValueError("the snapshot that is being restored is not there")
        return self


_RECORD = pydantic.TypeAdapter(SnapshotRecord)
_TYPE = pydantic.TypeAdapter(Manifest)


def now() -> datetime.datetime:
    """Return the time for a snapshot that is taken now: UTC, to the millisecond."""
    moment = datetime.datetime.now(datetime.UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def load(directory: Path) -> Manifest:
    """Return the manifest of the volume in `directory`.  Raises ManifestError."""
    path = directory / _FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise ManifestError(path, "", "there is no volume here", "create it, or correct the state directory") from error
    except OSError as error:
        reason = os_error.reason(error)
        raise ManifestError(path, "", reason, "check the permissions and the file system") from error
    try:
        return dataclasses.replace(_TYPE.validate_json(text, strict=False), format=FORMAT)
    except pydantic.ValidationError as error:
        field, reason = _first(error)
        remedy = "restore the file from a backup of the state directory"
        if format_.newer(text, FORMAT):
            field, reason, remedy = "format", format_.newer(text, FORMAT), format_.REMEDY
        raise ManifestError(path, field, reason, remedy) from error


def first_problem(error: ValueError) -> str:
    """Return as one phrase why a Manifest could not be made."""
    if isinstance(error, pydantic.ValidationError):
        field, reason = _first(error)
        return f"{field}: {reason}" if field else reason
    return str(error)


def _first(error: pydantic.ValidationError) -> tuple[str, str]:
    """Return the first of the problems: (field, its fault)."""
    first = error.errors(include_url=False)[0]
    return ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")


def with_notes(manifest: Manifest, snapshot: uuid.UUID, notes: Notes) -> Manifest:
    """Return the manifest with these notes of a snapshot."""
    others = {identity: other for identity, other in manifest.notes.items() if identity != snapshot}
    return dataclasses.replace(manifest, notes=others if notes == NOTHING else {**others, snapshot: notes})


def exists(directory: Path) -> bool:
    """Return whether there is a volume in `directory`."""
    return (directory / _FILE).exists()


def group_path(directory: Path, identity: uuid.UUID) -> Path:
    """Return the file that exists if a group of snapshots was taken; `directory` is of any volume of the group."""
    return directory.parent / ".groups" / str(identity)


def without_groups(directory: Path, manifest: Manifest) -> Manifest:
    """Return the manifest without snapshots of groups that were not taken; in it, no other snapshot names a group."""
    there = (
        record
        for record in manifest.snapshots
        if record.group is None or group_path(directory, record.group).exists() or manifest.restoring == record.uuid
    )
    records = tuple(dataclasses.replace(record, group=None) for record in there)
    known = {record.uuid.int for record in records}
    notes = {identity: notes for identity, notes in manifest.notes.items() if identity.int in known}
    return dataclasses.replace(manifest, snapshots=records, notes=notes)


def prepare(directory: Path, manifest: Manifest, io: storage_io.StorageIO = storage_io.SYSTEM) -> None:
    """Write a manifest beside the one in force, durably: the slow half of a replacement.  Raises OSError.

    Two files take turns, and both keep their space for good, because on a full disk a snapshot must be deletable.
    """
    text = _text(manifest)
    room, slack = directory / _SPARE, max(2 * len(text), _SPARE_BYTES)
    small_file.prepare(directory / _FILE, text, io=io, room=room, slack=slack)


def _text(manifest: Manifest) -> bytes:
    head = _TYPE.dump_json(manifest, indent=2, exclude={"snapshots"}).removesuffix(b"\n}")
    records = b",\n    ".join([record.text for record in manifest.snapshots])
    return b'%s,\n  "snapshots": [%s]\n}\n' % (head, b"\n    %s\n  " % records if records else b"")


def _keep_spare(directory: Path, io: storage_io.StorageIO) -> None:
    """Make the second file, if there is none and the disk has room for it."""
    spare = directory / _SPARE
    if spare.exists():
        return
    with contextlib.suppress(OSError):
        length = max(2 * (directory / _FILE).stat().st_size, _SPARE_BYTES)
        fd = io.open(spare, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
        try:
            io.set_aside(fd, 0, length)
        except OSError:
            io.unlink(spare)
        finally:
            io.close(fd)


def commit(directory: Path, io: storage_io.StorageIO = storage_io.SYSTEM) -> None:
    """Put the prepared manifest in force, durably.  Raises OSError; then either may be in force after a crash."""
    small_file.commit(directory / _FILE, io, room=directory / _SPARE)


def store(directory: Path, manifest: Manifest, io: storage_io.StorageIO = storage_io.SYSTEM) -> None:
    """Prepare and commit a manifest.  Raises OSError."""
    prepare(directory, manifest, io)
    commit(directory, io)
    _keep_spare(directory, io)
