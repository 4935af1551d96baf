# SPDX-License-Identifier: Apache-2.0
"""No power cut breaks a promise, and the tester finds every rule that is broken on purpose."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.powercut import campaign, disk, mutants, promises, recorder, replay

STATES = 20_000
MUTANT_CASES = 8
"""The number of cases that a mutant has to survive to count as undetected; most are found in the first."""

SCENARIOS: dict[mutants.Mutant, tuple[str, ...]] = {
    mutants.second_deletion_forgets_the_first: ("deletions",),
    mutants.grains_of_partly_written_chunks_forgotten: ("grains",),
    **dict.fromkeys(mutants.LOGS, ("log-small",)),
}
"""The scenarios in which a mutant shows, where these are special ones."""


@pytest.mark.timeout(1200)
def test_no_power_cut_breaks_a_promise() -> None:
    tried = 0
    failures: list[str] = []
    for _, _, outcome in campaign.run(STATES, seed=1):
        tried += outcome.states
        failures += [campaign.describe(failure) for failure in outcome.failures]
    assert not failures, "\n".join(failures)
    assert tried >= STATES


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", (*mutants.ALL, *mutants.LOGS), ids=lambda mutant: str(mutant.__name__))
def test_a_broken_rule_is_found(mutant: mutants.Mutant) -> None:
    with mutant():
        for seed in range(MUTANT_CASES):
            for name in SCENARIOS.get(mutant, ("small-chunks", "shared-bytes")):
                try:
                    outcome = replay.run_case(replay.find(name), seed, 1000, most_failures=1)
                except promises.Violation:
                    return  # found even without a cut
                if outcome.failures:
                    return
    pytest.fail(f"{mutant.__name__} was not noticed in {MUTANT_CASES} cases")


def test_the_model_is_the_disk_when_nothing_is_lost(tmp_path: Path) -> None:
    """With the newest version of everything, the files that are laid out equal the real ones."""
    for name in ("small-chunks", "large-chunks"):
        root = tmp_path / name
        root.mkdir()
        io, _ = replay.record(root, replay.find(name), 5)
        real = {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        model = disk.Disk(io.start)
        for event in io.log:
            model.apply(event)
        newest = disk.Choice(tuple(len(register.versions) - 1 for register in model.open_registers()))
        model.lay_out(root, newest)
        assert {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()} == real


class TestDisk:
    """The model of the disk by itself."""

    def record(self, root: Path) -> recorder.RecordingIO:
        (root / "kept").write_bytes(b"a" * 8192)
        return recorder.RecordingIO(root)

    def states(self, io: recorder.RecordingIO, root: Path, torn: bool = False) -> set[tuple[tuple[str, bytes], ...]]:
        model = disk.Disk(io.start)
        for event in io.log:
            model.apply(event)
        seen = set()
        for choice in model.choices(random.Random(1), 500 if torn else 64, 64):
            if torn or choice.tear is None:
                model.lay_out(root, choice)
                seen.add(tuple(sorted((path.name, path.read_bytes()) for path in root.iterdir())))
        return seen

    def test_unsynced_pages_come_in_any_subset(self, tmp_path: Path) -> None:
        io = self.record(tmp_path)
        fd = io.open(tmp_path / "kept", os.O_RDWR)
        io.pwritev(fd, [b"b" * 8192], 0)
        io.close(fd)
        a, b = b"a" * 4096, b"b" * 4096
        assert self.states(io, tmp_path) == {(("kept", x + y),) for x in (a, b) for y in (a, b)}

    def test_a_torn_page_is_a_mixture_of_sectors(self, tmp_path: Path) -> None:
        io = self.record(tmp_path)
        fd = io.open(tmp_path / "kept", os.O_RDWR)
        io.pwritev(fd, [b"b" * 4096], 0)
        io.close(fd)
        contents = {state[0][1] for state in self.states(io, tmp_path, torn=True)}
        assert len(contents) > 50
        for content in contents:
            assert all(len(set(content[start : start + 512])) == 1 for start in range(0, 8192, 512))

    def test_a_sync_settles_what_was_written_before_it_began(self, tmp_path: Path) -> None:
        io = self.record(tmp_path)
        fd = io.open(tmp_path / "kept", os.O_RDWR)
        io.pwritev(fd, [b"b" * 4096], 0)
        sync = io._begin(io._file(fd))
        io.pwritev(fd, [b"c" * 4096], 0)
        io._end(sync)
        io.close(fd)
        assert self.states(io, tmp_path) == {(("kept", x * 4096 + b"a" * 4096),) for x in (b"b", b"c")}

    def test_names_are_durable_with_their_directory(self, tmp_path: Path) -> None:
        io = self.record(tmp_path)
        fd = io.open(tmp_path / "new", os.O_RDWR | os.O_CREAT)
        io.pwritev(fd, [b"n"], 0)
        io.fdatasync(fd)
        io.close(fd)
        kept = ("kept", b"a" * 8192)
        assert self.states(io, tmp_path) == {(kept,), (kept, ("new", b"n"))}
        io = recorder.RecordingIO(tmp_path)
        io.unlink(tmp_path / "kept")
        io.fsync_directory(tmp_path)
        assert all(dict(state).keys() <= {"new"} for state in self.states(io, tmp_path))

    def test_words_of_a_map_may_be_torn_apart(self, tmp_path: Path) -> None:
        io = self.record(tmp_path)
        fd = io.open(tmp_path / "kept", os.O_RDWR)
        io.store(fd, b"b" * 8 + b"c" * 8, 0)
        io.close(fd)
        assert [event for event in io.log if isinstance(event, recorder.Write)] == [
            recorder.Write(0, 0, b"b" * 8 + b"c" * 8, True)
        ]
        left = {dict(state)["kept"][:16] for state in self.states(io, tmp_path, torn=True)}
        assert {b"a" * 8 + b"c" * 8, b"b" * 8 + b"a" * 8} <= left
