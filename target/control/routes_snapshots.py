# SPDX-License-Identifier: Apache-2.0
"""The requests for snapshots: take, show, label, export, verify, compare, roll back to, delete."""

from __future__ import annotations

from typing import Annotated

import fastapi
from fastapi import responses

from target import messages
from target.control import job_stream
from target.exports import jobs
from target.service.jobs import Job
from target.service.service import Service
from target.service.snapshots import MAX_CELLS


def routes(service: Service) -> fastapi.APIRouter:
    """Return the requests."""
    router = fastapi.APIRouter(prefix="/v1")

    @router.get("/snapshots")
    def all_snapshots() -> list[messages.Snapshot]:
        """List the snapshots of all volumes, oldest first."""
        return list(service.snapshots.list_snapshots())

    @router.get("/volumes/{volume}/snapshots")
    def snapshots(volume: str) -> list[messages.Snapshot]:
        """List the snapshots of a volume, oldest first."""
        return list(service.snapshots.list_snapshots(volume))

    @router.post("/volumes/{volume}/snapshots", status_code=201)
    def create_snapshot(volume: str, request: messages.CreateSnapshot) -> messages.Taken:
        """Take a snapshot. Its LUNs are there when the answer comes."""
        return service.snapshots.create_snapshot(
            volume,
            request.name,
            request.labels,
            hold=request.hold,
            expires=request.expires,
            mapped=request.mapped,
        )

    @router.get("/volumes/{volume}/snapshots/{name}")
    def snapshot(volume: str, name: str) -> messages.SnapshotDetails:
        """Show one snapshot."""
        return service.snapshots.show_snapshot(volume, name)

    @router.get("/volumes/{volume}/snapshots/{name}/changes")
    def changes(
        volume: str, name: str, cells: Annotated[int, fastapi.Query(ge=1, le=MAX_CELLS)] = 1024
    ) -> messages.Changes:
        """Show the parts of the volume that have changed since the snapshot."""
        return service.snapshots.changes(volume, name, cells)

    @router.post("/volumes/{volume}/snapshots/{name}/export", status_code=202)
    def export(volume: str, name: str, request: messages.Export, held: bool = False) -> messages.Job:
        """Begin a job that writes the snapshot's content into a file on the daemon's machine.

        A job that is `held` is cancelled when its client goes away, see `/jobs/{number}/hold`.
        """
        return _held(jobs.export(service, volume, name, request), held)

    @router.post("/volumes/{volume}/snapshots/{name}/stream", response_class=responses.StreamingResponse)
    def stream(volume: str, name: str, request: messages.Stream) -> fastapi.Response:
        """Answer with the snapshot's content as a raw image, and name the job that reads it in the header `Wolun-Job`.

        If the job fails, the connection breaks before all bytes are there.
        """
        return job_stream.JobStream(*jobs.open_stream(service, volume, name, request))

    @router.delete("/volumes/{volume}/snapshots/{name}", status_code=202)
    def delete_snapshot(volume: str, name: str, damaged: bool = False, force: bool = False) -> messages.Job:
        """Begin a job that deletes the snapshot; often it has ended when the answer comes.

        Blocks that cannot be read stop the job, unless `damaged` is set; then they are damaged in the next older
        snapshot.  The request is refused while an initiator reads the snapshot, unless `force` is set.
        """
        job = service.snapshots.delete_snapshot(volume, name, damaged=damaged, force=force)
        job.wait(0.2)
        return job.message()

    @router.post("/volumes/{volume}/snapshots/{name}/clones", status_code=201)
    def clone(volume: str, name: str, request: messages.CreateClone) -> messages.Clone:
        """Make a writable clone of the snapshot. Its LUN is there when the answer comes."""
        return service.clones.create(volume, name, request)

    @router.get("/clones")
    def clones() -> list[messages.Clone]:
        """List the clones of all snapshots."""
        return service.clones.list_clones()

    @router.get("/clones/{name}")
    def show_clone(name: str) -> messages.Clone:
        """Show one clone."""
        return service.clones.show(name)

    @router.delete("/clones/{name}", status_code=204)
    def delete_clone(name: str, force: bool = False) -> None:
        """Delete a clone with its data. The request is refused while an initiator uses it, unless `force` is set."""
        service.clones.delete(name, force=force)

    @router.post("/groups", status_code=201)
    def create_group(request: messages.CreateGroup) -> list[messages.Taken]:
        """Take snapshots of several volumes at one moment: all of them, or none."""
        return service.snapshots.create_group(
            request.name, request.volumes, request.labels, hold=request.hold, expires=request.expires
        )

    @router.post("/volumes/{volume}/snapshots/{name}/restore", status_code=202)
    def restore_snapshot(
        volume: str, name: str, force: bool = False, damaged: bool = False, outside: bool = False
    ) -> messages.Job:
        """Begin a job that rolls the volume back to the snapshot.

        Once its `total` is not 0, the job has taken effect and cannot be cancelled.  The request is refused while
        initiators reach the volume, unless `force` is set.  Damaged blocks prevent the rollback or stop it, unless
        `damaged` is set; then the volume gets them as they are.  Data that initiators wrote to a write-once LUN of the
        snapshot prevents it, too, unless `outside` is set.
        """
        job = service.reshaping.restore(volume, name, force=force, damaged=damaged, outside=outside)
        job.wait(0.2)
        return job.message()

    @router.post("/volumes/{volume}/snapshots/{name}/verify", status_code=202)
    def verify(volume: str, name: str, held: bool = False) -> messages.Job:
        """Begin a job that compares all the data the snapshot needs with its checksums; its result is a Verification.

        `held` is that of an export.
        """
        return _held(jobs.verify(service, volume, name), held)

    @router.post("/volumes/{volume}/snapshots/{name}/diff", status_code=202)
    def diff(volume: str, name: str, request: messages.FindChanges, held: bool = False) -> messages.Job:
        """Begin a job that finds the changes since the snapshot; its result is a Difference.

        `held` is that of an export.
        """
        job = jobs.diff(service, volume, name, request)
        job.wait(0.2)
        return _held(job, held)

    @router.patch("/volumes/{volume}/snapshots/{name}")
    def change(volume: str, name: str, request: messages.ChangeSnapshot) -> messages.Snapshot:
        """Rename a snapshot, hold or release it, change when it expires, map or unmap its LUNs."""
        return service.snapshots.change_snapshot(volume, name, request)

    @router.patch("/volumes/{volume}/snapshots/{name}/labels")
    def label(volume: str, name: str, request: messages.ChangeLabels) -> messages.Snapshot:
        """Set labels of a snapshot, or remove some."""
        return service.snapshots.label_snapshot(volume, name, request.labels)

    return router


def _held(job: Job, held: bool) -> messages.Job:
    """Return the message about a new job, which expects a client that holds it if it is `held`."""
    if held:
        job.expect_holder()
    return job.message()
