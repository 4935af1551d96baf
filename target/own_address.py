# SPDX-License-Identifier: Apache-2.0
"""The address of this host, where only "all addresses" is configured.  A client cannot connect to 0.0.0.0."""

from __future__ import annotations

import socket

# Addresses for documentation (RFC 5737, RFC 3849).  To connect a datagram socket sends nothing; it only chooses the route.
_ELSEWHERE = {
    "0.0.0.0": (socket.AF_INET, "192.0.2.1", "127.0.0.1"),
    "[::]": (socket.AF_INET6, "2001:db8::1", "::1"),
}


def in_place_of_all(address: str) -> str:
    """Return HOST:PORT with this host's own address for the host 0.0.0.0 or [::]; any other address as it is.

    A host without a route to others has its loopback address.
    """
    host, colon, port = address.rpartition(":")
    if host not in _ELSEWHERE:
        return address
    family, elsewhere, own = _ELSEWHERE[host]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((elsewhere, 9))
            own = str(probe.getsockname()[0])
        except OSError:  # there is no route, so initiators can only be on this host
            pass
    return f"{f'[{own}]' if family is socket.AF_INET6 else own}{colon}{port}"
