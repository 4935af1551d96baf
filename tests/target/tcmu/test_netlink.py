# SPDX-License-Identifier: Apache-2.0
"""Announcements of devices, with a socket pair in the place of the kernel's."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink import GENL_ID_CTRL, ctrlmsg

from target.tcmu import netlink
from target.tcmu.netlink import ADDED, RECONFIG, REMOVED, Event, Listener, NetlinkError, TcmuMessage

FAMILY, GROUP = 31, 12


class KernelEnd:
    """The kernel's end of the socket; it has answered the question for the family before it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.socket, self._ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(30)
        self.joined: list[int] = []
        monkeypatch.setattr(socket, "socket", lambda *_: _Ours(self._ours, self.joined))
        reply = ctrlmsg()
        reply["cmd"] = 1
        reply["header"]["type"] = GENL_ID_CTRL
        group = {"attrs": [["CTRL_ATTR_MCAST_GRP_NAME", "config"], ["CTRL_ATTR_MCAST_GRP_ID", GROUP]]}
        reply["attrs"] = [["CTRL_ATTR_FAMILY_ID", FAMILY], ["CTRL_ATTR_MCAST_GROUPS", [group]]]
        reply.encode()
        self.socket.send(reply.data)

    def announce(self, command: int, *, kind: int = FAMILY, **attributes: Any) -> None:
        message = TcmuMessage()
        message["cmd"] = command
        message["header"]["type"] = kind
        message["attrs"] = [[f"TCMU_ATTR_{name.upper()}", value] for name, value in attributes.items()]
        message.encode()
        self.socket.send(message.data)

    def receive(self) -> tuple[int, Mapping[str, Any]]:
        """Return the command and the attributes of the next message."""
        message = TcmuMessage(self.socket.recv(65536))
        message.decode()
        assert message["header"]["type"] == FAMILY
        assert message["version"] == 2
        return message["cmd"], {name.removeprefix("TCMU_ATTR_"): value for name, value in message["attrs"]}


class _Ours:
    """The listener's end: a Unix socket that accepts what only a netlink socket can do."""

    def __init__(self, real: socket.socket, joined: list[int]) -> None:
        self._joined = joined
        self.fileno, self.recv, self.close = real.fileno, real.recv, real.close
        self._send = real.send

    def bind(self, address: tuple[int, int]) -> None:
        assert address == (0, 0)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        assert (level, option) == (netlink.SOL_NETLINK, netlink.NETLINK_ADD_MEMBERSHIP)
        self._joined.append(value)

    def sendto(self, data: bytes, address: tuple[int, int]) -> None:
        assert address == (0, 0)
        self._send(data)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[KernelEnd]:
    end = KernelEnd(monkeypatch)
    yield end
    end.socket.close()


class Listening:
    """A listener that gives all events the same answer, until `end`."""

    def __init__(self, kernel: KernelEnd, status: int | None) -> None:
        self.events: list[Event] = []
        self.fails = False
        self._status = status
        self.listener = Listener(self._answer)
        question = ctrlmsg(kernel.socket.recv(65536))
        question.decode()
        assert question.get_attr("CTRL_ATTR_FAMILY_NAME") == "TCM-USER"
        self.listener.start()
        self._ended = False

    def _answer(self, event: Event) -> int | None:
        self.events.append(event)
        if self.fails:
            raise RuntimeError("the test's fault")
        return self._status

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self.listener.close()


Listen = Callable[[int | None], Listening]


@pytest.fixture
def listen(kernel: KernelEnd) -> Iterator[Listen]:
    """Return a function that starts a listener with that answer."""
    with contextlib.ExitStack() as stack:

        def start(status: int | None) -> Listening:
            listening = Listening(kernel, status)
            stack.callback(listening.end)
            return listening

        yield start


def test_listener_joins_the_group(kernel: KernelEnd, listen: Listen) -> None:
    listen(None)
    assert kernel.joined == [GROUP]


@pytest.mark.parametrize(("command", "done"), [(ADDED, 4), (REMOVED, 5), (RECONFIG, 6)])
@pytest.mark.parametrize("status", [0, -95])
def test_event_is_answered_for_its_device(
    kernel: KernelEnd, listen: Listen, command: int, done: int, status: int
) -> None:
    listening = listen(status)
    kernel.announce(command, minor=4, device_id=77)
    assert kernel.receive() == (done, {"CMD_STATUS": status, "DEVICE_ID": 77})
    assert listening.events == [Event(command, 4, 77, None)]


def test_resize_tells_the_new_size(kernel: KernelEnd, listen: Listen) -> None:
    listening = listen(-95)
    kernel.announce(RECONFIG, minor=1, device_id=2, dev_size=1 << 40)
    kernel.receive()
    assert listening.events == [Event(RECONFIG, 1, 2, 1 << 40)]


def test_other_messages_and_foreign_devices_get_no_answer(kernel: KernelEnd, listen: Listen) -> None:
    listening = listen(None)
    kernel.announce(ADDED, kind=FAMILY + 1, minor=1, device_id=1)
    kernel.announce(netlink.SET_FEATURES, minor=2, device_id=2)
    kernel.announce(ADDED, minor=3, device_id=3)
    while not listening.events:
        time.sleep(0.001)
    listening.end()
    assert [event.minor for event in listening.events] == [3]
    assert kernel.socket.recv(1) == b""  # the end of the connection, and no message before it


def test_expected_device_is_not_waited_for_and_then_waiting_comes_back(kernel: KernelEnd, listen: Listen) -> None:
    listening = listen(0)
    listening.listener.expect_device()
    assert kernel.receive() == (netlink.SET_FEATURES, {"SUPP_KERN_CMD_REPLY": 0})
    kernel.announce(ADDED, minor=1, device_id=1)
    assert kernel.receive() == (netlink.SET_FEATURES, {"SUPP_KERN_CMD_REPLY": 1})
    kernel.announce(ADDED, minor=2, device_id=2)
    assert kernel.receive() == (netlink.ADDED_DONE, {"CMD_STATUS": 0, "DEVICE_ID": 2})
    assert [event.minor for event in listening.events] == [1, 2]


def test_removal_meanwhile_is_answered_and_does_not_end_the_expectation(kernel: KernelEnd, listen: Listen) -> None:
    listening = listen(0)
    listening.listener.expect_device()
    assert kernel.receive() == (netlink.SET_FEATURES, {"SUPP_KERN_CMD_REPLY": 0})
    kernel.announce(REMOVED, minor=2, device_id=2)
    assert kernel.receive() == (netlink.REMOVED_DONE, {"CMD_STATUS": 0, "DEVICE_ID": 2})


def test_waiting_comes_back_if_the_expected_device_does_not(
    kernel: KernelEnd, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netlink, "EXPECTATION", 0.05)
    listening = listen(0)
    listening.listener.expect_device()
    assert kernel.receive() == (netlink.SET_FEATURES, {"SUPP_KERN_CMD_REPLY": 0})
    assert kernel.receive() == (netlink.SET_FEATURES, {"SUPP_KERN_CMD_REPLY": 1})


def test_waiting_comes_back_at_a_stop(kernel: KernelEnd, listen: Listen) -> None:
    listening = listen(0)
    listening.listener.expect_device()
    listening.end()
    assert kernel.receive() == (netlink.SET_FEATURES, {"SUPP_KERN_CMD_REPLY": 0})
    assert kernel.receive() == (netlink.SET_FEATURES, {"SUPP_KERN_CMD_REPLY": 1})


@pytest.mark.skipif(Path("/sys/module/target_core_user").exists(), reason="this kernel has the family")
def test_kernel_without_the_module_is_named() -> None:
    with pytest.raises(NetlinkError, match="is target_core_user loaded"):
        Listener(lambda _: None)


def test_error_over_an_announcement_does_not_end_the_listener(
    kernel: KernelEnd, listen: Listen, caplog: pytest.LogCaptureFixture
) -> None:
    listening = listen(0)
    listening.fails = True
    kernel.announce(ADDED, minor=1, device_id=1)
    while "could not be followed" not in caplog.text:
        time.sleep(0.001)
    listening.fails = False
    kernel.announce(ADDED, minor=2, device_id=2)
    assert kernel.receive() == (4, {"CMD_STATUS": 0, "DEVICE_ID": 2})
