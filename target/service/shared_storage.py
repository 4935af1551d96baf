# SPDX-License-Identifier: Apache-2.0
"""What nodes that share storage serve: the configuration's `write_once` and `shared`.

    storage host                                   node
    volumes:     the primary, without snapshots    shared: primary and write-once LUN as block devices,
    write_once:  the snapshot's write-once LUN             copy-on-write and the view served from them

No node talks to another: the write-once LUN decides who preserved a chunk first (see lun_backends.copy_on_write), and the
view asks it again after every read of the primary (lun_backends.snapshot_view).  Which chunks are preserved, a node
learns as it writes; after a restart it knows nothing, and its first copies are futile and harmless.

    <state directory>/write-once/<volume>@<snapshot>.{map,chunks}    a write-once LUN
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path

from lun_backends import block_device, copy_on_write, flat, remote, snapshot_view, write_once
from lun_backends.block_device import Buffers
from lun_backends.refused import Refused
from lun_backends.stores import thin
from lun_backends.stores.superblock import Superblock
from target.configuration import settings
from target.scsi import logical_unit, scsi_target
from target.scsi.logical_unit import UnitKind

log = logging.getLogger(__name__)

_NAMES = uuid.UUID("6f0e8f8c-5a5b-5b1f-9d55-3f5d1c1d0a11")
"""Identities follow from names, so that a unit is the same one after a restart."""


class _RemoteView(snapshot_view.SnapshotView):
    """A view whose every step waits for the network, also asking what is blank."""

    def read_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        return False


class Sharing:
    """Opens what is configured and gives it its LUNs; what cannot be served is logged and told in `failed`, by name."""

    def __init__(self, configured: settings.Settings, state_dir: Path, scsi: scsi_target.ScsiTarget) -> None:
        self.failed: dict[str, str] = {}
        self._scsi = scsi
        self._closing = contextlib.ExitStack()
        for single in configured.write_once:
            with self._noting(f"{single.volume}@{single.snapshot}"):
                self._serve_write_once(single, state_dir / "write-once")
        for each in configured.shared:
            with self._noting(each.name):
                self._serve_shared(each)

    def close(self) -> None:
        """Close every device.  To be called when the fabric has ended."""
        self._closing.close()

    @contextlib.contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        try:
            yield
        except (block_device.BlockDeviceError, Refused, OSError) as error:
            self.failed[name] = str(error)
            log.error("%s is not served: %s", name, error)

    def _serve_write_once(self, wanted: settings.WriteOnceLun, directory: Path) -> None:
        name = f"{wanted.volume}@{wanted.snapshot}"
        directory.mkdir(exist_ok=True)
        path = directory / name
        if path.with_name(f"{name}.map").exists():
            store = thin.ThinStore.open(path, durability=wanted.durability)
        else:
            superblock = Superblock(
                uuid.uuid4(), _identity(wanted.volume), wanted.size, wanted.block_size, wanted.chunk_size
            )
            store = thin.ThinStore.create(path, superblock, durability=wanted.durability)
        device = write_once.WriteOnce(store)
        self._closing.callback(device.close)
        self._add(wanted.lun, device, device.uuid, UnitKind.WRITE_ONCE, f"{name}/write-once")

    def _serve_shared(self, wanted: settings.SharedVolume) -> None:
        reader = wanted.lun is None
        with contextlib.ExitStack() as undo:
            side = remote.RemoteWriteOnce(wanted.write_once, block_size=wanted.block_size, read_only=reader)
            undo.callback(side.close)
            primary = flat.Flat(
                wanted.primary, block_size=wanted.block_size, direct=True, read_only=reader, size=side.size
            )
            undo.callback(primary.close)
            if wanted.lun is not None:
                volume = copy_on_write.CopyOnWrite(primary, wanted.chunk_size)
                undo.callback(volume.close)
                volume.arm(side)
                self._add(wanted.lun, volume, _identity(wanted.name), UnitKind.PRIMARY, wanted.name)
            if wanted.view_lun is not None:
                view = _RemoteView(primary, snapshot_view.Chain([side]), side)
                undo.callback(view.close)
                name = f"{wanted.name}@{wanted.snapshot}"
                self._add(wanted.view_lun, view, _identity(name), UnitKind.SNAPSHOT_VIEW, name)
            self._closing.push(undo.pop_all())

    def _add(self, lun: int, device: block_device.BlockDevice, identity: uuid.UUID, kind: UnitKind, name: str) -> None:
        self._scsi.add_lun(lun, logical_unit.LogicalUnit(device, uuid=identity, kind=kind, name=name))


def _identity(name: str) -> uuid.UUID:
    return uuid.uuid5(_NAMES, name)
