# SPDX-License-Identifier: Apache-2.0
"""Both policies: their promises when snapshots run out of space, and when disks fail."""

from __future__ import annotations

import errno
import functools
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from lun_backends import block_device
from lun_backends.volumes import errors, invalidation, manifest, policy, volume
from tests.faults.storage import FaultyIO

CHUNK = 4096
CHUNKS = 32
FAIL, DROP = policy.OnError.FAIL_WRITES, policy.OnError.DROP_SNAPSHOT


class Bench:
    """A volume whose every chunk is filled with its number, on a disk that fails on demand."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.io = FaultyIO()
        self.events: list[policy.Event] = []
        self.volume: volume.Volume
        (directory / "primary").write_bytes(b"".join(bytes([chunk + 1]) * CHUNK for chunk in range(CHUNKS)))
        volume.Volume.create(directory / "v", "v", directory / "primary", chunk_size=CHUNK).close()

    def open(self, **rules: Any) -> volume.Volume:
        self.volume = volume.Volume.open(
            self.directory / "v",
            rules=policy.Policy(**rules),
            listener=self.events.append,
            io=self.io,
        )
        return self.volume

    def reopen(self) -> volume.Volume:
        """Close the volume and open it again, as after a restart."""
        rules = self.volume.rules
        self.io.heal()
        self.volume.close()
        self.volume = volume.Volume.open(self.directory / "v", rules=rules)
        return self.volume

    def write(self, chunk: int, value: int, length: int = 512) -> None:
        self.volume.device.writev(chunk * CHUNK, [memoryview(bytes([value]) * length)])

    def write_each(self, chunks: Iterable[int], value: int) -> None:
        for chunk in chunks:
            self.write(chunk, value)

    def data(self, name: str | None = None) -> bytes:
        """Return the first byte of every chunk, of a snapshot or of the volume."""
        device = self.volume.device if name is None else self.volume.snapshot(name).view
        whole = bytearray(device.size)
        device.readv(0, [memoryview(whole)])
        return bytes(whole[::CHUNK])

    def invalidated(self) -> list[str]:
        return [event.name for event in self.events if isinstance(event, policy.SnapshotInvalidated)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


BEFORE = bytes(range(1, CHUNKS + 1))


class TestLimit:
    def test_fail_writes_refuses_only_writes_that_need_a_copy(self, bench: Bench) -> None:
        bench.open(on_error=FAIL, limit=4 * CHUNK).create_snapshot("a")
        for chunk in range(4):
            bench.write(chunk, 200)
        with pytest.raises(block_device.PreserveFailed) as refused:
            bench.write(4, 200)
        assert isinstance(refused.value.cause, block_device.SpaceExhausted)
        assert refused.value.lba == 4 * CHUNK // 512
        bench.write(3, 201)
        assert bench.data() == bytes([200, 200, 200, 201]) + BEFORE[4:]
        assert bench.data("a") == BEFORE
        assert any(isinstance(event, policy.WriteRefused) for event in bench.events)
        bench.volume.delete_snapshot("a")
        bench.write(4, 200)
        assert bench.volume.space.used == 0

    def test_drop_snapshot_invalidates_the_oldest_first(self, bench: Bench) -> None:
        bench.open(on_error=DROP, limit=6 * CHUNK)
        for name in "abc":
            bench.volume.create_snapshot(name)
            bench.write(ord(name) - ord("a"), 100)
        before_b, before_c = bench.data("b"), bench.data("c")
        for chunk in range(10, 14):
            bench.write(chunk, 200)
        assert bench.invalidated() == ["a"]
        assert bench.data("b") == before_b
        assert bench.data("c") == before_c
        for again in range(2):
            with pytest.raises(block_device.SnapshotInvalid, match="invalidated to make room"):
                bench.data("a")
            assert bench.volume.snapshot("a").state is manifest.SnapshotState.INVALID
            assert bench.data("c") == before_c
            if not again:
                bench.reopen()
        bench.volume.delete_snapshot("a")
        assert bench.data("c") == before_c

    def test_drop_snapshot_invalidates_the_only_snapshot_and_does_the_write(self, bench: Bench) -> None:
        bench.open(on_error=DROP, limit=2 * CHUNK).create_snapshot("a")
        for chunk in range(3):
            bench.write(chunk, 200)
        assert bench.data() == bytes([200] * 3) + BEFORE[3:]
        assert bench.invalidated() == ["a"]
        with pytest.raises(block_device.SnapshotInvalid):
            bench.data("a")
        bench.reopen()
        with pytest.raises(block_device.SnapshotInvalid):
            bench.data("a")
        bench.volume.delete_snapshot("a")
        bench.volume.create_snapshot("b")
        before = bench.data()
        bench.write(7, 201)
        assert bench.data("b") == before

    def test_the_warning_comes_once_per_passing(self, bench: Bench) -> None:
        bench.open(limit=10 * CHUNK, warn_percent=50).create_snapshot("a")
        for chunk in range(8):
            bench.write(chunk, 200)
        assert bench.events == [policy.SpaceLow(5 * CHUNK, 10 * CHUNK)]
        assert bench.volume.space.low
        bench.volume.delete_snapshot("a")
        assert not bench.volume.space.low
        bench.volume.create_snapshot("b")
        for chunk in range(8):
            bench.write(chunk, 201)
        assert len(bench.events) == 2

    def test_chunks_from_before_the_open_count(self, bench: Bench) -> None:
        bench.open(limit=4 * CHUNK).create_snapshot("a")
        for chunk in range(3):
            bench.write(chunk, 200)
        bench.reopen()
        assert bench.volume.space.used == 3 * CHUNK
        bench.write(3, 200)
        with pytest.raises(block_device.PreserveFailed):
            bench.write(4, 200)

    def test_a_direct_write_to_the_write_once_lun_counts(self, bench: Bench) -> None:
        snapshot = bench.open(limit=2 * CHUNK).create_snapshot("a")
        data = [memoryview(bytes(512))]
        snapshot.write_once.writev(0, data)
        snapshot.write_once.writev(512, data)
        snapshot.write_once.writev(CHUNK, data)
        with pytest.raises(block_device.SpaceExhausted):
            snapshot.write_once.writev(2 * CHUNK, data)
        with pytest.raises(block_device.SpaceExhausted):
            snapshot.write_once.writev(CHUNK + 512, [memoryview(bytes(CHUNK))])
        snapshot.write_once.writev(CHUNK + 512, data)

    def test_a_full_limit_refuses_new_snapshots_and_allows_deletions(self, bench: Bench) -> None:
        bench.open(limit=4 * CHUNK).create_snapshot("a")
        bench.write(0, 200)
        bench.volume.create_snapshot("b")
        for chunk in range(1, 4):
            bench.write(chunk, 200)
        with pytest.raises(errors.NoSpaceLeft, match="allowed"):
            bench.volume.create_snapshot("c")
        bench.volume.delete_snapshot("b")  # the chunks that move down need space for a while
        assert bench.data("a") == BEFORE
        assert bench.volume.space.used == 4 * CHUNK

    def test_max_snapshots_bounds_the_number_of_snapshots(self, bench: Bench) -> None:
        bench.open(max_snapshots=2)
        bench.volume.create_snapshot("a")
        bench.volume.create_snapshot("b")
        with pytest.raises(errors.TooManySnapshots):
            bench.volume.create_snapshot("c")
        bench.volume.delete_snapshot("a")
        bench.volume.create_snapshot("c")

    def test_concurrent_failures_invalidate_only_the_oldest(self, bench: Bench) -> None:
        bench.open(on_error=DROP, limit=24 * CHUNK)
        for name in "abc":
            bench.volume.create_snapshot(name)
            for chunk in range(8):
                bench.write(chunk, ord(name))
        expected = bench.data("c")
        _together([functools.partial(bench.write_each, range(first, 16, 4), 250) for first in range(8, 12)])
        assert bench.invalidated() == ["a"]
        assert bench.data("c") == expected
        assert bench.data()[8:16] == bytes([250] * 8)


class TestFailingDisk:
    @pytest.mark.parametrize("operation", ["pwritev", "fdatasync"])
    def test_fail_writes_keeps_the_snapshot(self, bench: Bench, operation: str) -> None:
        bench.open(on_error=FAIL).create_snapshot("a")
        bench.write(0, 200)
        bench.io.fail(operation, path="*.chunks")
        with pytest.raises(block_device.PreserveFailed) as refused:
            bench.write(1, 200)
        assert isinstance(refused.value.cause, block_device.MediumError)
        bench.write(0, 201)
        assert bench.data("a") == BEFORE
        bench.reopen()
        assert bench.data("a") == BEFORE
        assert bench.data() == bytes([201]) + BEFORE[1:]
        bench.write(1, 200)
        assert bench.data("a") == BEFORE

    @pytest.mark.parametrize("operation", ["pwritev", "fdatasync", "sync_map", "reserve"])
    def test_drop_snapshot_invalidates_all_snapshots_when_the_disk_fails(self, bench: Bench, operation: str) -> None:
        bench.open(on_error=DROP).create_snapshot("a")
        bench.write(0, 200)
        bench.volume.create_snapshot("b")
        bench.io.fail(operation, path="*.chunks" if operation in ("pwritev", "fdatasync") else "*.map", times=1)
        bench.write(1, 200)
        assert bench.data() == bytes([200, 200]) + BEFORE[2:]
        assert bench.invalidated() == ["a", "b"]
        for _ in range(2):
            for name in "ab":
                with pytest.raises(block_device.SnapshotInvalid, match="could not be preserved"):
                    bench.data(name)
            bench.reopen()
        bench.volume.create_snapshot("c")
        bench.write(2, 200)
        assert bench.data("c") == bytes([200, 200]) + BEFORE[2:]

    def test_a_snapshot_whose_map_cannot_be_written_is_marked_beside_it(self, bench: Bench) -> None:
        bench.open(on_error=DROP).create_snapshot("a")
        bench.io.fail("fdatasync", path="*.chunks")
        bench.io.fail("*", path="*.map")
        bench.write(1, 200)
        assert bench.invalidated() == ["a"]
        bench.reopen()
        assert bench.volume.snapshot("a").state is manifest.SnapshotState.INVALID
        with pytest.raises(block_device.SnapshotInvalid, match="could not be preserved"):
            bench.data("a")
        bench.volume.delete_snapshot("a")
        assert not list((bench.directory / "v" / "snapshots").iterdir())

    def test_a_write_is_refused_where_no_snapshot_can_be_marked(self, bench: Bench) -> None:
        bench.open(on_error=DROP).create_snapshot("a")
        bench.io.fail("*", path="*.map")
        bench.io.fail("*", path="*.chunks")
        bench.io.fail("*", path="*.invalid*")
        with pytest.raises(block_device.PreserveFailed):
            bench.write(1, 200)
        assert bench.data() == BEFORE
        bench.reopen()
        assert bench.data("a") == BEFORE

    def test_writes_are_refused_until_the_snapshot_can_be_marked(self, bench: Bench) -> None:
        bench.open(on_error=DROP).create_snapshot("a")
        for path in ("*.map", "*.chunks", "*.invalid"):
            bench.io.fail("*", path=path)
        for chunk in (1, 1, 2):
            with pytest.raises(block_device.PreserveFailed):
                bench.write(chunk, 200)
        bench.volume.device.flush()
        bench.io.heal()
        bench.write(2, 200)
        assert bench.invalidated() == ["a"]
        bench.reopen()
        assert bench.volume.snapshot("a").invalid_on_disk
        assert bench.data() == BEFORE[:2] + bytes([200]) + BEFORE[3:]

    def test_short_writes_are_finished(self, bench: Bench) -> None:
        bench.open().create_snapshot("a")
        bench.io.shorten = True
        for chunk in range(0, CHUNKS, 3):
            bench.write(chunk, 200, 2048)
        bench.io.shorten = False
        bench.reopen()
        assert bench.data("a") == BEFORE

    def test_a_failing_primary_fails_its_writes_only(self, bench: Bench) -> None:
        bench.open().create_snapshot("a")
        bench.io.fail("pwritev", path="primary", times=1)
        with pytest.raises(block_device.MediumError):
            bench.write(0, 200)
        bench.write(0, 201)
        assert bench.data() == bytes([201]) + BEFORE[1:]
        assert bench.data("a") == BEFORE

    @pytest.mark.parametrize("operation", ["open", "pwritev", "fdatasync", "rename", "fsync_directory"])
    def test_a_snapshot_that_cannot_be_recorded_is_not_taken(self, bench: Bench, operation: str) -> None:
        bench.open().create_snapshot("a")
        path = "v" if operation == "fsync_directory" else "volume.json" if operation == "rename" else "volume.json.new"
        bench.io.fail(operation, path=path)
        with pytest.raises(errors.SnapshotFailed):
            bench.volume.create_snapshot("b")
        bench.io.heal()
        bench.write(0, 200)
        assert [snapshot.name for snapshot in bench.volume.snapshots] == ["a"]
        assert bench.data("a") == BEFORE
        bench.reopen()
        assert bench.data("a") == BEFORE
        assert [snapshot.name for snapshot in bench.volume.snapshots if not snapshot.invalid_reason] == ["a"]


class TestUnreachable:
    """A snapshot whose files cannot be opened may be good again later, so no write may bypass it."""

    @pytest.mark.parametrize("kind", ["map", "chunks"])
    def test_fail_writes_refuses_writes_until_the_snapshot_can_be_opened(self, bench: Bench, kind: str) -> None:
        bench.open(on_error=FAIL).create_snapshot("a")
        bench.write(0, 200)
        bench.volume.close()
        bench.io.fail("open", errno.EACCES, path=f"*.{kind}")
        bench.open(on_error=FAIL)
        assert bench.volume.snapshot("a").state is manifest.SnapshotState.INVALID
        for chunk in (0, 1):
            with pytest.raises(block_device.PreserveFailed, match="ermission"):
                bench.write(chunk, 201)
        bench.reopen()
        assert bench.data("a") == BEFORE
        bench.write(1, 201)
        assert bench.data("a") == BEFORE

    def test_drop_snapshot_invalidates_it_for_good(self, bench: Bench) -> None:
        bench.open(on_error=DROP).create_snapshot("a")
        bench.volume.create_snapshot("b")
        bench.volume.close()
        bench.io.fail("open", errno.EACCES, path=f"{bench.volume.snapshot('b').uuid}.map")
        bench.open(on_error=DROP)
        bench.write(1, 201)
        assert bench.data()[1] == 201
        assert bench.invalidated() == ["b", "a"]
        bench.reopen()
        assert [snapshot.state.value for snapshot in bench.volume.snapshots] == ["invalid", "invalid"]

    def test_a_deletion_does_not_skip_a_snapshot_that_may_come_back(self, bench: Bench) -> None:
        bench.open().create_snapshot("a")
        bench.write(0, 200)
        bench.volume.create_snapshot("b")
        bench.write(1, 200)
        bench.volume.close()
        bench.io.fail("open", errno.EACCES, path=f"{bench.volume.snapshot('a').uuid}.map")
        bench.open()
        bench.io.fail("open", errno.EROFS, path="*.invalid*")
        with pytest.raises(errors.VolumeError):
            bench.volume.delete_snapshot("b")
        bench.reopen()
        bench.volume.resume_deletions()
        assert [snapshot.name for snapshot in bench.volume.snapshots] == ["a"]
        assert bench.data("a") == BEFORE

    def test_it_is_lost_if_the_next_newer_snapshot_is_deleted_meanwhile(self, bench: Bench) -> None:
        bench.open().create_snapshot("a")
        bench.volume.create_snapshot("b")
        bench.write(1, 200)
        bench.volume.close()
        bench.io.fail("open", errno.EACCES, path=f"{bench.volume.snapshot('a').uuid}.map")
        bench.open()
        bench.volume.delete_snapshot("b")
        bench.write(2, 201)  # no snapshot that needs the old content is left
        bench.reopen()
        with pytest.raises(block_device.SnapshotInvalid):
            bench.data("a")


class TestSlowDisk:
    def test_fail_writes_refuses_the_write_of_a_late_copy(self, bench: Bench) -> None:
        bench.open(on_error=FAIL, copy_timeout=0.05).create_snapshot("a")
        go_on = threading.Event()
        bench.io.delay("fdatasync", go_on, path="*.chunks", times=1)
        with pytest.raises(block_device.PreserveFailed) as refused:
            bench.write(0, 200)
        assert isinstance(refused.value.cause, block_device.CopyTimedOut)
        assert bench.data() == BEFORE
        go_on.set()
        bench.volume.device.preserver.copy_timeout = 60
        bench.write(0, 201)
        assert bench.data("a") == BEFORE

    @pytest.mark.timeout(30)
    def test_drop_snapshot_does_the_write_of_a_late_copy(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.open(on_error=DROP, copy_timeout=0.05).create_snapshot("a")
        go_on = threading.Event()
        bench.io.delay("fdatasync", go_on, path="*.chunks", times=1)
        monkeypatch.setattr(invalidation, "_PATIENCE", 60)  # no caller waits for the disk that was too slow
        bench.write(0, 200)
        assert bench.data() == bytes([200]) + BEFORE[1:]
        with pytest.raises(block_device.SnapshotInvalid, match=r"within 0\.05 s"):
            bench.data("a")
        go_on.set()
        bench.reopen()
        with pytest.raises(block_device.SnapshotInvalid):
            bench.data("a")


def _together(bodies: list[Callable[[], object]]) -> None:
    errors: list[BaseException] = []

    def run(body: Callable[[], object]) -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


class TestLostInDeletion:
    """If a snapshot in deletion loses its files, the snapshot that its chunks move down to is lost, too, and no other."""

    def stopped(self, bench: Bench) -> str:
        """Stop while the chunks of snapshot `b` move down to `a`.  Return the name of the map of `b`."""
        bench.open().create_snapshot("a")
        bench.write(0, 200)
        bench.volume.create_snapshot("b")
        bench.write(1, 200)
        with pytest.raises(errors.DeletionStopped):
            bench.volume.delete_snapshot("b", cancelled=lambda: True)
        bench.volume.close()
        return f"{bench.volume.snapshot('b').uuid}.map"

    def test_lost_files_invalidate_the_older_snapshot(self, bench: Bench) -> None:
        (bench.directory / "v" / "snapshots" / self.stopped(bench)).unlink()
        bench.open()
        assert bench.volume.snapshot("a").invalid_on_disk
        bench.write(1, 201)
        bench.write(2, 201)
        with pytest.raises(block_device.SnapshotInvalid):
            bench.data("a")
        bench.volume.delete_snapshot("a")
        assert not bench.volume.snapshots
        assert bench.data() == bytes([200, 201, 201]) + BEFORE[3:]

    def test_unreachable_files_refuse_writes_until_they_are_back(self, bench: Bench) -> None:
        bench.io.fail("open", errno.EACCES, path=self.stopped(bench))
        bench.open()
        with pytest.raises(block_device.PreserveFailed):
            bench.write(2, 201)
        bench.reopen()
        bench.write(2, 201)
        assert bench.data("a") == BEFORE
        bench.volume.resume_deletions()
        assert bench.data("a") == BEFORE

    def test_writes_are_refused_where_the_loss_cannot_be_recorded(self, bench: Bench) -> None:
        name = self.stopped(bench)
        for rule in policy.OnError:
            bench.io.heal()
            bench.io.fail("open", errno.ENOENT, path=name)
            bench.io.fail("open", errno.EROFS, path="*.invalid*")
            bench.open(on_error=rule)
            with pytest.raises(block_device.PreserveFailed):
                bench.write(2, 201)
            bench.volume.close()
        bench.reopen()
        assert bench.data("a") == BEFORE
