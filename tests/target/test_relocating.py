# SPDX-License-Identifier: Apache-2.0
"""Volumes that were renamed or moved, as an administrator meets them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests import daemon
from tests.target.shell import shelling

VOLUMES = "  - {name: db, lun: 0, size: 1MiB}\n"


def refusal(served: daemon.Daemon, *words: str) -> str:
    done = served.run(*words, check=False)
    assert done.returncode == 1, done.stdout
    return done.stderr


def state_of(served: daemon.Daemon) -> str:
    return str(served.json("snapshot", "list")[0]["state"])


def test_renamed_volume_waits_for_a_decision(tmp_path: Path) -> None:
    with daemon.Daemon(tmp_path, VOLUMES) as served:
        served.run("snapshot", "create", "db", "s")
        served.stop()
        served.volumes = VOLUMES.replace("db", "database")
        served.start()  # although no volume is served: the administrator needs it for the decision
        assert {alert["code"] for alert in served.json("status")["alerts"]} == {"volume-failed", "volume-left-behind"}
        assert "there is no volume old" in refusal(served, "volume", "relocate", "database", "--from", "old")
        assert "not done: relocated database" in shelling.good(
            served, "--dry-run", "/volumes", "relocate", "database", "old=db"
        )
        said = served.run("volume", "relocate", "database", "--from", "db").stdout
        assert said.startswith("database is served as LUN 0 from ")
        assert served.json("status")["alerts"] == []
        assert state_of(served) == "active"
        served.stop()
        served.volumes = "  - {name: new, lun: 0, size: 1MiB}\n"
        served.start()
        assert "leave it aside" in served.json("status")["alerts"][1]["remedy"]
        assert "left aside" in shelling.good(served, "/volumes", "accept", "database")
        assert served.json("status")["alerts"] == []
        assert served.json("status")["volumes"][0]["state"] == "online"  # it waited for that
        shelling.good(served, "/volumes", "delete", "new")
        assert served.json("status")["alerts"] == []  # a volume that is deleted knowingly is none


def test_primary_in_another_place_is_taken_up_if_it_is_the_same(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    with daemon.Daemon(tmp_path, f"  - {{name: db, lun: 0, primary: {disk}}}\n") as served:
        served.run("snapshot", "create", "db", "s")
        link = tmp_path / "by-id"
        link.symlink_to(disk)
        assert "another file or disk" in refusal(served, "volume", "relocate", "db", "--primary", "/dev/null")
        assert f"from {link}" in served.run("volume", "relocate", "db", "--primary", str(link)).stdout
        assert f"primary: {link}" in shelling.good(served, "/volumes/db", "export")
        served.stop()
        served.volumes = f"  - {{name: db, lun: 0, primary: {link}}}\n"
        served.start()
        assert state_of(served) == "active"
        served.stop()
        copy = tmp_path / "copy"
        subprocess.run(["cp", "-a", disk, copy], check=True)  # as good as the original
        served.volumes = f"  - {{name: db, lun: 0, primary: {copy}}}\n"
        served.start()
        assert state_of(served) == "active"
        served.stop()
        subprocess.run(["cp", copy, disk], check=True)  # without its mark: nothing tells
        served.volumes = f"  - {{name: db, lun: 0, primary: {disk}}}\n"
        served.start()
        said = refusal(served, "volume", "relocate", "db")
        assert f"made with primary {copy}, but the configuration says {disk}, and that" in said
        assert "--force" in said
        said = served.run("volume", "relocate", "db", "--force").stdout
        assert "its snapshots are doubtful: its primary was moved from" in said
        assert state_of(served) == "doubtful"


def test_state_directory_moves_with_a_primary_in_it(tmp_path: Path) -> None:
    served = daemon.Daemon(tmp_path, "  - {name: db, lun: 0, size: 1MiB, primary: data.img}\n").start()
    served.run("snapshot", "create", "db", "s")
    served.stop()
    served.state.rename(tmp_path / "elsewhere")
    served.state = tmp_path / "elsewhere"
    with served:
        assert state_of(served) == "active"
    subprocess.run(["cp", "-a", served.state, tmp_path / "copy"], check=True)
    served.state = tmp_path / "copy"  # the old one is still there
    with served:
        assert state_of(served) == "active"
        assert served.json("status")["volumes"][0]["primary"] == str(tmp_path / "copy" / "data.img")
