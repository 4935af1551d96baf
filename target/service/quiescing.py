# SPDX-License-Identifier: Apache-2.0
"""Quiet while a snapshot is taken: commands before and after it, and a file system of this host that is frozen.

| step     | does                                                                                                  |
| -------- | ----------------------------------------------------------------------------------------------------- |
| `before` | runs the command; an application that it quiets makes the snapshot consistent for the application      |
| freeze   | `fsfreeze` of a mounted file system, which writes all that it has in memory                             |
|          | the snapshot is taken                                                                                 |
| thaw     | whatever happened                                                                                     |
| `after`  | runs the command, whatever happened                                                                   |

A freeze is never left behind.  One child process freezes and thaws: it thaws when the daemon closes the pipe to it, when the
daemon dies, however it dies, and when `timeout` is over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from lun_backends.files import os_error
from lun_backends.volumes.manifest import Consistency
from target.configuration import settings
from target.service import problems

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


@contextlib.contextmanager
def quiet(volume: settings.Volume, snapshot: str, apart_from: list[Path]) -> Iterator[Consistency]:
    """Be quiet as the volume's `quiesce` says, and yield how consistent a snapshot is that is taken meanwhile.

    `apart_from` are files that lie on no file system that is frozen: the snapshot could not be taken.  Raise Problem if a
    step fails and the configuration refuses the snapshot then.
    """
    wanted = volume.quiesce
    if wanted is None:
        yield Consistency.CRASH
        return
    reached = Consistency.CRASH
    with contextlib.ExitStack() as undo:
        try:
            undo.callback(_after, volume, snapshot, wanted)
            if wanted.before:
                _run(wanted.before, volume.name, snapshot, "before", wanted.timeout)
                reached = Consistency.APPLICATION
            if wanted.freeze is not None:
                _check_apart(wanted.freeze, apart_from)
                undo.enter_context(_frozen(wanted.freeze, wanted.timeout))
                reached = Consistency.APPLICATION if wanted.before else Consistency.FILE_SYSTEM
        except _Failed as failure:
            if wanted.on_failure is settings.OnFailure.REFUSE:
                what = f"{volume.name}@{snapshot} was not taken"
                raise problems.refused(what, str(failure), "repair it, or set quiesce.on_failure to go-on") from failure
            log.warning("%s@%s is taken without quiet: %s", volume.name, snapshot, failure)
            reached = Consistency.CRASH
        yield reached


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
def _frozen(mount: Path, timeout: float) -> Iterator[None]:
    """Keep a file system frozen, for at most `timeout` seconds.  Raise _Failed."""
    words = ("sh", "-c", _FREEZER, "wolun-freeze", str(mount), f"{timeout:g}")
    began = time.monotonic()
    child = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        ready, _, _ = select.select([child.stdout], [], [], timeout)
        if not ready:
            raise _Failed(f"{mount} was not frozen within {timeout:g} s")
        if child.stdout.readline() != b"frozen\n":
            assert child.stderr is not None
            said = child.stderr.read().decode(errors="replace").strip()
            raise _Failed(f"{mount} cannot be frozen: {said or 'fsfreeze (package util-linux) failed'}")
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()  # it thaws
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout)
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
        log.info("%s was frozen for %.0f ms", mount, (time.monotonic() - began) * 1000)
