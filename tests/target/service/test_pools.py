# SPDX-License-Identifier: Apache-2.0
"""The pools of write-once LUNs of a storage host, for which the tests write the records of nodes."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lun_backends import block_device
from lun_backends.cluster import records
from lun_backends.cluster.records import Record, Type
from lun_backends.files import small_file
from lun_backends.initiator.part import Role
from lun_backends.stores import local
from target.fabrics import access
from target.scsi.logical_unit import LogicalUnit, UnitKind
from target.service import lun_numbers, pool, pool_file, problems
from target.service.service import Service
from tests.target.service.conftest import VOLUMES, Serve

POOL = "write_once:\n  - {volume: vol0, size: 1MiB, pool: 2, chunk_size: 4KiB}\n"


def units(service: Service) -> Mapping[int, LogicalUnit]:
    return service.inventory.scsi.luns


def log_of(service: Service) -> LogicalUnit:
    (found,) = [unit for unit in units(service).values() if unit.part is not None and unit.part.role is Role.LOG]
    return found


def members(service: Service) -> dict[uuid.UUID, int]:
    """Return the numbers of the write-once LUNs that are served, by their identity."""
    return {
        unit.part.lun: number
        for number, unit in units(service).items()
        if unit.part is not None and unit.part.role is Role.POOL
    }


def append(service: Service, kind: Type, **fields: Any) -> None:
    """Write a record as a node does, and let the pool see it."""
    unit = log_of(service)
    assert unit.part is not None
    end = next(unit.device.extents(0, unit.device.size))
    position = 0 if end.kind is block_device.ExtentKind.BLANK else end.length // 4096
    block = records.encode(Record(kind, unit.part.volume, **fields), position, 4096)
    unit.device.writev(position * 4096, [memoryview(block)])
    service.pools.tend()


def take(service: Service, lun: uuid.UUID, epoch: int = 0, name: str = "nightly") -> uuid.UUID:
    """Let a node take a LUN for a snapshot, and return the snapshot's identity."""
    snapshot = uuid.uuid4()
    append(service, Type.EPOCH, epoch=epoch, snapshot=snapshot, lun=lun, name=name)
    append(service, Type.FENCED, epoch=epoch, answers=end(service) - 1)
    return snapshot


def end(service: Service) -> int:
    (shown,) = service.status.status().pools
    return shown.records


def delete(service: Service, snapshot: uuid.UUID) -> None:
    append(service, Type.DELETE, snapshot=snapshot)
    append(service, Type.DELETED, snapshot=snapshot)


def codes(service: Service) -> list[str]:
    return [alert.code for alert in service.status.alerts()]


def fill(service: Service, lun: uuid.UUID) -> None:
    units(service)[members(service)[lun]].device.writev(0, [memoryview(b"\x55" * 4096)])


def test_log_and_blank_luns_say_what_they_are(serve: Serve) -> None:
    service = serve(extra=POOL)
    owner = service.inventory.open_volumes["vol0"]
    log = log_of(service)
    assert (log.kind, log.block_size, log.device.size // 4096) == (UnitKind.WRITE_ONCE, 4096, 1 << 20)
    assert log.part is not None
    assert (log.part.volume, log.part.name) == (owner.uuid, "vol0")
    assert sorted(members(service).values()) == [3, 4]
    for number in (3, 4):
        unit = units(service)[number]
        assert unit.part is not None
        assert (unit.part.volume, unit.part.lun, unit.part.grain_size) == (owner.uuid, unit.uuid, 4096)
        assert (unit.part.write_once, unit.part.power_loss) == (True, True)
        assert unit.device.size == 1 << 20
    (shown,) = service.status.status().pools
    assert (shown.volume, shown.log_lun, shown.blank, shown.blanks_wanted, shown.trouble) == ("vol0", 2, 2, 2, "")
    assert "pool-low" not in codes(service)


def test_units_are_listed_under_names_of_their_own(serve: Serve) -> None:
    service = serve(extra=POOL)
    names = [access.unit_name(unit) for _, unit in sorted(units(service).items())]
    luns = [f"vol0/write-once-{identity.hex[:8]}" for identity in sorted(members(service), key=members(service).get)]  # type: ignore[arg-type]
    assert names == ["vol0", "vol1", "vol0/log", *luns]


def test_everything_is_the_same_after_a_restart(serve: Serve) -> None:
    service = serve(extra=POOL)
    before = members(service)
    taken = min(before, key=before.__getitem__)
    take(service, taken)
    fill(service, taken)
    after_taking = members(service)
    log = log_of(service).uuid
    again = serve(extra=POOL)
    assert members(again) == after_taking
    assert log_of(again).uuid == log
    data = bytearray(4096)
    units(again)[before[taken]].device.readv(0, [memoryview(data)])
    assert data == b"\x55" * 4096
    (shown,) = again.status.status().pools
    assert [(lun.state, lun.snapshot) for lun in shown.luns] == [("taken", "nightly"), ("blank", ""), ("blank", "")]


def test_lun_that_a_record_takes_is_replaced(serve: Serve) -> None:
    service = serve(extra=POOL)
    before = members(service)
    for epoch, lun in enumerate(before):
        take(service, lun, epoch, f"s{epoch}")
    after = members(service)
    assert set(before) < set(after)
    assert len(after) == 4
    (shown,) = service.status.status().pools
    assert (shown.blank, len(shown.luns)) == (2, 4)


def test_write_to_the_log_wakes_the_pool(serve: Serve) -> None:
    service = serve(extra=POOL)
    service.pools.start()
    before = members(service)
    log = log_of(service)
    assert log.part is not None
    record = Record(Type.EPOCH, log.part.volume, snapshot=uuid.uuid4(), lun=next(iter(before)))
    log.device.writev(0, [memoryview(records.encode(record, 0, 4096))])
    for _ in range(1000):
        if len(members(service)) == 3:
            return
        service.pools._stopping.wait(0.01)
    raise AssertionError("the pool was not refilled")


def test_lun_of_a_deleted_snapshot_never_comes_back(serve: Serve) -> None:
    service = serve(extra=POOL)
    first = members(service)
    lun = min(first, key=first.__getitem__)
    snapshot = take(service, lun)
    fill(service, lun)
    later = next(other for other in members(service) if other not in first)
    take(service, later, 1, "later")
    delete(service, snapshot)
    assert lun not in members(service)
    assert first[lun] not in units(service)
    again = serve(extra=POOL)
    assert lun not in members(again)
    assert not list((again.inventory.state_dir / "pools/vol0").glob(f"{lun}*"))
    for _ in range(3):  # neither a new blank LUN, nor a snapshot of this host's own gets the number
        take(again, next(iter(set(members(again)) - {later})), end(again))
    again.snapshots.create_snapshot("vol1", "own")
    assert first[lun] not in units(again)
    with pytest.raises(problems.Problem, match="no other unit ever gets it"):
        again.inventory._numbers.reserve(first[lun])


def test_volume_cannot_be_given_the_number_of_a_pool(serve: Serve) -> None:
    service = serve(extra=POOL)
    number = min(members(service).values())
    again = serve(VOLUMES + f"  - {{name: vol2, lun: {number}, size: 1MiB}}\n", extra=POOL)
    assert "vol2" not in again.inventory.open_volumes
    assert "belongs to the pool of vol0" in again.inventory.failed["vol2"]
    assert number in members(again).values()


def test_lun_that_was_written_and_not_taken_is_retired(serve: Serve) -> None:
    service = serve(extra=POOL)
    before = members(service)
    lun = next(iter(before))
    fill(service, lun)
    service.pools.tend()
    assert lun not in members(service)
    assert len(members(service)) == 2
    assert before[lun] not in units(service)


def test_lun_that_was_written_just_after_its_record_stays(serve: Serve) -> None:
    service = serve(extra=POOL)
    lun = next(iter(members(service)))
    log = log_of(service)
    assert log.part is not None
    record = Record(Type.EPOCH, log.part.volume, snapshot=uuid.uuid4(), lun=lun)
    log.device.writev(0, [memoryview(records.encode(record, 0, 4096))])
    fill(service, lun)
    service.pools.tend()
    assert lun in members(service)


def test_record_that_lost_the_race_takes_nothing(serve: Serve) -> None:
    service = serve(extra=POOL)
    one, other = members(service)
    take(service, one)
    append(service, Type.EPOCH, epoch=0, snapshot=uuid.uuid4(), lun=other)  # its writer had not read the other
    (shown,) = service.status.status().pools
    assert {lun.identity for lun in shown.luns if lun.state == "taken"} == {str(one)}
    assert len(shown.luns) == 3


def test_unreadable_record_stops_all_changes(serve: Serve) -> None:
    service = serve(extra=POOL)
    before = members(service)
    log_of(service).device.writev(0, [memoryview(bytes(4096))])
    fill(service, next(iter(before)))
    service.pools.tend()
    assert members(service) == before
    (shown,) = service.status.status().pools
    assert "holds no record" in shown.trouble
    assert "pool-damaged" in codes(service)


def test_record_about_an_unknown_snapshot_means_nothing(serve: Serve) -> None:
    service = serve(extra=POOL)
    for kind in (Type.INVALID, Type.DELETE, Type.DELETED, Type.NOTE):
        append(service, kind, snapshot=uuid.uuid4())
    lun = next(iter(members(service)))
    take(service, lun)
    (shown,) = service.status.status().pools
    assert (shown.trouble, shown.blank, shown.records) == ("", 2, 6)


def test_snapshot_is_shown_under_its_newest_name(serve: Serve) -> None:
    service = serve(extra=POOL)
    snapshot = take(service, next(iter(members(service))))
    append(service, Type.NOTE, snapshot=snapshot, name="kept", answers=0)
    (shown,) = service.status.status().pools
    assert [lun.snapshot for lun in shown.luns if lun.state == "taken"] == ["kept"]


def test_full_disk_is_an_alert_and_the_pool_is_filled_later(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    service = serve(extra=POOL)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pool_file, "store", full)
    take(service, next(iter(members(service))))
    assert len(members(service)) == 2
    assert [alert.message for alert in service.status.alerts() if alert.code == "pool-low"] == [
        "the pool of vol0 has 1 of 2 blank write-once LUNs: No space left on device"
    ]
    service.pools.tend()
    assert len(list((service.inventory.state_dir / "pools/vol0").glob("*.map"))) == 3  # no empty stores pile up
    monkeypatch.undo()
    service.pools.tend()
    assert sorted(members(service).values()) == [3, 4, 5]  # nor do numbers get lost
    assert "pool-low" not in codes(service)


def test_kill_after_a_lun_is_noted_and_before_it_is_served(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    service = serve(extra=POOL)
    first = members(service)
    replace = small_file.replace

    class Killed(BaseException):
        """The end of the process."""

    def killed(path: Path, *arguments: Any, **options: Any) -> None:
        replace(path, *arguments, **options)
        raise Killed

    def nothing(*_: object) -> None:
        """Do nothing, because the process is dead."""

    monkeypatch.setattr(small_file, "replace", killed)
    monkeypatch.setattr(local.LocalStores, "remove", nothing)
    with pytest.raises(Killed):
        take(service, next(iter(first)))
    monkeypatch.undo()
    again = serve(extra=POOL)
    assert set(first) < set(members(again))
    assert len(members(again)) == 3


def test_stores_that_were_never_noted_are_swept(serve: Serve) -> None:
    service = serve(extra=POOL)
    directory = service.inventory.state_dir / "pools/vol0"
    service.close()
    (directory / f"{uuid.uuid4()}.map").write_bytes(b"half")
    again = serve(extra=POOL)
    stores = {path.name.partition(".")[0] for path in directory.glob("*.map")}
    assert stores == {str(identity) for identity in (log_of(again).uuid, *members(again))}


def test_lost_store_is_never_made_anew(serve: Serve) -> None:
    service = serve(extra=POOL)
    lun = next(iter(members(service)))
    snapshot = take(service, lun)
    directory = service.inventory.state_dir / "pools/vol0"
    (shown,) = service.status.status().pools
    service.close()
    (directory / f"{lun}.map").rename(directory / "elsewhere")
    again = serve(extra=POOL)
    assert lun not in members(again)
    (shown,) = again.status.status().pools
    assert [entry.state for entry in shown.luns if entry.identity == str(lun)] == ["lost"]
    assert "pool-damaged" in codes(again)
    append(again, Type.INVALID, snapshot=snapshot)
    delete(again, snapshot)
    (shown,) = again.status.status().pools
    assert str(lun) not in {entry.identity for entry in shown.luns}
    assert "pool-damaged" not in codes(again)


def test_lost_log_fails_the_pool_alone(serve: Serve) -> None:
    service = serve(extra=POOL)
    log = log_of(service).uuid
    directory = service.inventory.state_dir / "pools/vol0"
    service.close()
    (directory / f"{log}.chunks").rename(directory / "elsewhere")
    again = serve(extra=POOL)
    assert set(again.inventory.open_volumes) == {"vol0", "vol1"}
    assert not members(again)
    assert "pool-failed" in codes(again)


def test_damaged_list_is_refused_because_numbers_could_come_back(serve: Serve) -> None:
    service = serve(extra=POOL)
    path = service.inventory.state_dir / "pools/vol0/pool.json"
    service.close()
    path.write_text(path.read_text()[:-30])
    with pytest.raises(lun_numbers.Damaged, match="restore it from a backup"):
        serve(extra=POOL)
    path.write_text('{"format": 9}')
    with pytest.raises(lun_numbers.Damaged, match="newer wolun"):
        serve(extra=POOL)


def test_pool_that_the_configuration_leaves_out_keeps_its_numbers(serve: Serve) -> None:
    numbers = set(members(serve(extra=POOL)).values())
    without = serve()
    assert [(alert.code, alert.subject) for alert in without.status.alerts()] == [("pool-left-behind", "vol0")]
    taken = without.snapshots.create_snapshot("vol0", "own")
    assert taken.view_lun not in numbers
    assert set(members(serve(extra=POOL)).values()) == numbers


def test_smaller_luns_are_refused_and_larger_ones_are_made(serve: Serve) -> None:
    service = serve(extra=POOL)
    smaller = serve(extra=POOL.replace("1MiB", "512KiB").replace("pool: 2", "pool: 3"))
    (shown,) = smaller.status.status().pools
    assert "has LUNs of 1MiB" in shown.trouble
    assert "pool-low" in codes(smaller)
    larger = serve(extra=POOL.replace("1MiB", "2MiB").replace("pool: 2", "pool: 3"))
    sizes = sorted(units(larger)[number].device.size >> 20 for number in members(larger).values())
    assert sizes == [1, 1, 2]
    del service


def test_primary_of_another_array_has_a_pool_with_an_identity_of_its_own(serve: Serve) -> None:
    extra = POOL.replace("vol0", "archive")
    part = log_of(serve(extra=extra)).part
    assert part is not None
    again = log_of(serve(extra=extra)).part
    assert again == part
    assert part.name == "archive"


def test_log_has_room_for_a_million_records() -> None:
    assert pool.LOG_SIZE // pool.RECORD == 1 << 20
