# SPDX-License-Identifier: Apache-2.0
"""Group commit by itself: which writers share a commit."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from lun_backends.stores import group_commit, thin

WAIT = 30.0  # seconds to wait for an event that must happen


class Commits:
    """A runner of batches in threads.  `groups` has the sizes of the committed groups; each group waits until `go` is set."""

    def __init__(self) -> None:
        self.groups: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Semaphore(0)
        self.changed = threading.Condition(threading.Lock())
        self.commit = group_commit.GroupCommit[thin.Batch](self.changed, self._commit, lambda group: None, self._failed)
        self.threads: list[threading.Thread] = []

    def _commit(self, group: list[thin.Batch]) -> None:
        self.groups.append(len(group))
        self.entered.release()
        assert self.go.wait(WAIT)

    @staticmethod
    def _failed(error: BaseException, batch: thin.Batch) -> Exception:
        return RuntimeError(str(error))

    def start(self) -> None:
        thread = threading.Thread(target=self.commit.run, args=(thin.Batch(),), daemon=True)
        self.threads.append(thread)
        thread.start()

    def until(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, WAIT)

    def join(self) -> None:
        for thread in self.threads:
            thread.join(WAIT)
            assert not thread.is_alive()


def test_a_lone_writer_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "_PATIENCE", 1e9)
    commits = Commits()
    for number in range(3):
        commits.start()
        commits.join()
        assert commits.groups == [1] * (number + 1)


def test_a_leader_waits_for_the_writers_of_the_last_group(monkeypatch: pytest.MonkeyPatch) -> None:
    commits = Commits()
    commits.go.clear()
    commits.start()
    assert commits.entered.acquire(timeout=WAIT)  # it leads
    for _ in range(3):
        commits.start()
    while len(commits.commit._queue) < 3:  # only the queue shows that they wait
        pass
    commits.go.set()
    commits.join()
    assert commits.groups == [1, 3]
    monkeypatch.setattr(group_commit, "_PATIENCE", 1e9)
    for _ in range(3):
        commits.start()
    commits.join()
    assert commits.groups == [1, 3, 3]


def test_a_leader_waits_once_for_company_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    commits = Commits()
    commits.commit._company = 3
    monkeypatch.setattr(group_commit, "_PATIENCE", 0.0)
    commits.start()
    commits.join()
    monkeypatch.setattr(group_commit, "_PATIENCE", 1e9)
    commits.start()
    commits.join()
    assert commits.groups == [1, 1]
