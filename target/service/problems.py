# SPDX-License-Identifier: Apache-2.0
"""The refusals of the daemon: for each request that it does not carry out, a code, a sentence and a remedy.

The code is for programs and never changes.  The sentence names the object concerned.  The remedy says what to do.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from lun_backends import block_device
from lun_backends.backups import differences
from lun_backends.files import os_error
from lun_backends.refused import Refused
from lun_backends.volumes import errors
from target import units
from target.configuration import reader

T = TypeVar("T", bound=pydantic.BaseModel)

STOPPING = "stopping"
TOO_MANY = "too-many-snapshots"
RECEIVED = "received-already"
WRONG_BASE = "wrong-base"
INTERRUPTED = "stream-interrupted"
LOG_OUT = "log those initiators out first, or use force=true"
STOP_USING = "stop using it first, or use force=true"


class Problem(Exception):
    """A refused request.  `status` is the HTTP status of the answer.

    `undecided`: an administrator ends the refusal with a decision, for which the daemon has to run.
    """

    def __init__(self, code: str, message: str, remedy: str, status: int = 409, *, undecided: bool = False) -> None:
        super().__init__(f"{message}: {remedy}")
        self.code = code
        self.message = message
        self.remedy = remedy
        self.status = status
        self.undecided = undecided


def _known(names: Iterable[str], wanted: str, what: str, none: str) -> str:
    names = list(names)
    if not names:
        return none
    close = difflib.get_close_matches(wanted, names, n=1)
    return f"did you mean {close[0]}?" if close else f"{what} are: {', '.join(names)}"


def no_such_volume(name: str, names: Iterable[str]) -> Problem:
    """Refuse a name that no volume of the configuration has."""
    remedy = _known(names, name, "the volumes", "add it to the configuration")
    return Problem("no-such-volume", f"there is no volume {name}", remedy, 404)


def shared(name: str) -> Problem:
    """Refuse what a shared volume cannot do, because its primary and its snapshots belong to other hosts, too."""
    return Problem(
        "shared",
        f"{name} is a shared volume: its primary and its snapshots are on other hosts",
        "do it on the storage host",
    )


def shared_in_group(name: str) -> Problem:
    """Refuse a snapshot of a shared volume together with others: each has a fence of its own, and no instant belongs to both."""
    return Problem(
        "shared",
        f"{name} is a shared volume, and is fenced by itself: between its fence and that of another volume nodes would have to hold"
        " all writes, and a node that dies meanwhile would stop them all",
        "take a snapshot of each volume; what must be of one moment belongs on one volume, for example as logical volumes of LVM",
    )


def shared_in_file(name: str) -> Problem:
    """Refuse to change a shared volume while the daemon runs."""
    return Problem(
        "shared",
        f"{name} is a shared volume: what this node does with it is in the configuration file",
        "change `shared` there, and start the daemon again; the size is that of the primary on the storage host",
    )


def not_shared(name: str) -> Problem:
    """Refuse a request for the nodes of a volume that has none."""
    return Problem(
        "not-shared",
        f"{name} is a volume of this host alone: no other node has it",
        "shared volumes are those in `shared` of the configuration",
    )


def no_such_node(volume: str, name: str, names: Iterable[str]) -> Problem:
    """Refuse a name that no node of the volume is known by."""
    remedy = _known(names, name, f"the nodes of {volume}", "write its name as its own configuration has it")
    return Problem("no-such-node", f"{volume} has seen no node {name}", f"{remedy}; or use --force", 404)


def on_the_nodes(volume: str, name: str) -> Problem:
    """Refuse to do on the storage host what the nodes do with their snapshots."""
    return Problem(
        "on-the-nodes",
        f"{volume}@{name} was taken by a node that shares the volume, and this host only keeps its old data",
        "run the command on a node",
    )


def no_such_snapshot(volume: str, name: str, names: Iterable[str]) -> Problem:
    """Refuse a name that no snapshot of the volume has."""
    remedy = _known(names, name, f"the snapshots of {volume}", f"take one with `wolun snapshot create {volume} {name}`")
    return Problem("no-such-snapshot", f"{volume} has no snapshot {name}", remedy, 404)


def no_such_clone(name: str, names: Iterable[str]) -> Problem:
    """Refuse a name that no clone has."""
    remedy = _known(names, name, "the clones", "make it with `wolun snapshot clone`")
    return Problem("no-such-clone", f"there is no clone {name}", remedy, 404)


def clone_exists(what: str, name: str) -> Problem:
    """Refuse a name that a clone has."""
    return Problem("clone-exists", f"{what}: there is a clone {name} already", "use another name, or delete it")


def volume_failed(name: str, why: str) -> Problem:
    """Refuse a request for a volume that could not be opened."""
    return Problem(
        "volume-failed",
        f"volume {name} is not served: {why}",
        "repair it, then run restoreconfig in the shell or start the daemon again",
    )


def refused(what: str, why: str, remedy: str) -> Problem:
    """Refuse what a lower layer refuses or cannot do."""
    return Problem("refused", f"{what}: {why}", remedy)


def left_behind(name: str, lun: int, left: str) -> Problem:
    """Refuse a new, empty volume under the LUN of one that the configuration no longer names."""
    return Problem(
        "left-behind",
        f"LUN {lun} was that of volume {left}, whose data is still in the state directory; {name} would be a new, empty disk "
        "there",
        f"{_renamed(name, left)}, or choose another LUN",
        undecided=True,
    )


def primary_of_another(name: str, primary: Path, left: str) -> Problem:
    """Refuse a new volume on the primary of one that the configuration no longer names."""
    return Problem(
        "left-behind",
        f"{name} cannot have {primary}: it is the primary of volume {left}, whose snapshots need it",
        _renamed(name, left),
        undecided=True,
    )


def _renamed(name: str, left: str) -> str:
    return (
        f"if {left} was renamed, run `wolun volume relocate {name} --from {left}`; if it is given up, run `wolun volume accept "
        f"{left}`"
    )


def primary_moved(volume_name: str, was: Path, says: Path, why: str) -> Problem:
    """Refuse a primary in another place that is not known to be the same."""
    return Problem(
        "differs",
        f"{volume_name} was made with primary {was}, but the configuration says {says}, and {why}",
        f"put primary {was} back; or, if that is the right one all the same, run `wolun volume relocate {volume_name} --force`, "
        "which marks the snapshots as doubtful",
        undecided=True,
    )


def doubtful(what: str, volume: str, name: str, why: str) -> Problem:
    """Refuse to pass on the content of a doubtful snapshot."""
    return Problem("doubtful", f"{what}: {volume}@{name} is doubtful: {why}", errors.accept(volume))


def rollback_stopped(volume: str, name: str, why: str) -> Problem:
    """Report a rollback that met damage after it took effect."""
    return Problem(
        "damaged",
        f"{volume} was rolled back to {name}, but its primary does not hold all of that content yet: {why}",
        f"to let {volume} have the damaged blocks as they are, run `wolun snapshot restore {volume}@{name} --damaged`; until "
        "then no snapshots can be taken or deleted",
    )


def no_luns_left() -> Problem:
    """Refuse a new unit when all LUN numbers are taken."""
    return Problem(
        "no-luns-left",
        "every LUN number is in use",
        "delete snapshots that you no longer need; the number of a deleted one is free a while after the initiators that used "
        "it have logged out",
    )


def in_use(what: str, users: Iterable[str], remedy: str) -> Problem:
    """Refuse to remove an object that `users` need."""
    return Problem("in-use", f"{what} is in use by {', '.join(users)}", remedy)


def data_exists(name: str, directory: Path, what: str) -> Problem:
    """Refuse a new volume in the place of data that an earlier one left."""
    return Problem(
        "data-exists",
        f"an earlier volume {name} left its data in {directory}: {what}",
        "serve that data with --adopt (in the shell: existing=adopt), or remove it for good with --new (existing=new)",
    )


def is_replica(what: str, name: str) -> Problem:
    """Refuse to change a replica here."""
    reason = f"{name} is a replica, which follows its source"
    return Problem(
        "replica", f"{what}: {reason}", f"run `wolun volume promote {name}` first; then it follows no longer"
    )


def held(what: str, reason: str, remedy: str) -> Problem:
    """Refuse to delete a snapshot that is held."""
    return Problem("held", f"{what} is held: {reason}", remedy)


def no_such_portal(address: str, addresses: Iterable[str]) -> Problem:
    """Refuse an address that is no portal."""
    return Problem("no-such-portal", f"there is no portal {address}", f"there are: {', '.join(addresses)}", 404)


def no_such_initiator(name: str, names: Iterable[str]) -> Problem:
    """Refuse a name that no entry of `access.initiators` has."""
    remedy = _known(names, name, "there are", "create it in `acls`")
    return Problem("no-such-initiator", f"there is no entry for initiator {name}", remedy, 404)


def no_such_unit(name: str, names: Iterable[str]) -> Problem:
    """Refuse to map a unit that does not exist."""
    return Problem("no-such-unit", f"there is no unit {name}", f"there are: {', '.join(names) or 'none'}", 404)


def no_such_lun(lun: int, luns: Iterable[int]) -> Problem:
    """Refuse a LUN that no unit has."""
    known = ", ".join(str(number) for number in sorted(luns))
    return Problem("no-such-lun", f"there is no LUN {lun}", f"there are: {known or 'none'}", 404)


def no_such_registration(unit: str, initiator: str, initiators: Iterable[str]) -> Problem:
    """Refuse to clear the reservations of an initiator that has none."""
    remedy = f"registered are: {', '.join(initiators) or 'none'}"
    return Problem("no-such-registration", f"{initiator} has no reservation on {unit}", remedy, 404)


def kernels_reservations() -> Problem:
    """Refuse requests about reservations that the kernel's target keeps by itself."""
    return Problem(
        "kernels-reservations",
        "the kernel's target keeps the reservations itself",
        "look into the directories pr below /sys/kernel/config/target/core, or use sg_persist on an initiator",
    )


def initiator_broken(reason: str) -> Problem:
    """Report an entry of `access.initiators` that admits no initiator."""
    return Problem("initiator-broken", reason, "correct the file, then restore again")


def invalid(what: str, problem: str) -> Problem:
    """Refuse a value that the configuration must not have."""
    return Problem("invalid", f"{what}: {problem}", "correct it and try again", 422)


def at_next_start(what: str) -> Problem:
    """Refuse a change that cannot be made while the daemon runs."""
    return Problem("at-next-start", f"{what} changes when the daemon starts again", "start it again when you can")


def no_such_job(number: int) -> Problem:
    """Refuse the number of a job that ended long ago or never ran."""
    return Problem("no-such-job", f"there is no job {number}", "`wolun status` lists the jobs", 404)


def file_exists(path: Path) -> Problem:
    """Refuse to replace a file."""
    return Problem("file-exists", f"{path} exists already", "choose another name, or overwrite it with --force")


def own_file(path: Path, whose: str) -> Problem:
    """Refuse to write over a file that the daemon serves or keeps; `whose` says whose it is."""
    return file_failed(path, whose, "choose another path; wolun never writes over what it serves or keeps")


def file_failed(
    path: Path, why: str, remedy: str = "choose a place that has room and that the daemon may write to"
) -> Problem:
    """Refuse to write a file that cannot be written."""
    return Problem("file-failed", f"{path} cannot be written: {why}", remedy)


def write_failed(path: Path, error: OSError) -> Problem:
    """Refuse to write a file that the system did not let wolun write."""
    remedy = os_error.remedy(error, "choose a place that has room and that the daemon may write to")
    return file_failed(path, os_error.reason(error), remedy)


def no_result(number: int) -> Problem:
    """Refuse a request for the result of a job that has none, or none yet."""
    return Problem("no-result", f"job {number} has no result", "wait until it is done", 404)


def no_input(number: int) -> Problem:
    """Refuse content for a job that waits for none."""
    return Problem("no-input", f"job {number} waits for no content", "begin with a request to receive", 404)


def no_room(path: Path, needed: int, free: int) -> Problem:
    """Refuse to write a file that could fill its disk."""
    return Problem(
        "no-room",
        f"{path} cannot be written: it takes up to {units.human_size(needed)}, and {units.human_size(free)} are free there",
        "choose a place with more room; or, if much of it is zeroes, which take no room, use --anyway",
        507,
    )


def stopping() -> Problem:
    """Refuse a request because the daemon is stopping."""
    return Problem(STOPPING, "the daemon is stopping", "start it again with `wolun serve`", 503)


def internal(error: Exception) -> Problem:
    """Report an error that wolun did not expect: a bug."""
    return Problem(
        "internal-error",
        f"an unexpected error: {type(error).__name__}: {error}",
        "see the daemon's log, and report this as a bug",
        500,
    )


def lun_taken(lun: int, volume_name: str) -> Problem:
    """Refuse a LUN number for a volume that a snapshot has."""
    return Problem(
        "lun-taken",
        f"LUN {lun} belongs to a snapshot of {volume_name}",
        "choose another number for the volume, or delete the snapshot first",
    )


def lun_of_pool(lun: int, volume_name: str) -> Problem:
    """Refuse a LUN number for a volume that a pool of write-once LUNs has, or had."""
    return Problem(
        "lun-taken",
        f"LUN {lun} belongs to the pool of {volume_name}, and no other unit ever gets it: a node that slept could take the "
        "other unit for a write-once LUN",
        "choose another number for the volume",
    )


def pool_shrinks(volume_name: str, wanted: int, largest: int) -> Problem:
    """Refuse new write-once LUNs that would be smaller than those of the pool."""
    return Problem(
        "pool-shrinks",
        f"the pool of {volume_name} has LUNs of {units.exact_size(largest)}, and the configuration says {units.exact_size(wanted)}",
        f"write size: {units.exact_size(largest)} or more",
    )


def lun_known(lun: int, before: str, users: Iterable[str]) -> Problem:
    """Refuse a LUN number under which initiators that are logged in know another unit."""
    return Problem(
        "lun-known",
        f"LUN {lun} was {before}, and {', '.join(users)} may go on to use it as that",
        "choose another number, log those initiators out first, or use force=true",
    )


def differs(volume_name: str, key: str, is_: str, says: str) -> Problem:
    """Refuse a configuration that contradicts the volume."""
    return Problem(
        "differs",
        f"{volume_name} was made with {key} {is_}, but the configuration says {says}",
        f"put {key} {is_} back",
    )


_CODES = {
    errors.BadName: "bad-name",
    errors.BadLabel: "bad-label",
    errors.SnapshotExists: "snapshot-exists",
    errors.NoSuchSnapshot: "no-such-snapshot",
    differences.WrongOrder: "wrong-order",
    errors.SnapshotFailed: "snapshot-failed",
    errors.SnapshotHeld: "held",
    errors.SnapshotCloned: "cloned",
    errors.CloneExists: "clone-exists",
    errors.CloneRefused: "clone-refused",
    errors.NoSuchClone: "no-such-clone",
    errors.TooManySnapshots: TOO_MANY,
    errors.NoSpaceLeft: "no-space-left",
    errors.DamageFound: "damaged",
    errors.RollbackRefused: "restore-refused",
    errors.WrittenOutside: "written-outside",
    errors.RollbackUnderWay: "being-restored",
    errors.ResizeRefused: "resize-refused",
    errors.SnapshotDoubtful: "doubtful",
}


@contextlib.contextmanager
def translated(what: str, remedy: str | None = None, *, several: Collection[str] = ()) -> Iterator[None]:
    """Turn the errors of lower layers into Problems that say `what` failed.

    Without `remedy`, the error's own remedy is used.  With the names of `several` volumes, the sentence names the one that the
    error concerns.  DeletionStopped and RollbackStopped pass through: the caller asked for
    them.
    """
    try:
        yield
    except (errors.DeletionStopped, errors.RollbackStopped):
        raise
    except errors.VolumeError as error:
        code = _CODES.get(type(error), "refused")
        if error.volume in several:
            what = f"{what}: volume {error.volume}"
        status = 422 if code in ("bad-name", "bad-label") else 409
        advice = os_error.remedy(error, remedy or error.remedy)
        raise Problem(code, f"{what}: {error.reason}", advice, status) from error
    except Refused as error:
        raise refused(what, error.reason, os_error.remedy(error, remedy or error.remedy)) from error
    except block_device.BlockDeviceError as error:
        raise refused(what, str(error), os_error.remedy(error, remedy or "see the daemon's log")) from error
    except OSError as error:
        reason = os_error.reason(error)
        raise refused(what, reason, os_error.remedy(error, remedy or "check the disk and the permissions")) from error


def undecided(error: Exception) -> bool:
    """Return whether an error is a refusal that an administrator ends with a decision."""
    return isinstance(error, Problem) and error.undecided


def bad_request(where: str, what: str) -> Problem:
    """Refuse a request that does not fit its type."""
    return Problem("bad-request", f"the request is wrong at {where}: {what}", "see /openapi.json", 422)


def no_such_request(method: str, path: str, status: int) -> Problem:
    """Refuse a request that does not exist."""
    return Problem("no-such-request", f"there is no {method} {path}", "see /openapi.json", status)


def validated(model: type[T], fields: Mapping[str, Any], what: str) -> T:
    """Return a part of the configuration with these values.  Raise Problem."""
    try:
        return model.model_validate(dict(fields))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise invalid(f"{what}, {where}" if where else what, reader.sentence(first)) from None
