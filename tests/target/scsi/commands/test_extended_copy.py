# SPDX-License-Identifier: Apache-2.0
"""EXTENDED COPY(LID1) between units, its refusals, and the status that it leaves behind."""

from __future__ import annotations

import random
import struct
import threading
import uuid
from collections.abc import Callable, Iterable

import pytest

from target.scsi.commands import extended_copy, inquiry
from target.scsi.logical_unit import LogicalUnit, UnitKind
from target.scsi.nexus import Reach
from target.scsi.task import Status
from tests.memory_device import MIB, MemoryDevice
from tests.target.scsi.harness import CHECK, GOOD, PATIENCE, UNIT_UUID, Bench, Result, make_unit, report_luns_cdb
from tests.target.scsi.reservations.requests import CONFLICT, REGISTER, RESERVE, out

OTHER_UUID = uuid.UUID(int=0xC0FFEE)
DATA = random.Random(3).randbytes(MIB)


@pytest.fixture
def copier() -> Bench:
    """Make a primary full of random bytes at LUN 0, and an empty one of the same size at LUN 1."""
    bench = Bench()
    bench.device.fill(DATA)
    bench.target.add_lun(1, make_unit(name="other", uuid=OTHER_UUID))
    bench.run(report_luns_cdb())
    return bench


def other_device(bench: Bench) -> MemoryDevice:
    device = bench.target.luns[1].device
    assert isinstance(device, MemoryDevice)
    return device


def named(
    identity: uuid.UUID,
    *,
    kind: int = 0xE4,
    block_size: int = 512,
    peripheral: int = 0,
    naa: Callable[[uuid.UUID], bytes] = inquiry.naa,
) -> bytes:
    """Return a target descriptor with the NAA name of a unit."""
    name = naa(identity)
    head = struct.pack(">BBHBBxB", kind, peripheral, 0, 1, 3, len(name)) + name
    return head.ljust(29, b"\0") + block_size.to_bytes(3)


def segment(
    source: int, to: int, blocks: int, source_lba: int, to_lba: int, *, kind: int = 0x02, flags: int = 0
) -> bytes:
    """Return a block to block segment descriptor."""
    return struct.pack(">BBHHHxxHQQ", kind, flags, 24, source, to, blocks, source_lba, to_lba)


TARGETS = named(UNIT_UUID) + named(OTHER_UUID)


def copy_list(
    segments: bytes, targets: bytes = TARGETS, *, identifier: int = 0, usage: int = 3, inline: int = 0
) -> bytes:
    """Return the parameter list of EXTENDED COPY(LID1)."""
    return struct.pack(">BBH4xII", identifier, usage << 3, len(targets), len(segments), inline) + targets + segments


def extended_copy_of(bench: Bench, parameters: bytes) -> Result:
    return bench.run(struct.pack(">BB8xIxx", 0x83, 0, len(parameters)), parameters)


def receive(bench: Bench, action: int, identifier: int = 0, length: int = 0xFFFF) -> Result:
    return bench.run(struct.pack(">BBB7xIxx", 0x84, action, identifier, length))


def test_segments_are_copied_between_units(copier: Bench) -> None:
    two = segment(0, 1, 8, 16, 100) + segment(1, 0, 4, 102, 0)
    assert extended_copy_of(copier, copy_list(two)).status == GOOD
    assert other_device(copier).data[100 * 512 : 108 * 512] == DATA[16 * 512 : 24 * 512]
    assert copier.device.data[: 4 * 512] == DATA[18 * 512 : 22 * 512]
    assert copier.device.data[4 * 512 :] == DATA[4 * 512 :]


@pytest.mark.parametrize(("source", "to"), [(0, 100), (100, 0), (7, 7)])
def test_overlapping_ranges_are_copied_as_if_read_first(source: int, to: int) -> None:
    """The copy takes steps of 1 MiB, so their order decides."""
    bench = Bench(device=MemoryDevice(4 * MIB))
    data = random.Random(4).randbytes(4 * MIB)
    bench.device.fill(data)
    blocks = 3 * MIB // 512
    assert extended_copy_of(bench, copy_list(segment(0, 0, blocks, source, to), named(UNIT_UUID))).status == GOOD
    expected = bytearray(data)
    expected[to * 512 : to * 512 + 3 * MIB] = data[source * 512 : source * 512 + 3 * MIB]
    assert bench.device.data == expected


def test_an_empty_list_copies_nothing(copier: Bench) -> None:
    assert extended_copy_of(copier, b"").status == GOOD
    assert extended_copy_of(copier, copy_list(b"", b"")).status == GOOD
    assert copier.device.data == DATA


@pytest.mark.parametrize(
    ("parameters", "key", "asc"),
    [
        (bytes(15), 0x5, 0x1A00),
        (copy_list(b"")[:-1], 0x5, 0x1A00),
        (copy_list(segment(0, 1, 1, 0, 0)[:-1]), 0x5, 0x1A00),
        (copy_list(segment(0, 1, 1, 0, 0), inline=1), 0x5, 0x260B),
        (copy_list(b"", named(UNIT_UUID) * 17), 0x5, 0x2606),
        (copy_list(segment(0, 1, 1, 0, 0) * 65), 0x5, 0x2608),
        (copy_list(b"", named(UNIT_UUID, kind=0xE0)), 0x5, 0x2607),
        (copy_list(b"", named(UNIT_UUID, peripheral=5)), 0x5, 0x2600),
        (copy_list(b"", named(UNIT_UUID, block_size=4096)), 0x5, 0x2600),
        (copy_list(segment(0, 1, 1, 0, 0, kind=0x0B)), 0x5, 0x2609),
        (copy_list(segment(0, 1, 1, 0, 0, flags=0x80)), 0x5, 0x2600),
        (copy_list(segment(0, 2, 1, 0, 0)), 0xA, 0x0D02),
        (copy_list(segment(0, 1, 1, 0, 0), named(UNIT_UUID) + named(uuid.UUID(int=1))), 0xA, 0x0D02),
        (copy_list(segment(0, 1, 2, 2047, 0)), 0xA, 0x0000),
        (copy_list(segment(0, 1, 2, 0, 2047)), 0xA, 0x0000),
        (
            copy_list(segment(0, 1, 1, 0, 0) + segment(0, 1, 1, 0, 4096)),
            0xA,
            0x0000,
        ),  # checked before the first is copied
    ],
)
def test_a_bad_list_is_refused_before_anything_is_copied(copier: Bench, parameters: bytes, key: int, asc: int) -> None:
    result = extended_copy_of(copier, parameters)
    assert (result.status, result.key, result.asc) == (CHECK, key, asc)
    assert other_device(copier).data == bytes(MIB)
    assert copier.device.data == DATA


def test_units_of_other_block_sizes_are_refused(copier: Bench) -> None:
    copier.target.add_lun(2, make_unit(MemoryDevice(block_size=4096), uuid=uuid.UUID(int=2)))
    copier.run(report_luns_cdb())
    targets = named(UNIT_UUID) + named(uuid.UUID(int=2), block_size=4096)
    assert extended_copy_of(copier, copy_list(segment(0, 1, 1, 0, 0), targets)).asc == 0x2600


def test_a_write_once_unit_is_no_destination(copier: Bench) -> None:
    identity = uuid.UUID(int=2)
    copier.target.add_lun(2, make_unit(kind=UnitKind.WRITE_ONCE, uuid=identity))
    copier.run(report_luns_cdb())
    targets = named(UNIT_UUID) + named(identity)
    assert extended_copy_of(copier, copy_list(segment(0, 1, 1, 0, 0), targets)).asc == 0x2600
    blank = extended_copy_of(copier, copy_list(segment(1, 0, 1, 0, 0), targets))
    assert blank.key == 0x8  # as a source it is read like any other


def test_a_copy_goes_only_where_a_write_of_the_nexus_may_go(copier: Bench) -> None:
    def view(number: int, unit: LogicalUnit) -> Iterable[Reach]:
        return (Reach(number, read_only=number == 1),)

    copier.target.change_view(copier.initiator.nexus, view)
    copier.run(report_luns_cdb())
    while copier.run(bytes(6)).status != GOOD:
        pass
    assert extended_copy_of(copier, copy_list(segment(0, 1, 1, 0, 0))).asc == 0x2700
    assert extended_copy_of(copier, copy_list(segment(1, 0, 1, 0, 0))).status == GOOD
    assert other_device(copier).data == bytes(MIB)


@pytest.mark.parametrize(("kind", "from_other"), [(1, GOOD), (3, CONFLICT)])
def test_a_reservation_of_the_other_unit_counts(copier: Bench, kind: int, from_other: int) -> None:
    holder = copier.login("iqn.2026-11.x:holder", "01")
    holder.lun = 1
    assert out(holder, REGISTER, 0, 1).status == GOOD
    assert out(holder, RESERVE, 1, kind=kind).status == GOOD
    assert extended_copy_of(copier, copy_list(segment(0, 1, 1, 0, 0))).status == CONFLICT
    assert other_device(copier).data == bytes(MIB)
    assert extended_copy_of(copier, copy_list(segment(1, 0, 1, 0, 0))).status == from_other
    assert extended_copy_of(copier, copy_list(segment(1, 1, 1, 0, 9))).status == CONFLICT
    assert not copier.target.luns[1].running


def test_a_copy_runs_on_both_units(copier: Bench) -> None:
    """A drain of either unit waits for the copy."""
    running: list[int] = []
    other_device(copier).before = lambda method, offset, length: running.append(len(copier.target.luns[1].running))
    assert extended_copy_of(copier, copy_list(segment(0, 1, 1, 0, 0))).status == GOOD
    assert running == [1]
    assert not copier.target.luns[1].running


def test_the_status_of_a_copy_is_held_for_its_identifier(copier: Bench) -> None:
    assert extended_copy_of(copier, copy_list(segment(0, 1, 8, 0, 0) * 2, identifier=7, usage=0)).status == GOOD
    assert receive(copier, 0, 7).data == struct.pack(">IBHBI", 8, 1, 2, 1, 8)
    assert receive(copier, 0, 8).field == (2, None)
    assert extended_copy_of(copier, copy_list(segment(0, 1, 8, 0, 0), identifier=9, usage=2)).status == GOOD
    assert receive(copier, 0, 9).field == (2, None)  # discarded


def test_the_status_of_a_failed_copy_counts_the_segments_before_it(copier: Bench) -> None:
    copier.target.add_lun(2, make_unit(kind=UnitKind.WRITE_ONCE, uuid=uuid.UUID(int=2)))
    copier.run(report_luns_cdb())
    targets = TARGETS + named(uuid.UUID(int=2))
    both = segment(0, 1, 8, 0, 0) + segment(2, 1, 8, 0, 0)  # the second one reads blank blocks
    assert extended_copy_of(copier, copy_list(both, targets, identifier=5, usage=0)).status == CHECK
    assert receive(copier, 0, 5).data == struct.pack(">IBHBI", 8, 2, 1, 1, 4)


def test_only_the_newest_statuses_are_held(copier: Bench) -> None:
    for identifier in range(extended_copy.HELD_STATUSES + 1):
        assert extended_copy_of(copier, copy_list(b"", b"", identifier=identifier, usage=0)).status == GOOD
    assert receive(copier, 0, 0).field == (2, None)
    assert receive(copier, 0, 1).status == GOOD


def test_operating_parameters(copier: Bench) -> None:
    data = receive(copier, 3).data
    assert int.from_bytes(data[:4]) == len(data) - 4
    assert struct.unpack_from(">HHII", data, 8) == (16, 64, 4096, 256 << 20)
    assert data[43:] == bytes((2, 0x02, 0xE4))
    assert receive(copier, 3, length=10).data == data[:10]


def test_no_more_copies_run_than_reported(copier: Bench) -> None:
    let_go, running = threading.Event(), threading.Semaphore(0)

    def before(method: str, offset: int, length: int) -> None:
        if method == "readv":
            running.release()
            assert let_go.wait(PATIENCE)

    copier.device.before = before
    reported = receive(copier, 3).data[35]
    parameters = copy_list(segment(0, 1, 8, 0, 0))
    results: list[Result] = []
    copies = [
        threading.Thread(target=lambda: results.append(extended_copy_of(copier, parameters))) for _ in range(reported)
    ]
    for thread in copies:
        thread.start()
    for _ in copies:
        assert running.acquire(timeout=PATIENCE)
    assert extended_copy_of(copier, parameters).status == Status.TASK_SET_FULL
    let_go.set()
    for thread in copies:
        thread.join(PATIENCE)
    assert [result.status for result in results] == [GOOD] * reported
    assert extended_copy_of(copier, parameters).status == GOOD


def test_name_that_older_versions_gave_a_unit_still_means_it(copier: Bench) -> None:
    old = named(UNIT_UUID, naa=inquiry.old_naa) + named(OTHER_UUID, naa=inquiry.old_naa)
    assert extended_copy_of(copier, copy_list(segment(0, 1, 8, 0, 8), old)).status == GOOD
    assert bytes(other_device(copier).data[4096:8192]) == DATA[:4096]
