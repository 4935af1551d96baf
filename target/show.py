# SPDX-License-Identifier: Apache-2.0
"""Answers as text for people: on a terminal, in a pipe, with or without colour and UTF-8.

Two spaces separate columns, and lines are never wrapped, on a terminal and in a pipe alike, so that `grep` and `awk`
work.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from target import printable, units

if TYPE_CHECKING:
    from target import messages

P = ParamSpec("P")
A = TypeVar("A")

MAP_ROWS = 16
PIPE_WIDTH = 80
_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII = " .:-=+*#@"
RESCAN = "logged-in initiators are notified; on Linux, `iscsiadm -m session --rescan` makes them look again"
FORGET = (
    "on Linux, `rescan-scsi-bus.sh -r` (package sg3-utils) removes the disk, or `echo 1 > /sys/block/sdX/device/delete`"
)


def _printable(function: Callable[Concatenate[A, P], str]) -> Callable[Concatenate[A, P], str]:
    """Decorate a function that shows an answer: it gets the answer with each text in it as one printable line."""

    @functools.wraps(function)
    def shown(answer: A, /, *arguments: P.args, **options: P.kwargs) -> str:
        return function(printable.message(answer), *arguments, **options)

    return shown


def sentence(text: str) -> str:
    """Return `text` with a capital and a full stop, unless it begins with code."""
    if not text or text[0] in "`/":
        return text
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")


@_printable
def taken(answer: messages.Taken) -> str:
    """Return the text for a new snapshot: its LUNs, and how to use them."""
    held = units.human_seconds(answer.writes_held_seconds)
    return "\n".join(
        [
            f"took {answer.volume}@{answer.name}; writes were held for {held}",
            f"  LUN {answer.view_lun}: the volume as it is now, read-only"
            if answer.view_lun is not None
            else f"  initiators do not see it: `wolun snapshot map {answer.volume}@{answer.name}` gives it a LUN",
            *(
                []
                if answer.write_once_lun is None
                else [
                    f"  LUN {answer.write_once_lun}: its write-once LUN, which preserves old data before it is overwritten"
                ]
            ),
            *(
                []
                if answer.view_lun is None
                else [
                    RESCAN,
                    f"without the kernel's initiator: qemu-img convert -O qcow2 {answer.view_url} {answer.name}.qcow2",
                ]
            ),
        ]
    )


@_printable
def resized(answer: messages.Volume, *, in_shell: bool = False) -> str:
    """Return the text for an enlarged volume, and the next steps."""
    size = units.exact_size(answer.size)
    return "\n".join(
        [
            f"{answer.name} now has {size}; its snapshots keep their size",
            RESCAN,
            "`saveconfig` writes the new size into the configuration file"
            if in_shell
            else f"if the configuration file has a size for {answer.name}, change it to `size: {size}`",
        ]
    )


@_printable
def accepted(answer: messages.Accepted) -> str:
    """Return the text for a volume whose primary was accepted."""
    if answer.set_aside:
        return f"the data of {answer.volume} stays in the state directory, and is left aside"
    names = ", ".join(f"{answer.volume}@{name}" for name in answer.snapshots)
    return f"accepted {names}" if names else f"no snapshot of {answer.volume} is doubtful"


@_printable
def relocated(answer: messages.Volume, *, in_shell: bool = False) -> str:
    """Return the text for a volume that was taken up in another place, and the next step."""
    doubt = f"\nits snapshots are doubtful: {answer.doubtful}" if answer.doubtful else ""
    save = "`saveconfig` writes that" if in_shell else "write that"
    lun = "" if answer.lun is None else f" as LUN {answer.lun}"
    return f"{answer.name} is served{lun} from {answer.primary}; {save} into the configuration file{doubt}"


@_printable
def snapshots(answer: Sequence[messages.Snapshot]) -> str:
    """Return the table of snapshots, with columns of what keeps them and of labels if any snapshot has that."""
    if not answer:
        return "no snapshots"
    labelled = any(snapshot.labels for snapshot in answer)
    kept = any(snapshot.hold or snapshot.expires for snapshot in answer)
    cloned = any(snapshot.clones for snapshot in answer)
    mixed = len({(snapshot.volume, snapshot.store) for snapshot in answer}) > len({one.volume for one in answer})
    return table(
        (
            "NAME",
            "TAKEN",
            "USED",
            "PRESERVED",
            "STATE",
            "VIEW LUN",
            "WRITE-ONCE LUN",
            *(["STORE"] if mixed else []),
            *(["CLONES"] if cloned else []),
            *(["KEPT"] if kept else []),
            *(["LABELS"] if labelled else []),
        ),
        [
            (
                f"{snapshot.volume}@{snapshot.name}",
                moment(snapshot.taken),
                units.human_size(snapshot.used_bytes),
                units.human_percent(snapshot.preserved_bytes, snapshot.size),
                snapshot.state,
                _lun(snapshot.view_lun),
                _lun(snapshot.write_once_lun),
                *([snapshot.store or "-"] if mixed else []),
                *([",".join(snapshot.clones)] if cloned else []),
                *([_kept(snapshot)] if kept else []),
                *([labels(snapshot.labels)] if labelled else []),
            )
            for snapshot in answer
        ],
        right={2, 3, 5, 6},
    )


@_printable
def clones(answer: Sequence[messages.Clone]) -> str:
    """Return the table of clones."""
    if not answer:
        return "no clones"
    rows = [
        (
            clone.name,
            f"{clone.volume}@{clone.snapshot}",
            moment(clone.made),
            units.human_size(clone.size),
            units.human_size(clone.used_bytes),
            "-" if clone.limit is None else units.human_size(clone.limit),
            _lun(clone.lun),
            clone.state + (f": {clone.trouble}" if clone.trouble else ""),
        )
        for clone in answer
    ]
    return table(("NAME", "OF", "MADE", "SIZE", "USED", "LIMIT", "LUN", "STATE"), rows, right={3, 4, 5, 6})


@_printable
def cloned(answer: messages.Clone) -> str:
    """Return the text about a clone that was just made."""
    return (
        f"{answer.name} is a writable clone of {answer.volume}@{answer.snapshot}: LUN {_lun(answer.lun)}\n{answer.url}"
    )


@_printable
def snapshot(answer: messages.SnapshotDetails) -> str:
    """Return the details of a snapshot, one per line."""
    preserved = units.human_percent(answer.preserved_bytes, answer.size)
    lines = [
        ("snapshot", f"{answer.volume}@{answer.name}"),
        ("taken", moment(answer.taken)),
        ("state", f"{answer.state}{f': {answer.reason}' if answer.reason else ''}"),
        ("volume size", units.human_size(answer.size)),
        ("preserved", f"{units.human_size(answer.preserved_bytes)} ({preserved} of the volume)"),
        ("used on disk", units.human_size(answer.used_bytes)),
        ("chunk size", units.exact_size(answer.chunk_size)),
        *([("store", answer.store)] if answer.store else []),
        ("UUID", answer.uuid),
        ("labels", labels(answer.labels) or "-"),
        ("consistency", answer.consistency),
        *([("held", answer.hold)] if answer.hold else []),
        *([("expires", moment(answer.expires))] if answer.expires else []),
        *([("clones", ", ".join(answer.clones))] if answer.clones else []),
        ("view", f"LUN {_lun(answer.view_lun)}  {answer.view_url}".rstrip()),
        ("write-once", f"LUN {_lun(answer.write_once_lun)}  {answer.write_once_url}".rstrip()),
    ]
    if answer.outside_bytes:
        text = f"{units.human_size(answer.outside_bytes)} that initiators wrote: it may not be what the volume held"
        lines.append(("from outside", text))
    return "\n".join(f"{name:13} {value}" for name, value in lines)


@_printable
def deleted(answer: Sequence[messages.Snapshot], *, dry_run: bool) -> str:
    """Return the text for snapshots that were deleted, or would be, and those that are held."""
    done = "would be deleted" if dry_run else "is deleted"
    lines = [
        f"{snapshot.volume}@{snapshot.name} " + (f"stays: it is held: {snapshot.hold}" if snapshot.hold else done)
        for snapshot in answer
    ]
    return "\n".join(lines) or "no snapshot fits"


@_printable
def labels(answer: Mapping[str, str]) -> str:
    """Return the labels in order as `key=value`, separated by commas; empty if there are none."""
    return ",".join(f"{key}={value}" for key, value in sorted(answer.items()))


@_printable
def verification(answer: messages.Verification) -> str:
    """Return the result of a verification, with each damaged extent."""
    name = f"{answer.volume}@{answer.name}"
    damaged = answer.damaged_bytes or answer.headers
    verdict = "DAMAGED" if damaged else "DOUBTFUL" if answer.doubtful else "intact"
    lines = [
        f"{name} is {verdict}: {units.human_size(answer.good_bytes)} good, "
        f"{units.human_size(answer.unverifiable_bytes)} unverifiable, {units.human_size(answer.damaged_bytes)} damaged"
    ]
    if answer.doubtful:
        lines.append(f"it may show a mixture, which no checksum can find: {answer.doubtful}")
    lines += answer.headers
    if answer.damage:
        heads = ("LBA", "BLOCKS", "KEPT IN", "DAMAGE")
        rows = [(str(damage.lba), str(damage.blocks), damage.kept_in, damage.reason) for damage in answer.damage]
        lines.append(table(heads, rows, right={0, 1}))
        listed = sum(damage.length for damage in answer.damage)
        if listed < answer.damaged_bytes:
            lines.append(f"and {units.human_size(answer.damaged_bytes - listed)} more")
        lines.append("all other data of this snapshot is correct; look for the damaged blocks in a backup or an export")
    if answer.outside:
        lines.append(
            f"initiators wrote {units.human_size(answer.outside_bytes)} of it to a write-once LUN: no checksum can say whether "
            "that is what the volume held"
        )
        written = [(str(extent.lba), str(extent.blocks), extent.kept_in) for extent in answer.outside]
        lines.append(table(("LBA", "BLOCKS", "KEPT IN"), written, right={0, 1}))
        listed = sum(extent.length for extent in answer.outside)
        if listed < answer.outside_bytes:
            lines.append(f"and {units.human_size(answer.outside_bytes - listed)} more")
    return "\n".join(lines)


@_printable
def damage(answer: messages.Job) -> str:
    """Return a sentence about the damaged blocks that a job passed on, on request; empty if there are none."""
    if not answer.damaged_bytes:
        return ""
    named = [
        f"{extent.lba}" if extent.blocks == 1 else f"{extent.lba} to {extent.lba + extent.blocks - 1}"
        for extent in answer.damage
    ]
    more = ", and more" if sum(extent.length for extent in answer.damage) < answer.damaged_bytes else ""
    size = units.human_size(answer.damaged_bytes)
    return f"{size} of {answer.subject} are damaged: blocks {', '.join(named[:8])}{', and more' if named[8:] else more}"


@_printable
def conversion(answer: messages.Conversion) -> str:
    """Return what a change of a volume's store did, one snapshot per line."""
    lines = [f"later snapshots of {answer.volume} have a store of kind {answer.store}"]
    for one in answer.snapshots:
        left = f", and is left: {one.reason}" if one.reason else ""
        lines.append(f"{answer.volume}@{one.snapshot} has a store of kind {one.store}{left}")
    return "\n".join(lines)


@_printable
def difference(answer: messages.Difference) -> str:
    """Return the list of changed extents, in bytes."""
    to = "now" if answer.to is None else f"{answer.volume}@{answer.to}"
    size = units.human_size(answer.changed_bytes)
    part = units.human_percent(answer.changed_bytes, answer.size)
    head = f"{size} ({part}) {'differ' if answer.exact else 'may differ'} from {answer.volume}@{answer.since} to {to}"
    if not answer.extents:
        return head
    rows = [(str(extent.offset), str(extent.length)) for extent in answer.extents]
    return f"{head}\n{table(('OFFSET', 'LENGTH'), rows, right={0, 1})}"


def map_cells() -> int:
    """Return the number of cells of a map that fits the terminal."""
    return _map_width() * MAP_ROWS


def _map_width() -> int:
    width = shutil.get_terminal_size((PIPE_WIDTH, 24)).columns
    return max(16, min(width, 200) - 12)  # the addresses on the left, and the frame


@_printable
def change_map(answer: messages.Changes) -> str:
    """Return a map of the volume in order of address: the fuller a cell, the more of it has changed."""
    marks = map_marks()
    cells, width = answer.cells, _map_width()
    size = answer.snapshot.size
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    lines = [
        f"{answer.snapshot.volume}@{answer.snapshot.name}, taken {moment(answer.snapshot.taken)}: "
        f"{units.human_size(answer.changed_bytes)} of {units.human_size(size)} "
        f"({units.human_percent(answer.changed_bytes, size)}) changed since"
    ]
    for start in range(0, len(cells), width):
        row = "".join(_mark(fraction, marks) for fraction in cells[start : start + width])
        row = f"\x1b[33m{row}\x1b[0m" if colour and row.strip() else row
        lines.append(f"{units.human_size(size * start // len(cells)):>9} |{row}|")
    cell = units.human_size(size / len(cells))
    lines.append(
        f"each cell: {cell}; '{marks[0]}' unchanged, '{marks[1]}' changed a little, '{marks[-1]}' changed completely"
    )
    return "\n".join(lines)


def map_marks() -> str:
    """Return the characters for cells, from unchanged to completely changed, in the terminal's character set."""
    return _BLOCKS if _speaks_utf8() else _ASCII


def _mark(fraction: float, marks: str) -> str:
    """Return the character of a cell.  Only 0 is empty and only 1 is full; every other fraction is in between."""
    if fraction <= 0:
        return marks[0]
    if fraction >= 1:
        return marks[-1]
    return marks[1 + min(len(marks) - 3, int(fraction * (len(marks) - 2)))]


@_printable
def volumes(answer: Sequence[messages.Volume]) -> str:
    """Return the table of volumes; empty if there are none."""
    return _volumes(answer) if answer else ""


def _store(answer: messages.Volume) -> str:
    """Return the store of later snapshots, and how many existing ones have another one."""
    others = [f"{count} of {kind}" for kind, count in sorted(answer.stores.items()) if kind != answer.store]
    return f"{answer.store}; snapshots with another one: {', '.join(others)}" if others else answer.store


@_printable
def volume(answer: messages.Volume) -> str:
    """Return the details of a volume, one per line."""
    lines = [
        ("volume", answer.name),
        ("state", answer.state + (f": {answer.trouble}" if answer.trouble else "")),
        *([("doubtful", answer.doubtful)] if answer.doubtful else []),
        *([("restoring", answer.restoring)] if answer.restoring else []),
        ("LUN", _lun(answer.lun)),
        ("size", units.human_size(answer.size)),
        ("used on disk", units.human_size(answer.primary_used_bytes)),
        ("block size", f"{answer.block_size} bytes"),
        ("chunk size", units.exact_size(answer.chunk_size)),
        ("store", _store(answer)),
        ("durability", answer.durability),
        ("primary", answer.primary),
        ("snapshots", f"{answer.snapshots}, {units.human_size(answer.snapshot_bytes)} used"),
        ("on error", answer.on_error),
        ("write-once", answer.map_write_once),
        *([("rate", _rate(answer))] if answer.rate else []),
        *([] if answer.replica is None else _replica(answer.replica)),
    ]
    return "\n".join(f"{name:13} {value}" for name, value in lines)


def _replica(replica: messages.Replica) -> list[tuple[str, str]]:
    """Return the lines about a volume that received a stream."""
    lines = [("replica", f"of {replica.source}" if replica.replica else f"no longer, it was one of {replica.source}")]
    if replica.resume:
        lines += [
            ("receiving", f"{replica.receiving}, interrupted"),
            ("go on with", f"wolun send --resume {replica.resume}"),
        ]
    return lines


def _rate(answer: messages.Volume) -> str:
    """Return the limit of a volume, and how much it held up."""
    rate = answer.rate
    assert rate is not None
    parts = [f"{rate.iops} commands/s"] if rate.iops else []
    parts += [f"{units.human_size(rate.bandwidth)}/s"] if rate.bandwidth else []
    waited = f"{answer.limited_commands} commands waited {units.human_seconds(answer.limited_seconds)}"
    return f"{', '.join(parts)}, bursts of {rate.burst:g} s; {waited}"


def _volumes(answer: Sequence[messages.Volume]) -> str:
    return table(
        ("VOLUME", "LUN", "STATE", "SIZE", "USED", "SNAPSHOTS", "THEY USE", "READ/S", "WRITTEN/S", "COMMANDS/S"),
        [
            (
                volume.name,
                _lun(volume.lun),
                f"{volume.state}, doubtful" if volume.doubtful else volume.state,
                units.human_size(volume.size),
                units.human_size(volume.primary_used_bytes),
                str(volume.snapshots),
                units.human_size(volume.snapshot_bytes),
                units.human_size(volume.read_bytes_per_second),
                units.human_size(volume.written_bytes_per_second),
                f"{volume.commands_per_second:.0f}",
            )
            for volume in answer
        ],
        right={1, 3, 4, 5, 6, 7, 8, 9},
    )


@_printable
def status(answer: messages.Status) -> str:
    """Return the state of the daemon: volumes, sessions, jobs and alerts."""
    parts = [
        f"wolun {answer.version}, process {answer.pid}, up {_since(answer.started)}\n"
        f"target {answer.target} on {', '.join(answer.portals) or answer.portal} ({answer.fabric})\n"
        f"state in {answer.state_dir}: {units.human_size(answer.space_free_bytes)} of "
        f"{units.human_size(answer.space_total_bytes)} free",
        _volumes(answer.volumes),
    ]
    if shared := _sharing(answer.volumes):
        parts.append(shared)
    parts += map(_pool, answer.pools)
    if answer.clones:
        parts.append(clones(answer.clones))
    if answer.schedules:
        parts.append(_schedules(answer.schedules))
    parts += map(_replication, answer.replications)
    if answer.sessions:
        parts.append(
            table(
                ("INITIATOR", "ADDRESS", "SINCE", "READ", "WRITTEN", "COMMANDS"),
                [
                    (
                        session.initiator + ("" if session.target else " (discovery)"),
                        session.address,
                        "-" if session.since is None else moment(session.since),
                        "-" if session.bytes_read is None else units.human_size(session.bytes_read),
                        "-" if session.bytes_written is None else units.human_size(session.bytes_written),
                        "-" if session.commands is None else str(session.commands),
                    )
                    for session in answer.sessions
                ],
                right={3, 4, 5},
            )
        )
    else:
        parts.append("no initiator is logged in")
    parts += [
        f"job {job.id}: {job.kind} {job.subject}, {units.human_percent(job.done, job.total)}" for job in answer.jobs
    ]
    parts.append("\n".join(map(alert, answer.alerts)) if answer.alerts else "no trouble")
    return "\n\n".join(parts)


@_printable
def schedules(answer: Sequence[messages.Schedule]) -> str:
    """Return the table of what happens by itself."""
    return _schedules(answer) if answer else "no schedules"


def _schedules(answer: Sequence[messages.Schedule]) -> str:
    rows = [
        (
            f"{schedule.kind} of {schedule.subject}" if schedule.kind != "group" else f"group {schedule.subject}",
            schedule.when,
            "-" if schedule.last is None else moment(schedule.last),
            "never" if schedule.next_there is None else _there(schedule.next_there, schedule.zone),
            "TROUBLE" if schedule.trouble else "ok",
        )
        for schedule in answer
    ]
    return table(("SCHEDULE", "WHEN", "LAST", "NEXT", "STATE"), rows, right=set())


def _there(stamp: str, zone: str) -> str:
    """Return a moment in the time zone of its schedule."""
    return f"{datetime.datetime.fromisoformat(stamp):%Y-%m-%d %H:%M:%S} {zone}"


def _replication(one: messages.Replication) -> str:
    """Return one line about a replication."""
    has = f"has {one.arrived}, {units.human_seconds(one.lag_seconds)} old" if one.arrived else "has no snapshot yet"
    coming = f"; {one.pending} is on its way" if one.pending else ""
    trouble = f"; {one.trouble}" if one.trouble else ""
    return f"replication of {one.volume} to {one.name}, {one.schedule}: {one.state}; it {has}{coming}{trouble}"


def _pool(pool: messages.Pool) -> str:
    """Return the log and the write-once LUNs of a pool."""
    records = "1 record" if pool.records == 1 else f"{pool.records} records"
    head = f"pool of {pool.volume}, volume {pool.identity or '-'}: log at LUN {_lun(pool.log_lun)} with {records}"
    rows = [
        (str(lun.lun), lun.state, lun.snapshot or "-", lun.identity, units.human_size(lun.used_bytes))
        for lun in pool.luns
    ]
    return f"{head}\n" + table(("LUN", "STATE", "SNAPSHOT", "IDENTITY", "USED"), rows, right={0, 4})


@_printable
def nodes(answer: Sequence[messages.Node]) -> str:
    """Return the table of the nodes of a shared volume."""
    if not answer:
        return "no nodes"
    rows = [
        (
            f"{node.name} (this)" if node.this else node.name,
            "expelled" if node.expelled else {True: "registered", False: "out", None: "-"}[node.registered],
            "-" if node.epoch is None else str(node.epoch),
            "-" if node.last_seen is None else moment(node.last_seen),
            node.initiator or "-",
        )
        for node in answer
    ]
    return table(("NODE", "STATE", "EPOCH", "LAST SEEN", "INITIATOR"), rows, right={2})


def _sharing(answer: Sequence[messages.Volume]) -> str:
    """Return the table of the part that this node has in shared volumes."""
    rows = []
    for volume in answer:
        sharing = volume.sharing
        if sharing is None:
            continue
        pending = sharing.fence_pending_seconds
        rows.append(
            (
                volume.name,
                sharing.node,
                sharing.state + (f": {sharing.problem}" if sharing.problem else ""),
                "-" if sharing.epoch is None else str(sharing.epoch),
                "no" if pending is None else f"for {units.human_seconds(pending)}",
                "-" if sharing.pool is None else str(sharing.pool),
                f"{sharing.futile_copies} of {sharing.copies + sharing.futile_copies}",
                sharing.exchange,
            )
        )
    if not rows:
        return ""
    heads = ("SHARED", "NODE", "STATE", "EPOCH", "FENCE PENDING", "POOL", "FUTILE COPIES", "EXCHANGE")
    return table(heads, rows, right={3, 5})


@_printable
def reservations(answer: Sequence[messages.UnitReservations]) -> str:
    """Return the table of registrations, and who holds the reservations."""
    rows = [
        (
            unit.unit,
            str(unit.lun),
            registration.initiator,
            registration.isid,
            registration.key,
            (unit.type or "") if registration.holds else "-",
            "yes" if registration.logged_in else "no",
        )
        for unit in answer
        for registration in unit.registrations
    ]
    rows += [
        (unit.unit, str(unit.lun), unit.reserved_by, "-", "-", "reserve", "yes") for unit in answer if unit.reserved_by
    ]
    if not rows:
        return "no reservations"
    return table(("UNIT", "LUN", "INITIATOR", "ISID", "KEY", "HOLDS", "LOGGED IN"), rows, right={1})


@_printable
def cleared(answer: messages.UnitReservations) -> str:
    """Return the text for a unit whose reservations were cleared."""
    left = sorted({registration.initiator for registration in answer.registrations})
    return f"{answer.unit} has no reservation of the cleared initiators" + (
        f"; still registered: {', '.join(left)}" if left else "; no initiator is registered"
    )


@_printable
def alert(answer: messages.Alert) -> str:
    """Return the text of an alert, and the command that explains it."""
    return f"TROUBLE: {answer.message}\n  {answer.remedy}; `wolun explain {answer.code}` explains it"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: set[int]) -> str:
    """Return aligned columns; the columns in `right` hold numbers and are right-aligned."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if index in right else text.ljust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (heads, *rows)
    )


def moment(stamp: str) -> str:
    """Return a timestamp of the daemon in the local time zone, to the second, with the zone."""
    return datetime.datetime.fromisoformat(stamp).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def _since(stamp: str) -> str:
    passed = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(stamp)
    return units.human_seconds(max(1.0, passed.total_seconds()))


def _kept(snapshot: messages.Snapshot) -> str:
    if snapshot.hold:
        return "held"
    return "" if snapshot.expires is None else f"until {moment(snapshot.expires)}"


def _lun(number: int | None) -> str:
    return "-" if number is None else str(number)


def _speaks_utf8() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


@contextlib.contextmanager
def progress(title: str, *, enabled: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error, if that is a terminal.  Yield a function of (bytes done, bytes in total)."""
    if not enabled or not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich import console, progress

    with progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=console.Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(printable.line(title), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)
