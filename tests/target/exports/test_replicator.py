# SPDX-License-Identifier: Apache-2.0
"""Replications: when they send, on which base, what they keep, and what they say when they fail.

The receiver is a real daemon with the real command.  The clock of the sender is the test's.
"""

from __future__ import annotations

import datetime
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lun_backends.volumes import manifest
from target import messages
from target.configuration import reader
from target.exports import replicator
from target.service import alerts, replication_file
from target.service.service import Service
from tests import daemon

MIB = 1 << 20
START = datetime.datetime(2026, 11, 2, 12, 30, tzinfo=datetime.UTC)


class Sender:
    """A service with the volume vol0 and one replication, whose time the test moves."""

    def __init__(self, state: Path, to: list[str], monkeypatch: pytest.MonkeyPatch, more: str = "") -> None:
        self.state = state
        self.now = START
        monkeypatch.setattr(manifest, "now", lambda: self.now)
        self._text = (
            "target: iqn.2026-11.io.wolun:t\nvolumes:\n  - name: vol0\n    lun: 0\n    size: 8MiB\n"
            f"    replicate: [{{name: backup, schedule: hourly, to: {to!r}{more}}}]\n"
        )
        self.start()

    def start(self) -> None:
        self.service = Service(reader.parse(self._text, "f.yaml"), self.state)
        self.replicator = replicator.Replicator(self.service, lambda: self.now)

    def stop(self) -> None:
        self.service.stop()
        self.replicator.close()
        self.service.close()

    def look(self) -> messages.Replication:
        """Do what is due now; return the state then."""
        self.replicator.look()
        self.replicator.wait()
        return self.replicator.shown()[0]

    def write(self, offset: int, pattern: bytes) -> None:
        device = self.service.inventory.own_volume("vol0").device
        device.writev(offset, [memoryview(pattern * ((64 << 10) // len(pattern)))])

    def read(self, name: str) -> bytes:
        view = self.service.inventory.own_volume("vol0").snapshot(name).view
        content = bytearray(view.size)
        view.readv(0, [memoryview(content)])
        return bytes(content)

    def names(self) -> list[str]:
        return [snapshot.name for snapshot in self.service.inventory.own_volume("vol0").snapshots]


Make = Callable[..., Sender]


@pytest.fixture(scope="module")
def backup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Daemon]:
    with daemon.Daemon(tmp_path_factory.mktemp("backup"), "  - {name: own, lun: 0, size: 1MiB}\n") as running:
        yield running


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    made: list[Sender] = []

    def new(to: list[str], more: str = "") -> Sender:
        made.append(Sender(tmp_path / "state", to, monkeypatch, more))
        return made[-1]

    yield new
    for sender in made:
        sender.stop()


def receiver(backup: daemon.Daemon, name: str, *options: str) -> list[str]:
    return [str(daemon.PROGRAM), "--state-dir", str(backup.state), "volume", "receive", name, *options]


def image(backup: daemon.Daemon, which: str, path: Path) -> bytes:
    backup.run("snapshot", "export", which, str(path), "--force", "--format", "raw")
    return path.read_bytes()


def test_snapshots_arrive_by_the_clock(make: Make, backup: daemon.Daemon, tmp_path: Path) -> None:
    sender = make(receiver(backup, "clock"), ", compress: true, limit: 50MiB")
    sender.write(0, os.urandom(4096))
    first = sender.look()
    assert (first.state, first.trouble, first.arrived) == ("waiting", "", "replica-backup-2026-11-02T1230Z")
    assert image(backup, f"clock@{first.arrived}", tmp_path / "image") == sender.read(first.arrived)
    sender.now += datetime.timedelta(minutes=20)
    assert sender.look().arrived == first.arrived  # the same hour
    assert sender.replicator.shown()[0].lag_seconds == 1200
    sender.now += datetime.timedelta(minutes=20)
    sender.write(MIB, b"new.")
    second = sender.look()
    assert second.arrived == "replica-backup-2026-11-02T1310Z"
    assert sender.names() == [second.arrived]
    (kept,) = sender.service.inventory.own_volume("vol0").snapshots
    assert kept.hold == "the replication to backup needs it"
    shown = backup.json("snapshot", "list", "clock")
    assert [snapshot["name"] for snapshot in shown] == [first.arrived, second.arrived]
    assert image(backup, f"clock@{second.arrived}", tmp_path / "image") == sender.read(second.arrived)
    audit = (sender.state / "audit.jsonl").read_text()
    assert "the replication of vol0 to backup" in audit


def test_failure_is_told_and_the_snapshot_waits(make: Make, backup: daemon.Daemon, tmp_path: Path) -> None:
    """A script stands for a host that is away at first."""
    script = tmp_path / "receive"
    script.write_text("#!/bin/sh\necho the host is away >&2\nexit 3\n")
    script.chmod(stat.S_IRWXU)
    sender = make([str(script)])
    failing = sender.look()
    assert failing.state == "failing"
    assert "ended with status 3: the host is away" in failing.trouble
    assert (failing.arrived, failing.pending) == ("", "replica-backup-2026-11-02T1230Z")
    told = list(alerts.of_replications([failing]))
    assert [alert.code for alert in told] == ["replication-failed"]
    sender.now += datetime.timedelta(hours=2, minutes=1)
    late = sender.replicator.shown()[0]
    assert late.late
    assert [alert.code for alert in alerts.of_replications([late])] == ["replication-failed", "replication-late"]
    script.write_text(f"#!/bin/sh\nexec {' '.join(receiver(backup, 'later'))}\n")
    sender.stop()
    sender.start()  # a start tries at once
    assert sender.look().arrived == "replica-backup-2026-11-02T1230Z"
    assert sender.look().arrived == "replica-backup-2026-11-02T1431Z"
    assert not sender.replicator.shown()[0].late


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["/nothing/there"], "cannot be run: No such file"),
        ([sys.executable, "-c", "print('hello')"], "gave an answer that is none of"),
        ([sys.executable, "-c", "import os; os.close(1); input()"], "ended without an answer"),
    ],
)
def test_command_that_is_no_receiver(make: Make, command: list[str], reason: str) -> None:
    assert reason in make(command).look().trouble


def test_base_is_what_both_have(make: Make, backup: daemon.Daemon, tmp_path: Path) -> None:
    sender = make(receiver(backup, "lost"))
    sender.write(0, b"one.")
    sender.service.snapshots.create_snapshot("vol0", "mine")
    first = sender.look().arrived
    backup.run("snapshot", "delete", f"lost@{first}")
    sender.now += datetime.timedelta(hours=1)
    sender.write(0, b"two.")
    again = sender.look()  # nothing is left there, so all of it is sent
    assert again.trouble == ""
    assert image(backup, f"lost@{again.arrived}", tmp_path / "image") == sender.read(again.arrived)


def test_receiver_with_other_snapshots_is_refused(make: Make, backup: daemon.Daemon) -> None:
    backup.run("snapshot", "create", "own", "other")
    refused = make(receiver(backup, "own")).look()
    assert "no snapshot of vol0 is among those of the receiver: other" in refused.trouble


def test_what_arrived_unnoticed_is_not_sent_again(make: Make, backup: daemon.Daemon) -> None:
    """A crash came after the receiver had it, before that was noted here."""
    sender = make(receiver(backup, "unnoticed"))
    name = sender.look().arrived
    owner = sender.service.inventory.own_volume("vol0")
    progress = replication_file.load(owner.directory)["backup"]
    replication_file.store(
        owner.directory, "backup", replication_file.Progress(pending=name, due=progress.due, taken=progress.taken)
    )
    assert sender.replicator.shown()[0].arrived == ""
    assert sender.look().arrived == name
    assert sender.service.jobs.all()[-1].message().total == 0


def test_crash_after_the_snapshot_leaves_none_behind(make: Make, backup: daemon.Daemon) -> None:
    """The name is noted before the snapshot is taken, and finds it again."""
    sender = make(receiver(backup, "behind"))
    owner = sender.service.inventory.own_volume("vol0")
    name = "replica-backup-2026-11-02T1229Z"
    replication_file.store(owner.directory, "backup", replication_file.Progress(pending=name, due=START))
    owner.create_snapshot(name, notes=manifest.Notes(hold="the replication to backup needs it"))
    assert sender.look().arrived == name
    sender.now += datetime.timedelta(hours=1)
    assert sender.names() == [name]
    assert sender.names() != [sender.look().arrived] != []
    assert len(sender.names()) == 1


def test_cancelled_by_hand_waits_for_the_next_hour(make: Make) -> None:
    sender = make([sys.executable, "-c", "import time; time.sleep(600)"])
    sender.replicator.look()
    while not sender.service.jobs.all():
        sender.replicator.shown()
    sender.service.jobs.all()[-1].cancel()
    sender.replicator.wait()
    cancelled = sender.look()
    assert "it was cancelled" in cancelled.trouble
    assert len(sender.service.jobs.all()) == 1


def test_damaged_file_is_told(make: Make) -> None:
    sender = make(["true"])
    (sender.service.inventory.own_volume("vol0").directory / replication_file.NAME).write_text("{")
    assert "replications.json is damaged" in sender.look().trouble


def test_configuration_is_checked_and_written(make: Make) -> None:
    from target.configuration import settings, writer

    text = (
        "{name: vol0, lun: 0, size: 1MiB, replicate: [{name: a, to: [ssh, x], schedule: {at: '02:00'}, limit: 50MiB}]}"
    )
    configured = reader.parse(f"target: iqn.2026-11.io.wolun:t\nvolumes: [{text}]\n", "f.yaml").volumes[0]
    again = reader.parse("target: iqn.2026-11.io.wolun:t\nvolumes:\n" + writer.text_of(configured), "f.yaml").volumes[0]
    assert again == configured
    assert isinstance(again.replicate[0], settings.Replication)
    for wrong in ("to: []", "to: [x], limit: 0", "to: [x], schedule: never", "to: [x], schedule: {zone: UTC}"):
        with pytest.raises(reader.ConfigurationError):
            entry = f"{{name: a, schedule: hourly, {wrong}}}" if "schedule" not in wrong else f"{{name: a, {wrong}}}"
            reader.parse(
                f"target: iqn.2026-11.io.wolun:t\nvolumes: [{{name: v, lun: 0, size: 1MiB, replicate: [{entry}]}}]\n",
                "f.yaml",
            )
