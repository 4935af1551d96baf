# SPDX-License-Identifier: Apache-2.0
"""The settings: everything that a configuration file may say, as types.

Each value is checked and immutable.  An unknown key is refused, and so is a key that would do nothing: a feature that
this version lacks has no key yet.  `reader` reads files into these types and explains mistakes by file and line;
`writer` writes them back; `schema` describes them to editors.

| key          | meaning                                                                                         |
| ------------ | ----------------------------------------------------------------------------------------------- |
| `target`     | the iSCSI name that initiators log in to; all LUNs of this daemon are in this one target        |
| `fabric`     | the way SCSI reaches the daemon: `portal`, its own in user space, or `lio`, the kernel's target |
| `portal`     | the addresses that the daemon's own portal listens on, and the memory that it may take          |
| `lio`        | the addresses of the kernel's target, and whether this host attaches the LUNs itself            |
| `access`     | who may log in, how they prove it, and what they see; by default no initiator may log in        |
| `notices`    | where alerts are sent: a webhook, mail                                                          |
| `status`     | the status page: addresses, tokens, certificates                                                |
| `volumes`    | the volumes on this host's own storage                                                          |
| `groups`     | volumes that a schedule takes snapshots of at one moment                                         |
| `write_once` | write-once LUNs for nodes that share a volume: pools, and single LUNs                           |
| `shared`     | volumes on storage that several nodes share                                                     |

The string below each key is its description in the JSON schema, which users read.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from pathlib import Path

from target.configuration import values

# Other rooms name all parts of the configuration settings.Volume, settings.Chap and so on: these are this module's
# interface, too.
from target.configuration.access import Access as Access
from target.configuration.access import Chap as Chap
from target.configuration.access import Initiator as Initiator
from target.configuration.access import MappedLun as MappedLun
from target.configuration.fabric_kind import DEFAULT_LISTEN
from target.configuration.fabric_kind import Fabric as Fabric
from target.configuration.rate import NO_RATE
from target.configuration.rate import Rate as Rate
from target.configuration.scheduling import SnapshotGroup as SnapshotGroup
from target.configuration.scheduling import Verify as Verify
from target.configuration.telling import Notices as Notices
from target.configuration.telling import StatusPage as StatusPage
from target.configuration.values import Problems, Where
from target.configuration.volumes import MapViews as MapViews
from target.configuration.volumes import MapWriteOnce as MapWriteOnce
from target.configuration.volumes import NodeChap as NodeChap
from target.configuration.volumes import OnFailure as OnFailure
from target.configuration.volumes import Quiesce as Quiesce
from target.configuration.volumes import Replication as Replication
from target.configuration.volumes import SharedVolume as SharedVolume
from target.configuration.volumes import Volume as Volume
from target.configuration.volumes import WriteOnceLun as WriteOnceLun


class Portal(values.Group):
    """The iSCSI portal in user space."""

    listen: values.Listens = DEFAULT_LISTEN
    """HOST:PORT, or a list of several, to accept initiators on. iSCSI's own port is 3260; port 0 takes any free one."""

    sessions: values.Sessions = 256
    """The most sessions at once, without those for discovery. One peer, an IPv4 address or an IPv6 /64, can have seven of
    eight. A login beyond that is refused with the status 0302h (out of resources)."""

    announce: values.Announced = ()
    """HOST:PORT, or a list of several, that discovery tells initiators instead of the addresses of `listen`: those by which
    they reach this machine through address translation (NAT) or a load balancer. Left out: the addresses of `listen`."""

    memory: values.Memory = 256 << 20
    """The memory that the data of commands may take, all sessions together, at least 64MiB. Half of it
    is set aside in equal parts for the sessions, and they share the rest as they need it. Commands that find no room wait, or end with TASK SET FULL, and their initiators send them again."""


class Lio(values.Group):
    """The kernel's target, which needs root and the modules target_core_user, iscsi_target_mod and tcm_loop."""

    listen: tuple[values.Listen, ...] = ("0.0.0.0:3260",)
    """A list of ADDRESS:PORT, with numeric addresses, to accept initiators on. Empty: no iSCSI."""

    loopback: bool = False
    """Whether this host itself gets the LUNs as disks, through tcm_loop."""

    def problems(self) -> Problems:
        """Return the values that the kernel would refuse."""
        problems: dict[Where, str] = {}
        for index, listen in enumerate(self.listen):
            host, _, port = listen.rpartition(":")
            try:
                ipaddress.ip_address(host.strip("[]"))
            except ValueError:
                problems["listen", index] = f"the kernel's target takes numeric addresses, not {host}"
            if port == "0":
                problems["listen", index] = "the kernel's target takes no port 0; iSCSI's own is 3260"
        if not self.listen and not self.loopback:
            problems["listen",] = "the LUNs could not be reached: list an address to listen on, or set loopback"
        return problems


class Settings(values.Group):
    """Everything that a configuration file says."""

    target: values.TargetName
    """The iSCSI name that initiators log in to."""

    fabric: Fabric = Fabric.PORTAL
    """The way SCSI reaches the daemon."""

    portal: Portal = Portal()
    """The addresses that initiators connect to, and what they may make the portal spend."""

    lio: Lio = Lio()
    """The addresses that initiators connect to, with `fabric: lio`."""

    access: Access = Access()
    """The initiators that may log in."""

    notices: Notices = Notices()
    """The notices of alerts."""

    status: StatusPage = StatusPage()
    """The status page."""

    volumes: tuple[Volume, ...]
    """The volumes on this host's own storage."""

    groups: tuple[SnapshotGroup, ...] = ()
    """Groups of volumes of which a schedule takes snapshots at one moment."""

    write_once: tuple[WriteOnceLun, ...] = ()
    """Write-once LUNs for nodes that share a volume: pools, and single LUNs."""

    shared: tuple[SharedVolume, ...] = ()
    """Volumes on storage that several nodes share."""

    def problems(self) -> Problems:
        """Return the problems that no single value can know: values that do not fit their neighbours, by path."""
        return {
            **values.below(("access",), self.access.problems()),
            **self._kernel_problems(),
            **self._repeated_names(),
            **self._repeated_luns(),
            **self._repeated_primaries(),
            **self._repeated_pools(),
            **values.below(("status",), self.status.problems()),
            **_of_each("volumes", self.volumes),
            **_of_each("groups", self.groups),
            **self._group_problems(),
            **_of_each("write_once", self.write_once),
            **_of_each("shared", self.shared),
        }

    @property
    def all_volumes(self) -> tuple[Volume | SharedVolume, ...]:
        """The volumes that snapshots can be taken of."""
        return (*self.volumes, *(shared for shared in self.shared if not shared.is_static))

    @property
    def fixed_luns(self) -> frozenset[int]:
        """The LUNs that the configuration assigns by itself."""
        return frozenset(lun for _, lun, _ in (*self._volume_luns(), *self._other_luns()))

    def _kernel_problems(self) -> Problems:
        """Return the values that the kernel's target would refuse, if it is the fabric."""
        if self.fabric is not Fabric.LIO:
            return {}
        return {
            **values.below(("lio",), self.lio.problems()),
            **values.below(("access",), self.access.kernel_problems()),
            **{
                ("volumes", index, "rate"): NO_RATE
                for index, volume in enumerate(self.volumes)
                if volume.rate is not None
            },
        }

    def _repeated_names(self) -> Problems:
        problems: dict[Where, str] = {}
        first: dict[str, str] = {}
        named = [(("volumes", index), volume.name) for index, volume in enumerate(self.volumes)]
        # A volume with one snapshot may be listed once for each of its snapshots, and beside the primary itself.
        named += [(("shared", index), shared.name) for index, shared in enumerate(self.shared) if not shared.is_static]
        for (key, index), name in named:
            if name in first:
                problems[key, index, "name"] = f"{first[name]} is called {name} already"
            first.setdefault(name, f"{key}[{index}]")
        return problems

    def _repeated_luns(self) -> Problems:
        problems: dict[Where, str] = {}
        owners: dict[int, str] = {}
        for where, lun, owner in self._volume_luns():
            if lun in owners:
                taken = {lun for _, lun, _ in self._volume_luns()}
                free = next(number for number in range(values.LUN_MAXIMUM) if number not in taken)
                problems[where] = f"LUN {lun} is {owners[lun]} already; the lowest free one is {free}"
            owners.setdefault(lun, owner)
        for where, lun, owner in self._other_luns():
            if lun in owners:
                problems[where] = f"LUN {lun} is {owners[lun]} already"
            owners.setdefault(lun, owner)
        return problems

    def _repeated_primaries(self) -> Problems:
        problems: dict[Where, str] = {}
        owners: dict[Path, str] = {}
        for index, volume in enumerate(self.volumes):
            if volume.primary is None:
                continue
            if volume.primary in owners:
                problems["volumes", index, "primary"] = (
                    f"{volume.primary} is the primary of {owners[volume.primary]} already"
                )
            owners.setdefault(volume.primary, volume.name)
        return problems

    def _repeated_pools(self) -> Problems:
        problems: dict[Where, str] = {}
        first: dict[str, int] = {}
        for index, single in enumerate(self.write_once):
            if single.blanks is None:
                continue
            if single.volume in first:
                problems["write_once", index, "volume"] = f"write_once[{first[single.volume]}] is its pool already"
            first.setdefault(single.volume, index)
        return problems

    def _group_problems(self) -> Problems:
        problems: dict[Where, str] = {}
        known = [volume.name for volume in self.volumes]
        for index, group in enumerate(self.groups):
            if any(group.name == other.name for other in self.groups[:index]):
                problems["groups", index, "name"] = f"another group is called {group.name} already"
            for position, name in enumerate(group.volumes):
                if name not in known:
                    problems["groups", index, "volumes", position] = f"there is no volume {name} in volumes"
        return problems

    def _volume_luns(self) -> Iterator[tuple[Where, int, str]]:
        """Yield the path, the LUN and the name of each volume that has a LUN."""
        for index, volume in enumerate(self.volumes):
            if volume.lun is not None:
                yield ("volumes", index, "lun"), volume.lun, volume.name

    def _other_luns(self) -> Iterator[tuple[Where, int, str]]:
        """Yield the path, the LUN and the owner of each LUN that is not a volume's."""
        for index, single in enumerate(self.write_once):
            if single.lun is None:
                continue
            yield ("write_once", index, "lun"), single.lun, f"{single.volume}@{single.snapshot}/write-once"
        for index, shared in enumerate(self.shared):
            if shared.lun is not None:
                yield ("shared", index, "lun"), shared.lun, shared.name
            if shared.view_lun is not None:
                yield ("shared", index, "view_lun"), shared.view_lun, f"{shared.name}@{shared.snapshot}"


def _of_each(key: str, groups: Sequence[Volume | SnapshotGroup | WriteOnceLun | SharedVolume]) -> Problems:
    """Return the problems that each group of the list at `key` finds in itself."""
    return {
        where: what
        for index, group in enumerate(groups)
        for where, what in values.below((key, index), group.problems()).items()
    }
