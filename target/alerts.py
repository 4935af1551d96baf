# SPDX-License-Identifier: Apache-2.0
"""What needs somebody's attention: a code that never changes, what it is about, a sentence, a remedy - and for every code
a paragraph that explains it, which `explain CODE` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from target import messages

if TYPE_CHECKING:
    from target import service

LOW_SPACE_PERCENT = 5

EXPLANATIONS: Mapping[str, str] = {
    "volume-failed": """\
The volume could not be opened when the daemon started, or when it was created, and is not served; its LUN does not exist
and its data is untouched.  Usually the file or device is missing, is in use by something else, or has another size or
block size than the configuration says.  Repair what the alert names; then start the daemon again, or say
`restoreconfig`, which tries again.""",
    "snapshot-invalid": """\
The snapshot could not be kept true and was given up, or its files cannot be read.  Its view and the views of all older
snapshots of the volume answer reads with an error, so that nobody takes wrong data for a copy.  The volume itself is not
concerned.  Delete the snapshot and those older than it, see to space and disk, and take a new one.""",
    "copies-failed": """\
Before a block is overwritten for the first time, its old content is copied into the newest snapshot.  Some of these copies
failed - most often for lack of space - and so did the writes that needed them.  The snapshots are true; the initiators saw
write errors.  Make room, or delete snapshots; the counter starts at nought with the daemon.""",
    "initiator-broken": """\
The entry in `access.initiators` lets nobody in, because a file with a secret cannot be used: it is missing, open to others
than its owner, belongs to another user, or holds no secret of 12 to 255 bytes.  Nobody falls through to a later entry
meanwhile.  Correct the file, then `set auth` again, or start the daemon again.""",
    "low-space": f"""\
Less than {LOW_SPACE_PERCENT} % of the file system that holds the state directory is free.  Thin volumes and snapshots grow as they are
written to; when there is nothing left, writes fail.  Delete snapshots that are not needed, or enlarge the file system.""",
    "nobody-may-log-in": """\
The configuration's `access` names neither networks nor initiators, so every login is refused.  In the shell:
`/iscsi/<target>/tpg1/acls create <initiator's name>`, or `/iscsi/<target>/tpg1 set access networks=10.1.2.0/24` to let
in any initiator from there.""",
}


def current(served: service.Service, free: int, total: int) -> Iterator[messages.Alert]:
    """What is wrong now; `free` and `total` are bytes of the file system that holds the state."""
    for name, why in served.failed.items():
        yield messages.Alert("volume-failed", name, f"volume {name} is not served: {why}", "repair it, then restore it")
    for owner in list(served.open_volumes.values()):
        for snapshot in owner.snapshots:
            if snapshot.reason:
                subject = f"{owner.name}@{snapshot.name}"
                text = f"snapshot {subject} is invalid: {snapshot.reason}"
                yield messages.Alert("snapshot-invalid", subject, text, f"delete {subject} and take another")
        failures = owner.device.counters.failures
        if failures:
            text = f"volume {owner.name}: {failures} pre-images could not be preserved"
            yield messages.Alert("copies-failed", owner.name, text, "make room, or delete snapshots")
    for rule in served.access.rules.broken():
        text = f"{rule.name} may not log in: {rule.broken}"
        yield messages.Alert("initiator-broken", rule.name, text, "correct the file, then set auth again")
    if free * 100 < total * LOW_SPACE_PERCENT:
        text = f"{served.state_dir} has little space left: {100 * free // max(1, total)} %"
        yield messages.Alert("low-space", str(served.state_dir), text, "delete snapshots, or enlarge the file system")
    if not served.settings.access.networks and not served.settings.access.initiators:
        text = "no initiator may log in: the configuration's access names neither networks nor initiators"
        yield messages.Alert("nobody-may-log-in", served.settings.target, text, "name who may log in")
