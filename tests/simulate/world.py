# SPDX-License-Identifier: Apache-2.0
"""One run of the simulation: a seed decides the nodes, their actions, every delay and every fault.

Faults happen until `HEALED` seconds of simulated time: nodes crash and sleep, links break, answers get lost, initiators
log in and send again while the first command is still at the device, the storage host restarts, reads of the log are
torn, clocks jump, and write-once LUNs become visible late.  Afterwards everything must come to an end.

The checks: after each change of a device, every fenced snapshot shows the primary at the end of the first PREEMPT AND
ABORT behind its record.  So does each grain that a node read of a view.  An acknowledged write was on the primary.  In
the end all writes and requests are done, and all nodes are ARMED in the newest epoch.
"""

from __future__ import annotations

import heapq
import random
import uuid
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field
from typing import Any

from lun_backends.cluster import access, actions, history, node, records
from lun_backends.cluster.actions import Conflict, Unreachable
from tests.simulate.devices import Command, Primary, Storage, WriteOnce

HEALED = 12.0  # seconds of simulated time
END = 120.0
GRAINS = 2
BLOCK = 4096


class Wrong(Exception):
    """A promise of the protocol was broken."""


@dataclass(eq=False)
class Task:
    """A generator of the protocol that a node runs."""

    steps: Generator[Any, Any, Any]
    done: Callable[[Any], None]
    waits_for: object = None


@dataclass(eq=False)
class Host:
    """A machine with a node on it."""

    name: str
    node: node.Node
    life: int = 0  # counts crashes
    session: int = 0
    fences: int = 0  # how many epochs the log had when its last PREEMPT AND ABORT began
    asleep_until: float = 0.0
    primary_down_until: float = 0.0
    storage_down_until: float = 0.0
    tasks: list[Task] = field(default_factory=list)
    late_luns: dict[uuid.UUID, float] = field(default_factory=dict)


class World:
    """The whole of a run."""

    def __init__(self, seed: int, guards: node.Guards | None = None, calm: int = 0) -> None:
        """Prepare the world; `run` starts it.  With `calm` nodes nothing fails, and only requested actions happen."""
        self.healed = 0.0 if calm else HEALED
        self.random = random.Random(seed)
        self.guards = guards or node.Guards()
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.counted = 0
        self.volume = uuid.UUID(int=self.random.getrandbits(128))
        lio = self.random.random() < 0.6
        self.exclusive = self.random.random() < 0.6
        overlap = lio and self.random.random() < 0.5
        self.resets = overlap or self.random.random() < 0.3
        self.primary = Primary(lio, overlap, self.exclusive, lambda: self.random.random() < 0.5)
        self.primary.grains = {grain: b"grain %d" % grain for grain in range(GRAINS)}
        self.storage = Storage()
        self.slow = (
            0.0 if calm else self.random.choice((0.02, 0.1, 0.4))
        )  # the share of commands that take long at the primary
        self.spread = self.random.choice((0.005, 0.05, 0.5))  # seconds of a storm
        self.moments: dict[uuid.UUID, dict[int, bytes]] = {}
        self.luns: dict[uuid.UUID, uuid.UUID | None] = {}
        self.history = history.History()  # as the devices have it
        self.applied: set[bytes] = set()
        self.pending = 0  # writes, views and requests that are not done
        self.acknowledged = 0
        self.viewed = 0
        for _ in range(6):
            self.storage.luns[uuid.UUID(int=self.random.getrandbits(128))] = WriteOnce()
        used = self.random.choice(list(self.storage.luns))
        self.storage.luns[used].put(0, b"of an older life")
        self.pool_order = list(self.storage.luns)
        self.random.shuffle(self.pool_order)
        self.hosts = [self._host(f"node{n}") for n in range(calm or self.random.choice((2, 2, 3, 3, 4)))]
        if calm:
            for host in self.hosts:
                self._start(host)

    # ---- time

    def at(self, delay: float, call: Callable[[], None]) -> None:
        """Call after `delay` seconds."""
        self.counted += 1
        heapq.heappush(self.events, (self.now + delay, self.counted, call))

    def _delay(self) -> float:
        return self.random.random() * (0.002 if self.random.random() < 0.9 else 0.3)

    def go(self, seconds: float) -> None:
        """Let that much simulated time pass."""
        until = self.now + seconds
        while self.events and self.events[0][0] <= until:
            self.now, _, call = heapq.heappop(self.events)
            call()
        self.now = until

    def run(self) -> None:
        """Run the world to its end.  Raise Wrong."""
        for host in self.hosts:
            self._start(host)
            self._plan(host)
        for _ in range(self.random.randrange(4)):
            self.at(self.random.random() * (HEALED - 4), self._storm)
        if self.random.random() < 0.5:
            self.at(self.random.random() * (HEALED - 1), self._restart_storage)
        while self.events:
            self.now, _, call = heapq.heappop(self.events)
            if self.now > END:
                break
            call()
            if self.now > HEALED and self._settled():
                break
        if self.pending:
            raise Wrong(f"{self.pending} writes, views or requests did not end")
        if not self._settled():
            raise Wrong(
                "the nodes did not arm: "
                + ", ".join(f"{h.name} {h.node.state.value} {h.node.problem}" for h in self.hosts)
            )
        self._check()

    def _settled(self) -> bool:
        return (
            self.pending == 0
            and not self.history.fence_is_due
            and all(
                host.node.gate_open and host.node.epoch.position == self.history.epochs[-1].position
                for host in self.hosts
            )
        )

    # ---- nodes

    def _host(self, name: str) -> Host:
        host = Host(name, self._node(name))
        for lun in self.storage.luns:
            host.late_luns[lun] = self.random.random() * self.healed if self.random.random() < 0.1 else 0.0
        return host

    def _node(self, name: str) -> node.Node:
        return node.Node(
            self.volume,
            name,
            exclusive=self.exclusive,
            resets=self.resets,
            block_size=BLOCK,
            identity=lambda: uuid.UUID(int=self.random.getrandbits(128)),
            clock=lambda: self.random.getrandbits(62),  # jumps at every look
            patience=0.2 + self.random.random() * 0.3,
            guards=self.guards,
        )

    def _start(self, host: Host) -> None:
        self._begin(host, host.node.run(), lambda result: None)

    def _plan(self, host: Host) -> None:
        for _ in range(self.random.randrange(2, 8)):
            self.at(self.random.random() * HEALED, lambda: self.write(host))
        for _ in range(self.random.randrange(4)):
            self.at(self.random.random() * HEALED, lambda: self._view(host))
        for _ in range(self.random.randrange(2)):
            self.at(self.random.random() * HEALED, lambda: self._take(host))
        for fault in (self.crash, self._sleep, self._cut_primary, self._cut_storage):
            for _ in range(self.random.randrange(2)):
                self.at(self.random.random() * (HEALED - 3), lambda fault=fault: fault(host))  # type: ignore[misc]

    def _begin(self, host: Host, steps: Generator[Any, Any, Any], done: Callable[[Any], None]) -> None:
        task = Task(steps, done)
        host.tasks.append(task)
        self._resume(host, task, lambda: next(task.steps))

    def write(self, host: Host, grain: int | None = None) -> None:
        data = b"%s %d" % (host.name.encode(), self.counted)
        grain = self.random.randrange(GRAINS) if grain is None else grain
        if not host.tasks:
            return  # the machine is off
        self.pending += 1

        def done(result: Any) -> None:
            self.pending -= 1
            self.acknowledged += 1
            if data not in self.applied:
                raise Wrong(f"{data!r} was acknowledged and never written")

        self._begin(host, access.write(host.node, grain, data), done)

    def _view(self, host: Host) -> None:
        known = [epoch.snapshot for epoch in host.node.history.epochs if epoch.snapshot is not None]
        if not known or not host.tasks:
            return
        snapshot, grain = self.random.choice(known), self.random.randrange(GRAINS)
        self.pending += 1

        def done(result: Any) -> None:
            self.pending -= 1
            if isinstance(result, history.Refused):
                return
            self.viewed += 1
            if result != self.moments[snapshot][grain]:
                raise Wrong(f"a view of {snapshot} shows {result!r} for {self.moments[snapshot][grain]!r}")

        self._begin(host, access.read_view(host.node, snapshot, grain), done)

    def _take(self, host: Host) -> None:
        self.ask(host, node.taking(self.volume, f"{host.name}-{self.counted}"))

    def ask(self, host: Host, request: node.Request) -> node.Request:
        """Ask the node of a host for a record."""
        host.node.ask(request)
        self._poke(host)
        return request

    # ---- what the generators ask for

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
            except history.Refused as refused:
                host.tasks.remove(task)
                task.done(refused)
            else:
                self._do(host, task, action)
            self._poke(host)

        self.at(self._delay(), go)

    def _poke(self, host: Host) -> None:
        """Wake the tasks whose wait is over."""
        for task in list(host.tasks):
            action = task.waits_for
            over = (
                (isinstance(action, actions.Wait) and host.node.awake)
                or (isinstance(action, actions.Drain) and host.node.running == 0)
                or (isinstance(action, actions.WaitForGate) and host.node.gate_open)
            )
            if over:
                self._answer(host, task, None)

    def _answer(self, host: Host, task: Task, result: object) -> None:
        if isinstance(result, Exception):
            self._resume(host, task, lambda: task.steps.throw(result))
        else:
            self._resume(host, task, lambda: task.steps.send(result))
        task.waits_for = None

    def _do(self, host: Host, task: Task, action: object) -> None:
        if isinstance(action, actions.Wait | actions.Drain | actions.WaitForGate):
            task.waits_for = action
            if isinstance(action, actions.Wait):

                def over() -> None:
                    if task.waits_for is action:
                        self._answer(host, task, None)

                self.at(action.seconds, over)
        else:
            self._send(host, task, action, tries=0)

    # ---- commands

    def _nexus(self, host: Host) -> Hashable:
        return host.name if self.primary.lio else (host.name, host.session)

    def _send(self, host: Host, task: Task, action: object, tries: int) -> None:
        """Send a command, and send it again in a new session if that is needed."""
        life = host.life
        answered = False
        on_primary = isinstance(
            action,
            actions.OwnKey | actions.Register | actions.ReadReservation | actions.Reserve | actions.PreemptAndAbort | actions.ResetLogicalUnit | actions.Flush
            | actions.ReadPrimary | actions.WritePrimary,
        )  # fmt: skip
        down_until = host.primary_down_until if on_primary else host.storage_down_until

        def again() -> None:
            nonlocal answered
            if answered or host.life != life:
                return
            answered = True
            host.session += 1
            if tries > 3:
                self._answer(host, task, Unreachable("no answer"))
            else:
                self._send(host, task, action, tries + 1)

        def answer(result: object) -> None:
            nonlocal answered
            if answered or host.life != life:
                return
            if self.now < self.healed and self.random.random() < 0.02:
                self.at(0.2, again)  # the answer is lost
                return
            answered = True
            self._answer(host, task, result)

        if self.now < down_until:
            self.at(down_until - self.now, again)
            return
        if self.now < self.healed and self.random.random() < 0.02:
            self.at(
                0.05 + self.random.random(), again
            )  # the initiator loses its patience; the command is on its way all the same
        nexus = self._nexus(host)
        self.at(self._delay(), lambda: self._arrive(host, nexus, action, answer, again))

    def _arrive(
        self, host: Host, nexus: Hashable, action: object, answer: Callable[[object], None], again: Callable[[], None]
    ) -> None:
        """Carry a command out at its device."""
        if isinstance(action, actions.ReadPrimary | actions.WritePrimary):
            self._admit(nexus, action, answer, again)
            return
        if isinstance(action, actions.PreemptAndAbort | actions.ResetLogicalUnit):
            self._end(host, nexus, action, answer, again)
            return
        try:
            result = self._carry_out(host, nexus, action)
        except Conflict as conflict:
            result = conflict
        self.at(self._delay(), lambda: answer(result))

    def _carry_out(self, host: Host, nexus: Hashable, action: object) -> object:
        match action:
            case actions.ReadLog(position):
                blocks = self.storage.read_log(position)
                if blocks and self.now < self.healed and self.random.random() < 0.01:
                    return (*blocks[:-1], blocks[-1][:100].ljust(BLOCK, b"\0"))  # torn
                return blocks
            case actions.Append(position, block):
                appended = position in (0, len(self.storage.log.blocks)) and self.storage.log.put(position, block)
                if appended:
                    self.history.add(records.decode(block, position, self.volume))
                    self._check()
                return appended
            case actions.FindLun(lun):
                return lun in self.storage.luns and self.now >= host.late_luns[lun]
            case actions.FindBlank():
                return tuple(
                    lun
                    for lun in self.pool_order
                    if self.now >= host.late_luns[lun]
                    and (not self.storage.luns[lun].blocks or not self.guards.verify_blank)
                )
            case actions.OwnKey():
                return self.primary.keys.get(nexus)
            case actions.Register(new, old):
                self.primary.register(nexus, new, old)
            case actions.ReadReservation():
                return self.primary.reservation()
            case actions.Reserve(own):
                self.primary.reserve(nexus, own)
            case actions.Get(lun, grain):
                return self.storage.luns[lun].blocks.get(grain)
            case actions.Put(lun, grain, data):
                put = self.storage.luns[lun].put(grain, data)
                self._check()
                return put
            case actions.Flush():
                pass
            case _:
                raise AssertionError(action)
        return None

    def _admit(
        self,
        nexus: Hashable,
        action: actions.ReadPrimary | actions.WritePrimary,
        answer: Callable[[object], None],
        again: Callable[[], None],
    ) -> None:
        writes = isinstance(action, actions.WritePrimary)
        if not self.primary.admits(nexus, writes):
            self.at(self._delay(), lambda: answer(Conflict()))
            return
        seen: list[bytes | None] = []

        def land() -> None:
            if isinstance(action, actions.WritePrimary):
                self.primary.grains[action.grain] = action.data
                self.applied.add(action.data)
                self._check()
                seen.append(None)
            else:
                seen.append(self.primary.grains[action.grain])

        command = Command(
            nexus,
            self.primary.tag(),
            land,
            succeed=lambda: self.at(self._delay(), lambda: answer(seen[0])),
            refuse=lambda: self.at(self._delay(), lambda: answer(Conflict())),
            lose=lambda: self.at(self._delay(), again),
        )
        self.primary.in_flight.append(command)

        delay = self.random.random() * 3 if self.random.random() < self.slow else self._delay()
        self.at(delay, lambda: self.primary.complete(command))

    def _end(
        self,
        host: Host,
        nexus: Hashable,
        action: actions.PreemptAndAbort | actions.ResetLogicalUnit,
        answer: Callable[[object], None],
        again: Callable[[], None],
    ) -> None:
        """Carry out a command that ends others.  The last of a fence brings the moment of the snapshots that it knew at its begin."""
        last = isinstance(action, actions.ResetLogicalUnit) or not (self.resets and self.guards.reset_in_fence)
        if isinstance(action, actions.PreemptAndAbort):
            host.fences = len(self.history.epochs)

        def succeed() -> None:
            if last:
                self._moment(known)
            self.at(self._delay(), lambda: answer(None))

        known = host.fences
        command = Command(
            nexus,
            0,
            land=lambda: None,
            succeed=succeed,
            refuse=lambda: self.at(self._delay(), lambda: answer(Conflict())),
            lose=lambda: self.at(self._delay(), again),
        )
        try:
            if isinstance(action, actions.PreemptAndAbort):
                self.primary.preempt_and_abort(command, action.own)
            else:
                self.primary.reset(command)
        except Conflict:
            command.refuse()

    # ---- faults

    def crash(self, host: Host) -> None:
        """Stop the machine.  Its commands are still on their way.  It starts again some time later."""
        if not host.tasks:
            return  # the machine is off
        host.life += 1
        host.session += 1
        self.pending -= len(host.tasks) - 1  # the first one is the node itself
        host.tasks.clear()
        host.node = self._node(host.name)
        self.at(self.random.random() * self.random.choice((0.01, 0.3, 2.0)), lambda: self._start(host))

    def _sleep(self, host: Host) -> None:
        host.asleep_until = self.now + self.random.random() * 3

    def _storm(self) -> None:
        """Let much happen within a few milliseconds: snapshots, writes, and faults of the nodes that write."""
        what = (self._take, self.write, self.write, self.crash, self._sleep, self._view)
        for _ in range(self.random.randrange(3, 10)):
            host, call = self.random.choice(self.hosts), self.random.choice(what)
            self.at(self.random.random() * self.spread, lambda call=call, host=host: call(host))  # type: ignore[misc]

    def _cut_primary(self, host: Host) -> None:
        host.primary_down_until = self.now + self.random.random() * 3

    def _cut_storage(self, host: Host) -> None:
        host.storage_down_until = self.now + self.random.random() * 3

    def _restart_storage(self) -> None:
        for host in self.hosts:
            host.primary_down_until = max(host.primary_down_until, self.now + 0.1)
        self.primary.restart()

    # ---- checks

    def _moment(self, known: int) -> None:
        for epoch in self.history.epochs[:known]:
            if epoch.snapshot is not None and epoch.snapshot not in self.moments:
                self.moments[epoch.snapshot] = dict(self.primary.grains)

    def _check(self) -> None:
        """Raise Wrong if a fenced snapshot is not what it was."""
        newest = self.history.newest
        for epoch in self.history.epochs:
            if (
                epoch.snapshot is None
                or self.history.standing(epoch.snapshot) is not history.Standing.TAKEN
                or newest is None
            ):
                continue
            chain = self.history.chain(epoch.snapshot, newest)
            for grain, content in self.moments[epoch.snapshot].items():
                kept = next(
                    (found for lun in chain if (found := self.storage.luns[lun].blocks.get(grain)) is not None), None
                )
                seen = kept if kept is not None else self.primary.grains[grain]
                if seen != content:
                    raise Wrong(f"snapshot {epoch.number} shows {seen!r} for {content!r} in grain {grain}")


def run(seed: int, guards: node.Guards | None = None) -> World:
    """Run one seed and return its world.  Raise Wrong, with the seed in its message."""
    world = World(seed, guards)
    try:
        world.run()
    except Wrong as wrong:
        raise Wrong(f"seed {seed}, {world.now:.3f} s: {wrong}") from wrong
    return world
