# SPDX-License-Identifier: Apache-2.0
"""A session that knows a snapshot by its LUN never reads another one there."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import daemon, peers
from tests.interop.test_write_once_lun import BLOCK, CHECK_CONDITION, GOOD, ILLEGAL_REQUEST, read10, write10

pytestmark = pytest.mark.interop

NOT_SUPPORTED = (0x25, 0x00)
INQUIRY_CHANGED = (0x3F, 0x03)
ANN, BOB = "iqn.2026-11.org.example:ann", "iqn.2026-11.org.example:bob"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[daemon.Daemon]:
    with daemon.Daemon(tmp_path, "  - {name: vol0, lun: 0, size: 16MiB}\n") as running:
        yield running


def take(served: daemon.Daemon, name: str) -> int:
    return int(served.json("snapshot", "create", "vol0", name)["view_lun"])


def test_snapshot_that_is_read_is_deleted_only_by_force_and_its_lun_stays_empty(served: daemon.Daemon) -> None:
    with served.session(initiator=ANN) as session, served.session(initiator=BOB) as idle:
        session.settle(0)
        assert session.command(0, write10(0, 1), out=b"mon!" * (BLOCK // 4)).status == GOOD
        monday = take(served, "monday")
        for logged_in in (session, idle):
            logged_in.settle(monday)
        assert session.command(monday, read10(0, 1), read=BLOCK).data[:4] == b"mon!"
        refusal = json.loads(served.run("--json", "snapshot", "delete", "vol0@monday", check=False).stderr)
        assert refusal["error"] == "in-use"
        assert ANN in refusal["message"]
        assert session.command(monday, read10(0, 1), read=BLOCK).data[:4] == b"mon!"

        served.run("snapshot", "delete", "vol0@monday", "--force")
        session.settle(0)
        assert session.command(0, write10(0, 1), out=b"tue!" * (BLOCK // 4)).status == GOOD
        tuesday = take(served, "tuesday")
        assert tuesday != monday
        for _ in range(2):
            gone = session.command(monday, read10(0, 1), read=BLOCK)
            assert (gone.status, gone.key, gone.asc) == (CHECK_CONDITION, ILLEGAL_REQUEST, NOT_SUPPORTED)
    served.kill()
    served.start()
    # The same holds after a crash, because hosts log in again.
    assert take(served, "wednesday") not in (monday, tuesday)


def test_qemu_fails_instead_of_mixing_two_days(served: daemon.Daemon, tmp_path: Path) -> None:
    qemu_io, url = peers.require("qemu-io"), served.url(0)
    subprocess.run([qemu_io, "-f", "raw", "-c", "write -q -P 0x11 0 4M", url], check=True, capture_output=True)
    monday = take(served, "monday")
    with subprocess.Popen(
        [qemu_io, "-r", "-f", "raw", served.url(monday)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as reader:  # fmt: skip
        assert reader.stdin is not None
        assert reader.stdout is not None
        reader.stdin.write("read -P 0x11 0 1M\n")
        reader.stdin.flush()
        while "read 1048576/1048576" not in reader.stdout.readline():
            pass
        served.run("snapshot", "delete", "vol0@monday", "--force")
        take(served, "tuesday")
        said, _ = reader.communicate("read -P 0x11 1M 1M\nquit\n", timeout=60)
    assert "read failed" in said


def test_initiator_that_knew_another_volume_under_a_lun_is_told(tmp_path: Path) -> None:
    volumes = "  - {name: vol0, lun: 0, size: 16MiB}\n  - {name: vol1, lun: 1, size: 16MiB}\n"
    with daemon.Daemon(tmp_path, volumes) as served:
        with served.session(initiator=ANN) as session:
            session.settle(1)
        served.stop()
        # while no daemon runs, another volume gets the number
        served.volumes = volumes.replace("lun: 0", "lun: 2").replace("lun: 1", "lun: 0").replace("lun: 2", "lun: 1")
        (served.state / "volumes" / "vol1").rename(tmp_path / "vol1")
        served.start()
        with served.session(initiator=ANN) as session:
            attentions = {session.command(1, bytes(6)).asc for _ in range(2)}
            assert INQUIRY_CHANGED in attentions
            assert session.command(1, bytes(6)).status == GOOD
        with served.session(initiator=ANN) as session:
            session.command(1, bytes(6))
            assert session.command(1, bytes(6)).status == GOOD  # once
