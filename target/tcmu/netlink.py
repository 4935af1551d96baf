# SPDX-License-Identifier: Apache-2.0
"""The kernel's announcements of TCMU devices, over generic netlink (family TCM-USER, version 2, group `config`).

The messages are pyroute2's.  The socket is a plain one, so a thread can wait for it and for the order to stop
at the same time.

While a device is made, resized or removed, the kernel may wait uninterruptibly for a handler's answer, and it takes the
first answer from any sender.  Two rules follow: answer for our own handlers only, and never make, resize or remove a
device from the thread that answers.

SET_FEATURES decides whether the kernel waits.  The setting is global to the module and outlives its sender.  This
module leaves it as it is, with one exception.  tcmu-runner makes the kernel wait, and then answers ENOENT for each
device of an unknown handler.  Our handlers are among these, so chance decides which answer is first.  But before
targetcli makes a device, it lets tcmu-runner ask us whether the configuration is right.  So we know in time:
`expect_device` stops the waiting until the device is there.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pyroute2.netlink import CTRL_CMD_GETFAMILY, GENL_ID_CTRL, NLM_F_REQUEST, ctrlmsg, genlmsg, nlmsg

from target import liveness

log = logging.getLogger(__name__)

FAMILY = "TCM-USER"
VERSION = 2
GROUP = "config"

ADDED, REMOVED, RECONFIG = 1, 2, 3
SET_FEATURES = 7
ADDED_DONE, REMOVED_DONE, RECONFIG_DONE = 4, 5, 6
DONE = {ADDED: ADDED_DONE, REMOVED: REMOVED_DONE, RECONFIG: RECONFIG_DONE}

NETLINK_GENERIC = 16
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
BUFFER = 1 << 16
EXPECTATION = 10.0  # seconds to wait for a device that was announced over D-Bus
BEAT_SECONDS = 1.0  # the longest sleep
ANSWER_SECONDS = 35.0  # the longest answer: it may wait for the commands in a ring


class TcmuMessage(genlmsg):  # type: ignore[misc]  # pyroute2 has no types
    """A message of the family (include/uapi/linux/target_core_user.h, enum tcmu_genl_attr)."""

    nla_map = (
        ("TCMU_ATTR_UNSPEC", "none"),
        ("TCMU_ATTR_DEVICE", "asciiz"),
        ("TCMU_ATTR_MINOR", "uint32"),
        ("TCMU_ATTR_PAD", "none"),
        ("TCMU_ATTR_DEV_CFG", "asciiz"),
        ("TCMU_ATTR_DEV_SIZE", "uint64"),
        ("TCMU_ATTR_WRITECACHE", "uint8"),
        ("TCMU_ATTR_CMD_STATUS", "int32"),
        ("TCMU_ATTR_DEVICE_ID", "uint32"),
        ("TCMU_ATTR_SUPP_KERN_CMD_REPLY", "uint8"),
    )


@dataclass(frozen=True, slots=True)
class Event:
    """A device was added (ADDED), is about to be removed (REMOVED), or is to change (RECONFIG)."""

    command: int
    minor: int
    device_id: int
    size: int | None
    """The new size in bytes of a device that is resized."""


Answer = Callable[[Event], int | None]
"""A function that handles an event, and returns 0 or a negative errno for the kernel; None if the device is not ours."""


class NetlinkError(Exception):
    """The TCM-USER family cannot be reached: the module is not loaded, or we lack the permission."""


class Listener:
    """A member of the group, from its constructor on; `start` begins to answer, on a thread of its own."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.pulse = liveness.Pulse("tcmu netlink", BEAT_SECONDS + ANSWER_SECONDS)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
        self._socket.bind((0, 0))
        self._family, group = self._discover()
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        self._woken, self._wake = os.pipe()
        self._expecting = threading.Lock()
        self._waited_until: float | None = None
        self._thread = threading.Thread(target=self._run, name="tcmu netlink", daemon=True)

    def start(self) -> None:
        """Answer events from now on."""
        self._thread.start()

    def expect_device(self) -> None:
        """Stop the kernel's waiting, because a device of ours is about to be made and another daemon makes it wait."""
        with self._expecting:
            self._set_waiting(False)
            self._waited_until = time.monotonic() + EXPECTATION
        os.write(self._wake, b"\1")

    def close(self) -> None:
        """Leave the group."""
        if self._thread.is_alive():
            os.write(self._wake, b"\0")
            self._thread.join()
        self._expectation_met()
        self._socket.close()
        os.close(self._wake)
        os.close(self._woken)

    def _discover(self) -> tuple[int, int]:
        """Return the numbers of the family and of the group."""
        request = ctrlmsg()
        request["cmd"] = CTRL_CMD_GETFAMILY
        request["version"] = 1
        request["attrs"].append(["CTRL_ATTR_FAMILY_NAME", FAMILY])
        self._send(request, GENL_ID_CTRL)
        reply = ctrlmsg(self._socket.recv(BUFFER))
        reply.decode()
        if reply["header"]["type"] != GENL_ID_CTRL:
            raise NetlinkError(f"the kernel knows no netlink family {FAMILY}: is target_core_user loaded?")
        groups = {
            group.get_attr("CTRL_ATTR_MCAST_GRP_NAME"): group.get_attr("CTRL_ATTR_MCAST_GRP_ID")
            for group in reply.get_attr("CTRL_ATTR_MCAST_GROUPS", [])
        }
        return reply.get_attr("CTRL_ATTR_FAMILY_ID"), groups[GROUP]

    def _send(self, message: nlmsg, kind: int) -> None:
        message["header"]["type"] = kind
        message["header"]["flags"] = NLM_F_REQUEST
        message.encode()
        self._socket.sendto(message.data, (0, 0))

    def _set_waiting(self, waiting: bool) -> None:
        message = TcmuMessage()
        message["cmd"] = SET_FEATURES
        message["version"] = VERSION
        message["attrs"] = [["TCMU_ATTR_SUPP_KERN_CMD_REPLY", int(waiting)]]
        self._send(message, self._family)

    def _expectation_met(self) -> None:
        """Let the kernel wait again, as the other daemon wants, because the device is there or will not come."""
        with self._expecting:
            if self._waited_until is not None:
                self._waited_until = None
                self._set_waiting(True)

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                self.pulse.beat()
                until = self._waited_until
                left = BEAT_SECONDS if until is None else min(BEAT_SECONDS, until - time.monotonic())
                ready = {key.fd for key, _ in selector.select(left)}
                if self._woken in ready and b"\0" in os.read(self._woken, 64):
                    return
                if until is not None and not ready and time.monotonic() >= until:
                    self._expectation_met()
                if self._socket.fileno() not in ready:
                    continue
                try:
                    data = self._socket.recv(BUFFER)
                except OSError as error:  # ENOBUFS: events were lost; the kernel does not wait for ever
                    log.warning("netlink: %s", error)
                    continue
                try:
                    self._handle(data)
                except (
                    Exception
                ):  # no answer: the device may be another daemon's, and the kernel does not wait for ever
                    log.exception("an announcement of the kernel could not be followed")

    def _handle(self, data: bytes) -> None:
        message = TcmuMessage(data)
        message.decode()
        if message["header"]["type"] != self._family or message["cmd"] not in DONE:
            return
        event = Event(
            message["cmd"],
            message.get_attr("TCMU_ATTR_MINOR"),
            message.get_attr("TCMU_ATTR_DEVICE_ID"),
            message.get_attr("TCMU_ATTR_DEV_SIZE"),
        )
        status = self._answer(event)
        if status is None:
            return
        if event.command == ADDED and self._waited_until is not None:
            self._expectation_met()
            return  # the kernel does not wait for this one
        reply = TcmuMessage()
        reply["cmd"] = DONE[event.command]
        reply["version"] = VERSION
        reply["attrs"] = [["TCMU_ATTR_CMD_STATUS", status], ["TCMU_ATTR_DEVICE_ID", event.device_id]]
        self._send(reply, self._family)
