# SPDX-License-Identifier: Apache-2.0
"""A volume is opened only with the geometry and the primary that it was made with."""

from __future__ import annotations

from pathlib import Path

import pytest

from lun_backends.durability import Durability
from lun_backends.volumes import policy
from target.configuration import settings
from target.service import problems, volumes

SIZE = 1 << 20


def configured(**keys: object) -> settings.Volume:
    return settings.Volume.model_validate({"name": "vol0", "lun": 0, "size": SIZE, **keys})


def make(state: Path, **keys: object) -> None:
    volumes.open_volume(configured(**keys), state).close()


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"block_size": 4096}, "vol0 was made with block_size 512, but the configuration says 4096"),
        ({"chunk_size": "4KiB"}, "vol0 was made with chunk_size 64KiB, but the configuration says 4KiB"),
        ({"primary": "other.img"}, "vol0 was made with primary "),
    ],
)
def test_other_geometry_is_refused(tmp_path: Path, keys: dict[str, object], text: str) -> None:
    make(tmp_path)
    with pytest.raises(problems.Problem, match=text) as caught:
        make(tmp_path, **keys)
    assert caught.value.code == "differs"
    make(tmp_path)  # the volume did not change


def test_size_of_the_volume_wins_over_the_configuration(tmp_path: Path) -> None:
    make(tmp_path)
    opened = volumes.open_volume(configured(size=2 * SIZE), tmp_path)
    assert opened.device.size == SIZE
    opened.close()


def test_durability_may_change(tmp_path: Path) -> None:
    make(tmp_path)
    make(tmp_path, durability="process-crash")
    opened = volumes.open_volume(configured(durability="process-crash"), tmp_path)
    assert opened.durability is Durability.PROCESS_CRASH
    opened.close()


def test_a_change_between_map_and_log_is_for_later_snapshots(tmp_path: Path) -> None:
    make(tmp_path)
    for number, kind in enumerate(("map", "log", "log", "map"), 1):
        opened = volumes.open_volume(configured(store=kind), tmp_path)
        opened.create_snapshot(kind + str(number))
        for offset in range(0, SIZE, 65536):
            opened.device.writev(offset, [memoryview(bytes([number]) * 4096)])
        opened.close()
    opened = volumes.open_volume(configured(store="map"), tmp_path)
    kept = opened.directory / "snapshots"
    assert sorted(path.suffix for path in kept.iterdir()) == [".chunks"] * 2 + [".log"] * 2 + [".map"] * 4
    for name in ("log2", "map1", "map4"):
        opened.delete_snapshot(name)
    (snapshot,) = opened.snapshots
    data = bytearray(4096)
    for offset in range(0, SIZE, 65536):
        snapshot.view.readv(offset, [memoryview(data)])
        assert data == bytes([2]) * 4096
    opened.close()
    with pytest.raises(problems.Problem, match="vol0 was made with store map"):
        volumes.open_volume(configured(store="sparse"), tmp_path)


def test_default_primary_moves_with_the_state_directory(tmp_path: Path) -> None:
    make(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    opened = volumes.open_volume(configured(), tmp_path / "new")
    assert opened.primary.path == tmp_path / "new" / "volumes" / "vol0" / "primary.img"
    opened.close()


def test_new_volume_needs_a_size_or_a_primary(tmp_path: Path) -> None:
    with pytest.raises(problems.Problem, match="a new volume needs a size: add `size` to vol0"):
        make(tmp_path, size=None)
    (tmp_path / "disk.img").write_bytes(bytes(SIZE))
    make(tmp_path, size=None, primary="disk.img")


def test_rules_come_from_the_configuration(tmp_path: Path) -> None:
    keys = {"limit": "512KiB", "warn_at": 50, "on_error": "drop-snapshot", "copy_timeout": 3, "max_snapshots": 4}
    assert volumes.rules(configured(**keys)) == policy.Policy(policy.OnError.DROP_SNAPSHOT, 512 << 10, 50, 3.0, 4)


def test_primary_is_named_from_the_state_directory(tmp_path: Path) -> None:
    assert volumes.primary_path(configured(primary="../x.img"), tmp_path / "state") == tmp_path / "x.img"
    assert volumes.primary_path(configured(primary="/dev/disk/by-id/a"), tmp_path) == Path("/dev/disk/by-id/a")
