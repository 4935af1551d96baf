# SPDX-License-Identifier: Apache-2.0
"""The inventory: volumes and snapshots have LUNs as long as they exist, and the same ones after a restart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lun_backends.volumes import errors
from target.configuration import settings
from target.scsi import logical_unit
from target.scsi.nexus import Nexus
from target.scsi.task import Task
from target.service import problems
from target.service.service import Service
from tests.target.administration.fabric import BookFabric
from tests.target.service.conftest import IQN, VOLUMES, Serve

ANN = "iqn.2026-11.org.example:ann"


def luns(service: Service) -> dict[int, str]:
    return {number: unit.name for number, unit in service.inventory.scsi.luns.items()}


def test_luns_are_the_same_after_a_restart(serve: Serve) -> None:
    service = serve()
    for name in ("a", "b"):
        service.snapshots.create_snapshot("vol0", name)
    service.snapshots.delete_snapshot("vol0", "a").wait()
    before = luns(service)
    assert before == {0: "vol0", 1: "vol1", 4: "vol0@b"}
    assert luns(serve()) == before


def test_numbers_of_a_deletion_that_a_crash_interrupted_are_freed_at_start(serve: Serve, tmp_path: Path) -> None:
    service = serve()
    service.snapshots.create_snapshot("vol0", "a")
    service.inventory.volume("vol0").delete_snapshot("a")  # only that: the numbers are still allotted
    path = tmp_path / "state" / "luns.json"
    assert len(json.loads(path.read_text())["snapshots"]) == 1
    again = serve()
    assert json.loads(path.read_text())["snapshots"] == {}
    assert again.snapshots.create_snapshot("vol0", "b").view_lun == 4  # those of `a` rest


def test_numbers_of_a_volume_that_is_not_served_are_kept(serve: Serve, tmp_path: Path) -> None:
    taken = serve().snapshots.create_snapshot("vol0", "a")
    primary = tmp_path / "state" / "volumes" / "vol0" / "primary.img"
    primary.rename(primary.with_suffix(".away"))
    service = serve()
    assert set(service.inventory.open_volumes) == {"vol1"}
    primary.with_suffix(".away").rename(primary)
    assert taken.view_lun in luns(serve())


def test_volume_may_not_have_the_lun_of_a_snapshot(serve: Serve) -> None:
    taken = serve().snapshots.create_snapshot("vol0", "a")
    service = serve(f"{VOLUMES}  - {{name: vol2, lun: {taken.view_lun}, size: 1MiB}}\n")
    assert service.inventory.failed == {
        "vol2": f"LUN {taken.view_lun} belongs to a snapshot of vol0: "
        "choose another number for the volume, or delete the snapshot first"
    }


def test_configured_snapshots_are_taken_once(serve: Serve) -> None:
    volumes = "  - {name: vol0, lun: 0, size: 1MiB, snapshots: [first]}\n"
    identities = [serve(volumes).inventory.find("vol0", "first")[1].uuid for _ in range(2)]
    assert identities[0] == identities[1]


def test_interrupted_deletion_is_finished_at_start(serve: Serve) -> None:
    service = serve()
    service.snapshots.create_snapshot("vol0", "a")
    owner = service.inventory.volume("vol0")
    owner.device.writev(0, [memoryview(bytes([7]) * 512)])
    service.snapshots.create_snapshot("vol0", "b")
    owner.device.writev(0, [memoryview(bytes([8]) * 512)])
    with pytest.raises(errors.DeletionStopped):
        owner.delete_snapshot("b", cancelled=lambda: True)
    again = serve()
    for job in again.jobs.all():
        assert job.wait(60)
    assert [snapshot.name for snapshot in again.inventory.volume("vol0").snapshots] == ["a"]
    assert luns(again) == {0: "vol0", 1: "vol1", 2: "vol0@a"}


def test_removed_volume_loses_its_luns_and_can_be_added_again(service: Service) -> None:
    service.snapshots.create_snapshot("vol0", "a")
    before = luns(service)
    configured = service.inventory.settings.volumes[0]
    service.inventory.remove_volume(configured)
    assert luns(service) == {1: "vol1"}
    service.inventory.add_volume(configured)
    assert luns(service) == before


def test_volume_that_cannot_be_added_leaves_its_number_free(service: Service) -> None:
    broken = settings.Volume(name="vol2", lun=2, primary=Path("/nonexistent/disk"))
    with pytest.raises(problems.Problem, match="does not exist"):
        service.inventory.add_volume(broken)
    assert service.snapshots.create_snapshot("vol0", "a").view_lun == 2


def test_users_are_the_sessions_that_see_the_unit(service: Service) -> None:
    fabric = BookFabric("127.0.0.1:3260")
    service.fabric_started(fabric)
    fabric.log_in(ANN, "127.0.0.1", IQN)
    fabric.log_in("iqn.2026-11.x:finding", "127.0.0.1", None)

    def named(name: str) -> list[str]:
        def matches(unit: logical_unit.LogicalUnit) -> bool:
            return unit.name == name

        return service.inventory.users(matches)

    assert named("vol0") == [f"{ANN} from 127.0.0.1"]
    assert named("vol7") == []


def test_stopping_service_refuses_changes(service: Service) -> None:
    service.inventory.stop()
    configured = service.inventory.settings.volumes[0]
    with pytest.raises(problems.Problem, match="the daemon is stopping"):
        service.inventory.remove_volume(configured)
    with pytest.raises(problems.Problem, match="the daemon is stopping"):
        service.snapshots.create_snapshot("vol0", "late")
    assert luns(service) == {0: "vol0", 1: "vol1"}


def test_unknown_and_failed_volumes_have_refusals_of_their_own(service: Service) -> None:
    with pytest.raises(problems.Problem, match="there is no volume vol") as unknown:
        service.inventory.volume("vol2")
    service.inventory.mark_failed("vol2", "no disk")
    with pytest.raises(problems.Problem, match="volume vol2 is not served: no disk") as failed:
        service.inventory.volume("vol2")
    assert (unknown.value.code, failed.value.code) == ("no-such-volume", "volume-failed")
    with pytest.raises(problems.Problem, match="vol0 has no snapshot a"):
        service.inventory.find("vol0", "a")


def write_protected(service: Service) -> dict[int, bool]:
    """Return for each write-once LUN that is mapped whether it refuses writes."""
    luns = service.inventory.scsi.luns.items()
    return {number: unit.write_protected for number, unit in luns if unit.kind is logical_unit.UnitKind.WRITE_ONCE}


def test_write_once_luns_are_mapped_only_where_the_volume_says_so(serve: Serve) -> None:
    volumes = "".join(
        f"  - {{name: {name}, lun: {lun}, size: 1MiB, map_write_once: {mapped}}}\n"
        for lun, (name, mapped) in enumerate((("vol0", "none"), ("vol1", "read-only"), ("vol2", "read-write")))
    )
    service = serve(volumes)
    taken = [service.snapshots.create_snapshot(f"vol{number}", "s") for number in range(3)]
    assert [snapshot.write_once_lun for snapshot in taken] == [None, 6, 8]
    assert write_protected(service) == {6: True, 8: False}
    assert write_protected(serve(volumes)) == {6: True, 8: False}


def test_write_once_luns_come_and_go_under_their_numbers_while_the_volume_is_used(service: Service) -> None:
    first = service.snapshots.create_snapshot("vol0", "a")
    nexus = service.inventory.scsi.open_nexus(ANN)
    for mapped, expected in (
        (settings.MapWriteOnce.READ_WRITE, {3: False}),
        (settings.MapWriteOnce.READ_ONLY, {3: True}),
        (settings.MapWriteOnce.NONE, {}),
    ):
        service.inventory.map_write_once("vol0", mapped)
        assert write_protected(service) == expected
        assert {0, first.view_lun} <= set(nexus.seen())
    service.inventory.map_write_once("vol0", settings.MapWriteOnce.READ_ONLY)
    assert service.snapshots.show_snapshot("vol0", "a").write_once_lun == 3
    assert service.snapshots.create_snapshot("vol0", "b").write_once_lun == 5


def test_number_of_a_volume_is_not_given_to_another_one_while_a_session_knows_it(service: Service) -> None:
    nexus = service.inventory.scsi.open_nexus(ANN)
    nexus.begins()
    execute(nexus, 1)
    before, other = service.inventory.settings.volumes[1], settings.Volume(name="vol2", lun=1, size=1 << 20)
    service.inventory.remove_volume(before)
    assert service.inventory.lowest_free_lun("vol2") == 2
    with pytest.raises(problems.Problem, match=f"LUN 1 was vol1, and {ANN} may go on to use it as that"):
        service.inventory.add_volume(other)
    service.inventory.add_volume(before)  # the same one may come back
    service.inventory.remove_volume(before)
    service.inventory.add_volume(other, force=True)
    assert execute(nexus, 1) == 0x3F03
    service.inventory.remove_volume(other)
    service.inventory.scsi.close_nexus(nexus)
    service.inventory.add_volume(before)


def execute(nexus: Nexus, lun: int) -> int:
    """Send TEST UNIT READY; return the additional sense code and its qualifier."""
    task = Task(lambda _length: ())
    task.lun, task.cdb = lun << 48, bytes(6)
    nexus.execute(task, nowait=False)
    return int.from_bytes(task.sense[12:14])


def test_initiator_of_the_kernels_target_counts_if_it_can_reach_the_unit(service: Service) -> None:
    fabric = BookFabric("127.0.0.1:3260")
    service.inventory.fabric = fabric
    fabric.log_in(ANN, "127.0.0.1", IQN)
    taken = service.snapshots.create_snapshot("vol0", "a")
    unit = service.inventory.scsi.luns[taken.view_lun or 0]
    unit.counters.bytes_read += 512
    with pytest.raises(problems.Problem, match=f"vol0@a is in use by {ANN} from 127.0.0.1"):
        service.snapshots.delete_snapshot("vol0", "a")
    service.snapshots.delete_snapshot("vol0", "a", force=True).wait()
    other = settings.Volume(name="vol2", lun=taken.view_lun, size=1 << 20)
    with pytest.raises(problems.Problem, match=f"LUN 2 was vol0@a, and {ANN}"):
        service.inventory.add_volume(other)


def test_announced_address_is_the_one_of_printed_urls(serve: Serve) -> None:
    service = serve(extra="portal: {announce: 'nat.example:3260'}\n")
    assert service.inventory.url(1) == f"iscsi://nat.example:3260/{IQN}/1"


def test_this_host_counts_as_a_reader_if_the_kernel_attaches_the_luns_here(serve: Serve) -> None:
    service = serve(extra="fabric: lio\nlio: {loopback: true, listen: []}\n", access="networks: [0.0.0.0/0]")
    taken = service.snapshots.create_snapshot("vol0", "a")
    service.inventory.scsi.luns[taken.view_lun or 0].counters.bytes_read += 512
    with pytest.raises(problems.Problem, match="vol0@a is in use by this host, through tcm_loop"):
        service.snapshots.delete_snapshot("vol0", "a")
    job = service.snapshots.delete_snapshot("vol0", "a", force=True)
    assert job.wait(60)
    job.check()
