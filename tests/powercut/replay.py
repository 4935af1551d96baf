# SPDX-License-Identifier: Apache-2.0
"""Records workloads, and replays the states that power cuts could have left."""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from lun_backends import block_device
from lun_backends.durability import Durability
from lun_backends.refused import Refused
from tests.powercut import check, disk, promises, recorder, workload
from tests.powercut.promises import Violation

EXHAUSTIVE = 128
"""The number of states at one cut up to which all of them are tried; of more, some are."""
AGAIN = 12
"""One in this many states is worked on under the recorder, and cut again; states with stale words in a map always are."""
BEFORE, AFTER = "the boot before the cut", "the boot after it"
MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Failure:
    """A state that broke a promise, and the means to make it again: the case, the cut (index into the log) and the choice."""

    scenario: str
    seed: int
    cut: int
    after: str  # the event before the cut
    choice: disk.Choice
    problem: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one case."""

    states: int
    cuts: int
    failures: tuple[Failure, ...]


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Yield a temporary directory, in memory if there is such a file system."""
    with tempfile.TemporaryDirectory(prefix="wolun-powercut-", dir=MEMORY if MEMORY.is_dir() else None) as name:
        yield Path(name)


def record(root: Path, scenario: workload.Scenario, seed: int) -> tuple[recorder.RecordingIO, promises.Promises]:
    """Make a volume under `root` and work on it.  Return the record, and the promises from before it."""
    with mock.patch("lun_backends.volumes.boot.current", lambda: BEFORE), same_file():
        return _record(root, scenario, seed)


@contextlib.contextmanager
def same_file() -> Iterator[None]:
    """Take the files that are laid out for those of before: a cut changes neither inode nor change time."""
    with (
        mock.patch("lun_backends.files.facts.inode", lambda _: 1),
        mock.patch("lun_backends.files.facts.changed", lambda _: 1),
    ):
        yield


def small_log() -> contextlib.AbstractContextManager[object]:
    """Let logs be written into their index after a few grains, and few zeroes be written ahead."""
    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch("lun_backends.stores.log.RECENT", 6))
    stack.enter_context(mock.patch("lun_backends.stores.log_file.STEP", 8192))
    stack.enter_context(mock.patch("lun_backends.stores.log_file.LEAST_AHEAD", 8192))
    return stack


def _record(root: Path, scenario: workload.Scenario, seed: int) -> tuple[recorder.RecordingIO, promises.Promises]:
    versions = workload.create(root, scenario)
    io = recorder.RecordingIO(root)
    begin = promises.Promises(versions, scenario.chunk_size // promises.SECTOR)
    live = begin.copy()

    def take(note: promises.Note) -> None:
        with io.lock:
            io.mark(note)
            live.take(note)

    opened = workload.open_volume(root, io)
    try:
        worker = workload.Worker(opened, take, random.Random(seed))
        worker.several = scenario.several
        if scenario.writers:

            def unsure(name: str) -> list[int]:
                with io.lock:
                    return list(live.moments[name].others)

            worker.create()
            workload.run_writers(worker, scenario, seed, unsure)
        else:
            worker.run(scenario.steps)
        check.check(opened, live)  # it must be right without a cut, too
    finally:
        opened.close()
    return io, begin


def run_case(scenario: workload.Scenario, seed: int, states: int, *, most_failures: int = 3) -> Outcome:
    """Record one workload and try about `states` states that cuts of it could leave."""
    with scratch() as directory, small_log():
        root = directory / "root"
        root.mkdir()
        io, promised = record(root, scenario, seed)
        rng = random.Random(f"{seed}/cuts")
        model = disk.Disk(io.start)
        tried = 0
        cuts = 0
        failures: list[Failure] = []
        for cut, event in enumerate(io.log, 1):
            changed = model.apply(event)
            if isinstance(event, recorder.Mark):
                promised.take(event.note)
                changed = True
            if not changed:
                continue
            cuts += 1
            budget = max(1, -(-(states - tried) // (len(io.log) - cut + 1)))
            choices = model.choices(rng, budget, EXHAUSTIVE)
            only_memory = scenario.durability is Durability.PROCESS_CRASH
            killed = model.newest()
            # Stores found with one look are logged in order of address: the process was not killed between them.
            if only_memory and not (
                cut < len(io.log) and isinstance(after := io.log[cut], recorder.Write) and after.stored
            ):
                choices.append(killed)
            for choice in choices:
                tried += 1
                model.lay_out(root, choice)
                boot = BEFORE if choice is killed else AFTER
                try:
                    with mock.patch("lun_backends.volumes.boot.current", lambda boot=boot: boot), same_file():
                        if not only_memory:
                            tried += try_state(root, promised, rng)
                        elif boot == AFTER:
                            check.check_lost(root, promised)
                        else:
                            check.check_state(root, promised, rng, rng.choice((0, 4)))
                except Violation as problem:
                    failures.append(Failure(scenario.name, seed, cut, _brief(event), choice, str(problem)))
                    if len(failures) >= most_failures:
                        return Outcome(tried, cuts, tuple(failures))
        return Outcome(tried, cuts, tuple(failures))


def try_state(root: Path, promised: promises.Promises, rng: random.Random) -> int:
    """Check the state that is laid out under `root`.  Return how many further states a second cut made.

    Raises Violation.
    """
    try:
        if check.has_stale_words(root) or not rng.randrange(AGAIN):
            return _cut_again(root, promised, rng)
        check.check_state(root, promised, rng, rng.choice((0, 0, 4)))
        return 0
    except (block_device.BlockDeviceError, Refused) as error:
        raise Violation(f"after the cut the volume fails: {error!r}") from error


def _cut_again(root: Path, promised: promises.Promises, rng: random.Random) -> int:
    """Work on under the recorder, and try a few states that a second cut could leave."""
    io = recorder.RecordingIO(root)
    opened = workload.open_volume(root, io)
    try:
        begin = check.check(opened, promised)
        live = begin.copy()
        began = len(io.log)

        def take(note: promises.Note) -> None:
            io.mark(note)
            live.take(note)

        check.after_cut(workload.Worker(opened, take, rng, first_version=500_000), rng, 4)
        check.check(opened, live)
    finally:
        opened.close()
    soon = range(began, min(began + 40, len(io.log)))  # the first commits have most to do with the first cut
    cuts = {*rng.sample(soon, min(6, len(soon))), rng.randrange(began, len(io.log))}
    tried = 0
    model = disk.Disk(io.start)
    for cut, event in enumerate(io.log):
        model.apply(event)
        if isinstance(event, recorder.Mark):
            begin.take(event.note)
        if cut in cuts:
            for choice in model.choices(rng, 4, 4):
                tried += 1
                model.lay_out(root, choice)
                check.check_state(root, begin, rng, rng.choice((0, 3)))
    return tried


def _brief(event: recorder.Event) -> str:
    match event:
        case recorder.Write(number, offset, data, stored):
            return f"{'store' if stored else 'write'} of {len(data)} bytes at {offset} of file {number}"
    return str(event)


def find(name: str) -> workload.Scenario:
    """Return the scenario of that name."""
    return next(scenario for scenario in workload.SCENARIOS if scenario.name == name)
