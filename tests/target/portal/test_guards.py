# SPDX-License-Identifier: Apache-2.0
"""An error that nothing foresaw ends the session in which it came up, and no other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from target.iscsi.connection import Connection
from target.iscsi.output import Output
from target.iscsi.pdu import Opcode
from target.iscsi.task_set import TaskSet
from target.portal.portal import Portal
from target.portal.workers import Workers
from target.scsi.nexus import Nexus
from tests.memory_device import MIB, MemoryDevice
from tests.target.iscsi.initiator import TARGET, make_target, read10, write10
from tests.target.portal.test_portal import Client, wait_for

FAULTY = "iqn.2026-11.org.example:faulty"
SOUND = "iqn.2026-11.org.example:sound"


def on_loop() -> bool:
    """Return whether the portal's loop calls, and neither a worker nor the test."""
    return threading.current_thread().name == "iscsi-portal"


class Lab:
    """A portal, whose methods can be made to fail for the initiator FAULTY."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device = MemoryDevice(MIB)
        self.portal = Portal("127.0.0.1", 0, {TARGET: make_target(self.device)})
        self.portal.start()
        self._monkeypatch = monkeypatch

    def log_in(self, name: str) -> Client:
        client = Client(self.portal, name=name)
        client.settle()
        return client

    def fails(self, owner: type, method: str, concerns: Callable[[Any], bool], *, after: bool = False) -> None:
        """Let the method raise an error for the objects that the fault concerns, before or after its work."""
        works = getattr(owner, method)

        def failing(this: Any, *arguments: Any, **options: Any) -> Any:
            if not concerns(this):
                return works(this, *arguments, **options)
            if after:
                works(this, *arguments, **options)
            raise RuntimeError("the test's fault")

        self._monkeypatch.setattr(owner, method, failing)

    def mends(self) -> None:
        self._monkeypatch.undo()

    def connection(self, name: str) -> Connection:
        (found,) = [one.connection for one in self.portal._channels.values() if one.connection.login.initiator == name]
        return found


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    made = Lab(monkeypatch)
    yield made
    made.portal.close(0)


def test_error_ends_its_session_wherever_it_comes_up(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    sound = lab.log_in(SOUND)
    places: list[tuple[type, str, bool, bool]] = [
        # the method, whether it fails after its work, whether commands wait for a worker
        (Connection, "receive", False, False),
        (Connection, "receive", True, True),
        (Connection, "tick", False, False),
        (TaskSet, "_block", False, True),
        (TaskSet, "_block", True, True),
        (TaskSet, "prepare_in_place", False, True),
        (TaskSet, "_answer", False, True),
        (TaskSet, "_answer", False, False),
        (Workers, "enqueue", False, True),
        (Output, "send", False, False),
        (TaskSet, "receive_commands", True, False),
        (Nexus, "execute", False, True),
        (Nexus, "execute", True, True),
    ]
    for owner, method, after, blocks in places:
        faulty = lab.log_in(FAULTY)
        lab.device.blocking = blocks
        connection = lab.connection(FAULTY)
        connection.tasks.fast = method != "_answer"
        its = (connection, connection.tasks, connection.output, connection.nexus, lab.portal._workers)
        on_worker = owner is Nexus and blocks

        def concerns(this: Any, its: Any = its, on_worker: bool = on_worker) -> bool:
            return any(this is one for one in its) and not (on_worker and on_loop())

        lab.fails(owner, method, concerns, after=after)
        caplog.clear()
        faulty.send(faulty.make.command(write10(0, 1), write=512, data=bytes(512)))
        faulty.send(faulty.make.command(read10(0, 1), read=512))
        assert faulty.hung_up()
        lab.mends()
        assert f"{FAULTY}: the session ends, because of an error" in caplog.text, (owner, method)
        assert "the test's fault" in caplog.text
        assert sound.ask(sound.make.command(read10(0, 1), read=512)).status == 0
        wait_for(lambda: not lab.portal._lost)
    lab.log_in(FAULTY)  # nothing of its lost sessions is waited for


def test_error_while_writes_are_prepared_together_fails_none_of_them(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    client = lab.log_in(FAULTY)
    lab.device.blocking = True
    nexus = lab.connection(FAULTY).nexus
    lab.fails(Nexus, "prepare", lambda this: this is nexus and not on_loop(), after=True)
    client.send(
        b"".join(client.make.command(write10(number, 1), write=512, data=bytes([number]) * 512) for number in range(4))
    )
    assert [client.reply().status for _ in range(4)] == [0] * 4
    assert lab.device.data[: 4 * 512] == b"".join(bytes([number]) * 512 for number in range(4))
    assert "writes could not be prepared together" in caplog.text


def test_error_in_the_answer_to_a_barrier_ends_the_session_that_waited(lab: Lab) -> None:
    """The last command of another session calls the answer, and that session is not to blame."""
    waiting, sound = lab.log_in(FAULTY), lab.log_in(SOUND)
    reached, answer = threading.Event(), threading.Event()

    def slow(method: str, offset: int, length: int) -> bool:
        if on_loop():
            return False
        reached.set()
        return answer.wait(60)

    lab.device.before = slow
    sound.send(sound.make.command(write10(0, 1), write=512, data=bytes(512)))
    assert reached.wait(60)
    connection = lab.connection(FAULTY)
    lab.fails(Connection, "_answer_management", lambda this: this is connection)
    waiting.send(waiting.make.request(Opcode.TASK_MANAGEMENT_REQUEST, 0x85, itt=500, immediate=True))
    wait_for(lambda: connection._managing == 1)
    lab.device.before = None
    answer.set()
    assert waiting.hung_up()
    sound.settle()


def test_error_while_a_connection_is_accepted_ends_that_connection(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sound = lab.log_in(SOUND)
    lab.fails(Connection, "__init__", lambda this: on_loop())
    assert Client(lab.portal, log_in=False).hung_up()
    lab.mends()
    assert "127.0.0.1: the connection ends, because of an error" in caplog.text
    sound.settle()


def test_failed_request_of_the_daemon_ends_nothing(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    sound = lab.log_in(SOUND)
    lab.fails(Portal, "_end_session", lambda this: True)
    lab.portal.end_session(1)
    sound.settle()
    wait_for(lambda: "a request of the daemon to its portal failed" in caplog.text)
