# SPDX-License-Identifier: Apache-2.0
"""The devices of shared volumes: found by what they say they are, or named by the configuration, and opened.

A node is told the primary.  The log and the pool are write-once LUNs that say which volume they belong to
(`lun_backends.initiator.discovery`).  So the node looks at all LUNs that it sees where the primary is:

| primary         | where the log and the pool are looked for                                        |
| --------------- | -------------------------------------------------------------------------------- |
| `iscsi://…`     | all LUNs of the same target, through the same session                            |
| a block device  | all SCSI disks of this host, after a rescan if one is missing                    |

The configuration can name them instead.  Even then each has to say that it is what the configuration says.

With `store` the log and the write-once LUNs are in Ceph or in object storage (`lun_backends.shared.engine_devices`).
"""

from __future__ import annotations

import contextlib
import re
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lun_backends import block_device
from lun_backends.block_device import ExtentKind
from lun_backends.files import backing_file
from lun_backends.initiator import discovery, disk, inquiry, kernel_paths, libiscsi, sg_io
from lun_backends.initiator.discovery import Discovery, Lun
from lun_backends.initiator.part import Role
from lun_backends.initiator.unit import Unit
from lun_backends.shared import devices, engine_devices, fence, volume
from lun_backends.stores import engine, opening
from lun_backends.volumes import errors, policy
from target.configuration import settings, volumes
from target.fabrics import access
from target.service.shared_volume import SharedOwner
from target.service.volumes import stores

PATIENCE = 20.0
"""Seconds in which a command to a write-once LUN is sent again if it gets no answer: the storage host may restart."""

_ISCSI = "iscsi://"
_NAME_TYPES = (3, 2, 8, 1)  # NAA, EUI-64, SCSI name string, T10 vendor ID: the best first
_NAMES = "iqn.2026-11.io.wolun.node:"


@dataclass(frozen=True)
class _Login:
    """An initiator's name, and how it proves itself."""

    name: str
    chap: settings.NodeChap | None


@dataclass(frozen=True)
class _WriteOncePart:
    """The identity of a volume, its log, and its write-once LUNs."""

    identity: uuid.UUID
    log: devices.Log
    pool: Pool | engine_devices.EnginePool


class Opener:
    """Opens shared volumes; all volumes of one node's name share its initiator.  Thread-safe."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._initiators: dict[_Login, libiscsi.Initiator] = {}
        self._sights: dict[tuple[_Login, str], Discovery] = {}
        self._lock = threading.Lock()

    def open(
        self, configured: settings.SharedVolume, node: str, directory: Path, listener: policy.Listener = policy.ignore
    ) -> SharedOwner:
        """Open a volume on the node of that name.  Raise VolumeError, DiscoveryFailed, BlockDeviceError, CannotOpen."""
        login = _Login(initiator_name(node), configured.chap)
        with contextlib.ExitStack() as undo:
            if configured.store is None:
                part = self._beside_the_primary(configured, login, undo)
            unit = self._unit(configured.primary, login)
            undo.callback(unit.close)
            paths = None
            if not configured.primary.startswith(_ISCSI):
                paths = kernel_paths.KernelPaths(Path(configured.primary))
                undo.callback(paths.close)
            primary = disk.Disk(unit)
            own = fence.UnitFence(unit, paths.units if paths else None)
            if configured.store is not None:
                part = self._in_engine(configured, primary, own, undo)
            closing = contextlib.ExitStack()
            closing.callback(part.pool.close)
            if paths is not None:
                closing.callback(paths.close)
            shared = volume.SharedVolume(
                devices.Devices(primary, own, part.log, part.pool, closing.close),
                identity=part.identity,
                name=configured.name,
                node=node,
                settings=volume.Settings(
                    chunk_size=configured.chunk_size,
                    writes=configured.lun is not None,
                    exchange=configured.exchange is volumes.Exchange.COROSYNC,
                    rules=policy.Policy(on_error=configured.on_error, max_snapshots=configured.max_snapshots),
                ),
                listener=listener,
            )
            undo.pop_all()
        return SharedOwner(shared, directory)

    def _beside_the_primary(
        self, configured: settings.SharedVolume, login: _Login, undo: contextlib.ExitStack
    ) -> _WriteOncePart:
        """Return the log and the pool that a storage host has where the primary is.  `undo` gets what closes them."""
        sight = self._sight(configured.primary, login)
        if configured.log is None:
            found = sight.find(configured.name)
            log, primary = found.log, found.primary
            if primary is not None and not _is_at(primary, configured.primary):
                reason = f"{configured.primary} is not its primary, which is {primary.address}"
                raise errors.VolumeError(configured.name, reason, "correct `primary` in the configuration")
        else:
            log = self._named_log(configured, login)
        opened = devices.DeviceLog(disk.Disk(self._unit(log.address, login), write_once=True, patience=PATIENCE))
        undo.callback(opened.close)
        named = [self._named(configured, address, login) for address in configured.pool]
        return _WriteOncePart(log.part.volume, opened, Pool(sight, log.part.volume, named))

    def _in_engine(
        self,
        configured: settings.SharedVolume,
        primary: disk.Disk,
        own: fence.UnitFence,
        undo: contextlib.ExitStack,
    ) -> _WriteOncePart:
        """Return the log and the pool that an engine has.  `undo` gets what closes them."""
        kept = stores(configured, self._state_dir)

        def engines(identity: uuid.UUID) -> engine.Engine:
            return opening.engine_of(kept, identity)

        plate = engine_devices.find_plate(
            engines, configured.name, unit_name(primary.unit), lambda: bool(own.registrations())
        )
        of = engines(plate.identity)
        pool = engine_devices.EnginePool(of, plate.identity, primary.size, primary.block_size, configured.chunk_size)
        undo.callback(pool.close)
        return _WriteOncePart(plate.identity, engine_devices.EngineLog(of), pool)

    def close(self) -> None:
        """Log out everywhere.  The volumes must be closed."""
        with self._lock:
            for initiator in self._initiators.values():
                initiator.close()
            self._initiators.clear()
            self._sights.clear()

    def _initiator(self, login: _Login) -> libiscsi.Initiator:
        """Return the initiator of a login.  Raise VolumeError if its secrets cannot be used."""
        with self._lock:
            if login not in self._initiators:
                own = mutual = None
                if login.chap is not None:
                    own = self._proof(login, login.chap.name, login.chap.secret_file)
                    if login.chap.target_name is not None and login.chap.target_secret_file is not None:
                        mutual = self._proof(login, login.chap.target_name, login.chap.target_secret_file)
                # Two initiators of one name need different ports, or their sessions would end each other.
                port = sum(other.name == login.name for other in self._initiators)
                self._initiators[login] = libiscsi.Initiator(login.name, port=port, chap=own, mutual=mutual)
            return self._initiators[login]

    def _proof(self, login: _Login, name: str, file: Path) -> libiscsi.Chap:
        try:
            secret = access.read_secret(self._state_dir / file).reveal()
        except access.SecretFileRefused as refused:
            raise errors.VolumeError(login.name, str(refused), "correct the file of `chap`") from refused
        return libiscsi.Chap(name, secret.decode(errors="surrogateescape"))

    def _unit(self, address: str, login: _Login) -> Unit:
        if address.startswith(_ISCSI):
            return self._initiator(login).unit(address)
        return sg_io.SgIo(Path(address))

    def _sight(self, primary: str, login: _Login) -> Discovery:
        """Return the LUNs that are visible where the primary is."""
        if not primary.startswith(_ISCSI):
            return Discovery([discovery.KernelDisks()])
        at, initiator = libiscsi.Address.parse(primary), self._initiator(login)
        with self._lock:
            key = (login, f"{at.portal}/{at.target}")
            if key not in self._sights:
                self._sights[key] = Discovery([discovery.Portals(initiator, [(at.portal, at.target)])])
            return self._sights[key]

    def _named(self, configured: settings.SharedVolume, address: str, login: _Login) -> Lun:
        """Return what a LUN that the configuration names says about itself.  Raise VolumeError, BlockDeviceError."""
        with self._unit(address, login) as unit:
            said = inquiry.part_of(unit)
        if said is None or not said.write_once:
            reason = f"{address} does not say that it is a write-once LUN of a volume"
            raise errors.VolumeError(configured.name, reason, "correct `log` or `pool` in the configuration")
        return Lun(address, "", 0, said)

    def _named_log(self, configured: settings.SharedVolume, login: _Login) -> Lun:
        assert configured.log is not None
        named = self._named(configured, configured.log, login)
        if named.part.role is not Role.LOG:
            reason = f"{configured.log} is not the log of a volume"
            raise errors.VolumeError(configured.name, reason, "leave `log` out, or name the LUN of the log")
        return named


class Pool:
    """The write-once LUNs of a volume; if some are `named`, only these count."""

    on_demand = False

    def __init__(self, sight: Discovery, identity: uuid.UUID, named: Sequence[Lun] = ()) -> None:
        self._sight = sight
        self._volume = identity
        self._named = {lun.part.lun: lun for lun in named}
        self._seen: Mapping[uuid.UUID, Lun] = self._named

    def find(self, lun: uuid.UUID) -> devices.WriteOnceLun | None:
        """Open a write-once LUN, after a rescan if it is necessary; None if this node does not see it."""
        for look in (self._known, self._look, self._rescan):
            seen = look().get(lun)
            with contextlib.suppress(backing_file.CannotOpen):  # a disk that went, and may be back under another name
                if seen is not None and (device := self._open(seen)) is not None:
                    return devices.WriteOnceLun(device, device)
        return None

    def blank(self, _epoch: int) -> Sequence[uuid.UUID]:
        """Return the LUNs that say that they are blank, in order of their numbers.

        The storage host replaces each LUN that a snapshot took, and disks of the kernel show that only after a rescan.
        """
        found = []
        for lun in sorted(self._rescan().values(), key=lambda lun: (lun.target, lun.number, lun.address)):
            if (device := self._open(lun)) is not None:
                with contextlib.closing(device):
                    if all(extent.kind is ExtentKind.BLANK for extent in device.extents(0, device.size)):
                        found.append(lun.part.lun)
        return found

    def look(self) -> None:
        """Learn which LUNs there are now."""
        self._look()

    def forget(self, lun: uuid.UUID) -> None:
        """Give up what this host keeps of a LUN that will not come back."""
        self._sight.forget(lun)

    def close(self) -> None:
        """Do nothing: the opener logs out."""

    def _known(self) -> Mapping[uuid.UUID, Lun]:
        return self._seen

    def _look(self) -> Mapping[uuid.UUID, Lun]:
        if not self._named:
            self._seen = self._sight.find(self._volume).pool
        return self._seen

    def _rescan(self) -> Mapping[uuid.UUID, Lun]:
        self._sight.rescan()
        return self._look()

    def _open(self, lun: Lun) -> disk.Disk | None:
        """Open a LUN if it is still what it was."""
        unit = self._sight.open(lun)
        try:
            if inquiry.part_of(unit) == lun.part:
                return disk.Disk(unit, write_once=True, patience=PATIENCE)
        except block_device.BlockDeviceError:
            unit.close()
            raise
        unit.close()
        return None


def _is_at(primary: Lun, address: str) -> bool:
    """Return whether a primary that was found may be the LUN at an address; disks of the kernel have many names."""
    if not address.startswith(_ISCSI):
        return True
    at = libiscsi.Address.parse(address)
    return (at.target, at.lun) == (primary.target, primary.number)


def unit_name(unit: Unit) -> str:
    """Return the name that a unit gives itself, the same over all paths to it; empty if it gives none."""
    own = [name for name in inquiry.designators(unit) if name.association == 0 and name.type in _NAME_TYPES]
    if not own:
        return inquiry.serial_number(unit)
    best = min(own, key=lambda name: _NAME_TYPES.index(name.type))
    return best.name.hex() if best.code_set == 1 else best.name.rstrip(b"\0").decode(errors="replace")


def node_of(initiator: str) -> str:
    """Return the name of the node that logs in by that iSCSI name; empty if it is no such name."""
    return initiator.removeprefix(_NAMES) if initiator.startswith(_NAMES) else ""


def initiator_name(node: str) -> str:
    """Return the iSCSI name by which a node logs in: its last part is the node's name, in small letters."""
    return f"{_NAMES}{re.sub('[^a-z0-9.-]', '-', node.lower())}"
