# SPDX-License-Identifier: Apache-2.0
"""TCP connections to a portal of the kernel's target, which reports its sessions but not the portals that they use.

The kernel's socket diagnosis (`sock_diag(7)`, which `ss` uses) lists the connections, and can end one.  The other side
then gets a reset, and the kernel's target gets the error of a broken connection, which ends the session.
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
    """One connection.  `peer` is the address of the other side, as text."""

    peer: str
    family: int
    identity: bytes
    """The kernel's name for the connection (struct inet_diag_sockid)."""


def established(address: str, port: int) -> list[Connection]:
    """Return the connections to a portal; an IPv6 address may be in brackets.  Raises OSError."""
    host = ipaddress.ip_address(address.strip("[]"))
    family = socket.AF_INET6 if host.version == 6 else socket.AF_INET
    with DiagSocket() as diagnosis:
        diagnosis.bind()
        sockets = diagnosis.get_sock_stats(family=family, states=1 << SS_ESTABLISHED, sport=port)
    matching = []
    for entry in sockets:
        local, peer = ipaddress.ip_address(entry["idiag_src"]), ipaddress.ip_address(entry["idiag_dst"])
        if host.is_unspecified or local == host:
            identity = (
                _PORTS.pack(entry["idiag_sport"], entry["idiag_dport"])
                + local.packed.ljust(16, b"\0")
                + peer.packed.ljust(16, b"\0")
                + _REST.pack(entry["idiag_if"], entry["idiag_cookie"])
            )
            mapped = getattr(peer, "ipv4_mapped", None)
            matching.append(Connection(str(mapped or peer), family, identity))
    return matching


def end(connection: Connection) -> None:
    """End a connection, unless it has ended by itself.  Raises OSError."""
    body = _REQUEST.pack(connection.family, socket.IPPROTO_TCP, 0, 1 << SS_ESTABLISHED) + connection.identity
    header = _MESSAGE.pack(_MESSAGE.size + len(body), SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as diagnosis:
        diagnosis.bind((0, 0))
        diagnosis.send(header + body)
        status = -_STATUS.unpack_from(diagnosis.recv(1 << 16), _MESSAGE.size)[0]
    if status not in (0, errno.ENOENT):
        raise OSError(status, os.strerror(status))
