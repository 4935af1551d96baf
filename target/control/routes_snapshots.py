# SPDX-License-Identifier: Apache-2.0
"""The control socket's requests for backups: label a snapshot; verify one, find what changed, as jobs with a result."""

from __future__ import annotations

import fastapi

from target import messages
from target.exports import jobs as backups
from target.service import problems, service

REFUSALS: dict[int | str, dict[str, object]] = {"default": {"model": messages.Refusal}}


def routes(served: service.Service) -> fastapi.APIRouter:
    """The requests there are."""
    router = fastapi.APIRouter(prefix="/v1", responses=REFUSALS)

    @router.post("/volumes/{volume}/snapshots/{name}/verify", status_code=202)
    def verify(volume: str, name: str) -> messages.Job:
        """Compare all that the snapshot needs with its checksums: a job whose result is a Verification."""
        return backups.verify(served, volume, name).message()

    @router.post("/volumes/{volume}/snapshots/{name}/diff", status_code=202)
    def diff(volume: str, name: str, request: messages.FindChanges) -> messages.Job:
        """What changed since the snapshot: a job whose result is a Difference."""
        job = backups.diff(served, volume, name, request)
        job.wait(0.2)
        return job.message()

    @router.patch("/volumes/{volume}/snapshots/{name}/labels")
    def label(volume: str, name: str, request: messages.ChangeLabels) -> messages.Snapshot:
        """Give a snapshot labels, or take some away."""
        return served.label_snapshot(volume, name, request.labels)

    @router.get("/jobs/{number}/result")
    def result(number: int) -> messages.Verification | messages.Difference:
        """What a job found out."""
        found = served.jobs.job(number).result
        if not isinstance(found, messages.Verification | messages.Difference):
            raise problems.no_result(number)
        return found

    return router
