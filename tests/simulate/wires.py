# SPDX-License-Identifier: Apache-2.0
"""The time of a simulated cluster, its machines, and their commands on the way to the devices and back.

Answers get lost, initiators log in and send again while the first command is still at the device, reads of the log are torn,
and a machine has one or two paths to the primary.
"""

from __future__ import annotations

import heapq
import random
import uuid
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field
from typing import Any

from lun_backends.cluster import actions, history, node
from lun_backends.cluster.actions import Conflict, Full, Unreachable
from lun_backends.cluster.guards import Guards
from tests.simulate.devices import Command, Primary, Storage

BLOCK = 4096

_ON_PRIMARY = (
    actions.OwnKey, actions.Register, actions.ReadReservation, actions.Reserve, actions.Preempt, actions.PreemptAndAbort,
    actions.ResetLogicalUnit, actions.Flush, actions.ReadPrimary, actions.WritePrimary,
)  # fmt: skip
_Pause = actions.Wait | actions.Drain | actions.WaitForGate | actions.WaitUntil
_PAUSES = (actions.Wait, actions.Drain, actions.WaitForGate, actions.WaitUntil)
_OF_THE_FENCE = (
    actions.Register, actions.Reserve, actions.Preempt, actions.PreemptAndAbort, actions.ResetLogicalUnit,
)  # fmt: skip


class Wrong(Exception):
    """A promise of the protocol was broken."""


@dataclass(eq=False)
class Task:
    """A generator of the protocol that a node runs."""

    steps: Generator[Any, Any, Any]
    done: Callable[[Any], None]
    awaited: bool = True  # the run ends only when it has ended
    rollback_at: int | None = None  # it writes for that rollback
    waits_for: _Pause | None = None


@dataclass(eq=False)
class Host:
    """A machine with a node on it."""

    name: str
    node: node.Node
    paths: int  # to the primary
    life: int = 0  # counts crashes
    session: int = 0  # counts logins of all paths
    sessions: list[int] = field(default_factory=list)  # the login of each path
    fence_path: int = 0
    fences: int = 0  # how many epochs the log had at its last PREEMPT
    asleep_until: float = 0.0
    primary_down_until: list[float] = field(default_factory=list)  # of each path
    storage_down_until: float = 0.0
    tasks: list[Task] = field(default_factory=list)
    jobs: set[object] = field(default_factory=set)  # under way
    late_luns: dict[uuid.UUID, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sessions = [0] * self.paths
        self.primary_down_until = [0.0] * self.paths

    def log_in(self, path: int) -> None:
        """Make a new session on that path."""
        self.session += 1
        self.sessions[path] = self.session


@dataclass(eq=False)
class Sending:
    """A command on its way, until it is answered once or sent again."""

    host: Host
    task: Task
    action: object
    path: int
    tries: int
    life: int
    answered: bool = False


class Wires:
    """Time, and the ways between machines and devices.  `World` says what happens and what must be true."""

    primary: Primary
    storage: Storage

    def __init__(self, seed: int, guards: Guards | None, healed: float) -> None:
        """Begin at time 0.  Faults of the ways happen until `healed`, in seconds."""
        self.random = random.Random(seed)
        self.guards = guards or Guards()
        self.healed = healed
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.counted = 0
        self.volume = uuid.UUID(int=self.random.getrandbits(128))
        self.history = history.History(self.guards)  # as the devices have it
        self.pool_order: list[uuid.UUID] = []
        self.slow = 0.0  # the share of commands that take long at the primary
        self.dozy = 0.0  # the share of fences whose node sleeps behind PREEMPT AND ABORT
        self.naps: dict[tuple[str, type], float] = {}  # how long a node sleeps behind its next command of that type

    # ---- time

    def at(self, delay: float, call: Callable[[], None]) -> None:
        """Call after `delay` seconds."""
        self.counted += 1
        heapq.heappush(self.events, (self.now + delay, self.counted, call))

    def delay(self) -> float:
        """Return how long a step takes, in seconds."""
        return self.random.random() * (0.002 if self.random.random() < 0.9 else 0.3)

    def go(self, seconds: float) -> None:
        """Let that much simulated time pass."""
        until = self.now + seconds
        while self.events and self.events[0][0] <= until:
            self.now, _, call = heapq.heappop(self.events)
            call()
        self.now = until

    # ---- what World knows

    def check(self) -> None:
        """Look at all snapshots after a change of a device."""
        raise NotImplementedError

    def admitted(self, task: Task) -> None:
        """Look at a write that the primary admits."""
        raise NotImplementedError

    def landed(self, host: Host, task: Task, action: actions.WritePrimary) -> None:
        """Look at a write that the primary has done."""
        raise NotImplementedError

    def appended(self, position: int, block: bytes) -> None:
        """Look at a record that the log took."""
        raise NotImplementedError

    def moment(self, known: int) -> None:
        """Note what the first `known` epochs are to show, if a fence is the first behind their records."""
        raise NotImplementedError

    # ---- what the generators ask for

    def begin(self, host: Host, task: Task) -> None:
        """Let a host run a task."""
        host.tasks.append(task)
        self._resume(host, task, lambda: next(task.steps))

    def _resume(self, host: Host, task: Task, step: Callable[[], Any]) -> None:
        """Continue a task of that life of the host once the host is awake."""
        life = host.life

        def go() -> None:
            if host.life != life or task not in host.tasks:
                return
            if self.now < host.asleep_until:
                self.at(host.asleep_until - self.now, go)
                return
            task.waits_for = None
            try:
                action = step()
            except StopIteration as stop:
                host.tasks.remove(task)
                task.done(stop.value)
            except (history.Refused, Full) as refused:
                host.tasks.remove(task)
                task.done(refused)
            else:
                self._do(host, task, action)
            self.poke(host)

        self.at(self.delay(), go)

    def poke(self, host: Host) -> None:
        """Wake the tasks whose wait is over."""
        for task in [task for task in host.tasks if task.waits_for is not None]:
            match task.waits_for:
                case actions.Wait():
                    over = host.node.awake
                case actions.Drain():
                    over = host.node.running == 0
                case actions.WaitForGate():
                    over = host.node.gate_open
                case actions.WaitUntil(holds):
                    over = holds()
            if over:
                self._answer(host, task, None)

    def _answer(self, host: Host, task: Task, result: object) -> None:
        if isinstance(result, Exception):
            self._resume(host, task, lambda: task.steps.throw(result))
        else:
            self._resume(host, task, lambda: task.steps.send(result))
        task.waits_for = None

    def _do(self, host: Host, task: Task, action: object) -> None:
        if not isinstance(action, _PAUSES):
            self._send(host, task, action, tries=0)
            return
        task.waits_for = action
        if isinstance(action, actions.Wait):

            def over() -> None:
                if task.waits_for is action:
                    self._answer(host, task, None)

            self.at(action.seconds, over)

    # ---- commands

    def _nexus(self, host: Host, path: int) -> Hashable:
        return (host.name, path) if self.primary.lio else (host.name, path, host.sessions[path])

    def _send(self, host: Host, task: Task, action: object, tries: int) -> None:
        """Send a command, and send it again in a new session if that is needed."""
        path = self.random.randrange(host.paths) if host.paths > 1 else 0
        if isinstance(action, _OF_THE_FENCE) and not (isinstance(action, actions.Register) and action.old is None):
            path = host.fence_path
        sending = Sending(host, task, action, path, tries, host.life)
        down_until = host.primary_down_until[path] if isinstance(action, _ON_PRIMARY) else host.storage_down_until
        if self.now < down_until:
            self.at(down_until - self.now, lambda: self._again(sending))
            return
        if self.now < self.healed and self.random.random() < 0.02:
            # The initiator loses its patience; the command is on its way all the same.
            self.at(0.05 + self.random.random(), lambda: self._again(sending))
        nexus = self._nexus(host, path)
        self.at(self.delay(), lambda: self._arrive(sending, nexus))

    def _again(self, sending: Sending) -> None:
        host = sending.host
        if sending.answered or host.life != sending.life:
            return
        sending.answered = True
        host.log_in(sending.path)
        if not self.guards.every_path_joins and host.node.gate_open:
            # As multipathd does it with a reservation_key: the new path registers by itself.
            nexus, key = self._nexus(host, sending.path), history.key(self.volume, host.node.epoch)
            self.at(self.delay(), lambda: self.primary.register(nexus, key, None))
        if sending.tries > 3:
            self._answer(host, sending.task, Unreachable("no answer"))
        else:
            self._send(host, sending.task, sending.action, sending.tries + 1)

    def _answered(self, sending: Sending, result: object) -> None:
        """Carry an answer back, after a while."""

        def arrive() -> None:
            if sending.answered or sending.host.life != sending.life:
                return
            if self.now < self.healed and self.random.random() < 0.02:
                self.at(0.2, lambda: self._again(sending))  # the answer is lost
                return
            sending.answered = True
            self._answer(sending.host, sending.task, result)

        self.at(self.delay(), arrive)

    def _arrive(self, sending: Sending, nexus: Hashable) -> None:
        """Carry a command out at its device."""
        action = sending.action
        if self.naps and (seconds := self.naps.pop((sending.host.name, type(action)), None)) is not None:
            sending.host.asleep_until = max(sending.host.asleep_until, self.now + seconds)
        if isinstance(action, actions.ReadPrimary | actions.WritePrimary):
            started_again = sending.life != sending.host.life and sending.host.tasks
            if not sending.answered and not started_again:  # else its connection is closed, and it never arrives
                self._admit(sending, nexus, action)
            return
        if isinstance(action, actions.PreemptAndAbort | actions.ResetLogicalUnit):
            self._end(sending, nexus, action)
            return
        if isinstance(action, actions.Register) and sending.host.paths > 1:
            others = [
                other for path in range(sending.host.paths) if (other := self._nexus(sending.host, path)) != nexus
            ]
            self._register(sending, action, [nexus, *others])
            return
        try:
            result = self._carry_out(sending, nexus, action)
        except (Conflict, Full, Unreachable) as problem:
            result = problem
        self._answered(sending, result)

    def _register(self, sending: Sending, action: actions.Register, paths: list[Hashable]) -> None:
        """Register each path, one after the other.  The others ignore their existing keys once the first one is registered."""
        try:
            self.primary.register(paths[0], action.new, action.old)
        except Conflict as conflict:
            self._answered(sending, conflict)
            return
        if len(paths) == 1:
            self._answered(sending, None)
        elif sending.host.life == sending.life:
            self.at(self.delay(), lambda: self._register(sending, actions.Register(action.new), paths[1:]))

    def _carry_out(self, sending: Sending, nexus: Hashable, action: object) -> object:
        match action:
            case actions.OwnKey():
                for path in range(sending.host.paths):
                    key = self.primary.keys.get(self._nexus(sending.host, path))
                    if key is not None:
                        sending.host.fence_path = path
                        return key
            case actions.Register(new, old):
                self.primary.register(nexus, new, old)
            case actions.ReadReservation():
                return self.primary.reservation()
            case actions.Reserve(own):
                self.primary.reserve(nexus, own)
            case actions.Preempt(own):
                self.primary.preempt(nexus, own)
                sending.host.fences = len(self.history.epochs)
                if not self.guards.reset_in_fence:
                    self.moment(sending.host.fences)
            case actions.Flush():
                pass
            case _:
                return self._at_storage(sending.host, action)
        return None

    def _at_storage(self, host: Host, action: object) -> object:
        luns = self.storage.luns
        match action:
            case actions.ReadLog(position):
                blocks = self.storage.read_log(position)
                if blocks and self.now < self.healed and self.random.random() < 0.01:
                    return (*blocks[:-1], blocks[-1][:100].ljust(BLOCK, b"\0"))  # torn
                return blocks
            case actions.Append(position, block):
                appended = position in (0, len(self.storage.log.blocks)) and self.storage.log.put(position, block)
                if appended:
                    self.appended(position, block)
                return appended
            case actions.FindLun(lun):
                return lun in luns and self.now >= host.late_luns[lun]
            case actions.FindBlank():
                return tuple(
                    lun
                    for lun in self.pool_order
                    if lun in luns
                    and self.now >= host.late_luns[lun]
                    and (not luns[lun].blocks or not self.guards.verify_blank)
                )
            case actions.Get(lun, grain):
                return self.storage.lun(lun).blocks.get(grain)
            case actions.Written(lun):
                return tuple(self.storage.lun(lun).blocks)
            case actions.Put(lun, grain, data):
                put = self.storage.lun(lun).put(grain, data)
                self.check()
                return put
            case _:
                raise AssertionError(action)

    def _admit(self, sending: Sending, nexus: Hashable, action: actions.ReadPrimary | actions.WritePrimary) -> None:
        writes = isinstance(action, actions.WritePrimary)
        if not self.primary.admits(nexus, writes):
            self._answered(sending, Conflict())
            return
        if writes:
            self.admitted(sending.task)
        seen: list[bytes | None] = []

        def land() -> None:
            if isinstance(action, actions.WritePrimary):
                self.primary.grains[action.grain] = action.data
                self.landed(sending.host, sending.task, action)
                seen.append(None)
            else:
                seen.append(self.primary.grains[action.grain])

        command = Command(
            nexus,
            self.primary.tag(),
            land,
            succeed=lambda: self._answered(sending, seen[0]),
            refuse=lambda: self._answered(sending, Conflict()),
            lose=lambda: self.at(self.delay(), lambda: self._again(sending)),
        )
        self.primary.in_flight.append(command)
        delay = self.random.random() * 3 if self.random.random() < self.slow else self.delay()
        self.at(delay, lambda: self.primary.complete(command))

    def _end(
        self, sending: Sending, nexus: Hashable, action: actions.PreemptAndAbort | actions.ResetLogicalUnit
    ) -> None:
        """Carry out a command that ends others.  It brings the moment of the snapshots that its fence knew at its begin."""
        host = sending.host
        if isinstance(action, actions.PreemptAndAbort):
            host.fences = len(self.history.epochs)
        known = host.fences

        def succeed() -> None:
            self.moment(known)
            if self.now < self.healed and self.random.random() < self.dozy:
                host.asleep_until = max(host.asleep_until, self.now + self.random.random() * 1.5)
            self._answered(sending, None)

        command = Command(
            nexus,
            0,
            land=lambda: None,
            succeed=succeed,
            refuse=lambda: self._answered(sending, Conflict()),
            lose=lambda: self.at(self.delay(), lambda: self._again(sending)),
        )
        try:
            if isinstance(action, actions.PreemptAndAbort):
                self.primary.preempt_and_abort(command, action.own)
            else:
                self.primary.reset(command)
        except Conflict:
            command.refuse()
