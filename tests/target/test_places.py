# SPDX-License-Identifier: Apache-2.0
"""The default paths, and connections to control sockets with long paths."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from target import places


def test_a_checkout_has_its_own_state_and_configuration(tmp_path: Path) -> None:
    checkout = Path(__file__).resolve().parents[2]
    assert checkout == places.CHECKOUT
    assert places.default_state_dir() == checkout / "var"
    assert places.default_configuration(tmp_path) == tmp_path / "wolun.yaml"
    assert "name: vol0" in places.quickstart()
    assert f"$schema={checkout}/config/schema.json" in places.quickstart()


def test_an_installed_program_uses_the_systems_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "CHECKOUT", None)
    assert places.default_state_dir() == Path("/var/lib/wolun")
    assert places.default_configuration(tmp_path) == Path("/etc/wolun/wolun.yaml")


def test_a_socket_in_a_long_directory_is_reached(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 200)
    directory.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        with places.short_name(directory, places.SOCKET) as path:
            server.bind(path)
        server.listen()
        with places.connect(directory, timeout=5) as connection:
            accepted, _ = server.accept()
            accepted.sendall(b"hello")
            accepted.close()
            assert connection.recv(5) == b"hello"


@pytest.mark.parametrize("directory", ["", "missing"])
def test_no_socket_is_an_error(tmp_path: Path, directory: str) -> None:
    with pytest.raises(OSError, match=r"No such file"):
        places.connect(tmp_path / directory, timeout=5)
