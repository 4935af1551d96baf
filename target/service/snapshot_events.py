# SPDX-License-Identifier: Apache-2.0
"""A listener that reports the events of a volume's snapshots to initiators and to the log.

When their space comes near its limit, every initiator of the volume receives unit attention 38h/07h (SBC-4 4.7.3.8.4).  The
present state is in `alerts` at any time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from lun_backends.volumes import policy
from target import units
from target.scsi.logical_unit import LogicalUnit
from target.scsi.sense import Asc

log = logging.getLogger(__name__)

_QUIET = 60.0
"""Seconds between two lines in the log about refused writes, because there may be thousands of them."""


class Watch:
    """The listener of volume `name`; `unit` returns the unit by which initiators reach it, if there is one."""

    def __init__(self, name: str, unit: Callable[[], LogicalUnit | None]) -> None:
        self._name = name
        self._unit = unit
        self._refusal_logged = float("-inf")

    def __call__(self, event: policy.Event) -> None:
        match event:
            case policy.SpaceLow(used, limit):
                log.warning(
                    "the snapshots of %s take %s of %s allowed",
                    self._name,
                    units.human_size(used),
                    units.human_size(limit),
                )
                unit = self._unit()
                if unit is not None:
                    asc = Asc.THIN_PROVISIONING_SOFT_THRESHOLD_REACHED
                    unit.attention(asc >> 8, asc & 0xFF)
            case policy.SnapshotInvalidated(name, reason):
                log.error("%s@%s is invalid: %s", self._name, name, reason)
            case policy.PrimaryDiffers(names, reason):
                if names:
                    log.error(
                        "the snapshots %s of %s are doubtful: its primary %s", ", ".join(names), self._name, reason
                    )
                else:
                    log.warning("the primary of %s %s", self._name, reason)
            case policy.StateUnknown(reason):
                log.error("writes to %s are refused until its state can be recorded: %s", self._name, reason)
            case policy.WriteRefused(error):
                now = time.monotonic()
                if now - self._refusal_logged > _QUIET:
                    self._refusal_logged = now
                    log.error(
                        "a write to %s was refused because its old data could not be preserved: %s", self._name, error
                    )
