# SPDX-License-Identifier: Apache-2.0
"""`wolun` with a fault of the test's choice, which begins when a file exists.

usage: python -m tests.target.breaking FAULT NAME FILE WORD...

| fault   | from then on                                                 |
| ------- | ------------------------------------------------------------ |
| `ends`  | the loop on the thread NAME raises an exception              |
| `quits` | the loop of the control socket returns; NAME is ignored      |
| `hangs` | the loop on the thread NAME stands still                     |
| `stop`  | a stop of the daemon never ends; NAME is ignored             |
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from target import cli, liveness
from target.control import control_socket
from target.service import scheduler
from target.service.service import Service


def main() -> None:
    """Install the fault, and run the command."""
    fault, name, file, *words = sys.argv[1:]
    forever = threading.Event()
    beats = liveness.Pulse.beat

    def beat(pulse: liveness.Pulse) -> None:
        if pulse.name == name and Path(file).exists():
            if fault == "hangs":
                forever.wait()
            raise RuntimeError("the test's fault")
        beats(pulse)

    liveness.Pulse.beat = beat  # type: ignore[method-assign, assignment]
    scheduler.LOOK_SECONDS = 0.1
    if fault == "quits":

        async def on_tick(server: control_socket.Server, counter: int) -> bool:
            return Path(file).exists()

        control_socket.Server.on_tick = on_tick  # type: ignore[method-assign, assignment]
    if fault == "stop":
        Service.stop = lambda service: forever.wait()  # type: ignore[method-assign, assignment]
    cli.main(words)


if __name__ == "__main__":
    main()
