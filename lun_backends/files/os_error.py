# SPDX-License-Identifier: Apache-2.0
"""The reason of an OSError as a phrase for people."""

from __future__ import annotations

import os


def reason(error: OSError) -> str:
    """Return the system's words for the error's number, without path or number: "No space left on device"."""
    return os.strerror(error.errno or 0)
