# SPDX-License-Identifier: Apache-2.0
"""The TCMU devices in UIO: one `/dev/uioN` for each device, which only one process can open.

The name of a device in sysfs names its handler: `tcm-user/<hba>/<device>/<dev_config>`, where `dev_config` is
`<handler>/<rest>`.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

CLASS = Path("/sys/class/uio")
PREFIX = "tcm-user"


@dataclass(frozen=True, slots=True)
class UioDevice:
    """A TCMU device, with a shared region of `length` bytes."""

    node: Path
    hba: int
    name: str
    config: str
    length: int

    @property
    def handler(self) -> str:
        """The handler that serves the device: the part of its configuration before the first slash."""
        return self.config.partition("/")[0]

    def open(self) -> int:
        """Return a descriptor of the device.  Raise OSError; EBUSY means that another process serves the device."""
        return os.open(self.node, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)


def devices(besides: Container[str] = ()) -> Iterator[UioDevice]:
    """Yield all TCMU devices of this machine, also those of other owners, without reading the nodes of `besides`."""
    for name in sorted(entry.name for entry in os.scandir(CLASS)) if CLASS.is_dir() else ():
        device = None if f"/dev/{name}" in besides else _device(CLASS / name)
        if device is not None:
            yield device


def by_minor(minor: int) -> UioDevice | None:
    """Return the device that a netlink message names by its minor number; None if it is gone."""
    return _device(CLASS / f"uio{minor}")


def _device(entry: Path) -> UioDevice | None:
    try:
        prefix, hba, name, config = (entry / "name").read_text().rstrip("\n").split("/", 3)
        length = int((entry / "maps/map0/size").read_text(), 16)
    except (OSError, ValueError):  # gone meanwhile (ENOENT, or ENODEV while it goes), or no TCMU device
        return None
    return UioDevice(Path("/dev") / entry.name, int(hba), name, config, length) if prefix == PREFIX else None
