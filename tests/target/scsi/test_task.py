# SPDX-License-Identifier: Apache-2.0
"""The length of a CDB, and a fresh task."""

from __future__ import annotations

import pytest

from target.scsi.task import Status, Task, cdb_length
from tests.target.scsi.harness import allocate


@pytest.mark.parametrize(
    ("opcode", "length"),
    [
        (0x00, 6),
        (0x1F, 6),
        (0x20, 10),
        (0x5F, 10),
        (0x80, 16),
        (0x9F, 16),
        (0xA0, 12),
        (0xBF, 12),
        (0xC0, 1),
        (0xFF, 1),
    ],
)
def test_the_group_code_says_the_length(opcode: int, length: int) -> None:
    assert cdb_length(bytes([opcode])) == length
    assert cdb_length(memoryview(bytes([opcode, 1, 2]))) == length


def test_an_empty_cdb_is_too_short() -> None:
    assert cdb_length(b"") == 1


def test_a_fresh_task_is_good_and_not_aborted() -> None:
    task = Task(allocate)
    assert (task.status, task.sense, task.data_in, task.residual_out) == (Status.GOOD, b"", (), 0)
    assert not task.aborted
    assert not task.cleared
