# SPDX-License-Identifier: Apache-2.0
"""Commands over iSCSI without the kernel: Debian's library `libiscsi7`, by ctypes.  It works in containers.

An address is `iscsi://HOST[:PORT]/TARGET/LUN`.  Several portals of the target may stand there with commas between: a
login tries the one that answered last, then the others, always under the same ISID.  An `Initiator` has one session for each target, and all its units share
it, so they are one I_T nexus.  The ISID follows from the names of initiator and target.  So a session that logs in again,
in this process or after its restart, is the same nexus: registrations stay, and the target ends the commands of the old
session before it answers the login (RFC 7143 6.3.5).

A link that is lost fails the commands in flight with NoAnswer; the next command logs in again.  The library's own
reconnection is off, because it would send writes again that the caller has given up.

The threads that wait for commands drive the session themselves: one of them polls, the others sleep, and one that leaves
hands over to another.  So a single command costs no change of threads.  `_lock` guards the library's context; nobody
holds it while polling.  A keeper thread pings each target (NOP-Out) and answers its pings.  A target that does not answer
a ping counts as lost, so a link that is cut fails commands after 15 s at most, and not after their own time limit.

Facts of libiscsi 1.19 that this code depends on: a callback comes once for each command, unless the context is destroyed
first.  A command that is answered early may have Data-Out PDUs in the queue that point at its task, so the task lives on
until the queue is empty.  `iscsi_task_mgmt_lun_reset_async` would cancel the commands of all LUNs on this side.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import select
import threading
import time
from dataclasses import dataclass
from typing import Any

from lun_backends import block_device
from lun_backends.block_device import Buffers
from lun_backends.files import backing_file
from lun_backends.initiator import memory, unit

DEFAULT_PORT = 3260
CONNECT_TIMEOUT = 10.0
"""Seconds that a login may take, with the waiting for the old session's commands."""

LIBRARY = "libiscsi.so.7"
_PORTAL = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^/\s\[\]:,]+)(:(?P<port>\d{1,5}))?")
_ADDRESS = re.compile(r"iscsi://(?P<portals>[^/\s]+)/(?P<target>[^/\s]+)/(?P<lun>\d{1,5})")
_NORMAL_SESSION, _NO_DIGEST = 2, 0
_XFER_NONE, _XFER_READ, _XFER_WRITE = 0, 1, 2
_OWN_STATUS = 0x0F000000  # cancelled, error, timed out
_UNDERFLOW = 1
_LOGICAL_UNIT_RESET = 5
_NO_TAG = 0xFFFFFFFF
_FUNCTION_COMPLETE = 0
_FLAT_SPACE = 0x4000  # addressing method of LUNs above 255 (SAM-5 4.7.7.3)
_KEEPER_PERIOD = 5.0  # seconds; targets wait 15 s and longer for the answer to a ping
_PING_TIMEOUT = 10.0  # seconds; Linux waits 5, but a target may be a process on a busy machine
_USER_TIMEOUT = 20_000  # milliseconds that data may stay unacknowledged by the peer's TCP
_PAUSE_AFTER_FAILURE = 0.25  # seconds in which others that want the same session get the same answer


class _Sense(ctypes.Structure):
    _fields_ = (
        ("error_type", ctypes.c_ubyte),
        ("key", ctypes.c_int),
        ("ascq", ctypes.c_int),
        ("flags", ctypes.c_ubyte),  # three one-bit fields; the next member shares their word
        ("bit_pointer", ctypes.c_ubyte),
        ("field_pointer", ctypes.c_uint16),
    )


class _Task(ctypes.Structure):
    """The beginning of struct scsi_task of scsi-lowlevel.h."""

    _fields_ = (
        ("status", ctypes.c_int),
        ("cdb_size", ctypes.c_int),
        ("xfer_dir", ctypes.c_int),
        ("expxferlen", ctypes.c_int),
        ("cdb", ctypes.c_ubyte * 16),
        ("residual_status", ctypes.c_int),
        ("residual", ctypes.c_size_t),
        ("sense", _Sense),
        ("datain_size", ctypes.c_int),
        ("datain", ctypes.c_void_p),
    )


_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "iscsi_create_context": (ctypes.c_void_p, (ctypes.c_char_p,)),
    "iscsi_destroy_context": (ctypes.c_int, (ctypes.c_void_p,)),
    "iscsi_full_connect_async": (
        ctypes.c_int,
        (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, _CALLBACK, ctypes.c_void_p),
    ),
    "iscsi_get_error": (ctypes.c_char_p, (ctypes.c_void_p,)),
    "iscsi_get_fd": (ctypes.c_int, (ctypes.c_void_p,)),
    "iscsi_logout_async": (ctypes.c_int, (ctypes.c_void_p, _CALLBACK, ctypes.c_void_p)),
    "iscsi_nop_out_async": (
        ctypes.c_int,
        (ctypes.c_void_p, _CALLBACK, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p),
    ),
    "iscsi_out_queue_length": (ctypes.c_int, (ctypes.c_void_p,)),
    "iscsi_scsi_command_async": (
        ctypes.c_int,
        (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, _CALLBACK, ctypes.c_void_p, ctypes.c_void_p),
    ),
    "iscsi_service": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_int)),
    "iscsi_set_header_digest": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_int)),
    "iscsi_set_initiator_username_pwd": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)),
    "iscsi_set_isid_random": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32)),
    "iscsi_set_noautoreconnect": (None, (ctypes.c_void_p, ctypes.c_int)),
    "iscsi_set_session_type": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_int)),
    "iscsi_set_target_username_pwd": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)),
    "iscsi_set_targetname": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p)),
    "iscsi_set_tcp_user_timeout": (None, (ctypes.c_void_p, ctypes.c_int)),
    "iscsi_task_mgmt_async": (
        ctypes.c_int,
        (ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_uint32, ctypes.c_uint32, _CALLBACK, ctypes.c_void_p),
    ),
    "iscsi_which_events": (ctypes.c_int, (ctypes.c_void_p,)),
    "scsi_create_task": (ctypes.c_void_p, (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_int)),
    "scsi_free_scsi_task": (None, (ctypes.c_void_p,)),
    "scsi_task_set_iov_in": (None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)),
    "scsi_task_set_iov_out": (None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)),
}
_loaded: list[Any] = []


class AddressWrong(ValueError):
    """A text that is no address of a LUN."""


@dataclass(frozen=True, slots=True)
class Address:
    """A LUN behind an iSCSI portal; `portal` is HOST:PORT, or several of them with commas between."""

    portal: str
    target: str
    lun: int

    def __str__(self) -> str:
        return f"iscsi://{self.portal}/{self.target}/{self.lun}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse `iscsi://HOST[:PORT][,HOST[:PORT]...]/TARGET/LUN`.  Raise AddressWrong."""
        match = _ADDRESS.fullmatch(text)
        portals = [_PORTAL.fullmatch(portal) for portal in match["portals"].split(",")] if match is not None else []
        if (
            match is None
            or int(match["lun"]) > 0x3FFF
            or any(portal is None or int(portal["port"] or DEFAULT_PORT) > 0xFFFF for portal in portals)
        ):
            raise AddressWrong(
                f"{text} is no address of a LUN: write iscsi://HOST[:PORT]/TARGET/LUN, with a LUN below 16384"
            )
        places = (f"{portal['host']}:{portal['port'] or DEFAULT_PORT}" for portal in portals if portal is not None)
        return cls(",".join(places), match["target"], int(match["lun"]))


@dataclass(frozen=True, slots=True)
class Chap:
    """A user's name and secret (CHAP, RFC 7143 12.1.3)."""

    user: str
    secret: str


def _library() -> Any:
    """Return the library with its prototypes.  Raise unit.CannotSend."""
    if not _loaded:
        try:
            library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise unit.CannotSend(
                "iscsi:// addresses need the library libiscsi: install it (Debian and Ubuntu: apt-get install libiscsi7)"
            ) from error
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        _loaded.append(library)
    return _loaded[0]


def is_installed() -> bool:
    """Return whether this host has the library."""
    try:
        _library()
    except unit.CannotSend:
        return False
    return True


class _Call:
    """A command or a task management function under way."""

    __slots__ = ("answer", "deadline", "done", "lun", "pinned", "problem", "response", "task", "wake")

    def __init__(self, lun: int, timeout: float, task: int | None, pinned: memory.Pinned | None) -> None:
        self.lun = lun
        self.deadline = time.monotonic() + timeout
        self.task = task
        self.pinned = pinned
        self.done = False
        self.answer: unit.Answer | None = None
        self.response = -1  # of a task management function
        self.problem = ""
        self.wake = threading.Lock()  # released when the call is done, or when its thread is to poll
        self.wake.acquire()

    def finish(self, problem: str = "") -> None:
        self.done, self.problem = True, problem
        self.awaken()

    def awaken(self) -> None:
        """Let the call's thread look again."""
        with contextlib.suppress(RuntimeError):  # it was woken, and has not looked yet
            self.wake.release()


class _Session:
    """One session with a target, for any number of threads."""

    def __init__(self, owner: Initiator, portal: str, target: str) -> None:
        self._c = _library()
        self._owner = owner
        self._portal, self._target = portal, target
        self._portals = portal.split(",")
        digest = hashlib.sha256(f"{owner.name}\n{target}\n{owner.port}".encode()).digest()
        self._isid = int.from_bytes(digest[:3]), int.from_bytes(digest[3:5])
        self._lock = threading.Lock()
        self._context: int | None = None
        self._callback = _CALLBACK(self._on_answer)
        self._calls: dict[int, _Call] = {}
        self._number = 0
        self._leader: _Call | None = None
        self._broken = ""
        self._pinging = False
        self._freeing: list[_Call] = []
        self._failed = (0.0, "")  # until when, and why
        self._closed = False
        self._polls_until = 0.0
        self._wake = backing_file.Descriptor(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        self._ending = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="iscsi-keeper", daemon=True)
        self._keeper.start()
        self.users = 0

    def command(self, lun: int, cdb: bytes, data_out: Buffers, data_in: Buffers, timeout: float) -> unit.Answer:
        """Send a command, and wait for its answer.  Raise NoAnswer."""
        pinned = memory.pin(data_out or data_in)
        direction = _XFER_WRITE if data_out else _XFER_READ if data_in else _XFER_NONE
        with self._lock:
            self._prepare()
            task = self._c.scsi_create_task(len(cdb), cdb, direction, pinned.length)
            if data_out:
                self._c.scsi_task_set_iov_out(task, ctypes.addressof(pinned.vector), len(pinned.vector))
            elif data_in:
                self._c.scsi_task_set_iov_in(task, ctypes.addressof(pinned.vector), len(pinned.vector))
            call = _Call(lun, timeout, task, pinned)
            number = self._add(call)
            if self._c.iscsi_scsi_command_async(self._context, _wire(lun), task, self._callback, None, number):
                del self._calls[number]
                self._c.scsi_free_scsi_task(task)
                raise block_device.NoAnswer(f"{self._name}: {self._error()}")
            self._send_queued(call)
        self._wait(call)
        if call.answer is None:
            raise block_device.NoAnswer(f"{self._name} did not answer: {call.problem}")
        return call.answer

    def reset(self, lun: int, timeout: float) -> None:
        """Send LOGICAL UNIT RESET, and wait for its answer.  Raise NoAnswer, CannotSend."""
        with self._lock:
            self._prepare()
            call = _Call(lun, timeout, None, None)
            number = self._add(call)
            before = [other for other in self._calls.values() if other.lun == lun and other is not call]
            if self._c.iscsi_task_mgmt_async(
                self._context, _wire(lun), _LOGICAL_UNIT_RESET, _NO_TAG, 0, self._callback, number
            ):
                del self._calls[number]
                raise block_device.NoAnswer(f"{self._name}: {self._error()}")
            self._send_queued(call)
        self._wait(call)
        if call.problem:
            raise block_device.NoAnswer(f"{self._name} did not answer: {call.problem}")
        if call.response != _FUNCTION_COMPLETE:
            raise unit.CannotSend(f"{self._name} refused LOGICAL UNIT RESET with response {call.response}")
        with self._lock:
            # The target has sent all answers that these will ever get.
            for other in before:
                if not other.done:
                    other.finish("LOGICAL UNIT RESET ended the command")
            self._rouse()

    def _keep(self) -> None:
        while not self._ending.wait(_KEEPER_PERIOD):
            self._tend()

    def _tend(self) -> None:
        """Answer the target's pings and ping it, so that a lost link is noticed."""
        with self._lock:
            if self._context is not None and self._leader is None:
                self._take_in()
            if self._context is None or self._pinging:
                return
            call = _Call(-1, _PING_TIMEOUT, None, None)
            number = self._add(call)
            if self._c.iscsi_nop_out_async(self._context, self._callback, None, 0, number):
                del self._calls[number]
                return
            self._pinging = True
            self._send_queued(call)
        try:
            self._wait(call)
        finally:
            self._pinging = False

    def close(self) -> None:
        """Log out.  Commands under way fail with NoAnswer."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._context is not None and self._leader is None:
                call = _Call(-1, 2.0, None, None)
                if self._c.iscsi_logout_async(self._context, self._callback, self._add(call)) == 0:
                    self._drive(call)
            self._lose("the session was closed")
        self._ending.set()
        self._keeper.join()

    @property
    def _name(self) -> str:
        return f"{self._target} at {self._portal}"

    def _error(self) -> str:
        text = self._c.iscsi_get_error(self._context) if self._context is not None else b""
        return bytes(text or b"").decode(errors="replace").strip() or "the link was lost"

    def _add(self, call: _Call) -> int:
        self._number += 1
        self._calls[self._number] = call
        return self._number

    def _prepare(self) -> None:
        """Log in if necessary.  Raise NoAnswer, DeviceClosed."""
        if self._closed:
            raise block_device.DeviceClosed
        if self._context is not None and self._leader is None:
            self._take_in()  # the link may have been lost while it was idle
        if self._context is not None:
            return
        until, why = self._failed
        if time.monotonic() < until:
            raise block_device.NoAnswer(why)
        problems = []
        for portal in list(self._portals):
            problem = self._log_in(portal)
            if not problem:
                # The next login begins with the portal that answered.
                self._portals.sort(key=lambda other: other != portal)
                return
            problems.append(problem)
        why = f"{self._name} cannot be reached: {'; '.join(problems)}"
        self._failed = time.monotonic() + _PAUSE_AFTER_FAILURE, why
        raise block_device.NoAnswer(why)

    def _log_in(self, portal: str) -> str:
        """Log in at a portal.  Return why that failed, an empty text if it did not."""
        context = self._c.iscsi_create_context(self._owner.name.encode())
        self._c.iscsi_set_noautoreconnect(context, 1)
        self._c.iscsi_set_targetname(context, self._target.encode())
        self._c.iscsi_set_session_type(context, _NORMAL_SESSION)
        self._c.iscsi_set_header_digest(context, _NO_DIGEST)
        self._c.iscsi_set_isid_random(context, *self._isid)
        self._c.iscsi_set_tcp_user_timeout(context, _USER_TIMEOUT)
        if self._owner.chap is not None:
            self._c.iscsi_set_initiator_username_pwd(
                context, self._owner.chap.user.encode(), self._owner.chap.secret.encode()
            )
        if self._owner.mutual is not None:
            self._c.iscsi_set_target_username_pwd(
                context, self._owner.mutual.user.encode(), self._owner.mutual.secret.encode()
            )
        self._context = context
        call = _Call(-1, CONNECT_TIMEOUT, None, None)
        number = self._add(call)
        if self._c.iscsi_full_connect_async(context, portal.encode(), -1, self._callback, number):
            call.finish(self._error())
        else:
            self._drive(call)
        if call.problem or self._context is None:
            self._lose(call.problem)
            return call.problem or "the link was lost"
        self._calls.pop(number, None)
        return ""

    def _drive(self, call: _Call) -> None:
        """Poll, with the lock held, until a login or a logout is done."""
        while not call.done and self._context is not None:
            left = call.deadline - time.monotonic()
            if left <= 0:
                call.finish("the login took too long")
                return
            poller = select.poll()
            poller.register(self._c.iscsi_get_fd(self._context), self._c.iscsi_which_events(self._context))
            for _, events in poller.poll(left * 1000 + 1):
                self._service(events)

    def _wait(self, call: _Call) -> None:
        """Return when the call is done.  The thread polls for all if no other does."""
        with self._lock:
            if call.done and self._leader is not call:
                return
            following = self._leader is not None
            if not following:
                self._leader = call
        if following:
            call.wake.acquire()
            if self._leader is not call:  # only the leader itself changes that
                return
        try:
            self._lead(call)
        finally:
            with self._lock:
                self._leader = next((other for other in self._calls.values() if not other.done), None)
                if self._leader is not None:
                    self._leader.awaken()

    def _lead(self, call: _Call) -> None:
        context, events = None, 0
        while True:
            with self._lock:
                if events and self._context == context:
                    self._service(events)
                self._check_deadlines()
                if call.done:
                    return
                context = self._context
                descriptor = self._c.iscsi_get_fd(context)
                wanted = self._c.iscsi_which_events(context)
                self._polls_until = min(other.deadline for other in self._calls.values() if not other.done)
            poller = select.poll()
            poller.register(self._wake.fd, select.POLLIN)
            poller.register(descriptor, wanted)
            happened = dict(poller.poll(max(0.0, self._polls_until - time.monotonic()) * 1000 + 1))
            if self._wake.fd in happened:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake.fd)
            events = happened.get(descriptor, 0)

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        if any(call.deadline <= now and not call.done for call in self._calls.values()):
            # Only a new login is certain to end the command at the target.
            self._lose("a command or a ping timed out")

    def _take_in(self) -> None:
        """Handle what has come in, with the lock held and without waiting."""
        while self._context is not None:
            poller = select.poll()
            poller.register(self._c.iscsi_get_fd(self._context), select.POLLIN)
            events = poller.poll(0)
            if not events:
                if self._c.iscsi_which_events(self._context) & select.POLLOUT:
                    self._service(select.POLLOUT)
                return
            self._service(events[0][1])

    def _service(self, events: int) -> None:
        """Let the library read and write, with the lock held."""
        failed = self._c.iscsi_service(self._context, events)
        if failed or self._broken:
            self._lose(self._broken or self._error())
            return
        if self._freeing and not self._unsent() and not self._c.iscsi_out_queue_length(self._context):
            self._free()

    def _send_queued(self, call: _Call) -> None:
        self._service(select.POLLOUT)
        if self._leader is not None and (call.deadline < self._polls_until or self._unsent()):
            self._rouse()

    def _unsent(self) -> bool:
        return self._context is not None and bool(self._c.iscsi_which_events(self._context) & select.POLLOUT)

    def _free(self) -> None:
        for call in self._freeing:
            self._c.scsi_free_scsi_task(call.task)
            call.pinned = None
        self._freeing.clear()

    def _lose(self, why: str) -> None:
        """Give up the session: no call in flight will get an answer."""
        context, self._context = self._context, None
        calls, self._calls = self._calls, {}
        self._broken = ""
        if context is not None:
            self._c.iscsi_destroy_context(context)
        for call in calls.values():
            if call.task is not None:
                self._freeing.append(call)
        self._free()
        for call in calls.values():
            if not call.done:
                call.finish(why)
        self._rouse()

    def _rouse(self) -> None:
        """Let the thread that polls look again."""
        if self._leader is not None:
            os.eventfd_write(self._wake.fd, 1)

    def _on_answer(self, _context: int, status: int, data: int | None, private: int) -> None:
        """Take an answer; the library calls, with the lock held.  An exception would be lost here."""
        call = self._calls.pop(private, None)
        if call is None:
            return  # the context is being destroyed
        if status >= _OWN_STATUS:
            self._broken = self._error()
            self._calls[private] = call
            return
        problem = ""
        if call.task is not None:
            task = _Task.from_address(call.task)
            received, sense = 0, b""
            if status == unit.CHECK_CONDITION and task.datain_size > 2:
                content = ctypes.string_at(task.datain, task.datain_size)
                sense = content[2 : 2 + int.from_bytes(content[:2])]
            elif status in (unit.GOOD, unit.CONDITION_MET):
                received = task.expxferlen - (task.residual if task.residual_status == _UNDERFLOW else 0)
            call.answer = unit.Answer(status, received, sense)
            self._freeing.append(call)
        elif call.lun >= 0:
            call.response = ctypes.c_uint32.from_address(data).value if data else -1
        elif status:
            problem = self._error()
        if not call.done:
            call.finish(problem)


def _wire(lun: int) -> int:
    """Return the first two bytes of the LUN field (SAM-5 4.7.6.1, 4.7.7.3)."""
    return lun if lun < 0x100 else lun | _FLAT_SPACE


class IscsiUnit(unit.Unit):
    """A LUN behind a session.  `Initiator.unit` makes it."""

    def __init__(self, owner: Initiator, session: _Session, address: Address) -> None:
        """Use a session that the owner counts."""
        super().__init__(str(address))
        self._owner, self._session, self._lun = owner, session, address.lun
        self._closed = False

    def reset_logical_unit(self, timeout: float = unit.TIMEOUT) -> None:
        if self._closed:
            raise block_device.DeviceClosed
        self._session.reset(self._lun, timeout)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._owner.release(self._session)

    def _send(self, cdb: bytes, data_out: Buffers, data_in: Buffers, timeout: float) -> unit.Answer:
        if self._closed:
            raise block_device.DeviceClosed
        return self._session.command(self._lun, cdb, data_out, data_in, timeout)


class Initiator:
    """An iSCSI initiator in this process.  `name` is its iSCSI name; `port` tells two of one name and one host apart.

    Two processes with the same name and port would end each other's sessions.  Raise unit.CannotSend if libiscsi is not
    installed.
    """

    def __init__(self, name: str, *, port: int = 0, chap: Chap | None = None, mutual: Chap | None = None) -> None:
        """Log in nowhere yet."""
        _library()
        self.name, self.port, self.chap, self.mutual = name, port, chap, mutual
        self._sessions: dict[tuple[str, str], _Session] = {}
        self._lock = threading.Lock()
        self._closed = False

    def unit(self, address: Address | str) -> IscsiUnit:
        """Return the LUN at an address; its first command logs in.  Raise AddressWrong, DeviceClosed."""
        if isinstance(address, str):
            address = Address.parse(address)
        place = (address.portal, address.target)
        with self._lock:
            if self._closed:
                raise block_device.DeviceClosed
            session = self._sessions.get(place)
            if session is None:
                session = self._sessions[place] = _Session(self, *place)
            session.users += 1
        return IscsiUnit(self, session, address)

    def release(self, session: _Session) -> None:
        """Count a unit less; log out with the last one."""
        with self._lock:
            session.users -= 1
            if session.users:
                return
            self._sessions = {place: other for place, other in self._sessions.items() if other is not session}
        session.close()

    def close(self) -> None:
        """Log out everywhere.  Closing twice is allowed."""
        with self._lock:
            self._closed = True
            sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            session.close()
