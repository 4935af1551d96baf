# SPDX-License-Identifier: Apache-2.0
"""/volumes/NAME/snapshots and a snapshot."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from target import messages, show, units
from target.shell import console
from target.shell.node import Node, files, flag


class Snapshots(Node):
    """/volumes/NAME/snapshots."""

    def __init__(self, parent: Node) -> None:
        super().__init__("snapshots", parent)

    @property
    def volume(self) -> str:
        """Whose they are."""
        return str(self.parent.name)

    def of_volume(self) -> list[messages.Snapshot]:
        """The volume's snapshots."""
        if self.facts.has("snapshots"):
            return [each for each in self.snapshots() if each.volume == self.volume]
        return self.facts.get(f"snapshots of {self.volume}", lambda: self.asked.snapshots(self.volume))

    def list_children(self) -> None:
        if self.facts.has("volumes") and self.parent.told().state != "online":
            return
        if self.facts.has("volumes"):
            self.snapshots()  # the whole tree is being looked at: one question for all volumes
        for each in self.of_volume():
            Snapshot(each.name, self)

    def summary(self) -> tuple[str, bool | None]:
        """For ls."""
        found = [child.told() for child in self.children]
        used = units.human_size(sum(each.used_bytes for each in found))
        bad = sum(each.state == "invalid" for each in found)
        return f"{len(found)}, {used} used" + (f", {bad} invalid" if bad else ""), False if bad else None

    def ui_command_create(self, name: str) -> None:
        """Takes a snapshot, in milliseconds; two LUNs appear, one that shows the volume as it is now, and the write-once LUN.

        name  what to call it
        """
        if not self.only_checks(f"took {self.volume}@{name}"):
            console.say(show.taken(self.asked.create_snapshot(self.volume, name)))

    def ui_command_delete(self, name: str) -> None:
        """Deletes a snapshot and frees its space.

        name  which snapshot
        """
        self.asked.snapshot(self.volume, name)
        if not self.only_checks(f"deleted {self.volume}@{name}"):
            self.follow(self.asked.delete_snapshot(self.volume, name), "deleting")
            console.say(f"deleted {self.volume}@{name}")

    def ui_command_export(self, name: str, file: str, force: str = "false") -> None:
        """Writes the volume as it was at that moment into a file, as a raw sparse image; writes to the volume go on.

        name   which snapshot
        file   the file to write
        force  true: replace the file if it exists
        """
        self.asked.snapshot(self.volume, name)
        if self.only_checks(f"exported {self.volume}@{name} to {file}"):
            return
        path = Path(os.path.abspath(file))  # noqa: PTH100 - resolving links would write through one that stands there
        job = self.asked.export(self.volume, name, path, overwrite=flag(force, "force"))
        self.follow(job, "exporting")
        console.say(f"{self.volume}@{name} is in {file}")

    def ui_command_show(self, name: str, map: str = "false") -> None:  # noqa: A002 - the parameter's name in the shell
        """Shows a snapshot in detail.

        name  which snapshot
        map   true: picture which parts of the volume have changed since
        """
        if flag(map, "map"):
            console.say(show.change_map(self.asked.changes(self.volume, name, show.map_cells())))
        else:
            console.say(show.snapshot(self.asked.snapshot(self.volume, name)))

    def ui_command_diff(self, name: str, to: str | None = None, exact: str = "false") -> None:
        """Tells what changed since a snapshot, extent by extent: what an incremental backup has to read.

        name   which snapshot
        to     up to this newer snapshot; left out, up to now
        exact  true: compare the content, and leave out what is the same after all
        """
        job = self.asked.diff(self.volume, name, messages.FindChanges(to, flag(exact, "exact")))
        self.follow(job, "comparing")
        console.say(show.difference(self.asked.result(messages.Difference, job)))

    def ui_command_restore(self, name: str, force: str = "false") -> None:
        """Rolls the volume back to that moment.  It is there at once; its data is brought there in the background, which
        Ctrl-C does not end.  All snapshots stay as they are; the volume as it is now is gone.

        name   which snapshot
        force  true: even if initiators reach the volume
        """
        self.asked.snapshot(self.volume, name)
        if self.only_checks(f"restored {self.volume}@{name}"):
            return
        job = self.asked.restore_snapshot(self.volume, name, force=flag(force, "force"))
        try:
            self.follow(job, "restoring", cancel=False)
        except KeyboardInterrupt:
            console.say(f"restoring {self.volume}@{name} goes on: see /jobs")
        else:
            console.say(f"{self.volume} is as it was at {self.volume}@{name}")

    def ui_command_verify(self, name: str) -> None:
        """Reads all that a snapshot needs, and compares it with its checksums.

        name  which snapshot
        """
        job = self.asked.verify(self.volume, name)
        self.follow(job, "verifying")
        found = self.asked.result(messages.Verification, job)
        console.say(show.verification(found))
        if not found.sound:
            raise console.Refused(f"{self.volume}@{name} is damaged", "restore it from a backup, or delete it")

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """For completion."""
        if parameter in ("name", "to") and command != "create":
            return [each.name for each in self.of_volume()]
        return files(given.get("file", "")) if parameter == "file" else None


class Snapshot(Node):
    """/volumes/NAME/snapshots/NAME."""

    def told(self) -> messages.Snapshot:
        """What the daemon says of it."""
        for each in self.parent.of_volume():
            if each.name == self.name:
                found: messages.Snapshot = each
                return found
        raise console.Refused(f"{self.parent.volume}@{self.name} is gone")

    def summary(self) -> tuple[str, bool | None]:
        """For ls."""
        each = self.told()
        luns = "" if each.view_lun is None else f"LUNs {each.view_lun} and {each.write_once_lun}, "
        return f"{luns}{units.human_size(each.used_bytes)} used, {each.state}", each.state == "active"

    def ui_command_show(self, map: str = "false") -> None:  # noqa: A002 - the parameter's name in the shell
        """Shows the snapshot in detail.

        map  true: picture which parts of the volume have changed since
        """
        self.parent.ui_command_show(self.name, map)

    def ui_command_diff(self, to: str | None = None, exact: str = "false") -> None:
        """Tells what changed since, extent by extent.

        to     up to this newer snapshot; left out, up to now
        exact  true: compare the content, and leave out what is the same after all
        """
        self.parent.ui_command_diff(self.name, to, exact)

    def ui_command_restore(self, force: str = "false") -> None:
        """Rolls the volume back to this moment; what it is now is gone.

        force  true: even if initiators reach the volume
        """
        self.parent.ui_command_restore(self.name, force)

    def ui_command_verify(self) -> None:
        """Reads all that the snapshot needs, and compares it with its checksums."""
        self.parent.ui_command_verify(self.name)

    def ui_command_export(self, file: str, force: str = "false") -> None:
        """Writes the volume as it was at that moment into a file, as a raw sparse image.

        file   the file to write
        force  true: replace the file if it exists
        """
        self.parent.ui_command_export(self.name, file, force)

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """For completion."""
        return files(given.get("file", "")) if parameter == "file" else None
