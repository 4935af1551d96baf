# SPDX-License-Identifier: Apache-2.0
"""A set of machines on one private network, booted in parallel.  A lab that closes leaves nothing behind.

The run's directory is locked while the lab is open.  A run that was killed leaves its directory unlocked, and the next
run removes it.
"""

from __future__ import annotations

import compileall
import fcntl
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tests.kernel import image, machine, network

PREFIX = "wolun-lab-"
CHECKOUT = Path(__file__).resolve().parents[2]


class Lab:
    """Machines by name: `Lab(boot, ["storage", "node1"])["node1"].run("true")`; a context manager."""

    def __init__(
        self, boot: image.Image, names: Sequence[str], *, memory: int = machine.MEMORY, processors: int = 1
    ) -> None:
        _remove_stale()
        _compile()
        # Not under pytest's tmp_path: paths of Unix sockets are at most 107 bytes long.
        self._directory = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = (self._directory / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.switch = network.Switch(self._directory, names)
        self.machines: dict[str, machine.Machine] = {}
        hosts = {name: f"10.9.0.{number}" for number, name in enumerate(names, 1)}
        try:
            for number, (name, address) in enumerate(hosts.items(), 1):
                self.machines[name] = machine.Machine(
                    name,
                    address=address,
                    number=number,
                    hosts=hosts,
                    boot=boot,
                    switch=self.switch,
                    directory=self._directory,
                    memory=memory,
                    processors=processors,
                )
            for guest in self.machines.values():
                guest.wait_ready()
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> machine.Machine:
        return self.machines[name]

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:  # a fixture failed, so no test can read the machines' logs later
            sys.stdout.write(self.logs())
        self.close()

    def logs(self) -> str:
        """Return the logs of all machines, to explain a failure."""
        return "\n".join(guest.logs() for guest in self.machines.values())

    def close(self) -> None:
        """Power everything off and remove the run's directory."""
        for guest in self.machines.values():
            guest.power_off()
        self.switch.close()
        shutil.rmtree(self._directory, ignore_errors=True)
        self._lock.close()


def _compile() -> None:
    """Compile the packages that the guests run, because the files that a guest compiles vanish with it."""
    for package in ("target", "lun_backends", "tests"):
        compileall.compile_dir(CHECKOUT / package, quiet=2)


def _remove_stale() -> None:
    for directory in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        try:
            with (directory / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
        except OSError:  # open, being made, or of another user
            continue
