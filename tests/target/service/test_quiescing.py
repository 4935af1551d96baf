# SPDX-License-Identifier: Apache-2.0
"""Commands around a snapshot, and a real file system that is frozen and never left frozen."""

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
from target.service import problems, quiescing
from tests import daemon, peers

pytestmark = pytest.mark.interop


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount an ext4 of its own, which is thawed in the end whatever happened."""
    peers.need_root("mounting an ext4")
    image, mount = tmp_path / "ext4.img", tmp_path / "mnt"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run([peers.require("mke2fs"), "-q", "-t", "ext4", image], check=True)
    subprocess.run([peers.require("mount"), "-o", "loop", image, mount], check=True)
    yield mount
    subprocess.run([peers.require("fsfreeze"), "--unfreeze", mount], capture_output=True, check=False)
    subprocess.run(["umount", mount], check=True)


def volume(**quiesce: object) -> settings.Volume:
    return settings.Volume.model_validate({"name": "vol0", "lun": 0, "size": "1MiB", "quiesce": quiesce})


def is_frozen(mount: Path) -> bool:
    """Return whether a write to the file system has to wait."""
    writer = subprocess.Popen(["touch", mount / "probe"])
    try:
        writer.wait(0.5)
    except subprocess.TimeoutExpired:
        writer.kill()
        return True
    return False


def thawed(mount: Path) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not is_frozen(mount):
            return True
    return False


def test_file_system_is_frozen_while_the_snapshot_is_taken(disk: Path, tmp_path: Path) -> None:
    with quiescing.quiet(volume(freeze=disk), "a", [tmp_path]) as quiet:
        assert quiet.reached is Consistency.FILE_SYSTEM
        assert is_frozen(disk)
    assert thawed(disk)
    with pytest.raises(RuntimeError, match="in between"), quiescing.quiet(volume(freeze=disk), "a", [tmp_path]):
        raise RuntimeError("in between")
    assert thawed(disk)


def test_freeze_ends_when_it_lasts_too_long(disk: Path, tmp_path: Path) -> None:
    """Then the snapshot is not what it seems, and is refused."""
    with quiescing.quiet(volume(freeze=disk, timeout=2), "a", [tmp_path]) as quiet:
        quiet.check()
        assert is_frozen(disk)
        assert thawed(disk)
        with pytest.raises(problems.Problem, match="did not stay frozen long enough"):
            quiet.check()


def test_freeze_ends_when_the_daemon_is_killed(disk: Path, tmp_path: Path) -> None:
    program = f"""
import pathlib, time
from target.configuration import settings
from target.service import quiescing
wanted = settings.Volume.model_validate(
    {{"name": "v", "lun": 0, "size": "1MiB", "quiesce": {{"freeze": {str(disk)!r}, "timeout": 600}}}}
)
with quiescing.quiet(wanted, "a", []):
    print("frozen", flush=True)
    time.sleep(600)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "frozen\n"
    assert is_frozen(disk)
    os.kill(child.pid, signal.SIGKILL)
    child.wait(30)
    assert thawed(disk)


def test_file_system_that_holds_the_snapshot_is_not_frozen(disk: Path) -> None:
    refused = pytest.raises(problems.Problem, match="lies on it, and the snapshot writes there")
    with refused, quiescing.quiet(volume(freeze=disk), "a", [disk]):
        pass
    assert not is_frozen(disk)


def test_commands_know_what_for_and_the_second_runs_whatever_happened(tmp_path: Path) -> None:
    log = tmp_path / "log"
    note = ("sh", "-c", f"echo $WOLUN_PHASE $WOLUN_VOLUME@$WOLUN_SNAPSHOT >> {log}")
    with quiescing.quiet(volume(before=note, after=note), "a", []) as quiet:
        assert quiet.reached is Consistency.APPLICATION
        assert log.read_text() == "before vol0@a\n"
    with pytest.raises(RuntimeError), quiescing.quiet(volume(before=note, after=note), "b", []):
        raise RuntimeError
    assert log.read_text().splitlines() == ["before vol0@a", "after vol0@a", "before vol0@b", "after vol0@b"]


def test_failing_command_refuses_the_snapshot_or_is_passed_over(tmp_path: Path) -> None:
    log = tmp_path / "log"
    fails = ("sh", "-c", "echo the database is busy >&2; exit 3")
    after = ("sh", "-c", f"echo after >> {log}")
    refused = pytest.raises(problems.Problem, match="the command sh ended with status 3: the database is busy")
    with refused, quiescing.quiet(volume(before=fails, after=after), "a", []):
        pass
    assert log.read_text() == "after\n"
    with quiescing.quiet(volume(before=fails, on_failure="go-on"), "a", []) as quiet:
        assert quiet.reached is Consistency.CRASH
    slow = pytest.raises(problems.Problem, match=r"took longer than 0\.2 s")
    with slow, quiescing.quiet(volume(before=("sleep", "30"), timeout=0.2), "a", []):
        pass


def test_daemon_records_how_consistent_a_snapshot_is(tmp_path: Path) -> None:
    volumes = "  - {name: vol0, lun: 0, size: 1MiB, quiesce: {before: ['true'], after: ['true']}}\n"
    with daemon.Daemon(tmp_path, volumes + "  - {name: vol1, lun: 1, size: 1MiB}\n") as served:
        assert served.json("snapshot", "create", "vol0", "a")["consistency"] == "application"
        assert served.json("snapshot", "create", "vol1", "a")["consistency"] == "crash"
        group = served.json("snapshot", "create-group", "g", "vol0", "vol1")
        assert {taken["consistency"] for taken in group} == {"crash"}
        served.kill()
        served.start()
        assert "consistency   application" in served.run("snapshot", "show", "vol0@a").stdout
