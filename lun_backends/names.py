# SPDX-License-Identifier: Apache-2.0
"""The names of volumes and snapshots: a name becomes part of file names, URLs and `volume@snapshot`."""

from __future__ import annotations

import re
from typing import Final

PATTERN: Final = "[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}"
RULE: Final = "1 to 64 letters, digits, '.', '_', '+' or '-', the first one a letter or a digit"

_NAME = re.compile(PATTERN)


def valid(name: str) -> bool:
    """Return whether a volume or a snapshot may have the name."""
    return _NAME.fullmatch(name) is not None
