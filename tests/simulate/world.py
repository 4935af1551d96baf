# SPDX-License-Identifier: Apache-2.0
"""One run of the simulation: a seed decides the nodes, their actions, every delay and every fault.

Faults happen until `HEALED` seconds of simulated time: nodes crash and sleep, links break, answers get lost, initiators
log in and send again while the first command is still at the device, the storage host restarts, reads of the log are
torn, clocks jump, write-once LUNs become visible late and get full.  Snapshots are deleted, moved by several nodes at once,
lost and rolled back to, and nodes are expelled.  Afterwards everything must come to an end.

The checks: after each change of a device, every fenced snapshot shows the primary at the end of the first fence
behind its record.  So does each grain that a node read of a view.  An acknowledged write was on the primary.  An
expelled node writes nothing behind the fence that its expulsion demands.  During a rollback only its node writes, nothing but
that rollback, and in the end the primary is the snapshot; later it writes nothing for it any more.  In the end all writes,
requests and jobs are done, and all nodes are ARMED in the newest epoch, except an expelled one.
"""

from __future__ import annotations

import heapq
import uuid
from collections.abc import Callable, Generator
from typing import Any

from lun_backends.cluster import access, actions, history, jobs, node, records
from lun_backends.cluster.actions import Full
from lun_backends.cluster.guards import Guards
from lun_backends.cluster.records import Record, Type
from tests.simulate.devices import Primary, Storage, WriteOnce
from tests.simulate.wires import BLOCK, Host, Task, Wires, Wrong

HEALED = 12.0  # seconds of simulated time
END = 120.0
GRAINS = 2
POOL = 7


class World(Wires):
    """The whole of a run."""

    def __init__(self, seed: int, guards: Guards | None = None, calm: int = 0) -> None:
        """Prepare the world; `run` starts it.  With `calm` nodes nothing fails, and only requested actions happen."""
        super().__init__(seed, guards, 0.0 if calm else HEALED)
        self.works = bool(calm) or self.random.random() < 0.6  # snapshots are deleted, lost and rolled back to
        self.aims = not calm and self.random.random() < 0.4  # little happens but storms that look for one weakness
        aimed_at_lio = self.aims and not self.works
        lio = self.random.random() < (0.9 if aimed_at_lio else 0.6)
        self.exclusive = self.random.random() < 0.6
        overlap = lio and self.random.random() < (0.2 if aimed_at_lio else 0.5)
        self.resets = overlap or self.random.random() < 0.3
        self.primary = Primary(lio, overlap, self.exclusive, lambda: self.random.random() < 0.5)
        self.primary.grains = {grain: b"grain %d" % grain for grain in range(GRAINS)}
        self.storage = Storage()
        self.slow = 0.0 if calm else self.random.choice((0.02, 0.1, 0.4))
        self.dozy = self.random.choice((0.0, 0.0, 0.0, 0.3))
        self.spread = self.random.choice((0.005, 0.05, 0.5))  # seconds of a storm
        self.paths = 2 if not calm and self.random.random() < 0.25 else 1
        self.drops = self.random.random() < 0.7  # on_error: drop-snapshot
        self.moments: dict[uuid.UUID, dict[int, bytes]] = {}
        self.applied: set[bytes] = set()
        self.acknowledged = 0
        self.viewed = 0
        self.jobs_done = 0
        self.tired = ""  # the node that sleeps as soon as its EPOCH record is in the log
        self.expulsions: dict[str, int] = {}  # the position of each
        for _ in range(POOL):
            self.storage.luns[uuid.UUID(int=self.random.getrandbits(128))] = WriteOnce()
        used = self.random.choice(list(self.storage.luns))
        self.storage.luns[used].put(0, b"of an older life")
        self.pool_order = list(self.storage.luns)
        self.random.shuffle(self.pool_order)
        self.hosts = [self._host(f"node{n}") for n in range(calm or self.random.choice((2, 2, 3, 3, 4)))]
        if calm:
            for host in self.hosts:
                self._start(host)

    def run(self) -> None:
        """Run the world to its end.  Raise Wrong."""
        for host in self.hosts:
            self._start(host)
            self._plan(host)
            if self.works:
                self._look_for_jobs(host)
        storms = (
            (
                self._storm_of_deletions,
                self._storm_of_slow_movers,
                self._storm_of_a_hidden_newest,
                self._storm_of_rollbacks,
            )
            if self.works
            else (self._storm_of_fences, self._storm_of_two_fencers, self._storm_of_a_late_helper)
        )
        aimed = self.random.choice(storms)
        if self.aims:
            for begin in (0.5, 6.5):
                self.at(begin + self.random.random(), aimed)
        else:
            for _ in range(self.random.randrange(4)):
                self.at(self.random.random() * (HEALED - 4), self.random.choice((self._storm, self._storm, aimed)))
        if self.random.random() < 0.5:
            self.at(self.random.random() * (HEALED - 1), self._restart_storage)
        self.at(HEALED, self._free_space)
        while self.events:
            self.now, _, call = heapq.heappop(self.events)
            if self.now > END:
                break
            call()
            if self.now > HEALED and self._settled():
                break
        if self.pending:
            raise Wrong(f"{self.pending} writes or views did not end")
        if not self._settled():
            raise Wrong(
                "the nodes did not arm, or a job did not end: "
                + ", ".join(f"{h.name} {h.node.state.value} {h.node.problem} {h.jobs}" for h in self.hosts)
                + f"; rollback {self.history.rollback}, movable {self.history.movable()}"
            )
        self.check()

    @property
    def pending(self) -> int:
        """How many writes and views of the nodes that may write are not done."""
        return sum(task.awaited for host in self._welcome() for task in host.tasks)

    def _welcome(self) -> list[Host]:
        return [host for host in self.hosts if host.name not in self.history.expelled]

    def _settled(self) -> bool:
        return (
            self.pending == 0
            and not self.history.fence_is_due
            and self.history.rollback is None
            and not (self.works and self.history.movable())
            and all(
                host.node.gate_open and not host.jobs and host.node.epoch.position == self.history.epochs[-1].position
                for host in self._welcome()
            )
        )

    # ---- nodes

    def _host(self, name: str) -> Host:
        host = Host(name, self._node(name), self.paths)
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
        self.begin(host, Task(host.node.run(), lambda result: None, awaited=False))

    def _plan(self, host: Host) -> None:
        if self.aims:
            self.at(self.random.random() * HEALED, lambda: self.random.choice((self.crash, self._sleep))(host))
            return
        for _ in range(self.random.randrange(2, 8)):
            self.at(self.random.random() * HEALED, lambda: self.write(host))
        for _ in range(self.random.randrange(4)):
            self.at(self.random.random() * HEALED, lambda: self._view(host))
        for _ in range(self.random.randrange(2)):
            self.at(self.random.random() * HEALED, lambda: self._take(host))
        for fault in (self.crash, self._sleep, self._cut_primary, self._cut_storage):
            for _ in range(self.random.randrange(2)):
                self.at(self.random.random() * (HEALED - 3), lambda fault=fault: fault(host))  # type: ignore[misc]
        if self.works:
            for work in (self._delete, self._delete, self._roll_back, self._end_copies, self._expel, self._fill):
                if self.random.random() < 0.25:
                    self.at(self.random.random() * HEALED, lambda work=work: work(host))  # type: ignore[misc]

    def write(self, host: Host, grain: int | None = None) -> None:
        """Let a host write a grain."""
        data = b"%s %d" % (host.name.encode(), self.counted)
        grain = self.random.randrange(GRAINS) if grain is None else grain
        if not host.tasks:
            return  # the machine is off

        def done(result: Any) -> None:
            if isinstance(result, Full):
                if self.drops:
                    raise Wrong("a write failed although its snapshot could be dropped")
                return
            if isinstance(result, history.Refused):
                raise Wrong(f"a write was refused: {result}")
            self.acknowledged += 1
            if data not in self.applied:
                raise Wrong(f"{data!r} was acknowledged and never written")

        self.begin(host, Task(access.write(host.node, grain, data, self.drops), done))

    def _view(self, host: Host) -> None:
        known = [epoch.snapshot for epoch in host.node.history.epochs if epoch.snapshot is not None]
        if not known or not host.tasks:
            return
        snapshot, grain = self.random.choice(known), self.random.randrange(GRAINS)

        def done(result: Any) -> None:
            if isinstance(result, history.Refused):
                return
            self.viewed += 1
            if result != self.moments[snapshot][grain]:
                raise Wrong(f"a view of {snapshot} shows {result!r} for {self.moments[snapshot][grain]!r}")

        self.begin(host, Task(access.read_view(host.node, snapshot, grain), done))

    # ---- requests and jobs

    def ask(self, host: Host, request: node.Request) -> node.Request:
        """Ask the node of a host for a record."""
        host.node.ask(request)
        self.poke(host)
        return request

    def _take(self, host: Host) -> None:
        self.ask(host, node.taking(self.volume, f"{host.name}-{self.counted}"))

    def _ask_about_one(self, host: Host, kind: Type) -> None:
        log = host.node.history
        known = [
            epoch.snapshot
            for epoch in log.epochs
            if epoch.snapshot is not None
            and log.standing(epoch.snapshot) in (history.Standing.TAKEN, history.Standing.INVALID)
        ]
        if known:
            self.ask(host, node.Request(Record(kind, self.volume, snapshot=self.random.choice(known))))

    def _delete(self, host: Host) -> None:
        self._ask_about_one(host, Type.DELETE)

    def _roll_back(self, host: Host) -> None:
        self._ask_about_one(host, Type.ROLLBACK)

    def _end_copies(self, host: Host) -> None:
        self.ask(host, node.Request(Record(Type.EPOCH, self.volume, snapshot=uuid.UUID(int=0))))

    def _expel(self, host: Host) -> None:
        others = [other.name for other in self.hosts if other is not host]
        if len(others) > 1 and not self.expulsions and self.random.random() < 0.5:
            self.expulsions[self.random.choice(others)] = -1
            self.ask(host, node.Request(Record(Type.EXPEL, self.volume, node=next(iter(self.expulsions)))))

    def _fill(self, host: Host) -> None:
        """Let a write-once LUN get full, mostly the newest."""
        newest = self.history.newest
        lun = newest.lun if newest is not None and self.random.random() < 0.8 else self.random.choice(self.pool_order)
        if lun in self.storage.luns:
            self.storage.luns[lun].full = True

    def _free_space(self) -> None:
        for lun in self.storage.luns.values():
            lun.full = False

    def _look_for_jobs(self, host: Host) -> None:
        """Let a host begin jobs of the volume, and look again later."""
        for job in jobs.due(host.node):
            if host.tasks and job not in host.jobs and self.random.random() < 0.7:
                self._begin_job(host, job)
        self.at(0.05 + self.random.random() * 0.5, lambda: self._look_for_jobs(host))

    def _begin_job(self, host: Host, job: jobs.Job) -> None:
        steps: Generator[Any, Any, None]
        rollback_at = None
        match job:
            case jobs.Move(snapshot):
                steps = jobs.move(host.node, snapshot)
            case jobs.RollBack(position):
                steps, rollback_at = jobs.roll_back(host.node, position), position
            case jobs.TakeOver():
                steps = jobs.take_over(host.node)

        def done(result: Any) -> None:
            host.jobs.discard(job)
            self.jobs_done += result is None

        host.jobs.add(job)
        self.begin(host, Task(steps, done, awaited=False, rollback_at=rollback_at))

    # ---- faults

    def crash(self, host: Host) -> None:
        """Stop the machine.  Its commands are still on their way.  It starts again some time later."""
        if not host.tasks:
            return  # the machine is off
        host.life += 1
        for path in range(host.paths):
            host.log_in(path)
        host.tasks.clear()
        host.jobs.clear()
        host.node = self._node(host.name)
        self.at(self.random.random() * self.random.choice((0.01, 0.3, 2.0)), lambda: self._start(host))

    def _sleep(self, host: Host) -> None:
        host.asleep_until = self.now + self.random.random() * 3

    def _storm(self) -> None:
        """Let much happen within a few milliseconds: snapshots, writes, jobs, and faults of the nodes that write."""
        what: list[Callable[[Host], None]] = [self._take, self.write, self.write, self.crash, self._sleep, self._view]
        if self.works and self.random.random() < 0.7:
            what += [self._delete, self._roll_back, self._fill, self._expel, self.write, self._view, self._end_copies]
        for _ in range(self.random.randrange(3, 10)):
            host, call = self.random.choice(self.hosts), self.random.choice(what)
            self.at(self.random.random() * self.spread, lambda call=call, host=host: call(host))  # type: ignore[misc]

    def _some_host(self) -> Host:
        return self.random.choice(self.hosts)

    def _writes(self, count: int, begin: float, seconds: float) -> None:
        for _ in range(count):
            self.at(begin + self.random.random() * seconds, lambda: self.write(self._some_host()))

    def _storm_of_fences(self) -> None:
        """Let fencers sleep behind PREEMPT AND ABORT, so that others arm below the key of a late helper, and fence again."""
        self.dozy, before = 0.6, self.dozy
        self._take(self._some_host())
        for at in (1 + self.random.random(), 2 + self.random.random()):
            self.at(at, lambda: self._take(self._some_host()))
        self._writes(12, 0.0, 3.0)
        self.at(3.0, lambda: setattr(self, "dozy", before))

    def _storm_of_two_fencers(self) -> None:
        """Let a node start again whose write is slow, and fence while the taker sleeps in the middle of its own fence."""
        taker, writer = self.random.sample(self.hosts, 2)
        before, self.slow = self.slow, 1.0
        for _ in range(6):
            self.at(self.random.random() * 0.15, lambda: self.write(writer))
        self.at(1.0, lambda: setattr(self, "slow", before))

        def take() -> None:
            self.naps[taker.name, actions.ReadReservation] = 0.5 + self.random.random() * 1.5
            self.crash(writer)
            self._take(taker)

        self.at(0.15 + self.random.random() * 0.1, take)

    def _storm_of_a_late_helper(self) -> None:
        """Let a helper sleep before its fence until two more epochs are fenced, so that the key of a dead one becomes the holder's.

        A slow write then bears that key, and another snapshot is taken when the helper has joined.
        """
        if len(self.hosts) < 3:
            self._storm_of_two_fencers()
            return
        taker, helper, writer = self.random.sample(self.hosts, 3)
        self.naps[helper.name, actions.OwnKey] = 1.4 + self.random.random() * 0.6
        self.naps[helper.name, actions.PreemptAndAbort] = 0.1 + self.random.random() * 0.3

        def take_and_sleep() -> None:
            self.naps[taker.name, actions.Append] = 1.0
            self._take(taker)

        for host in self.hosts:
            if host is not taker:
                host.asleep_until = self.now + (0.3 if host is helper else 1.7)
        self._take(taker)
        self.at(0.2, take_and_sleep)
        self.at(0.3, lambda: self.write(helper))
        self.at(1.6, lambda: self._take(taker))
        before = self.slow
        self.at(1.8, lambda: setattr(self, "slow", 1.0))
        for _ in range(30):
            self.at(1.8 + self.random.random() * 1.6, lambda: self.write(writer))
        self.at(2.4 + self.random.random(), lambda: self._take(taker))
        self.at(4.0, lambda: setattr(self, "slow", before))

    def _storm_of_slow_movers(self) -> None:
        """Delete a snapshot, and then the next older one, while movers sleep behind their look at what there is to move."""
        for number in range(4):
            self.at(number * 0.7, lambda: self._take(self._some_host()))
        self._writes(6, 2 * 0.7 + 0.3, 0.4)  # in the last but one

        def delete(which: int) -> None:
            log = self._some_host().node.history
            known = [epoch.snapshot for epoch in log.epochs if epoch.snapshot is not None]
            for host in self.hosts:
                self.naps[host.name, actions.Written] = self.random.random() * 1.5
            for snapshot in known[which : which + 1 or None]:
                draft = Record(Type.DELETE, self.volume, snapshot=snapshot)
                self.ask(self._some_host(), node.Request(draft))

        self.at(3.0, lambda: delete(-2))
        self.at(3.0 + self.random.random(), lambda: delete(-3))

    def _storm_of_deletions(self) -> None:
        """Delete neighbours at once, so that one mover looks through the LUN that another one fills."""
        for number in range(4):
            self.at(number * 0.7, lambda: self._take(self._some_host()))
        self._writes(6, 2 * 0.7 + 0.3, 0.4)  # in the last but one

        def delete() -> None:
            log = self._some_host().node.history
            known = [epoch.snapshot for epoch in log.epochs if epoch.snapshot is not None]
            for snapshot in known[-3:-1]:
                draft = Record(Type.DELETE, self.volume, snapshot=snapshot)
                self.ask(self._some_host(), node.Request(draft))
            self._writes(3, 0.2, 1.0)

        self.at(3.0, delete)

    def _storm_of_a_hidden_newest(self) -> None:
        """Delete the newest snapshot, and let the taker of the next one sleep before its fence while others write and move."""
        self._take(self._some_host())
        self.at(1.2, lambda: self._take(self._some_host()))

        def delete() -> None:
            newest = self.history.newest
            if newest is not None and newest.snapshot is not None:
                draft = Record(Type.DELETE, self.volume, snapshot=newest.snapshot)
                self.ask(self._some_host(), node.Request(draft))

        def take() -> None:
            taker = self._some_host()
            self.tired = taker.name
            self._take(taker)

        self.at(2.4, delete)
        self.at(3.0, take)
        self._writes(12, 3.0, 1.2)

    def _storm_of_rollbacks(self) -> None:
        """Roll back, and let other nodes take over while the first one sleeps or starts again."""
        self._take(self._some_host())
        self._writes(6, 0.5, 0.5)
        first, second = self._some_host(), self._some_host()
        self.at(1.1, lambda: self._roll_back(first))
        self.at(1.2 + self.random.random() * 0.5, lambda: self.random.choice((self._sleep, self.crash))(first))
        self.at(1.3 + self.random.random() * 0.7, lambda: self._roll_back(second))
        self.at(2.0 + self.random.random(), lambda: self._roll_back(self.random.choice((first, second))))
        self._writes(6, 1.5, 2.5)

    def _cut_primary(self, host: Host) -> None:
        path = self.random.randrange(host.paths)
        host.primary_down_until[path] = self.now + self.random.random() * 3

    def _cut_storage(self, host: Host) -> None:
        host.storage_down_until = self.now + self.random.random() * 3

    def _restart_storage(self) -> None:
        for host in self.hosts:
            host.primary_down_until = [max(until, self.now + 0.1) for until in host.primary_down_until]
        self.primary.restart()

    # ---- checks

    def appended(self, position: int, block: bytes) -> None:
        """Learn a record of the log, and check what it promises."""
        before = self.history.rollback
        record = records.decode(block, position, self.volume)
        self.history.add(record)
        if record.type is Type.EPOCH and record.node == self.tired:
            self.tired = ""
            self._sleep(next(host for host in self.hosts if host.name == record.node))
        if record.type is Type.EXPEL:
            self.expulsions[record.node] = position
        if record.type is Type.ROLLED_BACK and before is not None and self.history.rollback is None:
            assert before.snapshot is not None
            if self.primary.grains != self.moments[before.snapshot]:
                raise Wrong(f"rolled back to {self.primary.grains}, not to {self.moments[before.snapshot]}")
        if record.type is Type.DELETED:
            if self.now < HEALED and self.works:
                self._writes(3, 0.0, 0.03)
            for epoch in self.history.epochs:
                if epoch.lun in self.storage.luns and self.history.standing_of(epoch) is history.Standing.DELETED:
                    self.at(self.random.random(), lambda lun=epoch.lun: self._retire(lun))  # type: ignore[misc]
        self.check()

    def admitted(self, task: Task) -> None:
        """Raise Wrong for a write of a rollback that has ended."""
        if task.rollback_at is not None and self.history.rollback is None:
            raise Wrong("a rollback writes on after its end")

    def landed(self, host: Host, task: Task, action: actions.WritePrimary) -> None:
        """Raise Wrong for a write of a node that was to be fenced."""
        self.applied.add(action.data)
        expelled_at = self.expulsions.get(host.name, -1)
        if 0 <= expelled_at <= self.history.answered:
            raise Wrong(f"{host.name} writes although it is expelled")
        rollback, position = self.history.rollback, self.history.rollback_at
        if rollback is not None and self.history.answered >= position and task.rollback_at != position:
            raise Wrong(f"{host.name} writes during the rollback of {rollback.node}")
        self.check()

    def _retire(self, lun: uuid.UUID) -> None:
        """Take a LUN away, and give its space to a new one, as the storage host does when it has read DELETED."""
        if self.storage.luns.pop(lun, None) is not None:
            new = uuid.UUID(int=self.random.getrandbits(128))
            self.storage.luns[new] = WriteOnce()
            self.pool_order[self.pool_order.index(lun)] = new
            for host in self.hosts:
                host.late_luns[new] = 0.0

    def moment(self, known: int) -> None:
        """Note what the first `known` epochs are to show, if this fence is the first behind their records."""
        for epoch in self.history.epochs[:known]:
            if epoch.snapshot is not None and epoch.snapshot not in self.moments:
                self.moments[epoch.snapshot] = dict(self.primary.grains)

    def check(self) -> None:
        """Raise Wrong if a fenced snapshot is not what it was."""
        newest = self.history.newest
        for epoch in self.history.epochs:
            if (
                epoch.snapshot is None
                or self.history.standing_of(epoch) is not history.Standing.TAKEN
                or newest is None
            ):
                continue
            chain = self.history.chain(epoch.snapshot, newest)
            if epoch.snapshot not in self.moments:
                raise Wrong(f"snapshot {epoch.number} counts as fenced, and no fence came behind its record")
            for grain, content in self.moments[epoch.snapshot].items():
                kept = next(
                    (found for lun in chain if (found := self.storage.luns[lun].blocks.get(grain)) is not None), None
                )
                seen = kept if kept is not None else self.primary.grains[grain]
                if seen != content:
                    raise Wrong(f"snapshot {epoch.number} shows {seen!r} for {content!r} in grain {grain}")


def run(seed: int, guards: Guards | None = None) -> World:
    """Run one seed and return its world.  Raise Wrong, with the seed in its message."""
    world = World(seed, guards)
    try:
        world.run()
    except Wrong as wrong:
        raise Wrong(f"seed {seed}, {world.now:.3f} s: {wrong}") from wrong
    return world
