# SPDX-License-Identifier: Apache-2.0
"""Many connections, and many sessions one after the other: they cost a bounded amount of memory."""

from __future__ import annotations

import contextlib
import errno
import gc
import socket
import weakref

import pytest

from target.portal.listeners import Listener
from target.portal.portal import Portal
from target.portal.room import LOGIN_CONNECTIONS
from tests.memory_device import MemoryDevice
from tests.target.iscsi.initiator import TARGET, make_target, read10
from tests.target.portal.test_portal import Client, wait_for

MIB = 1 << 20


def is_hung_up(sock: socket.socket) -> bool:
    """Return whether the portal has closed a connection; it sends nothing before a login."""
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_a_thousand_connections_cost_bounded_memory(caplog: pytest.LogCaptureFixture) -> None:
    portal = Portal("127.0.0.1", 0, {TARGET: make_target(MemoryDevice(MIB))}, sessions=128)
    portal.start()
    try:
        with contextlib.ExitStack() as stack:
            sockets = []
            for _ in range(1000):
                sock = stack.enter_context(socket.create_connection(portal.address, timeout=20))
                with contextlib.suppress(OSError):  # it is refused already
                    sock.sendall(b"\x43")
                sockets.append(sock)
            dropped = 1000 - LOGIN_CONNECTIONS  # those that were silent longest made room
            wait_for(lambda: sum(map(is_hung_up, sockets)) == dropped)
            wait_for(lambda: len(portal._channels) == LOGIN_CONNECTIONS)
            assert caplog.messages[0] == "127.0.0.1: too many logins at once, the one silent longest is dropped"
            assert len(caplog.records) < dropped / 10  # one a minute
    finally:
        portal.close(0)


def test_a_session_leaves_nothing_behind() -> None:
    """A closed session is freed without the garbage collector, which a daemon runs seldom."""
    portal = Portal("127.0.0.1", 0, {TARGET: make_target(MemoryDevice(MIB))})
    portal.start()
    gc.collect()
    gc.disable()
    try:
        seen = []
        for number in range(1, 6):
            client = Client(portal, isid=number)
            client.settle()
            client.send(client.make.command(read10(0, 1), read=512)[:20])  # it hangs up in the middle of a PDU
            wait_for(lambda: len(portal._channels) == 1)
            seen += [weakref.ref(channel.connection) for channel in portal._channels.values()]
            client.sock.close()
            wait_for(lambda: not portal._channels)
        assert len(seen) == 5
        # The loop's own variables may still name the last one.
        wait_for(lambda: sum(connection() is not None for connection in seen) <= 1)
        assert len(portal._buffers) <= 2
    finally:
        gc.enable()
        portal.close(0)


class Exhausted:
    """A listener whose process has no descriptors until `mended`."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.mended = False
        self.tries = 0
        self.fileno, self.close = listener.fileno, listener.close

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        self.tries += 1
        if not self.mended:
            raise OSError(errno.EMFILE, "Too many open files")
        sock, peer = self._listener.accept()
        return sock, peer


def test_portal_without_descriptors_does_not_spin_and_accepts_later(caplog: pytest.LogCaptureFixture) -> None:
    portal = Portal("127.0.0.1", 0, {TARGET: make_target(MemoryDevice(MIB))})
    ((fd, (listener, address)),) = portal._listeners.by_descriptor.items()
    exhausted = Exhausted(listener)
    portal._listeners.by_descriptor[fd] = Listener(exhausted, address)  # type: ignore[arg-type]
    portal.start()
    try:
        waiting = Client(portal, log_in=False)
        wait_for(lambda: exhausted.tries == 1)
        waiting.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            waiting.reply()
        assert exhausted.tries <= 2  # one a second
        assert len(caplog.records) == 1
        assert "Too many open files" in caplog.text
        exhausted.mended = True
        late = Client(portal)
        late.settle()
    finally:
        portal.close(0)
