# SPDX-License-Identifier: Apache-2.0
"""The check of a snapshot: it reads all pre-images that the snapshot's view may need, and compares their checksums.

These are the snapshot's own pre-images, and pre-images of newer snapshots.  The view needs a newer snapshot only for
the chunks that no older one has as a whole (rule 8, lun_backends/README.md).  The chain may change meanwhile: when a
newer snapshot is deleted, its chunks move down, perhaps into a snapshot that was checked already.  Then the check
begins again, and skips the chunks that it has checked.
"""

from __future__ import annotations

import collections
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyroaring

from lun_backends import block_device
from lun_backends.stores import contract
from lun_backends.volumes import interface


@dataclass(frozen=True, slots=True)
class Checked:
    """The result for one chunk, and the name of the snapshot that keeps its pre-image."""

    kept_in: str
    report: contract.ChunkReport


def verify(owner: interface.Volume, name: str) -> Iterator[Checked]:
    """Check all pre-images that the snapshot needs, one by one.

    Raises NoSuchSnapshot, SnapshotInvalid, DeviceClosed.
    """
    own = owner.snapshot(name)
    whole = pyroaring.BitMap()  # chunks found whole, so that the view never asks a newer snapshot for them
    partly: dict[uuid.UUID, pyroaring.BitMap] = collections.defaultdict(pyroaring.BitMap)
    done = False
    while not done:
        done = True
        for needed in _from(owner, own):
            try:
                chunk = covered = 0
                for report in needed.verify(whole | partly[needed.uuid]):
                    if chunk != report.offset // owner.chunk_size:
                        chunk, covered = report.offset // owner.chunk_size, 0
                    if report.verdict is not contract.Verdict.UNVERIFIABLE:
                        covered += report.length
                    if covered >= min(owner.chunk_size, needed.view.size - chunk * owner.chunk_size):
                        whole.add(chunk)
                    else:
                        partly[needed.uuid].add(chunk)
                    yield Checked(needed.name, report)
            except block_device.DeviceClosed:
                if needed is own or needed in owner.snapshots:
                    raise
                done = False
                break


def preserved_bytes(owner: interface.Volume, name: str) -> int:
    """Return about how many bytes `verify` will read.  Raises NoSuchSnapshot."""
    return sum(needed.preserved_bytes for needed in _from(owner, owner.snapshot(name)))


def damaged_headers(owner: interface.Volume, name: str) -> list[str]:
    """Return the faults of the headers of the snapshot's files, a phrase each.

    Such faults do no harm yet: the headers have copies, or are read at open only.  Raises NoSuchSnapshot,
    SnapshotInvalid, DeviceClosed.
    """
    return owner.snapshot(name).check_headers()


def _from(owner: interface.Volume, own: interface.Snapshot) -> Sequence[interface.Snapshot]:
    """Return the snapshot and all newer ones.  Raises DeviceClosed."""
    snapshots = owner.snapshots
    if own not in snapshots:
        raise block_device.DeviceClosed
    return snapshots[snapshots.index(own) :]
