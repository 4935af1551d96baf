# SPDX-License-Identifier: Apache-2.0
"""Clones: a model of their content over restarts, kills and power cuts; what they hold; their limits."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.block_device import ExtentKind
from lun_backends.durability import Durability
from lun_backends.files import storage_io
from lun_backends.volumes import boot, clone_device, errors, volume

GRAIN = 4096
BLOCK = 512
GRAINS = 40
SIZE = GRAINS * GRAIN + BLOCK


def read(device: block_device.BlockDevice | None, offset: int = 0, length: int = SIZE) -> bytes:
    assert device is not None
    data = bytearray(length)
    device.readv(offset, [memoryview(data)])
    return bytes(data)


def made(directory: Path, io: storage_io.StorageIO = storage_io.SYSTEM) -> volume.Volume:
    opened = volume.Volume.create(
        directory / "v", "v", directory / "disk", size=SIZE, durability=Durability.PROCESS_CRASH, io=io
    )
    opened.device.writev(0, [memoryview(random.Random(1).randbytes(SIZE // BLOCK // 2 * BLOCK))])
    opened.create_snapshot("a")
    opened.device.writev(0, [memoryview(random.Random(2).randbytes(20 * GRAIN))])
    return opened


def change(device: block_device.BlockDevice, content: bytearray, dice: random.Random) -> None:
    """Write or zero a random range of a device and of what it should have."""
    first = dice.randrange(SIZE // BLOCK)
    count = min(dice.choice((1, 3, 8, 16, 100)), SIZE // BLOCK - first)
    offset, length = first * BLOCK, count * BLOCK
    if dice.random() < 0.3:
        device.write_zeroes(offset, length, discard=dice.random() < 0.7, fua=dice.random() < 0.2)
        content[offset : offset + length] = bytes(length)
        return
    data = dice.randbytes(length)
    cut = dice.randrange(length + 1)
    pieces = [memoryview(data)[:cut], memoryview(data)[cut:]]
    if dice.random() < 0.5 or not device.write_now(offset, length, pieces):
        device.writev(offset, pieces, fua=dice.random() < 0.2)
    content[offset : offset + length] = data


@pytest.mark.parametrize("seed", range(3))
def test_a_clone_is_like_a_copy_of_the_snapshot(tmp_path: Path, seed: int) -> None:
    """Nothing changes the clone but its own writes: no write to the volume, no other snapshot, no rollback, no restart."""
    dice = random.Random(seed)
    opened = made(tmp_path)
    moment = read(opened.snapshot("a").view)
    device = opened.create_clone("a", "c").device
    content = bytearray(moment)
    assert device is not None
    for turn in range(60):
        for _ in range(dice.randrange(4)):
            change(device, content, dice)
            change(opened.device, bytearray(SIZE), dice)
        match dice.randrange(8):
            case 0:
                opened.create_snapshot(f"s{turn}")
            case 1 if len(opened.snapshots) > 1:
                opened.delete_snapshot(dice.choice([other.name for other in opened.snapshots if other.name != "a"]))
            case 2:
                opened.begin_rollback(dice.choice(opened.snapshots).name)
                opened.continue_rollback()
            case 3:
                opened.close()
                opened = volume.Volume.open(tmp_path / "v")
                device = opened.clones[0].device
                assert device is not None
            case 4:
                with device.exclusive() as held:
                    change(held, content, dice)
            case 5:
                device.flush()
        assert read(device) == content
        data = bytearray(GRAIN)
        offset = dice.randrange(GRAINS) * GRAIN
        if device.read_now(offset, GRAIN, [memoryview(data)]):
            assert data == content[offset : offset + GRAIN]
        assert read(opened.snapshot("a").view) == moment
        at = 0
        for extent in device.extents(0, SIZE):
            assert extent.offset == at
            at += extent.length
            if extent.kind is ExtentKind.HOLE:
                assert not any(content[extent.offset : at])
        assert at == SIZE
    opened.close()


CHILD = """
import random, sys
from pathlib import Path
from lun_backends.volumes import volume
opened = volume.Volume.open(Path(sys.argv[1]))
device = opened.clones[0].device
dice = random.Random(int(sys.argv[2]))
print("ready", flush=True)
while True:
    first, count = dice.randrange(321 - 20), dice.randrange(1, 20)
    fill = dice.randrange(256)
    print(first, count, fill, end=" ", flush=True)
    if fill:
        device.writev(first * 512, [memoryview(bytes([fill]) * (512 * count))])
    else:
        device.write_zeroes(first * 512, 512 * count, discard=True)
    print("done", flush=True)
"""


def test_a_killed_process_loses_no_write_that_it_acknowledged(tmp_path: Path) -> None:
    opened = made(tmp_path)
    content = bytearray(read(opened.create_clone("a", "c").device))
    opened.close()
    for turn in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path / "v"), str(turn)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        with child.stdout:
            assert child.stdout.readline() == "ready\n"
            threading.Event().wait(0.05 + 0.05 * turn)
            child.send_signal(signal.SIGKILL)
            lines = child.stdout.read().splitlines()
            child.wait()
        assert lines
        under_way = b""
        first = 0
        for line in lines:
            words = line.split()
            if len(words) < 3:
                continue
            first, data = int(words[0]), bytes([int(words[2])]) * (int(words[1]) * BLOCK)
            if words[-1] == "done":
                content[first * BLOCK : first * BLOCK + len(data)] = data
            else:
                under_way = data
        opened = volume.Volume.open(tmp_path / "v")
        found = read(opened.clones[0].device)
        for at in range(0, SIZE, BLOCK):
            new = under_way[at - first * BLOCK :][:BLOCK] if at >= first * BLOCK else b""
            assert found[at : at + BLOCK] in (content[at : at + BLOCK], new), (
                f"block {at // BLOCK} is neither old nor new"
            )
        content[:] = found
        opened.close()


class Cut(storage_io.StorageIO):
    """The disk after a power cut: each file as it was at its last sync, and any of the later writes that the kernel chose."""

    def __init__(self) -> None:
        self.synced: dict[str, bytes] = {}
        self.dice = random.Random(1)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)
        self.note(fd)

    def note(self, fd: int) -> None:
        name = str(Path(f"/proc/self/fd/{fd}").readlink())
        self.synced[name] = Path(name).read_bytes()

    def lose(self, directory: Path) -> None:
        """Leave in each file, sector by sector, what was synced or what was written since."""
        for path in directory.iterdir():
            before = self.synced.get(str(path))
            if path.suffix == ".json" or before is None:
                continue
            now = path.read_bytes()
            before = before.ljust(len(now), b"\0")
            with path.open("r+b") as file:
                for at in range(0, len(now), BLOCK):
                    if before[at : at + BLOCK] != now[at : at + BLOCK] and self.dice.random() < 0.5:
                        file.seek(at)
                        file.write(before[at : at + BLOCK])
            self.synced[str(path)] = path.read_bytes()


def reboot(patch: pytest.MonkeyPatch, number: int) -> None:
    patch.setattr(boot, "current", lambda: f"boot {number}")


def power_cuts(directory: Path, patch: pytest.MonkeyPatch, rounds: int = 12) -> None:
    """Cut the power at random moments.  Each block has what was flushed, or something that was written later."""
    io = Cut()
    opened = volume.Volume.create(directory / "v", "v", directory / "disk", size=SIZE)
    opened.device.writev(0, [memoryview(random.Random(1).randbytes(SIZE // BLOCK // 2 * BLOCK))])
    opened.create_snapshot("a")
    opened.state.io = io
    opened.create_clone("a", "c")
    content = bytearray(read(opened.clones[0].device))
    for turn in range(rounds):
        dice = random.Random(turn)
        device = opened.clones[0].device
        assert device is not None
        allowed = [{bytes(content[at : at + BLOCK])} for at in range(0, SIZE, BLOCK)]
        for _ in range(dice.randrange(1, 25)):
            before = bytes(content)
            change(device, content, dice)
            for at in range(0, SIZE, BLOCK):
                if content[at : at + BLOCK] != before[at : at + BLOCK]:
                    allowed[at // BLOCK].add(bytes(content[at : at + BLOCK]))
            if dice.random() < 0.15:
                device.flush()
                allowed = [{bytes(content[at : at + BLOCK])} for at in range(0, SIZE, BLOCK)]
        opened.state.clones = ()  # the process is gone, and so is what it has not synced
        device._owned.close()
        opened.close()
        device._data._descriptor = None  # type: ignore[assignment]
        io.lose(directory / "v" / "clones")
        reboot(patch, turn)
        opened = volume.Volume.open(directory / "v", io=io)
        found = read(opened.clones[0].device)
        for lba, choices in enumerate(allowed):
            assert found[lba * BLOCK : (lba + 1) * BLOCK] in choices, f"block {lba} was never that"
        content[:] = found
    opened.close()


def test_a_power_cut_leaves_what_was_flushed_and_no_block_that_was_never_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    power_cuts(tmp_path, monkeypatch)


MUTANTS = {
    "the map before the data": (
        clone_device.CloneDevice,
        "flush",
        lambda self: self._owned.settle(self._owned.unsettled()),
    ),
    "an open trusts another boot": (boot, "current", lambda: "always the same"),
    "the rest of a grain is not taken from the view": (
        clone_device.CloneDevice,
        "_beside",
        lambda _self, _grain, _offset, length: memoryview(bytes(length)),
    ),
    "a discard owns nothing": (clone_device.CloneDevice, "_add", lambda _self, _first, _end: None),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_power_cuts_find_each_broken_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    owner, name, broken = MUTANTS[mutant]
    if name == "current":
        monkeypatch.setattr(sys.modules[__name__], "reboot", lambda _patch, _number: None)
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises((AssertionError, block_device.BlockDeviceError)):
        power_cuts(tmp_path, monkeypatch)


def test_the_snapshot_of_a_clone_is_not_deleted(tmp_path: Path) -> None:
    opened = made(tmp_path)
    opened.create_snapshot("b")
    opened.create_clone("b", "c")
    with pytest.raises(errors.SnapshotCloned, match="wolun clone delete c"):
        opened.delete_snapshot("b")
    assert opened.snapshot("b").state.value == "active"
    opened.close()
    opened = volume.Volume.open(tmp_path / "v")
    with pytest.raises(errors.SnapshotCloned):
        opened.delete_snapshot("b")
    opened.delete_clone("c")
    opened.delete_snapshot("b")
    assert not list((tmp_path / "v" / "clones").iterdir())
    opened.close()


def test_requests_that_cannot_be_carried_out_leave_nothing(tmp_path: Path) -> None:
    opened = made(tmp_path)
    opened.create_clone("a", "c")
    for refused, request in (
        (errors.CloneExists, ("a", "c", None)),
        (errors.BadName, ("a", "c/d", None)),
        (errors.NoSuchSnapshot, ("none", "d", None)),
        (errors.CloneRefused, ("a", "d", 100)),
    ):
        with pytest.raises(refused):
            opened.create_clone(*request)
    with pytest.raises(errors.NoSuchClone):
        opened.delete_clone("d")
    assert [clone.name for clone in opened.clones] == ["c"]
    assert len(list((tmp_path / "v" / "clones").iterdir())) == 4
    opened.close()


def test_a_limit_refuses_first_writes_and_a_discard_frees(tmp_path: Path) -> None:
    opened = made(tmp_path)
    device = opened.create_clone("a", "c", 2 * GRAIN).device
    assert device is not None
    device.writev(BLOCK, [memoryview(bytes(GRAIN))])
    with pytest.raises(block_device.SpaceExhausted) as raised:
        device.writev(5 * GRAIN, [memoryview(bytes(BLOCK))])
    assert raised.value.lba == 40
    assert read(device, 5 * GRAIN, GRAIN) == read(opened.snapshot("a").view, 5 * GRAIN, GRAIN)
    device.writev(0, [memoryview(b"\x11" * GRAIN)])
    device.write_zeroes(0, GRAIN, discard=True)
    assert (device.used_bytes, device.own_bytes) == (GRAIN, 2 * GRAIN)
    device.writev(5 * GRAIN, [memoryview(b"\x22" * BLOCK)])
    assert read(device, 0, GRAIN) == bytes(GRAIN)
    opened.close()


def test_after_a_failed_flush_the_clone_takes_no_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = made(tmp_path)
    clone = opened.create_clone("a", "c")
    device = clone.device
    assert device is not None
    before = read(device, 0, GRAIN)
    device.writev(0, [memoryview(b"\x11" * GRAIN)])

    def fail() -> None:
        raise block_device.MediumError(0, True, "the disk is gone")

    monkeypatch.setattr(device._data, "flush", fail)
    with pytest.raises(block_device.MediumError):
        device.flush()
    monkeypatch.undo()
    for attempt in (device.flush, lambda: device.writev(0, [memoryview(bytes(GRAIN))])):
        with pytest.raises(block_device.MediumError, match="an earlier flush failed"):
            attempt()
    assert "the disk is gone" in clone.trouble
    opened.close()
    opened = volume.Volume.open(tmp_path / "v")
    assert read(opened.clones[0].device, 0, GRAIN) == before, "what the kernel may have dropped does not count"
    opened.close()


def test_writers_of_one_grain_do_not_undo_each_other(tmp_path: Path) -> None:
    opened = made(tmp_path)
    for turn in range(4):
        device = opened.create_clone("a", f"c{turn}").device
        assert device is not None
        write_every_fourth(device)
        for lba in range(GRAINS * 8):
            assert read(device, lba * BLOCK, BLOCK) == bytes([lba % 4 + 1]) * BLOCK
    opened.close()


def write_every_fourth(device: block_device.BlockDevice) -> None:
    """Let four threads write the blocks of all grains in turn."""

    def write(first: int) -> None:
        for lba in range(first, GRAINS * 8, 4):
            device.writev(lba * BLOCK, [memoryview(bytes([first + 1]) * BLOCK)])

    threads = [threading.Thread(target=write, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
