# SPDX-License-Identifier: Apache-2.0
"""TCP connections to a portal of the kernel's target, which tells of its sessions, but not by which portal they came.

The kernel's socket diagnosis (`sock_diag(7)`, what `ss` uses) lists them, and ends one that is to end: the other side gets a
reset, and the kernel's target the error with which a session ends whose connection broke.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from dataclasses import dataclass

from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST
from pyroute2.netlink.diag import SOCK_DESTROY, SS_ESTABLISHED, DiagSocket

NETLINK_SOCK_DIAG = 4
_MESSAGE = struct.Struct("=IHHII")  # struct nlmsghdr
_REQUEST = struct.Struct("=BBBxI")  # the beginning of struct inet_diag_req_v2, then a struct inet_diag_sockid:
_PORTS = struct.Struct(">HH")
_REST = struct.Struct("=IQ")
_STATUS = struct.Struct("=i")


@dataclass(frozen=True, slots=True)
class Connection:
    """One of them.  `peer` is the other side's address, as text."""

    peer: str
    family: int
    identity: bytes
    """The kernel's name for it (struct inet_diag_sockid)."""


def established(address: str, port: int) -> list[Connection]:
    """The connections to a portal; an IPv6 address may be in brackets.  Raises OSError."""
    host = ipaddress.ip_address(address.strip("[]"))
    family = socket.AF_INET6 if host.version == 6 else socket.AF_INET
    with DiagSocket() as diagnosis:
        diagnosis.bind()
        found = diagnosis.get_sock_stats(family=family, states=1 << SS_ESTABLISHED, sport=port)
    made = []
    for each in found:
        local, peer = ipaddress.ip_address(each["idiag_src"]), ipaddress.ip_address(each["idiag_dst"])
        if host.is_unspecified or local == host:
            identity = (
                _PORTS.pack(each["idiag_sport"], each["idiag_dport"])
                + local.packed.ljust(16, b"\0")
                + peer.packed.ljust(16, b"\0")
                + _REST.pack(each["idiag_if"], each["idiag_cookie"])
            )
            mapped = getattr(peer, "ipv4_mapped", None)
            made.append(Connection(str(mapped or peer), family, identity))
    return made


def end(connection: Connection) -> None:
    """End it; one that has ended by itself is as good.  Raises OSError."""
    body = _REQUEST.pack(connection.family, socket.IPPROTO_TCP, 0, 1 << SS_ESTABLISHED) + connection.identity
    header = _MESSAGE.pack(_MESSAGE.size + len(body), SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as asked:
        asked.bind((0, 0))
        asked.send(header + body)
        status = -_STATUS.unpack_from(asked.recv(1 << 16), _MESSAGE.size)[0]
    if status not in (0, errno.ENOENT):
        raise OSError(status, os.strerror(status))
