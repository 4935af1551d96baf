# SPDX-License-Identifier: Apache-2.0
"""A guest that is frozen through its agent, and thawed whatever happens.  The kernel lab has the real agent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends.volumes.manifest import Consistency
from target.configuration import settings
from target.service import guest_freezer, problems, quiescing
from target.service.service import Service
from tests.target.service.conftest import Serve
from tests.target.service.guest_agent import GuestAgent
from tests.target.service.scheduling import until


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[GuestAgent]:
    with GuestAgent(tmp_path / "qga.sock") as agent:
        yield agent
        until(lambda: not agent.frozen)  # whatever a test does, no guest stays frozen


def volume(guest: GuestAgent, **more: object) -> settings.Volume:
    quiesce = {"guest_agent": guest.path, **more}
    return settings.Volume.model_validate({"name": "vol0", "lun": 0, "size": "1MiB", "quiesce": quiesce})


def test_guest_is_frozen_while_the_snapshot_is_taken(guest: GuestAgent) -> None:
    guest.greeting = b'{"return": "of an earlier client"}\n{"half a li'
    with quiescing.quiet(volume(guest), "a", []) as quiet:
        assert guest.frozen
        assert quiet.reached is Consistency.FILE_SYSTEM
        quiet.check()
    assert not guest.frozen
    assert guest.thaws == 1
    with quiescing.quiet(volume(guest, before=["true"]), "a", []) as quiet:
        assert quiet.reached is Consistency.APPLICATION
    with pytest.raises(RuntimeError, match="in between"), quiescing.quiet(volume(guest), "a", []):
        raise RuntimeError("in between")
    assert not guest.frozen


def test_guest_is_thawed_when_the_daemon_is_killed(guest: GuestAgent) -> None:
    program = f"""
import time
from target.configuration import settings
from target.service import quiescing
quiesce = {{"guest_agent": {str(guest.path)!r}, "timeout": 600}}
wanted = settings.Volume.model_validate({{"name": "v", "lun": 0, "size": "1MiB", "quiesce": quiesce}})
with quiescing.quiet(wanted, "a", []):
    print("frozen", flush=True)
    time.sleep(600)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "frozen\n"
    assert guest.frozen
    os.kill(child.pid, signal.SIGKILL)
    child.wait(30)
    until(lambda: not guest.frozen)


def test_thaw_is_tried_until_the_agent_says_that_nothing_is_frozen(guest: GuestAgent) -> None:
    guest.drops = 3
    with quiescing.quiet(volume(guest), "a", []):
        assert guest.frozen
    assert not guest.frozen
    assert guest.thaws == 4


def test_guest_whose_answer_to_the_freeze_is_lost_is_thawed(guest: GuestAgent) -> None:
    guest.silent_on = "guest-fsfreeze-freeze"
    refused = pytest.raises(problems.Problem, match=r"the guest of .* (was not frozen within|cannot be frozen)")
    with refused, quiescing.quiet(volume(guest, timeout=1), "a", []):
        pass
    until(lambda: guest.thaws > 0 and not guest.frozen)


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("guest-fsfreeze-status", "refuses guest-fsfreeze-status: not today"),
        ("guest-fsfreeze-freeze", "refuses guest-fsfreeze-freeze: not today"),
    ],
)
def test_refusal_is_told(guest: GuestAgent, command: str, why: str) -> None:
    guest.refuses = command
    with pytest.raises(problems.Problem, match=why), quiescing.quiet(volume(guest), "a", []):
        pass


def test_guest_that_another_froze_stays_so(guest: GuestAgent) -> None:
    guest.frozen = True
    with (
        pytest.raises(problems.Problem, match="frozen already, by somebody else"),
        quiescing.quiet(volume(guest), "a", []),
    ):
        pass
    assert (guest.frozen, guest.thaws) == (True, 0)
    guest.frozen = False


def test_missing_agent_refuses_the_snapshot_or_is_passed_over(tmp_path: Path, guest: GuestAgent) -> None:
    none = tmp_path / "none.sock"
    with (
        pytest.raises(problems.Problem, match=r"none.sock does not answer: No such file or directory"),
        quiescing.quiet(volume(guest, guest_agent=none), "a", []),
    ):
        pass
    with quiescing.quiet(volume(guest, guest_agent=none, on_failure="go-on"), "a", []) as quiet:
        assert quiet.reached is Consistency.CRASH


def test_agent_that_talks_nonsense_is_refused(guest: GuestAgent) -> None:
    guest.greeting = b"x" * 100_000
    with pytest.raises(guest_freezer.Failed, match="it sends too much"):
        guest_freezer.Agent(str(guest.path), 30)
    guest.greeting = b"\xff[1]\n"
    with pytest.raises(guest_freezer.Failed, match="is no answer"):
        guest_freezer.Agent(str(guest.path), 30)


def test_snapshot_that_a_freeze_did_not_outlast_is_not_kept(
    guest: GuestAgent, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    service: Service = serve(
        f"  - {{name: vol0, lun: 0, size: 1MiB, quiesce: {{guest_agent: {guest.path}, timeout: 2}}}}\n"
    )
    owner = service.inventory.volume("vol0")
    create = owner.create_snapshot

    def slow(*args: object, **options: object) -> object:
        until(lambda: not guest.frozen)
        time.sleep(0.5)  # the child ends
        return create(*args, **options)  # type: ignore[arg-type]  # handed on as they came

    with monkeypatch.context() as patch:
        patch.setattr(owner, "create_snapshot", slow)
        with pytest.raises(problems.Problem, match="did not stay frozen long enough"):
            service.snapshots.create_snapshot("vol0", "a")
    assert list(owner.snapshots) == []
    assert service.snapshots.create_snapshot("vol0", "a").consistency == "file-system"
