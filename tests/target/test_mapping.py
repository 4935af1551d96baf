# SPDX-License-Identifier: Apache-2.0
"""Which LUNs of snapshots initiators see: the rule of the volume, and orders about single snapshots."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import daemon, libiscsi

REPORT_LUNS = bytes.fromhex("a00000000000000010000000")


def seen(served: daemon.Daemon) -> list[int]:
    """Return the LUNs that an initiator sees, below 256."""
    with served.session() as session:
        data = session.command(0, REPORT_LUNS, read=4096).data
    length = int.from_bytes(data[:4])
    return [data[place + 1] for place in range(8, 8 + length, 8)]


def test_orders_about_a_snapshot_outlive_a_kill(tmp_path: Path) -> None:
    with daemon.Daemon(tmp_path, "  - {name: vol0, lun: 0, size: 1MiB}\n") as served:
        shown = served.json("snapshot", "create", "vol0", "a")
        hidden = served.json("snapshot", "create", "vol0", "b", "--no-map")
        assert (shown["view_lun"], hidden["view_lun"], hidden["view_url"]) == (1, None, "")
        said = served.run("snapshot", "create", "vol0", "c", "--no-map").stdout
        assert "initiators do not see it: `wolun snapshot map vol0@c` gives it a LUN" in said
        served.kill()
        served.start()
        assert seen(served) == [0, 1]
        assert "LUN 3 is vol0@b" in served.run("snapshot", "map", "vol0@b").stdout
        assert "LUN 2 is the write-once LUN of vol0@a" in served.run("snapshot", "map", "vol0@a", "--write-once").stdout
        assert seen(served) == [0, 1, 2, 3]
        served.run("snapshot", "unmap", "vol0@a")
        served.kill()
        served.start()
        assert seen(served) == [0, 2, 3]
        served.run("snapshot", "unmap", "vol0@a", "--write-once")
        assert seen(served) == [0, 3]
        assert [snapshot["view_lun"] for snapshot in served.json("snapshot", "list")] == [None, 3, None]


def test_lun_in_use_is_not_unmapped_unless_forced(tmp_path: Path) -> None:
    with daemon.Daemon(tmp_path, "  - {name: vol0, lun: 0, size: 1MiB}\n") as served, served.session() as session:
        served.run("snapshot", "create", "vol0", "a")
        session.settle(1)
        refused = served.run("snapshot", "unmap", "vol0@a", check=False)
        assert refused.returncode == 1
        assert "vol0@a is in use by" in refused.stderr
        served.run("snapshot", "unmap", "vol0@a", "--force")
        answer: libiscsi.Answer = session.command(1, bytes(6))
        assert (answer.status, answer.asc) == (2, (0x25, 0x00))  # LOGICAL UNIT NOT SUPPORTED


@pytest.mark.parametrize(
    ("rule", "luns", "after"),
    [("all", [0, 1, 3, 5], [0, 1, 3]), ("newest", [0, 5], [0, 3]), ("none", [0], [0])],
)
def test_rule_of_the_volume_decides_about_the_others(
    tmp_path: Path, rule: str, luns: list[int], after: list[int]
) -> None:
    with daemon.Daemon(tmp_path, f"  - {{name: vol0, lun: 0, size: 1MiB, map_views: {rule}}}\n") as served:
        for name in ("a", "b", "c"):
            served.run("snapshot", "create", "vol0", name)
        assert seen(served) == luns
        served.kill()
        served.start()
        assert seen(served) == luns
        served.run("snapshot", "delete", "vol0@c")
        assert seen(served) == after


def test_view_of_an_invalid_snapshot_keeps_its_lun_over_a_restart(tmp_path: Path) -> None:
    volumes = "  - {name: vol0, lun: 0, size: 1MiB, limit: 64KiB, on_error: drop-snapshot}\n"
    with daemon.Daemon(tmp_path, volumes) as served:
        with served.session() as session:
            session.settle(0)
            for fill in (b"\1", b"\2"):  # twice, so that the second turn has old data to preserve
                for chunk in range(3):
                    write = b"\x2a\0" + (chunk * 128).to_bytes(4) + b"\0\0\1\0"
                    session.settle(0)
                    assert session.command(0, write, out=fill * 512).status == 0
                if fill == b"\1":
                    lun = served.json("snapshot", "create", "vol0", "a")["view_lun"]
        served.kill()
        served.start()
        (shown,) = served.json("snapshot", "list")
        assert (shown["state"], shown["view_lun"]) == ("invalid", lun)
