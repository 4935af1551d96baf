# SPDX-License-Identifier: Apache-2.0
"""The paths of a disk of the kernel: the disks below dm-multipath, or the disk itself.

Each path is an I_T nexus of its own, so each registers by itself for a reservation.  dm-multipath sends SG_IO by one of
them only.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from lun_backends import block_device
from lun_backends.files import backing_file
from lun_backends.initiator import sg_io
from lun_backends.initiator.unit import Unit


class KernelPaths:
    """The units of the paths of the disk at `path`, as the kernel lists them at each call of `units`."""

    def __init__(
        self,
        path: Path,
        *,
        sysfs: Path = Path("/sys"),
        devices: Path = Path("/dev"),
        open_disk: Callable[[Path], Unit] = sg_io.SgIo,
    ) -> None:
        """Open nothing yet.  `sysfs` and `devices` are the kernel's own trees."""
        self._path, self._sysfs, self._devices, self._open_disk = path, sysfs, devices, open_disk
        self._opened: dict[Path, Unit] = {}
        self._lock = threading.Lock()

    def units(self) -> Sequence[Unit]:
        """Return the paths, open.  Close those that are gone, and leave out those that cannot be opened."""
        with self._lock:
            now = self._list()
            for path in [path for path in self._opened if path not in now]:
                self._opened.pop(path).close()
            for path in now:
                if path not in self._opened:
                    with contextlib.suppress(backing_file.CannotOpen):
                        self._opened[path] = self._open_disk(path)
            return [self._opened[path] for path in now if path in self._opened]

    def close(self) -> None:
        """Close all paths."""
        with self._lock:
            for unit in self._opened.values():
                with contextlib.suppress(block_device.BlockDeviceError):
                    unit.close()
            self._opened.clear()

    def _list(self) -> list[Path]:
        block = self._sysfs / "class/block" / self._path.resolve().name
        with contextlib.suppress(OSError):
            if (block / "dm/uuid").read_text().startswith("mpath-"):
                return [self._devices / slave.name for slave in sorted((block / "slaves").iterdir())]
        return [self._path]
