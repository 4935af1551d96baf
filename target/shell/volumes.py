# SPDX-License-Identifier: Apache-2.0
"""/volumes, a volume, its snapshots."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from target import client, messages, show, units
from target.shell import console
from target.shell.node import Node, files, flag, number, table

DURABILITIES = ("power-loss", "process-crash")
POLICIES = ("fail-writes", "drop-snapshot")
SIZES = ("1GiB", "10GiB", "100GiB", "1TiB")


class Volumes(Node):
    """/volumes."""

    def __init__(self, parent: Node) -> None:
        super().__init__("volumes", parent)

    def list_children(self) -> None:
        for each in self.volumes():
            Volume(each.name, self)

    def get_child(self, name: str) -> Node:
        """One volume; asked for by itself, so that a script's time does not grow with the square of its lines."""
        if self.facts.has("volumes"):
            found: Node = super().get_child(name)
            return found
        try:
            self.facts.get(f"volume {name}", lambda: self.asked.volume(name))
        except client.Failed as failed:
            if failed.refusal.error == "no-such-volume":
                raise ValueError(f"{failed.refusal.message}; {failed.refusal.remedy}") from None
            raise
        self._listed, self._kids = self.shell.generation, set()
        child = Volume(name, self)
        self._listed = -1  # whoever looks at all of them gets all of them
        return child

    def summary(self) -> tuple[str, bool | None]:
        """For ls."""
        found = self.volumes()
        size = sum(each.size for each in found)
        broken = sum(each.state != "online" for each in found)
        text = (
            f"{len(found)} volumes, {units.human_size(size)}"
            if len(found) != 1
            else f"1 volume, {units.human_size(size)}"
        )
        return (f"{text}, {broken} not served" if broken else text), not broken

    def ui_command_create(
        self,
        name: str,
        size: str | None = None,
        lun: str | None = None,
        primary: str | None = None,
        block_size: str = "512",
        chunk_size: str = "64KiB",
        durability: str = "power-loss",
        limit: str | None = None,
        on_error: str = "fail-writes",
    ) -> None:
        """
        Makes a volume and serves it at once.  A volume that was deleted without its data is taken up again.

        name        what to call it; snapshots are kept under this name
        size        how large, like 10GiB; an existing file, device or volume keeps its size
        lun         the LUN initiators see it under; left out, the lowest one that is free
        primary     the file or block device that holds the live data; left out, a sparse file in the state directory
        block_size  bytes per logical block, 512 or 4096
        chunk_size  the unit of copy-on-write, a power of two from 4KiB to 1MiB
        durability  power-loss: snapshots are right whatever happens; process-crash: faster, perhaps wrong after a power cut
        limit       how much old data the snapshots may keep, all together; left out, as much as there is room for
        on_error    when old data cannot be kept: fail-writes, or drop-snapshot, which lets them go on
        """
        wanted = messages.CreateVolume(
            name=name,
            size=size,
            lun=number(lun, "lun"),
            primary=None if primary is None else os.path.abspath(primary),  # noqa: PTH100 - links stay as given
            block_size=number(block_size, "block_size") or 0,
            chunk_size=chunk_size,
            durability=durability,
            limit=limit,
            on_error=on_error,
        )
        self.asked.create_volume(wanted)
        self.done(f"created volume {name}")

    def ui_command_delete(self, name: str, data: str = "false", force: str = "false") -> None:
        """
        Serves a volume no more.  Refused while somebody uses it.

        name   which volume
        data   true: remove its files in the state directory, snapshots included; false: keep them
        force  true: even if it is in use; mappings of it to initiators go, too
        """
        self.asked.delete_volume(name, force=flag(force, "force"), data=flag(data, "data"))
        self.done(f"deleted volume {name}{' and its data' if flag(data, 'data') else '; its data is kept'}")

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """For completion."""
        return {
            ("delete", "name"): lambda: [each.name for each in self.volumes()],
            ("create", "durability"): lambda: DURABILITIES,
            ("create", "on_error"): lambda: POLICIES,
            ("create", "block_size"): lambda: ("512", "4096"),
            ("create", "chunk_size"): lambda: ("4KiB", "16KiB", "64KiB", "256KiB", "1MiB"),
            ("create", "size"): lambda: SIZES,
            ("create", "primary"): lambda: files(given.get("primary", "")),
        }.get((command, parameter), lambda: None)()


class Volume(Node):
    """/volumes/NAME."""

    def __init__(self, name: str, parent: Volumes) -> None:
        super().__init__(name, parent)
        for attribute, writable, what in (
            ("lun", True, "The LUN initiators see it under; changing it takes the volume away for a moment."),
            ("durability", True, "power-loss or process-crash; changing it takes the volume away for a moment."),
            (
                "limit",
                True,
                "How much old data its snapshots may keep; changing it takes the volume away for a moment.",
            ),
            ("on_error", True, "fail-writes or drop-snapshot; changing it takes the volume away for a moment."),
            ("size", False, "How large it is."),
            ("block_size", False, "Bytes per logical block."),
            ("chunk_size", False, "The unit of copy-on-write."),
            ("primary", False, "The file or device that holds the live data."),
        ):
            self.define_config_group_param("attribute", attribute, "string", what, writable)

    def told(self) -> messages.Volume:
        """What the daemon says of it."""
        if self.facts.has("volumes"):
            for each in self.volumes():
                if each.name == self.name:
                    return each
        return self.facts.get(f"volume {self.name}", lambda: self.asked.volume(self.name))

    def list_children(self) -> None:
        Snapshots(self)

    def summary(self) -> tuple[str, bool | None]:
        """For ls."""
        each = self.told()
        if each.state != "online":
            return f"LUN {each.lun}, not served: {each.trouble}", False
        used = each.primary_used_bytes
        return f"LUN {each.lun}, {units.human_size(each.size)}, {units.human_size(used)} used", True

    def ui_getgroup_attribute(self, attribute: str) -> str:
        """For `get attribute`."""
        each = self.told()
        if attribute == "limit":
            return "none" if each.preserved_limit is None else units.exact_size(each.preserved_limit)
        value = getattr(each, attribute)
        return units.exact_size(value) if attribute in ("size", "chunk_size") else str(value)

    def ui_setgroup_attribute(self, attribute: str, value: str) -> None:
        """For `set attribute`."""
        self.facts.forget()  # several may be set on one line
        request = messages.ChangeVolume(**{attribute: number(value, "lun") if attribute == "lun" else value})  # type: ignore[arg-type]  # one or the other
        self.asked.change_volume(self.name, request, force=False)

    def ui_command_info(self) -> None:
        """
        Shows everything known about the volume.
        """
        each = self.told()
        console.say(
            table(
                [
                    ("volume", each.name),
                    ("state", each.state + (f": {each.trouble}" if each.trouble else "")),
                    ("LUN", each.lun),
                    ("size", units.human_size(each.size)),
                    ("used on disk", units.human_size(each.primary_used_bytes)),
                    ("block size", f"{each.block_size} bytes"),
                    ("chunk size", units.exact_size(each.chunk_size)),
                    ("durability", each.durability),
                    ("primary", each.primary),
                    ("snapshots", f"{each.snapshots}, {units.human_size(each.snapshot_bytes)} used"),
                ]
            )
        )

    def ui_command_resize(self, size: str) -> None:
        """
        Makes the volume larger while it is used.  Its snapshots keep the size they were taken with.

        size  how large, like 20GiB; it cannot shrink
        """
        try:
            wanted = units.parse_size(size)
        except ValueError as error:
            raise console.Refused(str(error)) from None
        if not self.only_checks(f"resized {self.name} to {units.exact_size(wanted)}"):
            console.say(show.resized(self.asked.resize_volume(self.name, wanted)))

    def ui_command_export(self, file: str | None = None) -> None:
        """
        Shows the volume as it would stand in a configuration file.

        file  write it into this file instead
        """
        export(self.asked.text_of_volume(self.name), file)

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """For completion."""
        if parameter == "size":
            return [units.exact_size(2 * self.told().size)]
        return files(given.get("file", "")) if parameter == "file" else None


class Snapshots(Node):
    """/volumes/NAME/snapshots."""

    def __init__(self, parent: Volume) -> None:
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
        """
        Takes a snapshot, in milliseconds; two LUNs appear, one that shows the volume as it is now, and the write-once LUN.

        name  what to call it
        """
        if not self.only_checks(f"took {self.volume}@{name}"):
            console.say(show.taken(self.asked.create_snapshot(self.volume, name)))

    def ui_command_delete(self, name: str) -> None:
        """
        Deletes a snapshot and frees its space.

        name  which snapshot
        """
        self.asked.snapshot(self.volume, name)
        if not self.only_checks(f"deleted {self.volume}@{name}"):
            self.follow(self.asked.delete_snapshot(self.volume, name), "deleting")
            console.say(f"deleted {self.volume}@{name}")

    def ui_command_export(self, name: str, file: str, force: str = "false") -> None:
        """
        Writes the volume as it was at that moment into a file, as a raw sparse image; writes to the volume go on.

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
        """
        Shows a snapshot in detail.

        name  which snapshot
        map   true: picture which parts of the volume have changed since
        """
        if flag(map, "map"):
            console.say(show.change_map(self.asked.changes(self.volume, name, show.map_cells())))
        else:
            console.say(show.snapshot(self.asked.snapshot(self.volume, name)))

    def ui_command_diff(self, name: str, to: str | None = None, exact: str = "false") -> None:
        """
        Tells what changed since a snapshot, extent by extent: what an incremental backup has to read.

        name   which snapshot
        to     up to this newer snapshot; left out, up to now
        exact  true: compare the content, and leave out what is the same after all
        """
        job = self.asked.diff(self.volume, name, messages.FindChanges(to, flag(exact, "exact")))
        self.follow(job, "comparing")
        console.say(show.difference(self.asked.result(messages.Difference, job)))

    def ui_command_restore(self, name: str, force: str = "false") -> None:
        """
        Rolls the volume back to that moment.  It is there at once; its data is brought there in the background, which
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
        """
        Reads all that a snapshot needs, and compares it with its checksums.

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
        """
        Shows the snapshot in detail.

        map  true: picture which parts of the volume have changed since
        """
        self.parent.ui_command_show(self.name, map)

    def ui_command_diff(self, to: str | None = None, exact: str = "false") -> None:
        """
        Tells what changed since, extent by extent.

        to     up to this newer snapshot; left out, up to now
        exact  true: compare the content, and leave out what is the same after all
        """
        self.parent.ui_command_diff(self.name, to, exact)

    def ui_command_restore(self, force: str = "false") -> None:
        """
        Rolls the volume back to this moment; what it is now is gone.

        force  true: even if initiators reach the volume
        """
        self.parent.ui_command_restore(self.name, force)

    def ui_command_verify(self) -> None:
        """
        Reads all that the snapshot needs, and compares it with its checksums.
        """
        self.parent.ui_command_verify(self.name)

    def ui_command_export(self, file: str, force: str = "false") -> None:
        """
        Writes the volume as it was at that moment into a file, as a raw sparse image.

        file   the file to write
        force  true: replace the file if it exists
        """
        self.parent.ui_command_export(self.name, file, force)

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """For completion."""
        return files(given.get("file", "")) if parameter == "file" else None


def export(text: str, file: str | None) -> None:
    """Print a piece of configuration, or write it into a new file.  Raises Refused."""
    if file is None:
        console.say(text)
        return
    try:
        with Path(file).open("x", encoding="utf-8") as out:
            out.write(text)
    except OSError as error:
        raise console.Refused(f"{file} cannot be written: {error.strerror}", "name a file that is not there") from error
    console.say(f"wrote {file}")
