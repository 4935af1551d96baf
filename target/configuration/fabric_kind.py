# SPDX-License-Identifier: Apache-2.0
"""The names of the fabrics, and the address that the daemon's own portal listens on by default.

The settings and `wolun doctor` use this module, so it imports almost nothing.
"""

from __future__ import annotations

import enum

DEFAULT_LISTEN = ("127.0.0.1:3260",)
"""The portal's addresses, HOST:PORT each, unless the configuration names others."""


class Fabric(enum.Enum):
    """The way SCSI reaches the daemon."""

    PORTAL = "portal"
    LIO = "lio"


def host_and_port(listen: str) -> tuple[str, int]:
    """Split HOST:PORT into the host, without the brackets of an IPv6 address, and the TCP port, 0 for any free one."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)
