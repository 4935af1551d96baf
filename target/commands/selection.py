# SPDX-License-Identifier: Apache-2.0
"""The choice of snapshots by pattern, labels and state, and their order."""

from __future__ import annotations

import fnmatch
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from target import messages

ORDERS: Final[Mapping[str, Callable[[messages.Snapshot], Any]]] = {
    "taken": operator.attrgetter("taken"),
    "name": operator.attrgetter("volume", "name"),
    "used": operator.attrgetter("used_bytes"),
    "preserved": operator.attrgetter("preserved_bytes"),
}


def chosen(
    snapshots: Iterable[messages.Snapshot],
    pattern: str = "*",
    labels: Iterable[tuple[str, str]] = (),
    state: str | None = None,
) -> list[messages.Snapshot]:
    """Return the snapshots whose name fits a shell pattern (capitals count), with all these labels and in that state."""
    wanted = set(labels)
    return [
        snapshot
        for snapshot in snapshots
        if fnmatch.fnmatchcase(snapshot.name, pattern)
        and wanted <= snapshot.labels.items()
        and (state is None or state == (snapshot.state if state != "held" else "held" if snapshot.hold else ""))
    ]


def ordered(snapshots: Sequence[messages.Snapshot], order: str | None, *, reverse: bool) -> list[messages.Snapshot]:
    """Return the snapshots in one of `ORDERS`; without one, as they are."""
    found = list(snapshots) if order is None else sorted(snapshots, key=ORDERS[order])
    return found[::-1] if reverse else found
