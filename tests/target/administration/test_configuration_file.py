# SPDX-License-Identifier: Apache-2.0
"""The configuration as a whole: saving, restoring, and the report of each refused object."""

from __future__ import annotations

from pathlib import Path

import pytest

from target import messages
from target.administration.administration import Administration
from target.configuration import reader, settings
from target.service import problems
from target.service.service import Service
from tests.target.administration.conftest import IQN, TEXT
from tests.target.administration.fabric import BookFabric

ANN = "iqn.2026-11.org.example:ann"
FILE = messages.ConfigurationFile()


def restore(admin: Administration, *, force: bool = False, dry_run: bool = False) -> dict[str, str]:
    """Restore the file; return the refusal code of each attempt, empty if it was done."""
    outcomes = admin.restore(FILE, force=force, dry_run=dry_run)
    return {
        f"{outcome.action} {outcome.subject}": outcome.refusal.error if outcome.refusal else "" for outcome in outcomes
    }


def test_saved_configuration_equals_the_running_one(admin: Administration, file: Path) -> None:
    admin.create_volume(messages.CreateVolume("new", "1MiB"), dry_run=False)
    preview = admin.save(FILE, dry_run=True)
    assert "+  - name: new" in preview.changes
    assert file.read_text() == TEXT
    saved = admin.save(FILE, dry_run=False)
    assert saved.changes == preview.changes
    assert Path(saved.backup).read_text() == TEXT
    assert reader.load(file) == admin.running()
    assert restore(admin) == {}
    assert admin.save(FILE, dry_run=False).backup == ""  # nothing changed, so nothing is written


def test_file_that_is_not_valid_is_neither_saved_to_nor_restored(admin: Administration, file: Path) -> None:
    file.write_text("nonsense: 1\n")
    with pytest.raises(problems.Problem, match="it was changed and is not valid now"):
        admin.save(FILE, dry_run=False)
    with pytest.raises(problems.Problem, match="nonsense"):
        admin.restore(FILE, force=True, dry_run=False)
    assert file.read_text() == "nonsense: 1\n"


def test_path_must_be_absolute_and_readable(admin: Administration, tmp_path: Path) -> None:
    with pytest.raises(problems.Problem, match="the path is not absolute"):
        admin.save(messages.ConfigurationFile("wolun.yaml"), dry_run=False)
    with pytest.raises(problems.Problem, match="cannot be read"):
        admin.restore(messages.ConfigurationFile(str(tmp_path / "none.yaml")), force=False, dry_run=False)


def test_restore_goes_object_by_object(admin: Administration, file: Path, service: Service) -> None:
    file.write_text(
        TEXT.replace("vol1, lun: 1", "vol2, lun: 2").replace("name: vol0, lun: 0", "name: vol0, lun: 0, limit: 512KiB")
    )
    assert restore(admin) == {"remove volume vol1": "", "change volume vol0": "", "add volume vol2": ""}
    assert service.inventory.volume("vol0").space.limit == 512 << 10
    assert set(service.inventory.open_volumes) == {"vol0", "vol2"}
    assert restore(admin) == {}
    file.write_text(file.read_text() + "  - {name: vol3, lun: 1, size: 1MiB}\n")
    assert restore(admin) == {"add volume vol3": "left-behind"}  # for initiators it would be vol1, and empty
    admin.accept_volume("vol1", dry_run=False)
    assert restore(admin) == {}
    assert set(service.inventory.open_volumes) == {"vol0", "vol2", "vol3"}


def test_refused_step_does_not_stop_the_others(
    admin: Administration, file: Path, service: Service, fabric: BookFabric
) -> None:
    fabric.log_in(ANN, "127.0.0.1", IQN)
    file.write_text(TEXT.replace("  - {name: vol1, lun: 1, size: 1MiB}", "  - {name: vol2, lun: 2, size: 1MiB}"))
    assert restore(admin) == {"remove volume vol1": "in-use", "add volume vol2": ""}
    assert set(service.inventory.open_volumes) == {"vol0", "vol1", "vol2"}


def test_dry_run_changes_nothing(admin: Administration, file: Path, service: Service) -> None:
    file.write_text(TEXT.replace("vol1, lun: 1", "vol2, lun: 3"))
    before = admin.running()
    assert restore(admin, dry_run=True) == {"remove volume vol1": "", "add volume vol2": ""}
    assert admin.running() == before
    assert set(service.inventory.open_volumes) == {"vol0", "vol1"}


def test_key_that_needs_a_restart_is_refused(admin: Administration, file: Path) -> None:
    file.write_text(TEXT.replace(IQN, "iqn.2026-11.io.wolun:other"))
    assert restore(admin) == {"change target": "at-next-start"}


def test_volume_that_cannot_be_added_is_configured_and_tried_again(
    admin: Administration, file: Path, service: Service, tmp_path: Path
) -> None:
    primary = tmp_path / "later.img"
    file.write_text(f"{TEXT}  - {{name: late, lun: 5, primary: {primary}}}\n")
    assert restore(admin) == {"add volume late": "refused"}
    assert admin.volume("late").state == "failed"
    assert [alert.code for alert in admin.alerts()] == ["volume-failed"]
    primary.write_bytes(bytes(1 << 20))
    assert restore(admin) == {"change volume late": ""}
    assert admin.volume("late").state == "online"
    assert admin.alerts() == []


def test_initiator_whose_secret_is_missing_is_reported(admin: Administration, file: Path) -> None:
    file.write_text(
        TEXT.replace(
            "access:\n",
            f"access:\n  initiators:\n    - {{name: '{ANN}', chap: {{name: ann, secret_file: missing}}}}\n",
        )
    )
    assert restore(admin) == {"change access": "", f"admit initiator {ANN}": "initiator-broken"}


def test_cleared_daemon_serves_nothing_and_keeps_all_data(
    admin: Administration, service: Service, tmp_path: Path, fabric: BookFabric
) -> None:
    fabric.log_in(ANN, "127.0.0.1", IQN)
    refused = admin.clear(force=False, dry_run=False)
    assert [outcome.refusal.error for outcome in refused if outcome.refusal] == ["in-use"] * 3
    done = admin.clear(force=True, dry_run=False)
    assert not [outcome for outcome in done if outcome.refusal]
    assert service.inventory.open_volumes == {}
    assert fabric.logged_in == []
    assert {path.name for path in (tmp_path / "state" / "volumes").iterdir()} >= {"vol0", "vol1"}


def test_groups_of_volumes_change_with_the_file(admin: Administration, file: Path, service: Service) -> None:
    plain = file.read_text()
    group = "{name: g, volumes: [vol0, vol1], schedule: daily, keep: {daily: 1}}"
    file.write_text(f"{plain}groups: [{group}]\n")
    assert restore(admin) == {"change groups": ""}
    assert [found.volumes for found in service.inventory.settings.groups] == [("vol0", "vol1")]
    with pytest.raises(problems.Problem, match="in use by the group g"):
        admin.delete_volume("vol1", force=False, data=False, dry_run=False)
    changed = plain.replace("lun: 1, size: 1MiB", "lun: 7, size: 1MiB")
    file.write_text(f"{changed}groups: [{group}]\n")
    assert restore(admin) == {"change volume vol1": ""}  # it goes for a moment, and stays in its group
    assert [found.volumes for found in service.inventory.settings.groups] == [("vol0", "vol1")]
    one = "".join(line for line in plain.splitlines(keepends=True) if "vol1" not in line)
    file.write_text(one)
    assert restore(admin) == {"remove volume vol1": "", "change groups": ""}
    assert service.inventory.settings.groups == ()


def test_volume_that_is_deleted_by_force_leaves_its_group(admin: Administration, file: Path, service: Service) -> None:
    group = "{name: g, volumes: [vol0, vol1], schedule: daily, keep: {daily: 1}}"
    file.write_text(f"{file.read_text()}groups: [{group}]\n")
    restore(admin)
    admin.delete_volume("vol1", force=True, data=False, dry_run=False)
    assert [found.volumes for found in service.inventory.settings.groups] == [("vol0",)]
    admin.save(FILE, dry_run=False)
    assert [found.volumes for found in reader.load(file).groups] == [("vol0",)]
    admin.delete_volume("vol0", force=True, data=False, dry_run=False)
    assert service.inventory.settings.groups == ()


def test_limits_change_while_initiators_use_the_volume(admin: Administration, file: Path, service: Service) -> None:
    plain = file.read_text()
    nexus = service.inventory.scsi.open_nexus(ANN)
    unit = service.inventory.scsi.luns[0]
    limited = plain.replace("lun: 0, size: 1MiB", "lun: 0, size: 1MiB, rate: {iops: 5}")
    file.write_text(
        limited.replace("access:", f"access:\n  initiators: [{{name: '{ANN}', rate: {{bandwidth: 1MiB}}}}]")
    )
    assert restore(admin) == {"change access": "", "change volume vol0": ""}
    assert unit.bucket is not None
    assert nexus.bucket is not None
    assert unit.bucket.rate.iops == 5
    assert nexus.bucket.rate.bandwidth == 1 << 20
    kept = unit.bucket
    admin.change_volume("vol0", messages.ChangeVolume(write_cache=False), force=False, dry_run=False)
    assert unit.bucket is kept  # it is not filled again
    admin.change_volume("vol0", messages.ChangeVolume(rate=messages.Rate(7, None, 2.0)), force=False, dry_run=False)
    assert (unit.bucket.rate.iops, unit.bucket.rate.burst) == (7, 2.0)
    assert admin.volume("vol0").rate == messages.Rate(7, None, 2.0)
    admin.save(FILE, dry_run=False)
    assert reader.load(file).volumes[0].rate == settings.Rate(iops=7, burst=2)
    admin.change_volume("vol0", messages.ChangeVolume(unlimited=True), force=False, dry_run=False)
    assert unit.bucket is None
    file.write_text(plain)
    assert restore(admin) == {"change access": "", "change volume vol0": ""}
    assert nexus.bucket is None
