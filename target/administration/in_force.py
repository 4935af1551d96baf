# SPDX-License-Identifier: Apache-2.0
"""The owner of the settings in force: the only module that changes `Inventory.settings`.

A change has two steps.  First a `with_...` or `without_...` method returns the changed settings, checked like a whole
file; it raises Problem if such a file would be refused.  Then the caller applies the change, and `put` enters the
settings.  A dry run stops between the two.

The portals of the file may differ from those in force, because `--portal` overrides the file, and port 0 becomes a real
port.  So `on_file` is kept apart from the settings.  The settings have the fabric's portals, in the same order.
"""

from __future__ import annotations

from target.configuration import reader
from target.configuration import settings as configuration
from target.service import problems
from target.service.inventory import Inventory


class InForce:
    """The settings in force.  One caller at a time (see administration)."""

    def __init__(self, inventory: Inventory, on_file: configuration.Settings) -> None:
        self._inventory = inventory
        self.group = "lio" if inventory.settings.fabric is configuration.Fabric.LIO else "portal"
        """The key of the settings that has the addresses to listen on."""
        self.on_file = self.listening(on_file)

    @property
    def settings(self) -> configuration.Settings:
        """The settings in force."""
        return self._inventory.settings

    def running(self) -> configuration.Settings:
        """Return the configuration that a file would need to describe the system as it is."""
        now = self.settings
        return now.model_copy(
            update={
                self.group: self.on_file,
                "volumes": tuple(self._as_it_is(volume) for volume in now.volumes),
            }
        )

    def _as_it_is(self, volume: configuration.Volume) -> configuration.Volume:
        """Return the volume with its present size, and without deleted snapshots, which must not be taken again."""
        owner = self._inventory.open_volumes.get(volume.name)
        if owner is None:
            return volume
        names = {snapshot.name for snapshot in owner.snapshots}
        return volume.model_copy(
            update={
                "size": None if volume.size is None else owner.device.size,
                "snapshots": tuple(name for name in volume.snapshots if name in names),
            }
        )

    def put(self, changed: configuration.Settings) -> None:
        """Enter settings that have been checked and applied."""
        self._inventory.put_settings(changed)

    # -- volumes -----------------------------------------------------------------------------------------------------

    def volume(self, name: str) -> configuration.Volume:
        """Return the volume of that name.  Raise Problem."""
        for volume in self.settings.volumes:
            if volume.name == name:
                return volume
        if any(shared.name == name for shared in self.settings.all_volumes):
            raise problems.shared_in_file(name)
        raise problems.no_such_volume(name, [volume.name for volume in self.settings.volumes])

    def any_volume(self, name: str) -> configuration.Volume | configuration.SharedVolume:
        """Return the volume of that name, shared or not.  Raise Problem."""
        for volume in self.settings.all_volumes:
            if volume.name == name:
                return volume
        raise problems.no_such_volume(name, [volume.name for volume in self.settings.all_volumes])

    def shared(self, name: str) -> configuration.SharedVolume:
        """Return the shared volume of that name, of which this host is a node.  Raise Problem."""
        for volume in self.settings.shared:
            if volume.name == name and not volume.is_static:
                return volume
        if any(volume.name == name for volume in self.settings.volumes):
            raise problems.not_shared(name)
        raise problems.no_such_volume(name, [volume.name for volume in self.settings.all_volumes])

    def with_shared(self, shared: configuration.SharedVolume) -> configuration.Settings:
        """Return the settings with one more shared volume.  Raise Problem."""
        return checked(self.settings.model_copy(update={"shared": (*self.settings.shared, shared)}))

    def without_shared(self, name: str) -> configuration.Settings:
        """Return the settings without a shared volume of which this host is a node."""
        left = tuple(shared for shared in self.settings.shared if shared.name != name or shared.is_static)
        return self.settings.model_copy(update={"shared": left})

    def with_volume(self, volume: configuration.Volume) -> configuration.Settings:
        """Return the settings with one more volume.  Raise Problem."""
        return checked(self.settings.model_copy(update={"volumes": (*self.settings.volumes, volume)}))

    def with_volume_changed(self, volume: configuration.Volume) -> configuration.Settings:
        """Return the settings with `volume` in place of the one of its name.  Raise Problem."""
        return checked(self._replaced(volume))

    def put_volume(self, volume: configuration.Volume) -> None:
        """Enter a volume that has been applied in place of the one of its name."""
        self.put(self._replaced(volume))

    def _replaced(self, volume: configuration.Volume) -> configuration.Settings:
        volumes = tuple(volume if other.name == volume.name else other for other in self.settings.volumes)
        return self.settings.model_copy(update={"volumes": volumes})

    def without_volume(self, name: str, *, mappings: bool) -> configuration.Settings:
        """Return the settings without a volume; with `mappings`, also without the mappings of its units, and without it in groups."""
        now = self.settings
        return now.model_copy(
            update={
                "volumes": tuple(volume for volume in now.volumes if volume.name != name),
                "groups": tuple(_without_member(group, name) for group in now.groups if group.volumes != (name,))
                if mappings
                else now.groups,
                "access": _without_unit(now.access, name) if mappings else now.access,
            }
        )

    # -- groups ------------------------------------------------------------------------------------------------------

    def put_groups(self, groups: tuple[configuration.SnapshotGroup, ...], *, dry_run: bool) -> None:
        """Enter other groups of volumes.  Raise Problem."""
        changed = self.settings.model_copy(update={"groups": groups})
        if not dry_run:
            self.put(checked(changed))

    # -- access ------------------------------------------------------------------------------------------------------

    def initiator(self, name: str) -> configuration.Initiator:
        """Return the entry of that name; case does not matter (RFC 7143 4.2.7.2).  Raise Problem."""
        known = self.settings.access.initiators or ()
        for initiator in known:
            if initiator.name.lower() == name.lower():
                return initiator
        raise problems.no_such_initiator(name, [initiator.name for initiator in known])

    def with_access(self, access: configuration.Access) -> configuration.Settings:
        """Return the settings with another `access`.  Raise Problem."""
        return checked(self.settings.model_copy(update={"access": access}))

    # -- portals -----------------------------------------------------------------------------------------------------

    def listening(self, configured: configuration.Settings) -> configuration.Portal | configuration.Lio:
        """Return the group of settings that has the addresses to listen on."""
        return configured.lio if self.group == "lio" else configured.portal

    def put_listening(self, listen: tuple[str, ...], on_file: tuple[str, ...]) -> None:
        """Enter the addresses that the fabric listens on now, and those that the file is to have."""
        in_force = self.listening(self.settings).model_copy(update={"listen": listen})
        self.put(self.settings.model_copy(update={self.group: in_force}))
        self.put_on_file(on_file)

    def put_on_file(self, listen: tuple[str, ...]) -> None:
        """Enter the addresses that the file is to have."""
        self.on_file = self.on_file.model_copy(update={"listen": listen})


def volume_of(unit: str) -> str:
    """Return the name of the volume that a unit (`vol0`, `vol0@nightly`) belongs to."""
    return unit.partition("@")[0]


def _without_member(group: configuration.SnapshotGroup, name: str) -> configuration.SnapshotGroup:
    """Return the same group without a volume."""
    return group.model_copy(update={"volumes": tuple(volume for volume in group.volumes if volume != name)})


def _without_unit(before: configuration.Access, name: str) -> configuration.Access:
    """Return the same access without mappings of volume `name` and of its snapshots."""
    initiators = before.initiators and tuple(
        initiator.model_copy(
            update={"luns": tuple(mapped for mapped in initiator.luns if volume_of(mapped.unit) != name)}
        )
        if initiator.luns
        else initiator
        for initiator in before.initiators
    )
    return before.model_copy(update={"initiators": initiators})


def checked(changed: configuration.Settings) -> configuration.Settings:
    """Return the same settings.  Raise Problem if a file with these settings would be refused."""
    for where, problem in changed.problems().items():
        match where:
            case ("volumes", int(index), *rest):
                subject = f"volume {changed.volumes[index].name}"
            case ("groups", int(index), *rest):
                subject = f"group {changed.groups[index].name}"
            case ("shared", int(index), *rest):
                subject = f"volume {changed.shared[index].name}"
            case ("access", "initiators", int(index), *rest):
                subject = f"initiator {(changed.access.initiators or ())[index].name}"
            case _:
                raise problems.invalid(reader.spell(where), problem)
        spelled = reader.spell(tuple(rest))
        raise problems.invalid(f"{subject}, {spelled}" if spelled else subject, problem)
    return changed
