# SPDX-License-Identifier: Apache-2.0
"""The jobs of backups: verify a snapshot, find the changes between two, export all data or only the changes.

The control socket starts them.  See `lun_backends.backups.verification` and `differences` for the meaning of their
answers.

An export on top of an earlier image records that image's name relative to the new one, so that both may move together.
It is refused unless the earlier image says that it shows the older snapshot (see `identity`), or the caller accepts any
base.  An image that is not on this machine cannot be asked; then the caller names its format.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from lun_backends import block_device, damage
from lun_backends.backups import differences, pieces, verification
from lun_backends.files import os_error
from lun_backends.stores import contract
from lun_backends.volumes import interface
from target import messages
from target.exports import compressed, foreign, identity, image_file, qcow2, stream, throttle
from target.service import damage_met, jobs, problems
from target.service.service import Service

log = logging.getLogger(__name__)

DAMAGE_NAMED = 10_000
"""The most extents of damage that a Verification names."""
BASES = ("raw", "qcow2")
"""The formats of images that others can stand on."""
RAW = "export it as a raw image, or into a file"
_STEP = 1 << 20


def verify(service: Service, volume_name: str, name: str) -> jobs.Job:
    """Begin to verify a snapshot; the result of the job is a Verification.  Raises Problem."""
    owner, _ = service.inventory.find(volume_name, name)

    def work(job: jobs.Job) -> None:
        with problems.translated(f"{volume_name}@{name} was not verified"):
            job.result = verified = _verified(owner, name, job)
        log.log(
            logging.INFO if verified.sound else logging.ERROR,
            "verified %s@%s: %d bytes good, %d unverifiable, %d damaged",
            volume_name, name, verified.good_bytes, verified.unverifiable_bytes, verified.damaged_bytes,
        )  # fmt: skip

    return service.jobs.start("verify", f"{volume_name}@{name}", work)


def _verified(owner: interface.Volume, name: str, job: jobs.Job) -> messages.Verification:
    total = verification.preserved_bytes(owner, name)
    headers = verification.damaged_headers(owner, name)
    counted = dict.fromkeys(contract.Verdict, 0)
    named: list[messages.Damage] = []
    done = 0
    job.progress(done, total)
    for checked in verification.verify(owner, name):
        if job.cancelled():
            raise jobs.Cancelled
        report = checked.report
        counted[report.verdict] += report.length
        if report.verdict is contract.Verdict.DAMAGED:
            _add(named, checked, owner.device.block_size)
        done += report.length
        job.progress(min(done, total), total)
    damaged = counted[contract.Verdict.DAMAGED]
    outside = _outside(owner, name)
    doubt = owner.snapshot(name).doubt
    return messages.Verification(
        volume=owner.name,
        name=name,
        sound=not damaged and not headers and not doubt,
        doubtful=doubt,
        good_bytes=counted[contract.Verdict.GOOD],
        unverifiable_bytes=counted[contract.Verdict.UNVERIFIABLE],
        damaged_bytes=damaged,
        damage=tuple(named),
        headers=tuple(headers),
        outside_bytes=sum(extent.length for extent in outside),
        outside=tuple(outside[:DAMAGE_NAMED]),
    )


def _outside(owner: interface.Volume, name: str) -> list[messages.Outside]:
    """Return the blocks of the snapshot that initiators wrote to write-once LUNs."""
    names = {snapshot.uuid: snapshot.name for snapshot in owner.snapshots}
    block = owner.device.block_size
    return [
        messages.Outside(
            names.get(written.kept_in, name),
            written.offset // block,
            written.length // block,
            written.offset,
            written.length,
        )
        for written in owner.written_outside(name)
    ]


def _add(named: list[messages.Damage], checked: verification.Checked, block_size: int) -> None:
    report = checked.report
    offset, length = report.offset, report.length
    if named:
        last = named[-1]
        same = (last.kept_in, last.reason) == (checked.kept_in, report.reason)
        if same and last.offset + last.length == offset:
            named.pop()
            offset, length = last.offset, last.length + length
    if len(named) < DAMAGE_NAMED:
        lba, blocks = offset // block_size, length // block_size
        named.append(messages.Damage(checked.kept_in, lba, blocks, offset, length, report.reason))


def diff(service: Service, volume_name: str, since: str, request: messages.FindChanges) -> jobs.Job:
    """Begin to find the changes since a snapshot; the result of the job is a Difference.  Raises Problem."""
    owner, older = service.inventory.find(volume_name, since)
    newer = None if request.to is None else service.inventory.find(volume_name, request.to)[1]
    for needed in (older, newer):
        if needed is not None and needed.doubt:
            what = f"the changes since {volume_name}@{since} are not known"
            raise problems.doubtful(what, volume_name, needed.name, needed.doubt)

    def work(job: jobs.Job) -> None:
        with problems.translated(f"the changes since {volume_name}@{since} are not known"):
            ranges = differences.changed(owner, since, request.to)
            device = owner.device if newer is None else newer.view
            if request.exact:
                with damage_met.noted(job, owner) as found:
                    ranges = _differing(older.view, device, ranges, job, found)
                    if not request.damaged:
                        remedy = "count damaged blocks as changed with --damaged, or leave --exact out"
                        damage_met.refuse(owner, since if request.to is None else request.to, found, remedy)
            job.result = messages.Difference(
                volume=owner.name,
                since=since,
                to=request.to,
                exact=request.exact,
                size=device.size,
                changed_bytes=sum(length for _, length in ranges),
                extents=tuple(messages.Extent(offset, length) for offset, length in ranges),
            )

    return service.jobs.start("diff", f"{volume_name}@{since}", work)


def _differing(
    old: block_device.BlockDevice,
    new: block_device.BlockDevice,
    ranges: list[differences.Range],
    job: jobs.Job,
    on_damage: damage.OnDamage,
) -> list[differences.Range]:
    total = sum(length for _, length in ranges)
    done = 0
    differing: list[differences.Range] = []
    for length, part in differences.differing(old, new, ranges, on_damage):
        if job.cancelled():
            raise jobs.Cancelled
        differing += part
        done += length
        job.progress(done, total)
    return differences.merged(differing)


def export(service: Service, volume_name: str, name: str, request: messages.Export) -> jobs.Job:
    """Begin to write a snapshot into a file on this machine: all of it, or only the changes.  Raises Problem."""
    path = Path(request.path)
    if request.format not in messages.IMAGE_FORMATS:
        raise problems.bad_request("format", f"{request.format!r} is none of {', '.join(messages.IMAGE_FORMATS)}")
    owner, snapshot = _exportable(service, volume_name, name, request)
    what, view = f"{volume_name}@{name}", snapshot.view
    backing, since_uuid = None, ""
    if request.since is not None:
        older = service.inventory.find(volume_name, request.since)[1]
        with problems.translated(f"{what} was not exported"):
            differences.changed(owner, request.since, name)  # refuse here what the job would refuse later
        backing, sure = _backing(path, request, older, f"{volume_name}@{request.since}")
        since_uuid = str(older.uuid) if sure else ""
        if request.format not in BASES:
            raise problems.bad_request("format", f"an image of changes is qcow2, not {request.format}")
    if request.compress and request.format not in messages.COMPRESSIBLE:
        raise problems.bad_request("compress", f"a {request.format} image is not compressed: choose raw or qcow2")
    raw = request.format == "raw" and backing is None
    is_qcow2 = request.format == "qcow2" or backing is not None
    fifo = stream.is_fifo(path)
    if fifo and not raw:
        kind = "qcow2" if is_qcow2 else request.format
        raise problems.file_failed(path, f"it is a FIFO, and a {kind} image is not written from front to back", RAW)
    if fifo and request.compress:
        raise problems.file_failed(
            path, "it is a FIFO, which gets a raw image as it is", "compress what comes out of it"
        )
    foreign.check(path, request.format, view.size)
    cluster = qcow2.cluster_size(view.size, owner.chunk_size)

    def work(job: jobs.Job) -> None:
        def shown() -> identity.Identity:
            return identity.Identity(
                volume_name,
                str(owner.uuid),
                name,
                str(snapshot.uuid),
                view.size,
                since_uuid,
                found.bytes,
            )

        def writer(fd: int, length: int) -> image_file.Image:
            if is_qcow2:
                note = lambda: shown().encoded()  # noqa: E731 - it is asked at the end
                return qcow2.Writer(fd, length, cluster, backing, note, compress=request.compress)
            if raw:
                return compressed.Zstd(fd, length)
            if request.format == "vhd":
                return foreign.Vhd(fd, length)
            return foreign.Converted(fd, length, path, request.format, job.cancelled, undo)

        job.progress(0, view.size)
        with problems.translated(f"{what} was not exported"), contextlib.ExitStack() as undo:
            if request.since is None:
                ranges: Iterable[differences.Range] = _data(view)
                needed = image_file.data_bytes(view) * (2 if request.format in foreign.QEMU_IMG else 1)
            else:
                ranges = changed = differences.changed(owner, request.since, name)
                needed = sum(length for _, length in changed)
            if not request.anyway and not fifo:
                image_file.check_room(path, needed)
            with damage_met.noted(job, owner) as found:
                content = whole_grains(view, ranges, cluster, found) if is_qcow2 else pieces.export(view, found)
                if not request.damaged:
                    content = undamaged(content, found, owner, snapshot, job)
                content = throttle.slowed(content, throttle.Throttle(request.limit, job.cancelled))
                if fifo:
                    stream.to_fifo(content, view.size, path, progress=job.progress, cancelled=job.cancelled)
                    return
                image_file.export(
                    content,
                    view.size,
                    path,
                    overwrite=request.overwrite,
                    progress=job.progress,
                    cancelled=job.cancelled,
                    image=None if raw and not request.compress else writer,
                    identity=shown,
                    check=lambda: image_file.check_place(path, service.inventory, overwrite=request.overwrite),
                )
        job.progress(view.size, view.size)
        log.info("exported %s to %s%s", what, path, f" on top of {backing.name}" if backing else "")

    return service.jobs.start("export", what, work)


def open_stream(
    service: Service, volume_name: str, name: str, request: messages.Stream
) -> tuple[jobs.Job, io.FileIO, int]:
    """Begin to write a snapshot into a pipe, as a raw image.  Return the job, the end to read, and the size in bytes.

    The job ends when the caller closes the end to read.  Raises Problem.
    """
    owner, snapshot = readable(service, volume_name, name, None)
    what, view = f"{volume_name}@{name}", snapshot.view
    ends = os.pipe()
    reading, writing = io.FileIO(ends[0], "rb"), io.FileIO(ends[1], "wb")

    def work(job: jobs.Job) -> None:
        with (
            writing,
            problems.translated(f"{what} was not exported"),
            damage_met.noted(job, owner) as found,
        ):
            content = pieces.export(view, found)
            if not request.damaged:
                content = undamaged(content, found, owner, snapshot, job)
            content = throttle.slowed(content, throttle.Throttle(request.limit, job.cancelled))
            place = Path("standard output")
            try:
                stream.to_pipe(
                    content, view.size, writing.fileno(), place, progress=job.progress, cancelled=job.cancelled
                )
            except BrokenPipeError:
                raise jobs.Cancelled from None
        log.info("exported %s to a client", what)

    try:
        return service.jobs.start("export", what, work), reading, view.size
    except problems.Problem:
        reading.close()
        writing.close()
        raise


def readable(
    service: Service, volume_name: str, name: str, since: str | None
) -> tuple[interface.Volume, interface.Snapshot]:
    """Return the volume and the snapshot if the snapshot, and the one `since`, can be relied on.  Raises Problem."""
    owner, snapshot = service.inventory.find(volume_name, name)
    what = f"{volume_name}@{name} cannot be exported"
    if snapshot.unreadable:
        raise problems.refused(what, snapshot.unreadable, "use another snapshot")
    older = None if since is None else service.inventory.find(volume_name, since)[1]
    for needed in (snapshot, older):
        if needed is not None and needed.doubt:
            raise problems.doubtful(what, volume_name, needed.name, needed.doubt)
    return owner, snapshot


def undamaged(
    content: Iterable[pieces.ExportPiece],
    found: damage.Found,
    owner: interface.Volume,
    snapshot: interface.Snapshot,
    job: jobs.Job,
) -> Iterator[pieces.ExportPiece]:
    """Yield the content up to the first damage.  Then read on to find all damage, and raise DamageFound, or jobs.Cancelled."""
    for piece in content:
        if not found:
            yield piece
            continue
        if job.cancelled():
            raise jobs.Cancelled
        job.progress(piece.offset + piece.length, snapshot.view.size)
    damage_met.refuse(
        owner, snapshot.name, found, "export another snapshot, or export the damaged blocks as they are with --damaged"
    )


def _exportable(
    service: Service, volume_name: str, name: str, request: messages.Export
) -> tuple[interface.Volume, interface.Snapshot]:
    """Return the volume and the snapshot if the snapshot can be written to the requested path.  Raises Problem."""
    owner, snapshot = readable(service, volume_name, name, request.since)
    image_file.check_place(Path(request.path), service.inventory, overwrite=request.overwrite)
    return owner, snapshot


def _backing(path: Path, request: messages.Export, older: interface.Snapshot, since: str) -> tuple[qcow2.Backing, bool]:
    """Return the image below the new one, and whether it identifies itself as the older snapshot.  Raises Problem."""
    if request.backing is None:
        raise problems.bad_request("backing", f"with `since`, name the image of {since}")
    below = Path(request.backing)
    if not below.is_absolute():
        raise problems.file_failed(below, "the path is not absolute")
    if request.backing_format not in (None, *BASES):
        raise problems.bad_request("backing_format", f"{request.backing_format!r} is none of {', '.join(BASES)}")
    size = older.view.size
    sure = False
    try:
        below_size, kind = qcow2.virtual_size(below)
        doubt = _doubt(below, older)
        sure = not doubt
    except FileNotFoundError:
        if request.backing_format is None:
            raise problems.refused(
                f"{path} was not written",
                f"there is no {below}, the image of {since} that it would stand on",
                "name that image with --backing, and its format with --backing-format if it is on another machine",
            ) from None
        below_size, kind, doubt = size, request.backing_format, ""
    except OSError as error:
        raise problems.refused(
            f"{path} was not written", f"{below} cannot be read: {os_error.reason(error)}", "check the file"
        ) from error
    kind = request.backing_format or kind
    if below_size != size:
        raise problems.refused(
            f"{path} was not written",
            f"{below} is not an image of {since}: it shows {below_size} bytes, not {size}",
            "name the image that was exported from that snapshot",
        )
    if doubt and not request.any_base:
        raise problems.refused(
            f"{path} was not written",
            f"{below} {doubt}",
            f"name the image that was exported from {since} with --backing, or use --force if you know that this is it",
        )
    if any(image_file.place(path) in (image_file.place(image), image.resolve()) for image in qcow2.chain(below)):
        raise problems.refused(
            f"{path} was not written",
            f"{below}, the image of {since}, is that file or stands on it",
            "choose another name",
        )
    name = os.path.relpath(below, path.parent)
    if ":" in name.split("/")[0]:
        name = f"./{name}"  # QEMU takes the part before a colon for a protocol
    if len(os.fsencode(name)) > qcow2.NAME_MAX:
        raise problems.refused(
            f"{path} was not written",
            f"the way from there to {below} has more than {qcow2.NAME_MAX} bytes, the most that qcow2 has room for",
            "write it nearer to that image",
        )
    return qcow2.Backing(name, kind), sure


def _doubt(below: Path, older: interface.Snapshot) -> str:
    """Return why the image at `below` is not sure to show a snapshot; empty if it is.  Raises OSError.

    This also looks at the images below that one, if they carry an identity, because one of them may have been replaced.
    """
    wanted = str(older.uuid)
    for image in qcow2.chain(below):
        try:
            shown = identity.of(image)
        except identity.Unknown as unknown:
            return f"cannot be told to be an image of {older.name!r}: {unknown}" if image == below else ""
        except OSError as error:
            if image == below:
                raise
            log.info("%s, on which %s stands, cannot be read: %s", image, below, os_error.reason(error))
            return ""
        if shown.snapshot_uuid != wanted:
            other = f"{shown.volume}@{shown.snapshot} ({shown.snapshot_uuid})"
            if image == below:
                return f"is an image of another snapshot: {other}, not {wanted}"
            return f"stands on {image}, which was replaced: it is an image of {other}, not {wanted}"
        if not shown.since_uuid:
            return ""
        wanted = shown.since_uuid
    return ""


def _data(view: block_device.BlockDevice) -> Iterator[differences.Range]:
    """Yield the ranges of a device that are no holes."""
    for extent in view.extents(0, view.size):
        if extent.kind is not block_device.ExtentKind.HOLE:
            yield extent.offset, extent.length


def whole_grains(
    view: block_device.BlockDevice,
    ranges: Iterable[differences.Range],
    grain: int,
    on_damage: damage.OnDamage | None = None,
) -> Iterator[pieces.ExportPiece]:
    """Yield the content of `ranges`, widened to whole `grain`s, except at the end of the view.

    No grain comes twice.  The data of a piece is valid until the caller asks for the next one.  All data is compared
    with its checksum.  `on_damage` and the errors are those of `read_checked`.
    """
    buffer = memoryview(bytearray(_STEP))
    done = 0
    for begin, length in ranges:
        offset = max(done, begin // grain * grain)
        end = min(view.size, -(-(begin + length) // grain) * grain)
        while offset < end:
            piece = buffer[: min(_STEP, end - offset)]
            view.read_checked(offset, [piece], on_damage)
            yield pieces.ExportPiece(offset, len(piece), piece)
            offset += len(piece)
        done = max(done, end)
