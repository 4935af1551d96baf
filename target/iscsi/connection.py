# SPDX-License-Identifier: Apache-2.0
"""One iSCSI connection, which is also one session (MaxConnections=1), without sockets or threads (RFC 7143).

Bytes go in with `receive`; answers come out of `output`; commands that would have to wait for a disk are left in
`blocked`, for the caller to run elsewhere and to hand back to `complete`.  Time comes in as `now`, in seconds.

| state        | RFC 7143 8.1.1   | what may come                                 | left for                           |
| ------------ | ---------------- | --------------------------------------------- | ---------------------------------- |
| LOGIN        | S3, S4           | Login Requests                                | FULL_FEATURE, CLOSING              |
| FULL_FEATURE | S5               | everything but Login Requests                 | LOGOUT, CLOSING                    |
| LOGOUT       | S6               | nothing; commands are being quieted           | CLOSING                            |
| CLOSING      | S8               | nothing; to be closed when `output` was sent  |                                    |

What a peer does wrong never raises: it is answered as errors.py tells, and logged.
"""

from __future__ import annotations

import enum
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lun_backends.block_device import WouldBlock
from target.iscsi import errors, keys, login, pdu
from target.iscsi.command import Barrier, Command, OutOfOrder, ReadyToTransfer, Stage, private_buffers
from target.iscsi.errors import LoginRefused, LoginStatus, PeerError, Rejected
from target.iscsi.failed_logins import FailedLogins
from target.iscsi.output import Output
from target.iscsi.pdu import NO_TAG, Opcode, RejectReason, TaskManagementFunction, TaskManagementResponse
from target.iscsi.sender import MASK, Sender, residual_of
from target.scsi import sense
from target.scsi.task import Status, Task

log = logging.getLogger(__name__)

TOO_LONG_SENSE = sense.Sense(sense.SenseKey.ILLEGAL_REQUEST, sense.Asc.INVALID_FIELD_IN_CDB).pack(descriptor=False)
LOST_DATA_SENSE = sense.Sense(sense.SenseKey.ABORTED_COMMAND, 0x4705).pack(descriptor=False)
"""PROTOCOL SERVICE CRC ERROR: what RFC 7143 11.4.7.2 has for data that did not arrive whole."""


class State(enum.Enum):
    """See the module's docstring."""

    LOGIN = "login"
    FULL_FEATURE = "full feature"
    LOGOUT = "logout"
    CLOSING = "closing"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer may make us spend."""

    login_seconds: float = 15.0  # from the connection to the full feature phase
    login_pdus: int = 64
    login_segment: int = 8192  # bytes; RFC 7143 13.12: the default holds during login
    queue_depth: int = 128  # commands a session may have outstanding
    output_bytes: int = 8 << 20  # answers waiting for a slow reader; no request is read beyond
    data_bytes: int = 32 << 20  # solicited data-out and blocked reads of one session
    transfer_bytes: int = 64 << 20  # of one command
    held_bytes: int = 4 << 20  # requests that came ahead of their CmdSN
    idle_seconds: float = 30.0  # then the initiator is asked whether it lives
    ping_seconds: float = 15.0  # then it is held for dead
    linger_seconds: float = 5.0  # for the last answers to be taken


class Nexus(Protocol):
    """What the device server gives for an I_T nexus."""

    def execute(self, task: Task, *, nowait: bool = ...) -> None: ...


class Host(Protocol):
    """What a connection asks of the portal it belongs to."""

    targets: Mapping[str, Any]
    policy: login.AccessPolicy
    failed_logins: FailedLogins
    parameters: keys.Parameters
    limits: Limits

    def reinstate(self, connection: Connection) -> list[Command]:
        """End the sessions that `connection` replaces (RFC 7143 6.3.5); their commands that still run."""

    def open_session(self, connection: Connection) -> tuple[int, Any]:
        """Enter the session: (TSIH, nexus or None for discovery).  Raises LoginRefused."""

    def neighbours(self, connection: Connection) -> Iterable[Connection]:
        """All sessions on the same target, `connection` among them."""

    def has_output(self, connection: Connection) -> None:
        """`connection` has something to send, outside of a call from the portal to it."""


class Connection:
    """See the module's docstring.  All methods belong to one thread, the event loop's."""

    def __init__(self, host: Host, output: Output, address: str, portal_address: str, now: float) -> None:
        self.host = host
        self.output = output
        self.address = address  # the initiator's, without port
        self.portal_address = portal_address  # host:port the initiator reached us at
        self.state = State.LOGIN
        self.since = now
        self.login = login.Login(host.targets, host.policy, address, host.parameters)
        self.nexus: Any = None
        self.tsih = 0
        self.blocked: list[Command] = []
        self.bytes_in = 0  # data-out: what the initiator wrote
        self.bytes_out = 0
        self.commands_done = 0
        self.stalled = False
        """Whether the last `receive` left requests alone because of congestion: to be called again without new bytes."""
        self.direct: memoryview = memoryview(b"")
        """Where the next bytes from the peer belong, instead of into the receive buffer; see `received_direct`."""
        self.sender = Sender(output)
        self._limits = host.limits
        self._login_pdus = 0
        self._commands: dict[int, Command] = {}
        self._waiting: deque[Command] = deque()  # for the data budget
        self._data_used = 0
        self._held: dict[int, bytes] = {}
        self._r2ts: dict[int, Command] = {}
        self._next_ttt = 1
        self._after_direct: Callable[[], None] | None = None
        self._task = Task(output.allocate)
        self._execute: Callable[..., None] = _no_nexus
        self._fast = False
        self._max_immediate = 0
        self._last_heard = now
        self._pinged: float | None = None
        self._closing_since: float | None = None
        self._refusal: tuple[float, LoginStatus, bytes] | None = None  # when to send it, status, the request's BHS
        self._text = bytearray()
        self._text_answer = b""

    # -- for the portal ------------------------------------------------------------------------------------------

    @property
    def running(self) -> list[Command]:
        """Commands that are with the device server."""
        return [command for command in self._commands.values() if command.stage is Stage.RUNNING]

    @property
    def outstanding(self) -> int:
        """Commands not answered yet."""
        return len(self._commands)

    @property
    def finished(self) -> bool:
        """Whether nothing will happen any more once the output was sent."""
        return self.state is State.CLOSING

    @property
    def congested(self) -> bool:
        """Whether the peer should take answers before more of it is read."""
        return len(self.output) > self._limits.output_bytes

    def receive(self, buffer: memoryview, end: int, now: float) -> int:
        """Handle every complete PDU in `buffer[:end]`; how many bytes that was.

        The bytes left belong to a PDU that is not complete, or to whatever comes after congestion or the end.  Views
        into `buffer` are kept only by commands in `blocked` whose `borrows` is set.
        """
        self._last_heard = now
        self._pinged = None
        if self._refusal is not None:
            return end
        start = 0
        while start < end:
            if self._fast and not self._held and self.sender.window_open:
                start = self._receive_commands(buffer, start, end)
            if self.congested:
                self.stalled = start < end
                break
            if self.state in (State.CLOSING, State.LOGOUT):
                break
            consumed = self._receive_one(buffer, start, end, now)
            if not consumed:
                break
            start += consumed
        return end if self.state is State.CLOSING else start

    def received_direct(self, length: int, now: float) -> None:
        """`length` bytes were put at the beginning of `direct`."""
        self._last_heard = now
        self.direct = self.direct[length:]
        if not len(self.direct) and self._after_direct is not None:
            then, self._after_direct = self._after_direct, None
            self._guarded(then)

    def complete(self, command: Command) -> None:
        """`command`, once in `blocked`, was executed: answer it unless it was aborted."""
        task = command.task
        if not task.aborted and self.state is State.FULL_FEATURE:
            self._answer(command)
        self._forget(command)

    def tick(self, now: float) -> None:
        """Let time pass; to be called every second or so."""
        limits = self._limits
        if self.state is State.LOGIN:
            if self._refusal is not None:
                due, status, bhs = self._refusal
                if now >= due:
                    self._refuse_login(status, bhs)
                    self.close()
            elif now - self.since > limits.login_seconds:
                self._login_failed(LoginStatus.INITIATOR_ERROR, f"no login within {limits.login_seconds:g} s", now)
                self.close()
        elif self.state is State.FULL_FEATURE:
            if self._pinged is not None:
                if now - self._pinged > limits.ping_seconds:
                    log.warning("%s: does not answer, session dropped", self.login.initiator)
                    self.close()
            elif now - self._last_heard > limits.idle_seconds:
                self._pinged = now
                self.sender.nop_in(NO_TAG, self._new_ttt())
        elif self._closing_since is None:
            self._closing_since = now

    def lingers(self, now: float) -> bool:
        """Whether a closing connection may still wait for its output to be taken."""
        return self._closing_since is None or now - self._closing_since < self._limits.linger_seconds

    def close(self) -> None:
        """End the conversation: no request is handled any more, no command answered; `output` may still be sent."""
        self.state = State.CLOSING
        self._fast = False
        self.abort(lambda command: True)

    def request_logout(self, seconds: int) -> None:
        """Ask the initiator to log out within `seconds` (RFC 7143 11.9.1)."""
        self.async_event(pdu.AsyncEvent.LOGOUT_REQUESTED, parameters=(0, 0, seconds))

    def async_event(self, event: pdu.AsyncEvent, code: int = 0, parameters: tuple[int, int, int] = (0, 0, 0)) -> None:
        """Send an asynchronous message to a normal session in the full feature phase."""
        if self.state is State.FULL_FEATURE:
            self.sender.async_message(event, code, parameters)

    def abort(self, which: Callable[[Command], bool]) -> list[Command]:
        """Abort commands; those still with the device server are returned, the others are gone."""
        still: list[Command] = []
        for command in list(self._commands.values()):
            if which(command):
                command.task.aborted = True
                if command.stage is Stage.RUNNING:
                    still.append(command)
                else:
                    self._forget(command)
        return still

    # -- the fast path -------------------------------------------------------------------------------------------

    def _receive_commands(self, buffer: memoryview, start: int, end: int) -> int:
        """Execute the SCSI commands at `buffer[start:end]` that are as simple as almost all are; where it stopped.

        Simple is: no digests, no AHS, the next CmdSN, a tag not in use, and either no data, data-in that fits one
        Data-In, or data-out that came whole as immediate data.  Whatever else is left to `_receive_one`, which does
        the same things in the general way.  Answers that are not plain GOOD are built in the general way, too.
        """
        sender = self.sender
        output = self.output
        task = self._task
        execute = self._execute
        commands = self._commands
        max_segment = sender.max_segment
        max_immediate = self._max_immediate
        unpack = pdu.SCSI_COMMAND.unpack_from
        pack = pdu.RESPONSE.pack_into
        expected_sn = sender.exp_cmd_sn
        bytes_in = bytes_out = done = 0
        while end - start >= 48:
            opcode, flags, _, lengths, lun, itt, expected, cmd_sn, _, cdb = unpack(buffer, start)
            if opcode != 1 or cmd_sn != expected_sn or not flags & 0x80 or itt in commands or itt == NO_TAG:
                break
            direction = flags & 0x60
            stop = start + 48
            if direction == 0x40:
                if lengths or expected > max_segment:
                    break
                task.data_out = ()
                task.expected_in = expected
            else:
                if lengths != expected or lengths > max_immediate or direction == 0x60:
                    break
                task.expected_in = 0
                if lengths:
                    stop += lengths + 3 & ~3
                    if stop > end or not direction:
                        break
                    task.data_out = (buffer[start + 48 : start + 48 + lengths],)
                else:
                    task.data_out = ()
            task.lun = lun
            task.cdb = cdb
            start = stop
            expected_sn = cmd_sn + 1 & MASK
            sender.exp_cmd_sn = expected_sn
            try:
                execute(task, nowait=True)
            except WouldBlock:
                command = Command(itt, task, expected, reads=direction != 0x20, writes=lengths > 0, counted=True)
                command.borrows = lengths > 0
                self._task = task = Task(output.allocate)
                bytes_in += lengths
                self._block(command)
                if expected_sn == sender.max_cmd_sn + 1 & MASK:
                    break  # the window is closed; only here, since every command answered opens it again
                continue
            sender.max_cmd_sn = sender.max_cmd_sn + 1 & MASK
            done += 1
            bytes_in += lengths
            if task.status:
                self._answer_now(task, itt, expected, reads=direction != 0x20)
                if self.congested:
                    break
                continue
            stat_sn = sender.stat_sn
            if direction == 0x40 and expected:
                data = task.data_in
                if len(data) != 1 or data is not output.offered:
                    self._answer_now(task, itt, expected, reads=True)
                    continue
                length = len(data[0])
                flags = 0x81
                residual = 0
                if length != expected:
                    flag, residual = residual_of(expected, length)
                    flags |= flag
                    length = min(length, expected)
                bytes_out += length
                fill = output.fill
                pack(output.arena, fill, 0x25, flags, 0, 0, length, 0, itt, NO_TAG,
                     stat_sn, expected_sn, sender.max_cmd_sn, 0, 0, residual)  # fmt: skip
                fill += 48 + length
                if length & 3:
                    padding = -length & 3
                    output.arena[fill : fill + padding] = bytes(padding)
                    fill += padding
                output.fill = fill
                sender.stat_sn = stat_sn + 1 & MASK
                if fill > 0x80000 and self.congested:  # a cheap first look: most batches never fill half an arena
                    break
            else:
                if task.residual_out or task.data_in:
                    self._answer_now(task, itt, expected, reads=direction != 0x20)
                    continue
                if output.fill + 48 > output.room:
                    output.reserve(48)
                fill = output.fill
                pack(output.arena, fill, 0x21, 0x80, 0, 0, 0, 0, itt, 0,
                     stat_sn, expected_sn, sender.max_cmd_sn, 0, 0, 0)  # fmt: skip
                output.fill = fill + 48
                sender.stat_sn = stat_sn + 1 & MASK
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        self.commands_done += done
        return start

    def _answer_now(self, task: Task, itt: int, expected: int, *, reads: bool) -> None:
        """The general answer to a command of the fast path.  Its data may lie in the arena's free part: it is copied."""
        command = Command(itt, task, expected, reads=reads, writes=not reads and expected > 0, counted=False)
        if reads and task.data_in:
            task.data_in = (memoryview(b"".join(task.data_in)),)
        self._answer(command, count=False)
        task.residual_out = 0

    # -- the general path ----------------------------------------------------------------------------------------

    def _receive_one(self, buffer: memoryview, start: int, end: int, now: float) -> int:
        """Handle the PDU at `buffer[start:end]`; its length, or 0 when it is not complete."""
        logged_in = self.state is State.FULL_FEATURE
        limit = self.host.parameters.max_recv_data_segment_length if logged_in else self._limits.login_segment
        try:
            found = pdu.find(buffer, start, end, self.sender.digests, limit)
        except pdu.HeaderDigestError as error:
            self._drop(str(error))
            return end - start
        except pdu.DataSegmentTooLong as error:
            self._fail(PeerError(str(error)), buffer[start : start + pdu.BHS_LENGTH])
            return end - start
        if found is None:
            return self._receive_direct(buffer, start, end) if logged_in else 0
        try:
            if not logged_in:
                self._handle_login(found)
            elif not found.data_digest_ok:
                # At ErrorRecoveryLevel 0 a lost PDU is not recovered within the connection (RFC 7143 7.8).
                raise PeerError("data digest does not match", RejectReason.DATA_DIGEST_ERROR)
            else:
                self._dispatch(found)
        except PeerError as error:
            self._fail(error, found.bhs)
        except Rejected as error:
            log.info("%s: %s", self.login.initiator, error)
            self.sender.reject(error.reason, found.bhs)
        return found.end - start

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except PeerError as error:
            self._fail(error, bytes(pdu.BHS_LENGTH))

    def _drop(self, why: str) -> None:
        log.warning("%s: %s, connection dropped", self.login.initiator or self.address, why)
        self.close()

    def _fail(self, error: PeerError, bhs: memoryview | bytes) -> None:
        if self.state is State.LOGIN:
            self._end_login(LoginStatus.INITIATOR_ERROR, str(error), bhs)
            return
        self.sender.reject(error.reason, bhs)
        self._drop(str(error))

    # -- login ---------------------------------------------------------------------------------------------------

    def _handle_login(self, found: pdu.Pdu) -> None:
        self._login_pdus += 1
        if self._login_pdus > self._limits.login_pdus:
            raise PeerError("too many PDUs without a login")
        if found.opcode != Opcode.LOGIN_REQUEST or len(found.ahs):
            raise PeerError("something else than a login")
        request = login.Request.parse(found.bhs)
        if self._login_pdus == 1:
            self.sender.exp_cmd_sn = request.cmd_sn
            self.sender.max_cmd_sn = request.cmd_sn + self._limits.queue_depth - 1 & MASK
        try:
            answer = self.login.handle(request, bytes(found.data))
            if answer.done:
                bhs = bytes(found.bhs)
                self._fast = False
                Barrier(self.host.reinstate(self), lambda: self._enter(bhs, answer))
            else:
                self._answer_login(found.bhs, answer.flags, LoginStatus.SUCCESS, answer.text)
        except LoginRefused as error:
            self._end_login(error.status, str(error), found.bhs)

    def _login_failed(self, status: LoginStatus, why: str, now: float) -> float:
        return self.host.failed_logins.failed(self.address, self.login.initiator, status, why, now)

    def _end_login(self, status: LoginStatus, why: str, bhs: memoryview | bytes) -> None:
        """Refuse the login, now or after as long as failed_logins.py says; until then nothing more is listened to."""
        delay = self._login_failed(status, why, self._last_heard)
        if bhs[0] & 0x3F != Opcode.LOGIN_REQUEST:
            self.close()
        elif delay:
            self._refusal = (self._last_heard + delay, status, bytes(bhs))
        else:
            self._refuse_login(status, bhs)
            self.close()

    def _refuse_login(self, status: LoginStatus, bhs: memoryview | bytes) -> None:
        self._answer_login(bhs, 0, status, b"")

    def _answer_login(self, bhs: memoryview | bytes, flags: int, status: int, text: bytes) -> None:
        isid = bytes(bhs[8:14])
        self.sender.send(
            Opcode.LOGIN_RESPONSE,
            flags,
            lun=int.from_bytes(isid, "big") << 16 | self.tsih,
            itt=int.from_bytes(bhs[16:20], "big"),
            words=(status << 16, 0, 0),
            data=(text,) if text else (),
        )

    def _enter(self, bhs: bytes, answer: login.Answer) -> None:
        """The full feature phase begins, now that nothing of a replaced session runs any more."""
        if self.state is not State.LOGIN:
            return
        try:
            self.tsih, self.nexus = self.host.open_session(self)
        except LoginRefused as error:
            self._refuse_login(error.status, bhs)
            self.close()
            self.host.has_output(self)
            return
        self._answer_login(bhs, answer.flags, LoginStatus.SUCCESS, answer.text)
        agreed = self.login.agreed
        self.sender.digests = pdu.Digests(agreed.header_digest == "CRC32C", agreed.data_digest == "CRC32C")
        self.sender.max_segment = agreed.max_recv_data_segment_length
        self.sender.max_burst = agreed.max_burst_length
        self.state = State.FULL_FEATURE
        if self.nexus is not None:
            self._execute = self.nexus.execute
            self._fast = self.sender.digests == pdu.NO_DIGESTS
            self._max_immediate = min(
                agreed.first_burst_length if agreed.immediate_data else 0,
                self.host.parameters.max_recv_data_segment_length,
            )
        log.info("%s logged in from %s to %s", self.login.initiator, self.address, self.login.target or "discovery")
        self.host.has_output(self)

    # -- full feature phase --------------------------------------------------------------------------------------

    def _dispatch(self, found: pdu.Pdu) -> None:
        opcode = found.opcode
        if opcode == Opcode.DATA_OUT:
            self._handle_data_out(found.bhs, found.data)
            return
        if opcode == Opcode.SNACK_REQUEST:
            raise Rejected(RejectReason.SNACK_REJECT, "SNACK at ErrorRecoveryLevel 0")
        if opcode not in _HANDLERS:
            raise Rejected(RejectReason.COMMAND_NOT_SUPPORTED, f"PDU with opcode {opcode:#x}")
        if self.nexus is None and opcode not in (Opcode.TEXT_REQUEST, Opcode.LOGOUT_REQUEST, Opcode.NOP_OUT):
            raise PeerError("a SCSI request in a discovery session")
        if found.immediate:
            _HANDLERS[opcode](self, found)
            return
        cmd_sn = int.from_bytes(found.bhs[24:28], "big")
        sender = self.sender
        ahead = cmd_sn - sender.exp_cmd_sn & MASK
        if ahead > sender.max_cmd_sn - sender.exp_cmd_sn & MASK or (sender.max_cmd_sn + 1 & MASK == sender.exp_cmd_sn):
            log.info("%s: CmdSN outside the window, ignored", self.login.initiator)  # RFC 7143 4.2.2.1
            return
        if ahead:
            self._hold(cmd_sn, found)
            return
        sender.exp_cmd_sn = cmd_sn + 1 & MASK
        _HANDLERS[opcode](self, found)
        while self._held and self.state is State.FULL_FEATURE:
            raw = self._held.pop(sender.exp_cmd_sn, None)
            if raw is None:
                break
            held = pdu.find(memoryview(raw), 0, len(raw), pdu.NO_DIGESTS, pdu.MAX_DATA_SEGMENT_LENGTH)
            assert held is not None
            sender.exp_cmd_sn = sender.exp_cmd_sn + 1 & MASK
            try:
                _HANDLERS[held.opcode](self, held)
            except Rejected as error:
                sender.reject(error.reason, held.bhs)

    def _hold(self, cmd_sn: int, found: pdu.Pdu) -> None:
        """Keep a request that came ahead of its turn."""
        if cmd_sn in self._held:
            return
        raw = pdu.encode(bytes(found.bhs), found.data, ahs=bytes(found.ahs))
        if sum(map(len, self._held.values())) + len(raw) > self._limits.held_bytes:
            raise PeerError("too much sent ahead of its CmdSN")
        self._held[cmd_sn] = raw

    def _free_slot(self) -> None:
        """A request that took a place in the command window is dealt with."""
        self.sender.max_cmd_sn = self.sender.max_cmd_sn + 1 & MASK

    def _handle_command(self, found: pdu.Pdu) -> None:
        _, flags, _, _, lun, itt, expected, _, _, cdb = pdu.SCSI_COMMAND.unpack(found.bhs)
        counted = not found.immediate
        reads, writes = bool(flags & pdu.COMMAND_READ), bool(flags & pdu.COMMAND_WRITE)
        try:
            if itt == NO_TAG:
                raise Rejected(RejectReason.INVALID_PDU_FIELD, "a command with the reserved tag")
            if itt in self._commands:
                raise Rejected(RejectReason.TASK_IN_PROGRESS, "a command with a tag in use")
            if found.immediate and len(self._commands) >= 2 * self._limits.queue_depth:
                raise Rejected(RejectReason.IMMEDIATE_COMMAND_REJECT, "too many commands")
            try:
                extra = pdu.extra_headers(found.ahs) if len(found.ahs) else {}
            except ValueError as error:
                raise Rejected(RejectReason.INVALID_PDU_FIELD, str(error)) from error
            if len(found.data) and not writes:
                raise Rejected(RejectReason.INVALID_PDU_FIELD, "data with a command that does not write")
        except Rejected:
            if counted:
                self._free_slot()
            raise
        task = Task(private_buffers)
        task.lun = lun
        task.cdb = cdb + extra.get(pdu.AHS_EXTENDED_CDB, b"\0")[1:]
        if reads and writes:
            task.expected_in = int.from_bytes(extra.get(pdu.AHS_BIDIRECTIONAL_READ_LENGTH, bytes(5))[1:5], "big")
        elif reads:
            task.expected_in = expected
        # A command that announces no data may still have some (its residual says how much), so it counts as a read.
        command = Command(itt, task, expected, reads=not writes, writes=writes and expected > 0, counted=counted)
        self._commands[itt] = command
        if max(expected, task.expected_in) > self._limits.transfer_bytes:
            self._refuse_command(command, TOO_LONG_SENSE)
            return
        if not command.writes:
            self._run(command)
            return
        agreed = self.login.agreed
        if len(found.data) and not agreed.immediate_data:
            raise PeerError("immediate data although ImmediateData=No")
        more = not flags & pdu.FINAL
        if more and agreed.initial_r2t:
            raise PeerError("unsolicited data announced although InitialR2T=Yes")
        command.begin_data_out(found.data, agreed.first_burst_length, more=more)
        self.bytes_in += len(found.data)
        self._proceed(command)

    def _refuse_command(self, command: Command, why: bytes) -> None:
        """Answer a command with sense data, without executing it."""
        if command.counted:
            self._free_slot()
            command.counted = False
        self.sender.scsi_response(command.itt, Status.CHECK_CONDITION, why)
        self._forget(command)

    def _proceed(self, command: Command) -> None:
        """Do what comes next for a command that is collecting data."""
        if command.stage is Stage.WAITING:
            self._waiting.append(command)
            self._admit()
        elif command.stage is Stage.READY:
            command.task.data_out = command.gathered()
            self._run(command)

    def _admit(self) -> None:
        """Ask for data as far as the budget goes; one command always has room."""
        while self._waiting:
            command = self._waiting[0]
            if self._data_used and self._data_used + command.budget > self._limits.data_bytes:
                return
            self._waiting.popleft()
            self._charge(command)
            command.begin_solicited()
            self._ask(command)

    def _charge(self, command: Command) -> None:
        command.charged = command.budget
        self._data_used += command.charged

    def _ask(self, command: Command) -> None:
        """Keep as many R2Ts out as were agreed."""
        agreed = self.login.agreed
        while len(command.r2ts) < agreed.max_outstanding_r2t:
            r2t = command.next_r2t(self._new_ttt(), agreed.max_burst_length)
            if r2t is None:
                return
            self._r2ts[r2t.ttt] = command
            self.sender.r2t(command.itt, command.task.lun, r2t.ttt, command.r2t_sn, r2t.offset, r2t.length)
            command.r2t_sn += 1

    def _new_ttt(self) -> int:
        ttt = self._next_ttt
        self._next_ttt = ttt + 1 if ttt < NO_TAG - 1 else 1
        return ttt

    def _place_data_out(self, bhs: memoryview) -> tuple[Command, ReadyToTransfer | None, memoryview | None] | None:
        """Where the data of a Data-Out belongs: (its command, its R2T if it has one, the place if it is still wanted);
        None when nobody knows the command (it was aborted)."""
        _, _, _, lengths, _, itt, ttt, _, _, _, data_sn, offset = pdu.DATA_OUT.unpack(bhs)
        length = lengths & 0xFFFFFF
        command = self._commands.get(itt) if ttt == NO_TAG else self._r2ts.get(ttt)
        if command is None:
            return None
        if command.itt != itt:
            raise PeerError("data of an R2T with another command's tag")
        r2t = None if ttt == NO_TAG else command.r2ts[ttt]
        if command.broken:
            return command, r2t, None
        try:
            if r2t is None:
                return command, r2t, command.unsolicited_place(data_sn, offset, length)
            return command, r2t, command.solicited_place(r2t, data_sn, offset, length)
        except OutOfOrder:
            log.warning("%s: data out of order, its command fails", self.login.initiator)
            command.broken = True
            return command, r2t, None

    def _handle_data_out(self, bhs: memoryview, data: memoryview) -> None:
        placed = self._place_data_out(bhs)
        if placed is None:
            return
        command, r2t, place = placed
        if place is not None:
            place[:] = data
        self._took_data(command, r2t, len(data), final=bool(bhs[1] & pdu.FINAL))

    def _took_data(self, command: Command, r2t: ReadyToTransfer | None, length: int, *, final: bool) -> None:
        """The data of one Data-Out is where it belongs."""
        self.bytes_in += length
        if command.stage is Stage.DONE or not final:  # aborted while its data was on the way, or not all there
            return
        if r2t is not None:
            if r2t.received != r2t.length and not command.broken:
                raise PeerError("less data than the R2T asked for")
            del command.r2ts[r2t.ttt], self._r2ts[r2t.ttt]
        if command.broken:
            if not command.r2ts:
                self._refuse_command(command, LOST_DATA_SENSE)
        elif r2t is None:
            command.end_unsolicited()
            self._proceed(command)
        elif not command.r2ts and command.next_offset == command.expected:
            command.stage = Stage.READY
            self._proceed(command)
        else:
            self._ask(command)

    def _receive_direct(self, buffer: memoryview, start: int, end: int) -> int:
        """Of a large Data-Out that has only begun: let the rest be received where it belongs, uncopied."""
        present = end - start - pdu.BHS_LENGTH
        if present < 0 or buffer[start] != Opcode.DATA_OUT or self.sender.digests != pdu.NO_DIGESTS:
            return 0
        lengths = int.from_bytes(buffer[start + 4 : start + 8], "big")
        if lengths >> 24 or lengths & 3 or lengths - present < DIRECT_LENGTH:
            return 0
        bhs = buffer[start : start + pdu.BHS_LENGTH]
        try:
            placed = self._place_data_out(bhs)
        except PeerError as error:
            self._fail(error, bhs)
            return end - start
        if placed is None or placed[2] is None:
            return 0  # to be thrown away: it goes through the buffer
        command, r2t, place = placed[0], placed[1], placed[2]
        final = bool(bhs[1] & pdu.FINAL)
        place[:present] = buffer[start + pdu.BHS_LENGTH : end]
        self.direct = place[present:]
        self._after_direct = lambda: self._took_data(command, r2t, lengths, final=final)
        return end - start

    def _run(self, command: Command) -> None:
        command.stage = Stage.RUNNING
        try:
            self._execute(command.task, nowait=True)
        except WouldBlock:
            self._block(command)
            return
        self._answer(command)
        self._forget(command)

    def _block(self, command: Command) -> None:
        """Leave a command for a worker."""
        command.task.allocate = private_buffers
        command.stage = Stage.RUNNING
        self._commands[command.itt] = command
        self.blocked.append(command)

    def _answer(self, command: Command, *, count: bool = True) -> None:
        task = command.task
        if count and command.counted:
            self._free_slot()
            command.counted = False
        self.commands_done += count
        if command.reads:
            self.bytes_out += min(task.expected_in, sum(map(len, task.data_in)))
            self.sender.data_in(command.itt, task.status, task.sense, task.data_in, task.expected_in)
            return
        self.sender.scsi_response(
            command.itt,
            task.status,
            task.sense,
            residual=residual_of(command.expected, command.expected + task.residual_out),
            exp_data_sn=command.r2t_sn,
        )

    def _forget(self, command: Command) -> None:
        """A command is answered, or aborted and quiet."""
        if self._commands.get(command.itt) is command:
            del self._commands[command.itt]
        if command.counted:
            self._free_slot()
            command.counted = False
        for ttt in command.r2ts:
            del self._r2ts[ttt]
        command.r2ts.clear()
        self._data_used -= command.charged
        command.charged = 0
        if command.stage is Stage.WAITING:
            self._waiting.remove(command)
        command.finish()
        if self._waiting and self.state is State.FULL_FEATURE:
            self._admit()

    def _handle_task_management(self, found: pdu.Pdu) -> None:
        _, flags, _, _, _, lun, itt, referenced, _, _ = pdu.REQUEST.unpack(found.bhs)
        if not found.immediate:
            self._free_slot()
        function = flags & 0x7F
        try:
            waits_for = self._manage(function, lun, referenced)
        except _Unmanaged as refusal:
            self._answer_management(itt, refusal.response)
            return
        Barrier(waits_for, lambda: self._answer_management(itt, TaskManagementResponse.FUNCTION_COMPLETE))

    def _answer_management(self, itt: int, response: TaskManagementResponse) -> None:
        if self.state is State.FULL_FEATURE:
            self.sender.send(Opcode.TASK_MANAGEMENT_RESPONSE, response=response, itt=itt)
            self.host.has_output(self)

    def _manage(self, function: int, lun: int, referenced: int) -> list[Command]:
        """Carry out a task management function; the aborted commands that still run."""
        if function == TaskManagementFunction.ABORT_TASK:
            command = self._commands.get(referenced)
            if command is None or command.task.lun != lun:
                raise _Unmanaged(TaskManagementResponse.TASK_DOES_NOT_EXIST)
            return self.abort(lambda other: other is command)
        if function == TaskManagementFunction.TASK_REASSIGN:
            raise _Unmanaged(TaskManagementResponse.REASSIGN_NOT_SUPPORTED)
        if function == TaskManagementFunction.TARGET_WARM_RESET:
            still = [c for other in self.host.neighbours(self) for c in other.abort(lambda command: True)]
            self.nexus.target_warm_reset()
            return still
        if function not in (
            TaskManagementFunction.ABORT_TASK_SET,
            TaskManagementFunction.CLEAR_TASK_SET,
            TaskManagementFunction.LOGICAL_UNIT_RESET,
        ):
            raise _Unmanaged(TaskManagementResponse.FUNCTION_NOT_SUPPORTED)
        if function == TaskManagementFunction.ABORT_TASK_SET:
            known = self.nexus.abort_task_set(lun)
            affected: Iterable[Connection] = (self,)
        else:
            reset = function == TaskManagementFunction.LOGICAL_UNIT_RESET
            known = self.nexus.lun_reset(lun) if reset else self.nexus.clear_task_set(lun)
            affected = self.host.neighbours(self)
        if not known:
            raise _Unmanaged(TaskManagementResponse.LUN_DOES_NOT_EXIST)
        return [c for other in affected for c in other.abort(lambda command: command.task.lun == lun)]

    def _handle_nop(self, found: pdu.Pdu) -> None:
        _, _, _, _, _, lun, itt, _, _, _ = pdu.REQUEST.unpack(found.bhs)
        if not found.immediate:
            self._free_slot()
        if itt != NO_TAG:
            self.sender.nop_in(itt, NO_TAG, lun, found.data[: self.sender.max_segment])

    def _handle_text(self, found: pdu.Pdu) -> None:
        _, flags, _, _, _, _, itt, ttt, _, _ = pdu.REQUEST.unpack(found.bhs)
        if not found.immediate:
            self._free_slot()
        if ttt == NO_TAG:
            self._text.clear()
            self._text_answer = b""
        self._text += found.data
        if len(self._text) > login.MAX_TEXT_LENGTH:
            raise PeerError("a text request too long")
        if flags & pdu.TEXT_CONTINUE:
            self.sender.send(Opcode.TEXT_RESPONSE, 0, itt=itt, word20=TEXT_TTT)
            return
        if self._text:
            self._text_answer = keys.serialise(self._answer_text(keys.parse(bytes(self._text))))
            self._text.clear()
        piece = self._text_answer[: self.sender.max_segment]
        self._text_answer = self._text_answer[len(piece) :]
        more = bool(self._text_answer)
        self.sender.send(
            Opcode.TEXT_RESPONSE,
            pdu.TEXT_CONTINUE if more else pdu.FINAL,
            itt=itt,
            word20=TEXT_TTT if more else NO_TAG,
            data=(piece,) if piece else (),
        )

    def _answer_text(self, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        answers: list[tuple[str, str]] = []
        rest: list[tuple[str, str]] = []
        for key, value in pairs:
            if key == "SendTargets":
                answers += self._send_targets(value)
            else:
                rest.append((key, value))
        self.login.agreed, negotiated = keys.negotiate(rest, self.login.agreed, self.host.parameters, full_feature=True)
        self.sender.max_segment = self.login.agreed.max_recv_data_segment_length
        return answers + negotiated

    def _send_targets(self, wanted: str) -> list[tuple[str, str]]:
        """RFC 7143 appendix C."""
        if wanted == "All":
            if not self.login.discovery:
                return [("SendTargets", keys.REJECT)]
            names = list(self.host.targets)
        else:
            names = [name for name in self.host.targets if name == (wanted or self.login.target)]
        answers: list[tuple[str, str]] = []
        for name in names:
            if self.host.policy.allows(self.login.initiator, self.address, name):
                answers.append(("TargetName", name))
                answers.append(("TargetAddress", f"{self.portal_address},{login.PORTAL_GROUP_TAG}"))
        return answers

    def _handle_logout(self, found: pdu.Pdu) -> None:
        _, flags, _, _, _, _, itt, cid, _, _ = pdu.REQUEST.unpack(found.bhs)
        if not found.immediate:
            self._free_slot()
        reason = flags & 0x7F
        if reason == pdu.LogoutReason.RECOVERY:
            self._answer_logout(itt, pdu.LogoutResponse.RECOVERY_NOT_SUPPORTED)
        elif reason == pdu.LogoutReason.CLOSE_CONNECTION and cid >> 16 != self.login.cid:
            self._answer_logout(itt, pdu.LogoutResponse.CID_NOT_FOUND)
        elif reason > pdu.LogoutReason.RECOVERY:
            raise Rejected(RejectReason.INVALID_PDU_FIELD, "a logout for an unknown reason")
        else:
            # What the initiator sends to others after this answer must not be overtaken by its old commands.
            self.state = State.LOGOUT
            self._fast = False
            Barrier(self.abort(lambda command: True), lambda: self._log_out(itt))

    def _log_out(self, itt: int) -> None:
        if self.state is State.LOGOUT:
            self._answer_logout(itt, pdu.LogoutResponse.CLOSED)
            self.close()
            self.host.has_output(self)

    def _answer_logout(self, itt: int, response: pdu.LogoutResponse) -> None:
        agreed = self.login.agreed
        times = agreed.default_time2wait << 16 | agreed.default_time2retain
        self.sender.send(Opcode.LOGOUT_RESPONSE, response=response, itt=itt, words=(0, times, 0))


class _Unmanaged(Exception):
    """A task management function that is answered with `response`."""

    def __init__(self, response: TaskManagementResponse) -> None:
        super().__init__(response)
        self.response = response


def _no_nexus(task: Task, *, nowait: bool = False) -> None:
    raise errors.UsageError("a command outside of a normal session")


TEXT_TTT = 0x7FFFFFFF
"""The tag of a text exchange that goes on; there is only ever one."""

DIRECT_LENGTH = 16384
"""Bytes still to come from which on receiving in place beats a copy."""

_HANDLERS: dict[int, Callable[[Connection, pdu.Pdu], None]] = {
    Opcode.SCSI_COMMAND: Connection._handle_command,
    Opcode.TASK_MANAGEMENT_REQUEST: Connection._handle_task_management,
    Opcode.NOP_OUT: Connection._handle_nop,
    Opcode.TEXT_REQUEST: Connection._handle_text,
    Opcode.LOGOUT_REQUEST: Connection._handle_logout,
}
