# SPDX-License-Identifier: Apache-2.0
"""A killed daemon loses no acknowledged write, and no snapshot shows another moment.

In a round, the daemon starts, and an initiator reads everything and compares it with the end of the last round.  Then the
load begins, a request changes the snapshots, and the process is killed meanwhile.  The test opens the volumes and compares
them with the promises: every write, every snapshot, the blank blocks and checksums of the write-once LUNs, no file left over.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from lun_backends.volumes import volume
from target.control import client
from tests import daemon
from tests.kills import load
from tests.powercut import check, promises
from tests.powercut.promises import SECTOR, Violation

pytestmark = pytest.mark.interop

ROUNDS = 100
MOST_SNAPSHOTS = 3
ACTIONS = ("create", "create", "delete", "delete", "restore", "restore", "export", "nothing")
LATEST_KILL = 0.12  # seconds after the action began; most actions take less


@dataclass(frozen=True, slots=True)
class Served:
    """A volume of the configuration."""

    name: str
    lun: int
    sectors: int
    block_size: int
    chunk_size: int
    durability: str

    @property
    def yaml(self) -> str:
        return (
            f"  - {{name: {self.name}, lun: {self.lun}, size: {self.sectors * SECTOR}, block_size: {self.block_size}, "
            f"chunk_size: {self.chunk_size}, durability: {self.durability}}}\n"
        )


VOLUMES = (
    # Neither size is a whole number of chunks.
    Served("durable", 0, 2056, 512, 16384, "power-loss"),
    Served("quick", 1, 1544, 4096, 65536, "process-crash"),
)


class Rounds:
    """The state that one round hands to the next."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.daemon = daemon.Daemon(directory, "".join(served.yaml for served in VOLUMES))
        self.directory = directory
        self.dice = random.Random(seed)
        self.versions = itertools.count(1)
        self.names = itertools.count(1)
        self.promised = {
            served.name: promises.Promises([0] * served.sectors, served.chunk_size // SECTOR) for served in VOLUMES
        }
        self.killed_during: dict[str, int] = dict.fromkeys(ACTIONS, 0)
        self.commands = 0

    def run(self, number: int) -> None:
        """Run one round, up to the check after the kill."""
        self.daemon.start()
        try:
            self._read_everything()
            promised = {
                served.name: load.Promised(self.promised[served.name].durable, served.chunk_size // SECTOR)
                for served in VOLUMES
            }
            for served in VOLUMES:
                promised[served.name].now = self.promised[served.name]
            loads = [
                load.Load(
                    self.daemon,
                    served.lun,
                    served.block_size // SECTOR,
                    promised[served.name],
                    self.versions,
                    f"{number}/{served.name}",
                )
                for served in VOLUMES
            ]
            for running in loads:
                running.start()
            time.sleep(self.dice.uniform(0.02, 0.2))
            self._act(promised)
        finally:
            if self.daemon.process is not None:
                self.daemon.kill()
        for running in loads:
            running.join()
            self.commands += running.commands
        for served in VOLUMES:
            self.promised[served.name] = self._check(served, promised[served.name].now)

    def _read_everything(self) -> None:
        """Check that an initiator reads the volumes and views as they were right after the kill."""
        asked = client.Client(self.daemon.state)
        for served in VOLUMES:
            expected = self.promised[served.name]
            self._settle(asked, expected)
            listed = {snapshot.name: snapshot for snapshot in asked.snapshots(served.name)}
            block = served.block_size // SECTOR
            with self.daemon.session() as session:
                content = load.read_all(session, served.lun, served.sectors, block)
                if content != b"".join(promises.sector(version, at) for at, version in enumerate(expected.durable)):
                    raise Violation(f"{served.name} reads differently over iSCSI")
                for name, moment in expected.moments.items():
                    lun = listed[name].view_lun
                    assert lun is not None
                    if load.read_all(session, lun, served.sectors, block) != moment.data():
                        raise Violation(f"{served.name}@{name} reads differently over iSCSI")
        asked.close()

    @staticmethod
    def _settle(asked: client.Client, expected: promises.Promises) -> None:
        """Check that the daemon resumes interrupted deletions and rollbacks by itself."""
        while asked.status().jobs:
            time.sleep(0.02)
        for name in [name for name, moment in expected.moments.items() if moment.phase is promises.Phase.DELETING]:
            expected.take(promises.DeleteEnds(name))

    def _act(self, promised: dict[str, load.Promised]) -> None:
        """Send a request, and kill the daemon meanwhile."""
        served = self.dice.choice(VOLUMES)
        names = list(promised[served.name].now.moments)
        action = self.dice.choice(ACTIONS)
        if action in ("delete", "export", "restore") and not names:
            action = "create"
        if action == "create" and len(names) >= MOST_SNAPSHOTS:
            action = "delete"
        self.killed_during[action] += 1
        delay = self.dice.uniform(0, LATEST_KILL)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            doing = pool.submit(self._request, action, served, names, promised[served.name])
            time.sleep(delay)
            self.daemon.kill()
            doing.result()

    def _request(self, action: str, served: Served, names: list[str], promised: load.Promised) -> None:
        asked = client.Client(self.daemon.state)
        try:
            match action:
                case "create":
                    name = f"s{next(self.names)}"
                    promised.take(promises.CreateBegins(name))
                    asked.create_snapshot(served.name, name)
                    promised.take(promises.CreateEnds(name))
                case "delete":
                    name = self.dice.choice(names)
                    promised.take(promises.DeleteBegins(name))
                    for job in asked.watch(asked.delete_snapshot(served.name, name)):
                        if job.state == "done":
                            promised.take(promises.DeleteEnds(name))
                case "restore":
                    name = self.dice.choice(names)
                    promised.take(promises.RestoreBegins(name))
                    for job in asked.watch(asked.restore_snapshot(served.name, name, force=True)):
                        if job.state == "failed":
                            raise Violation(f"the restore failed: {job.refusal}")
                        if job.state == "done":
                            promised.take(promises.RestoreEnds(name))
                case "export":
                    name = self.dice.choice(names)
                    path = self.directory / "export"
                    path.unlink(missing_ok=True)
                    expected = promised.now.moments[name].data()
                    for job in asked.watch(asked.export(served.name, name, path, overwrite=False)):
                        if job.state == "failed":
                            raise Violation(f"the export failed: {job.refusal}")
                    if path.read_bytes() != expected:
                        raise Violation(f"the export of {served.name}@{name} is not that moment")
        except client.Failed as failed:
            if failed.refusal.error not in ("not-running", "no-answer"):
                raise
            if action == "export" and path.exists() and path.read_bytes() != expected:
                raise Violation(f"half an export of {served.name}@{name} got its name") from failed
        finally:
            asked.close()

    def _check(self, served: Served, promised: promises.Promises) -> promises.Promises:
        opened = volume.Volume.open(self.daemon.state / "volumes" / served.name)
        try:
            return check.check(opened, promised)
        finally:
            opened.close()


@pytest.mark.timeout(1200)
def test_killed_daemons_lose_nothing(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path, seed=20261122)
    for number in range(ROUNDS):
        try:
            rounds.run(number)
        except Violation as problem:
            pytest.fail(f"round {number}: {problem}\n{(tmp_path / 'stderr').read_text()[-2000:]}")
    assert rounds.commands > ROUNDS * 20
    assert all(rounds.killed_during.values())
