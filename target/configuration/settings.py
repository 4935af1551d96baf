# SPDX-License-Identifier: Apache-2.0
"""The configuration: what a file may say, as types, and the JSON schema that follows from them.

Every value here is checked and immutable.  A key that is not listed is refused, and so is a key that would do nothing:
what this version cannot do has no key yet.  `configuration.py` reads files into these types and explains what is wrong
with them, by file and line.

| key       | what it is                                                                    |
| --------- | ----------------------------------------------------------------------------- |
| `target`  | the iSCSI name that initiators log in to; all LUNs of this daemon are in it   |
| `fabric`  | what carries SCSI to the daemon: `portal`, its own iSCSI portal in user space, or `lio`, the kernel's target |
| `portal`  | where that portal listens                                                     |
| `lio`     | where the kernel's target listens, and whether this host attaches the LUNs itself |
| `access`  | who may log in, how they prove it, what they see; nobody, unless said otherwise |
| `volumes` | what is served from this host's own storage                                   |
| `write_once` | write-once LUNs on their own, for nodes that share a volume                |
| `shared`  | volumes on storage that several nodes share                                   |

(Longer than most modules here: it is the list of all keys, with the text that the schema shows of each.)
"""

from __future__ import annotations

import ast
import enum
import inspect
import ipaddress
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import json_schema as json_schema_
from pydantic_core import core_schema

from lun_backends import names
from lun_backends.durability import Durability
from lun_backends.volumes import policy
from target import units
from target.configuration.fabric_kind import DEFAULT_LISTEN
from target.configuration.fabric_kind import Fabric as Fabric  # part of this module's interface
from target.configuration.schedule import Every

CHUNK_MINIMUM = 4 << 10
CHUNK_MAXIMUM = 1 << 20
PHYSICAL_MINIMUM = 4 << 10
PHYSICAL_MAXIMUM = 1 << 20
LUN_MAXIMUM = 16383
"""SAM-5 4.7.7.4: flat space addressing has 14 bits."""

LARGEST = (1 << 63) - 1
"""Bytes of any file: an off_t holds no more."""

NO_LUN = "none"

NAME_PATTERN = f"^{names.PATTERN}$"
"""Names of volumes and snapshots: they become file names, and `@` separates the two."""

# RFC 3720 3.2.6.3 as far as it is in use: iqn.<year>-<month>.<reversed domain>[:<anything>], eui.<16 hex>, naa.<16 or 32 hex>.
IQN_PATTERN = (
    r"^(iqn\.[0-9]{4}-(0[1-9]|1[0-2])\.[a-z0-9][a-z0-9.-]*(:[a-z0-9.:_-]+)?"
    r"|eui\.[0-9A-Fa-f]{16}|naa\.([0-9A-Fa-f]{16}){1,2})$"
)
IQN_MAXIMUM = 223
INITIATOR_PATTERN = r"^([Ii][Qq][Nn]\.|[Ee][Uu][Ii]\.|[Nn][Aa][Aa]\.|[A-Za-z]{0,3}[*?\[])[A-Za-z0-9.:_*?\[\]!-]*$"
"""A name, or a pattern of names as in file names: `*`, `?` and `[...]`."""
UNIT_PATTERN = f"^{names.PATTERN}(@{names.PATTERN}(/write-once)?)?$"
"""`vol0`, `vol0@nightly` (the snapshot's view), `vol0@nightly/write-once`."""
LISTEN_PATTERN = r"^(\[[0-9A-Fa-f:.]+\]|[^:\[\]\s]+):[0-9]{1,5}$"


class ChapAlgorithm(enum.Enum):
    """How CHAP's answers are computed."""

    SHA256 = "sha256"
    MD5 = "md5"


def _size(value: object) -> object:
    return units.parse_size(value) if isinstance(value, str) else value


def _allowed_size(value: int) -> int:
    if not 0 <= value <= LARGEST:
        raise ValueError(f"{value} bytes are no size: from 0 to {units.exact_size(LARGEST + 1)}, less one byte")
    return value


def _network(value: object) -> object:
    if not isinstance(value, str):  # ipaddress would take the number 5 for 0.0.0.5
        raise ValueError(f"{value!r} is no network: write one like 127.0.0.0/8 or 10.1.2.3/32")
    try:
        return ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError(f"{error}: write a network like 127.0.0.0/8 or 10.1.2.3/32") from None


def _listen(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not re.match(LISTEN_PATTERN, value) or int(port) > 65535:
        raise ValueError(f"{value!r} is no address to listen on: write HOST:PORT, like 127.0.0.1:3260 or [::1]:3260")
    if host.startswith("["):
        ipaddress.IPv6Address(host[1:-1])
    return value


def _matching(pattern: str, what: str) -> pydantic.AfterValidator:
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if not compiled.match(value):
            raise ValueError(f"{value!r} is no {what}")
        return value

    return pydantic.AfterValidator(check)


def _schema(**extra: Any) -> Any:
    return pydantic.Field(json_schema_extra=extra)


Size = Annotated[
    int,
    pydantic.BeforeValidator(_size),
    pydantic.AfterValidator(_allowed_size),
    pydantic.WithJsonSchema(
        {
            "anyOf": [{"type": "string", "pattern": units.SIZE_PATTERN}, {"type": "integer", "minimum": 0}],
            "examples": ["64KiB", "1GiB"],
        }
    ),
]
Percent = Annotated[int, pydantic.Field(ge=1, le=100)]
Seconds = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
Name = Annotated[
    str,
    _matching(NAME_PATTERN, f"name: {names.RULE}"),
    _schema(pattern=NAME_PATTERN),
]
TargetName = Annotated[
    str,
    _matching(IQN_PATTERN, "iSCSI name: write iqn.YEAR-MONTH.REVERSED-DOMAIN:ANYTHING, in small letters"),
    pydantic.Field(max_length=IQN_MAXIMUM, json_schema_extra={"pattern": IQN_PATTERN}),
]
InitiatorName = Annotated[
    str,
    _matching(
        INITIATOR_PATTERN,
        "initiator's name: write an iSCSI name, like iqn.2026-11.org.example:host, or a pattern of them with * and ?",
    ),
    pydantic.Field(max_length=IQN_MAXIMUM, json_schema_extra={"pattern": INITIATOR_PATTERN}),
]
UnitName = Annotated[
    str,
    _matching(UNIT_PATTERN, "unit: write VOLUME, VOLUME@SNAPSHOT or VOLUME@SNAPSHOT/write-once"),
    _schema(pattern=UNIT_PATTERN),
]


def _lun_or_none(value: object) -> object:
    if value is None:
        raise ValueError(f"write a number, or {NO_LUN}")
    return None if value == NO_LUN else value


ChapName = Annotated[str, pydantic.Field(min_length=1, max_length=255, pattern=r"^[!-~]+$")]
Lun = Annotated[int, pydantic.Field(ge=0, le=LUN_MAXIMUM)]
LunOrNone = Annotated[
    Lun | None,
    pydantic.BeforeValidator(_lun_or_none),
    pydantic.PlainSerializer(lambda value: NO_LUN if value is None else value),
    pydantic.WithJsonSchema(
        {
            "anyOf": [{"type": "integer", "minimum": 0, "maximum": LUN_MAXIMUM}, {"const": NO_LUN}],
            "examples": [0, NO_LUN],
        }
    ),
]
Listen = Annotated[str, pydantic.AfterValidator(_listen), _schema(pattern=LISTEN_PATTERN)]
Listens = Annotated[
    tuple[Listen, ...],
    pydantic.Field(min_length=1),
    pydantic.BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    pydantic.PlainSerializer(lambda value: value[0] if len(value) == 1 else value),
    pydantic.WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": LISTEN_PATTERN},
                {"type": "array", "items": {"type": "string", "pattern": LISTEN_PATTERN}, "minItems": 1},
            ]
        }
    ),
]
Network = Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, pydantic.BeforeValidator(_network)]


Kept = Annotated[int, pydantic.Field(ge=0, le=10_000)]


class _Settings(pydantic.BaseModel):
    """What all parts of the configuration share."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=False)


def _allowed_block_size(value: int) -> int:
    if value not in (512, 4096):
        raise ValueError(f"{value} is no block size: 512 or 4096")
    return value


def _allowed_chunk_size(value: int) -> int:
    if value & (value - 1) or not CHUNK_MINIMUM <= value <= CHUNK_MAXIMUM:
        raise ValueError(f"{units.exact_size(value)} is no chunk size: a power of two from 4KiB to 1MiB")
    return value


def _allowed_physical_block_size(value: int) -> int:
    if value & (value - 1) or not PHYSICAL_MINIMUM <= value <= PHYSICAL_MAXIMUM:
        raise ValueError(f"{units.exact_size(value)} is no physical block size: a power of two from 4KiB to 1MiB")
    return value


BlockSize = Annotated[int, pydantic.AfterValidator(_allowed_block_size), _schema(enum=[512, 4096])]
ChunkSize = Annotated[Size, pydantic.AfterValidator(_allowed_chunk_size)]
PhysicalBlockSize = Annotated[Size, pydantic.AfterValidator(_allowed_physical_block_size)]


class Portal(_Settings):
    """The iSCSI portal in user space."""

    listen: Listens = DEFAULT_LISTEN
    """HOST:PORT, or a list of several, to accept initiators on; 3260 is iSCSI's own. Port 0 takes any free one."""


class Lio(_Settings):
    """The kernel's target, which needs root and the modules target_core_user, iscsi_target_mod and tcm_loop."""

    listen: tuple[Listen, ...] = ("0.0.0.0:3260",)
    """ADDRESS:PORT, with numeric addresses, to accept initiators on. Empty: no iSCSI."""

    loopback: bool = False
    """Whether this host itself gets the LUNs as disks, through tcm_loop."""

    def problems(self) -> Mapping[tuple[str | int, ...], str]:
        """What the kernel would not take."""
        found: dict[tuple[str | int, ...], str] = {}
        for index, listen in enumerate(self.listen):
            host, _, port = listen.rpartition(":")
            try:
                ipaddress.ip_address(host.strip("[]"))
            except ValueError:
                found["listen", index] = f"the kernel's target takes numeric addresses, not {host}"
            if port == "0":
                found["listen", index] = "the kernel's target takes no port 0; iSCSI's own is 3260"
        if not self.listen and not self.loopback:
            found["listen",] = "nobody reaches the LUNs: give an address to listen on, or set loopback"
        return found


class Chap(_Settings):
    """How an initiator proves who it is, and the target to it: CHAP, and with the two `target_` keys mutual CHAP."""

    name: ChapName
    """The CHAP name the initiator gives."""

    secret_file: Path
    """The file that holds the initiator's secret, 12 to 255 bytes on one line. Relative paths start at the state
    directory. It must belong to the daemon's user or root, and be readable by nobody else (mode 0600 or 0400)."""

    target_name: ChapName | None = None
    """The CHAP name the target gives, for mutual CHAP."""

    target_secret_file: Path | None = None
    """The file that holds the target's secret, which must be another one; for mutual CHAP."""

    algorithms: Annotated[tuple[ChapAlgorithm, ...], pydantic.Field(min_length=1)] = (
        ChapAlgorithm.SHA256,
        ChapAlgorithm.MD5,
    )
    """What may be used: the first of them that the initiator knows, too."""


class MappedLun(_Settings):
    """What an initiator sees under one number."""

    lun: Lun
    """The LUN under which this initiator sees it."""

    unit: UnitName
    """What it sees: VOLUME, VOLUME@SNAPSHOT (as it was then), or VOLUME@SNAPSHOT/write-once."""

    read_only: bool = False
    """Whether its writes are refused, whatever others may do."""


class Initiator(_Settings):
    """Initiators that may log in, and what they see."""

    name: InitiatorName
    """The initiator's iSCSI name, or a pattern of names (`*`, `?`, `[...]`). A name that is listed in full goes before
    the patterns; of those, the first that fits counts."""

    networks: tuple[Network, ...] = ()
    """Networks these initiators may come from. Empty: from any that `access.networks` allows."""

    chap: Chap | None = None
    """How they prove who they are. Left out: they need not."""

    read_only: bool = False
    """Whether all their writes are refused."""

    luns: tuple[MappedLun, ...] | None = None
    """What they see, under which numbers. Left out: every LUN, under its own number."""

    def problems(self) -> Mapping[tuple[str | int, ...], str]:
        """What is wrong with values beside their neighbours."""
        found: dict[tuple[str | int, ...], str] = {}
        if self.chap is not None:
            if (self.chap.target_name is None) is not (self.chap.target_secret_file is None):
                found["chap",] = "target_name and target_secret_file belong together: give both or neither"
            elif self.chap.target_secret_file == self.chap.secret_file:
                found["chap", "target_secret_file"] = "both directions must not have the same secret"
        seen: dict[int, str] = {}
        for index, mapped in enumerate(self.luns or ()):
            if mapped.lun in seen:
                found["luns", index, "lun"] = f"LUN {mapped.lun} is {seen[mapped.lun]} already"
            seen.setdefault(mapped.lun, mapped.unit)
        return found


class Access(_Settings):
    """Who may log in. Everybody else is refused at login, and told nothing."""

    networks: tuple[Network, ...] = ()
    """Networks that initiators may come from, like 127.0.0.0/8 or 10.1.2.3/32. Empty, and no `initiators`: nobody may
    log in. Empty, with `initiators`: those may, from anywhere."""

    initiators: tuple[Initiator, ...] | None = None
    """Which initiators may log in. Left out: any that comes from one of `networks`. An empty list: none."""

    discovery_chap: bool = False
    """Whether initiators that have CHAP must use it for discovery, too. Discovery tells an initiator only of targets
    that it may log in to, in any case."""

    def admits(self, address: str) -> bool:
        """Whether an initiator at this IP address may log in, as far as the address goes."""
        if not self.networks:
            return bool(self.initiators)
        return within(address, self.networks)

    def problems(self) -> Mapping[tuple[str | int, ...], str]:
        """What is wrong with values beside their neighbours."""
        found: dict[tuple[str | int, ...], str] = {}
        names: dict[str, int] = {}
        for index, initiator in enumerate(self.initiators or ()):
            name = initiator.name.lower()
            if name in names:
                found["initiators", index, "name"] = f"initiators[{names[name]}] has this name already"
            names.setdefault(name, index)
            found.update({("initiators", index, *where): what for where, what in initiator.problems().items()})
        return found

    def kernel_problems(self) -> Mapping[tuple[str | int, ...], str]:
        """What the kernel's target cannot do: it would let in whom this keeps out."""
        found: dict[tuple[str | int, ...], str] = {}
        if any(network.prefixlen for network in self.networks):
            found["networks",] = (
                "the kernel's target cannot tell networks apart: allow 0.0.0.0/0, listen where only the right "
                "initiators get to, and name them in access.initiators"
            )
        if self.discovery_chap:
            found["discovery_chap",] = "discovery belongs to all of the kernel's targets: set it with targetcli"
        for index, initiator in enumerate(self.initiators or ()):
            if re.search(r"[*?\[]", initiator.name):
                found["initiators", index, "name"] = "the kernel's target takes whole names, no patterns"
            if initiator.networks:
                found["initiators", index, "networks"] = "the kernel's target cannot tell networks apart"
        return found


def within(address: str, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    """Whether an IP address, perhaps with a zone, or an IPv4 address as IPv6 has it, is in one of the networks."""
    peer: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped is not None:
        peer = peer.ipv4_mapped
    return any(peer in network for network in networks)


class Keep(_Settings):
    """Which snapshots of a schedule are kept: of the newest so many hours, days, weeks and months that have one, the last."""

    hourly: Kept = 0
    """How many of the hours."""

    daily: Kept = 0
    """How many of the days."""

    weekly: Kept = 0
    """How many of the weeks, which begin on Monday."""

    monthly: Kept = 0
    """How many of the months."""

    @property
    def counts(self) -> Mapping[Every, int]:
        """The same by kind of period."""
        return {every: getattr(self, every.value) for every in Every}


class Volume(_Settings):
    """A primary and its snapshots."""

    name: Name
    """What commands call it. Never change it: snapshots are kept under this name."""

    lun: LunOrNone
    """The LUN under which initiators see the volume; `none`: they do not. Snapshots take the lowest numbers that are free."""

    size: Size | None = None
    """Bytes, like 1GiB. Required to make a new volume; one that exists keeps its size."""

    primary: Path | None = None
    """The file or block device that holds the live data, relative to the state directory. Left out: a sparse file
    in the state directory, made if it is not there."""

    block_size: BlockSize = 512
    """Bytes per logical block: 512 or 4096."""

    physical_block_size: PhysicalBlockSize | None = None
    """Bytes of what lies below that are written as a whole, as initiators are told, who then align to it: a power of two
    from 4KiB to 1MiB, like the record size of the file system that holds the primary. Left out: what the disk says."""

    chunk_size: ChunkSize = 64 << 10
    """The unit of copy-on-write: a power of two from 4KiB to 1MiB. A volume keeps the one it was made with."""

    durability: Durability = Durability.POWER_LOSS
    """`power-loss`: a pre-image is on stable storage before its block is overwritten. `process-crash`: it is in the
    operating system's cache; faster, and snapshots may be wrong after a power cut."""

    snapshots: tuple[Name, ...] = ()
    """Snapshots to take at start, if the volume does not have them yet."""

    limit: Size | None = None
    """How many bytes of old data the volume's snapshots may keep, all together. Left out: as many as there is room for."""

    warn_at: Percent = 80
    """Of `limit`, in percent: when it is passed, `wolun status` and the initiators are told."""

    on_error: policy.OnError = policy.OnError.FAIL_WRITES
    """When old data cannot be kept (no room, a failing disk, `copy_timeout`): `fail-writes` refuses the writes that would
    overwrite it; `drop-snapshot` lets them go on and gives snapshots up: the oldest, if that makes room, else all."""

    copy_timeout: Seconds | None = None
    """Seconds after which a copy of old data counts as failed. Left out: it may take as long as it takes."""

    max_snapshots: Annotated[int, pydantic.Field(ge=1)] | None = None
    """How many snapshots there may be. Left out: any number."""

    schedule: Every | None = None
    """How often a snapshot is taken by itself, at the beginning of each hour, day, week or month (UTC). One that was missed
    is caught up once. They are called like auto-2026-11-22T2300Z. Left out: none are taken."""

    keep: Keep | None = None
    """Which of the snapshots that the schedule takes are kept; the others are deleted. Snapshots that were taken by hand
    are never deleted."""

    def schedule_problems(self) -> Mapping[tuple[str | int, ...], str]:
        """What is wrong with the schedule and its neighbours."""
        if self.schedule is None:
            return {} if self.keep is None else {("keep",): "there is no schedule whose snapshots would be kept"}
        counts = {} if self.keep is None else self.keep.counts
        total = sum(counts.values())
        if not total:
            return {("schedule",): "say which of its snapshots to keep, like keep: {hourly: 24, daily: 7}"}
        kinds = list(Every)
        found: dict[tuple[str | int, ...], str] = {
            ("keep", every.value): f"does nothing: the schedule is {self.schedule.value}"
            for every in kinds[: kinds.index(self.schedule)]
            if counts[every]
        }
        if self.max_snapshots is not None and self.max_snapshots <= total:
            found["max_snapshots",] = (
                f"the schedule keeps {total}, and takes one before it deletes one: at least {total + 1}"
            )
        return found


class WriteOnceLun(_Settings):
    """A write-once LUN on its own, for nodes that preserve into it from elsewhere (see `shared`)."""

    volume: Name
    """The volume whose old data it holds."""

    snapshot: Name
    """The snapshot it is; the LUN is known as VOLUME@SNAPSHOT."""

    lun: Lun
    """The LUN under which initiators see it."""

    size: Size
    """Bytes: as large as the volume. Empty, it takes next to nothing on disk."""

    block_size: BlockSize = 512
    """Bytes per logical block, as the volume's: 512 or 4096."""

    chunk_size: ChunkSize = 64 << 10
    """The unit of allocation: a power of two from 4KiB to 1MiB."""

    durability: Durability = Durability.POWER_LOSS
    """When a block counts as written: `power-loss` or `process-crash`, as with volumes."""


class SharedVolume(_Settings):
    """A volume on storage that several nodes share: primary and write-once LUN are block devices of another host."""

    name: Name
    """What the volume is called."""

    snapshot: Name
    """What its snapshot is called."""

    primary: Path
    """The block device of the primary, like /dev/disk/by-id/wwn-0x...; always read and written past the page cache."""

    write_once: Path
    """The block device of the snapshot's write-once LUN."""

    lun: Lun | None = None
    """The LUN of the volume, through copy-on-write. Left out: this node does not write to it."""

    view_lun: Lun | None = None
    """The LUN of the snapshot's read-only view. Left out: this node does not show it."""

    block_size: BlockSize = 512
    """Bytes per logical block, as the two devices have it: 512 or 4096."""

    chunk_size: ChunkSize = 64 << 10
    """The unit of copy-on-write: a power of two from 4KiB to 1MiB."""


class Settings(_Settings):
    """Everything a configuration file says."""

    target: TargetName
    """The iSCSI name that initiators log in to."""

    fabric: Fabric = Fabric.PORTAL
    """What carries SCSI to the daemon."""

    portal: Portal = Portal()
    """Where initiators connect."""

    lio: Lio = Lio()
    """Where initiators connect with `fabric: lio`."""

    access: Access = Access()
    """Who may log in."""

    volumes: tuple[Volume, ...]
    """What is served from this host's own storage."""

    write_once: tuple[WriteOnceLun, ...] = ()
    """Write-once LUNs on their own, for nodes that share a volume."""

    shared: tuple[SharedVolume, ...] = ()
    """Volumes on storage that several nodes share."""

    def problems(self) -> Mapping[tuple[str | int, ...], str]:
        """What no single value can know: path of a value, and what is wrong with it beside its neighbours."""
        found: dict[tuple[str | int, ...], str] = {}
        names: dict[str, int] = {}
        luns: dict[int, str] = {}
        primaries: dict[Path, str] = {}
        found.update({("access", *where): what for where, what in self.access.problems().items()})
        if self.fabric is Fabric.LIO:
            found.update({("lio", *where): what for where, what in self.lio.problems().items()})
            found.update({("access", *where): what for where, what in self.access.kernel_problems().items()})
        for index, volume in enumerate(self.volumes):
            where = ("volumes", index)
            if volume.name in names:
                found[*where, "name"] = f"volumes[{names[volume.name]}] is called {volume.name} already"
            names.setdefault(volume.name, index)
            if volume.lun is not None and volume.lun in luns:
                free = next(number for number in range(LUN_MAXIMUM) if number not in {v.lun for v in self.volumes})
                found[*where, "lun"] = f"LUN {volume.lun} is {luns[volume.lun]} already; the lowest free one is {free}"
            if volume.lun is not None:
                luns.setdefault(volume.lun, volume.name)
            if volume.primary is not None:
                if volume.primary in primaries:
                    found[*where, "primary"] = f"{volume.primary} is the primary of {primaries[volume.primary]} already"
                primaries.setdefault(volume.primary, volume.name)
            if volume.size is not None and (volume.size == 0 or volume.size % volume.block_size):
                size = units.exact_size(volume.size)
                found[*where, "size"] = f"{size} is no whole number of blocks of {volume.block_size} bytes"
            found.update({(*where, *place): what for place, what in volume.schedule_problems().items()})
            for position, name in enumerate(volume.snapshots):
                if name in volume.snapshots[:position]:
                    found[*where, "snapshots", position] = f"{name} is listed already"
        for place, lun, what in self._other_luns():
            if lun in luns:
                found[place] = f"LUN {lun} is {luns[lun]} already"
            luns.setdefault(lun, what)
        for index, single in enumerate(self.write_once):
            if single.size == 0 or single.size % single.block_size:
                found["write_once", index, "size"] = f"no whole number of blocks of {single.block_size} bytes"
        for index, each in enumerate(self.shared):
            if each.lun is None and each.view_lun is None:
                found["shared", index] = "nothing of it would be served: give lun, view_lun, or both"
        return found

    @property
    def fixed_luns(self) -> frozenset[int]:
        """The LUNs that the configuration gives away itself."""
        luns = (each.lun for each in self.volumes if each.lun is not None)
        return frozenset((*luns, *(lun for _, lun, _ in self._other_luns())))

    def _other_luns(self) -> Iterator[tuple[tuple[str | int, ...], int, str]]:
        """What is not a volume: path of the value, the LUN, and what has it."""
        for index, single in enumerate(self.write_once):
            yield ("write_once", index, "lun"), single.lun, f"{single.volume}@{single.snapshot}/write-once"
        for index, each in enumerate(self.shared):
            if each.lun is not None:
                yield ("shared", index, "lun"), each.lun, each.name
            if each.view_lun is not None:
                yield ("shared", index, "view_lun"), each.view_lun, f"{each.name}@{each.snapshot}"


class _WithDescriptions(json_schema_.GenerateJsonSchema):
    """Takes the text below each key along.  pydantic does that by itself (`use_attribute_docstrings`), but whenever this module is
    imported: a sixth of what `wolun config check` takes.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        source = ast.parse(Path(__file__).read_text(encoding="utf-8"))
        self._classes = {each.name: each for each in source.body if isinstance(each, ast.ClassDef)}

    def model_schema(self, schema: core_schema.ModelSchema) -> json_schema_.JsonSchemaValue:
        found = super().model_schema(schema)
        for key, text in itertools.pairwise(self._classes[schema["cls"].__name__].body):
            match key, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                    found["properties"][name]["description"] = inspect.cleandoc(said)
        return found


def json_schema() -> dict[str, Any]:
    """The JSON schema of the configuration file, for editors and for machines."""
    schema = Settings.model_json_schema(schema_generator=_WithDescriptions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "wolun configuration"}
