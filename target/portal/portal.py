# SPDX-License-Identifier: Apache-2.0
"""The iSCSI portal: it listens, moves bytes between sockets and connections, and hands blocked commands to workers.

One thread runs one event loop on epoll for all sessions.  Per round and readable socket it makes one `recv_into` of up
to a mebibyte, handles every complete PDU in it, and sends all answers with one call.  The loop never waits for a disk:
the device server raises WouldBlock, and workers.py takes over.  Nor does it wait for a slow peer: it stops reading from
a session until that session takes its answers.

An unforeseen error ends the session in which it came up, with a line in the log; the loop continues.  An error of the
loop itself ends the process (`target.ending`), because nothing else could serve in its place.

The data of commands takes from one amount of memory, which all sessions share (iscsi/memory.py).  Receive buffers and
arenas come from pools.  A session holds one only while it has bytes there, so an idle session costs a few kilobytes.

A daemon should run `tune_interpreter` once its set-up is complete.  The garbage collector then ignores all objects that
exist, and runs more rarely, because neither commands nor sessions leave reference cycles behind.  It must still run now
and then: asyncio's connections to the control socket do leave some.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from lun_backends import in_place
from target import liveness
from target.iscsi import keys, login, pdu
from target.iscsi.command import Barrier, Command
from target.iscsi.connection import Connection, State
from target.iscsi.errors import LoginRefused, LoginStatus
from target.iscsi.failed_logins import FailedLogins
from target.iscsi.limits import Limits
from target.iscsi.load import Load
from target.iscsi.memory import DEFAULT_BYTES, SHORT_SECONDS, Memory
from target.iscsi.name_clashes import NameClashes
from target.iscsi.output import ArenaPool, Output
from target.iscsi.session_info import SessionInfo
from target.iscsi.task_set import Relieved
from target.portal.channel import Channel, ReceiveBuffer
from target.portal.listeners import Listeners, spell
from target.portal.room import Room
from target.portal.turns import Turns
from target.portal.workers import Job, Result, Workers
from target.scsi.nexus import Nexus
from target.scsi.scsi_target import ScsiTarget
from target.scsi.task import Executor
from target.shift import Shift

log = logging.getLogger(__name__)

BUFFERS_KEPT: Final = 16
"""Receive buffers kept for the next batch; further ones go back to the system after a burst."""
TICK_SECONDS: Final = 1.0
TURNS: Final = 16
"""Times that one channel may be read before the others are polled."""
EVENTS: Final = 64
"""Sockets handled in one round."""
LOOP_NAME: Final = "iscsi-portal"
SPIN_SECONDS: Final = 0.0001
"""How long the loop polls instead of sleeping, once its sleeps have become that short.  A wake-up takes longer than a
command: with one command in flight, polling doubles the rate of an otherwise idle machine (10 k to 24 k reads/s)."""
ACCEPTS: Final = 16
"""Connections accepted in one round, so that a flood of them fills the backlog less soon."""


class Left(NamedTuple):
    """The command that a relieved thread still executes."""

    channel: Channel
    command: Command
    executor: Executor


class LoopBroken(BaseException):
    """The loop cannot go on.  No guard of a session catches this: it ends the loop, and with it the process."""


def tune_interpreter() -> None:
    """Tune the garbage collector for a server; see the module's docstring."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


class Portal:
    """An iSCSI portal that listens as soon as it exists, and serves once `start` or `run` is called.

    `targets` maps target names to device servers; the portal reads it at every login, so it may change at any time.
    `listen` adds addresses while the portal runs.  Discovery answers with the addresses of `announce`, or else with those it
    listens on.  There are at most `sessions` sessions besides those for discovery,
    and the data of commands takes at most `memory` bytes.  Raises OSError if it cannot listen on `host` and `port` (0:
    any free one).
    """

    def __init__(
        self,
        host: str,
        port: int,
        targets: Mapping[str, ScsiTarget],
        *,
        policy: login.AccessPolicy | None = None,
        parameters: keys.Parameters = keys.OURS,
        limits: Limits | None = None,
        workers: int = 8,
        sessions: int = 256,
        memory: int = DEFAULT_BYTES,
        announce: Sequence[str] = (),
    ) -> None:
        self.targets = targets
        self.policy = policy or login.OpenAccess()
        self.failed_logins = FailedLogins()
        self.name_clashes = NameClashes()
        self._announce = announce
        self.parameters = parameters
        self.limits = limits or Limits()
        self.memory = Memory(memory, sessions)
        self._room = Room(sessions)
        self.pulse = liveness.Pulse("iscsi-portal", TICK_SECONDS)
        self._epoll = select.epoll()
        self._listeners = Listeners(self._epoll, self._call)
        self.address = self.listen(host, port)
        self._workers: Workers[Channel] = Workers(workers)
        self._channels: dict[int, Channel] = {}
        self._by_connection: dict[Connection, Channel] = {}
        self._lost: set[Channel] = set()  # closed, but workers still run commands of theirs
        self._arenas = ArenaPool()
        self._buffers: list[ReceiveBuffer] = []
        self._dirty: set[Channel] = set()
        self._spinning = False
        self._warm: Channel | None = None  # read last while spinning: it keeps its buffer and its arena
        self._current: Channel | None = None  # whose requests are handled
        self._relieved: dict[Shift, Left | None] = {}  # the relieved threads, and what they still execute
        self._stalled: set[Channel] = set()  # they have requests in their buffers, and room for answers again
        self._turns: Turns[Channel] = Turns()  # commands that wait for a limit
        self._calls: deque[Callable[[], None]] = deque()
        self._next_tsih = 1
        self._life = threading.Lock()  # held to change _running, and _stopping before anything runs
        self._running = False
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._done = threading.Event()
        self._epoll.register(self._workers.wake_fd, select.EPOLLIN)

    # -- for the daemon, from any thread -------------------------------------------------------------------------

    def listen(self, host: str, port: int) -> tuple[str, int]:
        """Accept initiators on one more address, and return it (`port` 0: any free one).  Raises OSError."""
        return self._listeners.listen(host, port)

    @property
    def addresses(self) -> list[str]:
        """The addresses that accept initiators, HOST:PORT each, oldest first."""
        return self._listeners.addresses

    def unlisten(self, address: str) -> None:
        """Stop accepting initiators on an address; sessions stay.  Return once connections to it fail."""
        self._listeners.unlisten(address)

    def start(self) -> None:
        """Serve from a thread of its own."""
        self._thread = threading.Thread(target=self.run, name=LOOP_NAME, daemon=True)
        self._thread.start()

    def run(self) -> None:
        """Serve on the calling thread until `close` is called from another one."""
        with self._life:
            if self._running or self._stopping:
                return
            self._running = True
        self._run_shift()

    def _run_shift(self) -> None:
        """Run the loop until it ends, or until the calling thread is relieved."""
        shift = Shift(LOOP_NAME, self._relieve)
        try:
            self._loop()
        except Relieved as relieved:
            self._go_off(shift, executed=relieved.executed)
            return
        except BaseException:
            # The process ends with its loop (`target.ending`), and does not wait for workers that may wait for a disk.
            shift.end()
            self._done.set()
            raise
        shift.end()
        self._clean_up()

    def close(self, drain_seconds: float = 5.0) -> None:
        """Stop: refuse logins, ask the initiators to log out, and end the remaining sessions after `drain_seconds`.

        Return once no command runs.  It may be called twice, but not on the thread that serves.
        """
        with self._life:
            if not self._running and not self._stopping:  # never served: no thread cleans up
                self._stopping = True
                self._clean_up()
        if not self._done.is_set():
            deadline = time.monotonic() + drain_seconds
            self._call(lambda: self._begin_close(drain_seconds))
            while time.monotonic() < deadline and any(
                channel.connection.nexus is not None for channel in list(self._channels.values())
            ):
                if self._done.wait(0.02):
                    break
            self._call(self._stop)
            self._done.wait()
        if self._thread is not None:
            self._thread.join()

    def _clean_up(self) -> None:
        for channel in list(self._channels.values()):
            self._drop(channel)
        self._workers.close()
        for shift in list(self._relieved):
            shift.finished.wait()
        self._finish_results()
        self._epoll.close()
        self._listeners.close()
        self._done.set()

    def sessions(self) -> list[SessionInfo]:
        """Return the sessions that are logged in.

        They do not include a session that got the answer to its logout, even if its socket is still open.
        """
        infos: list[SessionInfo] = []
        for channel in list(self._channels.values()):
            connection = channel.connection
            if connection.state in (State.LOGIN, State.ENTERING, State.CLOSING):
                continue
            infos.append(
                SessionInfo(
                    tsih=connection.tsih,
                    initiator=connection.login.initiator,
                    alias=connection.login.alias,
                    address=connection.address,
                    target=connection.login.target,
                    since=channel.opened,
                    bytes_read=connection.tasks.bytes_out,
                    bytes_written=connection.tasks.bytes_in,
                    commands=connection.tasks.done,
                    outstanding=connection.tasks.outstanding,
                    portal=channel.portal,
                )
            )
        return infos

    def load(self) -> Load:
        """Return how much of what there may be is in use."""
        channels = list(self._channels.values())
        return Load(
            sessions=sum(channel.connection.nexus is not None for channel in channels),
            most_sessions=self._room.sessions,
            refused_sessions=self._room.refused,
            refused_ago=None if self._room.refused_at is None else time.monotonic() - self._room.refused_at,
            memory=self.memory.used,
            most_memory=self.memory.total,
            full=self.memory.refusals,
        )

    def async_event(
        self, tsih: int, event: pdu.AsyncEvent, code: int = 0, parameters: tuple[int, int, int] = (0, 0, 0)
    ) -> None:
        """Send an asynchronous message to a session, if it still exists."""
        self._call(lambda: self._send_async(tsih, event, code, parameters))

    def end_session(self, tsih: int) -> None:
        """Drop a session; its initiator will probably log in again."""
        self._call(lambda: self._end_session(tsih))

    def _call(self, action: Callable[[], None]) -> None:
        self._calls.append(action)
        self._workers.wake()

    # -- for connections (connection.Host) -----------------------------------------------------------------------

    def reinstate(self, connection: Connection) -> list[Command]:
        name = connection.login.port_name
        for channel in list(self._channels.values()):
            other = channel.connection
            if other is not connection and other.state is not State.LOGIN and other.login.port_name == name:
                log.info("%s: session replaced by a new login", connection.login.initiator)
                if other.nexus is not None:
                    self.name_clashes.replaced(name[0], other.address, connection.address, time.monotonic())
                self._drop(channel)
        lost = [channel.connection for channel in self._lost if channel.connection.login.port_name == name]
        running = [command for other in lost for command in other.tasks.running]
        if running:
            log.info("%s: the login waits for %d commands of a lost session", connection.login.initiator, len(running))
        return running

    def open_session(self, connection: Connection) -> tuple[int, Nexus | None]:
        mine = connection.login
        nexus = None
        if mine.target is None:
            self._give_way(self._room.discovery_gives_way(self._by_connection))
        else:
            self._room.check(connection, self._by_connection)
            server = self.targets.get(mine.target)
            if server is None:
                raise LoginRefused(LoginStatus.TARGET_REMOVED, f"target {mine.target} is gone")
            view = self.policy.view(mine.initiator, connection.address, mine.target)
            nexus = server.open_nexus(mine.initiator, tag=mine.isid.hex(), view=view)
            if (bucket := self.policy.limit(mine.initiator)) is not None:
                nexus.limit(bucket)
            nexus.begins()
        used = {channel.connection.tsih for channel in self._channels.values()}
        while self._next_tsih in used or not self._next_tsih:
            self._next_tsih = self._next_tsih + 1 & 0xFFFF
        tsih = self._next_tsih
        self._next_tsih = self._next_tsih + 1 & 0xFFFF
        return tsih, nexus

    def portals(self, reached: str) -> Iterable[str]:
        if self._announce:
            return self._announce
        wildcards = ("0.0.0.0:", "[::]:")
        others = [address for address in self.addresses if address != reached and not address.startswith(wildcards)]
        return [reached, *others]

    def neighbours(self, connection: Connection) -> Iterable[Connection]:
        return [
            channel.connection
            for channel in (*self._channels.values(), *self._lost)
            if channel.connection.nexus is not None and channel.connection.login.target == connection.login.target
        ]

    def logged_out(self, connection: Connection) -> None:
        self._close_nexus(connection)

    def has_output(self, connection: Connection) -> None:
        channel = self._by_connection.get(connection)
        if channel is not None:
            self._dirty.add(channel)

    # -- the loop ------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        channels = self._channels
        workers = self._workers
        listeners = self._listeners.by_descriptor
        wake_fd = workers.wake_fd
        poll = self._epoll.poll
        monotonic = time.monotonic
        next_tick = monotonic() + TICK_SECONDS
        may_spin = len(os.sched_getaffinity(0)) > 1
        turns = TURNS
        spin_until = 0.0
        while not self._stopping:
            if self._spinning:
                now = monotonic()
                # The channel that asked last most likely asks next, and reading it is quicker than polling all of them.
                warm = self._warm
                readable = False
                if turns and warm is not None and warm.mask == select.EPOLLIN:
                    try:
                        readable = self._readable(warm, now)
                    except Exception as error:  # noqa: BLE001 - `_failed` logs it
                        self._failed(warm, error)
                if readable:
                    turns -= 1
                    events = []
                else:
                    turns = TURNS
                    events = poll(0, EVENTS)
                    if not events and not workers.results and not self._stalled and not self._turns:
                        if now > spin_until or workers.busy:
                            self._spinning = False
                            self._cool()
                        continue
            else:
                workers.sleeping = True
                busy = workers.results or self._calls or self._stalled
                before = monotonic()
                idle = 0.0 if busy else max(0.0, next_tick - before)
                if self._turns:
                    idle = min(idle, self._turns.next())
                events = poll(idle, EVENTS)
                workers.sleeping = False
                now = monotonic()
                self._spinning = may_spin and now - before < SPIN_SECONDS and not workers.busy
            for fd, event in events:
                channel = channels.get(fd)
                if channel is not None:
                    try:
                        if event & ~select.EPOLLOUT:
                            self._readable(channel, now)
                        if event & select.EPOLLOUT:
                            self._flush(channel)
                    except Exception as error:  # noqa: BLE001 - `_failed` logs it
                        self._failed(channel, error)
                elif fd == wake_fd:
                    workers.drain_wakeups()
                elif (listener := listeners.get(fd)) is not None:
                    for _ in range(ACCEPTS):
                        if not self._accept(*listener, now):
                            break
            if workers.results:
                self._finish_results()
            while self._calls:
                call = self._calls.popleft()
                try:
                    call()
                except Exception:
                    log.exception("a request of the daemon to its portal failed")
            if self._turns:
                self._take_turns()
            if self.memory.released:
                self._admit_waiting()
            if self._stalled:  # each gets one turn, behind all others
                for channel in list(self._stalled):
                    self._stalled.discard(channel)
                    try:
                        self._handle(channel, now)
                    except Exception as error:  # noqa: BLE001 - `_failed` logs it
                        self._failed(channel, error)
            if now >= next_tick:
                next_tick = now + TICK_SECONDS
                self.pulse.beat()
                self._tick(now)
            while self._dirty:  # last, because all of the above may give connections output
                channel = self._dirty.pop()
                try:
                    self._flush(channel)
                except Exception as error:  # noqa: BLE001 - `_failed` logs it
                    self._failed(channel, error)
            spin_until = now + SPIN_SECONDS

    def _accept(self, listener: socket.socket, address: str, now: float) -> bool:
        """Accept a connection, and return whether there was one."""
        accepted = self._listeners.accept(listener, now)
        if accepted is None:
            return False
        sock, peer = accepted
        if not self.policy.reaches(peer):
            sock.close()
            why = "no initiator may log in from this address"
            self.failed_logins.failed(peer, "", LoginStatus.AUTHORIZATION_FAILURE, why, now)
            return True
        self._give_way(self._room.login_gives_way(self._by_connection, now))
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            local = sock.getsockname()
            output = Output(self._arenas)
            connection = Connection(self, output, peer, spell(local[0], local[1]), now)
            channel = Channel(sock, connection, output, address)
            self._epoll.register(sock.fileno(), select.EPOLLIN)
        except Exception:
            log.exception("%s: the connection ends, because of an error", peer)
            sock.close()
            return True
        self._channels[sock.fileno()] = channel
        self._by_connection[connection] = channel
        return True

    def _give_way(self, connection: Connection | None) -> None:
        if connection is not None:
            self._drop(self._by_connection[connection])

    def _take_buffer(self) -> ReceiveBuffer:
        return self._buffers.pop() if self._buffers else ReceiveBuffer()

    def _keep_warm(self, channel: Channel) -> None:
        """Let one channel, which sends requests while the loop spins, keep its buffer and its arena."""
        if channel is not self._warm:
            self._cool()
            self._warm = channel

    def _cool(self) -> None:
        channel, self._warm = self._warm, None
        if channel is not None:
            if channel.buffer is not None and not channel.fill:
                self._give_buffer(channel.buffer)
                channel.buffer = None
            channel.output.release()

    def _give_buffer(self, buffer: ReceiveBuffer) -> None:
        if len(self._buffers) < BUFFERS_KEPT:
            self._buffers.append(buffer)

    def _readable(self, channel: Channel, now: float) -> bool:
        """Receive and handle the bytes that arrived; return False if there are none, or the peer hung up."""
        connection = channel.connection
        buffer = channel.buffer
        if buffer is None:
            buffer = channel.buffer = self._take_buffer()
        room = buffer.view[channel.fill :] if channel.fill else buffer.view
        direct = connection.tasks.direct
        try:
            if len(direct):
                length = channel.sock.recvmsg_into([direct, room])[0]
            else:
                length = channel.sock.recv_into(room)
        except BlockingIOError:
            return False
        except OSError as error:
            log.info("%s: %s", connection.login.initiator or connection.address, error)
            length = 0
        if not length:
            self._drop(channel)
            return False
        if len(direct):
            placed = min(length, len(direct))
            connection.received_direct(placed, now)
            length -= placed
        channel.fill += length
        self._handle(channel, now)
        return True

    def _handle(self, channel: Channel, now: float) -> None:
        """Handle the requests in the receive buffer, and send the answers."""
        self._current = channel
        handled = 0
        if channel.buffer is not None and channel.fill:
            handled = channel.connection.receive(channel.buffer.view, channel.fill, now)
        self._handled(channel, handled)

    def _handled(self, channel: Channel, handled: int) -> None:
        """Go on behind the first `handled` bytes in the receive buffer: their requests were handled."""
        connection = channel.connection
        buffer = channel.buffer
        if buffer is not None:
            if connection.tasks.blocked:
                connection.tasks.prepare_in_place()
                if connection.tasks.blocked:
                    self._dispatch(channel, buffer)
            rest = channel.fill - handled
            channel.fill = rest
            if buffer.holders:
                # Commands that wait for a worker have their data in this buffer, so it stays with them until they are
                # done.
                channel.buffer = None
                if rest:
                    channel.buffer = self._take_buffer()
                    channel.buffer.view[:rest] = buffer.view[handled : handled + rest]
            elif not rest:
                if self._spinning:
                    self._keep_warm(channel)
                else:
                    channel.buffer = None
                    self._give_buffer(buffer)
            elif handled:
                buffer.view[:rest] = buffer.view[handled : handled + rest]
        self._flush(channel)

    def _flush(self, channel: Channel) -> None:
        """Send as much as the socket takes; then decide which events to wait for."""
        output = channel.output
        connection = channel.connection
        if channel.sock.fileno() < 0:
            return
        try:
            waiting = output.send(channel.sock)
        except OSError as error:
            log.info("%s: %s", connection.login.initiator or connection.address, error)
            self._drop(channel)
            return
        if waiting != channel.account.answers:
            channel.account.count_answers(waiting)
        if not waiting:
            if channel is not self._warm:
                output.release()
            if connection.state is State.CLOSING:
                self._drop(channel)
                return
            mask = select.EPOLLIN
        else:
            mask = select.EPOLLOUT
            if not connection.tasks.congested and connection.state is not State.CLOSING:
                mask |= select.EPOLLIN
        if mask != channel.mask:
            channel.mask = mask
            self._epoll.modify(channel.sock.fileno(), mask)
        if (channel.pending or channel.long or connection.stalled) and not connection.tasks.congested:
            if channel.pending or channel.long:
                self._workers.start(channel)
            if connection.stalled:
                self._stalled.add(channel)

    def _failed(self, channel: Channel, error: Exception) -> None:
        """End a session because of an unforeseen error; the others continue."""
        in_place.current().open = False
        connection = channel.connection
        name = connection.login.initiator or connection.address
        log.error("%s: the session ends, because of an error", name, exc_info=error)
        self._drop(channel)

    def _drop(self, channel: Channel) -> None:
        """Close a channel.

        A worker may still run commands of the channel.  Until they are done, the channel is in `_lost`, where the
        barriers of other sessions find them, and its nexus stays open.  A half-closed channel would break that, so an
        error here ends the loop.
        """
        try:
            self._close_channel(channel)
        except Exception as error:
            raise LoopBroken from error

    def _close_channel(self, channel: Channel) -> None:
        fd = channel.sock.fileno()
        if fd < 0:
            return
        connection = channel.connection
        connection.close()
        unstarted = [*connection.tasks.blocked, *self._turns.drop(channel), *channel.drop()]
        connection.tasks.blocked = []
        del self._channels[fd], self._by_connection[connection]
        self._dirty.discard(channel)
        self._stalled.discard(channel)
        if self._warm is channel:
            self._warm = None
        self._epoll.unregister(fd)
        channel.sock.close()
        channel.account.close()
        for command in unstarted:
            self._finish_command(channel, command)
        for command in channel.stranded():
            self._finish_command(channel, command)
        if connection.nexus is not None:
            log.info("%s logged out of %s", connection.login.initiator, connection.login.target)
        self._lost.add(channel)
        Barrier(connection.tasks.running, lambda: self._quiet(channel))
        self._let_go(channel)

    def _quiet(self, channel: Channel) -> None:
        """Close the nexus of a closed channel, because no command of it runs any longer."""
        self._lost.discard(channel)
        self._close_nexus(channel.connection)

    def _close_nexus(self, connection: Connection) -> None:
        if connection.nexus is not None and connection.login.target is not None:
            server = self.targets.get(connection.login.target)
            if server is not None:
                server.close_nexus(connection.nexus)

    def _let_go(self, channel: Channel) -> None:
        """Give the memory of a closed channel back to the pools, once no worker has a command of it.

        It must not wait for the garbage collector, which seldom runs.
        """
        if channel.active:
            return
        buffer, channel.buffer = channel.buffer, None
        if buffer is not None and not buffer.holders:
            self._give_buffer(buffer)
        channel.output.discard()

    def _admit_waiting(self) -> None:
        """Let the sessions that wait for memory try again, beginning with the one that has waited longest."""
        memory = self.memory
        memory.released = False
        waiting = {channel.account: channel for channel in self._channels.values() if channel.account in memory.waiting}
        for account in list(memory.waiting):
            channel = waiting.get(account)
            if channel is not None:
                try:
                    channel.connection.tasks.data_out.admit()
                except Exception as error:  # noqa: BLE001 - `_failed` logs it
                    self._failed(channel, error)
                else:
                    self._dirty.add(channel)

    def _drop_slowest(self, now: float) -> None:
        """Drop the session whose data has been on its way longest, because it holds memory that others need."""
        begun = [
            (since, channel)
            for channel in self._channels.values()
            if (since := channel.connection.tasks.collecting_since()) is not None and now - since > SHORT_SECONDS
        ]
        if begun:
            since, slowest = min(begun, key=lambda pair: pair[0])
            log.warning(
                "%s from %s: a command's data has been on its way for %d s, and others need the memory: session dropped",
                slowest.connection.login.initiator,
                slowest.connection.address,
                now - since,
            )
            self._drop(slowest)

    def _tick(self, now: float) -> None:
        self._listeners.resume()
        self._workers.replace_stuck(now)
        short = self.memory.second()
        self.memory.released = bool(self.memory.waiting)
        if short:
            self._drop_slowest(now)
        for channel in list(self._channels.values()):
            try:
                channel.connection.tick(now)
                if channel.connection.finished and not channel.connection.lingers(now):
                    self._drop(channel)
                elif len(channel.output) or channel.connection.finished:
                    self._flush(channel)
            except Exception as error:  # noqa: BLE001 - `_failed` logs it
                self._failed(channel, error)

    # -- relief ---------------------------------------------------------------------------------------------------

    def _relieve(self, shift: Shift, caller: in_place.Caller) -> None:
        """Go on as the loop, because its thread waits in a call in place.  Runs on the watcher's thread.

        If the call is the command itself, the relieved thread is like a worker that executes it.  Otherwise the command goes
        to a worker.
        """
        self._thread = threading.current_thread()
        channel = self._current
        assert channel is not None  # a call in place belongs to a command, and a command to a channel
        self._relieved[shift] = None
        connection, buffer = channel.connection, channel.buffer
        assert buffer is not None
        assert connection.nexus is not None
        command, end = connection.tasks.take_over(buffer.view)
        if caller.executes:
            command.lease = buffer
            buffer.holders += 1
            self._workers.adopt(channel, Job(connection.nexus, [command]))
            self._relieved[shift] = Left(channel, command, connection.nexus)
        else:
            connection.tasks.blocked.append(command)
        shift.handed_over.set()
        self._stalled.add(channel)  # the requests behind the command
        try:
            self._handled(channel, end)
        except Exception as error:  # noqa: BLE001 - `_failed` logs it
            self._failed(channel, error)
        self._run_shift()

    def _go_off(self, shift: Shift, *, executed: bool) -> None:
        """Hand over the command that waited, if it is still this thread's, which was relieved."""
        shift.handed_over.wait()
        left = self._relieved[shift]
        if left is not None:
            task, error = left.command.task, None
            try:
                if not executed and not task.aborted:
                    left.executor.execute(task, nowait=False)
            except Exception as raised:  # noqa: BLE001 - the loop logs it, and ends the session
                error = raised
            self._workers.results.append(Result(left.channel, left.command, True, error))
            self._workers.wake()
        shift.finished.set()
        self._call(lambda: self._forget_shift(shift))

    def _forget_shift(self, shift: Shift) -> None:
        del self._relieved[shift]

    # -- blocked commands ----------------------------------------------------------------------------------------

    def _dispatch(self, channel: Channel, buffer: ReceiveBuffer) -> None:
        """Give the commands that a batch left blocked to the workers."""
        nexus = channel.connection.nexus
        assert nexus is not None  # a discovery session has no commands
        tasks = channel.connection.tasks
        blocked, tasks.blocked = tasks.blocked, []
        for command in blocked:
            if command.borrows:
                command.lease = buffer
                buffer.holders += 1
        self._workers.enqueue(channel, nexus, self._turns.park(channel, nexus, blocked))

    def _take_turns(self) -> None:
        """Give the commands whose turn has come to the workers."""
        ready: dict[Channel, tuple[Nexus, list[Command]]] = {}
        for channel, nexus, command in self._turns.ready():
            ready.setdefault(channel, (nexus, []))[1].append(command)
        for channel, (nexus, commands) in ready.items():
            self._workers.enqueue(channel, nexus, commands)

    def _finish_results(self) -> None:
        results = self._workers.results
        while results:
            channel, command, last, error = results.popleft()
            if error is not None:
                command.task.aborted = True  # it has no outcome, so it gets no answer
            try:
                self._finish_command(channel, command)
            except Exception as raised:  # noqa: BLE001 - `_failed` logs it
                error = raised
            if last:
                self._workers.job_done(channel, command)
            if error is not None:
                self._failed(channel, error)
            if channel.sock.fileno() < 0:
                self._let_go(channel)
            else:
                self._dirty.add(channel)

    def _finish_command(self, channel: Channel, command: Command) -> None:
        buffer = command.lease
        if isinstance(buffer, ReceiveBuffer):
            command.lease = None
            buffer.holders -= 1
            if not buffer.holders and channel.buffer is not buffer:
                self._give_buffer(buffer)
        channel.connection.tasks.complete(command)

    # -- on behalf of other threads ------------------------------------------------------------------------------

    def _begin_close(self, seconds: float) -> None:
        self._listeners.stop()
        for channel in self._channels.values():
            channel.connection.request_logout(max(1, int(seconds)))
            self._dirty.add(channel)

    def _stop(self) -> None:
        self._stopping = True

    def _send_async(self, tsih: int, event: pdu.AsyncEvent, code: int, parameters: tuple[int, int, int]) -> None:
        for channel in self._channels.values():
            if channel.connection.tsih == tsih:
                channel.connection.async_event(event, code, parameters)
                self._dirty.add(channel)

    def _end_session(self, tsih: int) -> None:
        for channel in list(self._channels.values()):
            if channel.connection.state is not State.LOGIN and channel.connection.tsih == tsih:
                self._drop(channel)
