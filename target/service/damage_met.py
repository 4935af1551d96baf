# SPDX-License-Identifier: Apache-2.0
"""The damaged blocks that a job met in a snapshot: they are noted at the job, logged, and refused unless they are accepted."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from lun_backends import damage
from lun_backends.volumes import errors, interface
from target import messages
from target.service import jobs

log = logging.getLogger(__name__)

NAMED = 100
"""The extents that a job names; it is asked for them several times a second."""


@contextlib.contextmanager
def noted(job: jobs.Job, owner: interface.Volume) -> Iterator[damage.Found]:
    """Yield the receiver for the damage that a part of the job meets.  At the end, note it at the job and log it."""
    found = damage.Found()
    try:
        yield found
    finally:
        if found:
            _note(job, owner, found)


def _note(job: jobs.Job, owner: interface.Volume, found: damage.Found) -> None:
    block = owner.device.block_size
    names = {snapshot.uuid: snapshot.name for snapshot in owner.snapshots}
    job.damaged_bytes += found.bytes
    job.damage += tuple(
        messages.Damage(
            names.get(extent.kept_in, str(extent.kept_in)),
            extent.offset // block,
            extent.length // block,
            extent.offset,
            extent.length,
            extent.reason,
        )
        for extent in found.extents[: NAMED - len(job.damage)]
    )
    log.error("%s of %s met damage in %s", job.kind, job.subject, found.blocks(block))


def refuse(owner: interface.Volume, name: str, found: damage.Found, remedy: str) -> None:
    """Raise DamageFound if there is damage in the snapshot of that name."""
    if found:
        raise errors.damage_in(owner.name, name, found, owner.device.block_size, remedy)
