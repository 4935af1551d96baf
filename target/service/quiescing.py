# SPDX-License-Identifier: Apache-2.0
"""Quiet while a snapshot is taken: commands before and after it, and a file system of this host that is frozen.

| step     | does                                                                                                  |
| -------- | ----------------------------------------------------------------------------------------------------- |
| `before` | runs the command; an application that it quiets makes the snapshot consistent for the application      |
| freeze   | `fsfreeze` of a mounted file system, and of a virtual machine's through its guest agent: they write all that |
|          | they have in memory                                                                                   |
|          | the snapshot is taken                                                                                 |
| thaw     | whatever happened                                                                                     |
| `after`  | runs the command, whatever happened                                                                   |

A freeze is never left behind.  One child process for each freezes and thaws: it thaws when the daemon closes the pipe to it, when the
daemon dies, however it dies, and when `timeout` is over.  A snapshot that a freeze did not outlast is not consistent, so it is
refused then (`Quiet.check`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lun_backends.files import os_error
from lun_backends.volumes.manifest import Consistency
from target.configuration import settings
from target.service import guest_freezer, problems

log = logging.getLogger(__name__)

# $1: the mount point; $2: seconds.  SIGPIPE is ignored, so that the death of the daemon does not end it before it has thawed.
_FREEZER = """
trap '' PIPE HUP INT TERM
fsfreeze --freeze "$1" || exit 1
echo frozen
timeout "$2" cat >/dev/null
fsfreeze --unfreeze "$1"
"""


class _Failed(Exception):
    """A step failed; the text says why."""


class Quiet:
    """The quiet that was reached: how consistent a snapshot is that is taken meanwhile."""

    def __init__(self, reached: Consistency) -> None:
        self.reached = reached
        self.freezes: list[tuple[str, subprocess.Popen[bytes], float]] = []  # and until when

    def check(self) -> None:
        """Raise Problem unless all that was frozen is still frozen."""
        for what, child, until in self.freezes:
            if child.poll() is not None or time.monotonic() >= until:
                raise problems.refused(
                    "no snapshot was taken", f"{what} did not stay frozen long enough", "raise quiesce.timeout"
                )


@contextlib.contextmanager
def quiet(volume: settings.Volume, snapshot: str, apart_from: list[Path]) -> Iterator[Quiet]:
    """Be quiet as the volume's `quiesce` says, and yield the quiet.

    `apart_from` are files that lie on no file system that is frozen: the snapshot could not be taken.  Raise Problem if a
    step fails and the configuration refuses the snapshot then.
    """
    wanted = volume.quiesce
    if wanted is None:
        yield Quiet(Consistency.CRASH)
        return
    found = Quiet(Consistency.CRASH)
    with contextlib.ExitStack() as undo:
        try:
            undo.callback(_after, volume, snapshot, wanted)
            if wanted.before:
                _run(wanted.before, volume.name, snapshot, "before", wanted.timeout)
                found.reached = Consistency.APPLICATION
            if wanted.guest_agent is not None:
                program = (sys.executable, "-I", guest_freezer.__file__, str(wanted.guest_agent))
                what = f"the guest of {wanted.guest_agent}"
                until = time.monotonic() + wanted.timeout
                found.freezes.append((what, undo.enter_context(_frozen(what, program, wanted.timeout)), until))
            if wanted.freeze is not None:
                _check_apart(wanted.freeze, apart_from)
                what = str(wanted.freeze)
                freezer = ("sh", "-c", _FREEZER, "wolun-freeze", what)
                until = time.monotonic() + wanted.timeout
                found.freezes.append((what, undo.enter_context(_frozen(what, freezer, wanted.timeout)), until))
            if found.freezes and not wanted.before:
                found.reached = Consistency.FILE_SYSTEM
        except _Failed as failure:
            if wanted.on_failure is settings.OnFailure.REFUSE:
                what = f"{volume.name}@{snapshot} was not taken"
                raise problems.refused(what, str(failure), "repair it, or set quiesce.on_failure to go-on") from failure
            log.warning("%s@%s is taken without quiet: %s", volume.name, snapshot, failure)
            found = Quiet(Consistency.CRASH)
        yield found


def _after(volume: settings.Volume, snapshot: str, wanted: settings.Quiesce) -> None:
    if wanted.after:
        try:
            _run(wanted.after, volume.name, snapshot, "after", wanted.timeout)
        except _Failed as failure:
            log.error("after %s@%s: %s", volume.name, snapshot, failure)


def _run(command: tuple[str, ...], volume: str, snapshot: str, phase: str, timeout: float) -> None:
    """Run a hook.  Raise _Failed."""
    environment = {**os.environ, "WOLUN_VOLUME": volume, "WOLUN_SNAPSHOT": snapshot, "WOLUN_PHASE": phase}
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except OSError as error:
        raise _Failed(f"the command {command[0]} cannot be run: {os_error.reason(error)}") from error
    except subprocess.TimeoutExpired as error:
        raise _Failed(f"the command {command[0]} took longer than {timeout:g} s") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise _Failed(f"the command {command[0]} ended with status {done.returncode}{': ' + said[-1] if said else ''}")


def _check_apart(mount: Path, files: list[Path]) -> None:
    try:
        device = mount.stat().st_dev
        on_it = next((path for path in files if path.exists() and path.stat().st_dev == device), None)
    except OSError as error:
        raise _Failed(f"{mount} cannot be looked at: {os_error.reason(error)}") from error
    if on_it is not None:
        raise _Failed(f"{mount} cannot be frozen: {on_it} lies on it, and the snapshot writes there")


@contextlib.contextmanager
def _frozen(what: str, program: tuple[str, ...], timeout: float) -> Iterator[subprocess.Popen[bytes]]:
    """Keep `what` frozen, for at most `timeout` seconds, by a child that runs `program`.  Yield the child.  Raise _Failed."""
    began = time.monotonic()
    child = subprocess.Popen(
        (*program, f"{timeout:g}"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        ready, _, _ = select.select([child.stdout], [], [], timeout)
        if not ready:
            raise _Failed(f"{what} was not frozen within {timeout:g} s")
        if child.stdout.readline() != b"frozen\n":
            assert child.stderr is not None
            said = child.stderr.read().decode(errors="replace").strip()
            raise _Failed(f"{what} cannot be frozen: {said or 'fsfreeze (package util-linux) failed'}")
        yield child
    finally:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()  # it thaws
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout)
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
        log.info("%s was frozen for %.0f ms", what, (time.monotonic() - began) * 1000)
