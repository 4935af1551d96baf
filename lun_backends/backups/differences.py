# SPDX-License-Identifier: Apache-2.0
"""The changes between two moments of a volume, which an incremental backup reads.

A grain that changed after a moment was preserved in the snapshot that was newest at its first change (rules 1 and 8,
lun_backends/README.md).  So all changes from snapshot *a* to snapshot *b* are in the write-once devices from *a* up to
*b*, without *b* itself.  The cost of `changed` grows with the preserved grains, not with the size of the volume.
`changed` may name a grain with equal content, if a write stored the same content or a later write restored it.  It
never leaves out a changed grain.  `differing` compares the content, and counts damaged blocks as different, because
their comparison proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from lun_backends import block_device, tracking
from lun_backends.damage import Damage, OnDamage
from lun_backends.tracking import GRAIN
from lun_backends.volumes import errors, interface

_STEP = 1 << 20  # bytes compared at a time
_COARSE = 1 << 16

Range = tuple[int, int]
"""(offset, length) in bytes."""


class WrongOrder(errors.VolumeError):
    """The second snapshot is not younger than the first."""


def changed(owner: interface.Volume, since: str, to: str | None) -> list[Range]:
    """Return the ranges that may have changed from snapshot `since` to snapshot `to`, or to now (None).

    They are in order and merged, and consist of whole grains, except at the end of the volume.  The part by which the
    volume has grown counts as changed.  Raises NoSuchSnapshot, WrongOrder, VolumeError, SnapshotInvalid, MediumError,
    DeviceClosed.
    """
    first, last = owner.snapshot(since), None if to is None else owner.snapshot(to)
    while True:
        links = _between(owner, first, last)
        size = owner.device.size if last is None else last.view.size
        grains = tracking.BitMap()
        try:
            for snapshot_between in links:
                tracking.add_to(grains, tracking.touched(snapshot_between.write_once))
        except block_device.DeviceClosed:
            # A snapshot between them was deleted meanwhile; its grains are now in the next older one.
            if all(snapshot_between in owner.snapshots for snapshot_between in links):
                raise
            continue
        if last is None and owner.rolling_back_to is not None:
            # The rollback has yet to write some changes to the primary, so copy-on-write has not preserved them yet.
            reason = f"the volume is being rolled back to {owner.rolling_back_to.name!r}"
            raise errors.VolumeError(owner.name, reason, "wait until that is done")
        if last is None:
            grains |= owner.unsettled  # grains that a rollback has yet to preserve and to change
        known = first.view.size
        if size > known:
            grains.add_range(known >> tracking.SHIFT, tracking.count(size))
        return list(tracking.bytes_of(grains, size))


def _between(
    owner: interface.Volume, first: interface.Snapshot, last: interface.Snapshot | None
) -> Sequence[interface.Snapshot]:
    """Return the snapshots from `first` up to `last`, without `last` itself; all from `first` on if `last` is None."""
    snapshots = owner.snapshots
    for bound in (first, last):
        if bound is not None and (bound not in snapshots or bound.deleting):
            raise errors.NoSuchSnapshot(owner.name, f"{bound.name!r} is being deleted", "name another one")
        if bound is not None and bound.invalid_reason:
            raise block_device.SnapshotInvalid(bound.invalid_reason)
    start = snapshots.index(first)
    end = len(snapshots) if last is None else snapshots.index(last)
    if last is not None and end < start:
        raise WrongOrder(
            owner.name, f"{last.name!r} is older than {first.name!r}", "name the older one first, then the younger"
        )
    return snapshots[start:end]


def differing(
    old: block_device.BlockDevice,
    new: block_device.BlockDevice,
    ranges: Iterable[Range],
    on_damage: OnDamage | None = None,
) -> Iterator[tuple[int, list[Range]]]:
    """Compare `ranges`, in order, on the two devices.

    Yield for each step the number of compared bytes and the ranges that differ, merged within the step.  All bytes
    beyond the end of `old` differ.  Damaged blocks differ, too, and `on_damage` is called for them; without it, damage
    is an error.  Raise the errors of `read_checked`.
    """
    damaged: list[Range] = []

    def note(damage: Damage) -> None:
        damaged.append((damage.offset, damage.length))
        if on_damage is not None:
            on_damage(damage)

    ours, theirs = memoryview(bytearray(_STEP)), memoryview(bytearray(_STEP))
    for begin, whole in ranges:
        for offset in range(begin, begin + whole, _STEP):
            length = min(_STEP, begin + whole - offset)
            known = max(0, min(length, old.size - offset))
            different: list[Range] = []
            if known:
                old.read_checked(offset, [ours[:known]], None if on_damage is None else note)
                new.read_checked(offset, [theirs[:known]], None if on_damage is None else note)
                different = _compare(ours[:known], theirs[:known], offset)
                if damaged:
                    different = sorted(different + damaged)
                    damaged.clear()
            if known < length:
                different.append((offset + known, length - known))
            yield length, merged(different)


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Return `ranges`, sorted by their start, with adjacent and overlapping ranges joined."""
    joined: list[Range] = []
    for offset, length in ranges:
        if joined and sum(joined[-1]) >= offset:
            begin, end = joined[-1][0], max(sum(joined[-1]), offset + length)
            joined[-1] = (begin, end - begin)
        else:
            joined.append((offset, length))
    return joined


def _compare(ours: memoryview, theirs: memoryview, offset: int) -> list[Range]:
    if bytes(ours) == bytes(theirs):
        return []
    different = []
    for coarse in range(0, len(ours), _COARSE):
        left, right = bytes(ours[coarse : coarse + _COARSE]), bytes(theirs[coarse : coarse + _COARSE])
        if left != right:
            for start in range(0, len(left), GRAIN):
                piece = left[start : start + GRAIN]
                if piece != right[start : start + GRAIN]:
                    different.append((offset + coarse + start, len(piece)))
    return different
