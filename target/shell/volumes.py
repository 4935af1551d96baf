# SPDX-License-Identifier: Apache-2.0
"""/volumes and a volume."""

from __future__ import annotations

import os
from collections.abc import Iterable

from target import messages, show, units
from target.control import client
from target.shell import console
from target.shell.node import Node, export, files, flag, number, one_of, table
from target.shell.snapshots import Snapshots

DURABILITIES = ("power-loss", "process-crash")
POLICIES = ("fail-writes", "drop-snapshot")
NO_LUN = "none"
SIZES = ("1GiB", "10GiB", "100GiB", "1TiB")
SETTABLE = {"durability": DURABILITIES, "on_error": POLICIES, "limit": (messages.NO_LIMIT, *SIZES), "lun": (NO_LUN,)}


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
        """Makes a volume and serves it at once.  A volume that was deleted without its data is taken up again.

        name        what to call it; snapshots are kept under this name
        size        how large, like 10GiB; an existing file, device or volume keeps its size
        lun         the LUN initiators see it under; left out, the lowest one that is free; none: they do not see it
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
            lun=None if lun == NO_LUN else number(lun, "lun"),
            hidden=lun == NO_LUN,
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
        """Serves a volume no more.  Refused while somebody uses it.

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
            ("create", "lun"): lambda: (NO_LUN,),
            ("create", "limit"): lambda: SIZES,
            ("create", "block_size"): lambda: ("512", "4096"),
            ("create", "chunk_size"): lambda: ("4KiB", "16KiB", "64KiB", "256KiB", "1MiB"),
            ("create", "size"): lambda: SIZES,
            ("create", "primary"): lambda: files(given.get("primary", "")),
        }.get((command, parameter), lambda: None)()


class Volume(Node):
    """/volumes/NAME."""

    forced_group = "attribute"

    def __init__(self, name: str, parent: Volumes) -> None:
        super().__init__(name, parent)
        for attribute, writable, what in (
            ("lun", True, "The LUN initiators see it under, or none; changing it takes the volume away for a moment."),
            ("durability", True, "power-loss or process-crash; changing it takes the volume away for a moment."),
            ("limit", True, "How much old data its snapshots may keep; none: as much as there is room for."),
            ("on_error", True, "When old data cannot be kept: fail-writes or drop-snapshot."),
            ("size", False, "How large it is; `resize` makes it larger."),
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
        lun = "no LUN" if each.lun is None else f"LUN {each.lun}"
        if each.state != "online":
            return f"{lun}, not served: {each.trouble}", False
        used = each.primary_used_bytes
        return f"{lun}, {units.human_size(each.size)}, {units.human_size(used)} used", True

    def ui_getgroup_attribute(self, attribute: str) -> str:
        """For `get attribute`."""
        each = self.told()
        if attribute == "limit":
            return messages.NO_LIMIT if each.preserved_limit is None else units.exact_size(each.preserved_limit)
        if attribute == "lun":
            return NO_LUN if each.lun is None else str(each.lun)
        value = getattr(each, attribute)
        return units.exact_size(value) if attribute in ("size", "chunk_size") else str(value)

    def ui_command_set(self, group: str | None = None, **parameter: str) -> None:
        """Changes a group of parameters: attribute or global.  Without parameters, explains them.

        group      attribute, with lun, durability, limit, on_error; all that are given change together, or none does.
                   For lun and durability the volume is taken away for a moment, so that is refused while somebody uses
                   it, unless `force=true` is among them.
        parameter  NAME=VALUE, any number of them
        """
        if self.explained("attribute", group, parameter):
            return
        force = flag(parameter.pop("force", "false"), "force")
        lun = parameter.get("lun")
        request = messages.ChangeVolume(
            lun=None if lun == NO_LUN else number(lun, "lun"),
            hidden=lun == NO_LUN,
            durability=parameter.get("durability"),
            limit=parameter.get("limit"),
            on_error=parameter.get("on_error"),
        )
        self.asked.change_volume(self.name, request, force=force)
        self.facts.forget()
        for name, value in parameter.items():
            self.done(f"{name} of {self.name} is {value if self.asked.dry_run else self.ui_getgroup_attribute(name)}")

    def ui_complete_set(self, parameters: dict[str, str], text: str, current_param: str) -> list[str]:
        """For completion of `set`."""
        if parameters.get("group") == "attribute" and current_param in SETTABLE:
            return one_of(SETTABLE[current_param], text)
        return super().ui_complete_set(parameters, text, current_param)

    def ui_setgroup_attribute(self, attribute: str, value: str) -> None:
        """Configshell wants it; `ui_command_set` sets all that are given at once."""
        raise NotImplementedError

    def ui_command_info(self) -> None:
        """Shows everything known about the volume."""
        each = self.told()
        console.say(
            table(
                [
                    ("volume", each.name),
                    ("state", each.state + (f": {each.trouble}" if each.trouble else "")),
                    ("LUN", NO_LUN if each.lun is None else each.lun),
                    ("size", units.human_size(each.size)),
                    ("used on disk", units.human_size(each.primary_used_bytes)),
                    ("block size", f"{each.block_size} bytes"),
                    ("chunk size", units.exact_size(each.chunk_size)),
                    ("durability", each.durability),
                    ("primary", each.primary),
                    ("snapshots", f"{each.snapshots}, {units.human_size(each.snapshot_bytes)} used"),
                    ("limit", self.ui_getgroup_attribute("limit")),
                    ("on error", each.on_error),
                ]
            )
        )

    def ui_command_resize(self, size: str) -> None:
        """Makes the volume larger while it is used.  Its snapshots keep the size they were taken with.

        size  how large, like 20GiB; it cannot shrink
        """
        try:
            wanted = units.parse_size(size)
        except ValueError as error:
            raise console.Refused(str(error)) from None
        if not self.only_checks(f"resized {self.name} to {units.exact_size(wanted)}"):
            console.say(show.resized(self.asked.resize_volume(self.name, wanted), in_shell=True))

    def ui_command_export(self, file: str | None = None) -> None:
        """Shows the volume as it would stand in a configuration file.

        file  write it into this file instead
        """
        export(self.asked.text_of_volume(self.name), file)

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """For completion."""
        if parameter == "size":
            return [units.exact_size(2 * self.told().size)]
        return files(given.get("file", "")) if parameter == "file" else None
