# SPDX-License-Identifier: Apache-2.0
"""An ended job is kept, but not the objects that it worked on."""

from __future__ import annotations

import functools
import gc
import time
import weakref
from collections.abc import Callable

import pytest

from target.service import jobs, problems


class Snapshot:
    """A stand-in for a large object."""


def done(job: jobs.Job, snapshot: Snapshot) -> None:
    job.progress(1, 1)


def cancelled(job: jobs.Job, snapshot: Snapshot) -> None:
    raise jobs.Cancelled


def failed(job: jobs.Job, snapshot: Snapshot) -> None:
    try:
        fails_below(snapshot)
    except OSError as error:
        raise problems.refused("a job", str(error), "try again") from error


def fails_below(snapshot: Snapshot) -> None:
    raise OSError("the disk is gone")


def broken(job: jobs.Job, snapshot: Snapshot) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("work", [done, cancelled, failed, broken], ids=lambda work: work.__name__)
def test_ended_job_does_not_keep_its_objects(work: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The objects go at once, without the garbage collector, which seldom runs."""
    monkeypatch.setattr(jobs.log, "disabled", True)  # pytest keeps what is logged, tracebacks included
    snapshot = Snapshot()
    gone = weakref.ref(snapshot)
    every = jobs.Jobs()
    gc.collect()
    gc.disable()
    try:
        every.start("test", "nothing", functools.partial(work, snapshot=snapshot))
        del snapshot
        (job,) = every.all()
        assert job.wait(60)
        assert gone() is None
        assert job.message().state == ("failed" if work is broken else work.__name__)
    finally:
        gc.enable()


def test_only_the_last_ended_jobs_are_kept() -> None:
    every = jobs.Jobs()
    for _ in range(jobs.KEPT + 5):
        assert every.start("test", "nothing", lambda job: None).wait(60)
    assert len(every.all()) == jobs.KEPT + 1
    with pytest.raises(problems.Problem):
        every.job(1)


def test_job_ends_if_no_client_holds_it_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "HOLDER_SECONDS", 0.05)
    work = jobs.Job(1, "test", "vol0", _until_cancelled)
    work.expect_holder()
    work.start()
    assert work.wait(60)
    assert work.message().state == "cancelled"
    held = jobs.Job(2, "test", "vol0", _until_cancelled)
    held.expect_holder()
    held.hold()
    held.start()
    assert not held.wait(0.2)
    held.cancel()
    assert held.wait(60)


def _until_cancelled(job: jobs.Job) -> None:
    while not job.cancelled():
        time.sleep(0.01)
    raise jobs.Cancelled
