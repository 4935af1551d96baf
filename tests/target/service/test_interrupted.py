# SPDX-License-Identifier: Apache-2.0
"""Work that a stop interrupted is finished by a later job."""

from __future__ import annotations

import pytest

from target.service import interrupted, jobs
from target.service.service import Service
from tests.target.service.conftest import Serve

CHUNK = 64 << 10


def content(service: Service) -> bytes:
    data = bytearray(1 << 20)
    service.inventory.volume("vol0").primary.readv(0, [memoryview(data)])
    return bytes(data)


def rolled_back(service: Service) -> None:
    """Roll vol0 back to a snapshot and copy nothing yet."""
    owner = service.inventory.volume("vol0")
    service.snapshots.create_snapshot("vol0", "a")
    for chunk in range(4):
        owner.device.writev(chunk * CHUNK, [memoryview(bytes([7]) * 512)])
    owner.begin_rollback("a")


def run(work: jobs.Job) -> str:
    work.start()
    assert work.wait(60)
    return work.message().state


def test_rollback_stops_with_the_daemon_and_not_with_the_job(service: Service) -> None:
    rolled_back(service)
    owner = service.inventory.volume("vol0")
    stopped = jobs.Job(1, "test", "vol0", lambda job: interrupted.finish_rollback(owner, job, lambda: True))
    assert run(stopped) == "cancelled"
    assert owner.rolling_back_to is not None
    cancelled = jobs.Job(2, "test", "vol0", lambda job: interrupted.finish_rollback(owner, job, lambda: False))
    cancelled.cancel()
    assert run(cancelled) == "done"
    assert owner.rolling_back_to is None
    assert content(service) == bytes(1 << 20)


def test_rollback_is_finished_at_the_next_start(serve: Serve) -> None:
    rolled_back(serve())
    service = serve()
    (job,) = service.jobs.all()
    assert (job.kind, job.subject) == ("restore", "vol0@a")
    assert job.wait(60)
    assert job.message().state == "done"
    assert content(service) == bytes(1 << 20)


def test_nothing_to_finish_is_done_at_once(service: Service) -> None:
    owner = service.inventory.volume("vol0")

    def work(job: jobs.Job) -> None:
        interrupted.finish_rollback(owner, job, lambda: pytest.fail("there is nothing to interrupt"))
        interrupted.finish_deletions(owner, job)

    assert run(jobs.Job(1, "test", "vol0", work)) == "done"
