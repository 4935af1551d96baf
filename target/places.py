# SPDX-License-Identifier: Apache-2.0
"""Where things are: the checkout, the default state directory and configuration, the control socket.

In a checkout, state is kept in its `var/` and the quickstart is the default configuration, whatever the current
directory is.  Installed elsewhere, it is /var/lib/wolun and /etc/wolun/wolun.yaml.

Used by the commands, so it imports next to nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

SOCKET = "control.sock"
LOCK = "lock"

_ABOVE = Path(__file__).resolve().parent.parent
CHECKOUT: Path | None = _ABOVE if (_ABOVE / "config" / "quickstart.yaml").exists() else None


def default_state_dir() -> Path:
    """Where state is kept unless `--state-dir` or WOLUN_STATE_DIR says otherwise."""
    return CHECKOUT / "var" if CHECKOUT else Path("/var/lib/wolun")


def default_configuration() -> Path:
    """What is served unless `--config` says otherwise."""
    return CHECKOUT / "config" / "quickstart.yaml" if CHECKOUT else Path("/etc/wolun/wolun.yaml")


@contextlib.contextmanager
def short_name(directory: Path, name: str) -> Iterator[str]:
    """A path to `name` in `directory` that fits in a socket address, which holds no more than 107 bytes, however long the
    directory's own path is.  Raises OSError if there is no such directory.
    """
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def connect(state_dir: Path, timeout: float | None) -> socket.socket:
    """A connection to the control socket of the daemon that serves `state_dir`.  Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        with short_name(state_dir, SOCKET) as path:
            connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection
