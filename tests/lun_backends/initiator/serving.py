# SPDX-License-Identifier: Apache-2.0
"""wolun's portal in this process, with devices in memory, and initiators that log in to it."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from lun_backends.block_device import BlockDevice
from lun_backends.initiator import libiscsi
from target.portal.portal import Portal
from target.scsi.commands import table
from target.scsi.logical_unit import LogicalUnit, UnitKind
from target.scsi.scsi_target import ScsiTarget
from tests import peers

TARGET = "iqn.2026-11.io.wolun:served"
NAME = "iqn.2026-11.io.wolun:node"


class Served:
    """A portal with one target."""

    def __init__(self, name: str = TARGET) -> None:
        peers.require("iscsi-ls")
        self.name = name
        self.target = ScsiTarget(name)
        self.portal = Portal("127.0.0.1", 0, {name: self.target})
        self.portal.start()
        self._initiators: dict[tuple[str, int], libiscsi.Initiator] = {}

    def add(
        self,
        number: int,
        device: BlockDevice,
        kind: UnitKind = UnitKind.PRIMARY,
        *,
        reservations: Path | None = None,
    ) -> LogicalUnit:
        unit = LogicalUnit(
            device,
            uuid=UUID(int=number + 1),
            kind=kind,
            name=f"vol{number}",
            commands=table.for_unit,
            reservation_file=reservations,
        )
        self.target.add_lun(number, unit)
        return unit

    def initiator(self, name: str = NAME, port: int = 0) -> libiscsi.Initiator:
        if (name, port) not in self._initiators:
            self._initiators[name, port] = libiscsi.Initiator(name, port=port)
        return self._initiators[name, port]

    def unit(self, number: int, name: str = NAME, port: int = 0) -> libiscsi.IscsiUnit:
        return self.initiator(name, port).unit(self.address(number))

    @property
    def place(self) -> str:
        host, port = self.portal.address
        return f"{host}:{port}"

    def address(self, number: int) -> str:
        return f"iscsi://{self.place}/{self.name}/{number}"

    def restart(self) -> None:
        """End every session, and serve the same target at the same address."""
        address = self.portal.address
        self.portal.close(0)
        self.portal = Portal(*address, {self.name: self.target})
        self.portal.start()

    def close(self) -> None:
        for initiator in self._initiators.values():
            initiator.close()
        self.portal.close(0)
