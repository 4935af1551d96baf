# SPDX-License-Identifier: Apache-2.0
"""Views of a chain of real stores: what changes a settled snapshot is seen at once, and costs do not grow with the chain."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.durability import Durability
from lun_backends.volumes import errors, policy, volume
from tests.powercut import replay

GRAIN = 4096
GRAINS = 64


def read(device: block_device.BlockDevice, offset: int = 0, length: int = GRAIN) -> bytes:
    data = bytearray(length)
    device.readv(offset, [memoryview(data)])
    return bytes(data)


def made(directory: Path, **options: object) -> volume.Volume:
    return volume.Volume.create(
        directory / "v",
        "v",
        directory / "disk",
        size=GRAINS * GRAIN,
        chunk_size=GRAIN,
        durability=Durability.PROCESS_CRASH,
        **options,  # type: ignore[arg-type]
    )


def test_a_view_does_not_go_past_a_snapshot_that_became_invalid(tmp_path: Path) -> None:
    opened = made(tmp_path)
    for name in ("a", "b", "c", "d"):
        opened.create_snapshot(name)
        opened.device.writev(0 if name == "a" else GRAIN, [memoryview(name.encode() * GRAIN)])
    views = {snapshot.name: snapshot.view for snapshot in opened.snapshots}
    for view in views.values():
        read(view, 0, 3 * GRAIN)
    opened.state.enforcer.invalidate(opened.snapshot("b"), "a test says so")
    assert read(views["a"]) == bytes(GRAIN), "what the snapshot has itself can be read"
    for name in ("a", "b"):
        with pytest.raises(block_device.SnapshotInvalid):
            read(views[name], 2 * GRAIN)
        with pytest.raises(block_device.SnapshotInvalid):
            views[name].read_now(2 * GRAIN, GRAIN, [memoryview(bytearray(GRAIN))])
    assert read(views["c"], GRAIN) == b"b" * GRAIN
    opened.close()


def test_a_view_shows_what_an_initiator_writes_to_a_settled_snapshot(tmp_path: Path) -> None:
    opened = made(tmp_path)
    for name in ("a", "b", "c"):
        opened.create_snapshot(name)
    oldest, newest = opened.snapshots[0].view, opened.snapshots[-1].view
    assert read(oldest) == read(newest) == bytes(GRAIN)
    opened.snapshots[1].write_once.writev(512, [memoryview(b"\x66" * 512)])
    assert read(oldest) == bytes(512) + b"\x66" * 512 + bytes(GRAIN - 1024)
    assert read(newest) == bytes(GRAIN)
    opened.snapshots[1].write_once.write_zeroes(GRAIN, GRAIN, discard=False)
    opened.device.writev(GRAIN, [memoryview(b"\x77" * GRAIN)])
    assert read(oldest, GRAIN) == bytes(GRAIN)
    opened.delete_snapshot("b")
    assert read(oldest) == bytes(512) + b"\x66" * 512 + bytes(GRAIN - 1024)
    opened.close()


@pytest.mark.parametrize("seed", range(2))
def test_views_are_right_or_invalid_while_snapshots_are_taken_deleted_and_invalidated(seed: int) -> None:
    """Copies, takings and deletions race with reads, and snapshots are lost because their space is used up."""
    with replay.scratch() as directory:
        rules = policy.Policy(on_error=policy.OnError.DROP_SNAPSHOT, limit=(GRAINS + 20) * GRAIN)
        opened = made(directory, rules=rules)
        moments: dict[str, tuple[block_device.BlockDevice, bytes]] = {}
        ended = threading.Event()
        failures: list[BaseException] = []
        refused: list[str] = []

        def guarded(body: object, number: int) -> None:
            dice = random.Random(f"{seed}/{number}")
            try:
                while not ended.is_set():
                    body(dice)  # type: ignore[operator]
            except BaseException as error:  # noqa: BLE001 - raised by the test
                failures.append(error)
                ended.set()

        def write(dice: random.Random) -> None:
            first = dice.randrange(GRAINS)
            opened.device.writev(first * GRAIN, [memoryview(dice.randbytes(GRAIN * min(2, GRAINS - first)))])

        def look(dice: random.Random) -> None:
            for name, (view, moment) in list(moments.items()):
                first = dice.randrange(GRAINS)
                count = min(dice.choice((1, 1, 5, 40)), GRAINS - first) * GRAIN
                try:
                    data = read(view, first * GRAIN, count)
                except (block_device.SnapshotInvalid, block_device.DeviceClosed):
                    refused.append(name)
                    continue
                assert data == moment[first * GRAIN : first * GRAIN + count], f"{name} has changed"

        bodies = [write, write, look, look]
        threads = [threading.Thread(target=guarded, args=(body, number)) for number, body in enumerate(bodies)]
        for thread in threads:
            thread.start()
        dice = random.Random(seed)
        for turn in range(25):
            name = f"s{turn}"
            try:
                view = opened.create_snapshot(name).view
                moments[name] = view, read(view, 0, GRAINS * GRAIN)
            except (errors.NoSpaceLeft, block_device.SnapshotInvalid):
                refused.append(name)
            threading.Event().wait(dice.random() * 0.02)
            while len(opened.snapshots) > 4:
                victim = dice.choice(opened.snapshots)
                moments.pop(victim.name, None)
                try:
                    opened.delete_snapshot(victim.name)
                except (errors.VolumeError, block_device.SnapshotInvalid):
                    opened.delete_snapshot(opened.snapshots[0].name)
            if ended.is_set():
                break
        ended.set()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        assert refused, "no snapshot was lost: the test tries too little"
        opened.close()
