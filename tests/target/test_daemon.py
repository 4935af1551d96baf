# SPDX-License-Identifier: Apache-2.0
"""`wolun serve` as a process: starting, refusing to start, stopping, being killed."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from target.configuration import reader
from target.daemon import Records, _listening
from tests import daemon, libiscsi

VOLUMES = "  - {name: vol0, lun: 0, size: 8MiB}\n"


def refused(*words: str | Path) -> str:
    """Start a daemon that must not start, and return its message."""
    done = subprocess.run([daemon.PROGRAM, "serve", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert not done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


def write_config(directory: Path, text: str) -> Path:
    path = directory / "c.yaml"
    path.write_text(text)
    return path


def write(session: libiscsi.Session, lun: int, lba: int, data: bytes) -> None:
    """Write with WRITE(10)."""
    cdb = b"\x2a\x00" + lba.to_bytes(4, "big") + b"\x00" + (len(data) // 512).to_bytes(2, "big") + b"\x00"
    session.settle(lun)
    assert session.command(lun, cdb, out=data).status == 0


def read(session: libiscsi.Session, lun: int, lba: int, length: int) -> bytes:
    """Read with READ(10)."""
    cdb = b"\x28\x00" + lba.to_bytes(4, "big") + b"\x00" + (length // 512).to_bytes(2, "big") + b"\x00"
    session.settle(lun)
    answer = session.command(lun, cdb, read=length)
    assert answer.status == 0
    return answer.data


def test_standard_output_has_exactly_the_line_ready(served: daemon.Daemon) -> None:
    out = (served.directory / "stdout").read_text()
    assert re.fullmatch(rf"ready: {re.escape(daemon.IQN)} on {re.escape(served.portal)}\n", out)
    log = (served.directory / "stderr").read_text()
    assert f"iscsiadm -m node -T {daemon.IQN} -p {served.portal} --login" in log
    assert served.url(0) in log
    assert served.stop() == 0
    assert (served.directory / "stdout").read_text() == out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_daemon_cleanly_with_initiators_logged_in(
    served: daemon.Daemon, number: signal.Signals
) -> None:
    assert served.process is not None
    with served.session() as session:
        write(session, 0, 0, b"kept" * 128)
        served.process.send_signal(number)
        assert served.process.wait(30) == 0
    assert not (served.state / "control.sock").exists()
    served.process = None
    served.start()
    with served.session() as session:
        assert read(session, 0, 0, 512) == b"kept" * 128


def test_only_the_daemons_user_can_read_the_state(served: daemon.Daemon) -> None:
    served.run("snapshot", "create", "vol0", "s")
    assert stat.S_IMODE(served.state.stat().st_mode) == 0o700
    assert stat.S_IMODE((served.state / "control.sock").stat().st_mode) == 0o600
    for path in served.state.rglob("*"):
        assert not path.stat().st_mode & 0o077, path


def test_a_second_daemon_on_a_state_directory_is_refused(served: daemon.Daemon) -> None:
    assert served.process is not None
    said = refused("--config", served.directory / "wolun.yaml", "--state-dir", served.state)
    assert f"a daemon (process {served.process.pid}) already serves {served.state}" in said
    assert served.json("status")["pid"] == served.process.pid


def test_after_a_kill_all_data_and_luns_are_unchanged(served: daemon.Daemon) -> None:
    with served.session() as session:
        write(session, 0, 0, b"old0" * 128)
        first = served.json("snapshot", "create", "vol0", "first")
        write(session, 0, 0, b"new1" * 128)
        second = served.json("snapshot", "create", "vol0", "second")
        write(session, 0, 0, b"new2" * 128)
        third = served.json("snapshot", "create", "vol0", "third")
        served.run("snapshot", "delete", "vol0@first")
        before = served.json("snapshot", "list")
        served.kill()
    assert (served.state / "control.sock").exists()  # leftovers of a killed daemon must not stop the next one
    served.start()
    after = served.json("snapshot", "list")
    for key in ("name", "uuid", "taken", "view_lun", "write_once_lun", "preserved_bytes", "state"):
        assert [snapshot[key] for snapshot in after] == [snapshot[key] for snapshot in before]
    with served.session() as session:
        assert read(session, 0, 0, 512) == b"new2" * 128
        assert read(session, second["view_lun"], 0, 512) == b"new1" * 128
        assert read(session, third["view_lun"], 0, 512) == b"new2" * 128
    # the LUN of a deleted snapshot rests, also over a restart
    assert served.json("snapshot", "create", "vol0", "fourth")["view_lun"] != first["view_lun"]


def test_snapshots_of_the_configuration_are_taken_once(tmp_path: Path) -> None:
    volumes = "  - {name: vol0, lun: 3, size: 8MiB, snapshots: [installed, later]}\n"
    with daemon.Daemon(tmp_path, volumes) as served:
        before = served.json("snapshot", "list")
        assert [snapshot["name"] for snapshot in before] == ["installed", "later"]
        served.stop()
        served.start()
        after = served.json("snapshot", "list")
        assert [snapshot["uuid"] for snapshot in after] == [snapshot["uuid"] for snapshot in before]
        with served.session() as session:
            assert read(session, before[0]["view_lun"], 0, 512) == bytes(512)


def test_the_state_directory_may_have_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with daemon.Daemon(deep, VOLUMES) as served:
        assert served.json("status")["volumes"][0]["name"] == "vol0"


def test_the_state_directory_may_move(tmp_path: Path) -> None:
    served = daemon.Daemon(tmp_path, VOLUMES).start()
    with served.session() as session:
        write(session, 0, 0, b"here" * 128)
    served.stop()
    served.state = served.state.rename(tmp_path / "elsewhere")
    with served, served.session() as session:
        assert read(session, 0, 0, 512) == b"here" * 128


def test_an_initiator_from_another_network_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, f"target: {daemon.IQN}\nportal: {{listen: '127.0.0.1:0'}}\nvolumes:\n{VOLUMES}")
    process = subprocess.Popen(
        [daemon.PROGRAM, "serve", "--config", config, "--state-dir", tmp_path / "s"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        portal = process.stdout.readline().split()[-1]
        done = subprocess.run(
            [daemon.PROGRAM, "--state-dir", tmp_path / "s", "status"], capture_output=True, text=True, check=True
        )
        assert "no initiator may log in" in done.stdout
        with pytest.raises(libiscsi.LibiscsiError), libiscsi.Session(portal, daemon.IQN):
            pass
    finally:
        process.terminate()
        _, log = process.communicate(timeout=30)
    assert "login refused" in log


def test_an_unreadable_or_invalid_configuration_is_reported(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in refused("--config", tmp_path / "none.yaml")
    config = write_config(tmp_path, "target: x\nvolumes: 1\n")
    assert refused("--config", config).splitlines() == [
        f"{config}:1: target: 'x' is not an iSCSI name: write iqn.YEAR-MONTH.REVERSED-DOMAIN:ANYTHING, in small letters",
        f"{config}:2: volumes: 1 is not a list",
    ]


def test_a_portal_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        said = refused("--portal", listen, "--state-dir", tmp_path / "s")
    assert f"cannot listen for initiators on {listen} (Address already in use" in said


def test_an_invalid_portal_is_refused(tmp_path: Path) -> None:
    assert "--portal nowhere: write HOST:PORT" in refused("--portal", "nowhere", "--state-dir", tmp_path / "s")


def test_a_state_directory_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = ("--state-dir", tmp_path / "file" / "s", "--portal", "127.0.0.1:0")
    assert f"{tmp_path}/file/s/wolun.yaml cannot be written (Not a directory)" in refused(*words)
    said = refused(*words, "--config", Path(__file__).parents[2] / "config" / "quickstart.yaml")
    assert f"the state directory {tmp_path}/file/s cannot be used (Not a directory)" in said


def test_damaged_lun_numbers_prevent_the_start(tmp_path: Path) -> None:
    (tmp_path / "luns.json").write_text("{")
    assert "luns.json is damaged" in refused("--state-dir", tmp_path, "--portal", "127.0.0.1:0")


Change = Callable[[daemon.Daemon], None]


def replace_in_volumes(old: str, new: str) -> Change:
    def change(served: daemon.Daemon) -> None:
        served.volumes = served.volumes.replace(old, new, 1)

    return change


def damage_manifest(served: daemon.Daemon) -> None:
    (served.state / "volumes" / "vol0" / "volume.json").write_text("{")


def remove_primary(served: daemon.Daemon) -> None:
    (served.state / "volumes" / "vol0" / "primary.img").unlink()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (replace_in_volumes("size: 8MiB", "size: 8MiB, block_size: 4096"), "vol0 was made with block_size 512"),
        (replace_in_volumes("size: 8MiB", "size: 8MiB, chunk_size: 4KiB"), "vol0 was made with chunk_size 64KiB"),
        (replace_in_volumes("size: 8MiB", "size: 8MiB, primary: x.img"), "vol0 was made with primary "),
        (replace_in_volumes("lun: 0", "lun: 1"), "LUN 1 belongs to a snapshot of vol0"),
        (damage_manifest, "volume.json"),
        (remove_primary, "primary.img"),
    ],
)
def test_a_volume_that_cannot_be_opened_is_named_and_the_others_are_served(
    tmp_path: Path, change: Change, why: str
) -> None:
    served = daemon.Daemon(tmp_path, VOLUMES + "  - {name: other, lun: 9, size: 8MiB}\n").start()
    served.run("snapshot", "create", "vol0", "s")
    served.run("snapshot", "create", "other", "s")
    served.stop()
    change(served)
    with served:
        status = served.json("status")
        assert [(volume["name"], volume["state"]) for volume in status["volumes"]] == [
            ("vol0", "failed"),
            ("other", "online"),
        ]
        assert [
            sentence
            for sentence in status["trouble"]
            if sentence.startswith("volume vol0 is not served: ") and why in sentence
        ]
        assert [snapshot["volume"] for snapshot in served.json("snapshot", "list")] == ["other"]
        done = served.run("snapshot", "create", "vol0", "t", check=False)
        assert done.returncode == 1
        assert "volume vol0 is not served" in done.stderr
        with served.session() as session:
            assert read(session, 9, 0, 512) == bytes(512)


def test_the_daemon_does_not_start_if_no_volume_can_be_served(tmp_path: Path) -> None:
    config = write_config(tmp_path, f"target: {daemon.IQN}\nvolumes:\n  - {{name: a, lun: 0}}\n")
    said = refused("--config", config, "--state-dir", tmp_path / "s", "--portal", "127.0.0.1:0")
    assert "a new volume needs a size: add `size` to a" in said
    assert "no volume can be served" in said


def test_an_existing_primary_is_served_unchanged(tmp_path: Path) -> None:
    primary = tmp_path / "mine.img"
    primary.write_bytes(os.urandom(1 << 20))
    with daemon.Daemon(tmp_path, f"  - {{name: vol0, lun: 0, primary: {primary}}}\n") as served:
        assert served.json("status")["volumes"][0]["size"] == 1 << 20
        with served.session() as session:
            assert read(session, 0, 5, 1024) == primary.read_bytes()[5 * 512 : 7 * 512]


def test_durability_may_change_from_start_to_start(tmp_path: Path) -> None:
    served = daemon.Daemon(tmp_path, VOLUMES).start()
    served.stop()
    served.volumes = served.volumes.replace("size: 8MiB", "size: 8MiB, durability: process-crash")
    with served:
        assert served.json("status")["volumes"][0]["durability"] == "process-crash"
        assert "process-crash" in (served.state / "volumes" / "vol0" / "volume.json").read_text()


def test_a_record_of_the_log_is_one_printable_line_and_tracebacks_are_indented() -> None:
    forged = "x\n2026-11-26 ERROR forged\x1b[31m"
    record = logging.LogRecord("n", logging.INFO, "p", 1, "%s logged in", (forged,), None)
    assert Records("%(levelname)s %(message)s").format(record) == (
        "INFO x\\n2026-11-26 ERROR forged\\x1b[31m logged in"
    )
    try:
        raise ValueError(forged)
    except ValueError:
        failed = logging.LogRecord("n", logging.ERROR, "p", 1, "failed", (), sys.exc_info())
    first, *rest = Records("%(levelname)s %(message)s").format(failed).split("\n")
    assert first == "ERROR failed"
    assert len(rest) > 3
    assert all(line.startswith("  ") and line.isprintable() for line in rest)


def test_the_address_of_the_command_line_stands_in_for_the_files_and_for_nothing_else() -> None:
    text = "target: iqn.2026-11.x:t\nportal: {listen: '127.0.0.1:1', sessions: 7, memory: 64MiB}\nvolumes: []\n"
    portal = _listening(reader.parse(text, "f.yaml"), "127.0.0.1:0").portal
    assert (portal.listen, portal.sessions, portal.memory) == (("127.0.0.1:0",), 7, 64 << 20)
