# SPDX-License-Identifier: Apache-2.0
"""The explanations of all alert codes, which `wolun explain CODE` and the shell print without the daemon's modules."""

from __future__ import annotations

from collections.abc import Mapping

LOW_SPACE_PERCENT = 5

EXPLANATIONS: Mapping[str, str] = {
    "volume-failed": """\
The volume could not be opened when the daemon started, or when it was created, and is not served; its LUN does not exist
and its data is untouched.  Usually the file or device is missing, is in use by something else, or has another size or
block size than the configuration says.  Repair what the alert names; then start the daemon again, or say
`restoreconfig`, which tries again.""",
    "size-differs": """\
The configuration gives the volume another size than it has, most often because it was resized and the file was not changed.
It is served with the size it has, and nothing is lost.  Write the volume's own size into the configuration, or make it
larger with `wolun volume resize`; it cannot be made smaller.""",
    "snapshot-invalid": """\
The snapshot could not be kept true and was given up for good (`on_error: drop-snapshot`), or its files are damaged or gone;
or the volume has `durability: process-crash`, and the machine went down without the volume having been closed.
Its view answers every read with an error, so that nobody takes wrong data for a copy; so do the views of older snapshots
where they need it.  The volume itself and newer snapshots are not concerned.  Nothing brings it back.  See to space and disk,
then delete the snapshot (the older ones first) and take a new one.""",
    "snapshot-unreachable": """\
The snapshot's files are there but cannot be opened: a disk that is read-only or failing, a permission, a lock.  It may be good
as it is, so nothing is done behind its back.  If it is the newest, writes that would overwrite data it should keep are
refused (`on_error: fail-writes`) or end it for good (`on_error: drop-snapshot`).  Repair what the alert names and start the
daemon again; or delete the snapshot.""",
    "state-in-doubt": """\
Taking a snapshot of the volume, or rolling it back to one, failed because its manifest could not be stored; and putting the old
manifest back failed, too.  So the next start could find either, and what was written meanwhile could be rolled back, or show up
in the snapshot.  Therefore all writes to the volume are refused (DATA PROTECT 27h/02h), and nothing that was acknowledged is
lost; reads go on.  See to the disk that has the state directory.  As soon as the manifest can be stored, which a write tries
now and then, the volume is as it was before, and the alert ends.  If the daemon is started again first, the volume may have
gone back to the snapshot that was asked for.""",
    "copies-failed": """\
Before a block is overwritten for the first time, its old content is copied into the newest snapshot.  Some of these copies
failed: no room, a failing disk, or slower than `copy_timeout`.  With `on_error: fail-writes` the writes that needed them were
refused, which initiators saw (no room: DATA PROTECT 27h/07h), and the snapshots are true.  With `on_error: drop-snapshot` the
writes went on and snapshots were given up; each has an alert of its own.  Make room, or delete snapshots.  The counter
starts at nought with the daemon.""",
    "snapshot-space-low": """\
The old data in the volume's snapshots has passed `warn_at` percent of their `limit`.  Nothing is wrong yet, and initiators have
been told (unit attention 38h/07h).  When the limit is reached `on_error` decides: writes that need to keep old data are
refused, or the oldest snapshots are given up.  Delete snapshots, the oldest first (that frees space at once), or raise the
limit.""",
    "snapshot-space-full": """\
The old data in the volume's snapshots has come up to their `limit`.  Now `on_error` decides: with `fail-writes`, writes that
would overwrite data not kept yet are refused (DATA PROTECT 27h/07h) and all snapshots are true; with `drop-snapshot`, each such
write gives up the oldest snapshot.  New snapshots are refused.  Delete snapshots, the oldest first (that frees space at once),
or raise the limit.""",
    "schedule-failed": """\
The volume's `schedule` asked for a snapshot, or for an old one of its own to be deleted, and that could not be done.  It is
tried again several times a minute; the alert ends when it succeeds.  Until then there may be no snapshot of this hour (or
day), or more of them than `keep` says.""",
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
