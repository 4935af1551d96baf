# SPDX-License-Identifier: Apache-2.0
"""Changes of volumes: checked first, refused while the volume is used, and in force when they are applied."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest

from target import messages
from target.administration.administration import Administration
from target.service import jobs, problems
from target.service.service import Service
from tests.target.administration.conftest import IQN
from tests.target.administration.fabric import BookFabric

ANN = "iqn.2026-11.org.example:ann"


def delete(admin: Administration, name: str, *, force: bool = False, data: bool = False) -> None:
    admin.delete_volume(name, force=force, data=data, dry_run=False)


def names(admin: Administration) -> list[str]:
    return [volume.name for volume in admin.running().volumes]


def test_new_volume_gets_the_lowest_free_lun(admin: Administration, service: Service) -> None:
    service.snapshots.create_snapshot("vol0", "s")  # it has LUNs 2 and 3
    admin.create_volume(messages.CreateVolume("new", "1MiB"), dry_run=True)
    assert names(admin) == ["vol0", "vol1"]
    admin.create_volume(messages.CreateVolume("new", "1MiB"), dry_run=False)
    assert admin.volume("new").lun == 4
    admin.create_volume(messages.CreateVolume("hidden", "1MiB", hidden=True), dry_run=False)
    assert admin.volume("hidden").lun is None
    assert 5 not in service.inventory.scsi.luns


def test_volume_that_cannot_be_served_is_not_configured(admin: Administration, service: Service) -> None:
    taken = service.snapshots.create_snapshot("vol0", "s")
    with pytest.raises(problems.Problem, match="belongs to a snapshot of vol0"):
        admin.create_volume(messages.CreateVolume("new", "1MiB", lun=taken.view_lun), dry_run=False)
    with pytest.raises(problems.Problem, match="does not exist"):
        admin.create_volume(messages.CreateVolume("new", primary="/nonexistent/disk"), dry_run=False)
    assert names(admin) == ["vol0", "vol1"]
    admin.create_volume(messages.CreateVolume("new", "1MiB"), dry_run=False)  # its LUN is free again
    assert admin.volume("new").lun == 4


def test_limit_changes_while_the_volume_is_used(admin: Administration, service: Service, fabric: BookFabric) -> None:
    fabric.log_in(ANN, "127.0.0.1", IQN)
    owner = service.inventory.volume("vol0")
    admin.change_volume("vol0", messages.ChangeVolume(limit="512KiB"), force=False, dry_run=False)
    assert service.inventory.volume("vol0") is owner
    assert owner.space.limit == 512 << 10
    admin.change_volume("vol0", messages.ChangeVolume(limit=messages.NO_LIMIT), force=False, dry_run=False)
    assert owner.space.limit is None


def test_lun_changes_only_when_the_volume_is_not_used(
    admin: Administration, service: Service, fabric: BookFabric
) -> None:
    fabric.log_in(ANN, "127.0.0.1", IQN)
    change = messages.ChangeVolume(lun=7)
    with pytest.raises(problems.Problem, match="stop using it first, or use force=true"):
        admin.change_volume("vol0", change, force=False, dry_run=False)
    admin.change_volume("vol0", change, force=True, dry_run=True)
    assert 0 in service.inventory.scsi.luns
    admin.change_volume("vol0", change, force=True, dry_run=False)
    assert {0, 7} & set(service.inventory.scsi.luns) == {7}
    assert admin.volume("vol0").lun == 7


def test_lun_of_another_volume_is_refused(admin: Administration) -> None:
    with pytest.raises(problems.Problem, match="volume vol"):
        admin.change_volume("vol0", messages.ChangeVolume(lun=1), force=True, dry_run=False)
    assert admin.volume("vol0").lun == 0


def test_resized_volume_is_saved_with_its_size(admin: Administration) -> None:
    assert admin.resize_volume("vol0", 2 << 20).size == 2 << 20
    assert admin.running().volumes[0].size == 2 << 20
    with pytest.raises(problems.Problem, match="vol0 was not resized"):
        admin.resize_volume("vol0", 1 << 20)


def test_used_volume_is_not_deleted(admin: Administration, fabric: BookFabric, service: Service) -> None:
    mapped = messages.Initiator(ANN, luns=(messages.MappedLun(5, "vol0"),))
    admin.put_initiator(ANN, mapped, create=True, force=True, dry_run=False)
    fabric.log_in(ANN, "127.0.0.1", IQN)
    with pytest.raises(problems.Problem) as caught:
        delete(admin, "vol0")
    assert caught.value.message == (
        f"volume vol0 is in use by {ANN} from 127.0.0.1, the mapping of vol0 to {ANN} as LUN 5"
    )
    delete(admin, "vol1")  # the initiator does not see it
    delete(admin, "vol0", force=True)
    assert names(admin) == []
    (entry,) = admin.who().initiators or ()
    assert entry.luns == ()
    assert not service.inventory.scsi.luns


def test_volume_with_a_running_job_is_not_deleted_even_by_force(admin: Administration, service: Service) -> None:
    ending = threading.Event()

    def work(job: jobs.Job) -> None:
        ending.wait(60)

    job = service.jobs.start("export", "vol0@s", work)
    with pytest.raises(problems.Problem, match=r"in use by job 1 \(export vol0@s\): wait for it, or cancel it"):
        delete(admin, "vol0", force=True)
    ending.set()
    assert job.wait(60)
    delete(admin, "vol0")


def test_data_with_snapshots_is_deleted_only_by_force(admin: Administration, service: Service, tmp_path: Path) -> None:
    service.snapshots.create_snapshot("vol0", "s")
    directory = tmp_path / "state" / "volumes" / "vol0"
    with pytest.raises(problems.Problem, match="the data of vol0 is in use by snapshot s"):
        delete(admin, "vol0", data=True)
    assert "vol0" in service.inventory.open_volumes
    admin.delete_volume("vol0", force=True, data=True, dry_run=True)
    assert directory.exists()
    delete(admin, "vol0", force=True, data=True)
    assert not directory.exists()


def test_deleted_volume_comes_back_with_its_data(admin: Administration, service: Service) -> None:
    service.snapshots.create_snapshot("vol0", "s")
    delete(admin, "vol0")
    with pytest.raises(problems.Problem, match="there is no volume vol0"):
        service.inventory.volume("vol0")
    again = messages.CreateVolume("vol0", lun=0, size="1MiB")
    with pytest.raises(problems.Problem, match=r"an earlier volume vol0 left its data in .*: 1 MiB, 1 snapshot"):
        admin.create_volume(again, dry_run=False)
    admin.create_volume(dataclasses.replace(again, existing="adopt"), dry_run=False)
    assert [snapshot.name for snapshot in service.snapshots.list_snapshots("vol0")] == ["s"]


def test_data_of_a_deleted_volume_is_removed_when_that_is_said(admin: Administration, service: Service) -> None:
    service.snapshots.create_snapshot("vol0", "s")
    delete(admin, "vol0")
    with pytest.raises(problems.Problem, match="existing is 'maybe': write adopt or new"):
        admin.create_volume(messages.CreateVolume("vol0", "1MiB", existing="maybe"), dry_run=False)
    admin.create_volume(messages.CreateVolume("vol0", "2MiB", existing="new"), dry_run=False)
    assert list(service.snapshots.list_snapshots("vol0")) == []
    assert service.inventory.volume("vol0").device.size == 2 << 20


@pytest.mark.parametrize("change", [messages.ChangeVolume(lun=9), messages.ChangeVolume(durability="process-crash")])
def test_forced_change_keeps_the_mappings_of_the_volume(admin: Administration, change: messages.ChangeVolume) -> None:
    ann = messages.Initiator(ANN, luns=(messages.MappedLun(4, "vol0"),))
    admin.put_initiator(ANN, ann, create=True, force=True, dry_run=False)
    with pytest.raises(problems.Problem, match=f"the mapping of vol0 to {ANN} as LUN 4"):
        admin.change_volume("vol0", change, force=False, dry_run=False)
    admin.change_volume("vol0", change, force=True, dry_run=False)
    (initiator,) = admin.running().access.initiators or ()
    assert [(mapped.lun, mapped.unit) for mapped in initiator.luns or ()] == [(4, "vol0")]


def test_volume_gets_its_own_number_back(admin: Administration) -> None:
    admin.change_volume("vol0", messages.ChangeVolume(hidden=True), force=False, dry_run=False)
    admin.create_volume(messages.CreateVolume("new", "1MiB"), dry_run=False)
    assert admin.volume("new").lun == 2  # not 0, which rests
    admin.change_volume("vol0", messages.ChangeVolume(any_lun=True), force=False, dry_run=False)
    assert admin.volume("vol0").lun == 0


def test_write_cache_is_turned_off_while_the_volume_is_used(
    admin: Administration, service: Service, fabric: BookFabric
) -> None:
    fabric.log_in(ANN, "127.0.0.1", IQN)
    unit = service.inventory.scsi.luns[0]
    for on in (False, True):
        admin.change_volume("vol0", messages.ChangeVolume(write_cache=on), force=False, dry_run=False)
        assert service.inventory.scsi.luns[0] is unit
        assert (unit.write_cache, admin.volume("vol0").write_cache) == (on, on)
    admin.create_volume(messages.CreateVolume("safe", "1MiB", write_cache=False), dry_run=False)
    assert not service.inventory.scsi.luns[admin.volume("safe").lun or 0].write_cache


def test_write_once_luns_that_a_session_sees_are_withdrawn_only_by_force(
    admin: Administration, service: Service, fabric: BookFabric
) -> None:
    taken = service.snapshots.create_snapshot("vol0", "s")
    fabric.log_in(ANN, "127.0.0.1", IQN)
    on, off = (messages.ChangeVolume(map_write_once=mapped) for mapped in ("read-write", "none"))
    admin.change_volume("vol0", on, force=False, dry_run=False)
    assert set(service.inventory.scsi.luns) == {0, 1, 2, 3}
    with pytest.raises(problems.Problem, match=f"the write-once LUN of a snapshot of vol0 is in use by {ANN}"):
        admin.change_volume("vol0", off, force=False, dry_run=False)
    assert admin.volume("vol0").map_write_once == "read-write"
    admin.change_volume("vol0", off, force=True, dry_run=False)
    assert set(service.inventory.scsi.luns) == {0, 1, taken.view_lun}
    with pytest.raises(problems.Problem, match="map_write_once"):
        admin.change_volume("vol0", messages.ChangeVolume(map_write_once="perhaps"), force=True, dry_run=False)
