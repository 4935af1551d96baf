# SPDX-License-Identifier: Apache-2.0
"""What volumes and snapshots may be called: a name becomes part of file names, URLs and `volume@snapshot`."""

from __future__ import annotations

import re
from typing import Final

PATTERN: Final = "[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}"
RULE: Final = "1 to 64 letters, digits, '.', '_', '+' or '-', the first one a letter or a digit"

_NAME = re.compile(PATTERN)


def valid(name: str) -> bool:
    """Whether a volume or a snapshot may be called so."""
    return _NAME.fullmatch(name) is not None
