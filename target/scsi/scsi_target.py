# SPDX-License-Identifier: Apache-2.0
"""The SCSI target device: its LUNs and the I_T nexuses that reach them (SAM-5 clause 4).

A fabric opens a `Nexus` for each session.  Everything here is thread-safe.

After a change of the LUNs, every nexus that sees it gets unit attention 3Fh/0Eh on each unit that was there before, and
the target calls its listeners.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from target.scsi.logical_unit import LogicalUnit
from target.scsi.nexus import Nexus, View, sees_all
from target.scsi.sense import Asc

MAX_LUN = 0x3FFF  # the last one of flat space addressing (SAM-5 4.7.7.3)


class ScsiTarget:
    """One target device with its LUNs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.RLock()
        self._luns: dict[int, LogicalUnit] = {}
        self._nexuses: list[Nexus] = []
        self._listeners: list[Callable[[], None]] = []
        self._expected: frozenset[str] = frozenset()

    @property
    def luns(self) -> Mapping[int, LogicalUnit]:
        """The units by LUN at this moment; this mapping never changes, and a later one may differ."""
        return MappingProxyType(self._luns)

    @property
    def expected(self) -> frozenset[str]:
        """The volumes whose units come later, because they are still being opened."""
        return self._expected

    def expect(self, volume: str) -> None:
        """Let a fabric keep what a predecessor that was killed served of a volume: its units come later."""
        with self._lock:
            self._expected |= {volume}

    def arrived(self, volume: str) -> None:
        """Say that all units of a volume have come that there are.  Call the listeners if it was expected."""
        with self._lock:
            if volume not in self._expected:
                return
            self._expected -= {volume}
        self._changed(())

    @property
    def nexuses(self) -> Sequence[Nexus]:
        """The I_T nexuses open now."""
        with self._lock:
            return tuple(self._nexuses)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every change of the LUNs, on the thread that makes the change."""
        with self._lock:
            self._listeners.append(listener)

    def add_lun(self, number: int, unit: LogicalUnit) -> None:
        """Give the unit a LUN (0 to 16383).  Raises ValueError if it is taken or out of range."""
        if not 0 <= number <= MAX_LUN:
            raise ValueError(f"LUN {number} is not between 0 and {MAX_LUN}")
        with self._lock:
            if number in self._luns:
                raise ValueError(f"LUN {number} is in use")
            self._luns = {**self._luns, number: unit}
            affected = [nexus for nexus in self._nexuses if nexus.attach(number, unit)]
        self._changed(affected, excluding=unit)

    def remove_lun(self, number: int) -> None:
        """Remove the LUN.  Return when the tasks running on the unit have ended.  Raise KeyError if there is none.

        Never call it on a thread that a running task needs (an event loop).
        """
        with self._lock:
            unit = self._luns[number]
            self._luns = {lun: other for lun, other in self._luns.items() if lun != number}
            affected = [nexus for nexus in self._nexuses if nexus.detach(number, unit)]
        unit.drain()
        self._changed(affected)

    def open_nexus(self, initiator: str, *, tag: str = "", view: View = sees_all) -> Nexus:
        """Open an I_T nexus; `tag` (for iSCSI the ISID) distinguishes the sessions of one initiator."""
        nexus = Nexus(self.name, initiator, tag, view, lambda: self.nexuses)
        with self._lock:
            for number, unit in self._luns.items():
                nexus.attach(number, unit)
            self._nexuses.append(nexus)
        return nexus

    def close_nexus(self, nexus: Nexus) -> None:
        """Close a nexus, and mark its running tasks as aborted; they may end later.  Closing twice is allowed."""
        with self._lock:
            if nexus not in self._nexuses:
                return
            self._nexuses.remove(nexus)
            for number, unit in self._luns.items():
                unit.abort(nexus)
                nexus.detach(number, unit)

    def change_view(self, nexus: Nexus, view: View) -> bool:
        """Give an open nexus another view of the units; return whether that changed anything for the nexus.

        Return only when no task runs any longer that the new view would refuse.  Never call it on an event loop.
        """
        with self._lock:
            if nexus not in self._nexuses:
                return False
            gone, new = nexus.change_view(view, self._luns)
            if new:
                # If only the right to write changed, the initiator should look at the medium's protection again.
                before = {id(itl.unit) for itl in gone}
                for itl in new:
                    if id(itl.unit) in before:
                        itl.add_attention(Asc.MODE_PARAMETERS_CHANGED)
            if gone or new:
                nexus.luns_changed(excluding={id(itl.unit) for itl in new})
        for itl in gone:
            itl.unit.drain([task for task, owner in list(itl.unit.running.items()) if owner is itl])
        return bool(gone or new)

    def _changed(self, affected: Sequence[Nexus], *, excluding: LogicalUnit | None = None) -> None:
        """Raise 3Fh/0Eh for the affected nexuses on every unit that was there before, and call the listeners."""
        with self._lock:
            listeners = tuple(self._listeners)
            for nexus in affected:
                nexus.luns_changed(excluding=() if excluding is None else {id(excluding)})
        for listener in listeners:
            listener()
