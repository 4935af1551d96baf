# SPDX-License-Identifier: Apache-2.0
"""The mounting of the file system of a snapshot or of a clone on this host, for `mount` and `umount`.

    view or clone (iSCSI) -> qemu-storage-daemon -> a file (FUSE) -> loop device -> file system

The initiator is in user space (libiscsi), so nothing logs in that stays.  Each mount has a directory in `RUN` with its state:
it is there before the first part is, and goes after the last one.  So `umount` takes apart whatever a failure, or the end of
the daemon, has left.

| file system   | a snapshot, read-only     | a clone      | why                                                           |
| ------------- | ------------------------- | ------------ | ------------------------------------------------------------- |
| ext2, 3, 4    | `ro,noload`               | `rw`         | the journal must not be replayed on a read-only disk          |
| XFS           | `ro,norecovery,nouuid`    | `rw,nouuid`  | the same; and the volume itself may be mounted with this UUID |
| btrfs         | `ro,rescue=nologreplay`   | `rw`         | the same                                                      |
| others        | `ro`                      | `rw`         |                                                               |

A snapshot that is mounted read-write is a clone that was `made` for this mount.  `umount` deletes it, unless it is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
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
_WRITABLE = {"xfs": "rw,nouuid"}
_PROGRAMS = {"qemu-storage-daemon": "qemu-system-common qemu-block-extra", "losetup": "mount", "blkid": "util-linux"}
_INITIATOR = "iqn.2026-11.io.wolun.mount:"
_SECONDS = 60


@dataclass(frozen=True)
class Mounted:
    """A mount on a directory of a snapshot, or of the `clone` of it.

    `mapped`: the view got its LUN for this mount.  `made`: the clone was made for this mount.
    """

    volume: str
    snapshot: str
    directory: str
    mapped: bool = False
    file_system: str = ""
    clone: str = ""
    made: bool = False

    @property
    def what(self) -> str:
        """Return the name of what is mounted."""
        return self.clone if self.clone and not self.made else f"{self.volume}@{self.snapshot}"


class CannotMount(client.Failed):
    """A snapshot that was not mounted or unmounted."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(messages.Refusal("not-mounted", why, remedy))


def mount_snapshot(
    asked: client.Client, volume: str, name: str, directory: Path, partition: int | None, *, writable: bool = False
) -> Mounted:
    """Mount the view of a snapshot; if `writable`, a clone of it that is made for this mount.  Raises Failed."""
    place = _new_place(directory)
    shown = asked.snapshot(volume, name)
    if writable:
        state = Mounted(volume, name, str(directory), clone=f"mount-{secrets.token_hex(4)}", made=True)
    else:
        state = Mounted(volume, name, str(directory), mapped=shown.view_lun is None)
    return _mount(asked, state, place, partition)


def mount_clone(asked: client.Client, name: str, directory: Path, partition: int | None) -> Mounted:
    """Mount a clone, read-write.  Raises Failed."""
    place = _new_place(directory)
    clone = asked.clone(name)
    return _mount(asked, Mounted(clone.volume, clone.snapshot, str(directory), clone=name), place, partition)


def mounted(directory: Path) -> Mounted:
    """Return what is mounted on a directory.  Raises Failed."""
    place = _place(directory)
    if not place.exists():
        raise CannotMount(f"wolun mounted nothing at {directory}", "`findmnt` lists what is mounted")
    try:
        return Mounted(**json.loads((place / "state").read_text()))
    except FileNotFoundError:  # it was killed before there was anything
        return Mounted("", "", str(directory))


def umount(asked: client.Client, state: Mounted, *, keep: bool = False) -> None:
    """Take a mount apart; what is gone already is no fault.  With `keep`, the clone stays.  Raises Failed."""
    if state.clone:
        try:
            asked.clone(state.clone)
        except client.Failed as failed:
            if failed.refusal.error == "no-such-clone":  # it was deleted, or the command was killed before it made it
                state = dataclasses.replace(state, made=False)
            elif keep or not state.made:  # what the kernel still holds has to go there
                raise
            else:  # no write can end any more, and nobody needs what was written
                _end_server(_place(Path(state.directory)), signal.SIGKILL)
    if keep:
        state = dataclasses.replace(state, made=False)
    _undo(_place(Path(state.directory)), asked, state)


def _mount(asked: client.Client, state: Mounted, place: Path, partition: int | None) -> Mounted:
    place.mkdir(mode=0o700, parents=True)
    _store(place, state)
    try:
        url = _prepare(asked, state)
        image = place / "image"
        image.touch()
        _serve(url, image, place, writable=bool(state.clone))
        only = () if state.clone else ("--read-only",)
        loop = _run("losetup", "--find", "--show", *only, *_window(image, partition), str(image)).strip()
        kind = _kind(loop)
        options = _WRITABLE.get(kind, "rw") if state.clone else _OPTIONS.get(kind, "ro")
        _run("mount", "-t", kind, "-o", options, loop, state.directory)
    except BaseException:
        with contextlib.suppress(client.Failed):
            _undo(place, asked, state)
        raise
    return dataclasses.replace(state, file_system=kind)


def _prepare(asked: client.Client, state: Mounted) -> str:
    """Return the URL of the view, which gets a LUN if it has none, or of the clone, which is made if this mount makes it."""
    if state.made:
        asked.create_clone(state.volume, state.snapshot, messages.CreateClone(state.clone))
    if state.clone:
        clone = asked.clone(state.clone)
        if not clone.url:
            raise CannotMount(f"clone {clone.name} is not served: {clone.trouble}", "see `wolun clone list`")
        return clone.url
    if state.mapped:
        asked.change_snapshot(state.volume, state.snapshot, messages.ChangeSnapshot(mapped=True))
    return asked.snapshot(state.volume, state.snapshot).view_url


def _new_place(directory: Path) -> Path:
    """Return the directory for the state of a new mount."""
    _check(directory)
    place = _place(directory)
    if place.exists():
        raise CannotMount(f"a mount at {directory} is left", f"run `wolun snapshot umount {directory}` first")
    return place


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


def _serve(url: str, image: Path, place: Path, *, writable: bool) -> None:
    """Show a LUN as a file."""
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
        "read-only": not writable,
    }
    _run(
        "qemu-storage-daemon", "--daemonize", "--pidfile", str(place / "pid"), "--blockdev", json.dumps(node),
        "--export", f"type=fuse,id=view,node-name=view,mountpoint={image},writable={'on' if writable else 'off'}",
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


def _undo(place: Path, asked: client.Client, state: Mounted) -> None:
    """Take apart what is there, from the top."""
    loops = [
        backing.parts[3]
        for backing in Path("/sys/block").glob("loop*/loop/backing_file")
        if backing.read_text().startswith(f"{place}/")
    ]
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    for loop in loops:
        if any(fields[0] == f"/dev/{loop}" for fields in mounts):
            if state.clone and not state.made:  # umount writes nothing while another mount namespace has the mount, too
                _run("sync", "--file-system", state.directory, may_fail=True)
            _run("umount", f"/dev/{loop}")
        _run("losetup", "--detach", f"/dev/{loop}")
    _end_server(place, signal.SIGTERM, signal.SIGKILL)
    if any(fields[1] == str(place / "image") for fields in mounts):
        _run("umount", "--lazy", str(place / "image"), may_fail=True)  # the process did that, unless it was killed
    if state.mapped:
        with contextlib.suppress(client.Failed):  # the daemon is gone, or the snapshot
            asked.change_snapshot(state.volume, state.snapshot, messages.ChangeSnapshot(mapped=False, force=True))
    if state.made:
        try:
            asked.delete_clone(state.clone, force=True)
        except client.Failed as failed:
            if failed.refusal.error != "no-such-clone":
                why = f"{state.directory} is unmounted, but its clone {state.clone} stands: {failed.refusal.message}"
                remedy = f"run `wolun snapshot umount {state.directory}` again when the daemon runs"
                raise CannotMount(why, remedy) from failed
    shutil.rmtree(place)
    with contextlib.suppress(OSError):
        RUN.rmdir()


def _end_server(place: Path, *numbers: signal.Signals) -> None:
    """End the process that shows the LUN with these signals in turn, and wait for its end."""
    try:
        process = int((place / "pid").read_text())
        mine = os.fsencode(place) in Path(f"/proc/{process}/cmdline").read_bytes()
    except (OSError, ValueError):
        return
    for number in numbers:
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
