# SPDX-License-Identifier: Apache-2.0
"""The receiving of a framed stream (`lun_backends.backups.frames`) into a volume, as a job.

The volume is a replica: nothing else writes to it.  Its content is that of its newest received snapshot, or between two of
them while a stream is under way.

| step            | what is durable then                                             | a crash after it                           |
| --------------- | ---------------------------------------------------------------- | ------------------------------------------ |
| data is written | nothing for sure                                                 | the stream goes on at the last offset noted |
| progress        | the data, then the offset (`replica_file.Partial`)               | the stream goes on there                   |
| END             | all data, then the identity of the coming snapshot               | an empty rest is sent again                |
| the snapshot    | the snapshot                                                     | the next stream finds its base             |

A stream that stands on a base is written onto the content of that base.  Where an earlier stream was given up, or an
administrator accepted that local changes are lost, that content is first restored from the base.
"""

from __future__ import annotations

import dataclasses
import datetime
import io
import logging
import os
import select
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from lun_backends.backups import differences, frames
from lun_backends.volumes import interface, manifest
from lun_backends.volumes import volume as own
from target import messages
from target.service import jobs, problems, replica_file
from target.service.service import Service

log = logging.getLogger(__name__)

NOTED_SECONDS = 5.0
"""Seconds between two notes of how far a stream has come; each waits for the disk."""
_POLL = 0.1
_STEP = 1 << 20


@dataclass(frozen=True)
class Receiving:
    """A stream that the volume can take: `begin` is its beginning, `base` its base here, `restore` whether that comes first."""

    owner: own.Volume
    begin: frames.Begin
    base: interface.Snapshot | None
    restore: bool
    keep: int | None = None


def begin_of(request: messages.Receive) -> frames.Begin:
    """Return the beginning of a stream that a request describes.  Raise Problem."""
    for where, text in (
        ("identity", request.identity),
        *([("since", request.since.identity)] if request.since else ()),
    ):
        try:
            uuid.UUID(text)
        except ValueError:
            raise problems.bad_request(where, f"{text!r} is no UUID") from None
    try:
        if datetime.datetime.fromisoformat(request.taken).tzinfo is None:
            raise problems.bad_request("taken", "it has no time zone")
        manifest.Consistency(request.consistency)
    except ValueError as error:
        raise problems.bad_request("taken or consistency", str(error)) from None
    return frames.Begin(
        volume=request.volume,
        volume_uuid=request.volume_uuid,
        snapshot=request.snapshot,
        identity=request.identity,
        taken=request.taken,
        size=request.size,
        block_size=request.block_size,
        chunk_size=request.chunk_size,
        consistency=request.consistency,
        labels=dict(request.labels),
        since=None if request.since is None else frames.Base(request.since.name, request.since.identity),
        start=request.start,
        total=request.total,
    )


def check(owner: own.Volume, begin: frames.Begin, *, force: bool) -> tuple[interface.Snapshot | None, bool]:
    """Return the base of a stream in the volume, and whether its content has to be restored first.

    Refuse a stream that the volume cannot take.  Raise Problem.
    """
    what = f"{owner.name} cannot receive {begin.volume}@{begin.snapshot}"
    replica = replica_file.load(owner.directory)
    known = replica_file.identities(owner, replica)
    wanted, since = uuid.UUID(begin.identity), None if begin.since is None else uuid.UUID(begin.since.identity)
    if wanted in known:
        name = f"{owner.name}@{known[wanted].name}"
        raise problems.Problem(
            problems.RECEIVED, f"{name} is {begin.volume}@{begin.snapshot} already", "nothing is to be done"
        )
    if any(snapshot.name == begin.snapshot for snapshot in owner.snapshots):
        raise problems.refused(
            what,
            f"{owner.name} has another snapshot of the name {begin.snapshot}",
            f"rename or delete it: `wolun snapshot rename {owner.name}@{begin.snapshot} NEW`",
        )
    if begin.block_size != owner.device.block_size:
        reason = f"it has blocks of {begin.block_size} bytes, and {owner.name} of {owner.device.block_size}"
        raise problems.refused(what, reason, "receive it under another name")
    if begin.size < owner.device.size:
        reason = f"it has {begin.size} bytes, and {owner.name} has {owner.device.size}"
        raise problems.refused(what, reason, "volumes do not shrink: receive it under another name")
    base = None if since is None else known.get(since)
    if begin.since is not None and base is None:
        raise _wrong_base(what, owner, begin.since, known)
    partial = None if replica is None else replica.partial
    same = partial is not None and (partial.identity, partial.since) == (wanted, since)
    if begin.start and not (same and partial is not None and begin.start <= partial.offset):
        reason = f"it goes on at byte {begin.start}, and {_where(owner, partial)}"
        raise problems.refused(what, reason, _again(partial))
    if owner.rolling_back_to is not None:
        reason = f"{owner.name} is being rolled back to {owner.rolling_back_to.name}"
        raise problems.refused(what, reason, "wait until that is done")
    mine = replica is not None and replica.replica
    if not force and not mine:
        raise _no_replica(what, owner, base)
    if not force and base is None and owner.snapshots:
        reason = f"it is a full stream, and {owner.name} has {_listed(known)}"
        remedy = "send the changes since one of these with --since, receive it under another name, or use --force"
        raise problems.refused(what, reason, remedy)
    if base is None or same:
        return base, False
    with problems.translated(what):
        return base, bool(differences.changed(owner, base.name, None))


def _wrong_base(
    what: str, owner: own.Volume, since: frames.Base, known: Mapping[uuid.UUID, interface.Snapshot]
) -> problems.Problem:
    return problems.Problem(
        problems.WRONG_BASE,
        f"{what}: it stands on {since.name} ({since.identity}), and {owner.name} has {_listed(known)}",
        "send the changes since a snapshot that both sides have; `wolun snapshot list` names those of the sender",
    )


def _no_replica(what: str, owner: own.Volume, base: interface.Snapshot | None) -> problems.Problem:
    reason = f"{owner.name} is no replica, so it may have been written to"
    if base is None:
        return problems.refused(
            what, reason, "receive it under another name; or let it replace the content with --force"
        )
    remedy = f"--force makes it one, and takes back what was written since {owner.name}@{base.name}"
    return problems.refused(what, reason, remedy)


def _listed(known: Mapping[uuid.UUID, interface.Snapshot]) -> str:
    names = [f"{snapshot.name} ({identity})" for identity, snapshot in known.items()]
    return ", ".join(names[-5:]) + (f" and {len(names) - 5} older ones" if names[5:] else "") or "no snapshot"


def _where(owner: own.Volume, partial: replica_file.Partial | None) -> str:
    if partial is None:
        return f"no stream into {owner.name} was interrupted"
    return f"the interrupted stream into {owner.name} is that of {partial.name}, and has come to byte {partial.offset}"


def _again(partial: replica_file.Partial | None) -> str:
    return (
        "send it from its beginning" if partial is None else f"run `wolun send --resume {partial.token}` on the sender"
    )


def start(service: Service, receiving: Receiving) -> jobs.Job:
    """Begin to receive.  The caller writes the stream into the job's `input`, and closes that.  Raise Problem."""
    ends = os.pipe()
    reading, writing = io.FileIO(ends[0], "rb"), io.FileIO(ends[1], "wb")

    def work(job: jobs.Job) -> None:
        try:
            with reading:
                _Receiver(service, receiving, job, reading.fileno()).run()
        finally:
            left, job.input = job.input, None
            if left is not None:  # the content never came
                left.close()

    try:
        job = service.jobs.start("receive", f"{receiving.owner.name}@{receiving.begin.snapshot}", work)
    except problems.Problem:
        reading.close()
        writing.close()
        raise
    job.input = writing
    job.expect_holder()
    return job


class _Receiver:
    """The work of one job."""

    def __init__(self, service: Service, receiving: Receiving, job: jobs.Job, fd: int) -> None:
        self._service = service
        self._owner = receiving.owner
        self._device = receiving.owner.device
        self._begin = receiving.begin
        self._receiving = receiving
        self._job = job
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._what = f"{self._owner.name}@{self._begin.snapshot} was not received"
        self._partial = replica_file.Partial(
            uuid.UUID(self._begin.identity),
            self._begin.snapshot,
            None if self._begin.since is None else uuid.UUID(self._begin.since.identity),
            self._begin.start,
        )

    def run(self) -> None:
        """Receive the stream.  Raise jobs.Cancelled, Problem."""
        self._job.progress(0, self._begin.total)
        with problems.translated(self._what):
            if self._receiving.restore:
                assert self._receiving.base is not None
                self._change(partial=None)  # interrupted, all of it is done again
                restore(self._owner, self._receiving.base, self._job)
            self._note(self._begin.start)
        try:
            with problems.translated(self._what):
                self._read()
        except frames.StreamError as error:
            raise self._interrupted(str(error)) from error
        except jobs.Cancelled:
            log.warning("receiving %s stopped; go on with the token %s", self._job.subject, self._partial.token)
            raise
        with problems.translated(self._what):
            self._finish()

    def _interrupted(self, why: str) -> problems.Problem:
        code = problems.INTERRUPTED
        return problems.Problem(code, f"{self._what}: the stream is of no use: {why}", _again(self._partial))

    def _read(self) -> None:
        """Write the frames to the volume.  Raise StreamError, jobs.Cancelled, BlockDeviceError, OSError."""
        place, noted, done = self._begin.start, time.monotonic(), 0
        begun = False
        try:
            for frame in frames.Reader(self._bytes).frames():
                if frame.kind is frames.Kind.BEGIN:
                    if frame.begin != self._begin:
                        raise frames.StreamError("it is not the stream that was announced")
                    begun = True
                    continue
                if frame.kind not in (frames.Kind.DATA, frames.Kind.ZERO):
                    continue
                self._check(frame, place, begun=begun)
                if frame.kind is frames.Kind.DATA:
                    self._device.writev(frame.offset, [memoryview(frame.payload)])
                else:
                    self._device.write_zeroes(frame.offset, frame.length, discard=True)
                place = frame.offset + frame.length
                done += frame.length
                self._job.progress(done, self._begin.total)
                if time.monotonic() - noted > NOTED_SECONDS:
                    self._note(place)
                    noted = time.monotonic()
        finally:
            if begun:
                self._note(place)
        if not begun:
            raise frames.StreamError("it has no beginning")

    def _check(self, frame: frames.Frame, place: int, *, begun: bool) -> None:
        block = self._device.block_size
        end = frame.offset + frame.length
        if not begun or frame.offset < place or end > self._begin.size or not frame.length:
            raise frames.StreamError(
                f"it has data for {frame.length} bytes at byte {frame.offset}, which is not its place"
            )
        if frame.offset % block or frame.length % block:
            raise frames.StreamError(f"its data at byte {frame.offset} is not whole blocks")

    def _note(self, offset: int) -> None:
        """Note that all data before `offset` is on stable storage.  Raise BlockDeviceError, OSError."""
        self._device.flush()
        self._partial = dataclasses.replace(self._partial, offset=offset)
        self._change(partial=self._partial)

    def _change(self, partial: replica_file.Partial | None, origin: tuple[uuid.UUID, uuid.UUID] | None = None) -> None:
        owner = self._owner
        before = replica_file.load(owner.directory)
        there = {snapshot.uuid for snapshot in owner.snapshots}
        origins = {} if before is None else {here: first for here, first in before.origins.items() if here in there}
        if origin is not None:
            origins[origin[0]] = origin[1]
        replica = replica_file.Replica(self._begin.volume, self._begin.volume_uuid, True, origins, partial)
        replica_file.store(owner.directory, replica)

    def _finish(self) -> None:
        """Take the snapshot.  Raise Problem, the errors of taking, OSError."""
        begin, owner, here = self._begin, self._owner, uuid.uuid4()
        self._change(self._partial, (here, uuid.UUID(begin.identity)))
        self._service.snapshots.keep_received(
            owner,
            begin.snapshot,
            begin.labels,
            identity=here,
            taken_at=datetime.datetime.fromisoformat(begin.taken),
            consistency=manifest.Consistency(begin.consistency),
        )
        self._change(None)
        self._service.inventory.content_changed(owner)
        log.info("received %s from %s", self._job.subject, begin.volume)
        self._delete_old()

    def _delete_old(self) -> None:
        """Delete the oldest received snapshots until as many are left as are kept; a held one stays."""
        if self._receiving.keep is None:
            return
        replica = replica_file.load(self._owner.directory)
        assert replica is not None
        received = [snapshot for snapshot in self._owner.snapshots if snapshot.uuid in replica.origins]
        for snapshot in received[: -self._receiving.keep]:
            if snapshot.hold or snapshot.deleting:
                continue
            try:
                deletion = self._service.snapshots.delete_snapshot(self._owner.name, snapshot.name)
                deletion.wait()
                deletion.check()
            except problems.Problem as problem:
                log.warning("%s@%s stays: %s", self._owner.name, snapshot.name, problem)

    def _bytes(self, most: int) -> bytes:
        """Return the next bytes of the pipe, at most so many; none at its end.  Raise jobs.Cancelled, OSError."""
        while not self._poll.poll(_POLL * 1000):
            if self._job.cancelled():
                raise jobs.Cancelled
        if self._job.cancelled():
            raise jobs.Cancelled
        return os.read(self._fd, most)


def restore(owner: own.Volume, base: interface.Snapshot, job: jobs.Job) -> None:
    """Give the volume the content of a snapshot again.  Raise jobs.Cancelled, VolumeError, BlockDeviceError."""
    log.info("%s gets the content of %s again", owner.name, base.name)
    buffer = memoryview(bytearray(_STEP))
    for begin, length in differences.changed(owner, base.name, None):
        end = min(begin + length, base.view.size)
        for offset in range(begin, end, _STEP):
            if job.cancelled():
                raise jobs.Cancelled
            piece = buffer[: min(_STEP, end - offset)]
            base.view.read_checked(offset, [piece])
            owner.device.writev(offset, [piece])
        grown = max(begin, base.view.size)
        if begin + length > grown:
            owner.device.write_zeroes(grown, begin + length - grown, discard=True)
    owner.device.flush()


def promote(service: Service, owner: own.Volume) -> jobs.Job:
    """Begin to let a replica take writes.  If it has a part of a stream, it first gets its newest whole content again.

    Raise Problem.
    """
    what = f"{owner.name} was not promoted"
    replica = replica_file.load(owner.directory)
    if replica is None or not replica.replica:
        raise problems.refused(what, "it is no replica", "nothing is to be done")
    known = replica_file.identities(owner, replica)
    partial = replica.partial if replica.partial is not None and replica.partial.identity not in known else None
    base = None if partial is None or partial.since is None else known.get(partial.since)
    if partial is not None and base is None:
        remedy = f"receive the rest, or delete it with `wolun volume delete {owner.name} --data`"
        raise problems.refused(what, f"it has a part of {partial.name} and no whole content", remedy)

    def work(job: jobs.Job) -> None:
        with problems.translated(what):
            if base is not None:
                restore(owner, base, job)
            replica_file.store(owner.directory, dataclasses.replace(replica, replica=False, partial=None))
        service.inventory.protect(owner, False)
        log.warning("%s is no replica any longer: it takes writes", owner.name)

    return service.jobs.start("promote", f"{owner.name}@{base.name}" if base else owner.name, work)
