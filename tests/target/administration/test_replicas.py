# SPDX-License-Identifier: Apache-2.0
"""Streams between two hosts in one process: full, changes, interrupted anywhere, refused, promoted."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from lun_backends.backups import frames
from target import codec, messages
from target.administration.administration import Administration
from target.configuration import reader
from target.exports import receiving, sending
from target.service import jobs, problems, replica_file
from target.service.service import Service
from tests.target.administration.fabric import BookFabric

MIB = 1 << 20
KIB = 1 << 10
SIZE = 8 * MIB
LISTEN = "127.0.0.1:3260"


class Host:
    """A daemon without a network, with a volume `vol0` that has an own snapshot `b` if it is `own`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.state = directory / "state"
        self.file = directory / "wolun.yaml"
        self.file.write_text(
            f"target: iqn.2026-11.io.wolun:t\nportal: {{listen: '{LISTEN}'}}\naccess: {{networks: [127.0.0.0/8]}}\n"
            "volumes:\n  - {name: own, lun: 0, size: 8MiB}\n"
        )
        self.fabric = BookFabric(LISTEN)
        self.start()

    def start(self) -> None:
        self.service = Service(reader.load(self.file), self.state)
        self.service.fabric_started(self.fabric)
        self.admin = Administration(self.service, self.fabric, self.file, reader.load(self.file))

    def stop(self) -> None:
        self.service.stop()
        self.service.close()

    def write(self, volume: str, data: dict[int, bytes]) -> None:
        """Write 64 KiB of each pattern."""
        device = self.service.inventory.own_volume(volume).device
        for offset, pattern in data.items():
            device.writev(offset, [memoryview(pattern * ((64 << 10) // len(pattern)))])

    def take(self, which: str, **labels: str) -> None:
        volume, _, name = which.partition("@")
        self.service.snapshots.create_snapshot(volume, name, labels)

    def sent(self, which: str, since: str | None = None, **options: object) -> bytes:
        volume, _, name = which.partition("@")
        request = codec.decode(messages.Send, {"since": since, **options})
        return self._stream(sending.planned(self.service, volume, name, request))

    def rest(self, token: str) -> bytes:
        return self._stream(sending.resumed(self.service, messages.Resume(token)))

    def _stream(self, planned: sending.Sending) -> bytes:
        job, pipe = sending.open_stream(self.service, planned)
        with pipe:
            content = pipe.read()
        job.wait()
        job.check()
        return content or b""

    def begin(self, name: str, stream: bytes, **options: object) -> jobs.Job:
        first = next(frames.Reader(io.BytesIO(stream).read).frames())
        request = codec.decode(messages.Receive, {**codec.encode(first.begin), **options})
        return self.admin.receive(name, request)

    def received(self, name: str, stream: bytes, **options: object) -> jobs.Job:
        """Receive what there is of a stream; return the job, as it ended."""
        job = self.begin(name, stream, **options)
        pipe = job.input
        assert pipe is not None
        job.input = None
        job.hold()
        with pipe, contextlib.suppress(BrokenPipeError):
            left = memoryview(stream)
            while left:
                left = left[os.write(pipe.fileno(), left) :]
        assert job.wait(60)
        return job

    def whole(self, name: str, stream: bytes, **options: object) -> None:
        self.received(name, stream, **options).check()

    def refusal(self, name: str, stream: bytes, **options: object) -> problems.Problem:
        with pytest.raises(problems.Problem) as refused:
            self.whole(name, stream, **options)
        return refused.value

    def read(self, which: str) -> bytes:
        volume, _, name = which.partition("@")
        owner = self.service.inventory.own_volume(volume)
        device = owner.snapshot(name).view if name else owner.device
        content = bytearray(device.size)
        device.readv(0, [memoryview(content)])
        return bytes(content)

    def identity(self, which: str) -> str:
        volume, _, name = which.partition("@")
        return {known.name: known.identity for known in self.admin.replica(volume).snapshots}[name]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "source")
    host.write("own", {0: b"a", 4 * MIB: b"b", 7 * MIB + 512 * KIB: os.urandom(4096)})
    host.take("own@a", purpose="backup")
    host.write("own", {64 * KIB: b"d", 4 * MIB: b"\0", 5 * MIB: os.urandom(4096)})
    host.take("own@b")
    host.write("own", {0: b"f"})
    host.take("own@c")
    yield host
    host.stop()


@pytest.fixture
def backup(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "backup")
    yield host
    host.stop()


def test_replica_follows(source: Host, backup: Host) -> None:
    backup.whole("copy", source.sent("own@a"))
    backup.whole("copy", source.sent("own@b", "a", compress=True))
    backup.whole("copy", source.sent("own@c", "b"))
    for name in "abc":
        assert backup.read(f"copy@{name}") == source.read(f"own@{name}"), name
        assert backup.identity(f"copy@{name}") == source.identity(f"own@{name}")
    assert backup.read("copy") == source.read("own")
    here, there = (
        {s.uuid for s in h.service.inventory.own_volume(v).snapshots} for h, v in ((backup, "copy"), (source, "own"))
    )
    assert not here & there  # no two LUNs of the world have one identity
    shown = {snapshot.name: snapshot for snapshot in backup.service.snapshots.list_snapshots("copy")}
    assert shown["a"].labels == {"purpose": "backup"}
    assert [snapshot.taken for snapshot in source.service.snapshots.list_snapshots("own")] == [
        s.taken for s in shown.values()
    ]
    volume = backup.admin.volume("copy")
    assert volume.lun is None
    assert volume.replica is not None
    assert (volume.replica.replica, volume.replica.source, volume.replica.resume) == (True, "own", "")


def test_streams_are_as_small_as_what_changed(source: Host) -> None:
    assert len(source.sent("own@c", "b")) < 70 * KIB
    assert len(source.sent("own@c", "b", compress=True)) < 4 * KIB
    assert len(source.sent("own@a")) < 200 * KIB


def test_what_is_there_already_is_not_received_again(source: Host, backup: Host) -> None:
    stream = source.sent("own@a")
    backup.whole("copy", stream)
    assert backup.refusal("copy", stream).code == problems.RECEIVED


@pytest.mark.parametrize("seed", range(6))
def test_stream_goes_on_wherever_it_was_interrupted(
    source: Host, backup: Host, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut at random places, with a start of the receiving daemon now and then, the volume is complete in the end."""
    monkeypatch.setattr(receiving, "NOTED_SECONDS", 0)
    chance = random.Random(seed)
    for name, since in (("a", None), ("b", "a"), ("c", "b")):
        stream = source.sent(f"own@{name}", since, compress=bool(seed % 2))
        for _ in range(4):
            first = stream.index(b"WFRM", stream.index(b"WFRM") + 4)
            job = backup.received("copy", stream[: chance.randrange(first, len(stream))])
            with pytest.raises(problems.Problem, match="--resume") as interrupted:
                job.check()
            assert interrupted.value.code == problems.INTERRUPTED
            if chance.random() < 0.3:
                backup.stop()
                backup.start()
            replica = backup.admin.replica("copy")
            assert replica.receiving == name
            assert replica.resume in interrupted.value.remedy
            stream = source.rest(replica.resume)
        backup.whole("copy", stream)
        assert backup.read(f"copy@{name}") == source.read(f"own@{name}")
    assert [known.name for known in backup.admin.replica("copy").snapshots] == ["a", "b", "c"]


def test_stream_that_would_leave_a_gap_is_refused(source: Host, backup: Host) -> None:
    stream = source.sent("own@a")
    backup.received("copy", stream[: len(stream) // 2])
    partial = replica_file.load(backup.state / "volumes" / "copy")
    assert partial is not None
    assert partial.partial is not None
    ahead = frames.Token(source.identity("own@a"), "", partial.partial.offset + 64 * KIB).encoded()
    assert "it goes on at byte" in backup.refusal("copy", source.rest(ahead)).message
    other = frames.Token(source.identity("own@b"), "", partial.partial.offset).encoded()
    assert "the interrupted stream into copy is that of a" in backup.refusal("copy", source.rest(other)).message


def test_wrong_base_is_refused_by_identity(source: Host, backup: Host) -> None:
    changes = source.sent("own@c", "b")
    nothing = backup.refusal("copy", changes)
    assert nothing.code == problems.WRONG_BASE
    assert f"it stands on b ({source.identity('own@b')}), and there is no volume copy" in nothing.message
    assert not (backup.state / "volumes" / "copy").exists()
    backup.whole("copy", source.sent("own@a"))
    wrong = backup.refusal("copy", changes)
    assert wrong.code == problems.WRONG_BASE
    assert f"it stands on b ({source.identity('own@b')}), and copy has a ({source.identity('own@a')})" in wrong.message
    backup.take("own@b")
    assert f"own has b ({backup.identity('own@b')})" in backup.refusal("own", changes).message
    assert backup.read("own") == bytes(SIZE)


def test_volume_with_data_of_its_own_is_left_alone(source: Host, backup: Host) -> None:
    backup.write("own", {0: b"mine"})
    backup.take("own@mine")
    stream = source.sent("own@a")
    assert "own is no replica, so it may have been written to" in backup.refusal("own", stream).message
    assert backup.read("own")[:4] == b"mine"
    backup.whole("own", stream, force=True)
    assert backup.read("own@a") == source.read("own@a")
    assert backup.read("own@mine")[:4] == b"mine"


def test_name_of_another_snapshot_is_refused(source: Host, backup: Host) -> None:
    backup.whole("copy", source.sent("own@a"))
    backup.take("copy@b")
    assert "another snapshot of the name b" in backup.refusal("copy", source.sent("own@b", "a")).message


@pytest.mark.parametrize("place", [20, 70, 5000, -40, -1])
def test_damage_in_the_stream_is_found(source: Host, backup: Host, place: int) -> None:
    stream = source.sent("own@a")
    spoilt = bytearray(stream)
    spoilt[place] ^= 1
    try:
        problem = backup.refusal("copy", bytes(spoilt))
    except frames.StreamError:
        assert place < 100  # the beginning is read by the command
    else:
        assert problem.code == problems.INTERRUPTED
        backup.whole("copy", source.rest(backup.admin.replica("copy").resume))
        assert backup.read("copy@a") == source.read("own@a")


def test_lost_frame_is_found(source: Host, backup: Host) -> None:
    stream = source.sent("own@a")
    second = stream.index(b"WFRM", stream.index(b"WFRM") + 4)
    third = stream.index(b"WFRM", second + 4)
    assert "one before it was lost" in backup.refusal("copy", stream[:second] + stream[third:]).message


@pytest.mark.parametrize(
    ("offset", "length", "reason"),
    [(SIZE, 4096, "not its place"), (0, 4096, "not its place"), (MIB + 100, 4096, "not whole blocks")],
)
def test_data_out_of_place_is_refused(source: Host, backup: Host, offset: int, length: int, reason: str) -> None:
    begin = next(frames.Reader(io.BytesIO(source.sent("own@a")).read).frames()).begin
    made = io.BytesIO()
    writer = frames.Writer(made.write)
    writer.begin(begin)
    writer.zero(0, 64 * KIB)
    writer.data(offset, memoryview(bytes(length)))
    assert reason in backup.refusal("copy", made.getvalue()).message


def test_promoted_volume_takes_writes_and_follows_again_by_force(source: Host, backup: Host) -> None:
    backup.whole("copy", source.sent("own@a"), lun=7)
    unit = backup.service.inventory.scsi.luns[7]
    assert unit.write_protected
    with pytest.raises(problems.Problem, match="copy is a replica"):
        backup.service.reshaping.restore("copy", "a", force=True)
    with pytest.raises(problems.Problem, match="copy is a replica"):
        backup.admin.resize_volume("copy", 2 * SIZE)
    stream = source.sent("own@b", "a")
    backup.received("copy", stream[:-60])
    assert backup.read("copy") != source.read("own@a")
    backup.admin.promote_volume("copy").wait()
    assert not unit.write_protected
    assert backup.read("copy") == source.read("own@a")  # what is whole
    with pytest.raises(problems.Problem, match="it is no replica"):
        backup.admin.promote_volume("copy")
    backup.write("copy", {6 * MIB: b"local"[:4]})
    assert "takes back what was written since copy@a" in backup.refusal("copy", stream).remedy
    backup.whole("copy", stream, force=True)
    assert backup.service.inventory.scsi.luns[7].write_protected
    assert backup.read("copy") == backup.read("copy@b") == source.read("own@b")


def test_replica_without_whole_content_is_not_promoted(source: Host, backup: Host) -> None:
    backup.received("copy", source.sent("own@a")[:-60])
    with pytest.raises(problems.Problem, match="no whole content"):
        backup.admin.promote_volume("copy")


def test_replica_is_protected_after_a_start(source: Host, backup: Host) -> None:
    backup.whole("copy", source.sent("own@a"), lun=7)
    backup.stop()
    with backup.file.open("a") as file:
        file.write("  - {name: copy, lun: 7, size: 8MiB}\n")
    backup.start()
    assert backup.service.inventory.scsi.luns[7].write_protected


def test_volume_that_was_not_saved_is_taken_up_again(source: Host, backup: Host) -> None:
    backup.whole("copy", source.sent("own@a"))
    backup.stop()
    backup.start()
    assert [known.name for known in backup.admin.replica("copy").snapshots] == ["a"]
    backup.whole("copy", source.sent("own@b", "a"))
    assert backup.read("copy@b") == source.read("own@b")


def test_other_stream_after_an_interrupted_one(source: Host, backup: Host) -> None:
    """Changes by the stream that was given up are taken back first."""
    backup.whole("copy", source.sent("own@a"))
    backup.received("copy", source.sent("own@b", "a")[:-60])
    source.write("own", {0: b"a", 64 * KIB: bytes(4), 5 * MIB: bytes(4), 4 * MIB: b"b", 6 * MIB: b"g"})
    source.take("own@d")
    stream = source.sent("own@d", "a")
    backup.whole("copy", stream)
    assert backup.read("copy@d") == source.read("own@d")


def test_snapshot_keeps_its_identity_wherever_it_goes(source: Host, backup: Host) -> None:
    """The promoted replica brings its origin up to date."""
    backup.whole("copy", source.sent("own@c"))
    backup.admin.promote_volume("copy").wait()
    backup.write("copy", {2 * MIB: b"new."})
    backup.take("copy@new")
    back = backup.sent("copy@new", "c")
    source.write("own", {3 * MIB: b"lost"})
    assert "--force" in source.refusal("own", back).remedy
    source.whole("own", back, force=True)
    assert source.read("own") == backup.read("copy@new")
    assert source.identity("own@new") == backup.identity("copy@new")


def test_volume_that_grew_grows(source: Host, backup: Host) -> None:
    backup.whole("copy", source.sent("own@c"))
    source.admin.resize_volume("own", 2 * SIZE)
    source.write("own", {SIZE + MIB: b"far."})
    source.take("own@large")
    backup.whole("copy", source.sent("own@large", "c"))
    assert backup.read("copy@large") == source.read("own@large")
    assert backup.read("copy@c") == source.read("own@c")
    assert backup.admin.volume("copy").size == 2 * SIZE


def test_old_ones_go(source: Host, backup: Host) -> None:
    backup.whole("copy", source.sent("own@a"))
    backup.service.snapshots.change_snapshot("copy", "a", messages.ChangeSnapshot(hold="wanted"))
    backup.whole("copy", source.sent("own@b", "a"), keep=1)
    backup.whole("copy", source.sent("own@c", "b"), keep=1)
    assert [known.name for known in backup.admin.replica("copy").snapshots] == ["a", "c"]
    assert backup.read("copy@a") == source.read("own@a")


def test_one_stream_at_a_time(source: Host, backup: Host) -> None:
    stream = source.sent("own@a")
    job = backup.begin("copy", stream)
    with pytest.raises(problems.Problem, match=r"in use by job \d+ \(receive copy@a\)"):
        backup.begin("copy", stream)
    with pytest.raises(problems.Problem, match="in use by job"):
        backup.admin.promote_volume("copy")
    job.cancel()
    job.wait()
    assert job.input is None


def test_forced_stream_is_refused_while_initiators_are_there(source: Host, backup: Host) -> None:
    backup.fabric.log_in("iqn.1993-08.org.debian:host", "127.0.0.1", "iqn.2026-11.io.wolun:t")
    assert "log out there first" in backup.refusal("own", source.sent("own@a"), force=True).remedy


def test_limit_slows_the_stream(source: Host) -> None:
    """At 256 KiB a second, the 64 KiB of the changes cannot pass before a quarter of a second, less the burst."""
    planned = sending.planned(source.service, "own", "b", messages.Send("a", limit=64))
    job, pipe = sending.open_stream(source.service, planned)
    threading.Timer(0.3, job.cancel).start()
    with pipe:
        content = pipe.read()
    job.wait()
    assert job.message().state == "cancelled"
    assert content is not None
    assert len(content) < 64 * KIB


@pytest.mark.parametrize("text", ["nonsense", "wolun1-nonsense", frames.Token("x", "", 0).encoded()])
def test_wrong_tokens_are_refused(source: Host, text: str) -> None:
    with pytest.raises(problems.Problem, match="token"):
        source.rest(text)


def test_token_of_another_host_is_refused(source: Host, backup: Host) -> None:
    with pytest.raises(problems.Problem, match="no volume here has the snapshot"):
        backup.rest(frames.Token(source.identity("own@a"), "", 0).encoded())
    gone = frames.Token(source.identity("own@a"), str(UUID(int=5)), 0).encoded()
    with pytest.raises(problems.Problem, match="no longer has the snapshot"):
        source.rest(gone)


def test_damaged_file_of_a_replica_is_named(source: Host, backup: Host) -> None:
    backup.whole("copy", source.sent("own@a"))
    path = backup.state / "volumes" / "copy" / "replica.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(problems.Problem, match="newer wolun"):
        backup.admin.replica("copy")
    path.write_text("{}")
    with pytest.raises(problems.Problem, match="is damaged"):
        backup.admin.replica("copy")
