# SPDX-License-Identifier: Apache-2.0
"""The configuration's groups `volumes`, `write_once` and `shared`: what is served."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import pydantic

from lun_backends.durability import Durability
from lun_backends.volumes import policy
from target import units
from target.configuration import values
from target.configuration.schedule import Every
from target.configuration.values import Problems, Where


class Keep(values.Group):
    """Which snapshots of a schedule are kept: of the newest so many hours, days, weeks and months that have one, the last."""

    hourly: values.Kept = 0
    """How many of the hours."""

    daily: values.Kept = 0
    """How many of the days."""

    weekly: values.Kept = 0
    """How many of the weeks, which begin on Monday."""

    monthly: values.Kept = 0
    """How many of the months."""

    @property
    def counts(self) -> Mapping[Every, int]:
        """The same by kind of period."""
        return {every: getattr(self, every.value) for every in Every}


class Volume(values.Group):
    """A primary and its snapshots."""

    name: values.Name
    """What commands call it. Never change it: snapshots are kept under this name."""

    lun: values.LunOrNone
    """The LUN under which initiators see the volume; `none`: they do not. Snapshots take the lowest numbers that are free."""

    size: values.Size | None = None
    """Bytes, like 1GiB. Required to make a new volume; one that exists keeps its size."""

    primary: Path | None = None
    """The file or block device that holds the live data, relative to the state directory. Left out: a sparse file
    in the state directory, made if it is not there."""

    block_size: values.BlockSize = 512
    """Bytes per logical block: 512 or 4096."""

    physical_block_size: values.PhysicalBlockSize | None = None
    """Bytes of what lies below that are written as a whole, as initiators are told, who then align to it: a power of two
    from 4KiB to 1MiB, like the record size of the file system that holds the primary. Left out: what the disk says."""

    chunk_size: values.ChunkSize = 64 << 10
    """The unit of copy-on-write: a power of two from 4KiB to 1MiB. A volume keeps the one it was made with."""

    durability: Durability = Durability.POWER_LOSS
    """`power-loss`: a pre-image is on stable storage before its block is overwritten. `process-crash`: it is in the
    operating system's cache; faster, and snapshots may be wrong after a power cut."""

    snapshots: tuple[values.Name, ...] = ()
    """Snapshots to take at start, if the volume does not have them yet."""

    limit: values.Size | None = None
    """How many bytes of old data the volume's snapshots may keep, all together. Left out: as many as there is room for."""

    warn_at: values.Percent = 80
    """Of `limit`, in percent: when it is passed, `wolun status` and the initiators are told."""

    on_error: policy.OnError = policy.DEFAULT.on_error
    """When old data cannot be kept (no room, a failing disk, `copy_timeout`): `fail-writes` refuses the writes that would
    overwrite it; `drop-snapshot` lets them go on and gives snapshots up: the oldest, if that makes room, else all."""

    copy_timeout: values.Seconds | None = None
    """Seconds after which a copy of old data counts as failed. Left out: it may take as long as it takes."""

    max_snapshots: Annotated[int, pydantic.Field(ge=1)] | None = None
    """How many snapshots there may be. Left out: any number."""

    schedule: Every | None = None
    """How often a snapshot is taken by itself, at the beginning of each hour, day, week or month (UTC). One that was missed
    is caught up once. They are called like auto-2026-11-22T2300Z. Left out: none are taken."""

    keep: Keep | None = None
    """Which of the snapshots that the schedule takes are kept; the others are deleted. Snapshots that were taken by hand
    are never deleted."""

    def problems(self) -> Problems:
        """Return what is wrong with values beside their neighbours."""
        problems: dict[Where, str] = {}
        if self.size is not None and (self.size == 0 or self.size % self.block_size):
            size = units.exact_size(self.size)
            problems["size",] = f"{size} is no whole number of blocks of {self.block_size} bytes"
        problems.update(self._schedule_problems())
        for position, name in enumerate(self.snapshots):
            if name in self.snapshots[:position]:
                problems["snapshots", position] = f"{name} is listed already"
        return problems

    def _schedule_problems(self) -> Problems:
        """What is wrong with the schedule and its neighbours."""
        if self.schedule is None:
            return {} if self.keep is None else {("keep",): "there is no schedule whose snapshots would be kept"}
        counts = {} if self.keep is None else self.keep.counts
        total = sum(counts.values())
        if not total:
            return {("schedule",): "say which of its snapshots to keep, like keep: {hourly: 24, daily: 7}"}
        kinds = list(Every)
        found: dict[Where, str] = {
            ("keep", every.value): f"does nothing: the schedule is {self.schedule.value}"
            for every in kinds[: kinds.index(self.schedule)]
            if counts[every]
        }
        if self.max_snapshots is not None and self.max_snapshots <= total:
            found["max_snapshots",] = (
                f"the schedule keeps {total}, and takes one before it deletes one: at least {total + 1}"
            )
        return found


class WriteOnceLun(values.Group):
    """A write-once LUN on its own, for nodes that preserve into it from elsewhere (see `shared`)."""

    volume: values.Name
    """The volume whose old data it holds."""

    snapshot: values.Name
    """The snapshot it is; the LUN is known as VOLUME@SNAPSHOT."""

    lun: values.Lun
    """The LUN under which initiators see it."""

    size: values.Size
    """Bytes: as large as the volume. Empty, it takes next to nothing on disk."""

    block_size: values.BlockSize = 512
    """Bytes per logical block, as the volume's: 512 or 4096."""

    chunk_size: values.ChunkSize = 64 << 10
    """The unit of allocation: a power of two from 4KiB to 1MiB."""

    durability: Durability = Durability.POWER_LOSS
    """When a block counts as written: `power-loss` or `process-crash`, as with volumes."""

    def problems(self) -> Problems:
        """Return what is wrong with values beside their neighbours."""
        if self.size == 0 or self.size % self.block_size:
            return {("size",): f"no whole number of blocks of {self.block_size} bytes"}
        return {}


class SharedVolume(values.Group):
    """A volume on storage that several nodes share: primary and write-once LUN are block devices of another host."""

    name: values.Name
    """What the volume is called."""

    snapshot: values.Name
    """What its snapshot is called."""

    primary: Path
    """The block device of the primary, like /dev/disk/by-id/wwn-0x...; always read and written past the page cache."""

    write_once: Path
    """The block device of the snapshot's write-once LUN."""

    lun: values.Lun | None = None
    """The LUN of the volume, through copy-on-write. Left out: this node does not write to it."""

    view_lun: values.Lun | None = None
    """The LUN of the snapshot's read-only view. Left out: this node does not show it."""

    block_size: values.BlockSize = 512
    """Bytes per logical block, as the two devices have it: 512 or 4096."""

    chunk_size: values.ChunkSize = 64 << 10
    """The unit of copy-on-write: a power of two from 4KiB to 1MiB."""

    def problems(self) -> Problems:
        """Return what is wrong with values beside their neighbours."""
        if self.lun is None and self.view_lun is None:
            return {(): "nothing of it would be served: give lun, view_lun, or both"}
        return {}
