# SPDX-License-Identifier: Apache-2.0
"""A primary that changed while the volume was closed makes its snapshots doubtful; a crash or an honest copy does not."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from lun_backends.files import facts
from lun_backends.volumes import boot, errors, identity, manifest, policy, volume
from lun_backends.volumes.manifest import SnapshotState
from tests.faults.storage import FaultyIO
from tests.lun_backends.volumes.sample import CHUNK, SIZE, block, read

Change = Callable[[Path], None]


def make(directory: Path) -> Path:
    """Make a volume with a snapshot "a", close it, and return its primary."""
    made = volume.Volume.create(directory / "state", "v", directory / "disk", size=SIZE, chunk_size=CHUNK)
    made.device.writev(0, block(1, SIZE))
    made.create_snapshot("a")
    made.device.writev(0, block(2, CHUNK))
    made.close()
    return directory / "disk"


def doubts(directory: Path) -> str:
    """Open the volume, close it, and return why its snapshots are doubtful."""
    opened = volume.Volume.open(directory / "state")
    states = {snapshot.state for snapshot in opened.snapshots}
    assert states == {SnapshotState.DOUBTFUL if opened.doubt else SnapshotState.ACTIVE}
    opened.close()
    return opened.doubt


def crash(directory: Path) -> None:
    """Open the volume in another process, write to it, and kill that process."""
    text = (
        "import os, pathlib, sys\n"
        "from lun_backends.volumes import volume\n"
        "opened = volume.Volume.open(pathlib.Path(sys.argv[1]))\n"
        "opened.device.writev(8192, [memoryview(bytes([9]) * 4096)])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", text, directory / "state"], check=False)
    assert done.returncode == -9


def written_to(primary: Path) -> None:
    with primary.open("r+b") as file:
        file.seek(CHUNK * 3)
        file.write(b"Z" * CHUNK)


def written_to_and_dated_back(primary: Path) -> None:
    status = primary.stat()
    written_to(primary)
    os.utime(primary, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(primary: Path) -> None:
    primary.rename(primary.with_name("other"))
    primary.write_bytes(bytes(SIZE))


def replaced_by_a_copy(primary: Path) -> None:
    shutil.copy(primary, primary.with_name("other"))
    primary.with_name("other").replace(primary)


def made_larger(primary: Path) -> None:
    os.truncate(primary, SIZE + CHUNK)


def without_its_mark(primary: Path) -> None:
    os.removexattr(primary, facts.MARK)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (written_to, "its primary was changed at "),
        (
            written_to_and_dated_back,
            "its primary was changed at .*its modification time is the same|its modification time is the same",
        ),
        (replaced, "its primary has no mark of wolun"),
        (replaced_by_a_copy, "its primary has no mark of wolun"),
        (made_larger, f"its primary has {SIZE + CHUNK} bytes, and had {SIZE}"),
        (without_its_mark, "its primary has no mark of wolun"),
    ],
)
def test_change_of_the_primary_makes_snapshots_doubtful(tmp_path: Path, change: Change, reason: str) -> None:
    primary = make(tmp_path)
    change(primary)
    first = doubts(tmp_path)
    assert any(part in first for part in reason.split("|")), first
    assert doubts(tmp_path) == first  # it stays so, although nothing changed since


def test_sound_volume_is_never_doubtful(tmp_path: Path) -> None:
    make(tmp_path)
    for _ in range(3):
        assert not doubts(tmp_path)


def test_crash_makes_nothing_doubtful(tmp_path: Path) -> None:
    primary = make(tmp_path)
    for _ in range(3):
        crash(tmp_path)
    assert not doubts(tmp_path)
    crash(tmp_path)
    replaced(primary)
    assert "no mark of wolun" in doubts(tmp_path)


def test_crash_and_an_older_copy_of_the_primary_are_told_apart(tmp_path: Path) -> None:
    primary = make(tmp_path)
    shutil.copy2(primary, tmp_path / "older")  # with its attributes
    crash(tmp_path)
    (tmp_path / "older").replace(primary)
    assert doubts(tmp_path) == "its primary is older than the state of the volume: it has generation 2, the state 3"


def test_copy_after_a_crash_is_doubtful_because_nothing_tells_when_it_was_made(tmp_path: Path) -> None:
    primary = make(tmp_path)
    crash(tmp_path)
    shutil.copy2(primary, tmp_path / "copy")
    (tmp_path / "copy").replace(primary)
    assert "is another file: it has inode" in doubts(tmp_path)


def test_older_copy_of_the_state_is_found(tmp_path: Path) -> None:
    make(tmp_path)
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    opened = volume.Volume.open(tmp_path / "state")
    opened.device.writev(CHUNK * 5, block(7, CHUNK))
    opened.close()
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "copy").rename(tmp_path / "state")
    assert doubts(tmp_path) == "its primary is newer than the state of the volume: it has generation 4, the state 2"


def test_copy_of_the_state_from_a_running_daemon_is_found_after_its_end(tmp_path: Path) -> None:
    make(tmp_path)
    opened = volume.Volume.open(tmp_path / "state")
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    opened.close()
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "copy").rename(tmp_path / "state")
    assert "newer than the state" in doubts(tmp_path)


def test_two_copies_of_the_state_in_turn_are_found(tmp_path: Path) -> None:
    make(tmp_path)
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    assert not doubts(tmp_path)
    (tmp_path / "state").rename(tmp_path / "first")
    (tmp_path / "copy").rename(tmp_path / "state")
    assert "newer" in doubts(tmp_path)
    (tmp_path / "state").rename(tmp_path / "copy")
    (tmp_path / "first").rename(tmp_path / "state")
    assert "used with another copy of the volume's state" in doubts(tmp_path)


def test_use_by_another_volume_is_found(tmp_path: Path) -> None:
    primary = make(tmp_path)
    volume.Volume.create(tmp_path / "other", "w", primary).close()
    assert "was used by another volume" in doubts(tmp_path)


def test_honest_copy_of_everything_is_no_doubt(tmp_path: Path) -> None:
    """`cp -a` to another disk keeps attributes and times, and nothing wrote to the copy since."""
    make(tmp_path / "here")
    subprocess.run(["cp", "-a", tmp_path / "here", tmp_path / "there"], check=True)
    record = manifest.load(tmp_path / "there" / "state")
    moved = dataclasses.replace(record, primary=dataclasses.replace(record.primary, path=tmp_path / "there" / "disk"))
    manifest.store(tmp_path / "there" / "state", moved)
    assert not doubts(tmp_path / "there")


def test_state_of_an_older_version_has_nothing_to_compare(tmp_path: Path) -> None:
    primary = make(tmp_path)
    path = tmp_path / "state" / "volume.json"
    fields = json.loads(path.read_text())
    for field in ("identity", "doubtful"):
        del fields[field]
    path.write_text(json.dumps({**fields, "format": 1}))
    replaced(primary)
    assert not doubts(tmp_path)
    replaced(primary)
    assert doubts(tmp_path)


def test_file_system_without_attributes_goes_by_the_other_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(errno.EOPNOTSUPP, "no attributes")

    monkeypatch.setattr("lun_backends.files.storage_io.StorageIO.attribute", refuse)
    primary = make(tmp_path)
    assert not doubts(tmp_path)
    written_to(primary)
    assert "was changed at" in doubts(tmp_path)


def test_full_disk_of_the_primary_keeps_the_generation_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as full:
        full.setattr("lun_backends.files.storage_io.StorageIO.set_attribute", refuse)
        assert not doubts(tmp_path)
    assert not doubts(tmp_path)


@pytest.mark.parametrize("after", range(4))
def test_manifest_that_cannot_be_stored_makes_nothing_doubtful(tmp_path: Path, after: int) -> None:
    make(tmp_path)
    io = FaultyIO()
    io.fail("rename", path="volume.json", after=after)
    opened = volume.Volume.open(tmp_path / "state", io=io)
    opened.device.writev(0, block(3, CHUNK))
    opened.close()
    assert io.failed
    # With the very first store refused, nothing could be recorded before the writes: then only a doubt is safe.
    assert bool(doubts(tmp_path)) is (after == 0)


def test_record_is_not_clean_once_something_was_stored_after_an_open_that_was_not(tmp_path: Path) -> None:
    make(tmp_path)
    io = FaultyIO()
    io.fail("rename", path="volume.json", times=1)
    opened = volume.Volume.open(tmp_path / "state", io=io)
    opened.create_snapshot("b")
    known = manifest.load(tmp_path / "state").identity
    assert known is not None
    assert not known.clean  # a crash after the next write must not look like a change behind the volume's back
    opened.close()


def test_doubt_is_of_earlier_snapshots_only_and_ends_when_the_primary_is_accepted(tmp_path: Path) -> None:
    written_to(make(tmp_path))
    events: list[policy.Event] = []
    opened = volume.Volume.open(tmp_path / "state", listener=events.append)
    (event,) = events
    assert isinstance(event, policy.PrimaryDiffers)
    assert event.names == ("a",)
    opened.create_snapshot("b")
    assert [snapshot.state for snapshot in opened.snapshots] == [SnapshotState.DOUBTFUL, SnapshotState.ACTIVE]
    with pytest.raises(errors.SnapshotDoubtful, match="run `wolun volume accept v`"):
        opened.begin_rollback("a")
    opened.begin_rollback("b")
    assert opened.continue_rollback()
    assert read(opened.snapshot("a").view, 0, CHUNK) == bytes([1]) * CHUNK  # it is served all the same
    assert opened.accept_primary() == ["a"]
    opened.close()
    assert not doubts(tmp_path)


def test_deleted_snapshot_leaves_no_doubt_behind(tmp_path: Path) -> None:
    written_to(make(tmp_path))
    opened = volume.Volume.open(tmp_path / "state")
    opened.delete_snapshot("a")
    opened.close()
    assert manifest.load(tmp_path / "state").doubtful == {}


def test_rollback_to_a_doubtful_snapshot_waits_for_the_decision(tmp_path: Path) -> None:
    primary = make(tmp_path)
    opened = volume.Volume.open(tmp_path / "state")
    opened.begin_rollback("a")
    opened.close()
    written_to(primary)
    opened = volume.Volume.open(tmp_path / "state")
    with pytest.raises(errors.SnapshotDoubtful):
        opened.continue_rollback()
    opened.accept_primary()
    assert opened.continue_rollback()
    opened.close()


DISK = facts.Facts(is_disk=True, size=1 << 30, ids={"wwid": "naa.5000c500a1b2c3d4"}, sequence="9", written=100)


@pytest.mark.parametrize(
    ("changes", "clean", "reason"),
    [
        ({}, True, ""),
        ({"ids": {"wwid": "naa.5000c500ffffffff"}}, False, "is another disk: its wwid is"),
        ({"ids": {}, "sequence": "10"}, False, "is another disk: it appeared"),
        ({"sequence": "10"}, True, ""),  # it was unplugged and came back
        ({"written": 108}, True, "was written to after the volume was closed: 8 sectors"),
        ({"written": 108}, False, ""),
        ({"size": 1 << 29}, False, "has 536870912 bytes"),
        ({"size": 1 << 31}, True, ""),
        ({"is_disk": False}, True, "is a file now"),
    ],
)
def test_disk_is_recognised_by_what_the_kernel_knows_of_it(
    changes: dict[str, object], clean: bool, reason: str
) -> None:
    seen = dataclasses.replace(DISK, **changes)  # type: ignore[arg-type] # any field
    found = identity.difference(identity.record(DISK, generation="", clean=clean), seen, uuid.uuid4())
    assert found.startswith(reason)
    assert bool(found) is bool(reason)


def test_counts_of_another_boot_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    known = identity.record(DISK, generation="", clean=True)
    monkeypatch.setattr(boot, "current", lambda: "another")
    assert not identity.difference(known, dataclasses.replace(DISK, written=5, sequence="2"), uuid.uuid4())
