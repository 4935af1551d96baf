# SPDX-License-Identifier: Apache-2.0
"""The requests for jobs: show, wait for, cancel, and show the results of those that have one."""

from __future__ import annotations

import asyncio
from typing import Annotated

import fastapi

from target import messages
from target.service import jobs, problems

MAX_WAIT_SECONDS = 10.0
_HOLD_SECONDS = 0.1


def routes(running: jobs.Jobs) -> fastapi.APIRouter:
    """Return the requests."""
    router = fastapi.APIRouter(prefix="/v1")

    @router.get("/jobs")
    def all_jobs() -> list[messages.Job]:
        """List the jobs that run, and the last ones that ended."""
        return [job.message() for job in running.all()]

    @router.get("/jobs/{number}")
    def one_job(number: int, wait: Annotated[float, fastapi.Query(ge=0, le=MAX_WAIT_SECONDS)] = 0) -> messages.Job:
        """Show one job. The answer comes when it has ended, or after `wait` seconds."""
        job = running.job(number)
        job.wait(wait)
        return job.message()

    @router.get("/jobs/{number}/hold")
    async def hold(number: int, request: fastapi.Request) -> messages.Job:
        """Answer when the job has ended.  If the client goes away before, the job is cancelled."""
        job = running.job(number)
        job.hold()
        while not job.ended:
            if await request.is_disconnected():
                job.cancel()
                break
            await asyncio.sleep(_HOLD_SECONDS)
        return job.message()

    @router.delete("/jobs/{number}")
    def cancel(number: int) -> messages.Job:
        """Ask a job to stop."""
        job = running.job(number)
        job.cancel()
        return job.message()

    @router.get("/jobs/{number}/result")
    def result(number: int) -> messages.Verification | messages.Difference | messages.Conversion:
        """Show the result of a job."""
        found = running.job(number).result
        if not isinstance(found, messages.Verification | messages.Difference | messages.Conversion):
            raise problems.no_result(number)
        return found

    return router
