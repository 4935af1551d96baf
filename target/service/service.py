# SPDX-License-Identifier: Apache-2.0
"""What the daemon does on request: the operations behind the control socket, on open volumes and the SCSI target.

No HTTP here and no iSCSI: requests come as arguments, answers go as `messages`, refusals as `problems.Problem`.
Everything may be called from any thread.

A volume that cannot be opened is not served; the others are, and `status` says what is wrong with it.

(Longer than most modules here: operations that change what is served exclude each other by the locks kept here.)
"""

from __future__ import annotations

import datetime
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import target
from lun_backends import block_device
from lun_backends.backups import pieces
from lun_backends.files import os_error
from lun_backends.refused import Refused
from lun_backends.volumes import group, volume
from lun_backends.volumes.errors import DeletionStopped
from lun_backends.volumes.snapshot import Snapshot
from target import codec, messages
from target.configuration import settings
from target.exports import image_file
from target.fabrics import access
from target.iscsi import errors
from target.iscsi.session_info import SessionInfo
from target.scsi import logical_unit, scsi_target
from target.service import (
    alerts,
    jobs,
    lun_numbers,
    problems,
    reshaping,
    scheduler,
    shared_storage,
    snapshot_events,
    unit_state,
    volumes,
)
from target.service.rates import Rates

log = logging.getLogger(__name__)

MAX_CELLS = 65536


def view_uuid(snapshot: uuid.UUID) -> uuid.UUID:
    """The identity of a snapshot's view; that of its write-once LUN is the snapshot's own."""
    return uuid.uuid5(snapshot, "view")


class Service:
    """Everything that is served, and what can be asked of it."""

    def __init__(self, configured: settings.Settings, state_dir: Path) -> None:
        """Open the volumes and give them their LUNs.  Raises lun_numbers.Damaged, OSError."""
        self.settings = configured
        self.state_dir = state_dir
        self._unit_state = unit_state.UnitState(state_dir)
        self.jobs = jobs.Jobs()
        self.scsi = scsi_target.ScsiTarget(configured.target)
        self.portal_addresses: Callable[[], Sequence[str]] = lambda: configured.portal.listen
        self.sessions: Callable[[], Sequence[SessionInfo]] = list
        self.failed: dict[str, str] = {}
        self.access = access.Access(access.Rules.read(configured.access, state_dir))
        self.failed_logins: Callable[[], Mapping[errors.LoginStatus, int]] = dict
        self._started = datetime.datetime.now(datetime.UTC)
        self._stopping = False
        self._lock = threading.Lock()
        self._volumes: dict[str, volume.Volume] = {}
        self._numbers = lun_numbers.LunNumbers(state_dir / "luns.json", set(configured.fixed_luns))
        self.rates = Rates(self._counters)
        self.reshaping = reshaping.Reshaping(self)
        self.scheduler = scheduler.Scheduler(self)
        for each in configured.volumes:
            try:
                self._serve(each)
            except (block_device.BlockDeviceError, Refused, problems.Problem, OSError) as error:
                self.failed[each.name] = str(error)
                log.error("volume %s is not served: %s", each.name, error)
        gone = {
            identity
            for identity, numbers in self._numbers.all().items()
            if numbers.volume in self._volumes
            and all(identity != snapshot.uuid for snapshot in self._volumes[numbers.volume].snapshots)
        }
        self._numbers.free(gone)
        group.sweep(state_dir / "volumes")
        self.sharing = shared_storage.Sharing(configured, state_dir, self.scsi)
        self.failed.update(self.sharing.failed)

    @property
    def stopping(self) -> bool:
        """Whether the daemon is on its way out."""
        return self._stopping

    @property
    def open_volumes(self) -> Mapping[str, volume.Volume]:
        """The volumes that are served, by name."""
        return self._volumes

    def fabric_started(
        self,
        addresses: Callable[[], Sequence[str]],
        sessions: Callable[[], Sequence[SessionInfo]],
        failed_logins: Callable[[], Mapping[errors.LoginStatus, int]],
    ) -> None:
        """Initiators can connect to `addresses` now."""
        self.portal_addresses = addresses
        self.sessions = sessions
        self.failed_logins = failed_logins
        self.rates.start()
        self.scheduler.start()

    def _serve(self, each: settings.Volume) -> None:
        for numbers in self._numbers.all().values():
            if each.lun in (numbers.view, numbers.write_once):
                raise problems.lun_taken(each.lun, numbers.volume)
        told = snapshot_events.Watch(each.name, lambda: self._unit_of(each))
        opened = volumes.open_volume(each, self.state_dir, told)
        try:
            journal = self._unit_state.journal(opened)
            for snapshot in opened.snapshots:
                self._publish(opened, snapshot)
            for name in each.snapshots:
                if all(name != snapshot.name for snapshot in opened.snapshots):
                    self._publish(opened, opened.create_snapshot(name))
                    log.info("took %s@%s, as the configuration asks", each.name, name)
            kind = logical_unit.UnitKind.PRIMARY
            physical = each.physical_block_size
            unit = self._unit_state.unit(opened, opened.device, opened.uuid, kind, each.name, journal, physical)
            if each.lun is not None:
                self.scsi.add_lun(each.lun, unit)
        except BaseException:
            for snapshot in opened.snapshots:
                self._withdraw(snapshot)
            opened.close()
            raise
        self._volumes = {**self._volumes, each.name: opened}  # others may be looking through the old one
        if opened.rolling_back_to is not None:
            self.jobs.start(
                "restore", f"{each.name}@{opened.rolling_back_to.name}", lambda job: self._resume(opened, job)
            )
        elif any(snapshot.deleting for snapshot in opened.snapshots):
            self.jobs.start("delete", each.name, lambda job: self._resume(opened, job))

    # -- volumes that come and go (administration.py asks, and keeps `settings` in step) -------------------------------

    def lowest_free_lun(self) -> int:
        """A number for a new volume.  Raises Problem when there is none."""
        return self._numbers.lowest_free()

    def add_volume(self, wanted: settings.Volume) -> None:
        """Open a volume, or make it, and serve it.  Raises Problem."""
        with self._lock:
            if self._stopping:
                raise problems.stopping()
            if wanted.lun is not None:
                self._numbers.reserve(wanted.lun)
            try:
                with problems.translated(f"volume {wanted.name} cannot be served"):
                    self._serve(wanted)
            except problems.Problem:
                if wanted.lun is not None:
                    self._numbers.release(wanted.lun)
                raise
            self.failed = {name: why for name, why in self.failed.items() if name != wanted.name}

    def remove_volume(self, wanted: settings.Volume) -> None:
        """Serve a volume no more; its data stays.  Returns when nothing runs on it.  Raises Problem."""
        with self._lock:
            if self._stopping:
                raise problems.stopping()
            opened = self._volumes.get(wanted.name)
            self._volumes = {name: other for name, other in self._volumes.items() if name != wanted.name}
            self.failed = {name: why for name, why in self.failed.items() if name != wanted.name}
            if opened is not None:
                if wanted.lun is not None:
                    self.scsi.remove_lun(wanted.lun)
                for snapshot in opened.snapshots:
                    self._withdraw(snapshot)
                with problems.translated(f"volume {wanted.name} did not close cleanly"):
                    opened.close()
            if wanted.lun is not None:
                self._numbers.release(wanted.lun)

    # -- LUNs ----------------------------------------------------------------------------------------------------

    def _publish(self, owner: volume.Volume, snapshot: Snapshot) -> lun_numbers.Numbers | None:
        """Give a snapshot its two LUNs, those it had before if it had any; none if it is being deleted."""
        if snapshot.deleting:
            return None
        numbers = self._numbers.allot(snapshot.uuid, owner.name)
        title = f"{owner.name}@{snapshot.name}"
        kinds = logical_unit.UnitKind
        for number, device, identity, kind in (
            (numbers.view, snapshot.view, view_uuid(snapshot.uuid), kinds.SNAPSHOT_VIEW),
            (numbers.write_once, snapshot.write_once, snapshot.uuid, kinds.WRITE_ONCE),
        ):
            name = title if kind is kinds.SNAPSHOT_VIEW else f"{title}/write-once"
            self.scsi.add_lun(number, self._unit_state.unit(owner, device, identity, kind, name))
        return numbers

    def _withdraw(self, snapshot: Snapshot) -> None:
        """Take a snapshot's LUNs away from the initiators; returns when nothing runs on them any more."""
        numbers = self._numbers.all().get(snapshot.uuid)
        for number in (numbers.view, numbers.write_once) if numbers else ():
            if number in self.scsi.luns:
                self.scsi.remove_lun(number)

    def _unit_of(self, each: settings.Volume) -> logical_unit.LogicalUnit | None:
        return None if each.lun is None else self.scsi.luns.get(each.lun)

    @property
    def portal_address(self) -> str:
        """Where initiators connect, HOST:PORT; the first such place."""
        return next(iter(self.portal_addresses()), "tcm_loop")

    def url(self, lun: int | None) -> str:
        """What libiscsi and qemu call a LUN; empty for None."""
        return "" if lun is None else f"iscsi://{self.portal_address}/{self.settings.target}/{lun}"

    # -- finding -------------------------------------------------------------------------------------------------

    def served(self, name: str) -> volume.Volume:
        """The volume of that name.  Raises Problem."""
        found = self._volumes.get(name)
        if found is None:
            if name in self.failed:
                raise problems.volume_failed(name, self.failed[name])
            raise problems.no_such_volume(name, self._volumes)
        return found

    def find(self, volume_name: str, name: str) -> tuple[volume.Volume, Snapshot]:
        """The snapshot of that name, and its volume.  Raises Problem."""
        owner = self.served(volume_name)
        for snapshot in owner.snapshots:
            if snapshot.name == name:
                return owner, snapshot
        raise problems.no_such_snapshot(volume_name, name, [snapshot.name for snapshot in owner.snapshots])

    def users(self, which: Callable[[logical_unit.LogicalUnit], bool]) -> list[str]:
        """The initiators that are logged in and see such a unit, each with where it came from if that is known."""
        found = {
            nexus.initiator: "" for nexus in self.scsi.nexuses if any(which(unit) for unit in nexus.seen().values())
        }
        for each in self.sessions():
            if each.initiator in found:
                found[each.initiator] = found[each.initiator] or each.address
            elif each.target is not None and any(
                map(which, self.access.rules.seen(each.initiator, self.scsi.luns).values())
            ):
                found[each.initiator] = each.address  # of the kernel's, which has no nexus here
        return [f"{name} from {address}" if address else name for name, address in sorted(found.items())]

    # -- snapshots -----------------------------------------------------------------------------------------------

    def create_snapshot(
        self, volume_name: str, name: str, labels: Mapping[str, str] | None = None, *, scheduled: bool = False
    ) -> messages.Taken:
        """Take a snapshot and serve it.  Raises Problem."""
        owner = self.served(volume_name)
        with self._lock:
            if self._stopping:
                raise problems.stopping()
            with problems.translated(f"{volume_name}@{name} was not taken"):
                snapshot = owner.create_snapshot(name, labels, scheduled=scheduled)
            self._publish_new([(owner, snapshot)])
        return self._taken(owner, snapshot)

    def create_group(
        self, name: str, volume_names: Sequence[str], labels: Mapping[str, str] | None = None
    ) -> list[messages.Taken]:
        """Take snapshots of several volumes at one moment and serve them.  Raises Problem; then there is none."""
        with self._lock:
            if self._stopping:
                raise problems.stopping()
            owners = [self.served(each) for each in volume_names]
            with problems.translated(f"the group {name} was not taken"):
                taken = list(zip(owners, group.create(owners, name, labels), strict=True))
            self._publish_new(taken)
        return [self._taken(owner, snapshot) for owner, snapshot in taken]

    def _publish_new(self, taken: Sequence[tuple[volume.Volume, Snapshot]]) -> None:
        """Give new snapshots their LUNs, or take all of them back.  Raises Problem."""
        try:
            for owner, snapshot in taken:
                self._publish(owner, snapshot)
        except (problems.Problem, OSError) as error:
            for owner, snapshot in taken:
                self._withdraw(snapshot)
                with problems.translated(f"{owner.name}@{snapshot.name} cannot be served, nor taken back"):
                    owner.delete_snapshot(snapshot.name)
                self._after_deletion(owner, snapshot)
            if isinstance(error, OSError):
                raise problems.file_failed(self.state_dir / "luns.json", os_error.reason(error)) from error
            raise

    def _taken(self, owner: volume.Volume, snapshot: Snapshot) -> messages.Taken:
        log.info("took %s@%s", owner.name, snapshot.name)
        shown = self._shown(owner, snapshot)
        return messages.Taken(
            **codec.fields(shown),
            writes_held_seconds=snapshot.held_seconds or 0.0,
            view_url=self.url(shown.view_lun),
            write_once_url=self.url(shown.write_once_lun),
        )

    def snapshots(self, volume_name: str | None = None) -> Iterator[messages.Snapshot]:
        """The snapshots of one volume, or of all, oldest first.  Raises Problem."""
        owners = list(self._volumes.values()) if volume_name is None else [self.served(volume_name)]
        for owner in owners:
            for snapshot in owner.snapshots:
                yield self._shown(owner, snapshot)

    def snapshot(self, volume_name: str, name: str) -> messages.SnapshotDetails:
        """One snapshot.  Raises Problem."""
        owner, snapshot = self.find(volume_name, name)
        shown = self._shown(owner, snapshot)
        return messages.SnapshotDetails(
            **codec.fields(shown),
            chunk_size=owner.chunk_size,
            view_url=self.url(shown.view_lun),
            write_once_url=self.url(shown.write_once_lun),
        )

    def label_snapshot(self, volume_name: str, name: str, changes: Mapping[str, str | None]) -> messages.Snapshot:
        """Give a snapshot labels, or take away those that are None.  Raises Problem."""
        owner, _ = self.find(volume_name, name)
        with problems.translated(f"{volume_name}@{name} keeps the labels it has"):
            return self._shown(owner, owner.label_snapshot(name, changes))

    def changes(self, volume_name: str, name: str, cells: int) -> messages.Changes:
        """Which parts of the volume have changed since a snapshot.  Raises Problem."""
        owner, snapshot = self.find(volume_name, name)
        chunks = -(-owner.device.size // owner.chunk_size)
        cells = max(1, min(cells, MAX_CELLS, chunks))
        with problems.translated(f"what changed since {volume_name}@{name} is not known"):
            fractions = tuple(owner.changed_map(name, cells))
        # A cell is as many chunks as `changed_map` counted in it.
        edges = [cell * chunks // cells for cell in range(cells + 1)]
        changed = sum(round(fractions[cell] * (edges[cell + 1] - edges[cell])) for cell in range(cells))
        return messages.Changes(
            self._shown(owner, snapshot),
            owner.chunk_size,
            min(changed * owner.chunk_size, owner.device.size),
            tuple(round(fraction, 4) for fraction in fractions),
        )

    def delete_snapshot(self, volume_name: str, name: str) -> jobs.Job:
        """Begin to delete a snapshot: its LUNs are gone when this returns.  Raises Problem."""
        owner, snapshot = self.find(volume_name, name)

        def work(job: jobs.Job) -> None:
            self._withdraw(snapshot)
            try:
                with problems.translated(f"{volume_name}@{name} was not deleted"):
                    owner.delete_snapshot(name, snapshot.uuid, progress=job.progress, cancelled=job.cancelled)
            except DeletionStopped:
                raise jobs.Cancelled from None
            finally:
                self._after_deletion(owner, snapshot)

        return self.jobs.start("delete", f"{volume_name}@{name}", work)

    def _resume(self, owner: volume.Volume, job: jobs.Job) -> None:
        """Go on with what a crash interrupted."""
        self.reshaping.go_on(owner, job)
        before = owner.snapshots
        try:
            with problems.translated(f"deleting snapshots of {owner.name} did not go on"):
                owner.resume_deletions(progress=job.progress, cancelled=job.cancelled)
        except DeletionStopped:
            raise jobs.Cancelled from None
        finally:
            for snapshot in before:
                self._after_deletion(owner, snapshot)

    def _after_deletion(self, owner: volume.Volume, snapshot: Snapshot) -> None:
        """Give the LUN numbers of a snapshot back if it is gone, and its LUNs if it is not."""
        if snapshot not in owner.snapshots:
            self._numbers.free({snapshot.uuid})
            self._unit_state.forget(owner, (snapshot.uuid, view_uuid(snapshot.uuid)))
            log.info("deleted %s@%s", owner.name, snapshot.name)
        elif not snapshot.deleting:
            numbers = self._numbers.all().get(snapshot.uuid)
            if numbers is None or numbers.view not in self.scsi.luns:
                self._publish(owner, snapshot)

    def exportable(self, volume_name: str, name: str, path: Path, *, overwrite: bool) -> tuple[volume.Volume, Snapshot]:
        """`find`, for what is to be written to `path`.  Raises Problem."""
        owner, snapshot = self.find(volume_name, name)
        if snapshot.unreadable:
            what = f"{volume_name}@{name} cannot be exported"
            raise problems.refused(what, snapshot.unreadable, "use another snapshot")
        image_file.check_place(path, self._volumes.values(), overwrite=overwrite)
        return owner, snapshot

    def export(self, volume_name: str, name: str, path: Path, *, overwrite: bool, anyway: bool = False) -> jobs.Job:
        """Begin to write a snapshot's content into a file on this machine.  Raises Problem."""
        _, snapshot = self.exportable(volume_name, name, path, overwrite=overwrite)

        def work(job: jobs.Job) -> None:
            job.progress(0, snapshot.view.size)
            with problems.translated(f"{volume_name}@{name} was not exported"):
                if not anyway:
                    image_file.check_room(path, image_file.data_bytes(snapshot.view))
                image_file.export(
                    pieces.export(snapshot.view),
                    snapshot.view.size,
                    path,
                    overwrite=overwrite,
                    progress=job.progress,
                    cancelled=job.cancelled,
                )
            log.info("exported %s@%s to %s", volume_name, name, path)

        return self.jobs.start("export", f"{volume_name}@{name}", work)

    def _shown(self, owner: volume.Volume, snapshot: Snapshot) -> messages.Snapshot:
        numbers = None if snapshot.deleting else self._numbers.all().get(snapshot.uuid)
        preserved = snapshot.preserved_bytes
        return messages.Snapshot(
            volume=owner.name,
            name=snapshot.name,
            uuid=str(snapshot.uuid),
            taken=_utc(snapshot.taken_at),
            state=snapshot.state.value,
            reason=snapshot.invalid_reason,
            size=snapshot.view.size,
            used_bytes=snapshot.used_bytes,
            preserved_bytes=preserved,
            preserved_percent=round(100 * preserved / snapshot.view.size, 4),
            view_lun=numbers.view if numbers else None,
            write_once_lun=numbers.write_once if numbers else None,
            labels=dict(snapshot.labels),
            scheduled=snapshot.scheduled,
        )

    # -- looking -------------------------------------------------------------------------------------------------

    def _counters(self) -> Mapping[str, tuple[int, int, int]]:
        return {
            each.name: (unit.counters.bytes_read, unit.counters.bytes_written, unit.counters.commands)
            for each in self.settings.volumes
            if (unit := self._unit_of(each)) is not None
        }

    def status(self) -> messages.Status:
        """Everything at a glance."""
        space = shutil.disk_usage(self.state_dir)
        troubles = tuple(alerts.current(self, space.free, space.total))
        return messages.Status(
            version=target.VERSION,
            pid=os.getpid(),
            started=_utc(self._started),
            state_dir=str(self.state_dir),
            fabric=self.settings.fabric.value,
            target=self.settings.target,
            portal=self.portal_address,
            portals=tuple(self.portal_addresses()),
            space_free_bytes=space.free,
            space_total_bytes=space.total,
            volumes=tuple(self.volume_status(each) for each in self.settings.volumes),
            sessions=tuple(
                messages.Session(
                    each.initiator,
                    each.address,
                    each.target,
                    None if each.since is None else _utc(datetime.datetime.fromtimestamp(each.since, datetime.UTC)),
                    each.commands,
                    each.bytes_read,
                    each.bytes_written,
                )
                for each in self.sessions()
            ),
            jobs=tuple(job.message() for job in self.jobs.all() if not job.ended),
            trouble=tuple(alert.message for alert in troubles),
            alerts=troubles,
        )

    def alerts(self) -> list[messages.Alert]:
        """What needs somebody's attention."""
        space = shutil.disk_usage(self.state_dir)
        return list(alerts.current(self, space.free, space.total))

    def volume_status(self, each: settings.Volume) -> messages.Volume:
        """One volume, as it is being served."""
        opened = self._volumes.get(each.name)
        read, written, commands = self.rates.of(each.name)
        primary = volumes.primary_path(each, self.state_dir)
        return messages.Volume(
            name=each.name,
            lun=each.lun,
            state="online" if opened else "failed",
            trouble=opened.in_doubt if opened else self.failed.get(each.name, ""),
            restoring=opened.rolling_back_to.name if opened and opened.rolling_back_to else None,
            size=opened.device.size if opened else each.size or 0,
            block_size=each.block_size,
            chunk_size=each.chunk_size,
            durability=each.durability.value,
            primary=str(primary),
            primary_used_bytes=_used(primary),
            snapshots=len(opened.snapshots) if opened else 0,
            snapshot_bytes=sum(snapshot.used_bytes for snapshot in opened.snapshots) if opened else 0,
            preserved_bytes=opened.space.used if opened else 0,
            preserved_limit=each.limit,
            on_error=each.on_error.value,
            read_bytes_per_second=read,
            written_bytes_per_second=written,
            commands_per_second=commands,
        )

    # -- the end -------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Take no more requests, cancel the jobs.  To be called before the fabric ends."""
        with self._lock:
            self._stopping = True
        self.jobs.stop()
        self.scheduler.close()
        self.rates.close()

    def close(self) -> None:
        """Sync and close the volumes.  To be called when the fabric has ended."""
        for name, opened in self._volumes.items():
            try:
                opened.close()
            except (block_device.BlockDeviceError, OSError) as error:
                log.error("volume %s did not close cleanly: %s", name, error)
        self.sharing.close()


def _used(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


def _utc(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
