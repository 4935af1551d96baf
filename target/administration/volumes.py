# SPDX-License-Identifier: Apache-2.0
"""Changes of volumes: create, change, resize, remove.

| change                           | how it is made                                                              |
| -------------------------------- | --------------------------------------------------------------------------- |
| the keys in `_WHILE_IN_USE`      | on the open volume, while initiators use it                                 |
| `map_write_once`                 | on the open volume; no session may see the LUNs, unless forced              |
| the size                         | on the open volume, upwards only                                            |
| the store (`set_store`)          | on the open volume, from `map` to `log` and back                            |
| all other keys (LUN, durability) | the volume is removed and added again; it must not be in use, unless forced |
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from lun_backends import names
from lun_backends.volumes import manifest
from target import codec, messages, units
from target.administration.access import AccessChanges
from target.administration.in_force import InForce, volume_of
from target.configuration import settings, values
from target.fabrics import access
from target.scsi.unit_kind import UnitKind
from target.service import cloned, jobs, left_behind, problems, volumes
from target.service.service import Service

log = logging.getLogger(__name__)

EXISTING = ("adopt", "new")
"""The two ways to deal with data that an earlier volume of the name left."""

_WHILE_IN_USE = frozenset(
    {
        "snapshots",
        "limit",
        "warn_at",
        "on_error",
        "max_snapshots",
        "verify_reads",
        "schedule",
        "keep",
        "verify",
        "quiesce",
        "replicate",
        "rate",
        "map_write_once",
        "write_cache",
    }
)


class VolumeChanges:
    """The changes.  One caller at a time (see administration).  Every method raises Problem."""

    def __init__(self, service: Service, in_force: InForce, access_changes: AccessChanges) -> None:
        self._service = service
        self._inventory = service.inventory
        self._in_force = in_force
        self._access = access_changes

    def create(self, request: messages.CreateVolume, *, force: bool = False, dry_run: bool) -> None:
        """Create a volume, or open it if its data exists, and serve it."""
        fields = {key: value for key, value in codec.encode(request).items() if value is not None}
        existing = fields.pop("existing", None)
        left = volumes.volume_directory(request.name, self._inventory.state_dir)
        if existing == "adopt" and manifest.exists(left):
            fields = _made_with(left) | fields
        if fields.pop("hidden"):
            fields["lun"] = values.NO_LUN
        elif request.lun is None:
            fields["lun"] = self._inventory.lowest_free_lun(request.name)
        volume = problems.validated(settings.Volume, fields, f"volume {request.name}")
        changed = self._in_force.with_volume(volume)
        if not force:
            self._inventory.check_number(volume)
        if existing not in (None, *EXISTING):
            raise problems.invalid(f"volume {volume.name}", f"existing is {existing!r}: write {' or '.join(EXISTING)}")
        if manifest.exists(left) and existing is None:
            raise problems.data_exists(volume.name, left, _shown(left))
        if dry_run:
            return
        if existing == "new":
            self._forget(volume.name, left)
        self._inventory.add_volume(volume, force=force)
        self._in_force.put(changed)
        log.info("volume %s is served as LUN %s", volume.name, values.NO_LUN if volume.lun is None else volume.lun)

    def _forget(self, name: str, directory: Path) -> None:
        """Remove the data that an earlier volume of that name left in the state directory.  Raise Problem."""
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:
            return
        except OSError as error:
            raise problems.write_failed(directory, error) from error
        log.warning("the data that an earlier volume %s had left is removed", name)

    def change(self, name: str, request: messages.ChangeVolume, *, force: bool, dry_run: bool) -> None:
        """Change the keys of a volume that the request sets."""
        before = self._in_force.volume(name)
        fields = {key: value for key, value in codec.encode(request).items() if value is not None}
        if fields.pop("hidden"):
            fields["lun"] = values.NO_LUN
        if fields.pop("any_lun"):
            fields["lun"] = self._inventory.lowest_free_lun(name)
        if fields.pop("unlimited"):
            fields["rate"] = None
        if fields.get("limit") == messages.NO_LIMIT:
            fields["limit"] = None
        after = problems.validated(settings.Volume, {**before.model_dump(), **fields}, f"volume {name}")
        self._in_force.with_volume_changed(after)
        if after != before:
            self.become(before, after, force=force, dry_run=dry_run)

    def resize(self, name: str, size: int, *, received: bool = False) -> None:
        """Enlarge a volume to `size` bytes while it is used; a replica only if a stream that it receives is larger."""
        before = self._in_force.volume(name)
        self._service.reshaping.resize(name, size, received=received)
        if before.size is not None:
            self._in_force.put_volume(before.model_copy(update={"size": size}))

    def set_store(self, name: str, request: messages.ChangeStore) -> jobs.Job:
        """Let later snapshots of a volume have another store, and begin to convert existing ones."""
        before = self._in_force.volume(name)
        after = problems.validated(settings.Volume, {**before.model_dump(), "store": request.store}, f"volume {name}")
        changed = self._in_force.with_volume_changed(after)
        owner = self._inventory.own_volume(name)
        kind = volumes.stores(after, self._inventory.state_dir).kind
        job = self._service.reshaping.convert(owner, kind, existing=request.convert)
        self._in_force.put(changed)
        return job

    def accept(self, name: str, *, dry_run: bool) -> messages.Accepted:
        """Accept the doubtful snapshots of a volume as true, or ignore a volume that is not configured."""
        if (left := self._left_behind(name)) is not None:
            return self._set_aside(left, dry_run=dry_run)
        owner = self._inventory.volume(name)
        if dry_run:
            return messages.Accepted(name, tuple(snapshot.name for snapshot in owner.snapshots if snapshot.doubt))
        with problems.translated(f"the primary of {name} was not accepted"):
            accepted = owner.accept_primary()
        self._inventory.show_doubt(owner)
        log.warning(
            "the primary of %s is accepted, so these snapshots count as true: %s", name, ", ".join(accepted) or "none"
        )
        if accepted and owner.rolling_back_to is not None:
            self._inventory.resume(owner)
        return messages.Accepted(name, tuple(accepted))

    def _left_behind(self, name: str) -> left_behind.Left | None:
        """Return the volume of that name that the configuration does not name; None if there is none."""
        configured = any(volume.name == name for volume in self._in_force.settings.volumes)
        return None if configured or not names.valid(name) else self._inventory.left.find(name)

    def _set_aside(self, left: left_behind.Left, *, dry_run: bool) -> messages.Accepted:
        if left.uuid is None:
            remedy = f"repair its volume.json, or move {left.directory} away"
            raise problems.refused(f"{left.name} was not left aside", "its manifest cannot be read", remedy)
        if not dry_run:
            with problems.translated(f"{left.name} was not left aside"):
                self._inventory.set_aside(left)
            log.warning("the data of %s is left aside", left.name)
            self._try_undecided()
        return messages.Accepted(left.name, (), set_aside=True)

    def _try_undecided(self) -> None:
        """Serve the volumes that waited for a decision, if it was the right one."""
        for volume in self._in_force.settings.volumes:
            if volume.name in self._inventory.undecided:
                try:
                    self._inventory.add_volume(volume)
                except problems.Problem as problem:
                    self._inventory.mark_failed(volume.name, problem.message, undecided=problems.undecided(problem))
                else:
                    log.info("volume %s is served", volume.name)

    def relocate(self, name: str, request: messages.Relocate, *, force: bool, dry_run: bool) -> None:
        """Take up the data of a volume that was renamed, or its primary in another place."""
        before = self._in_force.volume(name)
        fields = before.model_dump()
        if request.primary is not None:
            fields["primary"] = request.primary
        after = problems.validated(settings.Volume, fields, f"volume {name}")
        changed = self._in_force.with_volume_changed(after)
        what = f"volume {name} was not relocated"
        if request.old is not None and self._left_behind(request.old) is None:
            why = f"there is no volume {request.old} that the configuration does not name"
            raise problems.refused(what, why, "`wolun status` lists such volumes")
        owner = self._inventory.open_volumes.get(name)
        if owner is not None and request.old is not None:
            raise problems.refused(
                what, "it has data of its own, and is served", "give it another name, or delete it first"
            )
        if dry_run:
            return
        if owner is not None:
            with problems.translated(what):
                self._inventory.own_volume(name).relocate_primary(
                    volumes.primary_path(after, self._inventory.state_dir)
                )
        else:
            try:
                self._inventory.relocate_volume(after, request.old, force=force)
            except problems.Problem as problem:
                self._inventory.mark_failed(name, problem.message, undecided=problems.undecided(problem))
                raise
        self._in_force.put(changed)
        log.info("volume %s is served from %s", name, volumes.primary_path(after, self._inventory.state_dir))

    def become(self, before: settings.Volume, after: settings.Volume, *, force: bool, dry_run: bool) -> None:
        """Change a configured volume until it agrees with `after`, even if it is not served now."""
        same = before.model_copy(update={key: getattr(after, key) for key in _WHILE_IN_USE}) == after
        if same and before.name not in self._inventory.failed:
            if not force and after.map_write_once is not before.map_write_once:
                self._refuse_if_write_once_is_used(before.name)
            if not dry_run:
                self._change_open(after)
            return
        if not force:
            self._inventory.check_number(after)
        self.remove(before.name, force=force, dry_run=dry_run, mappings=False)
        if not dry_run:
            self.add(after, force=force, dry_run=False)

    def _change_open(self, after: settings.Volume) -> None:
        """Change a volume that stays served: the rules of its snapshots, and snapshots that it must have."""
        owner = self._inventory.volume(after.name)
        names = {snapshot.name for snapshot in owner.snapshots}
        owner.keep_by(volumes.rules(after))
        self._inventory.map_write_once(after.name, after.map_write_once)
        self._inventory.set_write_cache(after)
        if after.rate != self._in_force.volume(after.name).rate:
            self._inventory.set_rate(after)
        for name in after.snapshots:
            if name not in names:
                self._service.snapshots.create_snapshot(after.name, name)
        self._in_force.put_volume(after)

    def add(self, volume: settings.Volume, *, force: bool = False, dry_run: bool) -> None:
        """Serve a volume of a configuration file.  If that fails, the volume is configured but not served, as at a start."""
        changed = self._in_force.with_volume(volume)
        if not force:
            self._inventory.check_number(volume)
        if dry_run:
            return
        try:
            self._inventory.add_volume(volume, force=force)
        except problems.Problem as problem:
            self._inventory.mark_failed(volume.name, problem.message, undecided=problems.undecided(problem))
            self._in_force.put(changed)
            raise
        self._in_force.put(changed)

    def remove(
        self,
        name: str,
        *,
        force: bool,
        dry_run: bool,
        data: bool = False,
        mappings: bool = True,
        knowingly: bool = False,
    ) -> None:
        """Stop serving a volume; with `data`, delete its files in the state directory.

        With `force` its mappings to initiators go, too, unless not `mappings`: the volume comes back.  Data that is
        left behind `knowingly` is no alert.
        """
        volume = self._in_force.volume(name)
        if not force:
            self._refuse_if_used(volume, for_good=mappings)
        self._refuse_if_jobs_run(volume)
        if data and not force:
            self._refuse_if_it_has_snapshots(volume)
        if dry_run:
            return
        now = self._in_force.settings
        changed = self._in_force.without_volume(name, mappings=force and mappings)
        left = self._inventory.left.find(name)
        self._inventory.remove_volume(volume)
        if changed.access != now.access:
            self._access.apply(access.Rules.read(changed.access, self._inventory.state_dir))
        self._in_force.put(changed)
        if data:
            with problems.translated(f"the data of {name} was not deleted completely"):
                volumes.clear(volume, self._inventory.state_dir)
                shutil.rmtree(volumes.volume_directory(name, self._inventory.state_dir))
        if left is not None and left.uuid is not None and (data or knowingly):
            with problems.translated(f"{name} is no longer served, but that could not be noted"):
                self._inventory.left.forget(left.uuid) if data else self._inventory.set_aside(left)
        log.info("volume %s is no longer served%s", name, "; its data is deleted" if data else "")

    def _refuse_if_used(self, volume: settings.Volume, *, for_good: bool) -> None:
        users = list(self._users(volume))
        if for_good:
            users += [
                f"the group {group.name}" for group in self._in_force.settings.groups if volume.name in group.volumes
            ]
        if users:
            raise problems.in_use(f"volume {volume.name}", users, problems.STOP_USING)

    def _refuse_if_write_once_is_used(self, name: str) -> None:
        users = self._inventory.users(lambda unit: unit.kind is UnitKind.WRITE_ONCE and volume_of(unit.name) == name)
        if users:
            raise problems.in_use(f"the write-once LUN of a snapshot of {name}", users, problems.STOP_USING)

    def _users(self, volume: settings.Volume) -> Iterator[str]:
        """Yield the sessions that reach the volume, its snapshots or their clones, and the mappings of them."""
        owner = self._inventory.open_volumes.get(volume.name)
        names = {volume.name, *(clone.name for clone in (() if owner is None else cloned.of(owner)))}
        yield from self._inventory.users(lambda unit: volume_of(unit.name) in names)
        for initiator in self._in_force.settings.access.initiators or ():
            for mapped in initiator.luns or ():
                if volume_of(mapped.unit) in names:
                    yield f"the mapping of {mapped.unit} to {initiator.name} as LUN {mapped.lun}"

    def _refuse_if_jobs_run(self, volume: settings.Volume) -> None:
        running = [
            f"job {job.number} ({job.kind} {job.subject})"
            for job in self._service.jobs.all()
            if not job.ended and volume_of(job.subject) == volume.name
        ]
        if running:
            raise problems.in_use(f"volume {volume.name}", running, "wait for it, or cancel it")

    def _refuse_if_it_has_snapshots(self, volume: settings.Volume) -> None:
        owner = self._inventory.open_volumes.get(volume.name)
        if owner is not None and owner.snapshots:
            names = [f"snapshot {snapshot.name}" for snapshot in owner.snapshots]
            raise problems.in_use(f"the data of {volume.name}", names, "delete them first, or use force=true")


def _made_with(directory: Path) -> dict[str, object]:
    """Return what a volume keeps from its first day on.  Raise Problem."""
    with problems.translated(f"the data in {directory} cannot be adopted"):
        record = manifest.load(directory)
    return {
        "block_size": record.block_size,
        "chunk_size": units.exact_size(record.chunk_size),
        "store": record.store.value,
    }


def _shown(directory: Path) -> str:
    """Return what a volume's directory has, as a phrase."""
    try:
        record = manifest.load(directory)
    except manifest.ManifestError as error:
        return f"its manifest cannot be read: {error.reason}"
    count = len(record.snapshots)
    return f"{units.human_size(record.size)}, {count} snapshot{'' if count == 1 else 's'}"
