# SPDX-License-Identifier: Apache-2.0
"""Work on a volume that a job does in steps, so that a later job can finish what a crash or a stop interrupted."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

from lun_backends import block_device
from lun_backends.volumes import errors, interface
from target.service import damage_met, jobs, problems

log = logging.getLogger(__name__)


def finish_rollback(owner: interface.Volume, job: jobs.Job, stopping: Callable[[], bool]) -> None:
    """Bring the volume's primary to the moment of the snapshot that it was rolled back to, if there is one.

    Only the daemon's end interrupts this, not the job's cancellation.  Raise Problem, Cancelled.
    """
    snapshot = owner.rolling_back_to
    if snapshot is None:
        return
    with problems.translated(
        f"{owner.name} was rolled back to {snapshot.name}, but its primary does not hold all of that content yet",
        None,
    ):
        try:
            ended = owner.continue_rollback(progress=job.progress, cancelled=stopping)
        except errors.DamageFound as error:
            raise problems.rollback_stopped(owner.name, snapshot.name, error.reason) from error
        except errors.SnapshotDoubtful as error:
            what = f"the primary of {owner.name} does not hold all of the content of {snapshot.name} yet"
            raise problems.doubtful(what, owner.name, snapshot.name, snapshot.doubt) from error
        except (errors.VolumeError, block_device.BlockDeviceError, OSError):
            if (stopped := owner.rollback_stopped) is not None:
                raise dataclasses.replace(stopped) from None  # without a traceback, which would keep the job's objects
            raise
        if not ended:
            raise jobs.Cancelled
    log.info("the primary of %s has the content of %s", owner.name, snapshot.name)


def finish_deletions(owner: interface.Volume, job: jobs.Job) -> None:
    """Finish the deletions of snapshots that have begun.  Raise Problem, Cancelled."""
    with problems.translated(f"the deletion of snapshots of {owner.name} did not continue"):
        try:
            with damage_met.noted(job, owner) as found:
                owner.resume_deletions(progress=job.progress, cancelled=job.cancelled, on_damage=found)
        except errors.DeletionStopped:
            raise jobs.Cancelled from None
