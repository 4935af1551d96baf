# SPDX-License-Identifier: Apache-2.0
"""A root of Debian 12 in a directory, made by mmdebstrap, in which tests install packages and run programs.

It shares the kernel with this machine, and nothing else: programs in it have their own processes, name of the host and,
unless they install something, network.  There is no systemd in it, so `served` starts the daemon as the unit would: the
same command, the same user, no capabilities.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests import peers

SUITE = "bookworm"
HOST = "storage"
PATIENCE = 300.0
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
}
_NO_SERVICES = 'printf "#!/bin/sh\\nexit 101\\n" >"$1/usr/sbin/policy-rc.d" && chmod +x "$1/usr/sbin/policy-rc.d"'


class Root:
    """The root in `directory`, with a copy of the packages that it ever installed in `cache`."""

    def __init__(self, directory: Path, cache: Path) -> None:
        self.directory = directory
        self._cache = cache

    def make(self) -> None:
        """Make the root, with the essential packages only."""
        peers.need_root("making a root of Debian")
        options = ("--variant=minbase", "--mode=root", "--format=directory", "--dpkgopt=force-unsafe-io")
        command = [
            *(peers.require("mmdebstrap"), "--quiet", *options, '--aptopt=APT::Install-Recommends "false"'),
            *('--aptopt=Acquire::Languages "none"', "--skip=cleanup/apt", f"--customize-hook={_NO_SERVICES}"),
            *(SUITE, str(self.directory)),
        ]
        done = subprocess.run(
            command, env={**os.environ, "PATH": peers.SEARCH_PATH}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def run(self, script: str, *, network: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a script of bash, in namespaces of its own.  With `network`, it can reach the registry of packages."""
        return subprocess.run(
            self.enter(network=network),
            input=script,
            env=_ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def install(self, *packages: str) -> str:
        """Install packages, or .deb files of the root, and return apt's output."""
        done = self.run(
            f"DEBIAN_FRONTEND=noninteractive apt-get install -y -q {shlex.join(packages)} 2>&1", network=True
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def enter(self, *, network: bool = False) -> Sequence[str]:
        """Return the command that runs bash in the root, with standard input as its script."""
        spaces = ["--mount", "--pid", "--fork", "--kill-child", "--uts", *([] if network else ["--net"])]
        root, cache = shlex.quote(str(self.directory)), shlex.quote(str(self._cache))
        inner = (
            f"hostname {HOST} && mount -t proc proc {root}/proc && mount --bind {cache} {root}/var/cache/apt/archives && "
            + ("cp /etc/resolv.conf " + root + "/etc/ && " if network else "ip link set lo up && ")
            + f"exec chroot {root} bash"
        )
        peers.require("ip")
        return [peers.require("unshare"), *spaces, "bash", "-euc", inner]

    def shell(self) -> Shell:
        """Return a shell in the root, whose commands share all namespaces."""
        return Shell(self.enter())


class Shell:
    """A bash that runs one command after another; `with` ends it, and all that it started."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command,
            env=_ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._count = 0

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(60)

    def run(self, command: str) -> tuple[int, str]:
        """Run a command; return its exit status, and all that it printed, also as errors."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._count += 1
        mark = f"--- {self._count} ---"
        self._process.stdin.write(f"{command}\nprintf '%s %d\\n' '{mark}' $?\n")
        self._process.stdin.flush()
        printed = ""
        for line in self._process.stdout:
            if mark in line:
                before, _, status = line.partition(mark)
                return int(status), printed + before
            printed += line
        raise AssertionError(f"the shell ended in {command}: {printed}")

    def good(self, command: str) -> str:
        """Run a command that must succeed, and return what it printed."""
        status, printed = self.run(command)
        assert status == 0, f"{command}: {printed}"
        return printed


@contextlib.contextmanager
def served(shell: Shell) -> Iterator[None]:
    """Run the daemon in a root as its unit does, until it is stopped in order at the end."""
    unit = shell.good("cat /lib/systemd/system/wolun.service")
    found = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    assert found is not None
    assert {"User=wolun", "CapabilityBoundingSet=", "StateDirectory=wolun"} <= set(unit.splitlines())
    drop = "setpriv --reuid wolun --regid wolun --init-groups --bounding-set=-all --inh-caps=-all --no-new-privs"
    shell.good("install -d -o wolun -g wolun -m 700 /var/lib/wolun && rm -f /run/wolun.out")
    shell.good(f"{{ {drop} {found[1]} >/run/wolun.out 2>>/run/wolun.log & }}; pid=$!")
    deadline = time.monotonic() + PATIENCE
    while "ready" not in shell.run("cat /run/wolun.out")[1]:
        assert shell.run("kill -0 $pid")[0] == 0, shell.run("cat /run/wolun.log")[1]
        assert time.monotonic() < deadline, shell.run("cat /run/wolun.log")[1]
        time.sleep(0.1)
    yield
    assert shell.run("kill $pid; wait $pid")[0] == 0, shell.run("cat /run/wolun.log")[1]
