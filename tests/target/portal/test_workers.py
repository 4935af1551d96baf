# SPDX-License-Identifier: Apache-2.0
"""The jobs that are made of waiting commands."""

from __future__ import annotations

from collections.abc import Sequence

from target.iscsi.command import Command, private_buffers
from target.iscsi.limits import Limits
from target.iscsi.memory import Account, Memory
from target.iscsi.output import ArenaPool, Output
from target.iscsi.sender import Sender
from target.iscsi.task_set import TaskSet
from target.portal.workers import JOB_WRITES, Job, Lane
from target.scsi.task import Task


class _Idle:
    """An executor that runs no task."""

    def execute(self, task: Task, *, nowait: bool) -> None:
        raise AssertionError

    def prepare(self, tasks: Sequence[Task], *, nowait: bool = False) -> bool:
        raise AssertionError


def lane_of(*jobs: Sequence[tuple[int, bool]]) -> Lane:
    """Return a lane with these jobs, each a list of (LUN, whether it writes)."""
    lane = Lane(TaskSet(Sender(Output(ArenaPool())), Limits(), Account(Memory())))
    itt = 0
    for job in jobs:
        commands = []
        for lun, writes in job:
            task = Task(private_buffers)
            task.lun = lun
            commands.append(Command(itt, task, 512, reads=not writes, writes=writes, counted=True))
            itt += 1
        lane.pending.append(Job(_Idle(), commands))
    return lane


def taken(lane: Lane) -> list[list[int]]:
    """Return the tags of the commands of every job, as workers get them."""
    jobs = []
    while lane.pending:
        jobs.append([command.itt for command in lane.next_job().commands])
    return jobs


def test_writes_that_waited_for_a_worker_go_together() -> None:
    assert taken(lane_of([(0, True)], [(0, True), (0, True)], [(0, True)])) == [[0, 1, 2, 3]]


def test_writes_of_other_luns_and_reads_stay_apart() -> None:
    jobs = ([(0, True)], [(1, True)], [(1, True)], [(1, False)], [(1, False)], [(1, True)])
    assert taken(lane_of(*jobs)) == [[0], [1, 2], [3], [4], [5]]


def test_no_job_gets_more_writes_than_its_share() -> None:
    most = [(0, True)] * (JOB_WRITES - 1)
    assert [len(job) for job in taken(lane_of(most, [(0, True)], [(0, True)], most))] == [JOB_WRITES, JOB_WRITES]
    assert [len(job) for job in taken(lane_of(most + most, [(0, True)]))] == [2 * (JOB_WRITES - 1), 1]
