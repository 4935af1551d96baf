# SPDX-License-Identifier: Apache-2.0
"""A volume that the configuration no longer names is an alert, and no empty disk takes its place."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from target.service import left_behind, lun_numbers, problems
from target.service.service import Service
from tests.target.service.conftest import Serve
from tests.target.service.test_alerts import current

DB = "  - {name: db, lun: 0, size: 1MiB}\n"
OTHER = "  - {name: other, lun: 5, size: 1MiB}\n"
RENAMED = DB.replace("db", "database")


def served(service: Service) -> list[str]:
    return sorted(service.inventory.open_volumes)


def with_snapshot(serve: Serve, volumes: str = DB) -> None:
    service = serve(volumes)
    service.snapshots.create_snapshot("db", "s")
    service.inventory.volume("db").device.writev(0, [memoryview(b"A" * 512)])


def test_volume_taken_out_of_the_configuration_is_an_alert(serve: Serve) -> None:
    with_snapshot(serve)
    service = serve(OTHER)
    alert = current(service)["volume-left-behind"]
    assert alert.subject == "db"
    assert served(service) == ["other"]
    assert current(serve(DB + OTHER)) == {}


def test_renamed_volume_is_no_empty_disk_and_comes_up_when_it_is_relocated(serve: Serve) -> None:
    with_snapshot(serve)
    service = serve(RENAMED)
    inventory = service.inventory
    assert served(service) == []
    assert inventory.undecided == {"database"}
    assert "run `wolun volume relocate database --from db`" in inventory.failed["database"]
    assert set(current(service)) == {"volume-failed", "volume-left-behind"}
    inventory.relocate_volume(inventory.settings.volumes[0], "db", force=False)
    assert current(service) == {}
    owner, snapshot = inventory.find("database", "s")
    assert (owner.name, snapshot.doubt) == ("database", "")
    assert {numbers.volume for numbers in inventory._numbers.all().values()} == {"database"}
    data = bytearray(512)
    owner.device.readv(0, [memoryview(data)])
    assert data == b"A" * 512
    assert served(serve(RENAMED)) == ["database"]


def test_new_volume_does_not_get_the_lun_or_the_primary_of_one_left_behind(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    given = f"  - {{name: db, lun: 0, primary: {tmp_path / 'disk'}}}\n"
    with_snapshot(serve, given)
    service = serve(given.replace("db", "database").replace("lun: 0", "lun: 7"))
    assert "it is the primary of volume db, whose snapshots need it" in service.inventory.failed["database"]
    service = serve(OTHER)
    assert service.inventory.lowest_free_lun("new") == 3
    volume = service.inventory.settings.volumes[0].model_copy(update={"name": "new", "lun": 0})
    with pytest.raises(problems.Problem, match="LUN 0 was that of volume db") as caught:
        service.inventory.add_volume(volume)
    assert caught.value.code == "left-behind"
    assert service.inventory.lowest_free_lun("new") == 3
    (left,) = service.inventory.unconfigured()
    service.inventory.set_aside(left)
    assert current(service) == {}
    assert service.inventory.lowest_free_lun("new") == 0
    service.inventory.add_volume(volume)
    assert served(service) == ["new", "other"]


def test_volume_with_an_unreadable_manifest_is_an_alert_too(serve: Serve, tmp_path: Path) -> None:
    serve(DB)
    service = serve(OTHER)
    (tmp_path / "state" / "volumes" / "db" / "volume.json").write_text("{")
    assert current(service)["volume-left-behind"].subject == "db"


def test_directory_renamed_by_hand_is_taken_up(serve: Serve, tmp_path: Path) -> None:
    with_snapshot(serve)
    serve(OTHER)
    directory = tmp_path / "state" / "volumes"
    (directory / "db").rename(directory / "database")
    service = serve(RENAMED + OTHER)
    assert service.inventory.find("database", "s")[1].doubt == ""
    assert current(service) == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "is damaged"), ('{"format": 2, "colours": []}', "made by a newer wolun: it has format 2")],
)
def test_file_that_cannot_be_read_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "volumes.json").write_text(text)
    with pytest.raises(lun_numbers.Damaged, match=reason):
        left_behind.LeftBehind(tmp_path)


def test_file_is_read_back(tmp_path: Path) -> None:
    first, second = uuid.uuid4(), uuid.uuid4()
    made = left_behind.LeftBehind(tmp_path)
    made.serve(first, 3)
    made.serve(second, None)
    made.set_aside(second)
    assert left_behind.LeftBehind(tmp_path)._file == made._file
    made.forget(first)
    made.serve(second, None)
    assert left_behind.LeftBehind(tmp_path)._file == left_behind._File()
