# SPDX-License-Identifier: Apache-2.0
"""The client: what it returns, and how it explains a daemon that does not answer."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from target import places
from target.control.client import Client, Failed


def test_snapshots_are_taken_watched_and_deleted(client: Client) -> None:
    assert client.create_snapshot("vol0", "second", {"a": "b"}).name == "second"
    assert client.snapshot("vol0", "second").labels == {"a": "b"}
    assert {snapshot.name for snapshot in client.snapshots()} == {"kept", "second"}
    *_, last = client.watch(client.delete_snapshot("vol0", "second"))
    assert last.state == "done"
    assert [snapshot.name for snapshot in client.snapshots("vol0")] == ["kept"]


@pytest.mark.parametrize("name", ["", "a/b", "/"])
def test_name_that_is_no_part_of_a_path_is_refused_here(client: Client, name: str) -> None:
    with pytest.raises(Failed) as refused:
        client.snapshot("vol0", name)
    assert refused.value.refusal.error == "no-such-name"


def test_odd_name_reaches_the_daemon_whole(client: Client) -> None:
    with pytest.raises(Failed) as refused:
        client.snapshot("vol0", "a?b#c%")
    assert refused.value.refusal.error == "no-such-snapshot"
    assert "a?b#c%" in refused.value.refusal.message


def test_missing_daemon_is_explained(tmp_path: Path) -> None:
    with pytest.raises(Failed) as refused:
        Client(tmp_path).status()
    assert refused.value.refusal.error == "not-running"
    assert str(tmp_path) in refused.value.refusal.message


def test_broken_answer_is_explained(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / places.SOCKET))
        listener.listen()

        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.recv(1000)
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(Failed) as refused:
            Client(tmp_path).status()
        thread.join()
    assert refused.value.refusal.error == "no-answer"
