# SPDX-License-Identifier: Apache-2.0
"""The audit log: who changed what, over which way."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from target import audit
from tests import daemon
from tests.target.control.asking import ask
from tests.target.shell import shelling


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_change_has_a_line_and_no_look_has_one(tmp_path: Path) -> None:
    with daemon.Daemon(tmp_path, "  - {name: vol0, lun: 0, size: 1MiB}\n") as served, served.session() as session:
        served.run("snapshot", "create", "vol0", "a")
        served.run("snapshot", "list")
        served.run("snapshot", "delete", "vol0@none", check=False)
        shelling.good(served, "/volumes/vol0/snapshots", "create", "b")
        shelling.good(served, "--dry-run", "/volumes/vol0", "accept")
        ask(served, "DELETE", "/v1/volumes/vol0/snapshots/b")
        session.settle(0)
        register = bytes(8) + (0x1234).to_bytes(8) + bytes(8)
        assert session.command(0, bytes.fromhex("5f000000000000001800"), out=register).status == 0
        path = served.state / audit.FILE
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        seen = [(line["way"], line["what"], line["outcome"]) for line in lines(path)]
    assert seen == [
        ("cli", "POST /v1/volumes/vol0/snapshots", "done"),
        ("cli", "DELETE /v1/volumes/vol0/snapshots/none?damaged=False&force=False", "no-such-snapshot"),
        ("shell", "POST /v1/volumes/vol0/snapshots", "done"),
        ("api", "DELETE /v1/volumes/vol0/snapshots/b", "done"),
        ("initiator", "PERSISTENT RESERVE OUT, service action 00h, vol0", "done"),
    ]
    first = lines(path)[0]
    assert first["details"]["name"] == "a"
    assert first["who"] == os.environ.get("SUDO_USER", "root" if os.geteuid() == 0 else first["who"])
    assert lines(path)[-1]["who"].startswith("iqn.")


def test_secrets_are_left_out(tmp_path: Path) -> None:
    log = audit.Audit(tmp_path / "audit.jsonl")
    log.record("api", "me", "PUT", details={"chap": [{"name": "n", "secret": "hush hush hush", "target_secret": None}]})
    assert lines(tmp_path / "audit.jsonl")[0]["details"] == {
        "chap": [{"name": "n", "secret": "***", "target_secret": None}]
    }


def test_large_file_is_moved_aside_and_the_oldest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "LARGEST", 1000)
    log = audit.Audit(tmp_path / "audit.jsonl")
    for number in range(100):
        log.record("api", "me", f"request {number}")
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["audit.jsonl", *(f"audit.jsonl.{number}" for number in range(1, audit.OLDER + 1))]
    newest = [line["what"] for name in ("audit.jsonl.1", "audit.jsonl") for line in lines(tmp_path / name)]
    assert newest[-1] == "request 99"
    assert newest == [f"request {number}" for number in range(100 - len(newest), 100)]


def test_log_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audit.Audit(tmp_path / "missing" / "audit.jsonl").record("api", "me", "a request")
    assert "a request could not be written to the audit log" in caplog.text
