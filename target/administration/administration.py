# SPDX-License-Identifier: Apache-2.0
"""Changes of a running daemon, which the control socket asks for, and the lock under which they are made.

A change is checked as a whole file would be, applied, and only then entered in the settings in force (`in_force`).  A
dry run ends after the checks.  One change is made at a time; any thread may ask.

An object in use is not removed, unless `force` is set:

| object      | is in use by                                                                      |
| ----------- | --------------------------------------------------------------------------------- |
| volume      | sessions that reach it or its snapshots; initiators it is mapped to; jobs, always |
| portal      | sessions that came there; all initiators, always, if it is the only one           |
| mapped LUN  | sessions of the initiators that see it                                            |
| initiator   | sessions that could not have logged in without the entry                          |
| reservation | registered initiators that are logged in                                          |
"""

from __future__ import annotations

import threading
from pathlib import Path

from target import codec, messages
from target.administration.access import AccessChanges
from target.administration.configuration_file import ConfigurationFile
from target.administration.in_force import InForce
from target.administration.portals import Portals
from target.administration.replicas import Replicas
from target.administration.reservations import ReservationChanges
from target.administration.shared import SharedChanges
from target.administration.volumes import VolumeChanges
from target.configuration import settings, writer
from target.fabrics import access
from target.fabrics.fabric import Fabric
from target.service.jobs import Job
from target.service.service import Service


class Administration:
    """Everything that can be changed about a daemon.  Thread-safe.  Every method that changes something raises Problem.

    `config` is the file that the daemon was started with and `on_file` its content, which is not in force as a whole if
    `--portal` was given.
    """

    def __init__(self, service: Service, fabric: Fabric, config: Path, on_file: settings.Settings) -> None:
        self._service = service
        self._inventory = service.inventory
        self._lock = threading.Lock()
        self._in_force = InForce(service.inventory, on_file)
        self._portals = Portals(fabric, self._in_force)
        self._access = AccessChanges(service.inventory, fabric, self._in_force)
        self._volumes = VolumeChanges(service, self._in_force, self._access)
        self._shared = SharedChanges(service, self._in_force)
        self._replicas = Replicas(service, self._in_force, self._volumes)
        self._reservations = ReservationChanges(service.inventory)
        self._file = ConfigurationFile(
            config, service.inventory, self._in_force, self._portals, self._access, self._volumes
        )

    # -- looking -----------------------------------------------------------------------------------------------------

    def running(self) -> settings.Settings:
        """Return the running configuration."""
        return self._in_force.running()

    def who(self) -> messages.Access:
        """Return who may log in."""
        return codec.decode(messages.Access, self._in_force.settings.access.model_dump(mode="json"))

    def volumes(self) -> list[messages.Volume]:
        """Return all volumes, as they are served."""
        return [self._service.status.volume(volume) for volume in self._in_force.settings.all_volumes]

    def volume(self, name: str) -> messages.Volume:
        """Return one volume, as it is served.  Raise Problem."""
        return self._service.status.volume(self._in_force.any_volume(name))

    def luns(self) -> list[messages.Lun]:
        """Return the units of the target."""
        return [
            messages.Lun(number, access.unit_name(unit), unit.kind.value, unit.device.size)
            for number, unit in sorted(self._inventory.scsi.luns.items())
        ]

    def alerts(self) -> list[messages.Alert]:
        """Return the conditions that need the administrator's attention."""
        return self._service.status.alerts()

    def text_of(self, kind: str, name: str) -> messages.Text:
        """Return one volume or initiator as a configuration file would have it.  Raise Problem."""
        with self._lock:
            found = self._in_force.volume(name) if kind == "volume" else self._in_force.initiator(name)
            return messages.Text(writer.text_of(found))

    # -- volumes -----------------------------------------------------------------------------------------------------

    def create_volume(self, request: messages.CreateVolume, *, force: bool = False, dry_run: bool) -> None:
        """Create a volume, or open it if its data exists, and serve it."""
        with self._lock:
            self._volumes.create(request, force=force, dry_run=dry_run)

    def change_volume(self, name: str, request: messages.ChangeVolume, *, force: bool, dry_run: bool) -> None:
        """Change a volume.  Another LUN or durability withdraws it from initiators for a moment."""
        with self._lock:
            self._volumes.change(name, request, force=force, dry_run=dry_run)

    def resize_volume(self, name: str, size: int) -> messages.Volume:
        """Enlarge a volume while it is used."""
        with self._lock:
            self._volumes.resize(name, size)
            return self.volume(name)

    def set_store(self, name: str, request: messages.ChangeStore) -> Job:
        """Let later snapshots of a volume have another store, and begin a job that converts existing ones."""
        with self._lock:
            return self._volumes.set_store(name, request)

    def accept_volume(self, name: str, *, dry_run: bool) -> messages.Accepted:
        """Accept the doubtful snapshots of a volume as true, or ignore a volume that is not configured."""
        with self._lock:
            return self._volumes.accept(name, dry_run=dry_run)

    def relocate_volume(self, name: str, request: messages.Relocate, *, force: bool, dry_run: bool) -> messages.Volume:
        """Take up the data of a volume that was renamed, or its primary in another place."""
        with self._lock:
            self._volumes.relocate(name, request, force=force, dry_run=dry_run)
            return self.volume(name)

    def delete_volume(self, name: str, *, force: bool, data: bool, dry_run: bool) -> None:
        """Stop serving a volume; with `data`, delete its files in the state directory."""
        with self._lock:
            self._volumes.remove(name, force=force, dry_run=dry_run, data=data, knowingly=True)

    def share_volume(self, request: messages.ShareVolume, *, dry_run: bool) -> None:
        """Take part in a shared volume."""
        with self._lock:
            self._shared.share(request, dry_run=dry_run)

    def unshare_volume(self, name: str, *, force: bool, dry_run: bool) -> None:
        """Take part in a shared volume no longer.  The volume and the other nodes stay as they are."""
        with self._lock:
            self._shared.unshare(name, force=force, dry_run=dry_run)

    # -- replicas ----------------------------------------------------------------------------------------------------

    def replica(self, name: str) -> messages.Replica:
        """Return what a volume, which need not exist, has for streams.  Raise Problem."""
        return self._replicas.shown(name)

    def receive(self, name: str, request: messages.Receive) -> Job:
        """Begin a job that receives a stream into a volume, and make the volume if there is none."""
        with self._lock:
            return self._replicas.receive(name, request)

    def promote_volume(self, name: str) -> Job:
        """Begin a job that lets a replica take writes."""
        with self._lock:
            return self._replicas.promote(name)

    # -- portals -----------------------------------------------------------------------------------------------------

    def create_portal(self, address: str, *, dry_run: bool) -> None:
        """Listen on HOST:PORT in addition."""
        with self._lock:
            self._portals.create(address, dry_run=dry_run)

    def delete_portal(self, address: str, *, force: bool, dry_run: bool) -> None:
        """Stop listening on HOST:PORT."""
        with self._lock:
            self._portals.delete(address, force=force, dry_run=dry_run)

    # -- access ------------------------------------------------------------------------------------------------------

    def change_access(self, request: messages.ChangeAccess, *, force: bool, dry_run: bool) -> None:
        """Change the rules of `access` that hold for all initiators."""
        with self._lock:
            self._access.change(request, force=force, dry_run=dry_run)

    def put_initiator(
        self, name: str, request: messages.Initiator, *, create: bool, force: bool, dry_run: bool
    ) -> None:
        """Create an entry, or change the one of that name."""
        with self._lock:
            if create:
                self._access.create_initiator(request, force=force, dry_run=dry_run)
            else:
                self._access.change_initiator(name, request, force=force, dry_run=dry_run)

    def delete_initiator(self, name: str, *, force: bool, dry_run: bool) -> None:
        """Delete an entry."""
        with self._lock:
            self._access.delete_initiator(name, force=force, dry_run=dry_run)

    def set_auth(self, name: str, request: messages.SetAuth | None, *, dry_run: bool) -> None:
        """Require CHAP of an initiator from its next login on, or (None) no longer.  Its sessions stay."""
        with self._lock:
            self._access.set_auth(name, request, dry_run=dry_run)

    # -- reservations ------------------------------------------------------------------------------------------------

    def reservations(self) -> list[messages.UnitReservations]:
        """Return the reservations of all units.  Raise Problem."""
        return self._reservations.all()

    def clear_reservations(self, lun: int, initiator: str | None, *, force: bool, dry_run: bool) -> None:
        """Remove the reservations and registrations of a unit, or with `initiator` only those of this initiator."""
        with self._lock:
            self._reservations.clear(lun, initiator, force=force, dry_run=dry_run)

    # -- the configuration file --------------------------------------------------------------------------------------

    def save(self, request: messages.ConfigurationFile, *, dry_run: bool) -> messages.Saved:
        """Write the running configuration to a file, or with `dry_run` only return the difference."""
        with self._lock:
            return self._file.save(request, dry_run=dry_run)

    def restore(self, request: messages.ConfigurationFile, *, force: bool, dry_run: bool) -> list[messages.Outcome]:
        """Change the system, object by object, until it agrees with a file.  Report the changes that cannot be made."""
        wanted = self._file.read(request)
        with self._lock:
            return self._file.become(wanted, force=force, dry_run=dry_run)

    def clear(self, *, force: bool, dry_run: bool) -> list[messages.Outcome]:
        """Stop serving all volumes, and let no initiator log in.  All data stays."""
        with self._lock:
            return self._file.become(self._file.nothing(), force=force, dry_run=dry_run, knowingly=True)
