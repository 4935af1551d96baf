# SPDX-License-Identifier: Apache-2.0
"""Whether a snapshot still is what was preserved: reads all pre-images that its view may need, and their checksums.

Those are the snapshot's own, and of every newer snapshot those of chunks that no older one has whole (rule 8, lun_backends/README.md).  The chain
may change meanwhile: when a newer snapshot is deleted its chunks move down, into one that was looked at perhaps, so the
look begins anew and passes over what was checked.
"""

from __future__ import annotations

import collections
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pyroaring

from lun_backends import block_device, lost_device
from lun_backends.stores import contents
from lun_backends.volumes import snapshot, volume


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found of one chunk, and in which snapshot its pre-image is kept."""

    kept_in: str
    report: contents.ChunkReport


def verify(owner: volume.Volume, name: str) -> Iterator[Checked]:
    """Check all pre-images that the snapshot needs, one by one.  Raises NoSuchSnapshot, SnapshotInvalid, DeviceClosed."""
    own = owner.snapshot(name)
    whole = pyroaring.BitMap()  # chunks that no newer snapshot is asked for
    partly: dict[uuid.UUID, pyroaring.BitMap] = collections.defaultdict(pyroaring.BitMap)
    done = False
    while not done:
        done = True
        for each in _from(owner, own):
            if isinstance(each.write_once, lost_device.LostDevice):
                raise block_device.SnapshotInvalid(each.write_once.reason)
            try:
                for report in each.write_once.verify(whole | partly[each.uuid]):
                    chunk = report.offset // owner.chunk_size
                    if report.verdict is contents.Verdict.UNVERIFIABLE:
                        partly[each.uuid].add(chunk)
                    else:
                        whole.add(chunk)
                    yield Checked(each.name, report)
            except block_device.DeviceClosed:
                if each is own or each in owner.snapshots:
                    raise
                done = False
                break


def preserved_bytes(owner: volume.Volume, name: str) -> int:
    """About how much `verify` will read.  Raises NoSuchSnapshot."""
    return sum(each.preserved_bytes for each in _from(owner, owner.snapshot(name)))


def damaged_headers(owner: volume.Volume, name: str) -> list[str]:
    """What is wrong with the headers of the snapshot's files, a phrase each; they have copies, or are read at open.
    Raises NoSuchSnapshot, SnapshotInvalid, DeviceClosed.
    """
    own = owner.snapshot(name)
    if isinstance(own.write_once, lost_device.LostDevice):
        raise block_device.SnapshotInvalid(own.write_once.reason)
    return own.write_once.check_headers()


def _from(owner: volume.Volume, own: snapshot.Snapshot) -> tuple[snapshot.Snapshot, ...]:
    """The snapshot and all newer ones."""
    snapshots = owner.snapshots
    if own not in snapshots:
        raise block_device.DeviceClosed
    return snapshots[snapshots.index(own) :]
