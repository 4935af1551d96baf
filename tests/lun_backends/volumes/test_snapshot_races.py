# SPDX-License-Identifier: Apache-2.0
"""Races on a volume: readers against writers, snapshots under writers, SIGKILL."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lun_backends import block_device, snapshot_view, view_chain
from lun_backends.durability import Durability
from lun_backends.volumes import volume
from lun_backends.volumes.snapshot import Snapshot
from tests.memory_device import MemoryDevice

CHUNK = 4096
BLOCK = 512


def read(device: block_device.BlockDevice, offset: int, length: int) -> bytes:
    data = bytearray(length)
    device.readv(offset, [memoryview(data)])
    return bytes(data)


@pytest.fixture
def made(tmp_path: Path) -> volume.Volume:
    return volume.Volume.create(
        tmp_path / "state",
        "v",
        tmp_path / "disk",
        size=64 * CHUNK,
        chunk_size=CHUNK,
        durability=Durability.PROCESS_CRASH,
    )


def run_all(*bodies: Callable[[], None]) -> None:
    """Run each body in its own thread, and raise the first error of any."""
    failures: list[BaseException] = []

    def guarded(body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - handed to the test below, which raises it
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_rule_3_a_block_preserved_while_the_primary_was_read_comes_from_the_copy(made: volume.Volume) -> None:
    """The write comes exactly between the look-up in the write-once device and the read of the primary.

    A second write comes after a new snapshot, so that only the later chain has the copy.
    """
    for behind_a_new_snapshot in (False, True):
        name = f"s{behind_a_new_snapshot}"
        before = read(made.device, 0, 2 * CHUNK)
        view = made.create_snapshot(name).view
        primary = made.primary
        original = primary.readv

        def overtaken(*arguments: object, **options: object) -> None:
            primary.readv = original  # type: ignore[method-assign]  # noqa: B023 - used before the loop goes on
            if behind_a_new_snapshot:  # noqa: B023 - likewise
                made.create_snapshot("meanwhile")
            made.device.writev(512, [memoryview(os.urandom(CHUNK))])
            original(*arguments, **options)  # type: ignore[arg-type]  # noqa: B023 - likewise

        primary.readv = overtaken  # type: ignore[method-assign]
        assert read(view, 0, 2 * CHUNK) == before
    made.close()


def test_views_never_change_while_writers_race_them(made: volume.Volume) -> None:
    made.device.writev(0, [memoryview(random.Random(1).randbytes(made.device.size))])
    stop = threading.Event()
    moments: list[tuple[Snapshot, bytes]] = []

    def write(seed: int) -> None:
        rng = random.Random(seed)
        while not stop.is_set():
            blocks = rng.randrange(1, 12)
            first = rng.randrange(made.device.size // BLOCK - blocks + 1)
            made.device.writev(first * BLOCK, [memoryview(rng.randbytes(blocks * BLOCK))])

    def check(seed: int) -> None:
        rng = random.Random(seed)
        while not stop.is_set():
            if moments:
                snapshot, moment = rng.choice(moments)
                length = rng.randrange(1, 24) * BLOCK
                offset = rng.randrange((len(moment) - length) // BLOCK + 1) * BLOCK
                assert read(snapshot.view, offset, length) == moment[offset : offset + length]

    def take() -> None:
        try:
            for turn in range(8):
                snapshot = made.create_snapshot(f"s{turn}")
                # The snapshot must always show its first content, so that later changes are detected.
                moments.append((snapshot, read(snapshot.view, 0, made.device.size)))
                threading.Event().wait(0.05)
                if turn % 3 == 2:
                    victim = moments.pop(1)[0]
                    threading.Event().wait(0.01)  # readers that chose it a moment ago have ended, or meet DeviceClosed
                    made.delete_snapshot(victim.name)
        finally:
            stop.set()

    def check_tolerantly() -> None:
        while not stop.is_set():
            try:
                check(3)
            except block_device.DeviceClosed:  # it was deleted between the choice and the read
                continue

    run_all(lambda: write(1), lambda: write(2), check_tolerantly, take)
    for snapshot, moment in moments:
        assert read(snapshot.view, 0, made.device.size) == moment
    made.close()


def test_a_snapshot_under_writers_is_a_consistent_cut(made: volume.Volume) -> None:
    """Each writer writes n to its first place, then to its second, far away: at every moment, first - second is 0 or 1."""
    writers = 3
    stop = threading.Event()
    apart = 32 * CHUNK

    def write(number: int) -> None:
        sequence = 0
        while not stop.is_set():
            sequence += 1
            data = [memoryview(struct.pack("<Q", sequence) * (BLOCK // 8))]
            made.device.writev(number * CHUNK, data)
            made.device.writev(apart + number * CHUNK, data)

    def take() -> None:
        try:
            for turn in range(25):
                view = made.create_snapshot(f"s{turn}").view
                for number in range(writers):
                    first, second = (
                        struct.unpack("<64Q", read(view, place + number * CHUNK, BLOCK)) for place in (0, apart)
                    )
                    assert len(set(first)) == len(set(second)) == 1, "a torn block"
                    assert first[0] - second[0] in (0, 1)
        finally:
            stop.set()

    run_all(*(lambda number=number: write(number) for number in range(writers)), take)
    made.close()


def test_a_snapshot_is_removed_only_when_earlier_reads_have_ended() -> None:
    primary, own, newer = (
        MemoryDevice(CHUNK),
        MemoryDevice(CHUNK, write_once=True),
        MemoryDevice(CHUNK, write_once=True),
    )
    newer.fill(b"\x77" * CHUNK)
    chain = view_chain.Chain([own, newer])
    view = snapshot_view.SnapshotView(primary, chain, own)
    reading, go_on, replaced = threading.Event(), threading.Event(), threading.Event()

    def stop(method: str, _offset: int, _length: int) -> None:
        if method == "readv":
            reading.set()
            assert go_on.wait(60)

    newer.before = stop
    seen: list[bytes] = []

    def replace() -> None:
        assert reading.wait(60)
        chain.replace([own])
        replaced.set()
        newer.close()

    threads = [threading.Thread(target=lambda: seen.append(read(view, 0, CHUNK))), threading.Thread(target=replace)]
    for thread in threads:
        thread.start()
    while len(chain.links) > 1:
        assert not replaced.wait(0.01)
    assert not replaced.wait(0.05)
    go_on.set()
    for thread in threads:
        thread.join()
    assert seen == [b"\x77" * CHUNK]
    assert read(view, 0, CHUNK) == bytes(CHUNK)  # a later read uses the new chain


CHILD = """
import random, sys
from pathlib import Path
from lun_backends.volumes import volume
opened = volume.Volume.open(Path(sys.argv[1]))
rng = random.Random(int(sys.argv[2]))
print("ready", flush=True)
while True:
    blocks = rng.randrange(1, 20)
    first = rng.randrange(opened.device.size // 512 - blocks + 1)
    opened.device.writev(first * 512, [memoryview(rng.randbytes(blocks * 512))])
"""


def test_views_are_exact_after_kill_9_of_a_writer(tmp_path: Path) -> None:
    made = volume.Volume.create(tmp_path / "state", "v", tmp_path / "disk", size=256 * CHUNK, chunk_size=CHUNK)
    made.device.writev(0, [memoryview(random.Random(1).randbytes(made.device.size))])
    moments = {}
    rng = random.Random(2)
    for turn in range(4):
        moments[f"s{turn}"] = read(made.device, 0, made.device.size)
        made.create_snapshot(f"s{turn}")
        made.close()
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(made.directory), str(turn)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with child.stdout:
            threading.Event().wait(rng.random() * 0.3)
            child.send_signal(signal.SIGKILL)
            child.wait()
        made = volume.Volume.open(made.directory)
        for snapshot in made.snapshots:
            assert read(snapshot.view, 0, made.device.size) == moments[snapshot.name]
    made.close()


def test_the_memory_device_reports_blank_blocks_as_the_contract_says() -> None:
    """A read of a write-once device raises BlankBlock wherever in the range a blank block is."""
    device = MemoryDevice(CHUNK, write_once=True)
    device.fill(bytes(512))
    with pytest.raises(block_device.BlankBlock):
        read(device, 0, 1024)
