# SPDX-License-Identifier: Apache-2.0
"""The audit log: who changed what, from where, over which way; one JSON object a line.

| field     | is                                                                                                  |
| --------- | --------------------------------------------------------------------------------------------------- |
| `time`    | ISO 8601 in UTC                                                                                     |
| `way`     | `cli`, `shell`, `api` (another program at the control socket), `page`, `schedule`, `initiator`      |
| `who`     | the user who ran the command, as the command says; the initiator's name; or a client's address      |
| `from`    | an address, where there is one                                                                      |
| `what`    | the request, like `DELETE /v1/volumes/vol0/snapshots/a`, or the SCSI command                        |
| `details` | what the request says, without secrets                                                              |
| `outcome` | `done`, or the code of the refusal                                                                  |

The file keeps about 16 MiB, and four older ones beside it as many.  Only the daemon's user can read them.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lun_backends.files import os_error
from target import printable

log = logging.getLogger(__name__)

FILE: Final = "audit.jsonl"
LARGEST: Final = 16 << 20
OLDER: Final = 4
_SECRET: Final = frozenset(("secret", "target_secret"))


class Audit:
    """The log in the file at `path`.  Thread-safe.  A line that cannot be written is an error in the daemon's own log."""

    def __init__(self, path: Path) -> None:
        """Take the path; the first record makes the file."""
        self._path = path
        self._lock = threading.Lock()

    def record(
        self, way: str, who: str, what: str, outcome: str = "done", *, address: str = "", details: Any = None
    ) -> None:
        """Write one line."""
        line = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "way": way,
            "who": printable.line(who),
            "from": address,
            "what": printable.line(what),
            "details": without_secrets(details),
            "outcome": outcome,
        }
        try:
            with self._lock:
                self._make_room()
                fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                try:
                    os.write(fd, json.dumps(line).encode() + b"\n")
                finally:
                    os.close(fd)
        except OSError as error:
            log.error("%s could not be written to the audit log: %s", what, os_error.reason(error))

    def _make_room(self) -> None:
        """Move the file aside when it is large.  Raise OSError."""
        try:
            if self._path.stat().st_size < LARGEST:
                return
        except FileNotFoundError:
            return
        for number in range(OLDER - 1, 0, -1):
            older = self._older(number)
            if older.exists():
                older.replace(self._older(number + 1))
        self._path.replace(self._older(1))

    def _older(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def without_secrets(value: Any) -> Any:
    """Return a value of JSON with `***` in place of each secret."""
    if isinstance(value, Mapping):
        return {key: "***" if key in _SECRET and inner else without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_secrets(inner) for inner in value]
    return value
