# SPDX-License-Identifier: Apache-2.0
"""The paths of the checkout, the default state directory, the default configuration and the control socket.

| wolun runs from       | state directory  | configuration                                                            |
| --------------------- | ---------------- | ------------------------------------------------------------------------ |
| a checkout            | its `var/`       | `wolun.yaml` in the state directory, at first a copy of `config/quickstart.yaml` |
| anywhere else         | `/var/lib/wolun` | `/etc/wolun/wolun.yaml`                                                   |

The current directory makes no difference.  The commands use this module, so it imports almost nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

SOCKET = "control.sock"
CONFIGURATION = "wolun.yaml"
LOCK = "lock"
UNUSABLE_REMEDY = "make it writable, or choose another with --state-dir"
"""The remedy for a state directory that cannot be used."""

_ABOVE = Path(__file__).resolve().parent.parent
CHECKOUT: Path | None = _ABOVE if (_ABOVE / "config" / "quickstart.yaml").exists() else None


def default_state_dir() -> Path:
    """Return the state directory to use without `--state-dir` and WOLUN_STATE_DIR."""
    return CHECKOUT / "var" if CHECKOUT else Path("/var/lib/wolun")


def default_configuration(state_dir: Path) -> Path:
    """Return the configuration file to use without `--config`.  In a checkout it may not exist yet: see `quickstart`."""
    return (state_dir if CHECKOUT else Path("/etc/wolun")) / CONFIGURATION


def quickstart() -> str:
    """Return the text with which a checkout's configuration begins.

    The daemon serves a copy, because `saveconfig` writes into the file that it serves, and git watches the original.
    """
    assert CHECKOUT is not None
    directory = CHECKOUT / "config"
    return (directory / "quickstart.yaml").read_text().replace("$schema=", f"$schema={directory}/")


@contextlib.contextmanager
def short_name(directory: Path, name: str) -> Iterator[str]:
    """Yield a path to `name` in `directory` that is short enough for a socket address.

    A socket address holds at most 107 bytes, and the directory's own path may be longer.  Raises OSError if the directory
    does not exist.
    """
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def connect(state_dir: Path, timeout: float | None) -> socket.socket:
    """Return a connection to the control socket of the daemon that serves `state_dir`.  Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        with short_name(state_dir, SOCKET) as path:
            connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection
