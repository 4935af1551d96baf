# SPDX-License-Identifier: Apache-2.0
"""The explanations of all alert codes, which `wolun explain CODE` and the shell print without the daemon's modules."""

from __future__ import annotations

from collections.abc import Mapping

LOW_SPACE_PERCENT = 5

EXPLANATIONS: Mapping[str, str] = {
    "volume-failed": """\
The daemon could not open the volume when it started, or when the volume was created, and does not serve it.  The volume has
no LUN, and its data is unchanged.  Usually the file or device is missing, another program uses it, or its size or block size
differs from the configuration.  Repair the problem that the alert names.  Then start the daemon again, or run
`restoreconfig` in `wolun shell`, which tries again.""",
    "size-differs": """\
The size of the volume differs from the size in the configuration, usually because the volume was resized and the file was not
changed.  wolun serves the volume with its own size, and no data is lost.  Write the volume's own size into the configuration,
or enlarge the volume with `wolun volume resize`.  A volume cannot shrink.""",
    "snapshot-invalid": """\
The snapshot is invalid and cannot be repaired.  There are three possible causes: wolun could not preserve old data and
invalidated the snapshot (`on_error: drop-snapshot`); its files are damaged or missing; or the volume has
`durability: process-crash` and the machine went down before the daemon closed the volume.  The snapshot's view answers every
read with an error, so that no initiator takes wrong data for a copy.  Views of older snapshots do the same where they depend on
it.  The volume itself and newer snapshots are not affected.  Check the free space and the disk.  Then delete the snapshot
(older ones first) and take a new one.""",
    "snapshot-damaged": """\
Old data that this snapshot keeps does not fit its checksum, or the map has lost its place: a disk, a cable, or a copy of the
files changed it.  Initiators that read such blocks from a view get MEDIUM ERROR (11h/00h), and exports, exact comparisons and
rollbacks are refused, unless --damaged is given.  All other blocks are correct.  Views of older snapshots need this data, too.
`wolun snapshot verify` reads the whole snapshot and names the blocks; a backup or an export may have their content.  Check the
disk.  The alert ends when the snapshot is deleted.  A deletion moves damaged blocks to the next older snapshot as damaged, and
the alert goes along.  The daemon counts what was read since it started.""",
    "clone-failed": """\
A writable clone cannot be used as it should be: its files cannot be opened, a flush of it failed, its snapshot is invalid, or
a volume of the configuration has its name.  The volume and the snapshot are not affected.  After a failed flush the clone
takes no writes until the daemon starts again, and then it has what was flushed before.  Repair what the alert names and start
the daemon again, or delete the clone with `wolun clone delete`.""",
    "volume-left-behind": """\
The state directory has the data of a volume that the configuration does not name.  Usually the volume was renamed in the
configuration, or removed from it.  Its data and its snapshots are unchanged and not served.  wolun makes no new, empty volume
under its old LUN, and none on its primary, because initiators would take such a volume for their own.  If it was renamed, run
`wolun volume relocate NEW --from OLD`.  If it was removed by mistake, name it in the configuration again and start the daemon
again.  If you no longer need it, `wolun volume accept OLD` ends the alert and keeps the data; you can also delete its directory.
`delete` in the shell's `/volumes` raises no such alert.""",
    "snapshots-doubtful": """\
A snapshot shows the volume's primary wherever nothing was overwritten since.  So it is true only if this volume alone writes to
the primary.  While the volume was not served, the primary was changed or replaced, or an older copy of the state directory was
put in its place; the alert names the difference.  The snapshots taken before may now show a mixture of old and new data.  wolun
serves them and marks them as doubtful; it does not export them, compare them or roll back to them.  The volume and later
snapshots are not affected.  If the wrong file or disk is there, stop the daemon at once and put the right one back.  If the
primary is right and was not written to (for example, only its permissions were changed, or it was copied with all its content),
run `wolun volume accept`.  Otherwise delete the doubtful snapshots, the oldest first.""",
    "snapshot-unreachable": """\
The snapshot's files exist but the daemon cannot open them, for example because a disk is failing or read-only, a permission is
missing, or another process holds a lock.  The snapshot may still be good, so wolun changes nothing.  If it is the newest
snapshot, writes that would overwrite data it must preserve are refused (`on_error: fail-writes`), or they invalidate it for
good (`on_error: drop-snapshot`).  Repair the problem that the alert names and start the daemon again, or delete the snapshot.""",
    "state-in-doubt": """\
wolun could not store the volume's manifest while it took a snapshot or rolled the volume back, and could not put the old
manifest back either.  The next start could find either version, so writes made now could be undone, or appear in the snapshot.
Therefore wolun refuses all writes to the volume (DATA PROTECT 27h/02h), and no acknowledged write is lost.  Reads continue.
Check the disk that holds the state directory.  wolun retries about once a second when a write arrives; writes resume when the
manifest can be stored, the volume is as it was before, and the alert ends.  If the daemon starts again before that, the volume
may have been rolled back to the requested snapshot.""",
    "rollback-stopped": """\
The volume was rolled back to a snapshot and has its content, but the daemon cannot bring all of that content to the primary.
Usually there is no space: what the primary holds now must be preserved for newer snapshots before it is overwritten.  Until the
rollback has ended, writes to parts that were not brought over yet may be refused (DATA PROTECT 27h/07h), no snapshot can be
taken, and only the oldest can be deleted, if the rollback does not need it.  Reads are right.  Free space on the file system
that the alert names.  wolun looks several times a minute and goes on by itself; `wolun snapshot restore` with the same snapshot
goes on at once.  Damage and a doubtful snapshot need a decision first, which the alert names.""",
    "copies-failed": """\
Before a block is overwritten for the first time, wolun copies its old content into the newest snapshot.  Some of these copies
failed: there was no space, the disk failed, or the copy took longer than `copy_timeout`.  With `on_error: fail-writes`, wolun
refused the writes that needed the copies, initiators saw the errors (without space: DATA PROTECT 27h/07h), and the snapshots
are correct.  With `on_error: drop-snapshot`, the writes continued and wolun invalidated snapshots; each of them has an alert
of its own.  Free space, or delete snapshots.  The counter starts at zero when the daemon starts.""",
    "snapshot-space-low": """\
The old data in the volume's snapshots has passed `warn_at` percent of their `limit`.  Nothing is wrong yet, and initiators have
been notified (unit attention 38h/07h).  When the limit is reached, `on_error` decides: writes that need to preserve old data
are refused, or the oldest snapshots are invalidated.  Delete snapshots, the oldest first (that frees space at once), or raise the
limit.""",
    "snapshot-space-full": """\
The old data in the volume's snapshots has reached their `limit`.  Now `on_error` decides.  With `fail-writes`, writes that would
overwrite data not yet preserved are refused (DATA PROTECT 27h/07h), and all snapshots are correct.  With `drop-snapshot`, each
such write invalidates the oldest snapshot.  New snapshots are refused.  Delete snapshots, the oldest first (that frees space at
once), or raise the limit.""",
    "schedule-failed": """\
The volume's `schedule` is not kept: a snapshot that is due was not taken, or an old one was not deleted.  wolun tries again
several times a minute, and the alert ends when it succeeds.  Until then the snapshot of this hour (or day) is missing, or there
are more snapshots than `keep` allows.  The reasons are independent of each other: old snapshots are deleted even if no new one
can be taken.  The metric `wolun_volume_schedule_kept` is 0 for as long as the alert lasts.""",
    "verify-failed": """\
A check that the volume's `verify` schedules has found old data that does not fit its checksums, or could not be made.  The
snapshots that the alert names keep the damaged data, and older ones may need it, too.  All other data is right, and so is the
volume itself.  `wolun snapshot verify` with such a snapshot names the blocks; reads of them fail with MEDIUM ERROR.  Look for
the blocks in a backup, check the disk, and delete the snapshots when you no longer need them.  The alert ends with the next
check that finds nothing; `wolun schedule list` shows when that is.""",
    "replication-failed": """\
A snapshot could not be sent to the receiver of a replication (`replicate` of the volume).  The alert has the last words of the
command that receives.  The snapshot stays here, and so does the one that the receiver has.  wolun tries again once a minute,
and goes on where the stream was interrupted.  Try the command by hand as the daemon's user, for example `ssh backup wolun
volume list`: it must need no password and ask no question.  If the receiver has snapshots and none of them is here, or if it
was promoted, an administrator decides: `wolun volume receive --force` there takes it back to a snapshot that both have.""",
    "replication-late": """\
The newest snapshot that the receiver of a replication has is older than it may be: older than `alert_after`, or than two periods
of its schedule.  Either sending fails, which is an alert of its own, or it takes longer than a period: then send less often,
raise `limit`, or use `compress`.  The metric `wolun_replication_lag_seconds` shows the course.""",
    "clock-differs": """\
A snapshot of the volume is dated in the future.  Either the clock is wrong now, or it was wrong when the snapshot was taken.  The
content of the snapshot is right; only its date is not.  Schedules go by the order in which snapshots were taken, so a wrong date
stops none.  Set the clock if it is wrong.  Otherwise delete the snapshot when you no longer need it; if a schedule took it, it
goes by itself in its turn.""",
    "initiator-name-shared": """\
Logins from two addresses ended each other's sessions within the last hour, under one initiator name with one ISID.  Usually one
machine is a copy of the other, and has kept its name.  To the target both are the same initiator, so each of them loses its
session, and commands with it, whenever the other logs in; reservations do not keep them apart.  Give each host a name of its own
(Linux: /etc/iscsi/initiatorname.iscsi), and log in again.  A host whose address changed to and fro is the other possible cause.
The alert ends an hour after the last such login.""",
    "write-once-not-mapped": """\
An entry in `access.initiators` maps the write-once LUN of a snapshot, but the volume has `map_write_once: none`, which is the
default.  So the initiator does not see that LUN.  An initiator that can write to a write-once LUN can put data into a snapshot
that the volume never held.  Use `map_write_once: read-only` if the initiator only has to read which blocks have changed, and
`read-write` only if it is a node that preserves old data itself.  Otherwise remove the mapping.""",
    "initiator-broken": """\
The entry in `access.initiators` admits no initiator, because a file with its secret cannot be used: the file is missing, other
users can read it, it belongs to another user, its secret is not 12 to 255 bytes long, or the target proves itself to another
initiator with that secret.  Meanwhile these initiators are refused, even if a later entry matches them.  Correct the file; then
use `set auth` again, or start the daemon again.""",
    "notices-failed": """\
A webhook or sendmail did not take the notice of an alert (`notices` in the configuration).  The daemon tries again every 15
seconds, and no notice is lost while the daemon runs.  The alert has the answer of the webhook or of sendmail.  Correct the
address, or repair what it leads to.""",
    "open-files-low": """\
The daemon has nearly as many files open as it may have.  When it has no descriptor left, no snapshot can be taken or opened, no
initiator can log in, and commands of `wolun` get no answer.  Open sessions and volumes are still served, and no data is
lost.  Each snapshot takes two descriptors, each session one.  The daemon raises its own limit as far as it may.  Raise the hard
limit (`LimitNOFILE=` in the unit, or `ulimit -Hn` in a shell) and start the daemon again, or delete snapshots.""",
    "node-out": """\
This host does not take part in a shared volume at present.  Its initiators wait, and then get NOT READY; the other nodes go on.
The alert has the reason: the primary, the log or a write-once LUN does not answer or is not visible, a fence is not complete, or
another node rolls the volume back.  No acknowledged write is lost.  See that this host reaches the storage host (for disks of
the kernel: `iscsiadm -m session --rescan`).  The node joins again by itself within seconds.""",
    "node-expelled": """\
Another node expelled this one (`wolun node expel`), so it can neither read nor write the volume.  That is for good, because a
node that was given up must not come back by accident.  If it is to take part again, see first that nothing on it still has old
data of the volume in a cache.  Then give the node another name (`node` of the volume in the configuration) and start the daemon
again.""",
    "fence-pending": """\
A snapshot, an expulsion or a rollback is in the log of a shared volume, and its fence has not been complete for a while.  Until
then nobody can read the snapshot.  Every node that reaches the primary completes the fence by itself, whoever asked for it, and
all nodes go on to write meanwhile.  So this means that no node reaches the primary, or that the primary refuses PERSISTENT
RESERVE OUT: look at the other alerts, and at the daemon's log.""",
    "pool-empty": """\
Each snapshot of a shared volume takes a blank write-once LUN of the pool, and none is left that this node sees.  The volume works
as before, and its snapshots stay true; the next snapshot is refused.  The storage host keeps as many blank LUNs ready as `pool`
says.  Look there whether that number is enough and whether its disk has room.  If this host reaches the LUNs through the kernel,
rescan (`iscsiadm -m session --rescan`).""",
    "log-damaged": """\
A block of the log of a shared volume holds no record of that volume.  It may have been the record of a snapshot, so no node can
know which snapshot is the newest, and nodes that read it stay out.  Nothing was overwritten.  Look at the log on the storage
host: its disk may have lost data, or something else wrote to the LUN.  A record of a newer version of wolun is named as such:
then update this node.""",
    "log-full": """\
Each snapshot, deletion, expulsion and rollback of a shared volume takes one or two blocks of its log, which are never used again.
A snapshot that is taken and deleted takes four, a new name or label one more.  The log of a storage host has 1,048,576 blocks:
enough for a snapshot each hour for 29 years, or one each minute for half a year.  More than four fifths of it are used.  When
it is full, no snapshot can be taken or deleted, and no node can be expelled; the volume itself can still be read and written.
Take snapshots less often, or make a new volume on the storage host, and copy the data.""",
    "pool-failed": """\
The log of a pool of write-once LUNs (`write_once` with `pool`) cannot be opened, so none of the pool's LUNs is served.  The nodes
of the cluster cannot write to the volume until it is.  No data is lost.  Usually a disk is failing or a permission is missing.
Repair the problem that the alert names, and start the daemon again.  Never replace the log by an empty one: the nodes would
forget all snapshots.""",
    "pool-left-behind": """\
The state directory has the log and the write-once LUNs of a volume that `write_once` does not name with `pool`.  Usually the
entry was removed, or the volume was renamed there.  The nodes of the cluster cannot write to the volume, and cannot read its
snapshots, until the pool is served again under its old name.  Nothing of it is lost, and no other unit gets its LUN numbers.""",
    "pool-low": """\
The pool of write-once LUNs has fewer blank LUNs than the configuration asks for.  Without a blank LUN the nodes of the cluster
can take no snapshot; everything else works.  The alert names the reason: usually there is no space for the empty maps, or the
target has no LUN numbers left, because a pool never uses a number twice.  wolun tries again once a minute.  If there are no
numbers left, serve the volume's next pool under another target.""",
    "pool-damaged": """\
A record of the pool's log cannot be read, or the data of a write-once LUN cannot be opened.  With an unreadable record the nodes
of the cluster stay out of the volume, because it may have said that a snapshot was taken, and this host changes nothing in the
pool any longer.  A newer version of wolun on a node writes records that an older one cannot read: update this host then.  A LUN
whose data cannot be opened is not served, and never made anew: views of its snapshot, and of older ones, cannot be read.
Repair the files and start the daemon again, or delete the snapshot.""",
    "low-space": f"""\
Less than {LOW_SPACE_PERCENT} % of the file system that holds the state directory is free.  Thin volumes and snapshots grow as initiators write
to them, and writes fail when no space is left.  Delete snapshots that you no longer need, or enlarge the file system.""",
    "portal-unbound": """\
The daemon could not listen on one of the addresses in `portal.listen` or `lio.listen`, and serves on the others.  Usually
the address is not on this machine yet, because a network or a link is down, or another program has the port.  wolun tries
again every few seconds, and the alert ends when initiators can connect there.  `ip address` lists the addresses of this
machine, `ss -tlnp` the programs that listen.  An address that will not come back can be deleted with
`/iscsi/<target>/tpg1/portals delete` in `wolun shell`.""",
    "sessions-full": """\
In the last ten minutes a login was refused because too many sessions are in use (status 0302h, out of resources).  The portal has
`sessions` places, and one peer, an IPv4 address or an IPv6 /64, can have seven of eight.  `wolun status` lists the sessions.  Log
out initiators that are not needed, or raise `sessions` of `portal` in the configuration and start the daemon again.""",
    "nobody-may-log-in": """\
The configuration's `access` names neither networks nor initiators, so the target refuses every login.  To admit one initiator,
use `/iscsi/<target>/tpg1/acls create <initiator's name>` in `wolun shell`.  To admit any initiator from a network, use
`/iscsi/<target>/tpg1 set access networks=10.1.2.0/24`.""",
}
