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
from target.configuration.values import Problems, Where
from target.configuration.volumes import SharedVolume as SharedVolume
from target.configuration.volumes import Volume as Volume
from target.configuration.volumes import WriteOnceLun as WriteOnceLun


class Portal(values.Group):
    """The iSCSI portal in user space."""

    listen: values.Listens = DEFAULT_LISTEN
    """HOST:PORT, or a list of several, to accept initiators on; 3260 is iSCSI's own. Port 0 takes any free one."""


class Lio(values.Group):
    """The kernel's target, which needs root and the modules target_core_user, iscsi_target_mod and tcm_loop."""

    listen: tuple[values.Listen, ...] = ("0.0.0.0:3260",)
    """ADDRESS:PORT, with numeric addresses, to accept initiators on. Empty: no iSCSI."""

    loopback: bool = False
    """Whether this host itself gets the LUNs as disks, through tcm_loop."""

    def problems(self) -> Problems:
        """What the kernel would not take."""
        found: dict[Where, str] = {}
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


class Settings(values.Group):
    """Everything a configuration file says."""

    target: values.TargetName
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

    def problems(self) -> Problems:
        """Return what no single value can know: the path of each value that does not fit its neighbours, and why."""
        return {
            **values.below(("access",), self.access.problems()),
            **self._kernel_problems(),
            **self._repeated_names(),
            **self._repeated_luns(),
            **self._repeated_primaries(),
            **_of_each("volumes", self.volumes),
            **_of_each("write_once", self.write_once),
            **_of_each("shared", self.shared),
        }

    @property
    def fixed_luns(self) -> frozenset[int]:
        """The LUNs that the configuration gives away itself."""
        return frozenset(lun for _, lun, _ in (*self._volume_luns(), *self._other_luns()))

    def _kernel_problems(self) -> Problems:
        """Return what the kernel's target, if it is the fabric, would not take."""
        if self.fabric is not Fabric.LIO:
            return {}
        return {
            **values.below(("lio",), self.lio.problems()),
            **values.below(("access",), self.access.kernel_problems()),
        }

    def _repeated_names(self) -> Problems:
        problems: dict[Where, str] = {}
        first: dict[str, int] = {}
        for index, volume in enumerate(self.volumes):
            if volume.name in first:
                problems["volumes", index, "name"] = f"volumes[{first[volume.name]}] is called {volume.name} already"
            first.setdefault(volume.name, index)
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

    def _volume_luns(self) -> Iterator[tuple[Where, int, str]]:
        """Yield the path, the LUN and the name of each volume that has a LUN."""
        for index, volume in enumerate(self.volumes):
            if volume.lun is not None:
                yield ("volumes", index, "lun"), volume.lun, volume.name

    def _other_luns(self) -> Iterator[tuple[Where, int, str]]:
        """Yield the path, the LUN and the owner of each LUN that is not a volume's."""
        for index, single in enumerate(self.write_once):
            yield ("write_once", index, "lun"), single.lun, f"{single.volume}@{single.snapshot}/write-once"
        for index, shared in enumerate(self.shared):
            if shared.lun is not None:
                yield ("shared", index, "lun"), shared.lun, shared.name
            if shared.view_lun is not None:
                yield ("shared", index, "view_lun"), shared.view_lun, f"{shared.name}@{shared.snapshot}"


def _of_each(key: str, groups: Sequence[Volume | WriteOnceLun | SharedVolume]) -> Problems:
    """Return the problems that each group of the list at `key` finds in itself."""
    return {
        where: what
        for index, group in enumerate(groups)
        for where, what in values.below((key, index), group.problems()).items()
    }
