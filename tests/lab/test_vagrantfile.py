# SPDX-License-Identifier: Apache-2.0
"""`vagrant/`, as far as Vagrant, ShellCheck and this project can check it without a machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from target.configuration import reader
from tests import peers

VAGRANT = Path(__file__).resolve().parents[2] / "vagrant"
PROVISION = VAGRANT / "provision"
SCRIPTS = sorted(PROVISION.glob("*.sh"))
GUESTS = Path(__file__).resolve().parents[1] / "kernel/guest"


@pytest.fixture(scope="module")
def vagrant() -> str:
    """Return Vagrant, with the libvirt provider."""
    program = peers.require("vagrant")
    if not any(Path("/usr/share/rubygems-integration").glob("*/gems/vagrant-libvirt-*")):
        peers.install(["vagrant-libvirt"])
    return program


def validate(vagrant: str, directory: Path, state: Path) -> subprocess.CompletedProcess[str]:
    """Run `vagrant validate`, which writes to `state` only."""
    environment = {
        **os.environ,
        "VAGRANT_HOME": str(state / "home"),
        "VAGRANT_DOTFILE_PATH": str(state / "dotfile"),
        "VAGRANT_DEFAULT_PROVIDER": "libvirt",
        "VAGRANT_CHECKPOINT_DISABLE": "1",
    }
    return subprocess.run(
        [vagrant, "validate"], cwd=directory, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_vagrantfile_is_valid(vagrant: str, tmp_path: Path) -> None:
    done = validate(vagrant, VAGRANT, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_validation_finds_a_mistake(vagrant: str, tmp_path: Path) -> None:
    text = (VAGRANT / "Vagrantfile").read_text()
    assert "libvirt.machine_type" in text
    (tmp_path / "Vagrantfile").write_text(text.replace("libvirt.machine_type", "libvirt.machine_typo"))
    done = validate(vagrant, tmp_path, tmp_path)
    assert done.returncode != 0
    assert "machine_typo" in done.stdout + done.stderr


@pytest.mark.parametrize("script", [*SCRIPTS, GUESTS / "systemctl"], ids=lambda path: path.name)
def test_scripts_pass_shellcheck(script: Path) -> None:
    done = subprocess.run([peers.require("shellcheck"), script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", sorted(PROVISION.glob("*.yaml")), ids=lambda path: path.name)
def test_configurations_are_valid(file: Path) -> None:
    reader.load(file)


def test_each_machine_has_its_script() -> None:
    assert {path.name for path in SCRIPTS} == {"common.sh", "initiator.sh", "storage.sh", "node.sh", "backup.sh"}
