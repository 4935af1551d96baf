# SPDX-License-Identifier: Apache-2.0
"""Configuration files for the tests, and the lines that explain their mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from target.configuration import reader

CONFIG = Path(__file__).resolve().parents[3] / "config"

HEAD = "target: iqn.2026-11.io.wolun:test\n"
VOLUME = HEAD + "volumes:\n  - name: vol0\n    lun: 0\n    size: 1GiB\n"


def problems(text: str | bytes) -> list[str]:
    """Return the lines that explain a bad configuration."""
    with pytest.raises(reader.ConfigurationError) as caught:
        reader.parse(text, "f.yaml")
    return str(caught.value).splitlines()


def only(text: str | bytes) -> str:
    """Return the one line that explains a configuration with one mistake."""
    (line,) = problems(text)
    return line
