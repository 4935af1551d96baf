# SPDX-License-Identifier: Apache-2.0
"""Everything the daemon can answer a command with instead of doing it: a code, a sentence, a remedy.

The code is for programs and never changes; the sentence names the thing concerned; the remedy says what to do.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from lun_backends import block_device
from lun_backends.backups import differences
from lun_backends.files import os_error
from lun_backends.refused import Refused
from lun_backends.volumes import errors
from target import units

T = TypeVar("T", bound=pydantic.BaseModel)


class Problem(Exception):
    """A request that was not done.  `status` is the HTTP status that goes with it."""

    def __init__(self, code: str, message: str, remedy: str, status: int = 409) -> None:
        super().__init__(f"{message}: {remedy}")
        self.code = code
        self.message = message
        self.remedy = remedy
        self.status = status


def _known(names: Iterable[str], wanted: str, what: str, none: str) -> str:
    names = list(names)
    if not names:
        return none
    close = difflib.get_close_matches(wanted, names, n=1)
    return f"did you mean {close[0]}?" if close else f"{what} are: {', '.join(names)}"


def no_such_volume(name: str, names: Iterable[str]) -> Problem:
    """The configuration has no such volume."""
    remedy = _known(names, name, "the volumes", "add it to the configuration")
    return Problem("no-such-volume", f"there is no volume {name}", remedy, 404)


def no_such_snapshot(volume: str, name: str, names: Iterable[str]) -> Problem:
    """The volume has no such snapshot."""
    remedy = _known(names, name, f"the snapshots of {volume}", f"take one with `wolun snapshot create {volume} {name}`")
    return Problem("no-such-snapshot", f"{volume} has no snapshot {name}", remedy, 404)


def volume_failed(name: str, why: str) -> Problem:
    """The volume could not be opened at start."""
    return Problem("volume-failed", f"volume {name} is not served: {why}", "repair it, then start the daemon again")


def refused(what: str, why: str, remedy: str) -> Problem:
    """The layers below would not do it."""
    return Problem("refused", f"{what}: {why}", remedy)


def no_luns_left() -> Problem:
    """All LUN numbers are taken."""
    return Problem("no-luns-left", "every LUN number is in use", "delete snapshots that are not needed any more")


def in_use(what: str, users: Iterable[str], remedy: str) -> Problem:
    """Something somebody needs must not go."""
    return Problem("in-use", f"{what} is in use by {', '.join(users)}", remedy)


def no_such_portal(address: str, addresses: Iterable[str]) -> Problem:
    """Nobody listens there."""
    return Problem("no-such-portal", f"there is no portal {address}", f"there are: {', '.join(addresses)}", 404)


def no_such_initiator(name: str, names: Iterable[str]) -> Problem:
    """The configuration has no such entry."""
    remedy = _known(names, name, "there are", "create it in `acls`")
    return Problem("no-such-initiator", f"there is no entry for initiator {name}", remedy, 404)


def invalid(what: str, problem: str) -> Problem:
    """A value that the configuration must not have."""
    return Problem("invalid", f"{what}: {problem}", "correct it and try again", 422)


def at_next_start(what: str) -> Problem:
    """Something that cannot change while the daemon runs."""
    return Problem("at-next-start", f"{what} changes when the daemon starts again", "start it again when that suits")


def no_such_job(number: int) -> Problem:
    """A job that ended long ago, or never was."""
    return Problem("no-such-job", f"there is no job {number}", "`wolun status` lists the jobs", 404)


def file_exists(path: Path) -> Problem:
    """The file to be written is there."""
    return Problem("file-exists", f"{path} exists already", "choose another name, or overwrite it with --force")


def file_failed(path: Path, why: str) -> Problem:
    """The file cannot be written."""
    return Problem("file-failed", f"{path} cannot be written: {why}", "choose a place with room that you may write to")


def no_result(number: int) -> Problem:
    """A job that found nothing out, or has not yet."""
    return Problem("no-result", f"job {number} has no result", "wait until it is done", 404)


def no_room(path: Path, needed: int, free: int) -> Problem:
    """The file to be written would fill its disk."""
    return Problem(
        "no-room",
        f"{path} cannot be written: it takes up to {units.human_size(needed)}, and {units.human_size(free)} are free there",
        "choose a place with more room; or, if much of it is zeroes, which take none, say --anyway",
        507,
    )


def stopping() -> Problem:
    """The daemon is on its way out."""
    return Problem("stopping", "the daemon is stopping", "start it again with `wolun serve`", 503)


def internal(error: Exception) -> Problem:
    """A bug of ours."""
    return Problem(
        "internal-error",
        f"something unforeseen: {type(error).__name__}: {error}",
        "see the daemon's log, and report it",
        500,
    )


def lun_taken(lun: int, volume_name: str) -> Problem:
    """A volume's number belongs to a snapshot."""
    return Problem(
        "lun-taken",
        f"LUN {lun} belongs to a snapshot of {volume_name}",
        "choose another number for the volume, or delete the snapshot first",
    )


def differs(volume_name: str, key: str, is_: str, says: str) -> Problem:
    """The configuration contradicts what a volume was made with."""
    return Problem(
        "differs", f"{volume_name} was made with {key} {is_}, the configuration says {says}", f"put {key} {is_} back"
    )


_CODES = {
    errors.BadName: "bad-name",
    errors.BadLabel: "bad-label",
    errors.SnapshotExists: "snapshot-exists",
    errors.NoSuchSnapshot: "no-such-snapshot",
    differences.WrongOrder: "wrong-order",
    errors.SnapshotFailed: "snapshot-failed",
    errors.TooManySnapshots: "too-many-snapshots",
    errors.NoSpaceLeft: "no-space-left",
    errors.RollbackRefused: "restore-refused",
    errors.RollbackUnderWay: "being-restored",
    errors.ResizeRefused: "resize-refused",
}


@contextlib.contextmanager
def translated(what: str, remedy: str | None = None) -> Iterator[None]:
    """Turn the errors of the layers below into Problems that say `what` failed and what to do (None: what the error
    says); what was stopped on request passes through.
    """
    try:
        yield
    except (errors.DeletionStopped, errors.RollbackStopped):
        raise
    except errors.VolumeError as error:
        code = _CODES.get(type(error), "refused")
        raise Problem(
            code, f"{what}: {error.reason}", remedy or error.remedy, 422 if code in ("bad-name", "bad-label") else 409
        ) from error
    except Refused as error:
        raise refused(what, error.reason, remedy or error.remedy) from error
    except block_device.BlockDeviceError as error:
        raise refused(what, str(error), remedy or "see the daemon's log") from error
    except OSError as error:
        reason = os_error.reason(error)
        raise refused(what, reason, remedy or "check the disk and the permissions") from error


def bad_request(where: str, what: str) -> Problem:
    """A request that does not fit its type."""
    return Problem("bad-request", f"the request is wrong at {where}: {what}", "see /openapi.json", 422)


def no_such_request(method: str, path: str, status: int) -> Problem:
    """A request that does not exist."""
    return Problem("no-such-request", f"there is no {method} {path}", "see /openapi.json", status)


def validated(model: type[T], fields: Mapping[str, Any], what: str) -> T:
    """A part of the configuration that has these values.  Raises Problem."""
    try:
        return model.model_validate(dict(fields))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise invalid(f"{what}, {where}" if where else what, first["msg"].removeprefix("Value error, ")) from None
