# SPDX-License-Identifier: Apache-2.0
"""/volumes/NAME/snapshots and the nodes of snapshots."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable
from pathlib import Path

from target import messages, show, units
from target import when as when_
from target.shell import console
from target.shell.node import Node, files, flag


class Snapshots(Node):
    """The node /volumes/NAME/snapshots."""

    def __init__(self, parent: Node) -> None:
        super().__init__("snapshots", parent)

    @property
    def volume(self) -> str:
        """Return the name of their volume."""
        return str(self.parent.name)

    def of_volume(self) -> list[messages.Snapshot]:
        """Return the volume's snapshots."""
        if self.facts.has("snapshots"):
            return [snapshot for snapshot in self.snapshots() if snapshot.volume == self.volume]
        return self.facts.get(f"snapshots of {self.volume}", lambda: self.asked.snapshots(self.volume))

    def list_children(self) -> None:
        if self.facts.has("volumes") and self.parent.message().state != "online":
            return
        if self.facts.has("volumes"):
            self.snapshots()  # `ls` shows the whole tree: one request serves all volumes
        for snapshot in self.of_volume():
            Snapshot(snapshot.name, self)

    def summary(self) -> tuple[str, bool | None]:
        """Return the text and the health for `ls`."""
        snapshots = [child.message() for child in self.children]
        used = units.human_size(sum(snapshot.used_bytes for snapshot in snapshots))
        counted = {state: sum(snapshot.state == state for snapshot in snapshots) for state in ("invalid", "doubtful")}
        bad = "".join(f", {count} {state}" for state, count in counted.items() if count)
        return f"{len(snapshots)}, {used} used{bad}", False if bad else None

    def ui_command_create(self, name: str) -> None:
        """Take a snapshot, in milliseconds.  A LUN appears: the view of the volume as it is now.

        name  the snapshot's name
        """
        if not self.only_checks(f"took {self.volume}@{name}"):
            console.say(show.taken(self.asked.create_snapshot(self.volume, name)))

    def ui_command_delete(self, name: str, damaged: str = "false", force: str = "false") -> None:
        """Delete a snapshot and free its space.  Damaged blocks that older snapshots need stay damaged there.

        name     the snapshot
        damaged  true: let the older snapshot lose blocks that cannot be read
        force    true: delete it even if an initiator reads it
        """
        self.asked.snapshot(self.volume, name)
        accepted = flag(damaged, "damaged")
        if not self.only_checks(f"deleted {self.volume}@{name}"):
            deletion = self.asked.delete_snapshot(self.volume, name, damaged=accepted, force=flag(force, "force"))
            self.follow(deletion, "deleting")
            console.say(f"deleted {self.volume}@{name}")

    def ui_command_export(self, name: str, file: str, force: str = "false", damaged: str = "false") -> None:
        """Write the content of a snapshot to an image file.  Writes to the volume continue meanwhile.

        name     the snapshot
        file     the file to write; its ending says the format: .img (raw), .img.zst, .qcow2, .vhd, .vhdx, .vmdk
        force    true: overwrite the file if it exists
        damaged  true: export damaged blocks as they are, and unreadable ones as zeroes
        """
        self.asked.snapshot(self.volume, name)
        accepted = flag(damaged, "damaged")
        if file == "-":
            raise console.Refused(
                "the shell writes no image to its terminal",
                f"use `wolun snapshot export {self.volume}@{name} - > FILE`",
            )
        if self.only_checks(f"exported {self.volume}@{name} to {file}"):
            return
        path = Path(os.path.abspath(file))  # noqa: PTH100 - resolving links would write through one that stands there
        kind = "raw" if path.is_fifo() else messages.image_format(path)
        if kind is None:
            raise console.Refused(
                f"the name {path.name} does not say the format",
                "end it in .img, .img.zst, .qcow2, .vhd, .vhdx or .vmdk",
            )
        job = self.asked.export(
            self.volume,
            name,
            path,
            overwrite=flag(force, "force"),
            image_format=kind,
            damaged=accepted,
            compress=path.suffix == messages.COMPRESSED,
            held=True,
        )
        self.follow(job, "exporting", held=True)
        console.say(f"{self.volume}@{name} is in {file}")

    def ui_command_show(self, name: str, map: str = "false") -> None:  # noqa: A002 - the parameter's name in the shell
        """Show a snapshot in detail.

        name  the snapshot
        map   true: draw a map of the parts of the volume that have changed since
        """
        if flag(map, "map"):
            console.say(show.change_map(self.asked.changes(self.volume, name, show.map_cells())), coloured=True)
        else:
            console.say(show.snapshot(self.asked.snapshot(self.volume, name)))

    def ui_command_diff(self, name: str, to: str | None = None, exact: str = "false", damaged: str = "false") -> None:
        """List the extents that changed since a snapshot: the extents that an incremental backup reads.

        name     the snapshot
        to       a newer snapshot: list the changes up to it; default: up to now
        exact    true: compare the content, and omit chunks with equal content
        damaged  true: with exact, count damaged blocks as changed; false: refuse
        """
        request = messages.FindChanges(to, flag(exact, "exact"), flag(damaged, "damaged"))
        job = self.asked.diff(self.volume, name, request, held=True)
        self.follow(job, "comparing", held=True)
        console.say(show.difference(self.asked.result(messages.Difference, job)))

    def ui_command_restore(
        self, name: str, force: str = "false", damaged: str = "false", outside: str = "false"
    ) -> None:
        """Roll the volume back to the moment of a snapshot.

        The volume has its old content at once, and wolun copies the data in the background; Ctrl-C does not stop that.
        All snapshots stay as they are.  The volume's current content is lost unless a snapshot has it.

        name     the snapshot
        force    true: roll back even if initiators can access the volume
        damaged  true: let the volume have damaged blocks as they are, and unreadable ones as zeroes
        outside  true: roll back even if initiators wrote to the snapshot's write-once LUN
        """
        self.asked.snapshot(self.volume, name)
        accepted = flag(damaged, "damaged")
        if self.only_checks(f"restored {self.volume}@{name}"):
            return
        job = self.asked.restore_snapshot(
            self.volume, name, force=flag(force, "force"), damaged=accepted, outside=flag(outside, "outside")
        )
        try:
            self.follow(job, "restoring", cancel=False)
        except KeyboardInterrupt:
            console.say(f"restoring {self.volume}@{name} continues in the background: see /jobs")
        else:
            console.say(f"{self.volume} is rolled back to {self.volume}@{name}")

    def ui_command_verify(self, name: str) -> None:
        """Read all data that a snapshot needs, and compare it with its checksums.

        name  the snapshot
        """
        job = self.asked.verify(self.volume, name, held=True)
        self.follow(job, "verifying", held=True)
        verification = self.asked.result(messages.Verification, job)
        console.say(show.verification(verification))
        if not verification.sound:
            raise console.Refused(f"{self.volume}@{name} is damaged", "restore it from a backup, or delete it")

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """Return the possible values for completion."""
        if parameter in ("name", "to") and command != "create":
            return [snapshot.name for snapshot in self.of_volume()]
        return files(given.get("file", "")) if parameter == "file" else None


class Snapshot(Node):
    """The node /volumes/NAME/snapshots/NAME."""

    def message(self) -> messages.Snapshot:
        """Return the daemon's message about this snapshot."""
        snapshot: messages.Snapshot
        for snapshot in self.parent.of_volume():
            if snapshot.name == self.name:
                return snapshot
        raise console.Refused(f"{self.parent.volume}@{self.name} no longer exists")

    def summary(self) -> tuple[str, bool | None]:
        """Return the text and the health for `ls`."""
        snapshot = self.message()
        luns = "" if snapshot.view_lun is None else f"LUN {snapshot.view_lun}, "
        if snapshot.write_once_lun is not None:
            luns = f"LUNs {snapshot.view_lun} and {snapshot.write_once_lun}, "
        return f"{luns}{units.human_size(snapshot.used_bytes)} used, {snapshot.state}", snapshot.state == "active"

    def ui_command_show(self, map: str = "false") -> None:  # noqa: A002 - the parameter's name in the shell
        """Show the snapshot in detail.

        map  true: draw a map of the parts of the volume that have changed since
        """
        self.parent.ui_command_show(self.name, map)

    def ui_command_diff(self, to: str | None = None, exact: str = "false", damaged: str = "false") -> None:
        """List the extents that changed since the snapshot.

        to       a newer snapshot: list the changes up to it; default: up to now
        exact    true: compare the content, and omit chunks with equal content
        damaged  true: with exact, count damaged blocks as changed; false: refuse
        """
        self.parent.ui_command_diff(self.name, to, exact, damaged)

    def ui_command_restore(self, force: str = "false", damaged: str = "false", outside: str = "false") -> None:
        """Roll the volume back to the moment of this snapshot.  The volume's current content is lost.

        force    true: roll back even if initiators can access the volume
        damaged  true: let the volume have damaged blocks as they are, and unreadable ones as zeroes
        outside  true: roll back even if initiators wrote to the snapshot's write-once LUN
        """
        self.parent.ui_command_restore(self.name, force, damaged, outside)

    def ui_command_hold(self, reason: str = "held by hand") -> None:
        """Let nobody delete the snapshot: no command, no schedule, and no policy that makes room.

        reason  why, for those who want to delete it
        """
        self._change(messages.ChangeSnapshot(hold=reason), f"held {self.parent.volume}@{self.name}")

    def ui_command_release(self) -> None:
        """End the hold of the snapshot."""
        self._change(messages.ChangeSnapshot(hold=""), f"released {self.parent.volume}@{self.name}")

    def ui_command_expire(self, when: str) -> None:
        """Delete the snapshot at a moment, unless it is held then.

        when  12h, 30d, 8w, 2026-12-24, 2026-12-24T18:00, or never
        """
        try:
            moment = when_.parse(when, datetime.datetime.now(datetime.UTC))
        except ValueError as error:
            raise console.Refused(str(error)) from error
        text = "" if moment is None else moment.isoformat()
        then = "never expires" if moment is None else f"expires at {show.moment(text)}"
        self._change(messages.ChangeSnapshot(expires=text), f"{self.parent.volume}@{self.name} {then}")

    def ui_command_rename(self, name: str) -> None:
        """Give the snapshot another name.  Its LUNs and its content stay as they are.

        name  the new name
        """
        old, new = f"{self.parent.volume}@{self.name}", f"{self.parent.volume}@{name}"
        self._change(messages.ChangeSnapshot(name=name), f"{old} is now {new}")

    def _change(self, request: messages.ChangeSnapshot, done: str) -> None:
        self.message()
        if not self.only_checks(done):
            self.asked.change_snapshot(self.parent.volume, self.name, request)
            console.say(done)

    def ui_command_verify(self) -> None:
        """Read all data that the snapshot needs, and compare it with its checksums."""
        self.parent.ui_command_verify(self.name)

    def ui_command_export(self, file: str, force: str = "false", damaged: str = "false") -> None:
        """Write the content of the snapshot to a file, as a raw sparse image.

        file     the file to write
        force    true: overwrite the file if it exists
        damaged  true: export damaged blocks as they are, and unreadable ones as zeroes
        """
        self.parent.ui_command_export(self.name, file, force, damaged)

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """Return the possible values for completion."""
        return files(given.get("file", "")) if parameter == "file" else None
