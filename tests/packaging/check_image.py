# SPDX-License-Identifier: Apache-2.0
"""The container image: built by buildah from `config/Containerfile`, run by podman, and used.

No registry of images can be reached, so the base is the root of Debian that the other tests have, too.  podman runs the
container with runc, where this machine's cgroups are of version 1.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import peers
from tests.packaging import root

PROJECT = Path(__file__).resolve().parents[2]
PATIENCE = 300.0


class Podman:
    """podman with a store of its own in `directory`."""

    def __init__(self, directory: Path) -> None:
        peers.need_root("building an image")
        for program in ("podman", "runc"):
            peers.require(program)
        self._options = ("--root", directory / "store", "--runroot", directory / "run", "--tmpdir", directory / "tmp")
        self._engine = ("--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "file")

    def run(
        self, *words: str | Path, data: bytes | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "PATH": peers.SEARCH_PATH, "BUILDAH_ISOLATION": "chroot"}
        command = [peers.require("podman"), *self._engine, *self._options, *words]
        done = subprocess.run(command, env=environment, input=data, capture_output=True, timeout=600)
        assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done


@pytest.fixture(scope="module")
def podman(base: root.Root, debs: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """Yield podman with the image `wolun`."""
    directory = tmp_path_factory.mktemp("podman")
    made = Podman(directory)
    packed = subprocess.run(["tar", "-C", base.directory, "-c", "."], capture_output=True, check=True)
    made.run("import", "-", "localhost/debian:12", data=packed.stdout)
    context = directory / "context"
    context.mkdir()
    (package,) = debs.glob("wolun_*.deb")
    (context / "wolun.deb").write_bytes(package.read_bytes())
    (context / "Containerfile").write_bytes((PROJECT / "config/Containerfile").read_bytes())
    options = (
        "--build-arg",
        "BASE=localhost/debian:12",
        "--format",
        "docker",
        "--volume",
        f"{cache}:/var/cache/apt/archives",
    )
    made.run("build", *options, "--layers=false", "--network", "host", "-t", "wolun", context)
    yield made


def test_image_runs_without_privileges_and_knows_its_health(podman: Podman, tmp_path: Path) -> None:
    told = json.loads(podman.run("image", "inspect", "wolun").stdout)[0]
    assert told["Config"]["User"] == "wolun"
    assert told["HealthCheck" if "HealthCheck" in told else "Healthcheck"]["Test"] == ["CMD", "wolun", "status"]
    limits = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096")
    name = podman.run("run", "-d", "--network", "none", "--cap-drop", "all", *limits, "wolun").stdout.decode().strip()
    try:
        deadline = time.monotonic() + PATIENCE
        while podman.run("healthcheck", "run", name, check=False).returncode:
            assert time.monotonic() < deadline, podman.run("logs", name).stderr
            time.sleep(0.5)
        assert b"wolun" in podman.run("exec", name, "id", "-un").stdout
        podman.run("exec", name, "wolun", "volume", "create", "vol0", "8MiB")
        podman.run("exec", name, "wolun", "snapshot", "create", "vol0", "first")
        image = podman.run("exec", name, "wolun", "snapshot", "export", "vol0@first", "-").stdout
        assert image == bytes(8 << 20)
        status = podman.run("exec", name, "cat", "/proc/1/status").stdout.decode()
        assert "CapEff:\t0000000000000000" in status
    finally:
        podman.run("stop", "-t", "60", name)
    state = json.loads(podman.run("inspect", name).stdout)[0]["State"]
    assert state["ExitCode"] == 0, podman.run("logs", name).stderr
    podman.run("rm", name)
