# SPDX-License-Identifier: Apache-2.0
"""What the kernel announces about TCMU devices, over generic netlink (family TCM-USER, version 2, group `config`).

The messages are pyroute2's; the socket is plain, so that a thread can wait for it and for the order to stop at once.

While a device is made, resized or removed the kernel may wait for a handler's answer, uninterruptibly, and the first
answer wins whoever sends it.  So: answer for our own handlers only, and never make, resize or remove a device from the
thread that answers.  Whether the kernel waits is decided by SET_FEATURES, which is global to the module and outlives its
sender; we leave it as we find it.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from pyroute2.netlink import CTRL_CMD_GETFAMILY, GENL_ID_CTRL, NLM_F_REQUEST, ctrlmsg, genlmsg, nlmsg

log = logging.getLogger(__name__)

FAMILY = "TCM-USER"
VERSION = 2
GROUP = "config"

ADDED, REMOVED, RECONFIG = 1, 2, 3
ADDED_DONE, REMOVED_DONE, RECONFIG_DONE = 4, 5, 6
DONE = {ADDED: ADDED_DONE, REMOVED: REMOVED_DONE, RECONFIG: RECONFIG_DONE}

NETLINK_GENERIC = 16
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
BUFFER = 1 << 16


class TcmuMessage(genlmsg):  # type: ignore[misc]  # pyroute2 has no types
    """include/uapi/linux/target_core_user.h, enum tcmu_genl_attr."""

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
    """A device was added (ADDED), is about to go (REMOVED), or is to change (RECONFIG)."""

    command: int
    minor: int
    device_id: int
    size: int | None
    """The new size in bytes of a device that is resized."""


Answer = Callable[[Event], int | None]
"""Deals with an event; returns 0 or a negative errno for the kernel, None when the device is not ours."""


class NetlinkError(Exception):
    """The TCM-USER family cannot be reached: the module is not loaded, or we may not."""


class Listener:
    """Joins the group at once; `start` begins to answer on a thread of its own."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
        self._socket.bind((0, 0))
        self._family, group = self._discover()
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        self._woken, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._run, name="tcmu netlink", daemon=True)

    def start(self) -> None:
        """Answer events from now on."""
        self._thread.start()

    def close(self) -> None:
        """Leave the group."""
        if self._thread.is_alive():
            os.write(self._wake, b"\0")
            self._thread.join()
        self._socket.close()
        os.close(self._wake)
        os.close(self._woken)

    def _discover(self) -> tuple[int, int]:
        """The numbers of family and group."""
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

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                if any(key.fd == self._woken for key, _ in selector.select()):
                    return
                try:
                    data = self._socket.recv(BUFFER)
                except OSError as error:  # ENOBUFS: events were lost; nobody waits for an answer to a lost one for ever
                    log.warning("netlink: %s", error)
                    continue
                self._handle(data)

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
        reply = TcmuMessage()
        reply["cmd"] = DONE[event.command]
        reply["version"] = VERSION
        reply["attrs"] = [["TCMU_ATTR_CMD_STATUS", status], ["TCMU_ATTR_DEVICE_ID", event.device_id]]
        self._send(reply, self._family)
