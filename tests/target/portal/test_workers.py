# SPDX-License-Identifier: Apache-2.0
"""The jobs that are made of waiting commands."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from target.iscsi.command import Command, private_buffers
from target.iscsi.limits import Limits
from target.iscsi.memory import Account, Memory
from target.iscsi.output import ArenaPool, Output
from target.iscsi.sender import Sender
from target.iscsi.task_set import TaskSet
from target.portal.workers import JOB_WRITES, REPLACEMENTS, STUCK_SECONDS, Job, Lane, Workers
from target.scsi.task import Task


class _Idle:
    """An executor that runs no task."""

    def execute(self, task: Task, *, nowait: bool) -> None:
        raise AssertionError

    def prepare(self, tasks: Sequence[Task], *, nowait: bool = False) -> bool:
        raise AssertionError

    def refuses(self, task: Task) -> bool:
        raise AssertionError

    def takes_long(self, task: Task) -> bool:
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


class _Held:
    """An executor whose tasks run until `release` is set; a task with a CDB takes long."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def execute(self, task: Task, *, nowait: bool) -> None:
        assert self.release.wait(20)

    def prepare(self, tasks: Sequence[Task], *, nowait: bool = False) -> bool:
        return False

    def refuses(self, task: Task) -> bool:
        return False

    def takes_long(self, task: Task) -> bool:
        return bool(task.cdb)


class _Owned(Lane):
    """A lane of an initiator of that name."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        super().__init__(TaskSet(Sender(Output(ArenaPool())), Limits(), Account(Memory())))
        self._name = name

    @property
    def owner(self) -> object:
        return self._name


def commands(count: int, *, long: bool = False) -> list[Command]:
    made = [Command(itt, Task(private_buffers), 0, reads=True, writes=False, counted=True) for itt in range(count)]
    for command in made:
        command.task.cdb = b"long" if long else b""
    return made


@pytest.fixture
def held() -> Iterator[tuple[Workers[_Owned], _Held]]:
    workers: Workers[_Owned] = Workers(8)
    executor = _Held()
    yield workers, executor
    executor.release.set()
    workers.close()


def finish(workers: Workers[_Owned]) -> None:
    """Take the next result, as the loop does."""
    while not workers.results:
        time.sleep(0.001)
    lane, command, last, _ = workers.results.popleft()
    if last:
        workers.job_done(lane, command)


def test_the_sessions_of_one_initiator_leave_workers_to_the_others(held: tuple[Workers[_Owned], _Held]) -> None:
    workers, executor = held
    greedy = [_Owned("evil") for _ in range(12)]
    for lane in greedy:
        workers.enqueue(lane, executor, commands(8))
    assert sum(lane.active for lane in greedy) == 6
    victim = _Owned("victim")
    workers.enqueue(victim, executor, commands(1))
    assert victim.active == 1, "it waits for nobody"
    executor.release.set()
    while workers.busy:
        finish(workers)
    assert not any(lane.active or lane.pending for lane in (*greedy, victim))


def test_commands_that_take_long_leave_half_of_the_workers(held: tuple[Workers[_Owned], _Held]) -> None:
    workers, executor = held
    lanes = [_Owned(f"host{number}") for number in range(12)]
    for lane in lanes:
        workers.enqueue(lane, executor, commands(3, long=True))
    assert sum(lane.active for lane in lanes) == 4
    workers.enqueue(lanes[-1], executor, commands(1))
    assert lanes[-1].active == 1, "the short command overtakes its session's long ones"
    assert len(lanes[-1].drop()) == 3
    executor.release.set()
    while workers.busy:
        finish(workers)
    assert not any(lane.active or lane.long for lane in lanes)


def test_long_commands_of_one_initiator_leave_a_worker_to_those_of_another(
    held: tuple[Workers[_Owned], _Held],
) -> None:
    workers, executor = held
    greedy = [_Owned("evil") for _ in range(4)]
    for lane in greedy:
        workers.enqueue(lane, executor, commands(3, long=True))
    assert sum(lane.active for lane in greedy) == 2
    for name in ("victim", "another"):
        lane = _Owned(name)
        workers.enqueue(lane, executor, commands(2, long=True))
        assert lane.active == 1, "it waits for nobody"
    executor.release.set()
    while workers.busy:
        finish(workers)
    assert not any(lane.active or lane.long for lane in greedy)
    assert not workers._long_shares


def test_workers_that_wait_for_a_disk_are_replaced_while_others_need_one(held: tuple[Workers[_Owned], _Held]) -> None:
    workers, executor = held
    stuck = [_Owned(f"host{number}") for number in range(9)]
    for lane in stuck:
        workers.enqueue(lane, executor, commands(4))
    assert sum(lane.active for lane in stuck) == 8
    healthy, quick = _Owned("healthy"), _Held()
    quick.release.set()
    workers.enqueue(healthy, quick, commands(1))
    workers.replace_stuck(time.monotonic())
    assert not healthy.active, "they do not wait for long yet"
    while not healthy.active:  # the stuck sessions were there before, and each of them has a share
        workers.replace_stuck(time.monotonic() + STUCK_SECONDS)
    finish(workers)
    assert not healthy.active
    assert sum(thread.is_alive() for thread in workers._threads) > 8
    executor.release.set()
    while workers.busy:
        finish(workers)
    assert not any(lane.active or lane.pending for lane in stuck)
    deadline = time.monotonic() + 20
    while sum(thread.is_alive() for thread in workers._threads) > 8:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert not workers._since
    assert not workers._shares


def test_session_that_waits_for_one_lun_gets_workers_for_its_others(held: tuple[Workers[_Owned], _Held]) -> None:
    workers, executor = held
    lane = _Owned("host")
    for _ in range(32):
        workers.enqueue(lane, executor, commands(1))
    quick = _Held()
    quick.release.set()
    workers.enqueue(lane, quick, commands(1))
    quick_job = lane.pending[-1]
    for _ in range(32):
        workers.replace_stuck(time.monotonic() + STUCK_SECONDS)
    assert not lane.pending, "32 commands of the LUN hold threads, and none of the session's share"
    while quick_job in lane.jobs.values():
        finish(workers)
    executor.release.set()
    while workers.busy:
        finish(workers)
    assert (lane.active, lane.stuck, dict(workers._shares)) == (0, 0, {})


def test_number_of_replacements_is_bounded(held: tuple[Workers[_Owned], _Held]) -> None:
    workers, executor = held
    for number in range(40):
        workers.enqueue(_Owned(f"host{number}"), executor, commands(8))
    for _ in range(REPLACEMENTS):
        workers.replace_stuck(time.monotonic() + STUCK_SECONDS)
    assert len(workers._threads) == 8 + REPLACEMENTS


def test_job_of_a_relieved_thread_takes_no_worker(held: tuple[Workers[_Owned], _Held]) -> None:
    workers, executor = held
    lane = _Owned("host")
    (command,) = commands(1)
    workers.adopt(lane, Job(executor, [command]))
    assert (lane.active, workers._active, workers._shares["host"]) == (1, 0, 1)
    workers.job_done(lane, command)
    assert (lane.active, workers._active, dict(workers._shares)) == (0, 0, {})
