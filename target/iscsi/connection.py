# SPDX-License-Identifier: Apache-2.0
"""One iSCSI connection, which is also one session (MaxConnections=1), without sockets or threads (RFC 7143).

Bytes go in with `receive`, and answers come out of `output`.  A command that would wait for a disk is left in
`tasks.blocked`; the caller runs it elsewhere and hands it back to `tasks.complete`.  Time comes in as `now`, in
seconds.

| state        | RFC 7143 8.1.1   | accepted requests                             | is left for                        |
| ------------ | ---------------- | --------------------------------------------- | ---------------------------------- |
| LOGIN        | S3, S4           | Login Requests                                | ENTERING, CLOSING                  |
| ENTERING     | S4               | none, until a replaced session's commands end | FULL_FEATURE, CLOSING              |
| FULL_FEATURE | S5               | all but Login Requests                        | LOGOUT, CLOSING                    |
| LOGOUT       | S6               | none; running commands are waited for         | CLOSING                            |
| CLOSING      | S8               | none; to be closed once `output` was sent     |                                    |

A peer's mistake raises no error here: it is answered as errors.py says, and logged.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from target.iscsi import keys, login, pdu, task_management
from target.iscsi.command import Barrier, Command
from target.iscsi.errors import LoginRefused, LoginStatus, PeerError, Rejected
from target.iscsi.failed_logins import FailedLogins
from target.iscsi.limits import Limits
from target.iscsi.memory import Account, Memory
from target.iscsi.output import Output
from target.iscsi.pdu import NO_TAG, Opcode, RejectReason, TaskManagementResponse
from target.iscsi.sender import MASK, Sender
from target.iscsi.task_set import TaskSet
from target.iscsi.text import TextExchange
from target.scsi.nexus import Nexus
from target.scsi.scsi_target import ScsiTarget

log = logging.getLogger(__name__)


class State(enum.Enum):
    """The states of the module's table."""

    LOGIN = "login"
    ENTERING = "entering"
    FULL_FEATURE = "full feature"
    LOGOUT = "logout"
    CLOSING = "closing"


class Host(Protocol):
    """The portal, as its connections see it."""

    targets: Mapping[str, ScsiTarget]
    policy: login.AccessPolicy
    failed_logins: FailedLogins
    parameters: keys.Parameters
    limits: Limits
    memory: Memory

    def reinstate(self, connection: Connection) -> list[Command]:
        """End the sessions that `connection` replaces (RFC 7143 6.3.5); return their commands that still run.

        This includes sessions that were lost earlier, and logins that wait for the same commands.
        """

    def open_session(self, connection: Connection) -> tuple[int, Nexus | None]:
        """Open the session, and return (TSIH, nexus or None for discovery).  Raises LoginRefused."""

    def portals(self, reached: str) -> Iterable[str]:
        """Return every address that accepts initiators, HOST:PORT, beginning with `reached`."""

    def neighbours(self, connection: Connection) -> Iterable[Connection]:
        """Return all sessions on the same target, including `connection`, and lost ones while their commands run."""

    def logged_out(self, connection: Connection) -> None:
        """End the session, whose last command has ended.  The initiator gets the answer afterwards.

        So an initiator that has the answer no longer counts as one that uses a unit.
        """

    def has_output(self, connection: Connection) -> None:
        """Note that `connection` has output that the portal cannot know of, because it did not call `connection`."""


class Connection:
    """One connection with its session.  All methods belong to one thread, the event loop's."""

    def __init__(self, host: Host, output: Output, address: str, portal_address: str, now: float) -> None:
        self.host = host
        self.output = output
        self.address = address  # the initiator's, without port
        self.portal_address = portal_address  # the HOST:PORT that the initiator connected to
        self.state = State.LOGIN
        self.since = now
        self.login = login.Login(host.targets, host.policy, address, host.parameters)
        self.nexus: Nexus | None = None
        self.tsih = 0
        self.stalled = False
        """Whether the last `receive` left requests in the buffer: the session was congested, or answers must be sent first.
        The caller must call it again even without new bytes."""
        self.sender = Sender(output)
        self.account = Account(host.memory)
        self.tasks = TaskSet(self.sender, host.limits, self.account)
        self._limits = host.limits
        self._login_pdus = 0
        self._proved = False
        self._entered = now
        self.held: dict[int, bytes] = {}
        self._held_bytes = 0  # of memory for them
        self._managing = 0  # task management functions not answered yet
        self._last_heard = now
        self._pinged: float | None = None
        self._unfinished_since: float | None = None  # since when a PDU is incomplete
        # while answers wait: the bytes that the peer took, and since when it has taken none
        self._untaken: tuple[int, float] | None = None
        self._closing_since: float | None = None
        self._refusal: tuple[float, LoginStatus, bytes] | None = None  # when to send it, its status, the request's BHS
        self._text = TextExchange()
        self._text_requests = 0

    # -- for the portal ------------------------------------------------------------------------------------------

    @property
    def last_heard(self) -> float:
        """When the last bytes came from the peer."""
        return self._last_heard

    @property
    def finished(self) -> bool:
        """Whether the connection ends once its output was sent."""
        return self.state is State.CLOSING

    def receive(self, buffer: memoryview, end: int, now: float) -> int:
        """Handle every complete PDU in `buffer[:end]`, and return how many bytes they had.

        The bytes left belong to an incomplete PDU, or come after congestion or the end of the connection.  Only
        commands in `tasks.blocked` whose `borrows` is set keep views into `buffer`.
        """
        self._last_heard = now
        self._pinged = None
        if self._refusal is not None:
            return end
        start = 0
        self.stalled = False
        turn = self._limits.turn_pdus
        while start < end:
            if self.tasks.fast and not self.held:
                start = self.tasks.receive_commands(buffer, start, end)
                if start == end:
                    break
                if self.tasks.paused:
                    self.stalled = True
                    break
            if self.tasks.congested:
                self.stalled = True
                break
            if self.state in (State.CLOSING, State.LOGOUT):
                break
            if self.state is State.ENTERING:
                self._drop("a request before the login was answered")
                break
            if not turn:
                self.stalled = True
                break
            turn -= 1
            consumed = self._receive_one(buffer, start, end, now)
            if not consumed:
                break
            start += consumed
        if start:
            self._unfinished_since = None
        if self._unfinished_since is None and (start < end or len(self.tasks.direct)):
            self._unfinished_since = now
        return end if self.state is State.CLOSING else start

    def received_direct(self, length: int, now: float) -> None:
        """Note that `length` bytes were received at the beginning of `tasks.direct`."""
        self._last_heard = now
        if length == len(self.tasks.direct):
            self._unfinished_since = None
        try:
            self.tasks.received_direct(length)
        except PeerError as error:
            self._fail(error, bytes(pdu.BHS_LENGTH))

    def tick(self, now: float) -> None:
        """Let time pass.  Call it every second or so."""
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
            if self.login.discovery and now - self._entered > limits.discovery_seconds:
                self._drop(f"a discovery session has {limits.discovery_seconds:g} s")
                return
            unfinished = None if self.tasks.congested else self._unfinished_since  # then our own side does not read
            if unfinished is not None and now - unfinished > limits.stall_seconds:
                self._drop(f"a PDU was not finished within {limits.stall_seconds:g} s")
            elif self._deaf(now):
                self._drop(f"no answer was taken within {limits.stall_seconds:g} s")
            elif self.tasks.overdue(now):
                self._drop(f"a command's data did not come within {limits.stall_seconds:g} s")
            elif self._pinged is not None:
                if now - self._pinged > limits.ping_seconds:
                    log.warning("%s: does not answer, session dropped", self.login.initiator)
                    self.close()
            elif now - self._last_heard > limits.idle_seconds:
                self._pinged = now
                self.sender.nop_in(NO_TAG, self.tasks.data_out.new_ttt())
        elif self._closing_since is None:
            self._closing_since = now

    def _deaf(self, now: float) -> bool:
        """Return whether the peer has taken no byte of waiting answers for too long, even if it sends requests."""
        taken = self.output.taken
        if not len(self.output):
            self._untaken = None
        elif self._untaken is None or self._untaken[0] != taken:
            self._untaken = (taken, now)
        else:
            return now - self._untaken[1] > self._limits.stall_seconds
        return False

    def lingers(self, now: float) -> bool:
        """Return whether a closing connection may still wait for the peer to take its output."""
        return self._closing_since is None or now - self._closing_since < self._limits.linger_seconds

    def close(self) -> None:
        """End the conversation: handle no further requests, answer no further commands; `output` may still be sent."""
        self.state = State.CLOSING
        self.tasks.close()
        self._give_held()

    def _give_held(self) -> None:
        self.account.give(self._held_bytes)
        self._held_bytes = 0

    def request_logout(self, seconds: int) -> None:
        """Ask the initiator to log out within `seconds` (RFC 7143 11.9.1)."""
        self.async_event(pdu.AsyncEvent.LOGOUT_REQUESTED, parameters=(0, 0, seconds))

    def async_event(self, event: pdu.AsyncEvent, code: int = 0, parameters: tuple[int, int, int] = (0, 0, 0)) -> None:
        """Send an asynchronous message to a normal session in the full feature phase."""
        if self.state is State.FULL_FEATURE:
            self.sender.async_message(event, code, parameters)

    def _guarded(self, then: Callable[[], None]) -> Callable[[], None]:
        """Return `then` for a barrier, with a guard: an error ends this session, not the one that ends the barrier."""

        def guarded() -> None:
            try:
                then()
            except Exception:
                log.exception("%s: the connection ends, because of an error", self.login.initiator or self.address)
                self.close()
                self.host.has_output(self)

        return guarded

    # -- the general path ----------------------------------------------------------------------------------------

    def _receive_one(self, buffer: memoryview, start: int, end: int, now: float) -> int:
        """Handle the PDU at `buffer[start:end]`, and return its length, or 0 if it is incomplete."""
        logged_in = self.state is State.FULL_FEATURE
        limit = self.host.parameters.max_recv_data_segment_length if logged_in else self._limits.login_segment
        try:
            request = pdu.find(buffer, start, end, self.sender.digests, limit)
        except pdu.HeaderDigestError as error:
            self._drop(str(error))
            return end - start
        except pdu.DataSegmentTooLong as error:
            self._fail(PeerError(str(error)), buffer[start : start + pdu.BHS_LENGTH])
            return end - start
        if request is None:
            if not logged_in:
                return 0
            try:
                return self.tasks.receive_direct(buffer, start, end)
            except PeerError as error:
                self._fail(error, buffer[start : start + pdu.BHS_LENGTH])
                return end - start
        try:
            if not logged_in:
                self._handle_login(request)
            elif not request.data_digest_ok:
                # At ErrorRecoveryLevel 0 a lost PDU is not recovered within the connection (RFC 7143 7.8).
                raise PeerError("data digest does not match", RejectReason.DATA_DIGEST_ERROR)
            else:
                self._dispatch(request)
        except PeerError as error:
            self._fail(error, request.bhs)
        except Rejected as error:
            log.info("%s: %s", self.login.initiator, error)
            self.sender.reject(error.reason, request.bhs)
        return request.end - start

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

    def _handle_login(self, request: pdu.Pdu) -> None:
        self._login_pdus += 1
        if self._login_pdus > self._limits.login_pdus:
            raise PeerError("too many PDUs without a login")
        if request.opcode != Opcode.LOGIN_REQUEST or len(request.ahs):
            raise PeerError("a PDU that is not a login request")
        header = login.Request.parse(request.bhs)
        if self._login_pdus == 1:
            self.sender.exp_cmd_sn = header.cmd_sn
            self.sender.max_cmd_sn = header.cmd_sn + self._limits.queue_depth - 1 & MASK
        try:
            answer = self.login.handle(header, bytes(request.data))
            if self.login.proving and not self._proved:
                self._proved = True  # or it is refused
                if not self.host.failed_logins.may_try(self.address, self.login.initiator, self._last_heard):
                    why = f"too many wrong secrets for {self.login.initiator} from there"
                    raise LoginRefused(LoginStatus.SERVICE_UNAVAILABLE, why)
            if answer.done:
                bhs = bytes(request.bhs)
                self.state = State.ENTERING
                Barrier(self.host.reinstate(self), self._guarded(lambda: self._enter(bhs, answer)))
            else:
                self._answer_login(request.bhs, answer.flags, LoginStatus.SUCCESS, answer.text)
        except LoginRefused as error:
            self._end_login(error.status, str(error), request.bhs)

    def _login_failed(self, status: LoginStatus, why: str, now: float) -> float:
        return self.host.failed_logins.failed(self.address, self.login.initiator, status, why, now)

    def _end_login(self, status: LoginStatus, why: str, bhs: memoryview | bytes) -> None:
        """Refuse the login, now or after the delay of failed_logins.py; until then all further bytes are ignored."""
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
        """Begin the full feature phase, now that no command of a replaced session runs."""
        if self.state is not State.ENTERING:
            return
        try:
            self.tsih, self.nexus = self.host.open_session(self)
        except LoginRefused as error:
            self._login_failed(error.status, str(error), self._last_heard)
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
        self._entered = self._last_heard
        if self._proved:
            self.host.failed_logins.succeeded(self.address, self.login.initiator)
        if self.nexus is not None:
            self.tasks.open(self.nexus, self.login.initiator, agreed, self.host.parameters.max_recv_data_segment_length)
        log.info("%s logged in from %s to %s", self.login.initiator, self.address, self.login.target or "discovery")
        self.host.has_output(self)

    # -- full feature phase --------------------------------------------------------------------------------------

    def _dispatch(self, request: pdu.Pdu) -> None:
        opcode = request.opcode
        if opcode == Opcode.DATA_OUT:
            self.tasks.take_data_out(request.bhs, request.data)
            return
        if opcode == Opcode.SNACK_REQUEST:
            raise Rejected(RejectReason.SNACK_REJECT, "SNACK at ErrorRecoveryLevel 0")
        if opcode not in _HANDLERS:
            raise Rejected(RejectReason.COMMAND_NOT_SUPPORTED, f"PDU with opcode {opcode:#x}")
        if self.nexus is None and opcode not in (Opcode.TEXT_REQUEST, Opcode.LOGOUT_REQUEST, Opcode.NOP_OUT):
            raise PeerError("a SCSI request in a discovery session")
        if request.immediate:
            self._handle(request)
            return
        cmd_sn = int.from_bytes(request.bhs[24:28], "big")
        sender = self.sender
        ahead = cmd_sn - sender.exp_cmd_sn & MASK
        if not sender.window_open or ahead > sender.max_cmd_sn - sender.exp_cmd_sn & MASK:
            log.info("%s: CmdSN outside the window, ignored", self.login.initiator)  # RFC 7143 4.2.2.1
            return
        if ahead:
            self._hold(cmd_sn, request)
            return
        sender.exp_cmd_sn = cmd_sn + 1 & MASK
        self._handle(request)
        while self.held and self.state is State.FULL_FEATURE:
            raw = self.held.pop(sender.exp_cmd_sn, None)
            if raw is None:
                break
            held = pdu.find(memoryview(raw), 0, len(raw), pdu.NO_DIGESTS, pdu.MAX_DATA_SEGMENT_LENGTH)
            assert held is not None
            sender.exp_cmd_sn = sender.exp_cmd_sn + 1 & MASK
            self._handle(held)
        if self._held_bytes and not self.held:
            self._give_held()

    def _handle(self, request: pdu.Pdu) -> None:
        """Call the request's handler.  A rejected request must not hold up the requests behind it."""
        try:
            _HANDLERS[request.opcode](self, request)
        except Rejected as error:
            log.info("%s: %s", self.login.initiator, error)
            self.sender.reject(error.reason, request.bhs)

    def _hold(self, cmd_sn: int, request: pdu.Pdu) -> None:
        """Keep a request that arrived ahead of its turn."""
        if cmd_sn in self.held:
            return
        raw = pdu.encode(bytes(request.bhs), request.data, ahs=bytes(request.ahs))
        if sum(map(len, self.held.values())) + len(raw) > self._limits.held_bytes:
            raise PeerError("too much sent ahead of its CmdSN")
        if not self.account.take(len(raw)):
            raise PeerError("no memory for requests ahead of their CmdSN")
        self._held_bytes += len(raw)
        self.held[cmd_sn] = raw

    def _handle_task_management(self, request: pdu.Pdu) -> None:
        _, flags, _, _, _, lun, itt, referenced, _, _ = pdu.REQUEST.unpack(request.bhs)
        if not request.immediate:
            self.tasks.free_slot()
        assert self.nexus is not None  # `_dispatch` refuses it in a discovery session
        self._managing += 1
        try:
            if self._managing > self._limits.managed:
                raise task_management.Refused(TaskManagementResponse.FUNCTION_REJECTED)
            neighbours = list(self.host.neighbours(self))
            waits_for = task_management.carry_out(self, self.nexus, neighbours, flags & 0x7F, lun, referenced)
            for neighbour in neighbours:
                self.host.has_output(neighbour)  # answers to commands that were aborted
        except task_management.Refused as refusal:
            self._answer_management(itt, refusal.response)
            return
        complete = TaskManagementResponse.FUNCTION_COMPLETE
        Barrier(waits_for, self._guarded(lambda: self._answer_management(itt, complete)))

    def _answer_management(self, itt: int, response: TaskManagementResponse) -> None:
        self._managing -= 1
        if self.state is State.FULL_FEATURE:
            self.sender.send(Opcode.TASK_MANAGEMENT_RESPONSE, response=response, itt=itt)
            self.host.has_output(self)

    def _handle_nop(self, request: pdu.Pdu) -> None:
        _, _, _, _, _, lun, itt, _, _, _ = pdu.REQUEST.unpack(request.bhs)
        if not request.immediate:
            self.tasks.free_slot()
        if itt != NO_TAG:
            self.sender.nop_in(itt, NO_TAG, lun, request.data[: self.sender.max_segment])

    def _handle_text(self, request: pdu.Pdu) -> None:
        if not request.immediate:
            self.tasks.free_slot()
        if self.login.discovery:
            self._text_requests += 1
            if self._text_requests > self._limits.text_requests:
                raise PeerError("too many text requests in a discovery session")
        self._text.take(self, request)

    def _handle_logout(self, request: pdu.Pdu) -> None:
        _, flags, _, _, _, _, itt, cid, _, _ = pdu.REQUEST.unpack(request.bhs)
        if not request.immediate:
            self.tasks.free_slot()
        reason = flags & 0x7F
        if reason == pdu.LogoutReason.RECOVERY:
            self._answer_logout(itt, pdu.LogoutResponse.RECOVERY_NOT_SUPPORTED)
        elif reason == pdu.LogoutReason.CLOSE_CONNECTION and cid >> 16 != self.login.cid:
            self._answer_logout(itt, pdu.LogoutResponse.CID_NOT_FOUND)
        elif reason > pdu.LogoutReason.RECOVERY:
            raise Rejected(RejectReason.INVALID_PDU_FIELD, "a logout for an unknown reason")
        else:
            # After the answer, the initiator may send commands through another session, and no old one may overtake
            # them.
            self.state = State.LOGOUT
            Barrier(self.tasks.close(), self._guarded(lambda: self._log_out(itt)))

    def _log_out(self, itt: int) -> None:
        if self.state is State.LOGOUT:
            self.host.logged_out(self)
            self._answer_logout(itt, pdu.LogoutResponse.CLOSED)
            self.close()
            self.host.has_output(self)

    def _answer_logout(self, itt: int, response: pdu.LogoutResponse) -> None:
        agreed = self.login.agreed
        times = agreed.default_time2wait << 16 | agreed.default_time2retain
        self.sender.send(Opcode.LOGOUT_RESPONSE, response=response, itt=itt, words=(0, times, 0))


# The table has functions, because a table of bound methods would make a reference circle that outlives the session.
_HANDLERS: Mapping[int, Callable[[Connection, pdu.Pdu], None]] = {
    Opcode.SCSI_COMMAND: lambda connection, request: connection.tasks.begin(request),
    Opcode.TASK_MANAGEMENT_REQUEST: Connection._handle_task_management,
    Opcode.NOP_OUT: Connection._handle_nop,
    Opcode.TEXT_REQUEST: Connection._handle_text,
    Opcode.LOGOUT_REQUEST: Connection._handle_logout,
}
