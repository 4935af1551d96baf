# SPDX-License-Identifier: Apache-2.0
"""The files of the CHAP secrets that `set auth` stores in the state directory.

    <state directory>/secrets/<initiator>           the secret by which the initiator proves itself
    <state directory>/secrets/<initiator>.target    the secret by which the target proves itself to it

The name is in lower case and percent-encoded.  Only the daemon's user may read the files.
"""

from __future__ import annotations

import contextlib
import urllib.parse
from pathlib import Path

from lun_backends.files import small_file

SECRETS = "secrets"


class Secrets:
    """The files under one state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    def files(self, initiator: str) -> tuple[Path, Path]:
        """Return the files of an initiator's and of the target's secret, relative to the state directory."""
        stem = urllib.parse.quote(initiator.lower(), safe=":")
        return Path(SECRETS) / stem, Path(SECRETS) / f"{stem}.target"

    def keep(self, initiator: str, secret: str, target_secret: str | None) -> None:
        """Store the secrets of an initiator, durable on return.  Raise OSError."""
        for file, text in zip(self.files(initiator), (secret, target_secret), strict=True):
            if text is not None:
                path = self._state_dir / file
                path.parent.mkdir(mode=0o700, exist_ok=True)
                small_file.replace(path, f"{text}\n".encode())

    def forget(self, initiator: str) -> None:
        """Remove the files that `keep` wrote for an initiator; files elsewhere are the administrator's own."""
        for file in self.files(initiator):
            with contextlib.suppress(OSError):
                (self._state_dir / file).unlink(missing_ok=True)
