# SPDX-License-Identifier: Apache-2.0
"""The shell's portals: addresses that are added and removed while initiators are logged in."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from pathlib import Path

import pytest

from target.configuration import reader
from tests import daemon, libiscsi, peers
from tests.target.shell.shelling import good, refused, running

VOLUMES = "  - {name: vol0, lun: 0, size: 1MiB}\n"
PORTALS = f"/iscsi/{daemon.IQN}/tpg1/portals"
ANN = "iqn.2026-11.org.example:ann"


@pytest.fixture
def port() -> int:
    """Return a TCP port that is free on all of 127.0.0.0/8."""
    with socket.create_server(("127.0.0.2", 0)) as probe:
        return int(probe.getsockname()[1])


def reaches(portal: str) -> contextlib.AbstractContextManager[libiscsi.Session]:
    return libiscsi.Session(portal, daemon.IQN, initiator=ANN)


def test_portals_are_added_and_removed_while_initiators_are_logged_in(served: daemon.Daemon, port: int) -> None:
    other = f"127.0.0.2:{port}"
    good(served, f"{PORTALS} create 127.0.0.2 {port} --dry-run")
    with pytest.raises(libiscsi.LibiscsiError), reaches(other):
        pass
    assert f"initiators can connect to {other}" in good(served, f"{PORTALS} create 127.0.0.2 {port}")
    assert "2 portals" in good(served, f"ls {PORTALS}")
    assert served.json("status")["portals"] == [served.portal, other]
    listing = subprocess.run(
        [peers.require("iscsi-ls"), "--initiator-name", ANN, f"iscsi://{other}"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert f"Target:{daemon.IQN} Portal:{other}," in listing.stdout
    assert f"Target:{daemon.IQN} Portal:{served.portal}," in listing.stdout

    with served.session() as first, reaches(other) as second:
        for session in (first, second):
            session.settle(0)
        assert f"portal {other} is in use by {ANN} from 127.0.0." in refused(
            served, f"{PORTALS} delete 127.0.0.2 {port}"
        )
        good(served, f"{PORTALS} delete 127.0.0.2 {port} force=true")
        while len(served.json("status")["sessions"]) > 1:  # the portal ends them a moment later
            pass
        with pytest.raises(libiscsi.LibiscsiError):
            second.command(0, bytes(6))
        assert first.command(0, bytes(6)).status == 0
    with pytest.raises(libiscsi.LibiscsiError), reaches(other):
        pass


def test_a_portal_is_deleted_by_the_name_that_ls_shows(served: daemon.Daemon, port: int) -> None:
    good(served, f"{PORTALS} create 127.0.0.2:{port}")
    assert f"o- 127.0.0.2:{port} " in good(served, f"ls {PORTALS}")
    good(served, f"{PORTALS} delete 127.0.0.2:{port}")
    assert "1 portal" in good(served, f"ls {PORTALS}")
    good(served, f"{PORTALS} create ::1 {port}")
    good(served, f"{PORTALS} delete [::1]:{port}")
    assert served.json("status")["portals"] == [served.portal]


def test_refusals_of_portals_are_explained(served: daemon.Daemon, port: int) -> None:
    host, _, own = served.portal.rpartition(":")
    assert "initiators connect there already" in refused(served, f"{PORTALS} create {host} {own}")
    assert "it is the only one" in refused(served, f"{PORTALS} delete {host} {own}")
    assert f"there is no portal 127.0.0.2:{port}" in refused(served, f"{PORTALS} delete 127.0.0.2 {port}")
    for wrong in ("127.0.0.1 99999", "a..b", "[127.0.0.1] 3260", "[::1]:1:2", "127.0.0.1 abc"):
        assert "is not an address to listen on" in refused(served, f"{PORTALS} create {wrong}")
    said = refused(served, f"{PORTALS} create nowhere.invalid")
    assert "Unknown error" not in said
    assert "Write an address of this machine instead of a name" in said
    with socket.create_server(("127.0.0.2", port)):
        said = refused(served, f"{PORTALS} create 127.0.0.2 {port}")
        assert f"cannot listen for initiators on 127.0.0.2:{port} (Address already in use)" in said
        assert "Stop the program that uses it (`ss -tlnp` lists it)" in said
    assert "`ip address` lists those that this machine has" in refused(served, f"{PORTALS} create 192.0.2.1 {port}")


def test_portals_are_saved_and_restored(served: daemon.Daemon, port: int) -> None:
    file = served.directory / "wolun.yaml"
    other = f"127.0.0.2:{port}"
    good(served, f"{PORTALS} create 127.0.0.2 {port}")
    good(served, "saveconfig")
    assert reader.load(file).portal.listen == ("127.0.0.1:0", other)
    assert "matches the running configuration" in good(served, "diff")
    served.stop()
    served.start(text=file.read_text())
    assert "matches the running configuration" in good(served, "diff")
    with reaches(other):
        pass
    file.write_text(file.read_text().replace(f"    - {other}\n", ""))
    assert f"remove portal {other}" in good(served, "restoreconfig")
    with pytest.raises(libiscsi.LibiscsiError), reaches(other):
        pass
    with reaches(good(served, f"ls {PORTALS}").split("o- ")[2].split()[0]):
        pass


def test_a_portal_that_cannot_be_bound_is_shown_and_can_be_deleted(tmp_path: Path) -> None:
    lost = "192.0.2.7:3260"
    text = f"target: {daemon.IQN}\nportal: {{listen: ['{lost}', '127.0.0.1:0'], sessions: 7}}\naccess: {{networks: [127.0.0.0/8]}}\nvolumes:\n{VOLUMES}"
    served = daemon.Daemon(tmp_path, VOLUMES)
    try:
        served.start(text=text)
        assert served.portal.startswith("127.0.0.1:")
        with served.session() as session:
            session.settle(0)
        assert "cannot be bound, is tried again" in good(served, f"ls {PORTALS}")
        (alert,) = served.json("status")["alerts"]
        assert (alert["code"], alert["subject"]) == ("portal-unbound", lost)
        good(served, f"{PORTALS} delete 192.0.2.7")
        status = served.json("status")
        assert (status["alerts"], status["portals"], status["portals_unbound"]) == ([], [served.portal], [])
        assert running(served).portal.sessions == 7
    finally:
        served.stop()
