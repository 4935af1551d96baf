# SPDX-License-Identifier: Apache-2.0
"""What carries SCSI to the daemon, by its name, and where our own portal listens.

Used by the settings and by `wolun doctor`, so it imports next to nothing.
"""

from __future__ import annotations

import enum

DEFAULT_LISTEN = ("127.0.0.1:3260",)
"""Where the portal accepts initiators unless the configuration says otherwise, HOST:PORT each."""


class Fabric(enum.Enum):
    """What carries SCSI to the daemon."""

    PORTAL = "portal"
    LIO = "lio"


def host_and_port(listen: str) -> tuple[str, int]:
    """What to listen on: the host without the brackets of an IPv6 address, and the TCP port, 0 for any free one."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)
