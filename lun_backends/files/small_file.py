# SPDX-License-Identifier: Apache-2.0
"""Small files that are replaced as a whole, so that a crash leaves the old one or the new one."""

from __future__ import annotations

import os
from pathlib import Path

from lun_backends.files import storage_io


def replace(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Put `content` in the file's place: written beside it, synced, renamed over it, the directory synced.  Raises OSError."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, mode)  # whatever the umask is
        file.write(content)
        file.flush()
        os.fsync(fd)
    new.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable.  Raises OSError."""
    storage_io.SYSTEM.fsync_directory(path)
