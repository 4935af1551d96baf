# SPDX-License-Identifier: Apache-2.0
"""`wolun reservations`, and the same in the shell, against a real daemon and a real initiator."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests import daemon, libiscsi
from tests.target.shell.shelling import good

ANN, BACKUP = "iqn.2026-11.org.example:ann", "iqn.2026-11.org.example:backup-1"
VOLUMES = "  - {name: vol0, lun: 0, size: 1MiB}\n"
ACCESS = f"  networks: [127.0.0.0/8]\n  initiators:\n    - name: {ANN}\n    - {{name: 'iqn.2026-11.org.example:backup-*', read_only: true}}\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Daemon]:
    with daemon.Daemon(tmp_path_factory.mktemp("daemon"), VOLUMES, access=ACCESS) as running:
        yield running


def reserve_out(session: libiscsi.Session, action: int, key: int, new: int = 0) -> int:
    cdb = struct.pack(">BBB2xIB", 0x5F, action, 3, 24, 0)
    return session.command(0, cdb, out=struct.pack(">QQ4xB3x", key, new, 1)).status


def reserved(served: daemon.Daemon) -> libiscsi.Session:
    session = served.session(initiator=ANN)
    session.settle(0)
    assert (reserve_out(session, 0, 0, 0x666), reserve_out(session, 1, 0x666)) == (0, 0)
    return session


def test_a_read_only_initiator_shuts_nobody_out(served: daemon.Daemon) -> None:
    with served.session(initiator=BACKUP) as backup, served.session(initiator=ANN) as ann:
        for session in (backup, ann):
            session.settle(0)
        assert reserve_out(backup, 0, 0, 0x666) == 2
        assert ann.command(0, bytes.fromhex("2a000000000000000100"), out=bytes(512)).status == 0
    assert served.run("reservations", "list").stdout == "no reservations\n"


def test_a_reservation_is_listed_and_cleared(served: daemon.Daemon) -> None:
    with reserved(served):
        text = served.run("reservations", "list").stdout
        assert text.splitlines()[1].split()[:3] == ["vol0", "0", ANN]
        assert "exclusive-access  yes" in text
        refused = served.run("reservations", "clear", "vol0", check=False)
        assert (refused.returncode, f"in use by {ANN}" in refused.stderr) == (1, True)
    (vol0,) = served.json("reservations", "list", "vol0")
    assert (vol0["unit"], vol0["type"], vol0["registrations"][0]["logged_in"]) == ("vol0", "exclusive-access", False)
    assert served.run("reservations", "clear", "vol0", "--initiator", ANN).stdout == (
        "vol0 has no reservation of the cleared initiators; no initiator is registered\n"
    )
    assert served.json("reservations", "list")[0]["registrations"] == []


def test_a_unit_that_does_not_exist_is_refused(served: daemon.Daemon) -> None:
    for words in (("list",), ("clear",)):
        done = served.run("reservations", *words, "vol9", check=False)
        assert (done.returncode, "there is no unit vol9" in done.stderr) == (1, True)
    done = served.run("reservations", "clear", "vol0", "--initiator", ANN, check=False)
    assert f"{ANN} has no reservation on vol0" in done.stderr


def test_the_shell_shows_and_clears_reservations(served: daemon.Daemon) -> None:
    lun = f"/iscsi/{daemon.IQN}/tpg1/luns/lun0"
    assert "no reservations" in good(served, f"{lun} reservations")
    reserved(served).close()
    assert ANN in good(served, f"{lun} reservations")
    assert "checked, not done" in good(served, "--dry-run", f"{lun} clear_reservations force=true")
    assert ANN in good(served, f"{lun} reservations")
    good(served, f"{lun} clear_reservations initiator={ANN} force=true")
    assert "no reservations" in good(served, f"{lun} reservations")
