# SPDX-License-Identifier: Apache-2.0
"""The configuration's groups `volumes`, `write_once` and `shared`: the storage that is served."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import pydantic

from lun_backends.durability import Durability
from lun_backends.stores.settings import Kind
from lun_backends.volumes import policy
from target import units
from target.configuration import values
from target.configuration.rate import Rate
from target.configuration.schedule import Timing
from target.configuration.scheduling import Keep, Verify, schedule_problems
from target.configuration.values import Problems, Where


class MapWriteOnce(enum.Enum):
    """Whether initiators see the write-once LUNs of a volume's snapshots, and what they may do there."""

    NONE = "none"
    READ_ONLY = "read-only"
    READ_WRITE = "read-write"


class MapViews(enum.Enum):
    """The snapshots whose views initiators see."""

    BY_HAND = "by-hand"
    ALL = "all"
    NEWEST = "newest"
    NONE = "none"


class Objects(values.Group):
    """A place in object storage. Credentials never stand here: a file has them, or the environment."""

    url: Annotated[str, pydantic.Field(pattern=r"^(s3|gs|az|azure|abfss?|https)://[^/].*$")]
    """Bucket and prefix, like s3://bucket/prefix, gs://bucket/prefix or az://container/prefix."""

    endpoint: Annotated[str, pydantic.Field(pattern=r"^(https?://[^/].*)?$")] = ""
    """The service, like https://s3.example.com. Left out: the one that the URL's scheme stands for."""

    region: str = ""
    """The region of the service. Left out: the one that the environment names."""

    credentials: values.FilePath | None = None
    """A file with lines KEY=VALUE, like AWS_ACCESS_KEY_ID=... and AWS_SECRET_ACCESS_KEY=... Left out: the environment of
    the daemon has them."""

    timeout: values.Seconds = 30.0
    """Seconds for one request and its repetitions. After that it is not known whether it took effect."""


class Rados(values.Group):
    """A pool of a Ceph cluster. The client's keyring is where Ceph's own configuration says."""

    pool: Annotated[str, pydantic.Field(min_length=1)]
    """The pool that keeps the objects. It can be shared with other uses."""

    namespace: Annotated[str, pydantic.Field(min_length=1)] = "wolun"
    """The first part of the namespaces in the pool."""

    client: Annotated[str, pydantic.Field(min_length=1)] = "admin"
    """The name of the Ceph user, without `client.`"""

    conf: values.FilePath = Path("/etc/ceph/ceph.conf")
    """Ceph's configuration file, which names the monitors."""

    timeout: values.Seconds = 30.0
    """Seconds for one operation. After that it is not known whether it took effect."""


OBJECT_MINIMUM = 256 << 10
"""The smallest chunk in object storage, in bytes: a request costs more than its data."""


class OnFailure(enum.Enum):
    """The fate of a snapshot whose quiet failed."""

    REFUSE = "refuse"
    GO_ON = "go-on"


class Replication(values.Group):
    """A replication: snapshots of the volume go to another host by themselves."""

    name: values.Name
    """The name of the replication, for messages and for its snapshots."""

    to: Annotated[tuple[Annotated[str, pydantic.Field(min_length=1)], ...], pydantic.Field(min_length=1)]
    """The command that receives, as a list of words, like [ssh, backup, wolun, volume, receive, vol0]. No shell runs it."""

    schedule: Timing
    """When a snapshot is taken and sent, in the words of the volume's `schedule`."""

    compress: bool = False
    """Whether the data is compressed with zstd."""

    limit: values.Size | None = None
    """The most data that is sent in a second, like 50MiB. Left out: as much as can be."""

    alert_after: Annotated[float, pydantic.Field(gt=0)] | None = None
    """Seconds after which a receiver that has no newer snapshot is an alert. Left out: two periods of the schedule."""

    def problems(self) -> Problems:
        """Return the problems of values beside their neighbours."""
        wrong: dict[Where, str] = dict(values.below(("schedule",), self.schedule.problems()))
        if self.limit == 0:
            wrong["limit",] = "at least one byte a second must pass"
        return wrong


class Quiesce(values.Group):
    """Quiet while a snapshot of the volume is taken, by hand, by a schedule or in a group."""

    before: tuple[str, ...] = ()
    """The command that runs before each snapshot, as a list of words, like [systemctl, stop, app]. The variables WOLUN_VOLUME,
    WOLUN_SNAPSHOT and WOLUN_PHASE (before or after) tell it what for."""

    after: tuple[str, ...] = ()
    """The command that runs after each snapshot, whatever happened, as a list of words."""

    freeze: values.FilePath | None = None
    """The mount point of a file system of this host that is frozen meanwhile (fsfreeze; needs root)."""

    guest_agent: values.FilePath | None = None
    """The Unix socket of the QEMU guest agent in a virtual machine that uses the volume. Its file systems are frozen meanwhile."""

    timeout: values.Seconds = 30
    """Seconds that a command may take, and that a file system stays frozen at most."""

    on_failure: OnFailure = OnFailure.REFUSE
    """The reaction when a command or the freeze fails: `refuse` takes no snapshot, `go-on` takes one that is consistent as after
    a crash."""

    def problems(self) -> Problems:
        """Return the problems of values beside their neighbours."""
        if not self.before and not self.after and self.freeze is None and self.guest_agent is None:
            return {(): "it does nothing: write before, after, freeze or guest_agent"}
        return {}


class Volume(values.Group):
    """A primary and its snapshots."""

    name: values.Name
    """The name that commands use. Never change it: snapshots are kept under this name."""

    lun: values.LunOrNone
    """The LUN under which initiators see the volume; `none`: not at all. Snapshots take the lowest free numbers."""

    size: values.Size | None = None
    """Bytes, like 1GiB. A new volume needs it; a volume that exists keeps its size."""

    primary: values.FilePath | None = None
    """The file or block device that holds the live data. Relative paths start at the state directory. Left out: a
    sparse file in the state directory, which is made if it is missing."""

    block_size: values.BlockSize = 512
    """Bytes per logical block: 512 or 4096."""

    physical_block_size: values.PhysicalBlockSize | None = None
    """Bytes that the storage below writes as a whole: a power of two from 4KiB to 1MiB, like the record size of the
    file system that holds the primary. Initiators learn it and align to it. Left out: the disk's own value."""

    chunk_size: values.ChunkSize = 64 << 10
    """The unit of allocation, and the most that a first write copies: a power of two from 4KiB to 1MiB. A volume keeps the size it was made with."""

    store: Kind = Kind.MAP
    """The store that keeps the old data of snapshots. `map`: files of wolun's own in the state directory, with checksums. `log`:
    likewise, but a first write costs one write to the disk instead of two. `sparse`: one sparse file for each
    snapshot, without checksums, on ext4 with a journal, XFS or btrfs. `objects`: one object for each chunk in object
    storage. `rados`: one object for each chunk in a Ceph cluster. A change between `map` and `log` is for later
    snapshots, and those that exist stay as they are. Otherwise a volume keeps the kind it was made with."""

    objects: Objects | None = None
    """The place of `store: objects`, which needs `copy_timeout` and a `chunk_size` of 256KiB or more."""

    rados: Rados | None = None
    """The place of `store: rados`."""

    durability: Durability = Durability.POWER_LOSS
    """`power-loss`: a pre-image is on stable storage before its block is overwritten. `process-crash`: it is in the
    operating system's cache. That is faster, but snapshots may be wrong after a power cut."""

    snapshots: tuple[values.Name, ...] = ()
    """The snapshots that the daemon takes at start, if the volume does not have them yet."""

    limit: values.Size | None = None
    """How many bytes of old data all snapshots of the volume may keep together. Left out: as many as the disk holds."""

    warn_at: values.Percent = 80
    """A percentage of `limit`. Once the snapshots keep more, `wolun status` and the initiators get a warning."""

    on_error: policy.OnError = policy.DEFAULT.on_error
    """The reaction when old data cannot be kept (no room, a failing disk, `copy_timeout`). `fail-writes` refuses the
    writes that would overwrite it. `drop-snapshot` lets them go on and invalidates snapshots: the oldest, if that makes
    room, else all."""

    copy_timeout: values.Seconds | None = None
    """Seconds after which a copy of old data counts as failed. Left out: it may take any time."""

    write_cache: bool = True
    """Whether a write may end before it is on stable storage (WCE). Initiators flush the cache when they must, and can turn
    it off until the daemon ends. With `false` every write waits for the disk."""

    map_views: MapViews = MapViews.BY_HAND
    """Which snapshots' views initiators see: `by-hand` (those that no schedule took), `all`, `newest` or `none`. `wolun snapshot
    map` and `unmap` decide about single ones, and `access` maps those that it names."""

    map_write_once: MapWriteOnce = MapWriteOnce.NONE
    """Whether initiators see the write-once LUNs of its snapshots: `none`, `read-only` or `read-write`. With `read-write`
    any of them can put data into blocks that are blank there, and it becomes the content of the snapshot."""

    max_snapshots: Annotated[int, pydantic.Field(ge=1)] | None = None
    """How many snapshots there may be. Left out: any number."""

    verify_reads: bool = True
    """Whether every read of a snapshot compares old data with its checksums, one for each 4 KiB. A read that meets
    damage fails with MEDIUM ERROR. `false` is a little faster and returns damaged data unnoticed; exports and rollbacks
    compare all the same."""

    schedule: Timing | None = None
    """When the daemon takes a snapshot by itself: `hourly`, `daily`, `weekly` or `monthly` (in UTC), or a group with `every`, `at` or
    `calendar`. If it did not run then, it catches up once. The names are like auto-2026-11-22T2300Z. Left out: never."""

    keep: Keep | None = None
    """Which of the snapshots that the schedule takes are kept; the daemon deletes the others. It never deletes a
    snapshot that was taken by hand."""

    rate: Rate | None = None
    """How many commands and bytes per second its initiators may have together; needs `fabric: portal`. Left out: any number."""

    verify: Verify | None = None
    """When the daemon compares all old data of the snapshots with its checksums by itself. Left out: never."""

    quiesce: Quiesce | None = None
    """The commands before and after each snapshot, and the file system that is frozen meanwhile. Left out: writes are only held, and
    the snapshot is consistent as after a crash."""

    replicate: tuple[Replication, ...] = ()
    """The replications: other hosts that get snapshots of the volume by themselves."""

    def problems(self) -> Problems:
        """Return the problems of values beside their neighbours."""
        problems: dict[Where, str] = {}
        for position, replication in enumerate(self.replicate):
            problems.update(values.below(("replicate", position), replication.problems()))
            if replication.name in [other.name for other in self.replicate[:position]]:
                problems["replicate", position, "name"] = f"{replication.name} is listed already"
        if self.size is not None and (self.size == 0 or self.size % self.block_size):
            size = units.exact_size(self.size)
            problems["size",] = f"{size} is not a whole number of blocks of {self.block_size} bytes"
        if self.quiesce is not None:
            problems.update(values.below(("quiesce",), self.quiesce.problems()))
        if self.max_snapshots is not None and self.max_snapshots < len(self.snapshots):
            problems["max_snapshots",] = f"{len(self.snapshots)} snapshots are listed: write at least that many"
        problems.update(schedule_problems(self.schedule, self.keep, self.max_snapshots, len(self.snapshots)))
        if self.rate is not None:
            problems.update(values.below(("rate",), self.rate.problems()))
        if self.verify is not None:
            problems.update(values.below(("verify", "schedule"), self.verify.schedule.problems()))
        problems.update(self._store_problems())
        for position, name in enumerate(self.snapshots):
            if name in self.snapshots[:position]:
                problems["snapshots", position] = f"{name} is listed already"
        return problems

    def _store_problems(self) -> Problems:
        """Return the problems of the store beside its neighbours."""
        problems = place_problems(self.store, self.objects, self.rados, "")
        if self.store in (Kind.OBJECTS, Kind.RADOS) and self.map_write_once is MapWriteOnce.READ_WRITE:
            problems["map_write_once",] = f"initiators cannot write to {self.store.value}: write read-only or none"
        if self.store is not Kind.OBJECTS:
            return problems
        if self.chunk_size < OBJECT_MINIMUM:
            problems["chunk_size",] = _too_small(self.chunk_size)
        if self.copy_timeout is None:
            problems["copy_timeout",] = "objects need one, like copy_timeout: 60, because a service may never answer"
        return problems


_BLANKS = 4


class WriteOnceLun(values.Group):
    """A pool of write-once LUNs, or a single one, into which the nodes of a cluster preserve old data (see `shared`)."""

    volume: values.Name
    """The volume whose old data they hold. Never change it: a pool is kept under this name, and nodes look for it."""

    pool: Annotated[int, pydantic.Field(ge=1, le=64)] | None = None
    """How many blank LUNs are kept ready for snapshots that the nodes take. Left out: 4, unless `snapshot` and `lun` make this
    a single LUN. A log, in which the nodes note their snapshots, belongs to the pool. LUNs get the lowest free numbers."""

    snapshot: values.Name | None = None
    """For a single LUN: the snapshot that it belongs to. The unit is called VOLUME@SNAPSHOT/write-once."""

    lun: values.Lun | None = None
    """For a single LUN: the LUN under which initiators see it."""

    size: values.Size
    """Bytes: as many as the volume has. An empty write-once LUN takes almost no space on disk."""

    block_size: values.BlockSize = 512
    """Bytes per logical block, the same as the volume's: 512 or 4096."""

    chunk_size: values.ChunkSize = 64 << 10
    """The unit of allocation, and with a pool the unit of copy-on-write on all nodes: a power of two from 4KiB to 1MiB."""

    durability: Durability = Durability.POWER_LOSS
    """When a block counts as written: `power-loss` or `process-crash`, as for volumes."""

    verify_reads: bool = True
    """Whether reads compare old data with its checksums, as for volumes."""

    @property
    def blanks(self) -> int | None:
        """How many blank LUNs a pool keeps ready; None for a single LUN."""
        return None if self.snapshot is not None or self.lun is not None else self.pool or _BLANKS

    def problems(self) -> Problems:
        """Return the problems of values beside their neighbours."""
        problems: dict[Where, str] = {}
        if self.size == 0 or self.size % self.block_size:
            size = units.exact_size(self.size)
            problems["size",] = f"{size} is not a whole number of blocks of {self.block_size} bytes"
        if self.blanks is None:
            if self.pool is not None:
                problems["pool",] = "a single LUN has no pool: write pool alone, or snapshot and lun alone"
            elif self.lun is None:
                problems["lun",] = "a single LUN needs a number: write it, or write pool instead of snapshot"
            elif self.snapshot is None:
                problems["snapshot",] = "a single LUN belongs to a snapshot: name it, or write pool instead of lun"
        return problems


class Exchange(enum.Enum):
    """The way by which nodes tell each other what they preserved."""

    NONE = "none"
    COROSYNC = "corosync"


class NodeChap(values.Group):
    """CHAP by which this node proves itself to the storage host. With the two `target_` keys that proves itself, too."""

    name: values.ChapName
    """The CHAP name that the node sends."""

    secret_file: values.FilePath
    """The file that holds the node's secret, 12 to 255 bytes on one line. Relative paths start at the state directory. It
    must belong to the daemon's user or root, and no other user may read it (mode 0600 or 0400)."""

    target_name: values.ChapName | None = None
    """The CHAP name that the storage host sends, for mutual CHAP."""

    target_secret_file: values.FilePath | None = None
    """The file that holds the storage host's secret, for mutual CHAP."""


class SharedStore(enum.Enum):
    """The stores that the nodes of a shared volume reach by themselves."""

    OBJECTS = "objects"
    RADOS = "rados"


class SharedVolume(values.Group):
    """A volume on storage that several nodes share.

    The primary and the write-once LUNs belong to another host; or a service that all nodes reach has the old data (`store`).
    With `snapshot` and `write_once` it has that one snapshot. Without them, nodes take snapshots while all of them write.
    """

    name: values.Name
    """The name of the volume, the same on all nodes and on the storage host."""

    primary: values.Device
    """The primary: a block device, like /dev/disk/by-id/wwn-0x..., or iscsi://HOST:PORT/TARGET/LUN, which the daemon reaches
    by itself; HOST1:PORT,HOST2:PORT are several portals of the target. The daemon always bypasses the page cache."""

    lun: values.Lun | None = None
    """The LUN of the volume, through copy-on-write. Left out: initiators of this node do not see it."""

    node: values.Name | None = None
    """The name of this node in the volume's log. No other node may have it. Left out: the name of the host."""

    store: SharedStore | None = None
    """The service that has the volume's log and the old data of its snapshots, without a storage host of wolun's: `rados` or
    `objects`, the same place on all nodes. Left out: write-once LUNs beside the primary have them."""

    objects: Objects | None = None
    """The place of `store: objects`, which needs a `chunk_size` of 256KiB or more."""

    rados: Rados | None = None
    """The place of `store: rados`."""

    log: values.Device | None = None
    """The write-once LUN that has the volume's log. Left out: the daemon finds it among the LUNs that it sees."""

    pool: tuple[values.Device, ...] = ()
    """The blank write-once LUNs that snapshots may take. Left out: the daemon finds them among the LUNs that it sees."""

    chap: NodeChap | None = None
    """CHAP for addresses with iscsi://. Left out: the node logs in without proof."""

    chunk_size: values.ChunkSize = 64 << 10
    """The most that a first write copies: a power of two from 4KiB to 1MiB."""

    on_error: policy.OnError = policy.DEFAULT.on_error
    """The reaction when old data cannot be kept. `fail-writes` refuses the writes that would overwrite it. `drop-snapshot`
    lets them go on and invalidates snapshots, on all nodes."""

    max_snapshots: Annotated[int, pydantic.Field(ge=1)] | None = None
    """How many snapshots this node lets the volume have. Left out: any number."""

    schedule: Timing | None = None
    """When a node takes a snapshot by itself, as for volumes. If several nodes have the same schedule, only one of them takes
    each snapshot."""

    keep: Keep | None = None
    """Which of the snapshots that a schedule takes are kept; the daemon deletes the others."""

    map_views: MapViews = MapViews.BY_HAND
    """Which snapshots' views initiators of this node see, as for volumes."""

    exchange: Exchange = Exchange.NONE
    """How nodes tell each other what they preserved, which saves copies. `corosync` needs Debian's corosync on the nodes, with
    encryption. Without it nothing is wrong."""

    snapshot: values.Name | None = None
    """The name of its only snapshot; needs `write_once`."""

    write_once: values.FilePath | None = None
    """The block device of the write-once LUN of its only snapshot; needs `snapshot`."""

    view_lun: values.Lun | None = None
    """The LUN of the only snapshot's read-only view. Left out: this node does not show it."""

    block_size: values.BlockSize = 512
    """Bytes per logical block, the same as on the two devices of a volume with only one snapshot: 512 or 4096."""

    @property
    def is_static(self) -> bool:
        """Whether it has only the snapshot that the configuration names."""
        return self.write_once is not None

    def problems(self) -> Problems:
        """Return the problems of values beside their neighbours."""
        given = self.model_fields_set
        if self.snapshot is None and self.write_once is None:
            if "view_lun" in given:
                return {("view_lun",): "it needs snapshot and write_once: otherwise views get free LUNs by themselves"}
            if "block_size" in given:
                return {("block_size",): "it needs snapshot and write_once: otherwise the primary says it"}
            if problems := self._store_problems():
                return problems
            if self.chap is not None:
                if (self.chap.target_name is None) is not (self.chap.target_secret_file is None):
                    return {("chap",): "target_name and target_secret_file belong together: write both or neither"}
                if not self.primary.startswith("iscsi:"):
                    return {("chap",): "it does nothing for a block device: the kernel's initiator has logged in"}
            return schedule_problems(self.schedule, self.keep, self.max_snapshots, 0)
        for key in ("snapshot", "write_once"):
            if getattr(self, key) is None:
                return {(): f"{key} is missing: write both snapshot and write_once, or none of them"}
        if self.primary.startswith("iscsi:"):
            return {("primary",): "with write_once, it must be a block device"}
        for key in (
            "node",
            "store",
            "objects",
            "rados",
            "log",
            "pool",
            "chap",
            "on_error",
            "max_snapshots",
            "schedule",
            "keep",
            "map_views",
            "exchange",
        ):
            if key in given:
                return {(key,): "it does nothing for a volume whose only snapshot the configuration names"}
        if self.lun is None and self.view_lun is None:
            return {(): "it would not be served: write lun, view_lun, or both"}
        return {}

    def _store_problems(self) -> Problems:
        """Return the problems of the store beside its neighbours."""
        kind = None if self.store is None else Kind(self.store.value)
        problems = place_problems(kind, self.objects, self.rados, "write-once LUNs beside the primary")
        if self.store is None:
            return problems
        for key, value in (("log", self.log), ("pool", self.pool)):
            if value:
                problems[key,] = f"it does nothing: the {key} is in {self.store.value}"
        if kind is Kind.OBJECTS and self.chunk_size < OBJECT_MINIMUM:
            problems["chunk_size",] = _too_small(self.chunk_size)
        return problems


def place_problems(store: Kind | None, objects: Objects | None, rados: Rados | None, other: str) -> dict[Where, str]:
    """Return the problems of the places of a store; `other` describes the store that `store: None` stands for."""
    problems: dict[Where, str] = {}
    for kind, place, example in (
        (Kind.OBJECTS, objects, "objects: {url: s3://bucket/prefix}"),
        (Kind.RADOS, rados, "rados: {pool: wolun}"),
    ):
        if store is not kind and place is not None:
            problems[kind.value,] = f"it does nothing: the store is {other if store is None else store.value}"
        elif store is kind and place is None:
            problems["store",] = f"write where the objects are, like {example}"
    return problems


def _too_small(chunk_size: int) -> str:
    return f"{units.exact_size(chunk_size)} is too small for objects: write 256KiB, 512KiB or 1MiB"
