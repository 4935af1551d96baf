# SPDX-License-Identifier: Apache-2.0
"""Compares a volume, as it is after a cut, with the promises."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

from lun_backends import block_device, write_once
from lun_backends.refused import Refused
from lun_backends.stores import chunk_map, contract, log_map, maps, thin
from lun_backends.volumes import manifest, volume
from lun_backends.volumes.snapshot import Snapshot
from tests.powercut import promises, workload
from tests.powercut.promises import SECTOR, Phase, Violation


def check(opened: volume.Volume, promised: promises.Promises, *, may_be_lost: bool = False) -> promises.Promises:
    """Compare everything.  Return the promises from here on, because one of the possible states is now the actual one.

    With `may_be_lost`, snapshots may be invalid if they are marked so.  Raise Violation.
    """
    primary = _primary(opened, promised)
    found = {snapshot.name: snapshot for snapshot in opened.snapshots}
    if unknown := set(found) - set(promised.moments):
        raise Violation(f"snapshots {sorted(unknown)} are there, although they were never requested, or were deleted")
    if list(found) != [name for name in promised.moments if name in found]:
        raise Violation(
            f"snapshots are in the order {list(found)}, but were taken in the order {list(promised.moments)}"
        )
    actual = promises.Promises(primary, promised.chunk_sectors)
    if len(primary) < promised.smallest:
        raise Violation(f"the volume has {len(primary)} sectors, promised were {promised.smallest}")
    for name, moment in promised.moments.items():
        if name not in found:
            if moment.phase is Phase.THERE:
                raise Violation(f"snapshot {name} is lost")
            continue
        snapshot = found[name]
        match snapshot.state:
            case manifest.SnapshotState.INVALID if may_be_lost:
                _refuses(snapshot)
            case manifest.SnapshotState.INVALID:
                raise Violation(f"snapshot {name} is invalid: {snapshot.invalid_reason}")
            case manifest.SnapshotState.DOUBTFUL:
                raise Violation(f"snapshot {name} is doubtful: {snapshot.doubt}")
            case manifest.SnapshotState.DELETING:
                if moment.phase is not Phase.DELETING:
                    raise Violation(f"snapshot {name} is being deleted, although no deletion was requested")
                actual.moments[name] = promises.Moment(
                    moment.versions, {}, Phase.DELETING, must=moment.must, may=moment.may
                )
                actual.expect_deletion()
            case manifest.SnapshotState.ACTIVE:
                seen = _view(snapshot, moment)
                _write_once(snapshot, moment)
                actual.moments[name] = promises.Moment(seen, {}, Phase.THERE, must=moment.must, may=moment.may)
    if not may_be_lost:
        _files(opened)
    return actual


def check_state(root: Path, promised: promises.Promises, rng: random.Random, steps: int) -> None:
    """Open the volume under `root` as a cut left it, check it, and finish interrupted operations.

    Then work on for a while with checks, open the volume once more and check again.  Raise Violation.
    """
    opened = open_volume(root)
    try:
        now = check(opened, promised)
        if steps:
            go_on(opened, now, rng, steps)
            now = check(opened, now)
    finally:
        opened.close()
    if steps:
        opened = open_volume(root)
        try:
            check(opened, now)
        finally:
            opened.close()


def check_lost(root: Path, promised: promises.Promises) -> None:
    """Open the volume under `root` after a power cut that left its snapshots only in memory.

    Each snapshot must be exact or invalid, now and for ever.  Raise Violation.
    """
    invalid: set[str] = set()
    for _ in range(2):
        opened = open_volume(root)
        try:
            check(opened, promised, may_be_lost=True)
            now = {snapshot.name for snapshot in opened.snapshots if snapshot.invalid_reason}
            if invalid - now:
                raise Violation(f"snapshots {sorted(invalid - now)} were invalid, and are good again")
            invalid = now
        finally:
            opened.close()


def go_on(opened: volume.Volume, now: promises.Promises, rng: random.Random, steps: int) -> None:
    """Work on after a cut: finish deletions, write to a part of every chunk, then do anything."""
    worker = workload.Worker(opened, now.take, rng, first_version=1_000_000)
    after_cut(worker, rng, steps)


def after_cut(worker: workload.Worker, rng: random.Random, steps: int) -> None:
    """Do the work of `go_on`, for a worker with any receiver of its notes."""
    if any(snapshot.deleting for snapshot in worker.volume.snapshots):
        worker.resume()
    if worker.volume.rolling_back_to is not None and rng.random() < 0.5:
        worker.restore()
    per_chunk = worker.volume.chunk_size // worker.volume.device.block_size
    if worker.volume.snapshots:
        device = worker.volume.snapshots[0].write_once
        assert isinstance(device, write_once.WriteOnce)
        stale = stale_chunks(device.store._map) if isinstance(device.store, thin.ThinStore) else []
        for chunk in stale[:3] if worker.volume.rolling_back_to is None else ():
            worker.put_at(chunk * per_chunk + rng.randrange(per_chunk), 1)
    for _ in range(3):
        worker.put()
    chunks = range(worker.volume.device.size // worker.volume.chunk_size)
    worker.batch([chunk * per_chunk for chunk in rng.sample(chunks, min(6, len(chunks)))])
    worker.run(steps)


def stale_chunks(opened: chunk_map.ChunkMap) -> list[int]:
    """Return the chunks of a map that have bits and no slot: leftovers of an interrupted commit."""
    return [chunk for chunk in range(opened.chunks) if opened.bits(chunk) and not opened.slot(chunk)]


def has_stale_words(root: Path) -> bool:
    """Return whether any map under `root` has such chunks."""
    for path in (root / workload.DIRECTORY / "snapshots").glob("*.map"):
        try:
            opened = maps.open_existing(path)
        except block_device.BlockDeviceError:
            continue  # not complete; the volume decides whether it may be so
        with contextlib.closing(opened):
            if not isinstance(opened, log_map.LogMap) and stale_chunks(opened):
                return True
    return False


def open_volume(root: Path) -> volume.Volume:
    """Open the volume.  A volume that cannot be opened is a broken promise: raise Violation."""
    try:
        return workload.open_volume(root)
    except (block_device.BlockDeviceError, Refused) as error:
        raise Violation(f"the volume cannot be opened: {error}") from error


def _primary(opened: volume.Volume, promised: promises.Promises) -> list[int]:
    """Return the versions of the primary's sectors."""
    data = bytearray(opened.device.size)
    opened.device.readv(0, [memoryview(data)])
    if promised.restored is not None and data == b"".join(
        promises.sector(version, address) for address, version in enumerate(promised.restored)
    ):
        return list(promised.restored)
    if len(data) > len(promised.durable) * SECTOR:
        raise Violation(f"the volume has {len(data) // SECTOR} sectors, promised were {len(promised.durable)}")
    actual = []
    for address, durable in enumerate(promised.durable[: len(data) // SECTOR]):
        piece = data[address * SECTOR : (address + 1) * SECTOR]
        if piece == promises.sector(durable, address):
            actual.append(durable)
            continue
        version = promises.describe(bytes(piece), address)
        allowed = promised.allowed(address)
        if version not in allowed:
            raise Violation(f"sector {address} of the volume: {promises.complaint(version, allowed)}")
        assert isinstance(version, int)
        actual.append(version)
    return actual


def _view(snapshot: Snapshot, moment: promises.Moment) -> list[int]:
    """Return the versions of the snapshot's sectors."""
    if snapshot.view.size != len(moment.versions) * SECTOR:
        raise Violation(
            f"snapshot {snapshot.name} has {snapshot.view.size} bytes, but was taken of {len(moment.versions)} sectors"
        )
    data = bytearray(snapshot.view.size)
    try:
        snapshot.view.readv(0, [memoryview(data)])
    except block_device.BlockDeviceError as error:
        raise Violation(f"snapshot {snapshot.name} cannot be read: {error}") from error
    if data == moment.data():
        return list(moment.versions)
    seen = list(moment.versions)
    for address, expected in enumerate(moment.versions):
        piece = bytes(data[address * SECTOR : (address + 1) * SECTOR])
        if piece != promises.sector(expected, address):
            version = promises.describe(piece, address)
            others = moment.others.get(address, set())
            if version not in others:
                wrong = promises.complaint(version, [expected, *others])
                raise Violation(f"snapshot {snapshot.name}, sector {address}: {wrong}")
            assert isinstance(version, int)
            seen[address] = version
    return seen


def _refuses(snapshot: Snapshot) -> None:
    try:
        snapshot.view.readv(0, [memoryview(bytearray(snapshot.view.block_size))])
    except block_device.SnapshotInvalid:
        return
    raise Violation(f"snapshot {snapshot.name} is invalid, but can be read")


def _write_once(snapshot: Snapshot, moment: promises.Moment) -> None:
    """Check that acknowledged blocks are written, untouched blocks are blank, and every checksum fits."""
    device = snapshot.write_once
    assert isinstance(device, write_once.WriteOnce)
    written = 0
    for extent in device.extents(0, device.size):
        if extent.kind is block_device.ExtentKind.DATA:
            written |= ((1 << extent.length // SECTOR) - 1) << extent.offset // SECTOR
    if lost := moment.must & ((1 << len(moment.versions)) - 1) & ~written:
        raise Violation(f"write-once of {snapshot.name}: sector {_lowest(lost)} was acknowledged, but is blank")
    if foreign := written & ~moment.may:
        raise Violation(f"write-once of {snapshot.name}: sector {_lowest(foreign)} is written, but no write went there")
    for report in device.verify():
        if report.verdict is contract.Verdict.DAMAGED:
            raise Violation(f"write-once of {snapshot.name}: chunk at {report.offset} is damaged: {report.reason}")


def _files(opened: volume.Volume) -> None:
    """Check that no file is left over."""
    directory = opened.directory / "snapshots"
    logs = {snapshot.uuid for snapshot in opened.snapshots if (directory / f"{snapshot.uuid}.log").exists()}
    named = {f"{snapshot.uuid}.map" for snapshot in opened.snapshots}
    named |= {f"{snapshot.uuid}.{'log' if snapshot.uuid in logs else 'chunks'}" for snapshot in opened.snapshots}
    if opened.rolling_back_to is not None:
        named.add(f"{opened.rolling_back_to.uuid}.unsettled")
    marks = {
        f"{snapshot.uuid}.outside" for snapshot in opened.snapshots
    }  # only if the workload wrote to its write-once LUN
    if (there := {path.name for path in directory.iterdir()} - marks) != named:
        raise Violation(f"the files of snapshots are {sorted(there)}, but must be {sorted(named)}")


def _lowest(mask: int) -> int:
    return (mask & -mask).bit_length() - 1
