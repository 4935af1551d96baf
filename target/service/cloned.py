# SPDX-License-Identifier: Apache-2.0
"""The clones of a volume, of either kind, and of one snapshot."""

from __future__ import annotations

import uuid

from lun_backends.volumes import volume as own
from lun_backends.volumes.clone import Clone
from lun_backends.volumes.interface import Snapshot, Volume


def of(owner: Volume) -> tuple[Clone, ...]:
    """Return the clones of a volume; a shared volume has none."""
    return owner.clones if isinstance(owner, own.Volume) else ()


def names(owner: Volume, snapshot: Snapshot) -> tuple[str, ...]:
    """Return the names of a snapshot's clones."""
    return tuple(clone.name for clone in of(owner) if clone.snapshot is snapshot)


def identities(owner: Volume) -> set[uuid.UUID]:
    """Return the identities of a volume's snapshots and clones: all that have LUN numbers."""
    return {snapshot.uuid for snapshot in owner.snapshots} | {clone.uuid for clone in of(owner)}
