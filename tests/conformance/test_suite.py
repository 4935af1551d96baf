# SPDX-License-Identifier: Apache-2.0
"""The parsing of the suite's output, and the lines for results that are not the expected ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance import suite
from tests.conformance.suite import Outcome, Result

PRINTED = """
Suite: Read10
  Test: Simple ...passed
  Test: BeyondEol ...    [SKIPPED] not for this one.
passed
Suite: Write10
  Test: Simple ...FAILED
    1. test_write10_simple.c:40  - CU_ASSERT_EQUAL(_r,0)
  Test: Async ...passed

Run Summary:    Type  Total    Ran Passed Failed Inactive
"""
LISTS = """
unit:
  - outcome: failed
    reason: "it writes"
    tests: [Write10.Simple, Write10.Async]
  - outcome: [passed, failed]
    reason: "it is left to chance"
    tests: [Read10.Simple]
  - outcome: skipped
    reason: "there is none"
    tests: [Read10.BeyondEol, Read10.Async]
"""


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    path = tmp_path / "expected.yaml"
    path.write_text(LISTS)
    return path


def test_parse_yields_each_result() -> None:
    assert list(suite.parse(PRINTED)) == [
        Result("Read10.Simple", Outcome.PASSED),
        Result("Read10.BeyondEol", Outcome.SKIPPED, "not for this one."),
        Result("Write10.Simple", Outcome.FAILED, "1. test_write10_simple.c:40  - CU_ASSERT_EQUAL(_r,0)"),
        Result("Write10.Async", Outcome.PASSED),
    ]


def test_each_deviation_has_a_line(lists: Path) -> None:
    assert suite.deviations(list(suite.parse(PRINTED)), "unit", lists) == [
        "Write10.Async passed, expected: failed: it writes",
        "Read10.Async did not run",
    ]
    unlisted = [Result("Verify10.Simple", Outcome.FAILED, "1. it does not")]
    assert suite.deviations(unlisted, "unit", lists)[0] == "Verify10.Simple failed (1. it does not), expected: passed"
    chance = [Result("Read10.Simple", Outcome.SKIPPED)]
    assert suite.deviations(chance, "unit", lists)[0].startswith("Read10.Simple skipped, expected: passed or failed: ")
    for outcome in (Outcome.PASSED, Outcome.FAILED):
        lines = suite.deviations([Result("Read10.Simple", outcome)], "unit", lists)
        assert all(line.endswith("did not run") for line in lines)
