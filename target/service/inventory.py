# SPDX-License-Identifier: Apache-2.0
"""The logical unit inventory (as SPC-4 calls it): the open volumes, the LUNs of volumes and snapshots, and who reaches them.

| change                | LUNs                                             | excluded while it runs                                |
| --------------------- | ------------------------------------------------ | ----------------------------------------------------- |
| a volume is added     | its own, and those of each of its snapshots      | other changes of it, the daemon's end                 |
| a volume is removed   | the same go; their commands end first            | other changes of it, the daemon's end                 |
| a snapshot is taken   | the view, and the write-once LUN if it is mapped | other changes of its volume, the daemon's end         |
| a snapshot is deleted | its two go; the numbers rest (`resting`)         | (the volume excludes by itself)                       |

`changing` excludes other changes of the same volume only, because a change waits for disks, and a slow volume must not
delay the others.  Readers take no lock: `open_volumes`, `failed` and `settings` are replaced as wholes, never changed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from lun_backends import block_device
from lun_backends.files import os_error
from lun_backends.initiator.part import Role
from lun_backends.refused import Refused
from lun_backends.volumes import group, manifest
from lun_backends.volumes import volume as own
from lun_backends.volumes.clone import Clone
from lun_backends.volumes.interface import Snapshot, Volume
from target import own_address
from target.audit import Audit
from target.configuration import settings as configuration
from target.fabrics import access
from target.scsi import limits, logical_unit, scsi_target
from target.scsi.sense import Asc
from target.service import (
    cloned,
    interrupted,
    left_behind,
    lun_numbers,
    mapping,
    pool_file,
    problems,
    rates,
    readers,
    replica_file,
    resting,
    snapshot_events,
    unit_state,
    volumes,
)
from target.service.fabric_view import FabricView, NotStarted
from target.service.jobs import Job, Jobs

log = logging.getLogger(__name__)

_PATIENCE = 300.0
"""Seconds between two attempts to go on with a rollback that an error other than a lack of space stopped."""


def view_uuid(snapshot: uuid.UUID) -> uuid.UUID:
    """Return the identity of a snapshot's view; the identity of its write-once LUN is the snapshot's own."""
    return uuid.uuid5(snapshot, "view")


def node_uuid(volume: uuid.UUID) -> uuid.UUID:
    """Return the identity of a shared volume's LUN, the same on all nodes.

    It is not that of the primary: multipath would take the two for one disk, and write past copy-on-write.
    """
    return uuid.uuid5(volume, "node")


def url_lun(lun: int) -> int:
    """Return the number that stands for a LUN in a URL.

    libiscsi sends the number as it is.  So one above 255 has the bits of flat space addressing (SAM-5 4.7.7.4) in the URL.  Linux
    shows such LUNs in the same way.
    """
    return lun if lun < 256 else lun | 0x4000


class Inventory:
    """The volumes that the daemon serves and the units that initiators see.

    `fabric` is replaced once, when the fabric has started.  `failed` has the reason for each volume that is configured
    and not served.  Raise lun_numbers.Damaged, OSError.
    """

    def __init__(self, configured: configuration.Settings, state_dir: Path, jobs: Jobs, audit: Audit) -> None:
        self._audit = audit
        self.state_dir = state_dir
        self.scsi = scsi_target.ScsiTarget(configured.target)
        self.access = access.Access(access.Rules.read(configured.access, state_dir))
        self.fabric: FabricView = NotStarted(configured.portal.listen)
        self._settings = configured
        self._failed: Mapping[str, str] = {}
        self._undecided: frozenset[str] = frozenset()
        self._patience: dict[str, float] = {}  # until when a rollback that stopped is left alone, by the volume's name
        self.left = left_behind.LeftBehind(state_dir)
        self._volumes: Mapping[str, Volume] = {}
        self._jobs = jobs
        self._unit_state = unit_state.UnitState()
        self._resting = resting.Resting(state_dir / "resting-luns.json", self._logged_in)
        self._numbers = lun_numbers.LunNumbers(
            state_dir / "luns.json",
            set(configured.fixed_luns),
            lambda: self._resting.all(),
            pools=pool_file.numbers(state_dir),
        )
        self._readers = readers.Readers()
        self._lock = threading.Lock()  # held while a mapping is replaced, never while waiting for a disk
        self._map_write_once: dict[str, configuration.MapWriteOnce] = {}  # by the volume's name
        self._changes: dict[str, threading.Lock] = {}  # by the volume's name
        self._stopping = False
        self.names_in_log: Callable[[str], Collection[str]] = lambda _volume: ()
        """The snapshots that the log of a volume has, if it is on this host; `pools` sets it."""

    def open_configured(self) -> None:
        """Open all configured volumes and serve them; note in `failed` those that cannot be opened.  Raise OSError."""
        for left in self.unconfigured():
            log.warning("volume %s has data in %s, but the configuration does not name it", left.name, left.directory)
            if left.lun is not None:
                with contextlib.suppress(problems.Problem):
                    self._numbers.reserve(left.lun)
        for configured in self._settings.volumes:
            try:
                self._serve(configured)
            except (block_device.BlockDeviceError, Refused, problems.Problem, OSError) as error:
                self.mark_failed(configured.name, str(error), undecided=problems.undecided(error))
                log.error("volume %s is not served: %s", configured.name, error)
        # A crash may have come between the end of a deletion and the release of the numbers.
        known = {name: cloned.identities(owner) for name, owner in self._volumes.items()}
        deleted = {
            identity
            for identity, numbers in self._numbers.all().items()
            if numbers.volume in known and identity not in known[numbers.volume]
        }
        for identity in deleted:
            self._rest(identity)
        self._numbers.free(deleted)
        group.sweep(self.state_dir / "volumes")

    # -- the state ---------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> configuration.Settings:
        """The settings in force."""
        return self._settings

    def put_settings(self, changed: configuration.Settings) -> None:
        """Enter new settings in force.  Only administration.in_force calls this, after it has applied the change."""
        self._settings = changed

    @property
    def open_volumes(self) -> Mapping[str, Volume]:
        """The volumes that are served, by name."""
        return self._volumes

    @property
    def failed(self) -> Mapping[str, str]:
        """The reason for each configured volume that is not served, by name."""
        return self._failed

    def mark_failed(self, name: str, reason: str, *, undecided: bool = False) -> None:
        """Note why a configured volume is not served; `undecided` if only an administrator can decide that."""
        with self._lock:
            self._failed = {**self._failed, name: reason}
            self._undecided = self._undecided | {name} if undecided else self._undecided - {name}

    @property
    def undecided(self) -> frozenset[str]:
        """The failed volumes that wait for a decision of the administrator, by name."""
        return self._undecided

    def unconfigured(self) -> Iterator[left_behind.Left]:
        """Yield the volumes in the state directory that no configuration names and no administrator set aside."""
        return self.left.found({volume.name for volume in self._settings.volumes})

    @property
    def stopping(self) -> bool:
        """Whether the daemon is stopping."""
        return self._stopping

    @contextlib.contextmanager
    def changing(self, names: Iterable[str]) -> Iterator[None]:
        """Exclude other changes of the volumes of these names, and the daemon's end.

        Raise Problem if the daemon is stopping.
        """
        with contextlib.ExitStack() as locks:
            for name in sorted(set(names)):  # in the same order, so that two changes never wait for each other
                with self._lock:
                    lock = self._changes.setdefault(name, threading.Lock())
                locks.enter_context(lock)
            if self._stopping:
                raise problems.stopping()
            yield

    # -- volumes -----------------------------------------------------------------------------------------------------

    def lowest_free_lun(self, name: str) -> int:
        """Return a number for a volume that has none: the one that it had, or the lowest free one.  Raise Problem."""
        identity = self._identity(name)
        for number, rested in self._resting.all().items():
            if rested.unit == identity:
                return number
        return self._numbers.lowest_free()

    def _identity(self, name: str) -> uuid.UUID | None:
        """Return the identity of a volume, None if there is none yet."""
        directory = volumes.volume_directory(name, self.state_dir)
        with contextlib.suppress(manifest.ManifestError, OSError):
            if manifest.exists(directory):
                return manifest.load(directory).uuid
        return None

    def add_volume(self, configured: configuration.Volume, *, force: bool = False) -> None:
        """Open or create a volume, and serve it.  Raise Problem.

        Refuse a number under which an initiator that is logged in knows another unit, unless `force`.
        """
        with self.changing([configured.name]):
            if not force:
                self.check_number(configured)
            if configured.lun is not None:
                self._numbers.reserve(configured.lun)
            try:
                with problems.translated(f"volume {configured.name} cannot be served"):
                    self._serve(configured)
            except problems.Problem:
                self._release(configured.lun)
                raise
            self._unmark_failed(configured.name)

    def remove_volume(self, configured: configuration.Volume) -> None:
        """Stop serving a volume; its data stays.  Return when no command runs on it.  Raise Problem."""
        with self.changing([configured.name]):
            self._close(configured)
            self._release(configured.lun)

    def _close(self, configured: configuration.Volume | configuration.SharedVolume) -> None:
        """Withdraw a volume and its snapshots, and close it.  Raise Problem."""
        with self._lock:
            owner = self._volumes.get(configured.name)
            self._volumes = {name: other for name, other in self._volumes.items() if name != configured.name}
        self._unmark_failed(configured.name)
        if owner is not None:
            if configured.lun is not None:
                self._remove_lun(configured.lun)
            for snapshot in owner.snapshots:
                self.withdraw(snapshot)
            for clone in cloned.of(owner):
                self.withdraw_clone(clone)
            with problems.translated(f"volume {configured.name} did not close cleanly"):
                owner.close()

    def add_shared(self, configured: configuration.SharedVolume, owner: Volume) -> None:
        """Serve an open shared volume, and its snapshots.  Raise Problem."""
        with self.changing([configured.name]), problems.translated(f"volume {configured.name} cannot be served"):
            self._refuse_number_of_snapshot(configured.lun)
            kind, role = logical_unit.UnitKind.PRIMARY, Role.NODE
            unit = self._unit_state.unit(owner, owner.device, node_uuid(owner.uuid), kind, owner.name, role=role)
            if configured.lun is not None:
                self._add_lun(configured.lun, unit, fixed=True)
            with self._lock:
                self._volumes = {**self._volumes, configured.name: owner}
            self._unmark_failed(configured.name)

    def reserve(self, lun: int | None) -> None:
        """Keep a number for a volume.  Raise Problem if a snapshot has it."""
        if lun is not None:
            self._numbers.reserve(lun)

    def remove_shared(self, configured: configuration.SharedVolume) -> None:
        """Serve a shared volume no longer, and close it.  Return when no command runs on it.  Raise Problem."""
        with self.changing([configured.name]):
            self._close(configured)
            if configured.lun is not None:
                self._numbers.release(configured.lun)

    def follow(self, owner: Volume) -> None:
        """Serve the snapshots that other nodes took of a shared volume, and no longer those that they deleted.  Raise Problem."""
        with self.changing([owner.name]), problems.translated(f"the snapshots of {owner.name} are not all served"):
            snapshots = {snapshot.uuid: snapshot for snapshot in owner.snapshots if not snapshot.deleting}
            for identity, numbers in self._numbers.all().items():
                if numbers.volume == owner.name and identity not in snapshots:
                    for number in (numbers.view, numbers.write_once):
                        if number in self.scsi.luns:
                            self._remove_lun(number)
                    self._rest(identity)
                    self._numbers.free({identity})
                    self._unit_state.forget(owner, (identity, view_uuid(identity)))
            for snapshot in snapshots.values():
                if snapshot.unreadable:
                    continue  # once its fence is complete, it gets its LUNs
                allotted = self._numbers.of(snapshot.uuid)
                if allotted is None or allotted.view not in self.scsi.luns:
                    self.publish(owner, snapshot)
                else:
                    self.renamed(owner, snapshot)  # another node may have given it another name

    def relocate_volume(self, configured: configuration.Volume, old: str | None, *, force: bool) -> None:
        """Take up the data of the volume `old`, or a primary in another place, and serve the volume.  Raise Problem."""
        with (
            self.changing([configured.name] if old is None else [configured.name, old]),
            problems.translated(f"volume {configured.name} was not relocated"),
        ):
            volumes.relocate(configured, self.state_dir, old, force=force)
        self.add_volume(configured)

    def set_aside(self, left: left_behind.Left) -> None:
        """Note that a volume that the configuration does not name was left behind knowingly.  Raise OSError."""
        if left.uuid is not None:
            self.left.set_aside(left.uuid)
        self._release(left.lun)

    def _release(self, lun: int | None) -> None:
        """Release the number of a volume, unless one that was left behind has it."""
        if lun is not None and all(left.lun != lun for left in self.unconfigured()):
            self._numbers.release(lun)

    def _unmark_failed(self, name: str) -> None:
        with self._lock:
            self._failed = {other: reason for other, reason in self._failed.items() if other != name}
            self._undecided -= {name}

    def _refuse_in_place_of_another(self, configured: configuration.Volume) -> None:
        """Raise Problem if a volume would be made in the place of one that was left behind."""
        if manifest.exists(volumes.volume_directory(configured.name, self.state_dir)):
            return
        primary = volumes.primary_path(configured, self.state_dir)
        for left in self.unconfigured():
            with contextlib.suppress(OSError):
                if left.primary is not None and primary.samefile(left.primary):
                    raise problems.primary_of_another(configured.name, primary, left.name)
            if configured.lun is not None and configured.lun == left.lun and not primary.exists():
                raise problems.left_behind(configured.name, configured.lun, left.name)

    def _refuse_number_of_snapshot(self, lun: int | None) -> None:
        """Raise Problem if a snapshot or a pool has the number that a volume wants."""
        for numbers in self._numbers.all().values():
            if lun is not None and lun in (numbers.view, numbers.write_once):
                raise problems.lun_taken(lun, numbers.volume)
        if lun is not None and (owner_of_pool := self._numbers.pool_of(lun)) is not None:
            raise problems.lun_of_pool(lun, owner_of_pool)

    def _serve(self, configured: configuration.Volume) -> None:
        self._refuse_number_of_snapshot(configured.lun)
        self._refuse_in_place_of_another(configured)
        self._map_write_once[configured.name] = configured.map_write_once
        watch = snapshot_events.Watch(configured.name, lambda: self.unit_of(configured))
        owner = volumes.open_volume(configured, self.state_dir, watch)
        try:
            self._add_luns(owner, configured)
        except BaseException:
            for snapshot in owner.snapshots:
                self.withdraw(snapshot)
            for clone in cloned.of(owner):
                self.withdraw_clone(clone)
            owner.close()
            raise
        try:
            self.left.serve(owner.uuid, configured.lun)
        except OSError as error:  # then only the care for its LUN suffers, should it be left behind
            log.warning("the LUN of %s was not noted: %s", configured.name, os_error.reason(error))
        with self._lock:
            self._volumes = {**self._volumes, configured.name: owner}  # other threads may read the old one
        self.resume(owner)

    def _add_luns(self, owner: Volume, configured: configuration.Volume) -> None:
        self._numbers.rename(cloned.identities(owner), owner.name)
        journal = self._unit_state.journal(owner)
        for snapshot in owner.snapshots:
            if not snapshot.deleting:
                self._publish(owner, snapshot)
        for name in configured.snapshots:
            if all(name != snapshot.name for snapshot in owner.snapshots):
                self.publish(owner, owner.create_snapshot(name))
                log.info("took %s@%s, as the configuration asks", configured.name, name)
        for clone in cloned.of(owner):
            self.publish_clone(owner, clone)
        kind = logical_unit.UnitKind.PRIMARY
        physical = configured.physical_block_size
        unit = self._unit_state.unit(
            owner,
            owner.device,
            owner.uuid,
            kind,
            configured.name,
            journal,
            physical,
            write_protected=replica_file.is_replica(owner.directory),
        )
        if configured.lun is not None:
            unit.set_write_cache(configured.write_cache)
            unit.limit(_bucket(configured))
            self._add_lun(configured.lun, unit, fixed=True)

    def resume(self, owner: Volume) -> None:
        """Start a job that finishes the rollback and the deletions that a crash, a stop or a doubt interrupted."""

        def work(job: Job) -> None:
            interrupted.finish_rollback(owner, job, lambda: self._stopping)
            before = owner.snapshots
            try:
                interrupted.finish_deletions(owner, job)
            finally:
                for snapshot in before:
                    self.after_deletion(owner, snapshot)

        if owner.rolling_back_to is not None:
            self._jobs.start("restore", f"{owner.name}@{owner.rolling_back_to.name}", work)
        elif any(snapshot.deleting for snapshot in owner.snapshots):
            self._jobs.start("delete", owner.name, work)

    def resume_rollbacks(self) -> None:
        """Go on with rollbacks that stopped and may go on now."""
        for owner in list(self._volumes.values()):
            stopped, target = owner.rollback_stopped, owner.rolling_back_to
            if stopped is None or target is None or time.monotonic() < self._patience.get(owner.name, 0.0):
                continue
            subject = f"{owner.name}@{target.name}"
            if any(not job.ended and job.subject == subject for job in self._jobs.all()):
                continue
            with contextlib.suppress(OSError, problems.Problem):  # it stays stopped, and the alert says so
                if owner.rollback_may_go_on():
                    log.info("rolling %s back to %s goes on", owner.name, target.name)
                    if not stopped.needs_space:
                        self._patience[owner.name] = time.monotonic() + _PATIENCE
                    self.resume(owner)

    # -- LUNs --------------------------------------------------------------------------------------------------------

    def publish(self, owner: Volume, snapshot: Snapshot) -> None:
        """Serve a snapshot under its LUNs, the same as before if it had any.  Raise Problem, OSError.

        The snapshot keeps its numbers even if initiators do not see its LUNs (`mapping`).  Do nothing if the snapshot is being
        deleted.
        """
        if snapshot.deleting:
            return
        self._publish(owner, snapshot)
        self._settle_newest(owner)

    def _publish(self, owner: Volume, snapshot: Snapshot) -> None:
        self._numbers.allot(snapshot.uuid, owner.name)
        self._publish_view(owner, snapshot)
        self._publish_write_once(owner, snapshot)

    def _settle_newest(self, owner: Volume) -> None:
        """If initiators see the newest view alone, serve that one, and no longer the others, unless they are read."""
        if self._map_views(owner.name) is configuration.MapViews.NEWEST:
            for snapshot in owner.snapshots:
                if not snapshot.unreadable:
                    self._publish_view(owner, snapshot)

    def _publish_view(self, owner: Volume, snapshot: Snapshot) -> None:
        """Serve the view of a snapshot if initiators are to see it, and else no longer; one that is read stays meanwhile."""
        numbers = self.numbers_of(snapshot)
        if numbers is None:
            return
        title, there = f"{owner.name}@{snapshot.name}", numbers.view in self.scsi.luns
        wanted = mapping.shows_view(self._map_views(owner.name), owner.snapshots, snapshot, numbers)
        if wanted or mapping.is_named(self._settings.access, title):
            if not there:
                view = logical_unit.UnitKind.SNAPSHOT_VIEW
                unit = self._unit_state.unit(owner, snapshot.view, view_uuid(snapshot.uuid), view, title)
                unit.doubt(bool(snapshot.doubt))
                self._add_lun(numbers.view, unit)
        elif there and (numbers.map_view is False or not self.readers_of(snapshot)):
            self._remove_lun(numbers.view)

    def _map_views(self, name: str) -> configuration.MapViews:
        wanted = (volume.map_views for volume in self._settings.all_volumes if volume.name == name)
        return next(wanted, configuration.MapViews.BY_HAND)

    def order_mapping(
        self, owner: Volume, snapshot: Snapshot, *, view: bool | None, write_once: bool | None, force: bool
    ) -> None:
        """Map or unmap the LUNs of a snapshot, for good; None changes nothing.  Return when no command runs there.

        Raise Problem, also if a LUN is in use that has to go, unless `force`.
        """
        with self.changing([owner.name]):
            title = f"{owner.name}@{snapshot.name}"
            numbers = self.numbers_of(snapshot)
            if numbers is None:
                raise problems.refused(f"{title} was not mapped", "it is being deleted", "use another snapshot")
            going = {number for number, on in ((numbers.view, view), (numbers.write_once, write_once)) if on is False}
            units = [self.scsi.luns[number] for number in going if number in self.scsi.luns]
            if not force and (users := self.users(lambda unit: unit in units, used=True)):
                raise problems.in_use(title, users, "log them out first, or use --force")
            if view is False and mapping.is_named(self._settings.access, title):
                raise problems.refused(f"{title} was not unmapped", "`access` maps it", "delete that mapping")
            with problems.translated(f"{title} was not mapped"):
                self._numbers.order(snapshot.uuid, view=view, write_once=write_once)
                self._publish_view(owner, snapshot)
                self._publish_write_once(owner, snapshot)

    def _publish_write_once(self, owner: Volume, snapshot: Snapshot) -> None:
        """Serve the write-once LUN of a snapshot if initiators are to see it, and else no longer."""
        numbers = self.numbers_of(snapshot)
        if numbers is None:
            return
        number = numbers.write_once
        mapped = mapping.shows_write_once(self.mapped_write_once(owner.name), numbers)
        protected = mapped is configuration.MapWriteOnce.READ_ONLY
        if (there := self.scsi.luns.get(number)) is not None:
            if mapped is not configuration.MapWriteOnce.NONE and there.write_protected == protected:
                return
            self._remove_lun(number)
        if mapped is configuration.MapWriteOnce.NONE:
            return
        unit = self._unit_state.unit(
            owner,
            snapshot.write_once,
            snapshot.uuid,
            logical_unit.UnitKind.WRITE_ONCE,
            f"{owner.name}@{snapshot.name}/write-once",
            write_protected=protected,
        )
        self._add_lun(number, unit)

    def map_write_once(self, name: str, mapped: configuration.MapWriteOnce) -> None:
        """Show the write-once LUNs of a volume's snapshots to initiators, or hide them.  Return when no command runs there.

        Raise Problem.
        """
        with self.changing([name]):
            if self._map_write_once.get(name) is mapped:
                return
            owner = self.volume(name)
            self._map_write_once[name] = mapped
            for snapshot in owner.snapshots:
                with problems.translated(f"the write-once LUN of {name}@{snapshot.name} is not served"):
                    self._publish_write_once(owner, snapshot)

    def set_write_cache(self, configured: configuration.Volume) -> None:
        """Let the writes to a volume end in the cache, or on stable storage, as the configuration says.  Raise Problem."""
        unit = self.unit_of(configured)
        if unit is not None and unit.write_cache != configured.write_cache:
            with problems.translated(f"the write cache of {configured.name} was not flushed"):
                unit.set_write_cache(configured.write_cache)
            unit.attention(*divmod(Asc.MODE_PARAMETERS_CHANGED, 256))

    def set_rate(self, configured: configuration.Volume) -> None:
        """Limit the commands to a volume as the configuration says, from the next one on."""
        unit = self.unit_of(configured)
        if unit is not None:
            unit.limit(_bucket(configured))

    def protect(self, owner: Volume, on: bool) -> None:
        """Let a volume take no writes of initiators, because it is a replica, or take them again."""
        for unit in self._units_of(owner):
            unit.protect(on)

    def content_changed(self, owner: Volume) -> None:
        """Tell initiators that the content of a volume is another (28h/00h)."""
        for unit in self._units_of(owner):
            unit.attention(*divmod(Asc.MEDIUM_MAY_HAVE_CHANGED, 256))

    def _units_of(self, owner: Volume) -> list[logical_unit.LogicalUnit]:
        return [unit for unit in self.scsi.luns.values() if unit.device is owner.device]

    def show_doubt(self, owner: Volume) -> None:
        """Let initiators see which snapshots of a volume may not be true."""
        for snapshot in owner.snapshots:
            numbers = self.numbers_of(snapshot)
            unit = None if numbers is None else self.scsi.luns.get(numbers.view)
            if unit is not None:
                unit.doubt(bool(snapshot.doubt))

    def mapped_write_once(self, name: str) -> configuration.MapWriteOnce:
        """Return whether initiators see the write-once LUNs of a volume's snapshots."""
        return self._map_write_once.get(name, configuration.MapWriteOnce.NONE)

    def check_renaming(self, owner: Volume, snapshot: Snapshot) -> None:
        """Raise Problem if the configuration names the snapshot: it would not be found any more, or taken again."""
        name = f"{owner.name}@{snapshot.name}"
        what = f"{name} was not renamed"
        wanted = self._settings
        if any(snapshot.name in volume.snapshots for volume in wanted.volumes if volume.name == owner.name):
            remedy = "take its name out of the configuration first, or it is taken again at the next start"
            raise problems.refused(what, f"the configuration lists it in `snapshots` of {owner.name}", remedy)
        for initiator in wanted.access.initiators or ():
            if any(mapped.unit.partition("/")[0] == name for mapped in initiator.luns or ()):
                reason = f"`access` maps it for {initiator.name}"
                raise problems.refused(what, reason, "delete that mapping first, and make it again with the new name")

    def renamed(self, owner: Volume, snapshot: Snapshot) -> None:
        """Give the units of a snapshot its new name.  The kernel's devices get it at the next start."""
        numbers = self.numbers_of(snapshot)
        if numbers is None or self._settings.fabric is configuration.Fabric.LIO:
            return
        for number, suffix in ((numbers.view, ""), (numbers.write_once, "/write-once")):
            if (unit := self.scsi.luns.get(number)) is not None:
                unit.name = f"{owner.name}@{snapshot.name}{suffix}"

    def publish_clone(self, owner: Volume, clone: Clone) -> None:
        """Serve a clone under its LUN, the same as before if it had one; not one whose name a volume has.

        Raise Problem, OSError.
        """
        number = self._numbers.allot(clone.uuid, owner.name).view
        if clone.device is None or any(volume.name == clone.name for volume in self._settings.all_volumes):
            log.warning("clone %s is not served: %s", clone.name, clone.reason or "a volume has its name")
            return
        kind, role = logical_unit.UnitKind.PRIMARY, Role.VIEW
        unit = self._unit_state.unit(owner, clone.device, clone.uuid, kind, clone.name, role=role)
        self._add_lun(number, unit)

    def withdraw_clone(self, clone: Clone) -> None:
        """Remove a clone's LUN from the target.  Return when no command runs on it."""
        if (number := self.clone_lun(clone)) is not None:
            self._remove_lun(number)

    def forget_clone(self, owner: Volume, clone: Clone) -> None:
        """Free the LUN number of a deleted clone, and delete its reservations.  Raise OSError."""
        self._numbers.free({clone.uuid})
        self._unit_state.forget(owner, (clone.uuid,))

    def clone_lun(self, clone: Clone) -> int | None:
        """Return the LUN of a clone; None if it is not served."""
        numbers = self._numbers.of(clone.uuid)
        unit = None if numbers is None else self.scsi.luns.get(numbers.view)
        return numbers.view if numbers is not None and unit is not None and unit.uuid == clone.uuid else None

    def users_of_clone(self, clone: Clone) -> list[str]:
        """Return the initiators that are logged in and used a clone, each with its address if that is known."""
        return self.users(lambda unit: unit.uuid == clone.uuid, used=True)

    def withdraw(self, snapshot: Snapshot) -> None:
        """Remove a snapshot's LUNs from the target.  Return when no command runs on them."""
        numbers = self._numbers.of(snapshot.uuid)
        for number in (numbers.view, numbers.write_once) if numbers else ():
            if number in self.scsi.luns:
                self._remove_lun(number)

    def after_deletion(self, owner: Volume, snapshot: Snapshot) -> None:
        """Free the LUN numbers of a snapshot if it is deleted; serve it again if its deletion has failed."""
        if snapshot not in owner.snapshots:
            self._numbers.free({snapshot.uuid})
            self._unit_state.forget(owner, (snapshot.uuid, view_uuid(snapshot.uuid)))
            log.info("deleted %s@%s", owner.name, snapshot.name)
            self._settle_newest(owner)
        elif not snapshot.deleting:
            numbers = self._numbers.of(snapshot.uuid)
            if numbers is None or numbers.view not in self.scsi.luns:
                self.publish(owner, snapshot)

    def _add_lun(self, number: int, unit: logical_unit.LogicalUnit, *, fixed: bool = False) -> None:
        unit.changed_by = lambda initiator, what: self._audit.record("initiator", initiator, what)
        before = self._resting.taken(number, unit.uuid, fixed=fixed)
        if before is not None:
            unit.new_to |= before.initiators
            log.warning("LUN %d was %s, and is %s now", number, before.name, unit.name)
        self.scsi.add_lun(number, unit)

    def add_fixed_lun(self, number: int, unit: logical_unit.LogicalUnit) -> None:
        """Serve a unit that is no volume's and no snapshot's under the number that the configuration gives it."""
        self._add_lun(number, unit, fixed=True)

    def take_pool_number(self, volume: str) -> int:
        """Return a number for a LUN of the volume's pool; no other unit ever gets it.  Raise Problem."""
        return self._numbers.take_for_pool(volume)

    def return_pool_number(self, number: int) -> None:
        """Return a number under which no initiator has seen a unit."""
        self._numbers.return_from_pool(number)

    def add_pool_lun(self, number: int, unit: logical_unit.LogicalUnit) -> None:
        """Serve a LUN of a pool under its number."""
        self.scsi.add_lun(number, unit)

    def remove_pool_lun(self, number: int) -> None:
        """Remove a LUN of a pool.  Return when no command runs on it."""
        self.scsi.remove_lun(number)

    def _remove_lun(self, number: int) -> None:
        """Remove a unit, and let its number rest; return when no command runs on it."""
        unit = self.scsi.luns[number]
        self._resting.put(number, unit.uuid, unit.name, self._initiators_of(unit))
        self.scsi.remove_lun(number)

    def _rest(self, snapshot: uuid.UUID) -> None:
        """Let the numbers of a deleted snapshot rest, if they do not yet, because a crash came before."""
        numbers = self._numbers.all()[snapshot]
        known = self._resting.all()
        for number, unit in ((numbers.view, view_uuid(snapshot)), (numbers.write_once, snapshot)):
            if number not in known:
                self._resting.put(number, unit, f"a deleted snapshot of {numbers.volume}", ())

    def _logged_in(self) -> set[str]:
        """Return the names of the initiators that are logged in to the target."""
        names = {nexus.initiator for nexus in self.scsi.nexuses}
        return names | {session.initiator for session in self.fabric.sessions() if session.target is not None}

    def _initiators_of(self, unit: logical_unit.LogicalUnit) -> set[str]:
        """Return the initiators that may know a unit: those that sent it a command.

        The kernel's target names its sessions, and not what they did: each that can reach the unit counts.
        """
        names = set(unit.used_by)
        ours = {nexus.initiator for nexus in self.scsi.nexuses}
        for session in self.fabric.sessions():
            if session.target is not None and session.initiator not in ours:
                seen = self.access.rules.seen(session.initiator, self.scsi.luns)
                if any(other is unit for other in seen.values()):
                    names.add(session.initiator)
        return names

    def check_number(self, configured: configuration.Volume) -> None:
        """Raise Problem if an initiator that is logged in knows another unit under the volume's number."""
        if configured.lun is None:
            return
        before, users = self._resting.users(configured.lun, self._identity(configured.name))
        if users:
            raise problems.lun_known(configured.lun, before, users)

    def look(self) -> None:
        """Note which units are read, and which initiators are logged in.  The daemon calls it about once a second."""
        self._readers.look(self.scsi.luns.values())
        self._resting.look()

    def readers_of(self, snapshot: Snapshot) -> list[str]:
        """Return the initiators that read a snapshot's LUNs now, each with its address if that is known."""
        numbers = self._numbers.all().get(snapshot.uuid)
        luns = self.scsi.luns
        units = [luns[number] for number in (numbers.view, numbers.write_once) if number in luns] if numbers else []
        read = [unit for unit in units if self._readers.reads(unit)]
        if not read:
            return []
        users = self.users(lambda unit: unit in read, used=True)
        wanted = self._settings
        loopback = wanted.fabric is configuration.Fabric.LIO and wanted.lio.loopback
        return [*users, "this host, through tcm_loop"] if loopback else users

    def view_lun(self, snapshot: Snapshot) -> int | None:
        """Return the LUN of a snapshot's view; None if initiators do not see it."""
        numbers = self.numbers_of(snapshot)
        return numbers.view if numbers is not None and numbers.view in self.scsi.luns else None

    def write_once_lun(self, snapshot: Snapshot) -> int | None:
        """Return the LUN of a snapshot's write-once LUN; None if initiators do not see it."""
        numbers = self.numbers_of(snapshot)
        return numbers.write_once if numbers is not None and numbers.write_once in self.scsi.luns else None

    def numbers_of(self, snapshot: Snapshot) -> lun_numbers.Numbers | None:
        """Return the LUN numbers of a snapshot, or None if it is being deleted."""
        return None if snapshot.deleting else self._numbers.of(snapshot.uuid)

    def url(self, lun: int | None) -> str:
        """Return the URL by which libiscsi and qemu name a LUN; empty for None."""
        return "" if lun is None else f"iscsi://{self.portal_address}/{self._settings.target}/{url_lun(lun)}"

    @property
    def portal_address(self) -> str:
        """The first address that initiators connect to, HOST:PORT.

        If the portal listens on all addresses, this is the one by which this host reaches others.
        """
        announced = self._settings.portal.announce if self._settings.fabric is configuration.Fabric.PORTAL else ()
        addresses, unbound = self.fabric.addresses(), self.fabric.unbound()
        first = (*announced, *(address for address in addresses if address not in unbound), "tcm_loop")[0]
        return own_address.in_place_of_all(first)

    def unit_of(self, configured: configuration.Volume | configuration.SharedVolume) -> logical_unit.LogicalUnit | None:
        return None if configured.lun is None else self.scsi.luns.get(configured.lun)

    # -- finding -----------------------------------------------------------------------------------------------------

    def volume(self, name: str) -> Volume:
        """Return the open volume of that name.  Raise Problem."""
        owner = self._volumes.get(name)
        if owner is None:
            if name in self._failed:
                raise problems.volume_failed(name, self._failed[name])
            raise problems.no_such_volume(name, self._volumes)
        return owner

    def own_volume(self, name: str) -> own.Volume:
        """Return the open volume of that name, whose snapshots this host keeps.  Raise Problem."""
        owner = self.volume(name)
        if not isinstance(owner, own.Volume):
            raise problems.shared(name)
        return owner

    def find(self, volume_name: str, name: str) -> tuple[Volume, Snapshot]:
        """Return the snapshot of that name, after its volume.  Raise Problem."""
        owner = self.volume(volume_name)
        if all(snapshot.name != name for snapshot in owner.snapshots):
            owner.refresh()
        for snapshot in owner.snapshots:
            if snapshot.name == name:
                return owner, snapshot
        if name in self.names_in_log(volume_name):
            raise problems.on_the_nodes(volume_name, name)
        raise problems.no_such_snapshot(volume_name, name, [snapshot.name for snapshot in owner.snapshots])

    def users(self, matches: Callable[[logical_unit.LogicalUnit], bool], *, used: bool = False) -> list[str]:
        """Return the initiators that are logged in and see a matching unit, each with its address if that is known.

        With `used`, return only those that sent it a command, as far as that is known.
        """
        addresses = {
            nexus.initiator: ""
            for nexus in self.scsi.nexuses
            if any(matches(unit) for unit in (nexus.used() if used else nexus.seen()).values())
        }
        ours = {nexus.initiator for nexus in self.scsi.nexuses}
        for session in self.fabric.sessions():
            if session.initiator in addresses:
                addresses[session.initiator] = addresses[session.initiator] or session.address
            elif (session.target is not None and not (used and session.initiator in ours)) and any(
                map(matches, self.access.rules.seen(session.initiator, self.scsi.luns).values())
            ):
                addresses[session.initiator] = session.address  # a session of the kernel's target has no nexus here
        return [f"{name} from {address}" if address else name for name, address in sorted(addresses.items())]

    def counters(self) -> Mapping[str, rates.Counts]:
        """Return the bytes read, the bytes written and the commands of each volume that has a LUN."""
        return {
            configured.name: (unit.counters.bytes_read, unit.counters.bytes_written, unit.counters.commands)
            for configured in self._settings.all_volumes
            if (unit := self.unit_of(configured)) is not None
        }

    # -- the end -----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Refuse all further changes.  Return when none is under way."""
        with self._lock:
            self._stopping = True
            changes = list(self._changes.values())
        for change in changes:
            with change:
                pass

    def close(self) -> None:
        """Sync and close the volumes.  The fabric must have ended."""
        for name, owner in self._volumes.items():
            try:
                owner.close()
            except (block_device.BlockDeviceError, OSError) as error:
                log.error("volume %s did not close cleanly: %s", name, error)


def _bucket(configured: configuration.Volume) -> limits.Bucket | None:
    rate = configured.rate
    return None if rate is None else limits.Bucket(limits.Rate(rate.iops, rate.bandwidth, rate.burst))
