# SPDX-License-Identifier: Apache-2.0
"""LOG SENSE: the pages that `smartctl -a` asks a disk for."""

from __future__ import annotations

import struct

import pytest

from lun_backends import block_device
from tests.target.scsi.harness import CHECK, GOOD, Bench, cdb10


def log_sense(code: int, subpage: int = 0, *, control: int = 1, pointer: int = 0, length: int = 0xFFFF) -> bytes:
    return struct.pack(">BBBBxHHx", 0x4D, 0, control << 6 | code, subpage, pointer, length)


def log_page(bench: Bench, code: int, pointer: int = 0) -> dict[int, bytes]:
    """Return the parameters of a log page, by code."""
    result = bench.run(log_sense(code, pointer=pointer))
    assert result.status == GOOD
    page, subpage, length = struct.unpack_from(">BBH", result.data)
    assert (page, subpage, length) == (code, 0, len(result.data) - 4)
    rest, parameters = result.data[4:], {}
    while rest:
        number, _, size = struct.unpack_from(">HBB", rest)
        parameters[number] = rest[4 : 4 + size]
        rest = rest[4 + size :]
    return parameters


def test_supported_pages_are_listed_and_are_there(any_kind: Bench) -> None:
    listed = any_kind.run(log_sense(0)).data
    assert listed == b"\0\0\0\x06\0\x02\x03\x06\x10\x2f"
    for code in range(1, 64):
        assert (any_kind.run(log_sense(code)).status == GOOD) == (code in listed[4:])
    assert any_kind.run(log_sense(0, 0xFF)).data == b"\x40\xff\0\x0e\0\0\0\xff\x02\0\x03\0\x06\0\x10\0\x2f\0"


def test_bytes_and_failures_are_counted(primary: Bench) -> None:
    assert primary.run(cdb10(0x2A, 0, 8), bytes(8 * 512)).status == GOOD
    assert primary.run(cdb10(0x28, 0, 4)).status == GOOD
    assert primary.run(b"\xc0" + bytes(5)).status == CHECK

    def before(method: str, offset: int, length: int) -> None:
        raise block_device.MediumError(0, method.startswith("write"), "for a test")

    primary.device.before = before
    assert primary.run(cdb10(0x28, 0, 1)).status == CHECK
    assert primary.run(cdb10(0x2A, 0, 1), bytes(512)).status == CHECK
    assert primary.run(cdb10(0x2A, 0, 1), bytes(512)).status == CHECK
    written, read = log_page(primary, 0x02), log_page(primary, 0x03)
    assert [int.from_bytes(written[code]) for code in range(7)] == [0, 0, 0, 0, 0, 8 * 512, 2]
    assert [int.from_bytes(read[code]) for code in range(7)] == [0, 0, 0, 0, 0, 4 * 512, 1]
    assert {code: int.from_bytes(value) for code, value in log_page(primary, 0x06).items()} == {0: 1}


def test_no_exception_and_no_temperature_is_reported(any_kind: Bench) -> None:
    assert log_page(any_kind, 0x2F) == {0: b"\0\0\xff\0"}


def test_parameter_pointer_leaves_out_lower_parameters(primary: Bench) -> None:
    assert list(log_page(primary, 0x03, pointer=5)) == [5, 6]
    assert primary.run(log_sense(0x03, pointer=7)).field == (5, None)
    assert primary.run(log_sense(0x03, length=10)).data == primary.run(log_sense(0x03)).data[:10]


@pytest.mark.parametrize(
    ("cdb", "field"),
    [(log_sense(0x04), (2, None)), (log_sense(0x03, 1), (3, None)), (log_sense(0x03, control=0), (2, 7))],
)
def test_what_is_not_there_is_refused(primary: Bench, cdb: bytes, field: tuple[int, int | None]) -> None:
    assert primary.run(cdb).field == field
