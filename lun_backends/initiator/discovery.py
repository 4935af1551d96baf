# SPDX-License-Identifier: Apache-2.0
"""The LUNs of a volume among those that this host sees.  Each LUN says itself what it is (page DAh, `part.py`).

A `Source` lists LUNs: `Portals` asks iSCSI targets with REPORT LUNS, `KernelDisks` goes through the SCSI disks of the
kernel.  Nothing is kept between two calls of `find`, so LUNs that become visible late are found.  The kernel needs a
`rescan` for that; a target that is asked does not.

One LUN may be seen over several paths: then its target and its number are the same each time, and `find` returns the
path that its source listed first (a disk of dm-multipath stands for its paths).  Two LUNs of different targets or numbers
that claim one identity are copies of each other, like those of a storage host that was cloned.  A node that wrote to the
wrong one would lose pre-images, so `find` raises `IdentityClaimedTwice`.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lun_backends import block_device
from lun_backends.files import backing_file
from lun_backends.initiator import inquiry, libiscsi, sg_io, unit
from lun_backends.initiator.part import Part, Role
from lun_backends.initiator.unit import CheckCondition, Unit
from lun_backends.refused import Refused

_VENDOR = "WOLUN"
_SOUGHT = (Role.PRIMARY, Role.LOG, Role.POOL)


class DiscoveryFailed(Refused):
    """The LUNs of a volume cannot be named; the message says why, and what to do."""


class VolumeNotFound(DiscoveryFailed):
    """No LUN that this host sees is the log of the volume."""


class NameAmbiguous(DiscoveryFailed):
    """Logs of different volumes have the same name."""


class IdentityClaimedTwice(DiscoveryFailed):
    """Two LUNs claim the same identity, or to be the log of one volume."""


@dataclass(frozen=True, slots=True)
class Lun:
    """A LUN that this host sees: how to address it, where it is, and what it says."""

    address: str
    target: str
    number: int
    part: Part


@dataclass(frozen=True, slots=True)
class Found:
    """The LUNs of a volume.  `primary` is None unless it is one of wolun's own; another array's primary is not found."""

    volume: uuid.UUID
    name: str
    log: Lun
    pool: Mapping[uuid.UUID, Lun]
    primary: Lun | None


class Source(Protocol):
    """A way to LUNs."""

    def luns(self) -> Iterator[Lun]:
        """Yield the LUNs that say what they are.  Raise NoAnswer if nothing can be asked."""
        ...

    def rescan(self) -> None:
        """Let LUNs that are new at their target become visible."""
        ...

    def forget(self, lun: uuid.UUID) -> None:
        """Give up what this host keeps of a LUN that is retired."""
        ...

    def open(self, address: str) -> Unit | None:
        """Open a LUN; return None for an address of another kind."""
        ...


class Portals:
    """The LUNs of iSCSI targets: `targets` are (HOST:PORT, target name).  The initiator stays the caller's."""

    def __init__(self, initiator: libiscsi.Initiator, targets: Sequence[tuple[str, str]]) -> None:
        self._initiator = initiator
        self._targets = tuple(targets)
        self._held: dict[
            tuple[str, str], Unit
        ] = {}  # LUN 0 of each, so that sessions last from one question to the next

    def luns(self) -> Iterator[Lun]:
        unreached: list[block_device.NoAnswer] = []
        for portal, target in self._targets:
            try:
                # All are asked before one is returned, because the caller may take its time.
                yield from list(self._ask(portal, target))
            except block_device.NoAnswer as error:
                unreached.append(error)
        if unreached and len(unreached) == len(self._targets):
            raise unreached[0]

    def rescan(self) -> None:
        pass

    def forget(self, lun: uuid.UUID) -> None:
        pass

    def open(self, address: str) -> Unit | None:
        return self._initiator.unit(address) if address.startswith("iscsi://") else None

    def _ask(self, portal: str, target: str) -> Iterator[Lun]:
        if (portal, target) not in self._held:
            self._held[portal, target] = self._initiator.unit(libiscsi.Address(portal, target, 0))
        for number in inquiry.luns(self._held[portal, target]):
            address = libiscsi.Address(portal, target, number)
            with self._initiator.unit(address) as lun:
                said = _part(lun)
            if said is not None:
                yield Lun(str(address), target, number, said)


class KernelDisks:
    """The SCSI disks of the kernel, whichever transport they have, except for tcm_loop.

    The disks of tcm_loop are those that wolun serves to this host.  A command to one of them waits for the daemon, and the
    daemon would wait for it: for good, if it was killed and starts again.

    `open_disk` opens a device node.  `sysfs` and `devices` are the kernel's own trees.
    """

    def __init__(
        self,
        *,
        sysfs: Path = Path("/sys"),
        devices: Path = Path("/dev"),
        open_disk: Callable[[Path], Unit] = sg_io.SgIo,
    ) -> None:
        self._sysfs, self._devices, self._open_disk = sysfs, devices, open_disk
        self._seen: dict[uuid.UUID, set[Path]] = {}  # the disks of each LUN that was found, as directories of sysfs

    def luns(self) -> Iterator[Lun]:
        for disk in self._disks():
            with contextlib.suppress(block_device.BlockDeviceError, backing_file.CannotOpen):  # a path that is gone
                with self._open_disk(self._devices / disk.name) as lun:
                    said = _part(lun)
                    target = inquiry.target_name(lun) if said is not None else ""
                if said is not None:
                    self._seen.setdefault(said.lun, set()).add(disk)
                    number = int((disk / "device").resolve().name.rpartition(":")[2])
                    yield Lun(str(self._address(disk)), target, number, said)

    def rescan(self) -> None:
        """Have the hosts that have disks of wolun look for new LUNs; all hosts, as long as there is no such disk."""
        hosts = {_host(disk) for disk in self._disks()}
        for host in sorted((self._sysfs / "class/scsi_host").glob("host*")):
            if not hosts or host.name in hosts:
                with contextlib.suppress(OSError):  # the host may be gone, or only root may do that
                    if not _is_loopback(host):
                        (host / "scan").write_text("- - -\n")

    def forget(self, lun: uuid.UUID) -> None:
        """Remove the disks of a LUN that is retired from the kernel, because it keeps them for ever."""
        for disk in self._seen.pop(lun, ()):
            with contextlib.suppress(OSError):
                (disk / "device/delete").write_text("1\n")

    def open(self, address: str) -> Unit | None:
        return None if address.startswith("iscsi://") else self._open_disk(Path(address))

    def _disks(self) -> list[Path]:
        """Return the directories of sysfs of wolun's disks, without those of tcm_loop."""
        found = []
        for disk in sorted((self._sysfs / "block").glob("*"), key=lambda path: (len(path.name), path.name)):
            with contextlib.suppress(OSError):
                ours = (disk / "device/vendor").read_text().strip() == _VENDOR
                if ours and not _is_loopback(self._sysfs / "class/scsi_host" / _host(disk)):
                    found.append(disk)
        return found

    def _address(self, disk: Path) -> Path:
        """Return the device node: that of dm-multipath, if it has the disk."""
        for holder in sorted((disk / "holders").glob("dm-*")):
            with contextlib.suppress(OSError):
                if (holder / "dm/uuid").read_text().startswith("mpath-"):
                    return self._devices / "mapper" / (holder / "dm/name").read_text().strip()
        return self._devices / disk.name


class Discovery:
    """The LUNs that all sources list."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self._sources = tuple(sources)

    def volumes(self) -> Mapping[uuid.UUID, str]:
        """Return the names of all volumes whose log this host sees.  Raise NoAnswer."""
        return {lun.part.volume: lun.part.name for lun in self._all() if lun.part.role is Role.LOG}

    def find(self, volume: uuid.UUID | str) -> Found:
        """Return the LUNs of the volume of that identity or name.

        Raise VolumeNotFound, NameAmbiguous, IdentityClaimedTwice, and NoAnswer if no source answers.
        """
        luns = self._all()
        logs = [lun for lun in luns if lun.part.role is Role.LOG and volume in (lun.part.volume, lun.part.name)]
        if not logs:
            raise VolumeNotFound(
                f"no LUN that this host sees is the log of volume {volume}: log in to the storage host, and see that its "
                f"configuration has `write_once` with `pool` for the volume"
            )
        if len({lun.part.volume for lun in logs}) > 1:
            listed = ", ".join(sorted(f"{lun.part.volume} at {lun.address}" for lun in logs))
            raise NameAmbiguous(f"several volumes are called {volume}: name one by its identity ({listed})")
        if len(logs) > 1:
            raise _twice(logs[0], logs[1], f"be the log of volume {volume}")
        (log,) = logs
        mine = [lun for lun in luns if lun.part.volume == log.part.volume]
        pool = {lun.part.lun: lun for lun in mine if lun.part.role is Role.POOL}
        # The primary has an identity of its own where the pool was made before it, so its name counts as well.
        primaries = [lun for lun in mine if lun.part.role is Role.PRIMARY] or [
            lun for lun in luns if lun.part.role is Role.PRIMARY and lun.part.name == log.part.name
        ]
        if len(primaries) > 1:
            raise _twice(primaries[0], primaries[1], f"be the primary of volume {volume}")
        return Found(log.part.volume, log.part.name, log, pool, primaries[0] if primaries else None)

    def rescan(self) -> None:
        """Let LUNs that are new become visible to `find`."""
        for source in self._sources:
            source.rescan()

    def forget(self, lun: uuid.UUID) -> None:
        """Give up what this host keeps of a LUN that is retired (a record says DELETED)."""
        for source in self._sources:
            source.forget(lun)

    def open(self, lun: Lun) -> Unit:
        """Open a LUN that was found.  Raise CannotSend, backing_file.CannotOpen."""
        for source in self._sources:
            opened = source.open(lun.address)
            if opened is not None:
                return opened
        raise unit.CannotSend(f"{lun.address}: this host has no way to it")

    def _all(self) -> list[Lun]:
        """Return each LUN that a node needs once.  Raise IdentityClaimedTwice, NoAnswer."""
        found: dict[uuid.UUID, Lun] = {}
        unreached: list[block_device.NoAnswer] = []
        for source in self._sources:
            try:
                for lun in source.luns():
                    if lun.part.role not in _SOUGHT:
                        continue  # this host may serve the volume and its views itself, and so may other nodes
                    known = found.setdefault(lun.part.lun, lun)
                    if (known.target, known.number) != (lun.target, lun.number):
                        raise _twice(known, lun, f"have the identity {lun.part.lun}")
            except block_device.NoAnswer as error:
                unreached.append(error)
        if unreached and len(unreached) == len(self._sources):
            raise unreached[0]
        return list(found.values())


def _host(disk: Path) -> str:
    """Return the name of the SCSI host of a disk, like `host2`."""
    return "host" + (disk / "device").resolve().name.partition(":")[0]


def _is_loopback(host: Path) -> bool:
    """Return whether a SCSI host is tcm_loop.  Raise OSError if it is gone."""
    return (host / "proc_name").read_text().strip() == "tcm_loopback"


def _twice(one: Lun, other: Lun, claim: str) -> IdentityClaimedTwice:
    return IdentityClaimedTwice(
        f"{one.address} (LUN {one.number} of {one.target}) and {other.address} (LUN {other.number} of {other.target}) both "
        f"claim to {claim}: one of them is a copy, take it away"
    )


def _part(lun: Unit) -> Part | None:
    try:
        return inquiry.part_of(lun)
    except CheckCondition:
        return None  # the LUN went meanwhile
