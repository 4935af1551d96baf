# SPDX-License-Identifier: Apache-2.0
"""libiscsi's suite, run against a LUN by two paths, and the outcome of each test.

A test that does not apply prints `[SKIPPED]` and passes; here its outcome is skipped.  Families (`ALL`, `SCSI`,
`iSCSI`, `LINUX`) are selections of the same tests; `ALL` has each test once.
"""

from __future__ import annotations

import enum
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests import peers

FAMILIES = ("ALL", "LINUX", "SCSI", "iSCSI")
TIMEOUT = 600
EXPECTED = Path(__file__).with_name("expected.yaml")

_SUITE = re.compile(r"^Suite: (\S+)")
_TEST = re.compile(r"^  Test: (\S+) \.\.\.(.*)$")


class Outcome(enum.Enum):
    """The outcome of a test."""

    PASSED = "passed"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one test; `detail` is its output if it was skipped or failed."""

    name: str
    outcome: Outcome
    detail: str = ""


class SuiteBroke(Exception):
    """The suite did not run to its end; the message has its last output."""


def run(url: str, family: str = "ALL") -> list[Result]:
    """Run one family against the LUN at `url`, by two paths.  Raise SuiteBroke if it does not run to its end."""
    command = [peers.require("iscsi-test-cu"), "--dataloss", f"--test={family}", url, url]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired as error:
        text = error.stdout if isinstance(error.stdout, str) else (error.stdout or b"").decode(errors="replace")
        raise SuiteBroke(f"not done after {TIMEOUT} s, last: {text[-500:]}") from error
    if "Run Summary" not in done.stdout:
        raise SuiteBroke(done.stdout[-1000:])
    return list(parse(done.stdout))


def parse(text: str) -> Iterator[Result]:
    """Yield the results from the suite's output."""
    suite, name, lines = "", "", list[str]()
    for line in [*text.splitlines(), "Suite: end"]:
        started = _TEST.match(line)
        if name and (started or line.startswith(("Suite: ", "Run Summary", "\nRun Summary"))):
            yield _result(f"{suite}.{name}", lines)
            name = ""
        if header := _SUITE.match(line):
            suite = header[1]
        elif started:
            name, lines = started[1], [started[2].strip()]
        else:
            lines.append(line.strip())


def _result(name: str, lines: Sequence[str]) -> Result:
    printed = [line for line in lines if line]
    skipped = [line for line in printed if "[SKIPPED]" in line]
    if any(line.endswith("FAILED") for line in printed):
        return Result(
            name, Outcome.FAILED, next((line for line in printed if re.match(r"\d+\. ", line)), " ".join(printed[:2]))
        )
    if skipped:
        return Result(name, Outcome.SKIPPED, skipped[0].partition("[SKIPPED]")[2].strip())
    return Result(name, Outcome.PASSED)


def expected(unit: str, path: Path = EXPECTED) -> Mapping[str, tuple[Sequence[Outcome], str]]:
    """Return the outcomes and the reason that expected.yaml lists by test for a kind of LUN; all other tests must pass.

    Several outcomes stand for a result that depends on chance outside of wolun.
    """
    listed: dict[str, tuple[Sequence[Outcome], str]] = {}
    for group in yaml.safe_load(path.read_text())[unit]:
        for name in group["tests"]:
            assert name not in listed, f"{name} stands in {path.name} twice"
            outcomes = group["outcome"] if isinstance(group["outcome"], list) else [group["outcome"]]
            listed[name] = [Outcome(outcome) for outcome in outcomes], group["reason"]
    return listed


def deviations(results: Sequence[Result], unit: str, path: Path = EXPECTED) -> list[str]:
    """Return a line for each result that is not the expected one, an unexpected pass included."""
    listed = expected(unit, path)
    lines = []
    for result in results:
        outcomes, reason = listed.get(result.name, ([Outcome.PASSED], ""))
        if result.outcome not in outcomes:
            detail = f" ({result.detail})" if result.detail else ""
            awaited = " or ".join(outcome.value for outcome in outcomes)
            lines.append(
                f"{result.name} {result.outcome.value}{detail}, expected: {awaited}{': ' + reason if reason else ''}"
            )
    missing = set(listed) - {result.name for result in results}
    return lines + [f"{name} did not run" for name in sorted(missing)]
