# SPDX-License-Identifier: Apache-2.0
"""The requests for snapshots: take, list, show, label, compare with the volume, delete.

A request names a volume and a snapshot.  Its answer is one of `messages`, or a job; its refusal is a Problem.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence

from lun_backends import tracking
from lun_backends.volumes import errors, group, interface, keeping, manifest
from lun_backends.volumes.errors import DeletionStopped
from lun_backends.volumes.snapshot import Snapshot
from lun_backends.volumes.volume import Volume
from target import codec, messages
from target.service import cloned, damage_met, moments, problems, quiescing, volumes
from target.service.inventory import Inventory
from target.service.jobs import Cancelled, Job, Jobs
from target.service.pools import Pools

log = logging.getLogger(__name__)

MAX_CELLS = 65536


class Snapshots:
    """The snapshots of all volumes of an inventory.  Thread-safe."""

    def __init__(self, inventory: Inventory, jobs: Jobs, pools: Pools) -> None:
        self._inventory = inventory
        self._jobs = jobs
        self._pools = pools

    def create_snapshot(
        self,
        volume_name: str,
        name: str,
        labels: Mapping[str, str] | None = None,
        *,
        scheduled: bool = False,
        hold: str = "",
        expires: str | None = None,
        mapped: bool | None = None,
    ) -> messages.Taken:
        """Take a snapshot and serve it.  `hold`, `expires` and `mapped` are those of the message.  Raise Problem."""
        notes = _notes(hold, expires)
        owner = self._inventory.volume(volume_name)
        with self._inventory.changing([volume_name]):
            with (
                self._quiet([volume_name], name) as quiet,
                problems.translated(f"{volume_name}@{name} was not taken"),
            ):
                notes = dataclasses.replace(notes, consistency=_least(quiet))
                snapshot = owner.create_snapshot(name, labels, scheduled=scheduled, notes=notes)
                _check(quiet, [owner], name)
            self._publish([(owner, snapshot)])
        if mapped is not None and mapped != (self._inventory.view_lun(snapshot) is not None):
            self._inventory.order_mapping(owner, snapshot, view=mapped, write_once=None, force=True)
        return self._taken(owner, snapshot)

    def keep_received(
        self,
        owner: Volume,
        name: str,
        labels: Mapping[str, str],
        *,
        identity: uuid.UUID,
        taken_at: datetime.datetime,
        consistency: manifest.Consistency,
    ) -> None:
        """Take the snapshot that a stream from another host ends with, and serve it.  Raise Problem."""
        with self._inventory.changing([owner.name]):
            with problems.translated(f"{owner.name}@{name} was not taken"):
                notes = manifest.Notes(consistency=consistency)
                snapshot = owner.create_snapshot(name, labels, notes=notes, identity=identity, taken_at=taken_at)
            self._publish([(owner, snapshot)])

    def create_group(
        self,
        name: str,
        volume_names: Sequence[str],
        labels: Mapping[str, str] | None = None,
        *,
        scheduled: bool = False,
        hold: str = "",
        expires: str | None = None,
    ) -> list[messages.Taken]:
        """Take snapshots of several volumes at one moment and serve them.  Raise Problem; then none was taken."""
        notes = _notes(hold, expires)
        for volume_name in volume_names:
            if not isinstance(self._inventory.volume(volume_name), Volume):
                raise problems.shared_in_group(volume_name)
        owners = [self._inventory.own_volume(volume_name) for volume_name in volume_names]
        with self._inventory.changing(volume_names):
            with (
                self._quiet(volume_names, name) as quiet,
                problems.translated(f"the group {name} was not taken", several=volume_names),
            ):
                notes = dataclasses.replace(notes, consistency=_least(quiet))
                taken = list(
                    zip(owners, group.create(owners, name, labels, scheduled=scheduled, notes=notes), strict=True)
                )
                _check(quiet, owners, name)
            self._publish(taken)
        return [self._taken(owner, snapshot) for owner, snapshot in taken]

    @contextlib.contextmanager
    def _quiet(self, volume_names: Sequence[str], name: str) -> Iterator[list[quiescing.Quiet]]:
        """Be quiet on all these volumes, and yield the quiet of each.  Raise Problem."""
        state_dir = self._inventory.state_dir
        reached = [quiescing.Quiet(manifest.Consistency.CRASH)]
        with contextlib.ExitStack() as quiet:
            configured = [volume for volume in self._inventory.settings.volumes if volume.name in volume_names]
            if configured and len(configured) == len(volume_names):
                reached = [
                    quiet.enter_context(
                        quiescing.quiet(volume, name, [state_dir, volumes.primary_path(volume, state_dir)])
                    )
                    for volume in configured
                ]
            yield reached

    def _publish(self, taken: Sequence[tuple[interface.Volume, interface.Snapshot]]) -> None:
        """Serve new snapshots; if one cannot be served, delete them all.  Raise Problem."""
        try:
            for owner, snapshot in taken:
                self._inventory.publish(owner, snapshot)
        except (problems.Problem, OSError) as error:
            for owner, snapshot in taken:
                if not isinstance(owner, Volume):
                    continue  # all nodes have it, and this one tries again to serve it
                self._inventory.withdraw(snapshot)
                with problems.translated(f"{owner.name}@{snapshot.name} can neither be served nor deleted"):
                    owner.delete_snapshot(snapshot.name)
                self._inventory.after_deletion(owner, snapshot)
            if isinstance(error, OSError):
                path = self._inventory.state_dir / "luns.json"
                raise problems.write_failed(path, error) from error
            raise

    def _taken(self, owner: interface.Volume, snapshot: interface.Snapshot) -> messages.Taken:
        log.info("took %s@%s", owner.name, snapshot.name)
        shown = self._shown(owner, snapshot)
        return messages.Taken(
            **codec.fields(shown),
            writes_held_seconds=snapshot.held_seconds or 0.0,
            view_url=self._inventory.url(shown.view_lun),
            write_once_url=self._inventory.url(shown.write_once_lun),
        )

    def list_snapshots(self, volume_name: str | None = None) -> Iterator[messages.Snapshot]:
        """Yield the snapshots of one volume, or of all, oldest first.  Raise Problem.

        On the storage host of a shared volume, those that nodes took are among them, because the log is here.
        """
        known = self._inventory.open_volumes
        if volume_name is not None and volume_name not in known and self._pools.has(volume_name):
            known = {}
        elif volume_name is not None:
            known = {volume_name: self._inventory.volume(volume_name)}
        for owner in known.values():
            owner.refresh()
            for snapshot in owner.snapshots:
                yield self._shown(owner, snapshot)
        yield from self._pools.snapshots(volume_name)

    def show_snapshot(self, volume_name: str, name: str) -> messages.SnapshotDetails:
        """Return one snapshot.  Raise Problem."""
        owner, snapshot = self._inventory.find(volume_name, name)
        shown = self._shown(owner, snapshot)
        with problems.translated(f"{volume_name}@{name} cannot be shown"):
            outside = sum(written.length for written in owner.written_outside(name))
        return messages.SnapshotDetails(
            **codec.fields(shown),
            chunk_size=owner.chunk_size,
            view_url=self._inventory.url(shown.view_lun),
            write_once_url=self._inventory.url(shown.write_once_lun),
            outside_bytes=outside,
        )

    def label_snapshot(self, volume_name: str, name: str, changes: Mapping[str, str | None]) -> messages.Snapshot:
        """Set labels of a snapshot; remove those whose value is None.  Raise Problem."""
        owner, _ = self._inventory.find(volume_name, name)
        with problems.translated(f"the labels of {volume_name}@{name} were not changed"):
            return self._shown(owner, owner.label_snapshot(name, changes))

    def change_snapshot(self, volume_name: str, name: str, request: messages.ChangeSnapshot) -> messages.Snapshot:
        """Rename a snapshot, hold or release it, or change when it expires.  Raise Problem."""
        owner, snapshot = self._inventory.find(volume_name, name)
        expires = moments.read(request.expires) if request.expires else None
        if request.name is not None and request.name != name:
            self._inventory.check_renaming(owner, snapshot)
        with problems.translated(f"{volume_name}@{name} was not changed"):
            if request.hold is not None:
                owner.hold_snapshot(name, request.hold)
                log.info("%s@%s is %s", volume_name, name, f"held: {request.hold}" if request.hold else "released")
            if request.expires is not None:
                owner.expire_snapshot(name, expires)
            if request.mapped is not None or request.mapped_write_once is not None:
                self._inventory.order_mapping(
                    owner, snapshot, view=request.mapped, write_once=request.mapped_write_once, force=request.force
                )
            if request.name is not None and request.name != name:
                owner.rename_snapshot(name, request.name)
                self._inventory.renamed(owner, snapshot)
                log.info("%s@%s is now %s@%s", volume_name, name, volume_name, request.name)
        return self._shown(owner, snapshot)

    def changes(self, volume_name: str, name: str, cells: int) -> messages.Changes:
        """Return how much of each part (cell) of the volume has changed since a snapshot.  Raise Problem."""
        owner, snapshot = self._inventory.find(volume_name, name)
        grains = tracking.count(owner.device.size)
        cells = max(1, min(cells, MAX_CELLS, grains))
        with problems.translated(f"the changes since {volume_name}@{name} are not known"):
            fractions = tuple(owner.changed_map(name, cells))
        # A cell has as many grains as `changed_map` counted in it.
        edges = [cell * grains // cells for cell in range(cells + 1)]
        changed = sum(round(fractions[cell] * (edges[cell + 1] - edges[cell])) for cell in range(cells))
        return messages.Changes(
            self._shown(owner, snapshot),
            owner.chunk_size,
            min(changed * tracking.GRAIN, owner.device.size),
            tuple(round(fraction, 4) for fraction in fractions),
        )

    def delete_snapshot(self, volume_name: str, name: str, *, damaged: bool = False, force: bool = False) -> Job:
        """Start a job that removes a snapshot's LUNs and deletes the snapshot.

        Older snapshots get its damaged blocks as damaged ones.  With `damaged` so they get blocks that cannot be read, which
        otherwise stop the deletion.  A snapshot that an initiator reads is not deleted, unless `force`.  Raise Problem.
        """
        owner, snapshot = self._inventory.find(volume_name, name)
        if snapshot.hold:
            remedy = f"run `wolun snapshot release {volume_name}@{name}` first"
            raise problems.held(f"{volume_name}@{name}", snapshot.hold, remedy)
        if standing := cloned.names(owner, snapshot):
            with problems.translated(f"{volume_name}@{name} was not deleted"):
                raise errors.cloned(volume_name, name, standing)
        if not force and (users := self._inventory.readers_of(snapshot)):
            raise problems.in_use(f"{volume_name}@{name}", users, "wait until they no longer read it, or use --force")

        def work(job: Job) -> None:
            self._inventory.withdraw(snapshot)
            try:
                with (
                    problems.translated(f"{volume_name}@{name} was not deleted"),
                    damage_met.noted(job, owner) as found,
                ):
                    owner.delete_snapshot(
                        name,
                        snapshot.uuid,
                        progress=job.progress,
                        cancelled=job.cancelled,
                        on_damage=found,
                        accept_loss=damaged,
                    )
            except DeletionStopped:
                raise Cancelled from None
            finally:
                self._inventory.after_deletion(owner, snapshot)

        return self._jobs.start("delete", f"{volume_name}@{name}", work)

    def _shown(self, owner: interface.Volume, snapshot: interface.Snapshot) -> messages.Snapshot:
        preserved = snapshot.preserved_bytes
        return messages.Snapshot(
            volume=owner.name,
            name=snapshot.name,
            uuid=str(snapshot.uuid),
            taken=moments.utc(snapshot.taken_at),
            state=snapshot.state.value,
            reason=snapshot.reason,
            size=snapshot.size,
            used_bytes=snapshot.used_bytes,
            preserved_bytes=preserved,
            preserved_percent=round(100 * preserved / snapshot.size, 4),
            view_lun=self._inventory.view_lun(snapshot),
            write_once_lun=self._inventory.write_once_lun(snapshot),
            labels=dict(snapshot.labels),
            scheduled=snapshot.scheduled,
            hold=snapshot.hold,
            expires=None if snapshot.expires is None else moments.utc(snapshot.expires),
            consistency=snapshot.consistency.value,
            clones=cloned.names(owner, snapshot),
            store=_store_of(owner, snapshot),
        )


def _store_of(owner: interface.Volume, snapshot: interface.Snapshot) -> str:
    """Return the kind of a snapshot's store; an empty text if another host keeps it."""
    if isinstance(owner, Volume) and isinstance(snapshot, Snapshot):
        return owner.store_of(snapshot).value
    return ""


def _least(quiet: Sequence[quiescing.Quiet]) -> manifest.Consistency:
    """Return how consistent a snapshot is: as the volume that is so least."""
    return min((each.reached for each in quiet), key=list(manifest.Consistency).index)


def _check(quiet: Sequence[quiescing.Quiet], owners: Sequence[interface.Volume], name: str) -> None:
    """Delete a snapshot that was just taken, and raise Problem, if a freeze ended before it was taken."""
    try:
        for each in quiet:
            each.check()
    except problems.Problem:
        for owner in owners:
            owner.delete_snapshot(name)
        raise


def _notes(hold: str, expires: str | None) -> manifest.Notes:
    """Return the notes of a new snapshot.  Raise Problem."""
    if fault := keeping.bad_reason(hold):
        raise problems.refused("nothing was taken", fault, "give a shorter reason, on one line")
    return manifest.Notes(hold, moments.read(expires) if expires else None)
