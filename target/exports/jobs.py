# SPDX-License-Identifier: Apache-2.0
"""What backups are made of: verifying a snapshot, finding what changed between two, and exporting all or only that.

The jobs behind the control socket; see `lun_backends.backups.verification` and `differences` for what their answers mean.

An export on top of an earlier image names that image relative to itself, so that both may move together, and only if what
it finds there can be it: it must be of the size that the older snapshot has.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from lun_backends import block_device
from lun_backends.backups import differences, verification
from lun_backends.backups import pieces as whole
from lun_backends.backups.pieces import ExportPiece
from lun_backends.files import os_error
from lun_backends.stores import contents
from lun_backends.volumes import volume
from lun_backends.volumes.snapshot import Snapshot
from target import messages
from target.exports import image_file, qcow2
from target.service import jobs, problems
from target.service.service import Service

log = logging.getLogger(__name__)

DAMAGE_NAMED = 10_000
"""Extents of damage that a Verification names."""
FORMATS = ("raw", "qcow2")
_STEP = 1 << 20


def verify(service: Service, volume_name: str, name: str) -> jobs.Job:
    """Begin to verify a snapshot; the job's result is a Verification.  Raises Problem."""
    owner, _ = service.inventory.find(volume_name, name)

    def work(job: jobs.Job) -> None:
        with problems.translated(f"{volume_name}@{name} was not verified"):
            job.result = found = _verified(owner, name, job)
        log.log(
            logging.INFO if found.sound else logging.ERROR,
            "verified %s@%s: %d bytes good, %d unverifiable, %d damaged",
            volume_name, name, found.good_bytes, found.unverifiable_bytes, found.damaged_bytes,
        )  # fmt: skip

    return service.jobs.start("verify", f"{volume_name}@{name}", work)


def _verified(owner: volume.Volume, name: str, job: jobs.Job) -> messages.Verification:
    total = verification.preserved_bytes(owner, name)
    headers = verification.damaged_headers(owner, name)
    counted = dict.fromkeys(contents.Verdict, 0)
    damage: list[messages.Damage] = []
    done = 0
    job.progress(done, total)
    for checked in verification.verify(owner, name):
        if job.cancelled():
            raise jobs.Cancelled
        report = checked.report
        counted[report.verdict] += report.length
        if report.verdict is contents.Verdict.DAMAGED:
            _add(damage, checked, owner.device.block_size)
        done += report.length
        job.progress(min(done, total), total)
    damaged = counted[contents.Verdict.DAMAGED]
    return messages.Verification(
        volume=owner.name,
        name=name,
        sound=not damaged and not headers,
        good_bytes=counted[contents.Verdict.GOOD],
        unverifiable_bytes=counted[contents.Verdict.UNVERIFIABLE],
        damaged_bytes=damaged,
        damage=tuple(damage),
        headers=tuple(headers),
    )


def _add(damage: list[messages.Damage], checked: verification.Checked, block_size: int) -> None:
    report = checked.report
    offset, length = report.offset, report.length
    if damage:
        last = damage[-1]
        same = (last.kept_in, last.reason) == (checked.kept_in, report.reason)
        if same and last.offset + last.length == offset:
            damage.pop()
            offset, length = last.offset, last.length + length
    if len(damage) < DAMAGE_NAMED:
        lba, blocks = offset // block_size, length // block_size
        damage.append(messages.Damage(checked.kept_in, lba, blocks, offset, length, report.reason))


def diff(service: Service, volume_name: str, since: str, request: messages.FindChanges) -> jobs.Job:
    """Begin to find what changed since a snapshot; the job's result is a Difference.  Raises Problem."""
    owner, older = service.inventory.find(volume_name, since)
    newer = None if request.to is None else service.inventory.find(volume_name, request.to)[1]

    def work(job: jobs.Job) -> None:
        with problems.translated(f"what changed since {volume_name}@{since} is not known"):
            ranges = differences.changed(owner, since, request.to)
            device = owner.device if newer is None else newer.view
            if request.exact:
                ranges = _differing(older.view, device, ranges, job)
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
    old: block_device.BlockDevice, new: block_device.BlockDevice, ranges: list[differences.Range], job: jobs.Job
) -> list[differences.Range]:
    total = sum(length for _, length in ranges)
    done = 0
    found: list[differences.Range] = []
    for length, part in differences.differing(old, new, ranges):
        if job.cancelled():
            raise jobs.Cancelled
        found += part
        done += length
        job.progress(done, total)
    return differences.merged(found)


def export(service: Service, volume_name: str, name: str, request: messages.Export) -> jobs.Job:
    """Begin to write a snapshot into a file on this machine, all of it or what changed.  Raises Problem."""
    path = Path(request.path)
    if request.format not in FORMATS:
        raise problems.bad_request("format", f"{request.format!r} is none of {', '.join(FORMATS)}")
    if request.since is None and request.format == "raw":
        return _export_raw(service, volume_name, name, request)
    owner, snapshot = _exportable(service, volume_name, name, request)
    what = f"{volume_name}@{name}"
    size = snapshot.view.size
    backing = None
    if request.since is not None:
        older = service.inventory.find(volume_name, request.since)[1]
        with problems.translated(f"{what} was not exported"):
            differences.changed(owner, request.since, name)  # refuses now what it would later
        backing = _backing(path, request, older.view.size, f"{volume_name}@{request.since}")
    cluster = qcow2.cluster_size(size, owner.chunk_size)

    def work(job: jobs.Job) -> None:
        job.progress(0, size)
        with problems.translated(f"{what} was not exported"):
            if request.since is None:
                ranges: Iterable[differences.Range] = _data(snapshot.view)
                needed = image_file.data_bytes(snapshot.view)
            else:
                ranges = changed = differences.changed(owner, request.since, name)
                needed = sum(length for _, length in changed)
            if not request.anyway:
                image_file.check_room(path, needed)
            image_file.export(
                pieces(snapshot.view, ranges, cluster),
                size,
                path,
                overwrite=request.overwrite,
                progress=job.progress,
                cancelled=job.cancelled,
                image=lambda fd, length: qcow2.Writer(fd, length, cluster, backing),
            )
        job.progress(size, size)
        log.info("exported %s to %s%s", what, path, f" on top of {backing.name}" if backing else "")

    return service.jobs.start("export", what, work)


def _exportable(
    service: Service, volume_name: str, name: str, request: messages.Export
) -> tuple[volume.Volume, Snapshot]:
    """Return the volume and the snapshot if the snapshot can be written to the requested path.  Raise Problem."""
    owner, snapshot = service.inventory.find(volume_name, name)
    if snapshot.unreadable:
        what = f"{volume_name}@{name} cannot be exported"
        raise problems.refused(what, snapshot.unreadable, "use another snapshot")
    volumes = service.inventory.open_volumes.values()
    image_file.check_place(Path(request.path), volumes, overwrite=request.overwrite)
    return owner, snapshot


def _export_raw(service: Service, volume_name: str, name: str, request: messages.Export) -> jobs.Job:
    """Start a job that writes all of a snapshot into a raw image.  Raise Problem."""
    path = Path(request.path)
    _, snapshot = _exportable(service, volume_name, name, request)

    def work(job: jobs.Job) -> None:
        job.progress(0, snapshot.view.size)
        with problems.translated(f"{volume_name}@{name} was not exported"):
            if not request.anyway:
                image_file.check_room(path, image_file.data_bytes(snapshot.view))
            image_file.export(
                whole.export(snapshot.view),
                snapshot.view.size,
                path,
                overwrite=request.overwrite,
                progress=job.progress,
                cancelled=job.cancelled,
            )
        log.info("exported %s@%s to %s", volume_name, name, path)

    return service.jobs.start("export", f"{volume_name}@{name}", work)


def _backing(path: Path, request: messages.Export, size: int, since: str) -> qcow2.Backing:
    """The image below, checked as far as it is there.  Raises Problem."""
    if request.backing is None:
        raise problems.bad_request("backing", f"with `since`, name the image of {since}")
    below = Path(request.backing)
    if not below.is_absolute():
        raise problems.file_failed(below, "the path is not absolute")
    if request.backing_format not in (None, *FORMATS):
        raise problems.bad_request("backing_format", f"{request.backing_format!r} is none of {', '.join(FORMATS)}")
    try:
        found, kind = qcow2.virtual_size(below)
    except FileNotFoundError:
        if request.backing_format is None:
            raise problems.refused(
                f"{path} was not written",
                f"{below}, the image of {since} that it would stand on, is not there",
                "name that image with --backing, and its format with --backing-format if it is on another machine",
            ) from None
        found, kind = size, request.backing_format
    except OSError as error:
        raise problems.refused(
            f"{path} was not written", f"{below} cannot be read: {os_error.reason(error)}", "check the file"
        ) from error
    kind = request.backing_format or kind
    if found != size:
        raise problems.refused(
            f"{path} was not written",
            f"{below} is no image of {since}: it shows {found} bytes, not {size}",
            "name the image that was exported from that snapshot",
        )
    if any(image_file.place(path) in (image_file.place(each), each.resolve()) for each in qcow2.chain(below)):
        raise problems.refused(
            f"{path} was not written",
            f"{below}, the image of {since}, is that file or stands on it",
            "choose another name",
        )
    name = os.path.relpath(below, path.parent)
    if ":" in name.split("/")[0]:
        name = f"./{name}"  # QEMU takes what stands before a colon for a protocol
    return qcow2.Backing(name, kind)


def _data(view: block_device.BlockDevice) -> Iterator[differences.Range]:
    for extent in view.extents(0, view.size):
        if extent.kind is not block_device.ExtentKind.HOLE:
            yield extent.offset, extent.length


def pieces(view: block_device.BlockDevice, ranges: Iterable[differences.Range], grain: int) -> Iterator[ExportPiece]:
    """The content of `ranges`, widened to whole `grain`s but at the end of the view, none twice.  The data is valid until the
    next piece is asked for.
    """
    whole = memoryview(bytearray(_STEP))
    done = 0
    for begin, length in ranges:
        offset = max(done, begin // grain * grain)
        end = min(view.size, -(-(begin + length) // grain) * grain)
        while offset < end:
            piece = whole[: min(_STEP, end - offset)]
            view.readv(offset, [piece])
            yield ExportPiece(offset, len(piece), piece)
            offset += len(piece)
        done = max(done, end)
