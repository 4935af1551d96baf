# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.kernel.halting serve ...`: wolun as a node that stands still in the midst of taking a snapshot.

It runs in a guest, whose plug is pulled then, or with its files in $WOLUN_LAB_RUN.  FUSE holds the number of commands that the node may send from the moment
on in which it looks for a blank write-once LUN.  Instead of sending one more it writes that command's name into HALTED, and
waits for ever.  FUSE may also hold the name of the command that it does not send.

A snapshot and the commands of initiators may take PATIENCE, because the processors are emulated, and the host may be busy.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from lun_backends.cluster import actions
from lun_backends.cluster.node import Node
from lun_backends.shared import driver, volume
from lun_backends.shared.devices import Devices
from target import cli

RUN = Path(os.environ.get("WOLUN_LAB_RUN", "/run"))
FUSE, HALTED = RUN / "fuse", RUN / "halted"


PATIENCE = 300.0  # seconds


class Driver(driver.Driver):
    """Carries out as many commands as the fuse lets it."""

    _sent = -1

    def __init__(self, node: Node, devices: Devices, follower: driver.Follower, patience: float) -> None:
        super().__init__(node, devices, follower, max(patience, PATIENCE))

    def _command(self, action: actions.Action) -> Any:
        if FUSE.exists():
            if isinstance(action, actions.FindBlank):
                self._sent = 0
            name = type(action).__name__
            if self._sent >= 0 and FUSE.read_text().strip() in (name, str(self._sent)):
                HALTED.write_text(name)
                threading.Event().wait()
            self._sent += self._sent >= 0
        return super()._command(action)


def main() -> None:
    """Serve with a driver that has a fuse."""
    vars(volume)["Driver"] = Driver
    create = volume.SharedVolume.create_snapshot
    create.__kwdefaults__ = {**(create.__kwdefaults__ or {}), "timeout": PATIENCE}
    cli.main()


if __name__ == "__main__":
    main()
