# SPDX-License-Identifier: Apache-2.0
"""The settings in force: checked before they are entered, and shown as the system is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import target
from target.administration.in_force import InForce, checked, volume_of
from target.configuration import reader, settings
from target.service import problems
from target.service.service import Service


@pytest.fixture
def in_force(service: Service, file: Path) -> InForce:
    return InForce(service.inventory, reader.load(file))


def test_only_in_force_enters_settings() -> None:
    callers = {
        path.name
        for path in Path(target.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "put_settings"
    }
    assert callers == {"in_force.py"}


def test_settings_that_a_file_could_not_have_are_refused(in_force: InForce) -> None:
    before = in_force.settings
    twin = settings.Volume(name="vol2", lun=0, size=1 << 20)
    with pytest.raises(problems.Problem, match="volume vol2, lun: ") as caught:
        in_force.with_volume(twin)
    assert caught.value.status == 422
    assert in_force.settings is before


def test_problem_of_an_initiator_names_the_initiator(in_force: InForce) -> None:
    twice = tuple(settings.Initiator(name="iqn.2026-11.x:a") for _ in range(2))
    with pytest.raises(problems.Problem, match=r"initiator iqn\.2026-11\.x:a"):
        in_force.with_access(in_force.settings.access.model_copy(update={"initiators": twice}))


def test_volume_is_replaced_by_name(in_force: InForce) -> None:
    changed = in_force.volume("vol0").model_copy(update={"limit": 1 << 19})
    assert in_force.with_volume_changed(changed).volumes[0].limit == 1 << 19
    assert in_force.volume("vol0").limit is None  # only checked so far
    in_force.put_volume(changed)
    assert in_force.volume("vol0").limit == 1 << 19
    assert [volume.name for volume in in_force.settings.volumes] == ["vol0", "vol1"]


def test_volume_goes_with_its_mappings_only_if_asked(in_force: InForce) -> None:
    luns = tuple(
        settings.MappedLun(lun=lun, unit=unit)
        for lun, unit in enumerate(["vol0", "vol0@s", "vol1", "vol0@s/write-once"])
    )
    initiators = (settings.Initiator(name="iqn.2026-11.x:a", luns=luns), settings.Initiator(name="iqn.2026-11.x:b"))
    in_force.put(in_force.with_access(in_force.settings.access.model_copy(update={"initiators": initiators})))
    kept = in_force.without_volume("vol0", mappings=False)
    assert [volume.name for volume in kept.volumes] == ["vol1"]
    assert kept.access.initiators == initiators
    first, second = in_force.without_volume("vol0", mappings=True).access.initiators or ()
    assert [mapped.unit for mapped in first.luns or ()] == ["vol1"]
    assert second.luns is None  # it sees all LUNs, not none


def test_running_settings_have_the_present_size_and_no_deleted_snapshot(tmp_path: Path) -> None:
    text = "target: iqn.2026-11.io.wolun:t\nvolumes:\n  - {name: vol0, lun: 0, size: 1MiB, snapshots: [a, b]}\n"
    parsed = reader.parse(text, "f.yaml")
    service = Service(parsed, tmp_path / "state")
    in_force = InForce(service.inventory, parsed)
    service.snapshots.delete_snapshot("vol0", "a").wait()
    service.reshaping.resize("vol0", 2 << 20)
    (volume,) = in_force.running().volumes
    assert (volume.size, volume.snapshots) == (2 << 20, ("b",))
    service.stop()
    service.close()


def test_addresses_on_file_stay_apart_from_those_in_force(in_force: InForce) -> None:
    in_force.put_listening(("127.0.0.1:4000",), ("127.0.0.1:0",))
    assert in_force.settings.portal.listen == ("127.0.0.1:4000",)
    assert in_force.running().portal.listen == ("127.0.0.1:0",)


def test_the_volume_of_a_unit_is_the_part_before_the_snapshot(in_force: InForce) -> None:
    assert [volume_of(unit) for unit in ("vol0", "vol0@s", "vol0@s/write-once")] == ["vol0"] * 3
    assert checked(in_force.settings) is in_force.settings
    with pytest.raises(problems.Problem, match="there is no entry for initiator x"):
        in_force.initiator("x")
