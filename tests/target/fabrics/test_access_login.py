# SPDX-License-Identifier: Apache-2.0
"""Logins to a real daemon: with libiscsi, with QEMU, and by hand for messages that no proper initiator sends."""

from __future__ import annotations

import hashlib
import itertools
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import ClassVar

import pytest

from target.iscsi import failed_logins, keys, pdu
from target.iscsi.errors import LoginStatus
from tests import daemon, libiscsi, peers

ANN, BOB, READER = (f"iqn.2026-11.org.example:{name}" for name in ("ann", "bob", "reader"))
SECRET, TARGET_SECRET, BOBS = "ann's own secret", "the target's secret", "bob-bob-bob-bob"

VOLUMES = """
  - {name: vol0, lun: 0, size: 1MiB, snapshots: [then]}
  - {name: vol1, lun: 5, size: 2MiB}
"""
ACCESS = f"""
  discovery_chap: false
  initiators:
    - name: {ANN}
      chap: {{name: ann, secret_file: ann, target_name: wolun, target_secret_file: ann.target}}
    - name: {BOB}
      chap: {{name: bob, secret_file: bob, algorithms: [sha256]}}
    - name: {READER}
      luns: [{{lun: 0, unit: vol1, read_only: true}}, {{lun: 1, unit: vol0@then}}]
    - name: "*:broken"
      chap: {{name: broken, secret_file: nowhere}}
    - name: "iqn.*:guest-?"
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Daemon]:
    directory = tmp_path_factory.mktemp("access")
    (directory / "state").mkdir(mode=0o700)
    for name, secret in (("ann", SECRET), ("ann.target", TARGET_SECRET), ("bob", BOBS)):
        (directory / "state" / name).write_text(secret + "\n")
        (directory / "state" / name).chmod(0o600)
    with daemon.Daemon(directory, VOLUMES, access=ACCESS) as served:
        yield served


def log_of(served: daemon.Daemon) -> str:
    return (served.directory / "stderr").read_text()


class TestLibiscsi:
    """An initiator from outside of this project."""

    def test_right_secret_logs_in(self, served: daemon.Daemon) -> None:
        with served.session(initiator=ANN, chap=("ann", SECRET)) as session:
            session.settle(0)
            assert session.command(0, bytes(6)).status == 0

    def test_target_proves_its_name_on_demand(self, served: daemon.Daemon) -> None:
        with served.session(initiator=ANN, chap=("ann", SECRET), mutual=("wolun", TARGET_SECRET)) as session:
            session.settle(0)
            assert session.command(0, bytes(6)).status == 0

    @pytest.mark.parametrize("mutual", [("wolun", "not the target's"), ("mallory", TARGET_SECRET)])
    def test_initiator_rejects_a_target_with_the_wrong_proof(
        self, served: daemon.Daemon, mutual: tuple[str, str]
    ) -> None:
        with pytest.raises(libiscsi.LibiscsiError):
            served.session(initiator=ANN, chap=("ann", SECRET), mutual=mutual)

    @pytest.mark.parametrize("chap", [("ann", "not the right one"), ("bob", SECRET), None])
    def test_wrong_or_missing_proof_is_refused(self, served: daemon.Daemon, chap: tuple[str, str] | None) -> None:
        with pytest.raises(libiscsi.LibiscsiError):
            served.session(initiator=ANN, chap=chap)

    def test_initiator_that_fits_a_pattern_logs_in(self, served: daemon.Daemon) -> None:
        with served.session(initiator="iqn.2026-11.org.example:guest-1") as session:
            assert session.command(5, bytes(6)).status in (0, 2)

    def test_luns_are_mapped_and_read_only(self, served: daemon.Daemon) -> None:
        with served.session(initiator=READER) as session:
            for lun, size in ((0, 2 << 20), (1, 1 << 20)):
                session.settle(lun)
                capacity = session.command(lun, bytes((0x25,)) + bytes(9), read=8).data
                assert (int.from_bytes(capacity[:4]) + 1) * 512 == size
                write = session.command(lun, bytes.fromhex("2a000000000000000100"), out=bytes(512))
                assert (write.key, write.asc) == (0x7, (0x27, 0))
            luns = session.command(0, bytes.fromhex("a00000000000000010000000"), read=4096).data
            assert int.from_bytes(luns[:4]) == 16
            assert session.command(5, bytes(6)).asc == (0x25, 0)

    def test_discovery_shows_only_targets_that_admit_the_initiator(self, served: daemon.Daemon) -> None:
        listing = peers.require("iscsi-ls")
        for initiator, expected in ((ANN, True), (READER, True), ("iqn.x:mallory", False)):
            done = subprocess.run(
                [listing, "--initiator-name", initiator, f"iscsi://{served.portal}"],
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert (daemon.IQN in done.stdout) is expected, done


class TestQemu:
    """QEMU, which takes name and secret from the URL or, as here, from a secret object."""

    PROOF: ClassVar[dict[str, str]] = {"user": "ann", "password-secret": "s"}

    @staticmethod
    def info(served: daemon.Daemon, secret: str, **proof: str) -> subprocess.CompletedProcess[str]:
        options = {
            "driver": "iscsi", "transport": "tcp", "portal": served.portal, "target": daemon.IQN, "lun": 0,
            "initiator-name": ANN, **proof,
        }  # fmt: skip
        return subprocess.run(
            [peers.require("qemu-img"), "info", "--object", f"secret,id=s,data={secret}", f"json:{json.dumps(options)}"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def test_right_secret_logs_in(self, served: daemon.Daemon) -> None:
        done = self.info(served, SECRET, **self.PROOF)
        assert done.returncode == 0, done.stderr
        assert "virtual size: 1 MiB" in done.stdout

    def test_wrong_secret_is_refused(self, served: daemon.Daemon) -> None:
        done = self.info(served, SECRET + "?", **self.PROOF)
        assert done.returncode != 0
        assert "Authentication failure(513)" in done.stderr

    def test_missing_secret_is_refused(self, served: daemon.Daemon) -> None:
        done = self.info(served, SECRET)
        assert done.returncode != 0
        assert "Authentication failure(513)" in done.stderr


class Peer:
    """A login by hand, each from another address, because the daemon answers late where logins fail often."""

    _addresses = itertools.count(2)

    def __init__(self, served: daemon.Daemon, initiator: str, address: str = "") -> None:
        host, port = served.portal.rsplit(":", 1)
        address = address or f"127.0.1.{next(self._addresses)}"
        self._socket = socket.create_connection((host, int(port)), timeout=30, source_address=(address, 0))
        self._names = [("InitiatorName", initiator), ("TargetName", daemon.IQN)]

    def say(self, pairs: list[tuple[str, str]], flags: int = 0x00) -> tuple[int, dict[str, str]]:
        """Send one Login Request; return the status and the keys of the answer."""
        self.send(pairs, flags)
        header = self._read(48)
        length = int.from_bytes(header[5:8])
        text = self._read(length + 3 & ~3)[:length]
        return int.from_bytes(header[36:38]), dict(keys.parse(text))

    def send(self, pairs: list[tuple[str, str]], flags: int) -> None:
        """Send one Login Request."""
        names, self._names = self._names, []
        data = keys.serialise([*names, *pairs])
        bhs = pdu.REQUEST.pack(0x43, flags, 0, 0, 0, 1 << 16, 1, 0, 1, 0)[:32] + bytes(16)
        self._socket.sendall(pdu.encode(bhs, data, pdu.NO_DIGESTS))

    def ask(self, algorithms: str = "5") -> dict[str, str]:
        """Go through the security stage, up to the target's challenge."""
        assert self.say([("AuthMethod", "CHAP")]) == (0, {"TargetPortalGroupTag": "1", "AuthMethod": "CHAP"})
        status, asked = self.say([("CHAP_A", algorithms)])
        assert status == 0
        return asked

    def close(self) -> None:
        self._socket.close()

    def _read(self, length: int) -> bytes:
        received = b""
        while len(received) < length:
            part = self._socket.recv(length - len(received))
            assert part, "the target closed the connection without an answer"
            received += part
        return received


@pytest.fixture
def peer(served: daemon.Daemon) -> Iterator[Peer]:
    peer = Peer(served, ANN)
    yield peer
    peer.close()


def answer(asked: dict[str, str], secret: str, digest: str = "md5") -> str:
    """Return the response to a challenge (RFC 1994 4.1)."""
    challenge = bytes.fromhex(asked["CHAP_C"][2:])
    return "0x" + hashlib.new(digest, bytes([int(asked["CHAP_I"])]) + secret.encode() + challenge).hexdigest()


class TestByHand:
    """The messages of an attacker, and SHA-256, which Debian's libiscsi lacks."""

    def test_sha_256_is_preferred_and_accepted(self, served: daemon.Daemon) -> None:
        peer = Peer(served, BOB)
        asked = peer.ask("5,7")
        assert asked["CHAP_A"] == "7"
        assert peer.say([("CHAP_N", "bob"), ("CHAP_R", answer(asked, BOBS, "sha256"))], 0x81) == (0, {})
        status, _ = peer.say([], 0x87)
        assert status == 0
        peer.close()

    def test_md5_is_refused_where_only_sha_256_is_allowed(self, served: daemon.Daemon) -> None:
        peer = Peer(served, BOB)
        peer.say([("AuthMethod", "CHAP")])
        assert peer.say([("CHAP_A", "5")])[0] == LoginStatus.AUTHENTICATION_FAILURE
        peer.close()

    def test_reflected_challenge_is_refused(self, peer: Peer) -> None:
        asked = peer.ask()
        pairs = [("CHAP_N", "ann"), ("CHAP_R", answer(asked, SECRET)), ("CHAP_I", asked["CHAP_I"])]
        status, spoken = peer.say([*pairs, ("CHAP_C", asked["CHAP_C"])], 0x81)
        assert status == LoginStatus.AUTHENTICATION_FAILURE
        assert "CHAP_R" not in spoken

    def test_challenge_of_another_connection_is_not_answered(self, served: daemon.Daemon, peer: Peer) -> None:
        """On a second connection, an attacker asks the target to answer the challenge that it set on the first."""
        asked = peer.ask()
        second = Peer(served, ANN)
        second.ask()
        pairs = [("CHAP_N", "ann"), ("CHAP_R", "0x" + "00" * 16), ("CHAP_I", asked["CHAP_I"])]
        status, spoken = second.say([*pairs, ("CHAP_C", asked["CHAP_C"])], 0x81)
        assert status == LoginStatus.AUTHENTICATION_FAILURE
        assert "CHAP_R" not in spoken
        second.close()

    def test_replayed_answer_is_refused(self, served: daemon.Daemon, peer: Peer) -> None:
        asked = peer.ask()
        recorded = [("CHAP_N", "ann"), ("CHAP_R", answer(asked, SECRET))]
        assert peer.say(recorded, 0x81)[0] == 0
        again = Peer(served, ANN)
        again.ask()
        assert again.say(recorded, 0x81)[0] == LoginStatus.AUTHENTICATION_FAILURE
        again.close()

    def test_security_stage_cannot_be_skipped(self, peer: Peer) -> None:
        assert peer.say([], 0x87)[0] == LoginStatus.AUTHENTICATION_FAILURE

    def test_offer_of_no_authentication_is_refused(self, peer: Peer) -> None:
        assert peer.say([("AuthMethod", "None")], 0x81)[0] == LoginStatus.AUTHENTICATION_FAILURE

    @pytest.mark.parametrize("name", ["iqn.2026-11.org.example:mallory", "iqn.x:broken", "iqn.2026-11.x:guest-10"])
    def test_unknown_and_broken_initiators_are_refused(self, served: daemon.Daemon, name: str) -> None:
        peer = Peer(served, name)
        status = peer.say([("AuthMethod", "CHAP,None")])[0]
        assert status in (LoginStatus.AUTHORIZATION_FAILURE, LoginStatus.INITIATOR_ERROR)
        peer.close()


class TestAfterwards:
    """The daemon's report about refused logins."""

    ADDRESS = "127.0.9.9"

    def fail(self, served: daemon.Daemon) -> float:
        """Fail to log in; return the seconds until the answer."""
        began = time.monotonic()
        peer = Peer(served, ANN, self.ADDRESS)
        assert peer.say([("AuthMethod", "None")])[0] == LoginStatus.AUTHENTICATION_FAILURE
        peer.close()
        return time.monotonic() - began

    def test_failures_are_counted_logged_once_and_answered_late(self, served: daemon.Daemon) -> None:
        before = self.counted(served)
        took = [self.fail(served) for _ in range(5)]
        assert min(took[3:]) >= 0.5
        assert self.counted(served) == before + 5
        assert log_of(served).count(f"{self.ADDRESS} {ANN}: login refused") == 1

    def test_stale_records_hold_nobody_up(self, served: daemon.Daemon) -> None:
        """A name that is gone is no guess: it is not slowed, and does not keep a right login out."""
        here = "127.0.9.10"
        for _ in range(40):
            peer = Peer(served, "iqn.2026-11.org.example:mallory", here)
            assert peer.say([("AuthMethod", "None")])[0] == LoginStatus.AUTHORIZATION_FAILURE
            peer.close()
        self.log_in_as_bob(served, here)

    def test_guesses_about_one_name_keep_no_other_out(self, served: daemon.Daemon) -> None:
        here = "127.0.9.11"
        guessing = []
        for _ in range(failed_logins.FREE + failed_logins.PENDING_MAXIMUM):
            peer = Peer(served, ANN, here)
            peer.ask()
            peer.send([("CHAP_N", "ann"), ("CHAP_R", "0x" + "00" * 16)], 0x81)  # it does not wait for the answer
            guessing.append(peer)
        refused = Peer(served, ANN, here)
        assert refused.say([("AuthMethod", "CHAP")])[0] == LoginStatus.SERVICE_UNAVAILABLE
        self.log_in_as_bob(served, here)
        for peer in (*guessing, refused):
            peer.close()

    @staticmethod
    def log_in_as_bob(served: daemon.Daemon, address: str) -> None:
        peer = Peer(served, BOB, address)
        asked = peer.ask("7")
        assert peer.say([("CHAP_N", "bob"), ("CHAP_R", answer(asked, BOBS, "sha256"))], 0x81)[0] == 0
        assert peer.say([], 0x87)[0] == 0
        peer.close()

    @staticmethod
    def counted(served: daemon.Daemon) -> float:
        name = 'wolun_failed_logins_total{status="authentication_failure"}'
        return sum(float(line.removeprefix(name)) for line in _metrics(served).splitlines() if line.startswith(name))

    def test_broken_entry_is_in_the_status(self, served: daemon.Daemon) -> None:
        assert any("*:broken may not log in" in trouble for trouble in served.json("status")["trouble"])

    def test_log_status_and_metrics_show_no_secret(self, served: daemon.Daemon) -> None:
        shown = log_of(served) + served.run("--json", "status").stdout + _metrics(served)
        for secret in (SECRET, TARGET_SECRET, BOBS):
            assert secret not in shown


def _metrics(served: daemon.Daemon) -> str:
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(str(served.state / "control.sock"))
        control.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        answer = b""
        while part := control.recv(65536):
            answer += part
    return answer.decode()
