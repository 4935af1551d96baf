# SPDX-License-Identifier: Apache-2.0
"""`make serve` in a fresh checkout: it installs what serving needs, says what it does, and serves a copy of the quickstart."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import peers

PROJECT = Path(__file__).resolve().parents[2]
IQN = "iqn.2026-11.io.wolun:quickstart"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a copy of the files that git has, as a clone would be."""
    copy = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        [peers.require("git"), "ls-files", "-z", "-co", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        check=True,
    )
    files = [name for name in listed.stdout.split(b"\0") if name and (PROJECT / os.fsdecode(name)).is_file()]
    packed = subprocess.run(
        ["tar", "-c", "--null", "-T-"], cwd=PROJECT, input=b"\0".join(files), capture_output=True, check=True
    )
    subprocess.run(["tar", "-x"], cwd=copy, input=packed.stdout, check=True)
    quickstart = copy / "config/quickstart.yaml"
    quickstart.write_text(quickstart.read_text().replace("127.0.0.1:3260", f"127.0.0.1:{free_port()}"))
    subprocess.run(["git", "init", "-q"], cwd=copy, check=True)
    subprocess.run(["git", "add", "-A"], cwd=copy, check=True)
    yield copy


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


class Served:
    """A `make serve`, from `with` on until its end.  `said` is what it wrote on standard error."""

    def __init__(self, checkout: Path) -> None:
        self._checkout = checkout
        self.said = ""

    def __enter__(self) -> Served:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("WOLUN_", "MAKE"))}
        self._log = (self._checkout.parent / "log").open("w+")
        self._process = subprocess.Popen(
            [peers.require("make"), "serve"],
            cwd=self._checkout,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        self.said = Path(self._log.name).read_text()
        assert ready.startswith(f"ready: {IQN} on 127.0.0.1:"), self.said
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate(timeout=60)
        self._log.close()


def wolun(checkout: Path, *words: str) -> str:
    done = subprocess.run([checkout / ".venv/bin/wolun", *words], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_serving_installs_only_its_own_packages_and_says_so(checkout: Path) -> None:
    with Served(checkout) as first:
        for words in (
            "setup: making .venv with Python 3",
            "packages that serving needs (.ci/serve.txt)",
            "setup: done",
            "a copy of the quickstart",
        ):
            assert words in first.said
        installed = {path.name.partition("-")[0] for path in checkout.glob(".venv/lib/*/site-packages/*.dist-info")}
        assert {"click", "fastapi", "wolun"} <= installed
        assert not {"mypy", "pytest", "selenium", "rtslib_fb", "hypothesis"} & installed
        assert "vol0" in wolun(checkout, "status")
        wolun(checkout, "volume", "create", "more", "1MiB")
        assert "saved to" in wolun(checkout, "shell", "saveconfig")
    assert "name: more" in (checkout / "var/wolun.yaml").read_text()
    changed = subprocess.run(["git", "diff", "--name-only"], cwd=checkout, capture_output=True, text=True, check=True)
    assert changed.stdout == ""
    with Served(checkout) as second:
        assert "setup:" not in second.said  # nothing is installed again
        assert "more" in wolun(checkout, "volume", "list")


def test_without_the_extra_the_kernels_target_names_what_to_install(checkout: Path, tmp_path: Path) -> None:
    config = tmp_path / "lio.yaml"
    config.write_text("target: iqn.2026-11.io.wolun:lio\nfabric: lio\nvolumes: []\n")
    command: list[str | Path] = [
        checkout / ".venv/bin/wolun",
        "serve",
        "--config",
        config,
        "--state-dir",
        tmp_path / "state",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "needs Python packages that are not installed (dbus-fast, pyroute2, rtslib-fb)" in done.stderr
    assert "pip install 'wolun[lio]'" in done.stderr
    assert "Traceback" not in done.stderr
    doctor = subprocess.run([checkout / ".venv/bin/wolun", "doctor"], capture_output=True, text=True, timeout=60)
    assert "MISSING Python packages: not installed: dbus-fast, pyroute2, rtslib-fb" in doctor.stdout
