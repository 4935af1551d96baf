# SPDX-License-Identifier: Apache-2.0
"""The units of nodes that share storage: the configuration's `write_once` and `shared`.

storage host                                   node
volumes:     the primary, without snapshots    shared: the primary and the write-once LUN as block devices,
write_once:  a snapshot's write-once LUN               copy-on-write and the view on top (lun_backends.volumes.shared)

`pools.py` has the pools of write-once LUNs.

<state directory>/write-once/<volume>@<snapshot>.{map,chunks}    a write-once LUN
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from lun_backends import block_device, write_once
from lun_backends.refused import Refused
from lun_backends.stores import contract, opening
from lun_backends.volumes import shared
from target.configuration import settings
from target.scsi import logical_unit
from target.scsi.commands import table
from target.scsi.logical_unit import UnitKind

log = logging.getLogger(__name__)

_NAMES = uuid.UUID("6f0e8f8c-5a5b-5b1f-9d55-3f5d1c1d0a11")
"""The namespace of identities: each identity follows from a name, so a unit keeps it over restarts."""


class Sharing:
    """The configured units under their LUNs.  `failed` has the reason for each that cannot be served, by name."""

    def __init__(
        self, configured: settings.Settings, state_dir: Path, add_lun: Callable[[int, logical_unit.LogicalUnit], None]
    ) -> None:
        """Serve what the configuration has; `add_lun` gives a unit its number."""
        self.failed: dict[str, str] = {}
        self._add_lun = add_lun
        self._closing = contextlib.ExitStack()
        for lun in configured.write_once:
            if lun.lun is None:
                continue  # a pool
            with self._noting(f"{lun.volume}@{lun.snapshot}"):
                self._serve_write_once(lun, lun.lun, state_dir / "write-once")
        for volume in configured.shared:
            if volume.write_once is None:
                continue  # see nodes
            with self._noting(volume.name):
                self._serve_shared(volume, volume.write_once)

    def close(self) -> None:
        """Close every device.  Call this when the fabric has ended."""
        self._closing.close()

    @contextlib.contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        try:
            yield
        except (block_device.BlockDeviceError, Refused, OSError) as error:
            self.failed[name] = str(error)
            log.error("%s is not served: %s", name, error)

    def _serve_write_once(self, configured: settings.WriteOnceLun, number: int, directory: Path) -> None:
        name = f"{configured.volume}@{configured.snapshot}"
        directory.mkdir(exist_ok=True)
        path = directory / name
        store = opening.lone(
            path,
            lambda: contract.Geometry(
                uuid.uuid4(),
                _identity(configured.volume),
                configured.size,
                configured.block_size,
                configured.chunk_size,
            ),
            configured.durability,
        )
        device = write_once.WriteOnce(store)
        device.verify_reads = configured.verify_reads
        self._closing.callback(device.close)
        self._add(number, device, device.uuid, UnitKind.WRITE_ONCE, f"{name}/write-once")

    def _serve_shared(self, configured: settings.SharedVolume, write_once_path: Path) -> None:
        stack = shared.Shared.open(
            Path(configured.primary),
            write_once_path,
            block_size=configured.block_size,
            chunk_size=None if configured.lun is None else configured.chunk_size,
        )
        with contextlib.ExitStack() as undo:
            undo.callback(stack.close)
            if configured.lun is not None and stack.volume is not None:
                self._add(configured.lun, stack.volume, _identity(configured.name), UnitKind.PRIMARY, configured.name)
            if configured.view_lun is not None:
                name = f"{configured.name}@{configured.snapshot}"
                self._add(configured.view_lun, stack.view, _identity(name), UnitKind.SNAPSHOT_VIEW, name)
            self._closing.push(undo.pop_all())

    def _add(self, lun: int, device: block_device.BlockDevice, identity: uuid.UUID, kind: UnitKind, name: str) -> None:
        unit = logical_unit.LogicalUnit(device, uuid=identity, kind=kind, name=name, commands=table.for_unit)
        self._add_lun(lun, unit)


def _identity(name: str) -> uuid.UUID:
    return uuid.uuid5(_NAMES, name)
