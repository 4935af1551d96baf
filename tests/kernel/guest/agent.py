# SPDX-License-Identifier: Apache-2.0
"""The guest's end of the command channel: it runs shell commands that the host sends over a virtio-serial port.

Each line is a JSON object.  The host sends `{"id", "command", "timeout"}`.  The guest sends `{"ready": true}` once,
then `{"id", "code", "output"}` for each command, in the order in which the commands end.  The program runs on the
guest's bare Python, without site.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from typing import Any

TIMED_OUT = 124  # the same status as that of timeout(1)


def main(path: str) -> None:
    """Run the commands that arrive at the port `path`, for ever."""
    port = os.open(path, os.O_RDWR)
    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        with lock:
            while data:
                data = data[os.write(port, data) :]

    def run(request: dict[str, Any]) -> None:
        # Use a file, not a pipe: a daemon that the command leaves behind may keep its output open.
        with tempfile.TemporaryFile() as output:
            child = subprocess.Popen(
                ["bash", "-c", request["command"]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                code = child.wait(request["timeout"])
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                code = TIMED_OUT
            output.seek(0)
            text = output.read().decode("utf-8", "replace")
        send({"id": request["id"], "code": code, "output": text})

    send({"ready": True})
    buffer = b""
    while True:
        buffer += os.read(port, 65536)
        *lines, buffer = buffer.split(b"\n")
        for line in filter(None, lines):
            threading.Thread(target=run, args=(json.loads(line),), daemon=True).start()


main(sys.argv[1])
