# SPDX-License-Identifier: Apache-2.0
"""What goes over the control socket, in both directions: plain frozen dataclasses.

The daemon hands them to FastAPI, which checks requests against them and derives the OpenAPI description; the commands
read them back with `codec.decode`.  Times are ISO 8601 in UTC, sizes are bytes, rates are per second.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request was not done: a stable code for programs, a sentence and a remedy for people."""

    error: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A moment of a volume.  `used_bytes` is what it takes on disk; `preserved_bytes` how much of the volume is in it,
    `preserved_percent` the same of the volume's size.  A `scheduled` one was made by
    the volume's schedule, which deletes it when it is not to be kept any longer.
    """

    volume: str
    name: str
    uuid: str
    taken: str
    state: str
    reason: str
    size: int
    used_bytes: int
    preserved_bytes: int
    preserved_percent: float
    view_lun: int | None
    write_once_lun: int | None
    labels: dict[str, str] = dataclasses.field(default_factory=dict, kw_only=True)
    scheduled: bool = dataclasses.field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Taken(Snapshot):
    """A snapshot just taken: how long writes were held for it, and how an initiator reads it."""

    writes_held_seconds: float
    view_url: str
    write_once_url: str


@dataclass(frozen=True, slots=True)
class Changes:
    """Which parts of a volume differ from a snapshot's moment (were written since): one number from 0 to 1 per cell, the
    cells being equal parts of the volume in order of address.
    """

    snapshot: Snapshot
    chunk_size: int
    changed_bytes: int
    cells: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SnapshotDetails(Snapshot):
    """A snapshot with what `show` prints beside it."""

    chunk_size: int
    view_url: str
    write_once_url: str


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume as it is being served, `lun` None: not to initiators; `state` is `online` or `failed`, and then
    `trouble` says why; of one that is online, why it takes no writes.  `restoring` names the snapshot that it was rolled back
    to, until its primary has caught up.
    """

    name: str
    lun: int | None
    state: str
    trouble: str
    restoring: str | None
    size: int
    block_size: int
    chunk_size: int
    durability: str
    primary: str
    primary_used_bytes: int
    snapshots: int
    snapshot_bytes: int
    preserved_bytes: int
    preserved_limit: int | None
    on_error: str
    read_bytes_per_second: float
    written_bytes_per_second: float
    commands_per_second: float


@dataclass(frozen=True, slots=True)
class Session:
    """An initiator that is logged in.  Of one that is logged in to the kernel's target less is known: None."""

    initiator: str
    address: str
    target: str | None
    since: str | None
    commands: int | None
    bytes_read: int | None
    bytes_written: int | None


@dataclass(frozen=True, slots=True)
class Status:
    """The daemon at a glance; `trouble` is everything that needs somebody's attention, a sentence each."""

    version: str
    pid: int
    started: str
    state_dir: str
    fabric: str
    target: str
    portal: str
    portals: tuple[str, ...]
    space_free_bytes: int
    space_total_bytes: int
    volumes: tuple[Volume, ...]
    sessions: tuple[Session, ...]
    jobs: tuple[Job, ...]
    trouble: tuple[str, ...]
    alerts: tuple[Alert, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """Something that takes long.  `state`: running, done, failed, cancelled; `done` of `total` bytes are through."""

    id: int
    kind: str
    subject: str
    state: str
    done: int
    total: int
    refusal: Refusal | None


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that needs somebody's attention; `code` is for programs and for `explain`."""

    code: str
    subject: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Lun:
    """A logical unit of the target: `unit` is what the configuration calls it, `kind` what it is."""

    lun: int
    unit: str
    kind: str
    size: int


@dataclass(frozen=True, slots=True)
class MappedLun:
    """What an initiator sees under one number."""

    lun: int
    unit: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Chap:
    """How an initiator proves itself: names and files, never secrets."""

    name: str
    secret_file: str
    target_name: str | None = None
    target_secret_file: str | None = None
    algorithms: tuple[str, ...] = ("sha256", "md5")


@dataclass(frozen=True, slots=True)
class Initiator:
    """Initiators that may log in (a name, or a pattern of names) and what they see; `luns` None: everything."""

    name: str
    networks: tuple[str, ...] = ()
    chap: Chap | None = None
    read_only: bool = False
    luns: tuple[MappedLun, ...] | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """Who may log in; `initiators` None: any that comes from one of `networks`."""

    networks: tuple[str, ...]
    initiators: tuple[Initiator, ...] | None
    discovery_chap: bool


@dataclass(frozen=True, slots=True)
class ChangeAccess:
    """Request: what is not None is changed; `anybody` says whether initiators need not be named."""

    networks: tuple[str, ...] | None = None
    discovery_chap: bool | None = None
    anybody: bool | None = None


@dataclass(frozen=True, slots=True)
class SetAuth:
    """Request: how an initiator proves itself from now on, and with `target_name` and `target_secret` the target to it.
    The daemon keeps the secrets in files of its own.
    """

    name: str
    secret: str = dataclasses.field(repr=False)
    target_name: str | None = None
    target_secret: str | None = dataclasses.field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class CreateVolume:
    """Request: serve a volume; `lun` None: the lowest number that is free, unless it is to be `hidden`, under none.  Sizes as
    the configuration writes them.
    """

    name: str
    size: str | None = None
    lun: int | None = None
    hidden: bool = False
    primary: str | None = None
    block_size: int = 512
    chunk_size: str = "64KiB"
    durability: str = "power-loss"
    limit: str | None = None
    on_error: str = "fail-writes"


@dataclass(frozen=True, slots=True)
class Portal:
    """Request: let initiators connect at this HOST:PORT."""

    address: str


NO_LIMIT = "none"


@dataclass(frozen=True, slots=True)
class ChangeVolume:
    """Request: what is not None is changed.  `limit` may be NO_LIMIT; `hidden`: under no LUN."""

    lun: int | None = None
    hidden: bool = False
    durability: str | None = None
    limit: str | None = None
    on_error: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one object when a configuration was restored or cleared; `refusal` None: it was done."""

    subject: str
    action: str
    refusal: Refusal | None


@dataclass(frozen=True, slots=True)
class Saved:
    """What was written, or would be: the file, how it changed (a unified diff), and where the old one is kept."""

    file: str
    changes: str
    backup: str


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of a configuration file."""

    text: str


@dataclass(frozen=True, slots=True)
class ConfigurationFile:
    """Request: the file to save to or to restore from, an absolute path; None: the one the daemon was started with."""

    file: str | None = None


@dataclass(frozen=True, slots=True)
class CreateSnapshot:
    """Request: take a snapshot called `name`."""

    name: str
    labels: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChangeLabels:
    """Request: give a snapshot these labels, and take away those that are None."""

    labels: dict[str, str | None]


@dataclass(frozen=True, slots=True)
class CreateGroup:
    """Request: take snapshots called `name` of these volumes, all at one moment."""

    name: str
    volumes: tuple[str, ...]
    labels: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResizeVolume:
    """Request: make a volume `size` bytes large."""

    size: int


@dataclass(frozen=True, slots=True)
class Export:
    """Request: write a snapshot's content to the file at `path`, an absolute path on the daemon's machine.

    `format` is `raw` or `qcow2`.  With `since`, the name of an older snapshot, the file is a qcow2 image of what changed since,
    on top of that snapshot's image at `backing` (absolute), whose format is found out if that file is there.  Refused if there is
    no room for all of it, unless `anyway`.
    """

    path: str
    overwrite: bool = False
    format: str = "raw"
    since: str | None = None
    backing: str | None = None
    backing_format: str | None = None
    anyway: bool = False


@dataclass(frozen=True, slots=True)
class Damage:
    """Blocks of a snapshot that are not what was preserved; their pre-images are kept in snapshot `kept_in`."""

    kept_in: str
    lba: int
    blocks: int
    offset: int
    length: int
    reason: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What verifying a snapshot found.  `damage` names the first of it in order, `damaged_bytes` counts all; `headers` says
    what is wrong with its files' headers.  `unverifiable_bytes` have no checksum to be compared with.
    """

    volume: str
    name: str
    sound: bool
    good_bytes: int
    unverifiable_bytes: int
    damaged_bytes: int
    damage: tuple[Damage, ...]
    headers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes from byte `offset` on."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class FindChanges:
    """Request: what changed up to the snapshot `to`, None: to now; `exact`: compare the content, too."""

    to: str | None = None
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """What changed in a volume from snapshot `since` to snapshot `to` (None: to now), in order of address, neighbours
    joined.  Not `exact`: some of it may be the same after all.  Nothing that changed is left out.
    """

    volume: str
    since: str
    to: str | None
    exact: bool
    size: int
    changed_bytes: int
    extents: tuple[Extent, ...]
