# SPDX-License-Identifier: Apache-2.0
"""The Python packages that only `fabric: lio` needs: the extra `lio` of wolun's own package."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Final

FOR_LIO: Final[Mapping[str, str]] = {"dbus_fast": "dbus-fast", "pyroute2": "pyroute2", "rtslib_fb": "rtslib-fb"}
"""The name of each package in an import, and the one to install it by."""

REMEDY: Final = "install them: pip install 'wolun[lio]', in the environment of wolun; the Debian package has them"


def missing() -> Sequence[str]:
    """Return the packages that are not installed, by the names to install them by.  It imports none of them."""
    return [package for module, package in FOR_LIO.items() if importlib.util.find_spec(module) is None]
