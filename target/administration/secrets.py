# SPDX-License-Identifier: Apache-2.0
"""The files of the CHAP secrets that `set auth` stores in the state directory.

    <state directory>/secrets/initiators/<initiator>/initiator  the secret by which the initiator proves itself
    <state directory>/secrets/initiators/<initiator>/target     the secret by which the target proves itself to it

<initiator> is the initiator's name in lower case, percent-encoded, so it has no slash and is unique.  Only the daemon's
user may read the files.

Older versions stored `secrets/<initiator>` and `secrets/<initiator>.target`.  The second could also be the file of an
initiator with that name.  An entry that names such files still reads them, until `set auth` stores its secrets anew.
"""

from __future__ import annotations

import contextlib
import os
import urllib.parse
from collections.abc import Iterable
from pathlib import Path

from lun_backends.files import small_file
from target.configuration import settings

SECRETS = "secrets"


class Secrets:
    """The files under one state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    def files(self, initiator: str) -> tuple[Path, Path]:
        """Return the files of an initiator's and of the target's secret, relative to the state directory."""
        directory = Path(SECRETS) / "initiators" / _encoded(initiator)
        return directory / "initiator", directory / "target"

    def keep(self, initiator: str, secret: str, target_secret: str | None) -> None:
        """Store the secrets of an initiator, durable on return.  Raise OSError."""
        for file, text in zip(self.files(initiator), (secret, target_secret), strict=True):
            if text is not None:
                path = self._state_dir / file
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                small_file.replace(path, f"{text}\n".encode())

    def forget(self, initiator: str, chap: settings.Chap | None, others: Iterable[settings.Chap]) -> None:
        """Remove the files that `keep` wrote for an initiator, now or in an older version; `chap` is what its entry had.

        Files that one of the `others` names stay, and files elsewhere are the administrator's own.
        """
        used = {path for other in others for path in self._named(other)}
        files = self.files(initiator)
        old = Path(SECRETS) / _encoded(initiator)
        stored_before = {self._path(old), self._path(old.with_name(f"{old.name}.target"))} & self._named(chap)
        with contextlib.suppress(
            OSError
        ):  # the entry is gone already, and a file that stays can be read by the daemon only
            for path in sorted(({self._path(file) for file in files} | stored_before) - used):
                path.unlink(missing_ok=True)
            self._path(files[0].parent).rmdir()

    def _named(self, chap: settings.Chap | None) -> set[Path]:
        """Return the files that an entry's `chap` names."""
        named = () if chap is None else (chap.secret_file, chap.target_secret_file)
        return {self._path(file) for file in named if file is not None}

    def _path(self, file: Path) -> Path:
        return Path(os.path.normpath(self._state_dir / file))


def _encoded(initiator: str) -> str:
    return urllib.parse.quote(initiator.lower(), safe=":")
