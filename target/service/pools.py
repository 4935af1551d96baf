# SPDX-License-Identifier: Apache-2.0
"""The pools of write-once LUNs that the configuration asks for, and the thread that tends them.

A write to a log wakes the thread, after the write has ended, so a taken LUN is replaced within milliseconds.  It also
looks once a minute, because what stood in the way, like a full disk, may be over.  The thread waits for disks, and for the
commands on a LUN that goes.  So it has no `liveness.Pulse`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

from lun_backends import block_device
from lun_backends.files import os_error
from lun_backends.refused import Refused
from lun_backends.shared import snapshot
from target import messages
from target.configuration import settings
from target.service import lun_numbers, moments, pool_file, problems, shared_volume
from target.service.inventory import Inventory
from target.service.pool import Member, Pool, State

log = logging.getLogger(__name__)

LOOK_SECONDS = 60.0


class Pools:
    """All pools.  A pool that cannot be opened is not served, and `failed` has the reason, by the volume's name."""

    def __init__(self, configured: settings.Settings, state_dir: Path, inventory: Inventory) -> None:
        """Open no pool yet."""
        self.failed: dict[str, str] = {}
        self.left = pool_file.names(state_dir) - {single.volume for single in configured.write_once if single.blanks}
        """The pools in the state directory that the configuration does not name."""
        self._inventory = inventory
        inventory.names_in_log = lambda volume: [found.name for found in self.snapshots(volume)]
        self._due = threading.Event()
        self._stopping = threading.Event()
        self._pools = tuple(
            Pool(single, state_dir, inventory, self._due.set)
            for single in configured.write_once
            if single.blanks is not None
        )
        self._thread = threading.Thread(target=self._run, name="pools", daemon=True)

    def open(self) -> None:
        """Open all pools, and bring them up to date.  The volumes must be open already."""
        for name in sorted(self.left):
            log.warning("the pool of %s is not served: the configuration does not name it", name)
        for pool in self._pools:
            owner = self._inventory.open_volumes.get(pool.name)
            try:
                pool.open(None if owner is None else owner.uuid)
                pool.tend()
            except (block_device.BlockDeviceError, Refused, problems.Problem, lun_numbers.Damaged, ValueError) as error:
                self._fail(pool, str(error))
            except OSError as error:
                self._fail(pool, os_error.reason(error))

    def start(self) -> None:
        """Start the thread."""
        if self._pools:
            self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._due.set()
        if self._thread.is_alive():
            self._thread.join()

    def close(self) -> None:
        """Close all devices.  Call this when the fabric has ended."""
        for pool in self._pools:
            pool.close()

    def tend(self) -> None:
        """Bring all pools up to date."""
        for pool in self._pools:
            pool.tend()

    def shown(self) -> Iterator[messages.Pool]:
        """Yield the state of each pool."""
        for pool in self._pools:
            members = pool.members()
            yield messages.Pool(
                volume=pool.name,
                identity=None if pool.volume is None else str(pool.volume),
                log_lun=pool.log_lun,
                records=pool.records,
                blank=sum(member.state is State.BLANK for member in members),
                blanks_wanted=pool.blanks,
                luns=tuple(
                    messages.PoolLun(
                        member.lun, str(member.identity), member.state.value, member.snapshot, member.used_bytes
                    )
                    for member in members
                ),
                trouble=self.failed.get(pool.name, pool.problem),
            )

    def snapshots(self, volume: str | None) -> Iterator[messages.Snapshot]:
        """Yield the snapshots in the log of a volume, or in all logs, oldest first.  Their views are on the nodes."""
        for pool in self._pools:
            if volume in (None, pool.name):
                members = {member.identity: member for member in pool.members()}
                for taken in pool.snapshots():
                    yield self._shown(pool, taken, members.get(taken.lun))

    @staticmethod
    def _shown(pool: Pool, taken: snapshot.Snapshot, member: Member | None) -> messages.Snapshot:
        preserved = 0 if member is None else member.preserved_bytes
        return messages.Snapshot(
            volume=pool.name,
            name=taken.name,
            uuid=str(taken.uuid),
            taken=moments.utc(taken.taken_at),
            state=taken.state.value,
            reason=taken.reason,
            size=pool.size,
            used_bytes=0 if member is None else member.used_bytes,
            preserved_bytes=preserved,
            preserved_percent=round(100 * preserved / pool.size, 4),
            view_lun=None,
            write_once_lun=None if member is None else member.lun,
            labels={key: value for key, value in taken.labels.items() if key != shared_volume.SCHEDULED},
            scheduled=shared_volume.SCHEDULED in taken.labels,
        )

    def has(self, volume: str) -> bool:
        """Return whether this host has the log of a volume."""
        return any(pool.name == volume for pool in self._pools)

    def _fail(self, pool: Pool, why: str) -> None:
        self.failed[pool.name] = why
        log.error("the pool of %s is not served: %s", pool.name, why)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._due.wait(LOOK_SECONDS)
            self._due.clear()
            if self._stopping.is_set():
                return
            try:
                self.tend()
            except Exception:  # a bug; the rest of the daemon serves on, and the alert about too few LUNs will come
                log.exception("the pools are not tended")
