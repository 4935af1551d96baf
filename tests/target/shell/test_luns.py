# SPDX-License-Identifier: Apache-2.0
"""The shell's LUNs, changes of volumes in use, and the options and remedies of command lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import daemon, libiscsi
from tests.target.shell.shelling import good, program, refused, running

VOLUMES = "  - {name: vol0, lun: 0, size: 1MiB}\n"
LUNS = f"/iscsi/{daemon.IQN}/tpg1/luns"
ANN = "iqn.2026-11.org.example:ann"


def write(chunk: int) -> bytes:
    """Return the CDB of WRITE (10) of the first block of a 64 KiB chunk."""
    return bytes.fromhex("2a00") + (chunk * 128).to_bytes(4) + bytes.fromhex("00000100")


def luns(session: libiscsi.Session) -> list[int]:
    """Return the LUNs in the answer to REPORT LUNS."""
    data = session.command(0, bytes.fromhex("a00000000000000010000000"), read=4096).data
    return [int.from_bytes(data[place : place + 2]) for place in range(8, len(data), 8)]


class TestLuns:
    """The commands luns create and delete."""

    def test_a_volume_without_a_lun_is_hidden_from_initiators(self, served: daemon.Daemon) -> None:
        good(served, "/volumes create hidden 1MiB lun=none")
        assert "no LUN, 1 MiB" in good(served, "ls /volumes")
        with served.session() as session:
            assert luns(session) == [0]
        assert "hidden is LUN 1" in good(served, f"{LUNS} create hidden")
        with served.session() as session:
            assert luns(session) == [0, 1]
            session.settle(1)
            session.command(1, write(0), out=b"data" * 128)
        assert "hidden is already LUN 1" in refused(served, f"{LUNS} create hidden lun=3")

        good(served, "/volumes/hidden/snapshots create s")
        assert "hidden has no LUN" in good(served, f"{LUNS} delete lun1")
        with served.session() as session:
            assert luns(session) == [0, 2]  # the LUN of the snapshot stays
        good(served, f"{LUNS} create /volumes/hidden lun=7")
        with served.session() as session:
            session.settle(7)
            assert session.command(7, bytes.fromhex("28000000000000000100"), read=512).data == b"data" * 128

    def test_a_lun_in_use_is_removed_only_by_force(self, served: daemon.Daemon) -> None:
        with served.session(initiator=ANN):
            assert f"volume vol0 is in use by {ANN} from 127.0.0.1" in refused(served, f"{LUNS} delete 0")
            good(served, f"{LUNS} delete 0 --force")
        assert "there is no LUN 0" in refused(served, f"{LUNS} delete 0")
        good(served, "/volumes/vol0/snapshots create s")
        assert "LUN 1 is vol0@s, which always has a LUN" in refused(served, f"{LUNS} delete 1")  # LUN 0 rests

    def test_luns_are_saved_and_restored(self, served: daemon.Daemon) -> None:
        good(served, f"{LUNS} delete 0")
        good(served, f"/iscsi/{daemon.IQN}/tpg1/acls create {ANN} yes=true")
        good(served, "/volumes create other 1MiB lun=4")
        good(served, f"/iscsi/{daemon.IQN}/tpg1/acls/{ANN} create 3 other")
        assert f"{ANN} as LUN 3" in good(served, f"{LUNS}/lun4 info")
        good(served, "saveconfig")
        assert "lun: none" in (served.directory / "wolun.yaml").read_text()
        before = running(served)
        served.stop()
        served.start(text=(served.directory / "wolun.yaml").read_text())
        assert running(served) == before
        assert "no LUN" in good(served, "ls /volumes")
        assert served.json("status")["volumes"][0]["lun"] is None


class TestWhileInUse:
    """Changes of a volume that do not remove it from its initiators."""

    def test_a_limit_can_be_raised_after_it_was_reached(self, served: daemon.Daemon) -> None:
        good(served, "/volumes/vol0 set attribute limit=64KiB")
        with served.session() as session:
            session.settle(0)
            for chunk in range(3):  # old data that takes space
                assert session.command(0, write(chunk), out=b"\1" * 512).status == 0
            good(served, "/volumes/vol0/snapshots create s")

            def overwrite(chunk: int) -> tuple[int, tuple[int, int]]:
                session.settle(0)  # it is notified of snapshots, and of low space
                answer = session.command(0, write(chunk), out=bytes(512))
                return answer.status, answer.asc if answer.status else (0, 0)

            assert overwrite(0) == (0, (0, 0))
            assert overwrite(1) == (2, (0x27, 7))
            assert "limit of vol0 is 128KiB" in good(served, "/volumes/vol0 set attribute limit=128KiB")
            assert overwrite(1) == (0, (0, 0))
            assert overwrite(2) == (2, (0x27, 7))
            good(served, "/volumes/vol0 set attribute on_error=drop-snapshot")
            assert overwrite(2) == (0, (0, 0))
        assert "invalid" in good(served, "ls /volumes/vol0")
        assert "limit of vol0 is none" in good(served, "/volumes/vol0 set attribute limit=none")
        assert running(served).volumes[0].limit is None

    def test_restoreconfig_changes_a_limit_without_removing_the_volume(self, served: daemon.Daemon) -> None:
        file = served.directory / "wolun.yaml"
        file.write_text(file.read_text().replace("1MiB}", "1MiB, limit: 64KiB, max_snapshots: 1}"))
        with served.session() as session:
            session.settle(0)
            assert "change volume vol0" in good(served, "restoreconfig")
            assert session.command(0, bytes(6)).status == 0
        good(served, "/volumes/vol0/snapshots create a")
        assert "as many as are allowed" in refused(served, "/volumes/vol0/snapshots create b")

    def test_changes_that_remove_the_volume_need_force(self, served: daemon.Daemon) -> None:
        with served.session(initiator=ANN) as session:
            session.settle(0)
            assert f"in use by {ANN}" in refused(served, "/volumes/vol0 set attribute lun=4 limit=64KiB")
            assert running(served).volumes[0].limit is None  # all parameters change, or none
            assert "lun of vol0 is 4" in good(served, "/volumes/vol0 set attribute lun=4 force=true")
            assert session.command(0, bytes(6)).asc == (0x25, 0)


class TestLines:
    """Options, and the remedies for incorrect lines."""

    def test_dry_run_applies_to_its_line(self, served: daemon.Daemon, tmp_path: Path) -> None:
        script = (
            f"/volumes create a 1MiB --dry-run\nsaveconfig {tmp_path / 'x.yaml'} --dry-run\n/volumes create b 1MiB\n"
        )
        done = program(served, script=script)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("checked, not done: created volume a\n---")
        assert [volume.name for volume in running(served).volumes] == ["vol0", "b"]
        assert not (tmp_path / "x.yaml").exists()

    def test_options_are_another_form_of_parameters(self, shared: daemon.Daemon) -> None:
        assert "volume a" in good(shared, "/volumes create --size=1MiB --chunk-size=4KiB --name=a --dry-run")
        assert "3KiB is not a chunk size" in refused(shared, "/volumes create --size=1MiB --chunk-size=3KiB --name=a")
        assert "unexpected keyword parameter 'frce'" in refused(shared, "/volumes delete vol0 --frce")

    def test_an_error_names_its_object(self, shared: daemon.Daemon) -> None:
        assert "volume new, size: 10B is not a whole number of blocks" in refused(shared, "/volumes create new 10")

    @pytest.mark.parametrize(
        ("line", "remedy"),
        [
            ("/volumes creat a 1MiB", "Did you mean create? `help` lists"),
            ("/volumes create a 1MiB durabilty=power-loss", "Did you mean durability? write `create name [size]"),
            ("/volumes create", "Write `create name [size] [lun]"),
            ("/volumes/vol0 set attribute nothing=1", "`set attribute` lists"),
            ("/volumes/vol0 get nothing", "`get` lists"),
            ("cd /nowhere", "`ls` lists the existing nodes"),
            ("help nothing", "`help` lists"),
            ("@nowhere ls", "`ls` lists the existing nodes"),
            ("/jobs cancel 5", "`ls /jobs` lists them"),
            ("/backstores/block create a /dev/sda", "Use /volumes, which takes the place of /backstores in targetcli"),
            ("/volumes/vol0/snapshots delete a/b", "No name has a slash in it"),
        ],
    )
    def test_each_incorrect_line_has_a_remedy(self, shared: daemon.Daemon, line: str, remedy: str) -> None:
        assert remedy in refused(shared, line).partition("\n")[2]
