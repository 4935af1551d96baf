# SPDX-License-Identifier: Apache-2.0
"""The commands that wait for a limit (`target.scsi.limits`): sessions take turns, so a deep queue gets no larger share.

A session's commands to one unit wait in a queue, in order.  When there are tokens, each queue in turn gives one command.  The
loop asks when the next one may go, and hands those that may to the workers.  A command that was aborted, or that no limit
concerns any longer, goes at once.  Only the loop's thread uses this.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from target.iscsi.command import Command
from target.scsi.limits import Gate
from target.scsi.nexus import Nexus

L = TypeVar("L")


class _Waiting(NamedTuple):
    nexus: Nexus
    command: Command
    gate: Gate
    since: float


class Turns(Generic[L]):
    """The waiting commands of all sessions, by lane."""

    def __init__(self) -> None:
        self._queues: dict[tuple[L, int], deque[_Waiting]] = {}  # by lane and LUN field, the next one first

    def __bool__(self) -> bool:
        """Return whether a command waits."""
        return bool(self._queues)

    def park(self, lane: L, nexus: Nexus, commands: Sequence[Command]) -> list[Command]:
        """Keep the commands that a limit holds up; return the others."""
        others = []
        for command in commands:
            gate = nexus.gate_of(command.task)
            if gate is None:
                others.append(command)
            else:
                gate.queue(1)
                queue = self._queues.setdefault((lane, command.task.lun), deque())
                queue.append(_Waiting(nexus, command, gate, gate.clock()))
        return others

    def ready(self) -> Iterator[tuple[L, Nexus, Command]]:
        """Yield the commands that may go now, and forget them."""
        for key, queue in list(self._queues.items()):
            for waiting in [waiting for waiting in queue if waiting.command.task.aborted]:
                queue.remove(waiting)
                yield key[0], waiting.nexus, self._released(waiting)
            if not queue:
                del self._queues[key]
        progress = True
        while progress:
            progress = False
            for key in list(self._queues):
                queue = self._queues[key]
                waiting = queue[0]
                gate = waiting.nexus.gate_of(waiting.command.task)
                if gate is not None and gate.wait(gate.clock()) > 0:
                    continue
                del self._queues[key]
                if gate is not None:
                    gate.charge(waiting.command.task, gate.clock())
                    waiting.command.task.admitted = True
                queue.popleft()
                if queue:
                    self._queues[key] = queue  # behind the others
                progress = True
                yield key[0], waiting.nexus, self._released(waiting)

    def next(self) -> float:
        """Return the seconds until the next command may go, if one waits."""
        gates = (queue[0].nexus.gate_of(queue[0].command.task) for queue in self._queues.values())
        return min((0.0 if gate is None else gate.wait(gate.clock()) for gate in gates), default=0.0)

    def drop(self, lane: L) -> list[Command]:
        """Take back and return the commands of a lane."""
        dropped = []
        for key in [key for key in self._queues if key[0] is lane]:
            for waiting in self._queues.pop(key):
                waiting.gate.queue(-1)
                dropped.append(waiting.command)
        return dropped

    def _released(self, waiting: _Waiting) -> Command:
        waiting.gate.queue(-1)
        waiting.gate.waited(waiting.gate.clock() - waiting.since)
        return waiting.command
