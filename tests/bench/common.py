# SPDX-License-Identifier: Apache-2.0
"""All measurements share these: their settings, and the images and volumes that they measure."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30
CHUNK = 65536


@dataclass(frozen=True, slots=True)
class Settings:
    """The length of a measurement: rounds of each side, seconds of a timed load, 4 KiB writes of a counted load."""

    directory: Path
    rounds: int
    seconds: int
    writes: int


def filled(path: Path, size: int = GIB) -> Path:
    """Write a file of random bytes (no holes, in the page cache) and return its path."""
    block = os.urandom(1 << 20)
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(block)
    return path


def volume(name: str, lun: int, primary: Path, *, durability: str = "process-crash", size: str = "1GiB") -> str:
    """Return the YAML of one volume of the configuration."""
    return f"  - {{name: {name}, lun: {lun}, primary: {primary}, size: {size}, durability: {durability}}}\n"
