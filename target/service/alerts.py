# SPDX-License-Identifier: Apache-2.0
"""The alerts: for each condition that needs attention, its code, its subject, a sentence and a remedy.

Codes never change.  `target.explanations` explains each of them.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping

from lun_backends.volumes import errors, interface
from target import descriptors, explanations, messages, units
from target.configuration import settings, values
from target.service import cloned, moments
from target.service.inventory import Inventory

_CLOCK_TOLERANCE = datetime.timedelta(minutes=1)
_REFUSED_SECONDS = 600  # that a refused login stays an alert
_NAMED = 3  # snapshots that an alert about many of them names


def current(
    inventory: Inventory, unkept: Mapping[str, str], free: int, total: int, now: datetime.datetime
) -> Iterator[messages.Alert]:
    """Yield the current alerts.

    `unkept` has the reason for each volume whose schedule is not kept.  `free` and `total` are bytes of the file system
    that holds the state.
    """
    for name, why in inventory.failed.items():
        yield messages.Alert(
            "volume-failed",
            name,
            f"volume {name} is not served: {why}",
            "repair it, then run restoreconfig in the shell",
        )
    for left in inventory.unconfigured():
        text = f"volume {left.name} has data in {left.directory}, but the configuration does not name it"
        remedy = (
            f"name it there again; or, if it was renamed, run `wolun volume relocate NEW --from {left.name}`; or leave it aside "
            f"with `wolun volume accept {left.name}`"
        )
        yield messages.Alert("volume-left-behind", left.name, text, remedy)
    for owner in list(inventory.open_volumes.values()):
        for clone in cloned.of(owner):
            if clone.trouble:
                text = f"clone {clone.name} of {owner.name}@{clone.snapshot.name} cannot be used: {clone.trouble}"
                remedy = f"repair the cause and start the daemon again, or delete {clone.name}"
                yield messages.Alert("clone-failed", clone.name, text, remedy)
        for snapshot in owner.snapshots:
            if snapshot.is_invalid:
                subject = f"{owner.name}@{snapshot.name}"
                if snapshot.invalid_on_disk:
                    text = f"snapshot {subject} is invalid: {snapshot.invalid_reason}"
                    yield messages.Alert("snapshot-invalid", subject, text, f"delete {subject} and take a new one")
                else:
                    text = f"snapshot {subject} cannot be opened: {snapshot.invalid_reason}"
                    yield messages.Alert(
                        "snapshot-unreachable", subject, text, "repair it, then start the daemon again"
                    )
            elif damaged := snapshot.damaged_chunks:
                subject = f"{owner.name}@{snapshot.name}"
                chunks = "1 chunk" if damaged == 1 else f"{damaged} chunks"
                text = f"snapshot {subject} keeps damaged data: {chunks} of {units.exact_size(owner.chunk_size)} so far"
                remedy = f"`wolun snapshot verify {subject}` names the blocks; look for them in a backup"
                yield messages.Alert("snapshot-damaged", subject, text, remedy)
        yield from _doubtful(owner)
        stopped = owner.rollback_stopped
        if stopped is not None and owner.rolling_back_to is not None:
            text = f"rolling {owner.name} back to {owner.rolling_back_to.name} has stopped: {stopped.reason}"
            yield messages.Alert("rollback-stopped", owner.name, text, stopped.remedy)
        if owner.in_doubt:
            text = f"volume {owner.name} refuses writes: {owner.in_doubt}"
            yield messages.Alert("state-in-doubt", owner.name, text, "check the disk; the next write tries again")
        yield from _space(owner)
        yield from _size(owner, inventory.settings)
        yield from _clock(owner, now)
        failures = owner.counters.failures
        if failures:
            text = f"volume {owner.name}: {failures} pre-images could not be preserved"
            remedy = "free space, or delete snapshots" if stopped is None else stopped.remedy
            yield messages.Alert("copies-failed", owner.name, text, remedy)
    for name, why in unkept.items():
        text = f"the schedule of {name} is not kept: {why}"
        yield messages.Alert("schedule-failed", name, text, "remove the cause; wolun tries again by itself")
    for name, (one, other) in inventory.fabric.name_clashes().items():
        text = f"two hosts seem to be called {name}, {one} and {other}: each login of one ends the session of the other"
        yield messages.Alert("initiator-name-shared", name, text, "give each host an initiator name of its own")
    yield from _unmapped(inventory.settings)
    for rule in inventory.access.rules.broken():
        text = f"{rule.name} may not log in: {rule.broken}"
        yield messages.Alert("initiator-broken", rule.name, text, "correct the file, then use set auth again")
    yield from _open_files()
    if free * 100 < total * explanations.LOW_SPACE_PERCENT:
        text = f"{inventory.state_dir} has little space left: {100 * free // max(1, total)} %"
        yield messages.Alert(
            "low-space", str(inventory.state_dir), text, "delete snapshots, or enlarge the file system"
        )
    yield from _portal(inventory)
    access = inventory.settings.access
    if access.initiators == () or not (access.networks or access.initiators):
        names = (
            "has an empty list of initiators" if access.initiators == () else "names neither networks nor initiators"
        )
        text = f"no initiator may log in: the configuration's access {names}"
        yield messages.Alert("nobody-may-log-in", inventory.settings.target, text, "add an initiator or a network")


def of_pools(pools: Iterable[messages.Pool], left: Iterable[str]) -> Iterator[messages.Alert]:
    """Yield the alerts of the pools of write-once LUNs; `left` are those that the configuration does not name."""
    for name in sorted(left):
        text = f"the state directory has a pool of {name}, but `write_once` does not name it, so it is not served"
        remedy = "name it there again; or, if no node needs it, delete its directory below `pools`"
        yield messages.Alert("pool-left-behind", name, text, remedy)
    for pool in pools:
        if pool.log_lun is None:
            text = f"the pool of {pool.volume} is not served: {pool.trouble}"
            yield messages.Alert("pool-failed", pool.volume, text, "repair it, then start the daemon again")
        elif pool.blank < pool.blanks_wanted:
            why = f": {pool.trouble}" if pool.trouble else ""
            text = f"the pool of {pool.volume} has {pool.blank} of {pool.blanks_wanted} blank write-once LUNs{why}"
            yield messages.Alert("pool-low", pool.volume, text, "remove the cause; wolun tries again by itself")
        elif pool.trouble:
            text = f"the pool of {pool.volume}: {pool.trouble}"
            yield messages.Alert("pool-damaged", pool.volume, text, "`wolun explain pool-damaged` says what is left")


def of_replications(replications: Iterable[messages.Replication]) -> Iterator[messages.Alert]:
    """Yield the alerts of the replications."""
    for one in replications:
        subject = f"{one.volume} to {one.name}"
        if one.trouble:
            text = f"the replication of {subject} fails: {one.trouble}"
            yield messages.Alert("replication-failed", subject, text, "remove the cause; wolun tries again by itself")
        if one.late:
            lag = units.human_seconds(one.lag_seconds)
            has = (
                f"its newest snapshot, {one.arrived}, is from {lag} ago" if one.arrived else f"it has none after {lag}"
            )
            text = f"the replication of {subject} lags: {has}"
            remedy = "see why it fails or is slow; raise `alert_after` if it may take that long"
            yield messages.Alert("replication-late", subject, text, remedy)


def _doubtful(owner: interface.Volume) -> Iterator[messages.Alert]:
    names = [snapshot.name for snapshot in owner.snapshots if snapshot.doubt]
    if names:
        more = f" and {len(names) - _NAMED} more" if names[_NAMED:] else ""
        text = f"snapshots of {owner.name} are doubtful ({', '.join(names[:_NAMED])}{more}): {owner.doubt}"
        yield messages.Alert("snapshots-doubtful", owner.name, text, errors.accept(owner.name))


def _portal(inventory: Inventory) -> Iterator[messages.Alert]:
    for address, why in inventory.fabric.unbound().items():
        yield messages.Alert("portal-unbound", address, why, "remove the cause; wolun tries again by itself")
    load = inventory.fabric.load()
    if load is not None and load.refused_ago is not None and load.refused_ago < _REFUSED_SECONDS:
        text = f"a login was refused because too many sessions are in use: {load.sessions} of {load.most_sessions} now"
        remedy = "log out initiators that are not needed, or raise `sessions` of `portal`"
        yield messages.Alert("sessions-full", inventory.settings.target, text, remedy)


def _open_files() -> Iterator[messages.Alert]:
    used, most = descriptors.used(), descriptors.limit()
    if used * 100 >= most * descriptors.LOW_PERCENT:
        text = f"the daemon has {used} files open, and may have {most}"
        remedy = "raise the limit (LimitNOFILE= of the unit) and start the daemon again, or delete snapshots"
        yield messages.Alert("open-files-low", "daemon", text, remedy)


def _space(owner: interface.Volume) -> Iterator[messages.Alert]:
    space = owner.space
    if space.limit is not None and space.low:
        taken = f"{units.human_size(space.used)} of {units.human_size(space.limit)} allowed"
        text = f"the snapshots of {owner.name} keep {taken}"
        # If not even one more chunk fits, the limit is reached.
        full = space.used + owner.chunk_size > space.limit
        code = "snapshot-space-full" if full else "snapshot-space-low"
        yield messages.Alert(code, owner.name, text, "delete snapshots, the oldest first, or raise the limit")


def _unmapped(configured: settings.Settings) -> Iterator[messages.Alert]:
    """Yield an alert for each write-once LUN that an initiator is to see although its volume maps none."""
    hidden = {volume.name for volume in configured.volumes if volume.map_write_once is settings.MapWriteOnce.NONE} - {
        single.volume for single in configured.write_once
    }
    for initiator in configured.access.initiators or ():
        for mapped in initiator.luns or ():
            name = mapped.unit.partition("@")[0]
            if mapped.unit.endswith(values.WRITE_ONCE_SUFFIX) and name in hidden:
                text = f"{initiator.name} does not see LUN {mapped.lun}, {mapped.unit}: {name} maps no write-once LUNs"
                remedy = f"set map_write_once of {name} to read-only or read-write, or remove the mapping"
                yield messages.Alert("write-once-not-mapped", mapped.unit, text, remedy)


def _size(owner: interface.Volume, configured: settings.Settings) -> Iterator[messages.Alert]:
    wanted = next((entry.size for entry in configured.volumes if entry.name == owner.name), None)
    if wanted is not None and wanted != owner.device.size:
        is_ = units.exact_size(owner.device.size)
        text = f"volume {owner.name} has {is_}, but the configuration says {units.exact_size(wanted)}"
        yield messages.Alert("size-differs", owner.name, text, f"write size: {is_}, or resize the volume")


def _clock(owner: interface.Volume, now: datetime.datetime) -> Iterator[messages.Alert]:
    later = [snapshot for snapshot in owner.snapshots if snapshot.taken_at > now + _CLOCK_TOLERANCE]
    if later:
        subject = f"{owner.name}@{later[-1].name}"
        text = f"snapshot {subject} is dated {moments.utc(later[-1].taken_at)}, which is still to come"
        remedy = "set the clock if it is wrong; if it was wrong then, delete the snapshot when you no longer need it"
        yield messages.Alert("clock-differs", owner.name, text, remedy)
