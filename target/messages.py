# SPDX-License-Identifier: Apache-2.0
"""The requests and answers of the control socket: plain frozen dataclasses.

The daemon passes them to FastAPI, which checks requests against them and derives the OpenAPI description.  The commands
read answers with `codec.decode`.  Times are ISO 8601 in UTC, sizes are bytes, rates are per second.

Several classes share their names with classes of the domain (Snapshot, Volume, Job).  Import the module, not the names,
and write `messages.Snapshot`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why a request was not done: a stable code for programs, a sentence and a remedy for people."""

    error: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot of a volume.

    `used_bytes` is its space on disk.  `preserved_bytes` is the part of the volume that it preserves, and
    `preserved_percent` relates that to the volume's size.  `view_lun` and `write_once_lun` are None if initiators
    do not see that LUN.  The volume's schedule took a `scheduled` snapshot, and deletes it when the `keep` rule no longer
    covers it.  `hold` says why nobody may delete the snapshot; it is empty if it is not held.  `clones` are the names of its writable clones.  From `expires` on the daemon
    deletes it.  `consistency` is `crash`, `file-system` or `application`: who was quiet when it was taken.  `store` is the
    kind of its store, as in the configuration; it is empty if another host keeps it.
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
    hold: str = dataclasses.field(default="", kw_only=True)
    expires: str | None = dataclasses.field(default=None, kw_only=True)
    consistency: str = dataclasses.field(default="crash", kw_only=True)
    clones: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    store: str = dataclasses.field(default="", kw_only=True)


@dataclass(frozen=True, slots=True)
class Taken(Snapshot):
    """A snapshot that was just taken: how long writes were held, and the URLs under which initiators read it."""

    writes_held_seconds: float
    view_url: str
    write_once_url: str


@dataclass(frozen=True, slots=True)
class Clone:
    """A writable clone of a snapshot.

    `state` is `online` or `failed`; `trouble` says why it is not served, or cannot be used as it should be.  `used_bytes` are
    the grains of 4 KiB that it has itself, `limit` is the most of them.  `lun` is None if it is not served.
    """

    name: str
    volume: str
    snapshot: str
    uuid: str
    made: str
    state: str
    trouble: str
    size: int
    used_bytes: int
    limit: int | None
    lun: int | None
    url: str


@dataclass(frozen=True, slots=True)
class CreateClone:
    """Request: make a writable clone of a snapshot, with at most `limit` bytes of its own."""

    name: str
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Deleted:
    """The name of a volume or a clone that is served no longer, and whether its data is gone, too."""

    name: str
    data_removed: bool = True


@dataclass(frozen=True, slots=True)
class Changes:
    """The parts of a volume that have been written since a snapshot.

    `cells` are equal parts of the volume in order of address.  Each number, from 0 to 1, is the part of the cell that
    has changed.
    """

    snapshot: Snapshot
    chunk_size: int
    changed_bytes: int
    cells: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SnapshotDetails(Snapshot):
    """A snapshot with the details that `snapshot show` prints.

    `outside_bytes` are in chunks that an initiator wrote to a write-once LUN, so the volume may never have held them.
    """

    chunk_size: int
    view_url: str
    write_once_url: str
    outside_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Sharing:
    """The part of this node in a shared volume.

    `state` is `armed`, `arming` or `out`; `problem` says why it is not armed.  `epoch` counts the snapshots that were ever
    taken.  `fence_pending_seconds` is how long the newest request for a fence has had no answer, None if none is due.
    `pool` are the write-once LUNs that are ready for further snapshots, None if that is unknown.  `copies` are the
    grains of 4 KiB that this node preserved, `futile_copies` those that another one had preserved already.  `exchange` names the
    way by which nodes tell each other what they preserved, and why it does not work if it does not.  The other fields of
    the exchange count the nodes that take part, this one among them, and the messages about what was preserved.
    """

    node: str
    state: str
    problem: str
    epoch: int | None
    fence_pending_seconds: float | None
    pool: int | None
    copies: int
    futile_copies: int
    exchange: str = "none"
    exchange_members: int = 0
    exchange_messages_sent: int = 0
    exchange_messages_taken: int = 0
    exchange_bytes_sent: int = 0
    exchange_bytes_taken: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a shared volume, as the log and the primary know it.

    `epoch` is that of its registration, None if it is not registered or if that is unknown.  `last_seen` is the time of
    its newest record in the log, by its own clock.
    """

    volume: str
    name: str
    this: bool
    expelled: bool
    registered: bool | None
    epoch: int | None
    last_seen: str | None
    initiator: str = ""


@dataclass(frozen=True, slots=True)
class Rate:
    """A limit: commands and bytes per second, None for any number, and the seconds of them that may come at once."""

    iops: int | None = None
    bandwidth: int | None = None
    burst: float = 1.0


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume as it is served.

    `lun` is None if initiators do not see it.  `state` is `online` or `failed`.  `trouble` says why a failed volume is
    not served, or why an online volume refuses writes.  `restoring` names the snapshot that the volume was rolled back
    to, until all of its data is in the primary.  `doubtful` says why some of its snapshots may not be true.
    `store` is the kind of later snapshots; `stores` counts the existing ones by their kind, if this host keeps them.
    `rate` limits its commands; `limited_commands` had to wait for that since it was set, `limited_seconds` in all.
    `sharing` is None unless several nodes share the volume, and `replica` unless it received a stream.
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
    doubtful: str = ""
    verify_reads: bool = True
    store: str = "map"
    stores: dict[str, int] = dataclasses.field(default_factory=dict)
    map_write_once: str = "none"
    write_cache: bool = True
    sharing: Sharing | None = None
    replica: Replica | None = None
    rate: Rate | None = None
    limited_commands: int = 0
    limited_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ShareVolume:
    """Request: take part in a shared volume, as a node.

    `primary`, `log` and `pool` are written as in the configuration.  A field that is None takes the default of the
    configuration; with `lun` None initiators of this node do not see the volume.  With `store`, `rados` or `objects` has
    the keys of that group.
    """

    name: str
    primary: str
    lun: int | None = None
    node: str | None = None
    log: str | None = None
    pool: tuple[str, ...] = ()
    chunk_size: str | None = None
    on_error: str | None = None
    max_snapshots: int | None = None
    store: str | None = None
    objects: dict[str, str] | None = None
    rados: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """A volume that was accepted as it is.

    `snapshots` are no longer doubtful.  `set_aside`: the configuration does not name the volume, and that is no alert
    any longer.
    """

    volume: str
    snapshots: tuple[str, ...]
    set_aside: bool = False


@dataclass(frozen=True, slots=True)
class Relocate:
    """Request: take up the data of a volume that is not served.

    It had the name `old` before, or its primary is in the place `primary` now; None leaves either as it is.
    """

    old: str | None = None
    primary: str | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A session of an initiator.  Fields are None if the kernel's target does not report them."""

    initiator: str
    address: str
    target: str | None
    since: str | None
    commands: int | None
    bytes_read: int | None
    bytes_written: int | None


@dataclass(frozen=True, slots=True)
class PoolLun:
    """A write-once LUN of a pool: its number, its identity, and its `state`: blank, taken or lost.

    `snapshot` is the name of the snapshot that took it.
    """

    lun: int
    identity: str
    state: str
    snapshot: str
    used_bytes: int


@dataclass(frozen=True, slots=True)
class Pool:
    """The pool of a volume for the nodes of a cluster: its log, and its write-once LUNs.

    `identity` is the volume's.  `trouble` says why the pool does not do what it should; it is empty if it does.
    """

    volume: str
    identity: str | None
    log_lun: int | None
    records: int
    blank: int
    blanks_wanted: int
    luns: tuple[PoolLun, ...]
    trouble: str


@dataclass(frozen=True, slots=True)
class Replication:
    """A replication of a volume to another host, by the configuration.

    `state` is `waiting`, `sending` or `failing`; `trouble` says why it fails.  `arrived` is the newest snapshot that the receiver
    has, and `arrived_taken` its moment; `lag_seconds` is how long ago that is.  It is `late` if that is longer than it may
    be.  `pending` is the snapshot that is on its way, and `job` the number of the job that sends it.
    """

    volume: str
    name: str
    to: str
    schedule: str
    state: str
    trouble: str
    lag_seconds: float
    late: bool
    arrived: str
    arrived_taken: str | None
    pending: str
    job: int | None


@dataclass(frozen=True, slots=True)
class Status:
    """The state of the daemon.

    `trouble` has one sentence for each alert.  `portals_unbound` are the ones among `portals` that could not be bound and are
    tried again.
    """

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
    portals_unbound: tuple[str, ...] = ()
    pools: tuple[Pool, ...] = ()
    schedules: tuple[Schedule, ...] = ()
    replications: tuple[Replication, ...] = ()
    clones: tuple[Clone, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """A long operation.  `state` is running, done, failed or cancelled; `done` of `total` bytes are processed.

    `damaged_bytes` counts the damaged bytes that it met.  `damage` has the first of them, in order of address.  A job
    that may not pass them on fails; otherwise it passed them on as they are, and unreadable ones as zeroes.
    """

    id: int
    kind: str
    subject: str
    state: str
    done: int
    total: int
    refusal: Refusal | None
    damaged_bytes: int = 0
    damage: tuple[Damage, ...] = ()


@dataclass(frozen=True, slots=True)
class Alert:
    """A condition that an administrator should look at; `code` is for programs and for `explain`."""

    code: str
    subject: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """Something that happens by itself.

    `kind` is `snapshots` of the volume `subject`, `group` of volumes, or `verify`.  `when` is the schedule in words, in the time
    zone `zone`.  `next` is when it is due, in UTC, and `next_there` the same in that zone; None if it is never due again.
    `period_seconds` is the longest time from one to the next.  `trouble` says why it is not kept; it is empty if it is.
    """

    kind: str
    subject: str
    when: str
    zone: str
    last: str | None
    next: str | None
    next_there: str | None
    period_seconds: float | None
    trouble: str


@dataclass(frozen=True, slots=True)
class Lun:
    """A logical unit of the target: `unit` is its name in the configuration, `kind` its type."""

    lun: int
    unit: str
    kind: str
    size: int


@dataclass(frozen=True, slots=True)
class Registration:
    """A registration of an initiator port with a unit (SPC-4 5.12).  `key` is hexadecimal, `isid` as initiators report it."""

    initiator: str
    isid: str
    key: str
    holds: bool
    logged_in: bool


@dataclass(frozen=True, slots=True)
class UnitReservations:
    """The reservations of a unit.

    `type` is the type of the persistent reservation, None if there is none; the registrations that `holds` have it.
    `reserved_by` is the initiator that has the unit by RESERVE of SPC-2, which ends with its session.  With `persists`
    the registrations outlive the daemon.
    """

    lun: int
    unit: str
    type: str | None
    registrations: tuple[Registration, ...]
    reserved_by: str | None
    persists: bool
    generation: int


@dataclass(frozen=True, slots=True)
class MappedLun:
    """A unit that an initiator sees under a LUN of its own."""

    lun: int
    unit: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Chap:
    """The CHAP parameters of an initiator: names and files, never secrets."""

    name: str
    secret_file: str
    target_name: str | None = None
    target_secret_file: str | None = None
    algorithms: tuple[str, ...] = ("sha256", "md5")


@dataclass(frozen=True, slots=True)
class Initiator:
    """An entry for initiators that may log in: a name or a pattern of names.  With `luns` None they see all LUNs."""

    name: str
    networks: tuple[str, ...] = ()
    chap: Chap | None = None
    read_only: bool = False
    luns: tuple[MappedLun, ...] | None = None
    rate: Rate | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of access.  With `initiators` None, any initiator from one of `networks` may log in."""

    networks: tuple[str, ...]
    initiators: tuple[Initiator, ...] | None
    discovery_chap: bool


@dataclass(frozen=True, slots=True)
class ChangeAccess:
    """Request: change the fields that are not None.  With `anybody`, initiators need no entry."""

    networks: tuple[str, ...] | None = None
    discovery_chap: bool | None = None
    anybody: bool | None = None


@dataclass(frozen=True, slots=True)
class SetAuth:
    """Request: set the CHAP name and secret of an initiator.

    With `target_name` and `target_secret`, the target authenticates to the initiator, too.  The daemon stores the
    secrets in files of its own.
    """

    name: str
    secret: str = dataclasses.field(repr=False)
    target_name: str | None = None
    target_secret: str | None = dataclasses.field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class CreateVolume:
    """Request: serve a volume.

    With `lun` None it gets the lowest free LUN; with `hidden` it gets none.  Sizes are written as in the configuration.
    A field that is None takes the default of the configuration.  `existing` says what becomes of data that an earlier volume of
    that name left: `adopt` serves it, `new` removes it, and None refuses.
    """

    name: str
    size: str | None = None
    lun: int | None = None
    hidden: bool = False
    primary: str | None = None
    block_size: int | None = None
    chunk_size: str | None = None
    store: str | None = None
    durability: str | None = None
    limit: str | None = None
    on_error: str | None = None
    verify_reads: bool | None = None
    map_write_once: str | None = None
    write_cache: bool | None = None
    existing: str | None = None


@dataclass(frozen=True, slots=True)
class Portal:
    """Request: let initiators connect at this HOST:PORT."""

    address: str


NO_LIMIT = "none"


@dataclass(frozen=True, slots=True)
class ChangeVolume:
    """Request: change the fields that are not None.

    `limit` may be NO_LIMIT.  `rate` replaces the whole limit of commands, and with `unlimited` there is none.  With `hidden` the volume loses its LUN, and with `any_lun` it gets the lowest free one.
    """

    lun: int | None = None
    hidden: bool = False
    durability: str | None = None
    limit: str | None = None
    on_error: str | None = None
    verify_reads: bool | None = None
    map_write_once: str | None = None
    write_cache: bool | None = None
    any_lun: bool = False
    rate: Rate | None = None
    unlimited: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for one object when a configuration is restored or cleared; `refusal` is None if it was done."""

    subject: str
    action: str
    refusal: Refusal | None


@dataclass(frozen=True, slots=True)
class Saved:
    """The result of saving: the file, its changes (a unified diff), and the path of the backup."""

    file: str
    changes: str
    backup: str


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of a configuration file."""

    text: str


@dataclass(frozen=True, slots=True)
class ConfigurationFile:
    """Request: save to or restore from `file`, an absolute path.  With None, use the file that the daemon was started with."""

    file: str | None = None


@dataclass(frozen=True, slots=True)
class CreateSnapshot:
    """Request: take a snapshot called `name`.

    A `hold` is the reason why nobody may delete it, and `expires` a moment.  `mapped` says whether initiators see its view;
    None leaves that to the configuration.
    """

    name: str
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    hold: str = ""
    expires: str | None = None
    mapped: bool | None = None


@dataclass(frozen=True, slots=True)
class ChangeLabels:
    """Request: set these labels of a snapshot, and remove those that are None."""

    labels: dict[str, str | None]


@dataclass(frozen=True, slots=True)
class ChangeSnapshot:
    """Request: change what is not None.

    An empty `hold` releases the snapshot; with an empty `expires`, it never expires.  `mapped` and `mapped_write_once` say
    whether initiators see its view and its write-once LUN; a LUN in use goes only with `force`.
    """

    name: str | None = None
    hold: str | None = None
    expires: str | None = None
    mapped: bool | None = None
    mapped_write_once: bool | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class CreateGroup:
    """Request: take a snapshot called `name` of each of these volumes, all at one moment.

    `hold` and `expires` are those of CreateSnapshot.
    """

    name: str
    volumes: tuple[str, ...]
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    hold: str = ""
    expires: str | None = None


@dataclass(frozen=True, slots=True)
class ResizeVolume:
    """Request: enlarge a volume to `size` bytes."""

    size: int


IMAGE_FORMATS = ("raw", "qcow2", "vhd", "vhdx", "vmdk")
"""The formats of an export."""
COMPRESSIBLE = ("raw", "qcow2")
"""The formats of an export that can be compressed."""
COMPRESSED = ".zst"
"""The ending of the name of a compressed raw image."""
_SUFFIXES = {".img": "raw", ".raw": "raw", **{f".{kind}": kind for kind in IMAGE_FORMATS[1:]}}


def image_format(path: pathlib.PurePath) -> str | None:
    """Return the format that the name of an image stands for; None if the name says another one, or none."""
    suffix = path.suffix.lower()
    if suffix == COMPRESSED:
        inner = _SUFFIXES.get(pathlib.PurePath(path.stem).suffix.lower())
        return inner if inner == "raw" else None
    return _SUFFIXES.get(suffix)


@dataclass(frozen=True, slots=True)
class Export:
    """Request: write a snapshot's content to the file at `path`, an absolute path on the daemon's machine.

    `format` is one of IMAGE_FORMATS.  With `since`, the name of an older snapshot, the file is a qcow2 image of the changes
    since then, on top of that snapshot's image at `backing` (absolute).  The daemon detects the format of `backing` if
    the file exists, and refuses a file that does not identify itself as that snapshot, unless `any_base` is set.  The
    daemon refuses if there is too little space for all data, unless `anyway` is set.  Damaged blocks stop the export,
    unless `damaged` is set; then they are exported as they are, and unreadable ones as zeroes.  With `compress`, a raw
    image is compressed with zstd as a whole, and a qcow2 image has compressed clusters.  `limit` is the most bytes of data a second.
    """

    path: str
    overwrite: bool = False
    format: str = "raw"
    since: str | None = None
    backing: str | None = None
    backing_format: str | None = None
    anyway: bool = False
    damaged: bool = False
    any_base: bool = False
    compress: bool = False
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """Request: answer with a snapshot's content, as a raw image; `damaged` and `limit` are those of `Export`."""

    damaged: bool = False
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """Request: answer with a framed stream of a snapshot, or of the changes since the snapshot `since`.

    With `compress` its data is compressed with zstd.  `limit` is the most bytes of data a second.  `damaged` is that of `Export`.
    """

    since: str | None = None
    compress: bool = False
    limit: int | None = None
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class Resume:
    """Request: answer with the rest of a stream that was interrupted; the receiver told the `token`.  The others are those of `Send`."""

    token: str
    compress: bool = False
    limit: int | None = None
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class StreamBase:
    """The snapshot on which a stream stands: its name at the sender, and its identity."""

    name: str
    identity: str


@dataclass(frozen=True, slots=True)
class Receive:
    """Request: begin to receive a stream, which the fields describe as its own beginning does.

    The volume is made if there is none, under `lun`; with None initiators do not see it.  `force` takes back what was changed
    since the stream's base, or replaces the content of a volume that has no part in a stream.  After the stream, the
    oldest received snapshots go until `keep` are left.
    """

    volume: str
    volume_uuid: str
    snapshot: str
    identity: str
    taken: str
    size: int
    block_size: int
    chunk_size: int
    consistency: str = "crash"
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    since: StreamBase | None = None
    start: int = 0
    total: int = 0
    lun: int | None = None
    force: bool = False
    keep: int | None = None


@dataclass(frozen=True, slots=True)
class Identified:
    """A snapshot and its identity: its UUID where it was first taken, which all its replicas know it by."""

    name: str
    identity: str


@dataclass(frozen=True, slots=True)
class Replica:
    """The state of a volume as the sender of a stream wants to know it.

    `exists`: the volume is there.  `replica`: it takes no writes here.  `source` and `source_uuid` say whose replica it is or was.
    `snapshots` are the bases that it has, oldest first.  `resume` is the token of an interrupted stream, which `receiving`
    names; both are empty if there is none.
    """

    volume: str
    exists: bool
    replica: bool
    source: str
    source_uuid: str
    snapshots: tuple[Identified, ...]
    resume: str = ""
    receiving: str = ""


@dataclass(frozen=True, slots=True)
class Damage:
    """Damaged blocks of a snapshot: they differ from the preserved data, which is stored in snapshot `kept_in`."""

    kept_in: str
    lba: int
    blocks: int
    offset: int
    length: int
    reason: str


@dataclass(frozen=True, slots=True)
class Outside:
    """An extent of a snapshot that an initiator wrote to a write-once LUN; `kept_in` names the snapshot that stores it."""

    kept_in: str
    lba: int
    blocks: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of verifying a snapshot.

    `doubtful` says why the snapshot may not be true whatever its checksums say; then it is not `sound`.  `damage` lists
    the first damaged extents in order of address, and `damaged_bytes` counts all of them.  `headers` has a sentence for
    each damaged file header.  `unverifiable_bytes` have no checksum.  `outside` lists the extents that initiators wrote
    to write-once LUNs, and `outside_bytes` counts their bytes; the volume may never have held this data.
    """

    volume: str
    name: str
    sound: bool
    good_bytes: int
    unverifiable_bytes: int
    damaged_bytes: int
    damage: tuple[Damage, ...]
    headers: tuple[str, ...]
    doubtful: str = ""
    outside_bytes: int = 0
    outside: tuple[Outside, ...] = ()


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of `length` bytes that begins at byte `offset`."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class FindChanges:
    """Request: find the changes up to the snapshot `to`, or up to now if None; with `exact`, compare the content, too.

    Damaged blocks stop a comparison, unless `damaged` is set; then they count as changed.
    """

    to: str | None = None
    exact: bool = False
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class ChangeStore:
    """Request: later snapshots get a store of kind `store`, `map` or `log`; with `convert` existing ones get it, too."""

    store: str
    convert: bool = True


@dataclass(frozen=True, slots=True)
class ConvertedStore:
    """The outcome for one snapshot: its store is of kind `store` now; `reason` says why it was left, if it was."""

    snapshot: str
    store: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Conversion:
    """The result of a change of a volume's store to kind `store`."""

    volume: str
    store: str
    snapshots: tuple[ConvertedStore, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """The changes of a volume from snapshot `since` to snapshot `to` (None: to now).

    Extents are in order of address, and adjacent ones are joined.  All changes are included.  Unless `exact`, some
    extents may have equal content after all.
    """

    volume: str
    since: str
    to: str | None
    exact: bool
    size: int
    changed_bytes: int
    extents: tuple[Extent, ...]
