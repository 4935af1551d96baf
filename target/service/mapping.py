# SPDX-License-Identifier: Apache-2.0
"""The snapshots whose LUNs initiators see.

Without an order of the administrator (`snapshot map`, `unmap`), the volume's `map_views` and `map_write_once` decide.  An entry of
`access` that names a view maps it, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from lun_backends.volumes.interface import Snapshot
from target.configuration import settings
from target.service.lun_numbers import Numbers


def is_named(access: settings.Access, unit: str) -> bool:
    """Return whether an entry of `access` gives this unit a LUN."""
    return any(mapped.unit == unit for initiator in access.initiators or () for mapped in initiator.luns or ())


def shows_view(views: settings.MapViews, snapshots: Sequence[Snapshot], snapshot: Snapshot, numbers: Numbers) -> bool:
    """Return whether initiators see the view of one of a volume's snapshots, which are in order of age."""
    if numbers.map_view is not None:
        return numbers.map_view
    match views:
        case settings.MapViews.ALL:
            return True
        case settings.MapViews.BY_HAND:
            return not snapshot.scheduled
        case settings.MapViews.NEWEST:
            return snapshot is next((other for other in reversed(snapshots) if not other.deleting), None)
        case settings.MapViews.NONE:
            return False


def shows_write_once(mapped: settings.MapWriteOnce, numbers: Numbers) -> settings.MapWriteOnce:
    """Return what initiators may do with the write-once LUN of a snapshot."""
    if numbers.map_write_once is None:
        return mapped
    if not numbers.map_write_once:
        return settings.MapWriteOnce.NONE
    return settings.MapWriteOnce.READ_ONLY if mapped is settings.MapWriteOnce.NONE else mapped
