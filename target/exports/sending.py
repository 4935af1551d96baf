# SPDX-License-Identifier: Apache-2.0
"""The sending of a snapshot as a framed stream (`lun_backends.backups.frames`): all of it, or its changes since another one.

The snapshot's identity goes along, so that a receiver knows it again.  A snapshot that was received here has the identity of
its first origin.  So each replica can bring another one up to date, and the origin, too.

An interrupted stream goes on at an offset: what lies before it is the same in each stream of these two snapshots.
"""

from __future__ import annotations

import io
import logging
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lun_backends import block_device, damage
from lun_backends.backups import differences, frames
from lun_backends.backups.pieces import ExportPiece
from lun_backends.volumes import interface
from target import messages
from target.exports import compressed, stream, throttle
from target.exports import jobs as exports
from target.service import damage_met, jobs, moments, problems, replica_file
from target.service.service import Service

log = logging.getLogger(__name__)

_GRAIN = 64 << 10
_ZEROES = bytes(_GRAIN)


@dataclass(frozen=True)
class Sending:
    """A stream to send: `snapshot` of `owner` since `older`, from byte `start` on."""

    owner: interface.Volume
    snapshot: interface.Snapshot
    older: interface.Snapshot | None
    start: int = 0
    compress: bool = False
    limit: int | None = None
    damaged: bool = False

    @property
    def subject(self) -> str:
        """The snapshot's full name."""
        return f"{self.owner.name}@{self.snapshot.name}"


def planned(service: Service, volume_name: str, name: str, request: messages.Send) -> Sending:
    """Return the stream of a snapshot that a request asks for.  Raise Problem."""
    owner, snapshot = exports.readable(service, volume_name, name, request.since)
    older = None if request.since is None else service.inventory.find(volume_name, request.since)[1]
    if older is snapshot:
        raise problems.bad_request("since", "it is the snapshot itself")
    sending = Sending(owner, snapshot, older, compress=request.compress, limit=request.limit, damaged=request.damaged)
    _ranges(sending)
    return sending


def resumed(service: Service, request: messages.Resume) -> Sending:
    """Return the rest of the stream that a token stands for.  Raise Problem."""
    try:
        token = frames.token(request.token)
        wanted, since = uuid.UUID(token.identity), uuid.UUID(token.since) if token.since else None
    except ValueError as error:
        raise problems.bad_request("token", str(error)) from None
    for owner in service.inventory.open_volumes.values():
        known = replica_file.identities(owner, replica_file.load(owner.directory))
        if wanted not in known:
            continue
        if since is not None and since not in known:
            raise problems.refused(
                "the stream cannot go on",
                f"{owner.name} no longer has the snapshot {since}, on which {owner.name}@{known[wanted].name} was sent",
                "send anew, since a snapshot that both sides have",
            )
        sending = Sending(
            owner,
            known[wanted],
            None if since is None else known[since],
            token.offset,
            request.compress,
            request.limit,
            request.damaged,
        )
        _ranges(sending)
        return sending
    raise problems.refused(
        "the stream cannot go on",
        f"no volume here has the snapshot {wanted}",
        "run the command on the host that sent it; or send another snapshot",
    )


def open_stream(service: Service, sending: Sending) -> tuple[jobs.Job, io.FileIO]:
    """Begin to write a stream into a pipe.  Return the job and the end to read.

    The job ends when the caller closes the end to read.  Raise Problem.
    """
    ends = os.pipe()
    reading, writing = io.FileIO(ends[0], "rb"), io.FileIO(ends[1], "wb")

    def work(job: jobs.Job) -> None:
        with writing:
            fd = writing.fileno()
            stream.prepare(fd)

            def write(data: bytes | memoryview) -> None:
                stream.send(fd, memoryview(data), job.cancelled)

            try:
                send(sending, frames.Writer(write, compressed.LEVEL if sending.compress else None), job)
            except BrokenPipeError:
                raise jobs.Cancelled from None

    try:
        return service.jobs.start("send", sending.subject, work), reading
    except problems.Problem:
        reading.close()
        writing.close()
        raise


def send(sending: Sending, writer: frames.Writer, job: jobs.Job) -> None:
    """Write the stream, in the job.  Raise jobs.Cancelled, Problem, BrokenPipeError, OSError."""
    view = sending.snapshot.view
    ranges = [
        (max(offset, sending.start), offset + length - max(offset, sending.start))
        for offset, length in _ranges(sending)
        if offset + length > sending.start
    ]
    total = sum(length for _, length in ranges)
    slow = throttle.Throttle(sending.limit, job.cancelled)
    job.progress(0, total)
    with problems.translated(f"{sending.subject} was not sent"), damage_met.noted(job, sending.owner) as found:
        content: Iterable[ExportPiece] = _content(view, ranges, found)
        if not sending.damaged:
            content = exports.undamaged(content, found, sending.owner, sending.snapshot, job)
        writer.begin(_begin(sending, total))
        done = 0
        for piece in content:
            if job.cancelled():
                raise jobs.Cancelled
            if piece.data is None:
                writer.zero(piece.offset, piece.length)
            else:
                _write(writer, piece.offset, piece.data, slow)
            done += piece.length
            job.progress(done, total)
        writer.end()
    log.info("sent %s", sending.subject)


def _write(writer: frames.Writer, offset: int, data: memoryview, slow: throttle.Throttle) -> None:
    """Write data; each run of grains that are zero as one frame without data."""
    start = 0
    while start < len(data):
        zero, end = _is_zero(data[start : start + _GRAIN]), start + _GRAIN
        while end < len(data) and _is_zero(data[end : end + _GRAIN]) is zero:
            end += _GRAIN
        run = data[start:end]
        if zero:
            writer.zero(offset + start, len(run))
        else:
            slow.spend(len(run))
            writer.data(offset + start, run)
        start = end


def _is_zero(grain: memoryview) -> bool:
    # Most data differs in its first bytes; a comparison of all of it holds up other threads.
    return not any(grain[:64]) and bytes(grain) == _ZEROES[: len(grain)]


def _begin(sending: Sending, total: int) -> frames.Begin:
    owner, snapshot, older = sending.owner, sending.snapshot, sending.older
    replica = replica_file.load(owner.directory)
    return frames.Begin(
        volume=owner.name,
        volume_uuid=str(owner.uuid),
        snapshot=snapshot.name,
        identity=str(replica_file.identity(snapshot, replica)),
        taken=moments.utc(snapshot.taken_at),
        size=snapshot.size,
        block_size=snapshot.view.block_size,
        chunk_size=owner.chunk_size,
        consistency=snapshot.consistency.value,
        labels=dict(snapshot.labels),
        since=None if older is None else frames.Base(older.name, str(replica_file.identity(older, replica))),
        start=sending.start,
        total=total,
    )


def _ranges(sending: Sending) -> list[differences.Range]:
    """Return the ranges of the volume that the stream covers if it is not resumed.  Raise Problem."""
    if sending.older is None:
        return [(0, sending.snapshot.size)]
    with problems.translated(f"{sending.subject} was not sent"):
        return differences.changed(sending.owner, sending.older.name, sending.snapshot.name)


def _content(
    view: block_device.BlockDevice, ranges: Iterable[differences.Range], on_damage: damage.OnDamage
) -> Iterator[ExportPiece]:
    """Yield the content of the ranges; the data of a piece is valid until the next one."""
    buffer = memoryview(bytearray(frames.STEP))
    for begin, length in ranges:
        for extent in view.extents(begin, length):
            end = extent.offset + extent.length
            if extent.kind is block_device.ExtentKind.HOLE:
                yield ExportPiece(extent.offset, extent.length, None)
                continue
            for offset in range(extent.offset, end, frames.STEP):
                piece = buffer[: min(frames.STEP, end - offset)]
                view.read_checked(offset, [piece], on_damage)
                yield ExportPiece(offset, len(piece), piece)
