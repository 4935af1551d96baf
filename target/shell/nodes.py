# SPDX-License-Identifier: Apache-2.0
"""/volumes/NAME/nodes: the nodes of a shared volume."""

from __future__ import annotations

from collections.abc import Iterable

from target import messages, show
from target.shell import console
from target.shell.node import Leaf, Node, flag, plural


class Nodes(Node):
    """The node /volumes/NAME/nodes."""

    def __init__(self, parent: Node) -> None:
        super().__init__("nodes", parent)

    @property
    def volume(self) -> str:
        """Return the name of the volume."""
        return str(self.parent.name)

    def of_volume(self) -> list[messages.Node]:
        """Return the volume's nodes."""
        return self.facts.get(f"nodes of {self.volume}", lambda: self.asked.nodes(self.volume))

    def list_children(self) -> None:
        if self.parent.message().state != "online":
            return
        for node in self.of_volume():
            state = "expelled" if node.expelled else "registered" if node.registered else "out"
            seen = "" if node.last_seen is None else f", last seen {show.moment(node.last_seen)}"
            Leaf(node.name or node.initiator, self, f"{state}{seen}", healthy=state == "registered")

    def summary(self) -> tuple[str, bool | None]:
        """Return the text and the health for `ls`."""
        return plural(len(self.children), "node"), None

    def ui_command_expel(self, name: str, force: str = "false") -> None:
        """Expel a node from the volume, for good.  It can neither read nor write the volume again under its name.

        name   the node
        force  true: expel a node that nobody has seen
        """
        if not self.only_checks(f"expelled {name} from {self.volume}"):
            console.say(show.nodes(self.asked.expel_node(self.volume, name, force=flag(force, "force"))))

    def ui_command_leave(self, force: str = "false") -> None:
        """Take part in the volume no longer.  The volume, its snapshots and the other nodes stay as they are.

        force  true: leave even if initiators use the volume here
        """
        self.asked.unshare_volume(self.volume, force=flag(force, "force"))
        self.done(f"this host has left {self.volume}")

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """Return the possible values for completion."""
        return [node.name for node in self.of_volume() if node.name] if parameter == "name" else None
