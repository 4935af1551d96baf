# SPDX-License-Identifier: Apache-2.0
"""The parts that the tests of installing share: packages built once, a root of Debian made once, one cache of Debian's packages."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import peers
from tests.packaging import root

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def debs() -> Path:
    """Return the directory with the packages that `make deb` builds in this checkout."""
    for program, package in (("dh", "debhelper"), ("dpkg-buildpackage", "dpkg-dev"), ("make", "make")):
        peers.require(program, package)
    if subprocess.run(["dpkg", "-s", "python3-pip"], capture_output=True).returncode:
        peers.install(["python3-pip"])
    done = subprocess.run(["make", "deb"], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return PROJECT / "build/deb"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory that keeps the Debian packages that a root fetched, for the next root."""
    made = tmp_path_factory.mktemp("archives")
    (made / "partial").mkdir()
    return made


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> root.Root:
    """Return a root of Debian with nothing in it but the essential packages; tests copy it."""
    made = root.Root(tmp_path_factory.mktemp("debian") / "base", cache)
    made.make()
    return made


@pytest.fixture(scope="session")
def installed(base: root.Root, debs: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> root.Root:
    """Return a copy of the root, into which the package of wolun was installed."""
    made = root.Root(tmp_path_factory.mktemp("installed") / "root", cache)
    subprocess.run(["cp", "-a", "--reflink=auto", base.directory, made.directory], check=True)
    (package,) = debs.glob("wolun_*.deb")
    subprocess.run(["cp", package, made.directory / "root/wolun.deb"], check=True)
    made.install("/root/wolun.deb", "systemd-standalone-sysusers")
    return made
