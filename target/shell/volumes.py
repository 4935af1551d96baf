# SPDX-License-Identifier: Apache-2.0
"""/volumes and the nodes of volumes."""

from __future__ import annotations

import os
from collections.abc import Iterable

from target import messages, show, units
from target.control import client
from target.shell import console
from target.shell.node import BOOLEANS, Node, export, files, flag, number, one_of, plural, table
from target.shell.nodes import Nodes
from target.shell.snapshots import Snapshots

DURABILITIES = ("power-loss", "process-crash")
POLICIES = ("fail-writes", "drop-snapshot")
STORES = ("map", "log", "sparse")
CONVERTIBLE = ("map", "log")
NO_LUN = "none"
MAP_WRITE_ONCE = ("none", "read-only", "read-write")
SIZES = ("1GiB", "10GiB", "100GiB", "1TiB")
SETTABLE = {
    "durability": DURABILITIES,
    "on_error": POLICIES,
    "verify_reads": BOOLEANS,
    "write_cache": BOOLEANS,
    "limit": (messages.NO_LIMIT, *SIZES),
    "lun": (NO_LUN,),
    "map_write_once": MAP_WRITE_ONCE,
}


class Volumes(Node):
    """The node /volumes."""

    def __init__(self, parent: Node) -> None:
        super().__init__("volumes", parent)

    def list_children(self) -> None:
        for volume in self.volumes():
            Volume(volume.name, self)

    def get_child(self, name: str) -> Node:
        """Return one volume.

        It is requested alone, so that the time of a script does not grow with the square of its number of lines.
        """
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
        self._listed = -1  # the next listing requests all of them
        return child

    def summary(self) -> tuple[str, bool | None]:
        """Return the text and the health for `ls`."""
        volumes = self.volumes()
        size = sum(volume.size for volume in volumes)
        broken = sum(volume.state != "online" for volume in volumes)
        text = f"{plural(len(volumes), 'volume')}, {units.human_size(size)}"
        return (f"{text}, {broken} not served" if broken else text), not broken

    def ui_command_create(
        self,
        name: str,
        size: str | None = None,
        lun: str | None = None,
        primary: str | None = None,
        block_size: str | None = None,
        chunk_size: str | None = None,
        store: str | None = None,
        durability: str | None = None,
        limit: str | None = None,
        on_error: str | None = None,
        verify_reads: str | None = None,
        map_write_once: str | None = None,
        write_cache: str | None = None,
        existing: str | None = None,
        force: str = "false",
    ) -> None:
        """Create a volume and serve it at once.

        name        the volume's name; its snapshots are stored under this name
        size        its size, like 10GiB; an existing file, device or volume keeps its size
        lun         the LUN under which initiators see it; default: the lowest free one; none: they do not see it
        primary     the file or block device that holds the live data; default: a sparse file in the state directory
        block_size  bytes per logical block, 512 or 4096; default: 512
        chunk_size  the unit of allocation, a power of two from 4KiB to 1MiB; default: 64KiB
        store       the store that keeps old data: map (default), log or sparse; the configuration file has more kinds
        durability  power-loss (default): snapshots are correct after any crash; process-crash: faster, but snapshots
                    may be invalid after a power cut
        limit       how much old data all snapshots together may keep; default: as much as there is space for
        on_error    if old data cannot be preserved: fail-writes (default) refuses the write; drop-snapshot
                    invalidates snapshots and lets the write continue
        verify_reads  true (default): reads of snapshots compare old data with its checksums; false: they do not
        map_write_once  whether initiators see the write-once LUNs of its snapshots: none (default), read-only or
                    read-write
        write_cache  true (default): a write may end before it is on stable storage; false: none does
        existing    if a deleted volume of this name left its data: adopt serves that data, new removes it for good;
                    default: the command refuses
        force       true: give it a LUN that initiators who are logged in know as another unit
        """
        request = messages.CreateVolume(
            name=name,
            size=size,
            lun=None if lun == NO_LUN else number(lun, "lun"),
            hidden=lun == NO_LUN,
            primary=None if primary is None else os.path.abspath(primary),  # noqa: PTH100 - links stay as given
            block_size=number(block_size, "block_size"),
            chunk_size=chunk_size,
            store=store,
            durability=durability,
            limit=limit,
            on_error=on_error,
            verify_reads=None if verify_reads is None else flag(verify_reads, "verify_reads"),
            map_write_once=map_write_once,
            write_cache=None if write_cache is None else flag(write_cache, "write_cache"),
            existing=existing,
        )
        self.asked.create_volume(request, force=flag(force, "force"))
        self.done(f"created volume {name}")

    def ui_command_delete(self, name: str, data: str = "false", force: str = "false") -> None:
        """Stop serving a volume.  The command refuses while the volume is in use, unless force is true.

        name   the volume
        data   true: also remove its files in the state directory, including snapshots; false: keep them
        force  true: delete it even if it is in use, together with its mappings to initiators
        """
        self.asked.delete_volume(name, force=flag(force, "force"), data=flag(data, "data"))
        self.done(f"deleted volume {name}{' and its data' if flag(data, 'data') else '; its data is kept'}")

    def ui_command_join(self, name: str, primary: str, lun: str | None = None, node: str | None = None) -> None:
        """Take part in a volume that several nodes share.  Its log and its write-once LUNs are found beside the primary.

        name     the volume's name on the storage host
        primary  iscsi://HOST:PORT/TARGET/LUN, or a block device
        lun      the LUN of the volume on this node; default: initiators do not see it
        node     the name of this node; default: the name of the host
        """
        self.asked.share_volume(messages.ShareVolume(name, primary, number(lun, "lun"), node))
        self.done(f"this host joins {name}")

    def ui_command_accept(self, name: str) -> None:
        """Accept the doubtful snapshots of a volume as true, or ignore a volume that the configuration does not name.

        name  the volume; see /alerts
        """
        answer = self.asked.accept_volume(name)
        if not self.only_checks(show.accepted(answer)):
            self.facts.forget()
            console.say(show.accepted(answer))

    def ui_command_relocate(
        self, name: str, old: str | None = None, primary: str | None = None, force: str = "false"
    ) -> None:
        """Serve a volume with data that is in another place.  wolun checks that the primary is the same.

        name     the volume
        old      the name that it had before; default: the same
        primary  the new place of its file or device; default: as configured
        force    true: take a primary that is not known to be the same; the snapshots become doubtful
        """
        place = None if primary is None else os.path.abspath(primary)  # noqa: PTH100 - links stay as given
        request = messages.Relocate(old, place)
        answer = self.asked.relocate_volume(name, request, force=flag(force, "force"))
        if not self.only_checks(f"relocated {name}"):
            self.facts.forget()
            console.say(show.relocated(answer, in_shell=True))

    def ui_command_promote(self, name: str) -> None:
        """Make a replica an ordinary volume, which takes writes.  It follows its source no longer.

        name  the replica; if it has a part of a stream, it first gets its newest whole content again
        """
        if not self.only_checks(f"promoted {name}"):
            self.follow(self.asked.promote_volume(name), "promoting")
            self.facts.forget()
            console.say(f"{name} takes writes now, and is no replica any longer")

    def ui_command_store(self, name: str, kind: str, later: str = "false") -> None:
        """Change the store that keeps the old data of a volume, and convert its snapshots, while they are in use.

        The newest snapshot is left as it is, because writers need it.

        name   the volume
        kind   map or log
        later  true: only for later snapshots; existing ones keep their store
        """
        request = messages.ChangeStore(kind, not flag(later, "later"))
        if not self.only_checks(f"the store of {name} would be {kind}"):
            job = self.asked.set_store(name, request)
            self.follow(job, "converting")
            self.facts.forget()
            console.say(show.conversion(self.asked.result(messages.Conversion, job)))

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """Return the possible values for completion."""
        return {
            ("promote", "name"): lambda: [volume.name for volume in self.volumes()],
            ("delete", "name"): lambda: [volume.name for volume in self.volumes()],
            ("store", "name"): lambda: [volume.name for volume in self.volumes()],
            ("store", "kind"): lambda: CONVERTIBLE,
            ("store", "later"): lambda: BOOLEANS,
            ("accept", "name"): lambda: [volume.name for volume in self.volumes()],
            ("relocate", "name"): lambda: [volume.name for volume in self.volumes()],
            ("relocate", "primary"): lambda: files(given.get("primary", "")),
            ("create", "durability"): lambda: DURABILITIES,
            ("create", "on_error"): lambda: POLICIES,
            ("create", "store"): lambda: STORES,
            ("create", "verify_reads"): lambda: BOOLEANS,
            ("create", "write_cache"): lambda: BOOLEANS,
            ("create", "map_write_once"): lambda: MAP_WRITE_ONCE,
            ("create", "lun"): lambda: (NO_LUN,),
            ("create", "limit"): lambda: SIZES,
            ("create", "block_size"): lambda: ("512", "4096"),
            ("create", "chunk_size"): lambda: ("4KiB", "16KiB", "64KiB", "256KiB", "1MiB"),
            ("create", "size"): lambda: SIZES,
            ("create", "primary"): lambda: files(given.get("primary", "")),
        }.get((command, parameter), lambda: None)()


class Volume(Node):
    """The node /volumes/NAME."""

    forced_group = "attribute"

    def __init__(self, name: str, parent: Volumes) -> None:
        super().__init__(name, parent)
        for attribute, writable, what in (
            ("lun", True, "The LUN under which initiators see it, or none; a change removes the volume for a moment."),
            ("durability", True, "power-loss or process-crash; a change removes the volume for a moment."),
            ("limit", True, "How much old data its snapshots may keep; none: as much as there is space for."),
            ("on_error", True, "The reaction if old data cannot be preserved: fail-writes or drop-snapshot."),
            ("verify_reads", True, "Whether reads of snapshots compare old data with its checksums: true or false."),
            ("write_cache", True, "Whether a write may end before it is on stable storage: true or false."),
            ("map_write_once", True, "Whether initiators see its write-once LUNs: none, read-only or read-write."),
            ("size", False, "Its size; `resize` makes it larger."),
            ("block_size", False, "Bytes per logical block."),
            ("chunk_size", False, "The unit of allocation."),
            ("store", False, "The store that keeps old data: map, log or sparse."),
            ("primary", False, "The file or device that holds the live data."),
        ):
            self.define_config_group_param("attribute", attribute, "string", what, writable)

    def message(self) -> messages.Volume:
        """Return the daemon's message about this volume."""
        if self.facts.has("volumes"):
            for volume in self.volumes():
                if volume.name == self.name:
                    return volume
        return self.facts.get(f"volume {self.name}", lambda: self.asked.volume(self.name))

    def list_children(self) -> None:
        Snapshots(self)
        if self.message().sharing is not None:
            Nodes(self)

    def summary(self) -> tuple[str, bool | None]:
        """Return the text and the health for `ls`."""
        volume = self.message()
        lun = "no LUN" if volume.lun is None else f"LUN {volume.lun}"
        if volume.state != "online":
            return f"{lun}, not served: {volume.trouble}", False
        if volume.sharing is not None:
            sharing = volume.sharing
            text = f"{lun}, {units.human_size(volume.size)}, shared, {sharing.node} is {sharing.state}"
            return text, sharing.state == "armed"
        used = volume.primary_used_bytes
        replica = f", replica of {volume.replica.source}" if volume.replica and volume.replica.replica else ""
        return f"{lun}, {units.human_size(volume.size)}, {units.human_size(used)} used{replica}", True

    def ui_getgroup_attribute(self, attribute: str) -> str:
        """Return a value for `get attribute`."""
        volume = self.message()
        if attribute == "limit":
            return messages.NO_LIMIT if volume.preserved_limit is None else units.exact_size(volume.preserved_limit)
        if attribute == "lun":
            return NO_LUN if volume.lun is None else str(volume.lun)
        value = getattr(volume, attribute)
        if isinstance(value, bool):
            return BOOLEANS[not value]
        return units.exact_size(value) if attribute in ("size", "chunk_size") else str(value)

    def ui_command_set(self, group: str | None = None, **parameter: str) -> None:
        """Change a group of parameters: attribute or global.  Without parameters, explain them.

        group      attribute, with lun, durability, limit, on_error, verify_reads, write_cache, map_write_once.  All
                   given parameters change together, or none does.  A change of lun or durability removes the volume
                   for a moment, so it is refused while the volume is in use, unless `force=true` is given, too.  So is
                   a change of map_write_once while initiators see a write-once LUN of the volume.
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
            verify_reads=flag(parameter["verify_reads"], "verify_reads") if "verify_reads" in parameter else None,
            map_write_once=parameter.get("map_write_once"),
            write_cache=flag(parameter["write_cache"], "write_cache") if "write_cache" in parameter else None,
        )
        self.asked.change_volume(self.name, request, force=force)
        self.facts.forget()
        for name, value in parameter.items():
            self.done(f"{name} of {self.name} is {value if self.asked.dry_run else self.ui_getgroup_attribute(name)}")

    def ui_complete_set(self, parameters: dict[str, str], text: str, current_param: str) -> list[str]:
        """Return the completions of `set`."""
        if parameters.get("group") == "attribute" and current_param in SETTABLE:
            return one_of(SETTABLE[current_param], text)
        return super().ui_complete_set(parameters, text, current_param)

    def ui_setgroup_attribute(self, attribute: str, value: str) -> None:
        """Satisfy configshell; `ui_command_set` sets all parameters of a line at once."""
        raise NotImplementedError

    def ui_command_info(self) -> None:
        """Show all details of the volume."""
        volume = self.message()
        rows = [
            ("volume", volume.name),
            ("state", volume.state + (f": {volume.trouble}" if volume.trouble else "")),
            *([("doubtful", volume.doubtful)] if volume.doubtful else []),
            ("LUN", NO_LUN if volume.lun is None else str(volume.lun)),
            ("size", units.human_size(volume.size)),
            ("block size", f"{volume.block_size} bytes"),
            ("chunk size", units.exact_size(volume.chunk_size)),
            ("primary", volume.primary),
            ("snapshots", f"{volume.snapshots}, {units.human_size(volume.snapshot_bytes)} used"),
            ("on error", volume.on_error),
            *(self._own_rows(volume) if volume.sharing is None else _shared_rows(volume.sharing)),
        ]
        console.say(table(rows))

    def _own_rows(self, volume: messages.Volume) -> list[tuple[str, str]]:
        return [
            ("used on disk", units.human_size(volume.primary_used_bytes)),
            ("store", volume.store),
            ("durability", volume.durability),
            ("limit", self.ui_getgroup_attribute("limit")),
            ("verify reads", self.ui_getgroup_attribute("verify_reads")),
            ("write cache", self.ui_getgroup_attribute("write_cache")),
            ("write-once", volume.map_write_once),
        ]

    def ui_command_resize(self, size: str) -> None:
        """Make the volume larger while it is in use.  Its snapshots keep their size.

        size  the new size, like 20GiB; a volume cannot shrink
        """
        try:
            target_size = units.parse_size(size)
        except ValueError as error:
            raise console.Refused(str(error)) from None
        if not self.only_checks(f"resized {self.name} to {units.exact_size(target_size)}"):
            console.say(show.resized(self.asked.resize_volume(self.name, target_size), in_shell=True))

    def ui_command_accept(self) -> None:
        """Accept the doubtful snapshots of the volume as true.

        Snapshots are doubtful if the primary may have changed while the volume was not served: see /alerts.
        """
        answer = self.asked.accept_volume(self.name)
        if not self.only_checks(show.accepted(answer)):
            self.facts.forget()
            console.say(show.accepted(answer))

    def ui_command_export(self, file: str | None = None) -> None:
        """Show the volume in the form of the configuration file.

        file  write the text to this file instead
        """
        export(self.asked.text_of_volume(self.name), file)

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """Return the possible values for completion."""
        if parameter == "size":
            return [units.exact_size(2 * self.message().size)]
        return files(given.get("file", "")) if parameter == "file" else None


def _shared_rows(sharing: messages.Sharing) -> list[tuple[str, str]]:
    """Return the part of this host in a shared volume."""
    pending = sharing.fence_pending_seconds
    return [
        ("node", f"{sharing.node}, {sharing.state}"),
        ("epoch", "-" if sharing.epoch is None else str(sharing.epoch)),
        ("fence pending", "no" if pending is None else f"for {units.human_seconds(pending)}"),
        ("blank LUNs", "-" if sharing.pool is None else str(sharing.pool)),
        ("futile copies", f"{sharing.futile_copies} of {sharing.copies + sharing.futile_copies}"),
    ]
