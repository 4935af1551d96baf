# SPDX-License-Identifier: Apache-2.0
"""A change that can neither be recorded nor taken back: no write is acknowledged that the next start could undo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.files import storage_io
from lun_backends.volumes import doubt, errors, group, manifest, policy, volume
from target import explanations
from target.configuration import reader
from target.scsi import sense
from target.service.service import Service
from tests.faults.storage import FaultyIO
from tests.lun_backends.volumes.test_invalidation import BEFORE, CHUNK, CHUNKS, Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.open()
    made.volume.create_snapshot("a")
    made.write(1, 100, CHUNK)
    return made


def fail_twice(io: FaultyIO, directory: str = "v") -> None:
    """Let the new manifest take the old one's name, durably or not, and make it impossible to put the old one back."""
    io.fail("fsync_directory", path=directory)
    io.fail("rename", path="volume.json", after=1)


WRITES: list[Callable[[block_device.BlockDevice], None]] = [
    lambda device: device.writev(CHUNK, [memoryview(bytes([7]) * 512)]),  # of a chunk that is preserved already
    lambda device: device.writev(CHUNK, [memoryview(bytes([7]) * 3 * CHUNK)]),
    lambda device: device.write_zeroes(CHUNK, CHUNK, discard=True),
]


def refused(device: block_device.BlockDevice) -> None:
    """Assert that every kind of write is refused."""
    for write in WRITES:
        with pytest.raises(block_device.StateInDoubt):
            write(device)
        with device.exclusive() as held, pytest.raises(block_device.StateInDoubt):
            write(held)
    assert not device.write_now(CHUNK, 512, [memoryview(bytes(512))])


def test_a_rollback_that_may_come_up_again_loses_no_write(bench: Bench) -> None:
    now, before = bench.data(), BEFORE
    fail_twice(bench.io)
    with pytest.raises(errors.RollbackRefused):
        bench.volume.begin_rollback("a")
    assert bench.data() == now
    assert bench.data("a") == before
    refused(bench.volume.device)
    assert [event for event in bench.events if isinstance(event, policy.StateUnknown)]
    with pytest.raises(errors.VolumeError, match="could neither be recorded nor taken back"):
        bench.volume.create_snapshot("b")
    with pytest.raises(errors.VolumeError, match="could neither be recorded nor taken back"):
        bench.volume.begin_rollback("a")
    bench.volume.close()
    opened = volume.Volume.open(bench.directory / "v")  # the rollback does come up
    assert opened.rolling_back_to is not None
    opened.continue_rollback()
    data = bytearray(opened.device.size)
    opened.device.readv(0, [memoryview(data)])
    assert bytes(data[::CHUNK]) == before
    opened.close()


@pytest.mark.parametrize("by", ["write", "held write", "create", "delete", "restore", "close"])
def test_writes_resume_once_the_manifest_can_be_stored(bench: Bench, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    monkeypatch.setattr(doubt, "PATIENCE", 0.0)
    before, now = BEFORE, bytearray(bench.data())
    fail_twice(bench.io)
    with pytest.raises(errors.RollbackRefused):
        bench.volume.begin_rollback("a")
    refused(bench.volume.device)
    bench.io.heal()
    match by:
        case "write":
            bench.write(2, 50, CHUNK)
        case "held write":
            with bench.volume.device.exclusive() as held:
                held.writev(2 * CHUNK, [memoryview(bytes([50]) * CHUNK)])
        case "create":
            bench.volume.create_snapshot("b")
        case "delete":
            bench.volume.delete_snapshot("a")
        case "restore":
            bench.volume.begin_rollback("a")
            bench.volume.continue_rollback()
            now[:] = before
        case "close":
            bench.volume.close()
            bench.volume = volume.Volume.open(bench.directory / "v")
    assert not bench.volume.in_doubt
    bench.write(2, 50, CHUNK)
    now[2] = 50
    assert bench.data() == now
    files = {path.suffix for path in (bench.directory / "v" / "snapshots").iterdir()}
    assert files <= {".map", ".chunks"}
    opened = bench.reopen()
    assert opened.rolling_back_to is None
    assert bench.data() == now
    for snapshot in opened.snapshots:
        assert bench.data(snapshot.name) == (before if snapshot.name == "a" else bytes([*before[:1], 100, *before[2:]]))
    opened.close()


def test_a_snapshot_that_may_come_up_shows_no_later_write(bench: Bench) -> None:
    now = bench.data()
    fail_twice(bench.io)
    bench.io.fail("unlink", path="*.map")
    with pytest.raises(errors.SnapshotFailed):
        bench.volume.create_snapshot("b")
    assert [snapshot.name for snapshot in bench.volume.snapshots] == ["a"]
    refused(bench.volume.device)
    bench.volume.close()
    bench.io.heal()
    opened = volume.Volume.open(bench.directory / "v")
    assert [snapshot.name for snapshot in opened.snapshots] == ["a", "b"]
    bench.volume = opened
    assert bench.data("b") == bench.data() == now
    opened.close()


def test_a_snapshot_without_files_is_no_reason_to_refuse_writes(bench: Bench) -> None:
    fail_twice(bench.io)
    with pytest.raises(errors.SnapshotFailed):
        bench.volume.create_snapshot("b")
    bench.write(2, 50)
    on_disk = manifest.load(bench.volume.directory)
    assert [record.name for record in on_disk.snapshots] == ["a", "b"]  # a crash would leave "b", without its files
    opened = bench.reopen()
    assert [(snapshot.name, bool(snapshot.invalid_reason)) for snapshot in opened.snapshots] == [("a", False)]
    opened.close()


def test_a_manifest_that_was_certainly_not_stored_is_no_reason_to_refuse_writes(bench: Bench) -> None:
    bench.io.fail("rename", path="volume.json")
    bench.io.fail("pwritev", path="volume.json.new")
    bench.io.fail("unlink", path="*.map")
    for change in (lambda: bench.volume.create_snapshot("b"), lambda: bench.volume.resize(CHUNKS * CHUNK * 2)):
        with pytest.raises(errors.VolumeError):
            change()
        bench.write(2, 50)
    bench.volume.close()


@pytest.mark.parametrize("change", ["create", "restore", "group"])
def test_a_failed_change_is_taken_back_while_writes_are_held(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    held: list[bool] = []
    store = manifest.store

    def watched(at: Path, record: manifest.Manifest, io: storage_io.StorageIO) -> None:
        held.append(bench.volume.device.gate.held)
        store(at, record, io)

    monkeypatch.setattr(manifest, "store", watched)
    bench.io.fail("fsync_directory", path="v", times=1)
    with pytest.raises(errors.VolumeError):
        match change:
            case "create":
                bench.volume.create_snapshot("b")
            case "group":
                group.create([bench.volume], "b")
            case "restore":
                bench.volume.begin_rollback("a")
    assert held
    assert all(held)
    bench.write(2, 50)
    bench.volume.close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    text = "target: iqn.2026-11.io.wolun:t\nvolumes:\n  - {name: vol0, lun: 0, size: 1MiB}\n"
    opened = Service(reader.parse(text, "f.yaml"), tmp_path / "state")
    yield opened
    opened.stop()
    opened.close()


def test_initiators_and_alerts_report_the_doubt(service: Service) -> None:
    owner = service.inventory.own_volume("vol0")
    io = FaultyIO()
    owner.state.io = io
    owner.create_snapshot("a")
    fail_twice(io, "vol0")
    with pytest.raises(errors.RollbackRefused):
        owner.begin_rollback("a")
    with pytest.raises(block_device.StateInDoubt) as error:
        owner.device.writev(0, [memoryview(bytes(512))])
    answer = sense.from_error(error.value)
    assert (answer.key, answer.asc) == (sense.SenseKey.DATA_PROTECT, 0x2702)
    (alert,) = [alert for alert in service.status.alerts() if alert.code == "state-in-doubt"]
    assert "vol0 refuses writes" in alert.message
    assert alert.code in explanations.EXPLANATIONS
    (shown,) = service.status.status().volumes
    assert "rolling back to 'a'" in shown.trouble
    io.heal()
    owner.create_snapshot("b")
    assert not [alert for alert in service.status.alerts() if alert.code == "state-in-doubt"]
    assert not service.status.status().volumes[0].trouble
