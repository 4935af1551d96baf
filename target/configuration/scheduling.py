# SPDX-License-Identifier: Apache-2.0
"""Schedules in the configuration: which snapshots they keep, groups of volumes, and checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import pydantic

from target.configuration import values
from target.configuration.schedule import Every, Timing
from target.configuration.values import Problems, Where


class Keep(values.Group):
    """The snapshots of a schedule that are kept: the last one of each of the newest hours, days, weeks and months."""

    hourly: values.Kept = 0
    """For how many hours that have a snapshot."""

    daily: values.Kept = 0
    """For how many days that have a snapshot."""

    weekly: values.Kept = 0
    """For how many weeks that have a snapshot. Weeks begin on Monday."""

    monthly: values.Kept = 0
    """For how many months that have a snapshot."""

    @property
    def counts(self) -> Mapping[Every, int]:
        """The same numbers by kind of period."""
        return {every: getattr(self, every.value) for every in Every}


NAME_MAX = 36
"""The most characters of a group's name: a snapshot's name has 64, with `auto-`, the time and a number."""


class SnapshotGroup(values.Group):
    """Volumes of which a schedule takes snapshots at one moment, all or none."""

    name: values.Name
    """The name of the group. Its snapshots have the label `group` with this name, and names like auto-NAME-2026-11-22T2300Z."""

    volumes: Annotated[tuple[values.Name, ...], pydantic.Field(min_length=1)]
    """The volumes, of those in `volumes`."""

    schedule: Timing
    """When the snapshots are taken, as for a volume."""

    keep: Keep
    """Which of the group's snapshots are kept, as for a volume. The daemon deletes the others."""

    def problems(self) -> Problems:
        """Return the problems of values beside their neighbours."""
        problems = dict(schedule_problems(self.schedule, self.keep, None, 0))
        if len(self.name) > NAME_MAX:
            problems["name",] = f"it is too long for names of snapshots: at most {NAME_MAX} characters"
        for index, name in enumerate(self.volumes):
            if name in self.volumes[:index]:
                problems["volumes", index] = f"{name} is listed already"
        return problems


class Verify(values.Group):
    """A check that the daemon makes by itself: it compares the old data of all snapshots of the volume with its checksums."""

    schedule: Timing
    """When a check begins, as for snapshots. A check that was due while the daemon did not run is caught up once."""

    speed: Annotated[values.Size, pydantic.Field(ge=1)] | None = None
    """The bytes per second that it reads at most, like 50MiB. Left out: as fast as the disk."""


def schedule_problems(timing: Timing | None, keep: Keep | None, most: int | None, listed: int) -> Problems:
    """Return the problems of a schedule beside `keep`, `max_snapshots` and the number of `snapshots` in the configuration."""
    if timing is None:
        return {} if keep is None else {("keep",): "it does nothing without a schedule"}
    wrong = values.below(("schedule",), timing.problems())
    if wrong:
        return wrong
    counts = {} if keep is None else keep.counts
    total = sum(counts.values())
    if not total:
        return {("schedule",): "write which of its snapshots to keep, like keep: {hourly: 24, daily: 7}"}
    kinds = list(Every)
    problems: dict[Where, str] = {
        ("keep", kind.value): f"it does nothing: the schedule is {timing.kind.value}"
        for kind in (kinds[: kinds.index(timing.kind)] if timing.kind else ())
        if timing.kind and counts[kind]
    }
    if most is not None and most <= total + listed:
        also = f", {listed} are listed" if listed else ""
        problems["max_snapshots",] = (
            f"the schedule keeps {total}{also}, and takes one before it deletes one: write at least {total + listed + 1}"
        )
    return problems
