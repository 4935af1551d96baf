# SPDX-License-Identifier: Apache-2.0
"""SEND DIAGNOSTIC: self-tests that read, and the results that log page 10h keeps."""

from __future__ import annotations

import pytest

from lun_backends import block_device
from tests.target.scsi.commands.test_log_pages import log_page
from tests.target.scsi.harness import CHECK, GOOD, Bench

DEFAULT = b"\x1d\x04\0\0\0\0"


def self_test(code: int) -> bytes:
    return bytes((0x1D, code << 5, 0, 0, 0, 0))


def results(bench: Bench) -> list[bytes]:
    """Return the results in log page 10h that are not empty."""
    return [value for value in log_page(bench, 0x10).values() if value.strip(b"\0")]


def fail_at(bench: Bench, lba: int) -> None:
    """Let reads of a block fail."""

    def before(method: str, offset: int, length: int) -> None:
        if offset <= lba * 512 < offset + length:
            raise block_device.MediumError(lba, False, "for a test")

    bench.device.before = before


def test_sound_unit_passes_and_keeps_the_results_of_short_tests(any_kind: Bench) -> None:
    for cdb in (DEFAULT, self_test(0), self_test(1), self_test(5)):
        assert any_kind.run(cdb).status == GOOD
    newest, older = results(any_kind)
    assert (newest[0], older[0]) == (5 << 5, 1 << 5)
    assert newest[4:12] == b"\xff" * 8  # no block failed


def test_failed_block_is_named(primary: Bench) -> None:
    last = primary.unit.blocks - 1
    fail_at(primary, last)
    for cdb in (DEFAULT, self_test(5)):
        result = primary.run(cdb)
        assert (result.status, result.key, result.asc) == (CHECK, 0x4, 0x3E03)
    assert primary.run(self_test(1)).status == GOOD  # "in the background": the log has the result
    assert [(value[0], int.from_bytes(value[4:12]), value[12:15]) for value in results(primary)] == [
        (1 << 5 | 7, last, b"\x03\x11\x00"),
        (5 << 5 | 7, last, b"\x03\x11\x00"),
    ]


def test_twenty_results_are_kept(primary: Bench) -> None:
    for _ in range(21):
        primary.run(self_test(5))
    assert len(results(primary)) == 20


@pytest.mark.parametrize("code", [2, 3, 4, 6, 7])
def test_other_self_tests_are_refused(primary: Bench, code: int) -> None:
    assert primary.run(self_test(code)).field == (1, 7)
    assert primary.run(bytes((0x1D, code << 5 | 4, 0, 0, 0, 0))).field == (1, 7)
    assert results(primary) == []


def test_parameters_are_refused(primary: Bench) -> None:
    assert primary.run(b"\x1d\x10\0\0\x08\0", bytes(8)).field == (3, None)
