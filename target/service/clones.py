# SPDX-License-Identifier: Apache-2.0
"""The requests for writable clones of snapshots: make, list, show, delete; and their LUNs.

The name of a clone is also the name of its unit in `access`, so it differs from those of all volumes and clones.  A clone
keeps its LUN over restarts, until it is deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from lun_backends.volumes import volume as own
from lun_backends.volumes.clone import Clone
from lun_backends.volumes.interface import Volume
from target import messages
from target.service import moments, problems
from target.service.inventory import Inventory

log = logging.getLogger(__name__)


class Clones:
    """The clones of all volumes of an inventory.  Thread-safe."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    def create(self, volume_name: str, snapshot: str, request: messages.CreateClone) -> messages.Clone:
        """Make a clone of a snapshot and serve it.  Raise Problem."""
        inventory, name = self._inventory, request.name
        owner = inventory.own_volume(volume_name)
        what = f"no clone of {volume_name}@{snapshot} was made"
        with inventory.changing([volume_name]):
            if any(name == volume.name for volume in inventory.settings.all_volumes):
                raise problems.refused(what, f"there is a volume {name}", "use another name")
            if any(name == clone.name for _, clone in self._all()):
                raise problems.clone_exists(what, name)
            with problems.translated(what):
                clone = owner.create_clone(snapshot, name, request.limit)
                try:
                    inventory.publish_clone(owner, clone)
                except BaseException:
                    owner.delete_clone(name, clone.uuid)
                    raise
        log.info("made the clone %s of %s@%s", name, volume_name, snapshot)
        return self._shown(owner, clone)

    def delete(self, name: str, *, force: bool = False) -> None:
        """Withdraw a clone and delete its data.  Unless `force`, no initiator may use it.  Raise Problem."""
        owner, clone = self._find(name)
        with self._inventory.changing([owner.name]):
            if not force and (users := self._inventory.users_of_clone(clone)):
                raise problems.in_use(f"clone {name}", users, "log them out first, or use --force")
            self._inventory.withdraw_clone(clone)
            with problems.translated(f"clone {name} was not deleted"):
                try:
                    owner.delete_clone(name, clone.uuid)
                except BaseException:
                    self._inventory.publish_clone(owner, clone)
                    raise
                self._inventory.forget_clone(owner, clone)
        log.info("deleted the clone %s", name)

    def list_clones(self) -> list[messages.Clone]:
        """Return all clones."""
        return [self._shown(owner, clone) for owner, clone in self._all()]

    def show(self, name: str) -> messages.Clone:
        """Return one clone.  Raise Problem."""
        return self._shown(*self._find(name))

    def _all(self) -> Iterator[tuple[own.Volume, Clone]]:
        for owner in self._inventory.open_volumes.values():
            if isinstance(owner, own.Volume):
                for clone in owner.clones:
                    yield owner, clone

    def _find(self, name: str) -> tuple[own.Volume, Clone]:
        for owner, clone in self._all():
            if clone.name == name:
                return owner, clone
        raise problems.no_such_clone(name, [clone.name for _, clone in self._all()])

    def _shown(self, owner: Volume, clone: Clone) -> messages.Clone:
        lun = self._inventory.clone_lun(clone)
        trouble = clone.trouble or ("" if lun is not None else f"there is a volume {clone.name}, too")
        device = clone.device
        return messages.Clone(
            name=clone.name,
            volume=owner.name,
            snapshot=clone.snapshot.name,
            uuid=str(clone.uuid),
            made=moments.utc(clone.made_at),
            state="failed" if trouble else "online",
            trouble=trouble,
            size=clone.snapshot.size,
            used_bytes=0 if device is None else device.used_bytes,
            limit=clone.limit,
            lun=lun,
            url=self._inventory.url(lun),
        )
