# SPDX-License-Identifier: Apache-2.0
"""The mounting of a snapshot's file system on this host, for `wolun snapshot mount` and `umount`.

    view (iSCSI) -> qemu-storage-daemon -> a file (FUSE) -> loop device -> file system

Everything is read-only.  The initiator is in user space (libiscsi), so nothing logs in that stays.  Each mount has a directory
in `RUN` with its state: it is there before the first part is, and goes after the last one.  So `umount` takes apart whatever
a failure, or the end of the daemon, has left.

| file system   | options                        | why                                                             |
| ------------- | ------------------------------ | --------------------------------------------------------------- |
| ext2, 3, 4    | `ro,noload`                    | the journal must not be replayed on a read-only disk            |
| XFS           | `ro,norecovery,nouuid`         | the same; and the volume itself may be mounted with this UUID   |
| btrfs         | `ro,rescue=nologreplay`        | the same                                                        |
| others        | `ro`                           |                                                                 |
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from urllib import parse

from target import messages
from target.control import client

RUN = Path("/run/wolun-mounts")
_OPTIONS = {
    "ext2": "ro,noload",
    "ext3": "ro,noload",
    "ext4": "ro,noload",
    "xfs": "ro,norecovery,nouuid",
    "btrfs": "ro,rescue=nologreplay",
}
_PROGRAMS = {"qemu-storage-daemon": "qemu-system-common qemu-block-extra", "losetup": "mount", "blkid": "util-linux"}
_INITIATOR = "iqn.2026-11.io.wolun.mount:"
_SECONDS = 60


@dataclass(frozen=True)
class Mounted:
    """A mount of a snapshot on a directory; `mapped`: the view got its LUN for this mount."""

    volume: str
    snapshot: str
    directory: str
    mapped: bool = False
    file_system: str = ""


class CannotMount(client.Failed):
    """A snapshot that was not mounted or unmounted."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(messages.Refusal("not-mounted", why, remedy))


def mount(asked: client.Client, volume: str, name: str, directory: Path, partition: int | None) -> Mounted:
    """Mount the view of a snapshot.  Raises Failed."""
    _check(directory)
    place = _place(directory)
    if place.exists():
        raise CannotMount(f"a mount at {directory} is left", f"run `wolun snapshot umount {directory}` first")
    shown = asked.snapshot(volume, name)
    state = Mounted(volume, name, str(directory), mapped=shown.view_lun is None)
    place.mkdir(mode=0o700, parents=True)
    _store(place, state)
    try:
        if state.mapped:
            asked.change_snapshot(volume, name, messages.ChangeSnapshot(mapped=True))
            shown = asked.snapshot(volume, name)
        image = place / "image"
        image.touch()
        _serve(shown.view_url, image, place)
        loop = _run("losetup", "--find", "--show", "--read-only", *_window(image, partition), str(image)).strip()
        kind = _kind(loop)
        _run("mount", "-t", kind, "-o", _OPTIONS.get(kind, "ro"), loop, str(directory))
    except BaseException:
        with contextlib.suppress(client.Failed):
            _undo(place, asked, state)
        raise
    return dataclasses.replace(state, file_system=kind)


def umount(asked: client.Client, directory: Path) -> Mounted:
    """Take a mount apart; what is gone already is no fault.  Raises Failed."""
    place = _place(directory)
    if not place.exists():
        raise CannotMount(f"wolun mounted nothing at {directory}", "`findmnt` lists what is mounted")
    try:
        state = Mounted(**json.loads((place / "state").read_text()))
    except FileNotFoundError:  # it was killed before there was anything
        state = Mounted("", "", str(directory))
    return _undo(place, asked, state)


def _check(directory: Path) -> None:
    if os.geteuid() != 0:
        raise CannotMount("only root can mount", "run the command as root, with --state-dir of the daemon")
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            raise CannotMount(f"{program} is missing", f"apt install {package}")
    if not Path("/dev/fuse").exists():
        raise CannotMount("this kernel has no FUSE: there is no /dev/fuse", "modprobe fuse, or attach the view's LUN")
    if not directory.is_dir() or directory.is_mount():
        why = "something is mounted there" if directory.is_mount() else "it is no directory"
        raise CannotMount(f"{directory} cannot be mounted on: {why}", "name an empty directory")


def _place(directory: Path) -> Path:
    return RUN / hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]


def _store(place: Path, state: Mounted) -> None:
    (place / "state.new").write_text(json.dumps(dataclasses.asdict(state)))
    (place / "state.new").replace(place / "state")


def _serve(url: str, image: Path, place: Path) -> None:
    """Show the view as a file."""
    parts = parse.urlsplit(url)
    target, _, lun = parts.path.lstrip("/").rpartition("/")
    node = {
        "driver": "iscsi",
        "node-name": "view",
        "transport": "tcp",
        "portal": parts.netloc,
        "target": target,
        "lun": int(lun),
        "initiator-name": f"{_INITIATOR}{place.name}",
        "read-only": True,
    }
    _run(
        "qemu-storage-daemon", "--daemonize", "--pidfile", str(place / "pid"), "--blockdev", json.dumps(node),
        "--export", f"type=fuse,id=view,node-name=view,mountpoint={image},writable=off",
    )  # fmt: skip


def _window(image: Path, partition: int | None) -> list[str]:
    """Return the options of losetup for a partition."""
    if partition is None:
        return []
    asked = ("partx", "--bytes", "--noheadings", "--output", "START,SIZE", "--nr", str(partition), str(image))
    found = _run(*asked, may_fail=True).split()
    if len(found) != 2:
        raise CannotMount(f"there is no partition {partition}", "leave --partition out, or name another one")
    return ["--offset", str(int(found[0]) * 512), "--sizelimit", found[1]]


def _kind(loop: str) -> str:
    """Return the kind of the file system on a loop device."""
    found = dict(
        line.split("=", 1)
        for line in _run("blkid", "--probe", "--output", "export", loop, may_fail=True).splitlines()
        if "=" in line
    )
    kind = found.get("TYPE", "")
    if kind == "LVM2_member":
        remedy = "attach a clone or a copy of it, and use `vgimportclone`, because its UUIDs are those of the volume"
        raise CannotMount("it holds a part of a volume group of LVM", remedy)
    if not kind and "PTTYPE" in found:
        raise CannotMount("it has partitions", "name one with --partition 1")
    if not kind:
        raise CannotMount("it has no file system that blkid knows", "name a partition with --partition, if it has some")
    return kind


def _undo(place: Path, asked: client.Client, state: Mounted) -> Mounted:
    """Take apart what is there, from the top."""
    loops = [
        backing.parts[3]
        for backing in Path("/sys/block").glob("loop*/loop/backing_file")
        if backing.read_text().startswith(f"{place}/")
    ]
    mounted = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    for loop in loops:
        if any(fields[0] == f"/dev/{loop}" for fields in mounted):
            _run("umount", f"/dev/{loop}")
        _run("losetup", "--detach", f"/dev/{loop}")
    _end_server(place)
    if any(fields[1] == str(place / "image") for fields in mounted):
        _run("umount", "--lazy", str(place / "image"), may_fail=True)  # the process did that, unless it was killed
    if state.mapped:
        with contextlib.suppress(client.Failed):  # the daemon is gone, or the snapshot
            asked.change_snapshot(state.volume, state.snapshot, messages.ChangeSnapshot(mapped=False, force=True))
    shutil.rmtree(place)
    with contextlib.suppress(OSError):
        RUN.rmdir()
    return state


def _end_server(place: Path) -> None:
    """End the process that shows the view, and wait for its end."""
    try:
        process = int((place / "pid").read_text())
        mine = os.fsencode(place) in Path(f"/proc/{process}/cmdline").read_bytes()
    except (OSError, ValueError):
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        if mine:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        deadline = time.monotonic() + 5
        while Path(f"/proc/{process}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)


def _run(*words: str, may_fail: bool = False) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise CannotMount(f"{words[0]} has not ended for {_SECONDS} s", "see the daemon's log") from None
    if done.returncode and not may_fail:
        said = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise CannotMount(
            f"{words[0]} failed: {said}", "look whether `access` admits this host, and at the kernel's log"
        )
    return done.stdout
