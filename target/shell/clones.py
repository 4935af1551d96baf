# SPDX-License-Identifier: Apache-2.0
"""/clones: the writable clones of snapshots."""

from __future__ import annotations

from collections.abc import Iterable

from target import messages, show, units
from target.shell import console
from target.shell.node import Leaf, Node, flag, plural


class Clones(Node):
    """The node /clones."""

    def __init__(self, parent: Node) -> None:
        super().__init__("clones", parent)

    def all(self) -> list[messages.Clone]:
        """Return the clones."""
        return self.facts.get("clones", self.asked.clones)

    def list_children(self) -> None:
        for clone in self.all():
            lun = "" if clone.lun is None else f"LUN {clone.lun}, "
            text = f"{lun}of {clone.volume}@{clone.snapshot}, {units.human_size(clone.used_bytes)} used, {clone.state}"
            Leaf(clone.name, self, text, healthy=clone.state == "online")

    def summary(self) -> tuple[str, bool | None]:
        """Return the text and the health for `ls`."""
        clones = self.all()
        return plural(len(clones), "clone"), None if all(clone.state == "online" for clone in clones) else False

    def ui_command_create(self, snapshot: str, name: str, limit: str | None = None) -> None:
        """Make a writable clone of a snapshot.  A LUN appears.

        snapshot  VOLUME@SNAPSHOT
        name      the clone's name
        limit     how much it may hold of its own, like 10GiB; default: the disk
        """
        volume, at, which = snapshot.partition("@")
        if not (volume and at and which):
            raise console.Refused(f"{snapshot!r} is not the name of a snapshot", "write VOLUME@SNAPSHOT")
        try:
            most = None if limit is None else units.parse_size(limit)
        except ValueError as error:
            raise console.Refused(str(error), "write a size like 10GiB") from error
        if not self.only_checks(f"made the clone {name} of {snapshot}"):
            console.say(show.cloned(self.asked.create_clone(volume, which, messages.CreateClone(name, most))))

    def ui_command_delete(self, name: str, force: str = "false") -> None:
        """Delete a clone with all that was written to it.  Its snapshot stays.

        name   the clone
        force  true: delete it even if an initiator uses it
        """
        self.asked.clone(name)
        if not self.only_checks(f"deleted the clone {name}"):
            self.asked.delete_clone(name, force=flag(force, "force"))
            console.say(f"deleted the clone {name}")

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """Return the possible values for completion."""
        if parameter == "snapshot":
            return [f"{snapshot.volume}@{snapshot.name}" for snapshot in self.snapshots()]
        return [clone.name for clone in self.all()] if parameter == "name" and command == "delete" else None
