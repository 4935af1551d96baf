# SPDX-License-Identifier: Apache-2.0
"""The shell without a terminal: single commands, scripts, exit status, the configuration file, and the cost of many lines."""

from __future__ import annotations

import inspect
import re
import subprocess
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from target import explanations
from target.configuration import reader
from target.control import client
from target.shell import acls, console, iscsi, root, snapshots, volumes
from target.shell.node import Node
from tests import daemon, libiscsi
from tests.target.shell.shelling import good, program, refused, running, shell

VOLUMES = "  - {name: vol0, lun: 0, size: 1MiB}  # mine\n"
TPG = f"/iscsi/{daemon.IQN}/tpg1"
ANN = "iqn.2026-11.org.example:ann"


class TestHelp:
    """The help of each command explains each of its parameters."""

    NODES: ClassVar = [
        node
        for module in (root, volumes, snapshots, iscsi, acls)
        for node in vars(module).values()
        if inspect.isclass(node) and issubclass(node, Node) and node.__module__ == module.__name__
    ]
    COMMANDS: ClassVar = [
        pytest.param(method, id=f"{node.__name__}.{name.removeprefix('ui_command_')}")
        for node in NODES
        for name, method in vars(node).items()
        if name.startswith("ui_command_")
    ]

    @pytest.mark.parametrize("method", COMMANDS)
    def test_each_parameter_has_a_line(self, method: object) -> None:
        text = inspect.getdoc(method) or ""
        assert re.match(r"[A-Z].*\.", text)
        for name in list(inspect.signature(method).parameters)[1:]:  # type: ignore[arg-type]  # a function
            assert re.search(rf"^{name}  +\S", text, re.MULTILINE), name

    def test_the_list_of_commands_is_not_empty(self) -> None:
        assert len(self.COMMANDS) > 20

    def test_help_is_printed(self, shared: daemon.Daemon) -> None:
        assert "chunk_size  the unit of allocation" in good(shared, "/volumes help create")
        assert "saveconfig" in good(shared, "help")


class TestOneCommand:
    """Single commands: `wolun shell 'COMMAND'`."""

    def test_the_exit_status_reports_refusals(self, shared: daemon.Daemon) -> None:
        assert program(shared, "/volumes ls").returncode == 0
        assert program(shared, "/volumes/vol1 info").returncode == 1
        assert "o- vol0" in good(shared, "/volumes ls")
        assert "there is no volume vol1; did you mean vol0?" in refused(shared, "/volumes/vol1 info")
        assert "command not found frobnicate" in refused(shared, "/volumes frobnicate")
        assert "missing required parameter name" in refused(shared, "/volumes create")
        assert 'cannot be parsed from "quoted' in refused(shared, '/volumes create "quoted name"')
        assert "there is no command in /volumes =x" in refused(shared, "/volumes =x")

    def test_words_need_no_quotes(self, shared: daemon.Daemon) -> None:
        assert "size=1MiB" in program(shared, "/volumes/vol0", "get", "attribute", "size").stdout

    def test_without_a_daemon_the_command_fails(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [daemon.PROGRAM, "--state-dir", tmp_path, "shell", "ls"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1
        assert "no daemon serves" in done.stderr
        assert "Traceback" not in done.stderr

    def test_numbers_and_booleans_are_checked(self, shared: daemon.Daemon) -> None:
        assert "lun=x is not a number" in refused(shared, "/volumes create a 1MiB lun=x")
        assert "force=maybe is not true or false" in refused(shared, "/volumes delete vol0 force=maybe")

    def test_every_alert_is_explained(self, shared: daemon.Daemon) -> None:
        for code in explanations.EXPLANATIONS:
            assert len(good(shared, f"/alerts explain {code}")) > 200
        assert "The codes are: volume-failed" in refused(shared, "/alerts explain nonsense")

    def test_an_object_is_exported_as_configuration(self, shared: daemon.Daemon, tmp_path: Path) -> None:
        assert yaml.safe_load(good(shared, "/volumes/vol0 export")) == [{"name": "vol0", "lun": 0, "size": "1MiB"}]
        good(shared, f"/volumes/vol0 export {tmp_path / 'one.yaml'}")
        assert "name: vol0" in (tmp_path / "one.yaml").read_text()
        assert "cannot be written: File exists" in refused(shared, f"/volumes/vol0 export {tmp_path / 'one.yaml'}")


class TestSnapshots:
    """The commands of snapshots."""

    def test_a_snapshot_is_created_shown_restored_and_deleted(self, served: daemon.Daemon, tmp_path: Path) -> None:
        with served.session() as session:
            session.settle(0)
            session.command(0, bytes.fromhex("2a000000000000000100"), out=b"then" * 128)
            good(served, "/volumes/vol0/snapshots create a")
            session.settle(0)
            session.command(0, bytes.fromhex("2a000000000000000100"), out=b"now!" * 128)
        snapshot = "/volumes/vol0/snapshots/a"
        assert "vol0@a" in good(served, f"{snapshot} show")
        assert "changed since" in good(served, f"{snapshot} show map=true")
        assert "4 KiB (0.4 %)" in good(served, f"{snapshot} diff")
        assert "4 KiB" in good(served, f"{snapshot} diff exact=true")
        assert "vol0@a" in good(served, f"{snapshot} verify")
        good(served, f"{snapshot} export {tmp_path / 'a.img'}")
        assert (tmp_path / "a.img").read_bytes()[:512] == b"then" * 128
        assert "exists already" in refused(served, f"{snapshot} export {tmp_path / 'a.img'}")
        good(served, f"{snapshot} export {tmp_path / 'a.img'} force=true")
        with served.session():
            assert shell(served, f"{snapshot} restore").returncode == 1
        assert "vol0 is rolled back to vol0@a" in good(served, f"{snapshot} restore")
        with served.session() as session:
            session.settle(0)
            assert session.command(0, bytes.fromhex("28000000000000000100"), read=512).data == b"then" * 128
        assert "cannot shrink" in refused(served, "/volumes/vol0 resize 512KiB")
        good(served, "/volumes/vol0 resize 3MiB")
        good(served, "saveconfig")
        assert reader.load(served.directory / "wolun.yaml").volumes[0].size == 3 << 20
        assert "vol0 has no snapshot b" in refused(served, "/volumes/vol0/snapshots delete b")
        good(served, "/volumes/vol0/snapshots delete a")
        assert "o- a" not in good(served, "/volumes/vol0/snapshots ls")


class TestScripts:
    """Scripts on standard input."""

    def test_a_script_stops_at_the_first_line_that_fails(self, served: daemon.Daemon) -> None:
        script = "# two volumes\n\n/volumes create a 1MiB\n/volumes create a 1MiB\n/volumes create b 1MiB\n"
        done = program(served, script=script)
        assert (done.returncode, done.stdout) == (1, "created volume a\n")
        assert "volumes[1] is called a already" in done.stderr
        assert "wolun: the failed line is line 4: /volumes create a 1MiB" in done.stderr
        assert [volume.name for volume in running(served).volumes] == ["vol0", "a"]

    def test_with_keep_going_a_script_continues(self, served: daemon.Daemon) -> None:
        done = program(served, "--keep-going", script="/volumes create vol0 1MiB\n/volumes create b 1MiB\n")
        assert (done.returncode, done.stdout) == (1, "created volume b\n")

    def test_cd_applies_to_later_lines(self, served: daemon.Daemon) -> None:
        done = program(
            served, script="cd /volumes\ncreate a 1MiB\ncd a/snapshots\ncreate s\nls\nexit\n/volumes create b 1MiB\n"
        )
        assert done.returncode == 0, done.stderr
        assert "o- s " in done.stdout
        assert [volume.name for volume in running(served).volumes] == ["vol0", "a"]

    def test_an_error_does_not_repeat_a_secret(self, served: daemon.Daemon) -> None:
        good(served, f"{TPG}/acls create {ANN} --yes")
        done = program(served, script=f"{TPG}/acls/{ANN} set auth userid=ann password=too-short\n")
        assert done.returncode == 1
        assert "12 to 255 bytes" in done.stderr
        assert "too-short" not in done.stderr + done.stdout

    def test_time_is_linear_in_the_number_of_luns(self, served: daemon.Daemon) -> None:
        """Count the requests to the daemon instead of time: a line costs the same, however many lines precede it."""
        counts = []
        for size in (10, 40):
            asked = client.Client(served.state)
            requests: list[str] = []
            ask = asked._ask

            def counting(method: str, path: str, request: object = None, ask=ask, requests=requests) -> object:  # type: ignore[no-untyped-def]
                requests.append(path)
                return ask(method, path, request)

            asked._ask = counting  # type: ignore[method-assign]  # to count
            here = console.Shell(asked)
            root.Root(here)
            script = [
                line
                for number in range(size)
                for line in (
                    f"/volumes create v{size}x{number} 64KiB",
                    f"/volumes/v{size}x{number}/snapshots create s",
                    f"/volumes/v{size}x{number} get attribute size",
                )
            ]
            assert here.run_lines(script, keep_going=False)
            counts.append(len(requests) / size)
        assert counts[0] == counts[1] <= 6


class TestDryRun:
    """With --dry-run the daemon checks each change and makes none."""

    @pytest.mark.parametrize(
        "command",
        [
            "/volumes create new 1MiB",
            "/volumes delete vol0",
            "/volumes/vol0 set attribute lun=7",
            "/volumes/vol0/snapshots create s",
            f"{TPG}/acls create {ANN}",
            f"{TPG} set access networks=10.0.0.0/8",
            "clearconfig",
            "restoreconfig",
            "saveconfig",
        ],
    )
    def test_a_dry_run_changes_nothing(self, shared: daemon.Daemon, command: str) -> None:
        before, text = running(shared), (shared.directory / "wolun.yaml").read_text()
        good(shared, "--dry-run", command)
        assert running(shared) == before
        assert (shared.directory / "wolun.yaml").read_text() == text
        assert shared.json("snapshot", "list") == []

    def test_a_dry_run_finds_errors(self, shared: daemon.Daemon) -> None:
        assert "not a unit of size" in refused(shared, "--dry-run", "/volumes create new 1MB")
        assert "is called vol0 already" in refused(shared, "--dry-run", "/volumes create vol0 1MiB")


class TestInUse:
    """Objects in use are not removed, and the refusal names their users."""

    @pytest.mark.parametrize(
        "change", ["acls create iqn.2026-11.org.example:other yes=true", " set access networks=10.0.0.0/8"]
    )
    def test_access_of_a_logged_in_initiator_is_not_revoked(self, served: daemon.Daemon, change: str) -> None:
        line = f"{TPG}/{change}".replace("/ ", " ")
        with served.session(initiator=ANN) as session:
            assert f"the right to log in is in use by {ANN} from 127.0.0.1" in refused(served, line)
            session.settle(0)
            good(served, f"{line} force=true")
            while served.json("status")["sessions"]:  # the portal ends it a moment later
                pass
            with pytest.raises(libiscsi.LibiscsiError):
                session.command(0, bytes(6))

    def test_first_entry_says_whom_it_locks_out(self, served: daemon.Daemon) -> None:
        before = running(served)
        for line in (f"{TPG}/acls create {ANN}", f"{TPG} set access anybody=false"):
            said = refused(served, line)
            assert "this locks others out" in said
            assert "until now any initiator from 127.0.0.0/8 may" in said
            assert "Use yes=true" in said
            assert running(served) == before
        good(served, f"{TPG}/acls create {ANN} --yes")
        log = (served.directory / "stderr").read_text()
        assert f"access changed: {ANN} may log in" in log
        assert "all other initiators from 127.0.0.0/8 are locked out" in log
        good(served, f"{TPG}/acls create {ANN}-2")  # it locks nobody out

    def test_set_guesses_what_was_meant(self, served: daemon.Daemon) -> None:
        assert "Did you mean `set attribute limit=10MiB`?" in refused(served, "/volumes/vol0 set limit=10MiB")
        assert "Did you mean `set attribute limit=10MiB`?" in refused(served, "/volumes/vol0 set limt=10MiB")
        assert "Did you mean limit?" in refused(served, "/volumes/vol0 set attribute limt=10MiB")
        assert "Did you mean attribute?" in refused(served, "/volumes/vol0 set atribute limit=10MiB")
        assert "The groups are: attribute, global" in refused(served, "/volumes/vol0 set zzz=1")
        said = refused(served, "/volumes/vol0 set attribute durability=power-lost")
        assert "'power-lost' is unknown; did you mean power-loss?" in said

    def test_all_parameters_of_access_change_or_none(self, served: daemon.Daemon) -> None:
        before = running(served)
        assert "nonsense" in refused(served, f"{TPG} set access discovery_chap=1 networks=nonsense")
        assert running(served) == before
        good(served, f"{TPG} set access discovery_chap=1 networks=127.0.0.1/32,::1/128")
        assert running(served).access.discovery_chap
        assert [str(network) for network in running(served).access.networks] == ["127.0.0.1/32", "::1/128"]

    def test_a_volume_with_a_session_is_not_deleted(self, served: daemon.Daemon) -> None:
        good(served, "/volumes create other 1MiB")
        with served.session(initiator=ANN):
            assert f"is in use by {ANN} from 127.0.0.1" in refused(served, "/volumes delete other")
            assert f"is in use by {ANN} from 127.0.0.1" in refused(served, f"{TPG} set access networks=10.0.0.0/8")
            done = shell(served, "clearconfig confirm=true")
            assert done.returncode == 1
            assert f"FAILED to remove volume other: volume other is in use by {ANN}" in done.stdout
        good(served, "/volumes delete other")

    def test_a_volume_in_use_is_deleted_by_force(self, served: daemon.Daemon) -> None:
        with served.session(initiator=ANN) as session:
            session.settle(0)
            good(served, "/volumes delete vol0 force=true")
            assert session.command(0, bytes(6)).asc == (0x25, 0)
        assert "0 volumes" in good(served, "ls /volumes")

    def test_a_mapped_volume_is_not_deleted(self, served: daemon.Daemon) -> None:
        good(served, f"{TPG}/acls create {ANN} --yes")
        good(served, f"{TPG}/acls/{ANN} create 3 vol0")
        assert f"the mapping of vol0 to {ANN} as LUN 3" in refused(served, "/volumes delete vol0")
        good(served, f"{TPG}/acls/{ANN} delete 3")
        good(served, "/volumes delete vol0")

    def test_data_is_kept_unless_data_is_true(self, served: daemon.Daemon) -> None:
        with served.session() as session:
            session.settle(0)
            session.command(0, bytes.fromhex("2a000000000000000100"), out=b"data" * 128)
        directory = served.state / "volumes" / "vol0"
        good(served, "/volumes delete vol0")
        good(served, "/volumes create vol0 lun=0 existing=adopt")
        with served.session() as session:
            session.settle(0)
            assert session.command(0, bytes.fromhex("28000000000000000100"), read=512).data == b"data" * 128
        good(served, "/volumes/vol0/snapshots create s")
        assert "is in use by snapshot s" in refused(served, "/volumes delete vol0 data=true")
        good(served, "/volumes/vol0/snapshots delete s")
        good(served, "/volumes delete vol0 data=true")
        assert not directory.exists()


class TestConfiguration:
    """The commands saveconfig, restoreconfig, clearconfig and diff."""

    def test_a_saved_configuration_is_restored(self, served: daemon.Daemon) -> None:
        (served.state / "own.secret").write_text("a secret of mine")
        script = f"""
            /volumes create a 1MiB chunk_size=4KiB durability=process-crash
            /volumes create b 2MiB lun=17 block_size=4096
            {TPG} set access networks=127.0.0.0/8,::1/128 discovery_chap=true
            {TPG}/acls create {ANN} yes=true
            {TPG}/acls/{ANN} create 0 a read_only=true
            {TPG}/acls/{ANN} set auth userid=ann password=ann-secret-0 mutual_userid=w mutual_password=wolun-secret
            {TPG}/acls create iqn.*:guest-? read_only=true
            saveconfig
            """
        done = program(served, script=script)
        assert done.returncode == 0, done.stderr
        before, tree = running(served), good(served, "ls /volumes") + good(served, f"ls {TPG}/acls")
        assert "# mine" in (served.directory / "wolun.yaml").read_text()
        assert "matches the running configuration" in good(served, "diff")
        served.stop()
        served.start(text=(served.directory / "wolun.yaml").read_text())
        assert running(served) == before
        assert good(served, "ls /volumes") + good(served, f"ls {TPG}/acls") == tree
        assert "matches the running configuration" in good(served, "diff")
        with served.session(initiator=ANN, chap=("ann", "ann-secret-0"), mutual=("w", "wolun-secret")):
            pass
        good(served, "clearconfig confirm=true")
        assert running(served).volumes == ()
        good(served, "restoreconfig")
        assert running(served) == before

    def test_a_broken_object_is_reported_and_the_others_are_served(self, served: daemon.Daemon, tmp_path: Path) -> None:
        file = tmp_path / "other.yaml"
        file.write_text(f"""
target: {daemon.IQN}
portal: {{listen: "127.0.0.1:0"}}
access:
  networks: [127.0.0.0/8]
  initiators:
    - {{name: {ANN}}}
    - {{name: "*:broken", chap: {{name: b, secret_file: nowhere}}}}
volumes:
  - {{name: vol0, lun: 0, size: 1MiB}}
  - {{name: good1, lun: 1, size: 1MiB}}
  - {{name: broken, lun: 2, size: 1MiB, primary: {tmp_path}}}
  - {{name: good2, lun: 3, size: 1MiB}}
""")
        done = shell(served, f"restoreconfig {file}")
        assert done.returncode == 1
        assert "add volume good1\n" in done.stdout
        assert "add volume good2\n" in done.stdout
        assert "FAILED to add volume broken: " in done.stdout
        assert "FAILED to admit initiator *:broken: " in done.stdout
        assert "some objects failed: volume broken, initiator *:broken" in done.stderr
        with served.session(initiator=ANN) as session:
            for lun in (0, 1, 3):
                session.settle(lun)
                assert session.command(lun, bytes(6)).status == 0
        tree = good(served, "ls")
        assert "3 alerts" in tree or "2 alerts" in tree
        assert "LUN 2, not served: " in tree

    def test_an_invalid_file_changes_nothing(self, shared: daemon.Daemon, tmp_path: Path) -> None:
        (tmp_path / "bad.yaml").write_text("target: x\nvolums: []\n")
        assert "did you mean volumes?" in refused(shared, f"restoreconfig {tmp_path / 'bad.yaml'}")
        assert "No such file" in refused(shared, f"restoreconfig {tmp_path / 'none.yaml'}")

    def test_an_invalid_file_is_not_overwritten(self, served: daemon.Daemon) -> None:
        file = served.directory / "wolun.yaml"
        file.write_text(file.read_text() + "nonsense: 1\n")
        assert "it was changed and is not valid now" in refused(served, "saveconfig")
        assert "nonsense" in file.read_text()

    def test_a_deleted_snapshot_is_not_taken_again(self, tmp_path: Path) -> None:
        volumes_ = "  - name: vol0\n    lun: 0\n    size: 1MiB\n    snapshots: [a, b]  # at start\n"
        with daemon.Daemon(tmp_path, volumes_) as served:
            good(served, "/volumes/vol0/snapshots delete a")
            good(served, "saveconfig")
            assert reader.load(tmp_path / "wolun.yaml").volumes[0].snapshots == ("b",)


class TestAttributes:
    """The commands set and get."""

    def test_lun_and_durability_of_a_volume_are_changed(self, served: daemon.Daemon) -> None:
        good(served, "/volumes/vol0 set attribute lun=9")
        good(served, "/volumes/vol0 set attribute durability=process-crash")
        good(served, "/volumes/vol0 set attribute limit=64MiB on_error=drop-snapshot")
        (volume,) = running(served).volumes
        assert (volume.lun, volume.durability.value) == (9, "process-crash")
        assert (volume.limit, volume.on_error.value) == (64 << 20, "drop-snapshot")
        assert "limit=64MiB" in good(served, "/volumes/vol0 get attribute limit")
        with served.session() as session:
            session.settle(9)
            assert session.command(9, bytes(6)).status == 0
            assert "in use" in refused(served, "/volumes/vol0 set attribute lun=0")
        assert "durability" in refused(served, "/volumes/vol0 set attribute durability=never")

    def test_an_unknown_parameter_prevents_all_changes(self, served: daemon.Daemon) -> None:
        before = running(served)
        assert "unknown parameter bogus" in refused(served, f"{TPG} set access networks=10.0.0.0/8 bogus=1")
        assert "unknown parameter bogus" in refused(served, "/volumes/vol0 set attribute limit=64MiB bogus=1")
        assert "size is read-only" in refused(served, "/volumes/vol0 set attribute limit=64MiB size=1GiB")
        assert running(served) == before

    def test_parameters_of_an_initiator_are_changed(self, served: daemon.Daemon) -> None:
        acl = f"{TPG}/acls/{ANN}"
        good(served, f"{TPG}/acls create {ANN} --yes")
        answer = good(served, f"{acl} set attribute read_only=true networks=127.0.0.1/32")
        assert "read_only is now 'true'" in answer
        assert "networks is now '127.0.0.1/32'" in answer
        (entry,) = running(served).access.initiators or ()
        assert (entry.read_only, str(entry.networks[0])) == (True, "127.0.0.1/32")
        good(served, f"{acl} set auth userid=ann password=a-long-secret")
        assert "userid=ann" in good(served, f"{acl} get auth userid")
        assert "a-long-secret" not in good(served, f"{acl} get auth") + good(served, f"{acl} export")
        assert (served.state / "secrets" / "initiators" / ANN / "initiator").stat().st_mode & 0o777 == 0o600
        assert "both directions have the same secret" in refused(
            served, f"{acl} set auth userid=ann password=same-same-same mutual_userid=w mutual_password=same-same-same"
        )
        good(served, f"{acl} set auth userid=")
        assert not (served.state / "secrets" / "initiators" / ANN).exists()
        good(served, f"{TPG}/acls delete {ANN}")
        assert running(served).access.initiators == ()
