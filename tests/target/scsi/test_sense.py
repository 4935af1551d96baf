# SPDX-License-Identifier: Apache-2.0
"""Sense data byte by byte, and the table from block device errors to sense data."""

from __future__ import annotations

import pytest

from lun_backends import block_device
from target.scsi import sense
from target.scsi.sense import FieldPointer, Sense, SenseKey


def test_fixed_format() -> None:
    reported = Sense(SenseKey.BLANK_CHECK, 0x1234, information=0x01020304)
    assert reported.pack(descriptor=False).hex() == "f0000801020304" + "0a" + "00000000" + "1234" + "00" + "000000"


def test_fixed_format_points_at_fields() -> None:
    reported = Sense(SenseKey.ILLEGAL_REQUEST, 0x2400, field=FieldPointer(8, 3))
    assert reported.pack(descriptor=False)[15:].hex() == "cb0008"
    in_list = Sense(SenseKey.ILLEGAL_REQUEST, 0x2600, field=FieldPointer(300, in_cdb=False))
    assert in_list.pack(descriptor=False)[15:].hex() == "80012c"


def test_fixed_format_leaves_out_an_lba_beyond_32_bits() -> None:
    packed = Sense(SenseKey.BLANK_CHECK, 0, information=1 << 32).pack(descriptor=False)
    assert packed[0] == 0x70
    assert packed[3:7] == bytes(4)


def test_descriptor_format() -> None:
    reported = Sense(SenseKey.BLANK_CHECK, 0x1234, information=1 << 40, field=FieldPointer(2))
    packed = reported.pack(descriptor=True)
    assert packed[:8].hex() == "7208123400000014"
    assert packed[8:20].hex() == "000a80000000010000000000"
    assert packed[20:].hex() == "02060000c0000200"


LBA = 77
TABLE = [
    (block_device.BlankBlock(LBA), 0x8, 0x0000, LBA),
    (block_device.BlockWritten(LBA), 0x8, 0x0000, LBA),
    (block_device.SpaceExhausted(LBA), 0x7, 0x2707, LBA),
    (block_device.WriteProtected(), 0x7, 0x2700, None),
    (block_device.OutOfRange(LBA), 0x5, 0x2100, LBA),
    (block_device.MediumError(LBA, writing=False, reason="rot"), 0x3, 0x1100, LBA),
    (block_device.MediumError(LBA, writing=True, reason="rot"), 0x3, 0x0C00, LBA),
    (block_device.CopyTimedOut(LBA, 1.0), 0x3, 0x0C00, LBA),
    (block_device.NotSupported("deallocating"), 0x5, 0x2000, None),
    (block_device.SnapshotInvalid("the disk was full"), 0x2, 0x0403, None),
    (block_device.PreserveFailed(LBA, block_device.SpaceExhausted(1)), 0x7, 0x2707, LBA),
    (block_device.PreserveFailed(LBA, block_device.MediumError(1, writing=False, reason="rot")), 0x3, 0x0C00, LBA),
    (block_device.StateInDoubt("the state is unknown"), 0x7, 0x2702, None),
    (block_device.NoAnswer("the link was lost"), 0xB, 0x0800, None),
    (block_device.NotReady("the fence is under way"), 0x2, 0x0401, None),
    (block_device.NotReady("the node is expelled", for_good=True), 0x2, 0x0403, None),
    (block_device.DeviceClosed(), 0x2, 0x0400, None),
]


@pytest.mark.parametrize(("error", "key", "asc", "information"), TABLE, ids=lambda value: type(value).__name__)
def test_every_error_has_its_sense_data(
    error: block_device.BlockDeviceError, key: int, asc: int, information: int | None
) -> None:
    assert sense.from_error(error) == Sense(SenseKey(key), asc, information)


def test_no_error_of_the_contract_is_missing_from_the_table() -> None:
    known = {type(row[0]) for row in TABLE} | {block_device.ReservationConflict}
    errors = block_device.BlockDeviceError.__subclasses__()
    assert {error for error in errors if error.__module__ == block_device.__name__} == known
