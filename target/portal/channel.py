# SPDX-License-Identifier: Apache-2.0
"""One socket and everything that the portal keeps for it."""

from __future__ import annotations

import select
import socket
import time
from typing import Final

from target.iscsi.connection import Connection
from target.iscsi.output import Output
from target.portal.workers import Lane

RECEIVE_LENGTH: Final = 1 << 20
"""Bytes that one receive call may take."""


class ReceiveBuffer:
    """A buffer, and the number of blocked commands that have data in it."""

    __slots__ = ("holders", "view")

    def __init__(self) -> None:
        self.view = memoryview(bytearray(RECEIVE_LENGTH))
        self.holders = 0


class Channel(Lane):
    """A socket with its connection, its unhandled bytes and, as a Lane, its jobs."""

    __slots__ = ("account", "buffer", "connection", "fill", "mask", "opened", "output", "portal", "sock")

    def __init__(self, sock: socket.socket, connection: Connection, output: Output, portal: str) -> None:
        super().__init__(connection.tasks)
        self.sock = sock
        self.portal = portal
        self.connection = connection
        self.account = connection.account
        self.output = output
        self.buffer: ReceiveBuffer | None = None
        self.fill = 0  # unhandled bytes in it
        self.mask = select.EPOLLIN
        self.opened = time.time()

    @property
    def owner(self) -> object:
        """The initiator: its sessions share the workers."""
        return self.connection.login.initiator
