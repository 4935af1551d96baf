# SPDX-License-Identifier: Apache-2.0
"""The reason of an OSError as a phrase for people, and the remedy that depends on nothing else."""

from __future__ import annotations

import errno
import os
import resource
import socket
from typing import Final

NO_DESCRIPTORS: Final = frozenset((errno.EMFILE, errno.ENFILE))
"""The errors of a process, or of a machine, that can open no more files."""


def reason(error: OSError) -> str:
    """Return the system's words for the error's number, without path or number: "No space left on device"."""
    if isinstance(error, socket.gaierror):  # it has numbers of its own, and the resolver's words
        return error.strerror or "the name cannot be resolved"
    words = os.strerror(error.errno or 0)
    if error.errno == errno.EMFILE:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"{words}; this process may have {most} (LimitNOFILE= of its unit, or `ulimit -Hn`)"
    if error.errno == errno.ENFILE:
        return f"{words}; the machine may have no more (sysctl fs.file-max)"
    return words


def remedy(error: BaseException, otherwise: str) -> str:
    """Return the remedy for an error of the system, or for one that such an error has caused.

    It is `otherwise` if the error's number alone does not say what to do.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__
    match cause.errno if cause is not None else None:
        case errno.EMFILE:
            return "raise the limit of open files and start the daemon again, or delete snapshots"
        case errno.ENFILE:
            return "raise fs.file-max, or end other programs that have files open"
    return otherwise
