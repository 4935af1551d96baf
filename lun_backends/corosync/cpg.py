# SPDX-License-Identifier: Apache-2.0
"""corosync's closed process groups (CPG), by libcpg: a member's messages reach all members in one agreed order.

Callbacks of ctypes lose exceptions, so they only queue events; `dispatch` returns them.  The descriptor of a group is
readable when there are events.  POLLHUP on it means that corosync is gone: close the group and join anew later.
"""

from __future__ import annotations

import ctypes
from collections import deque
from dataclasses import dataclass

_OK, _TRY_AGAIN = 1, 6  # cs_error_t
_AGREED = 2  # cpg_guarantee_t
_DISPATCH_ALL = 2  # cs_dispatch_flags_t
_LONGEST_NAME = 128
LONGEST_MESSAGE = 1_000_000  # bytes; corosync takes a little more


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """A process in a group."""

    node: int
    process: int


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a member, of this process, too."""

    sender: Member
    data: bytes


@dataclass(frozen=True, slots=True)
class Members:
    """The members from now on."""

    now: frozenset[Member]
    left: frozenset[Member]
    joined: frozenset[Member]


Event = Message | Members


class Unavailable(Exception):
    """corosync does not run, does not answer, or its library is not installed."""


class _Name(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint32), ("value", ctypes.c_char * _LONGEST_NAME))


class _Address(ctypes.Structure):
    _fields_ = (("node", ctypes.c_uint32), ("process", ctypes.c_uint32), ("reason", ctypes.c_uint32))


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


_Deliver = ctypes.CFUNCTYPE(
    None, ctypes.c_uint64, ctypes.POINTER(_Name), ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t
)
_Changed = ctypes.CFUNCTYPE(
    None, ctypes.c_uint64, ctypes.POINTER(_Name), ctypes.POINTER(_Address), ctypes.c_size_t, ctypes.POINTER(_Address),
    ctypes.c_size_t, ctypes.POINTER(_Address), ctypes.c_size_t,
)  # fmt: skip


class _Callbacks(ctypes.Structure):
    _fields_ = (("deliver", _Deliver), ("changed", _Changed))


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libcpg.so.4")
    except OSError as error:
        raise Unavailable("libcpg.so.4 is not there: install libcpg4") from error
    handle = ctypes.c_uint64
    library.cpg_initialize.argtypes = (ctypes.POINTER(handle), ctypes.POINTER(_Callbacks))
    library.cpg_finalize.argtypes = (handle,)
    library.cpg_fd_get.argtypes = (handle, ctypes.POINTER(ctypes.c_int))
    library.cpg_dispatch.argtypes = (handle, ctypes.c_int)
    library.cpg_join.argtypes = (handle, ctypes.POINTER(_Name))
    library.cpg_mcast_joined.argtypes = (handle, ctypes.c_int, ctypes.POINTER(_Vector), ctypes.c_uint)
    library.cpg_local_get.argtypes = (handle, ctypes.POINTER(ctypes.c_uint))
    return library


class Group:
    """A membership of this process in a group.  One thread uses it."""

    def __init__(self, name: str) -> None:
        """Join the group of that name.  Raise Unavailable."""
        self._events: deque[Event] = deque()
        self._library = _library()
        self._handle = ctypes.c_uint64()
        self._callbacks = _Callbacks(_Deliver(self._deliver), _Changed(self._changed))  # kept: libcpg calls them
        self._call("cpg_initialize", ctypes.byref(self._handle), ctypes.byref(self._callbacks))
        try:
            raw = name.encode()
            self._call("cpg_join", self._handle, ctypes.byref(_Name(len(raw), raw)))
            descriptor, node = ctypes.c_int(), ctypes.c_uint()
            self._call("cpg_fd_get", self._handle, ctypes.byref(descriptor))
            self._call("cpg_local_get", self._handle, ctypes.byref(node))
        except Unavailable:
            self.close()
            raise
        self.descriptor = descriptor.value
        self.node: int = node.value

    def dispatch(self) -> list[Event]:
        """Return what came, in order.  Raise Unavailable."""
        self._call("cpg_dispatch", self._handle, _DISPATCH_ALL)
        events = list(self._events)
        self._events.clear()
        return events

    def send(self, data: bytes) -> bool:
        """Send to all members.  Return False if corosync is busy, or elects: try again later.  Raise Unavailable."""
        vector = _Vector(data, len(data))
        return self._call("cpg_mcast_joined", self._handle, _AGREED, ctypes.byref(vector), 1) == _OK

    def close(self) -> None:
        """Leave the group.  Closing twice is allowed."""
        if self._handle.value:
            self._library.cpg_finalize(self._handle)
            self._handle.value = 0

    def _call(self, name: str, *arguments: object) -> int:
        result = int(getattr(self._library, name)(*arguments))
        if result == _OK or (result == _TRY_AGAIN and name == "cpg_mcast_joined"):
            return result
        raise Unavailable(f"corosync does not answer ({name}: {result})")

    def _deliver(self, _handle: int, _name: object, node: int, process: int, data: int, length: int) -> None:
        self._events.append(Message(Member(node, process), ctypes.string_at(data, length)))

    def _changed(self, _handle: int, _name: object, *lists: object) -> None:
        now, left, joined = (
            frozenset(Member(at[n].node, at[n].process) for n in range(count))  # type: ignore[index]
            for at, count in zip(lists[::2], lists[1::2], strict=True)
            if isinstance(count, int)
        )
        self._events.append(Members(now, left, joined))
