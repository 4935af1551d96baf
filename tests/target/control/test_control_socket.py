# SPDX-License-Identifier: Apache-2.0
"""The socket: only the daemon's user may connect, and no client delays another."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

from target import places
from tests import daemon
from tests.target.control.asking import VOLUMES, ask


def test_only_the_daemons_user_may_connect(running: daemon.Daemon) -> None:
    mode = (running.state / places.SOCKET).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_socket_of_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    with daemon.Daemon(tmp_path, VOLUMES) as killed:
        killed.kill()
        assert (killed.state / places.SOCKET).exists()
        killed.start()
        assert ask(killed, "GET", "/v1/status")[0] == 200
        killed.stop()
        assert not (killed.state / places.SOCKET).exists()


def test_silent_and_broken_clients_do_not_hold_up_others(running: daemon.Daemon) -> None:
    silent = [places.connect(running.state, 30) for _ in range(20)]
    rude: socket.socket = places.connect(running.state, 30)
    rude.sendall(b"\x00\xff nonsense\r\n\r\n")
    assert rude.recv(100).startswith(b"HTTP/1.1 400")
    assert ask(running, "GET", "/v1/status")[0] == 200
    for connection in (*silent, rude):
        connection.close()
