# SPDX-License-Identifier: Apache-2.0
"""The Debian packages: lintian's opinion, what is in them, and how they install, upgrade and go in a root of Debian 12."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import target
from tests import peers
from tests.packaging import root

PROJECT = Path(__file__).resolve().parents[2]


def test_lintian_has_nothing_to_say(debs: Path) -> None:
    packages = sorted(str(path) for path in debs.glob("*.deb"))
    assert len(packages) == 2
    command = [peers.require("lintian"), "--fail-on", "error,warning", "--no-cfg", "--allow-root", *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    overrides = [*PROJECT.glob("config/debian/*.lintian-overrides")]
    for path in overrides:  # each has a reason
        lines = path.read_text().splitlines()
        assert all(
            lines[at - 1].startswith(("#", "wolun")) for at, line in enumerate(lines) if not line.startswith("#")
        )
        assert lines[0].startswith("#")


def test_version_is_that_of_the_program(debs: Path) -> None:
    newest = (PROJECT / "config/debian/changelog").read_text().splitlines()[0]
    assert re.match(r"wolun \((.*?)\)", newest)[1] == target.VERSION  # type: ignore[index]


def test_package_names_no_place_of_its_build_and_has_all_parts(debs: Path, installed: root.Root) -> None:
    done = installed.run(
        f"grep -rIl {PROJECT} /usr/lib/wolun /usr/share/wolun /usr/share/doc/wolun; "
        "cat /usr/lib/wolun/pyvenv.cfg; ls /usr/share/man/man1; wolun --version; "
        "bash -n /usr/share/bash-completion/completions/wolun; python3 -c 'import fastapi' 2>&1"
    )
    assert str(PROJECT) not in done.stdout
    for words in ("home = /usr/bin", "wolun.1.gz", "wolun-snapshot-create.1.gz", f"wolun {target.VERSION}"):
        assert words in done.stdout
    assert "No module named 'fastapi'" in done.stdout  # the environment is wolun's alone
    there = installed.directory
    for file in (
        "lib/systemd/system/wolun.service",
        "usr/lib/sysusers.d/wolun.conf",
        "usr/share/dbus-1/system.d/org.kernel.TCMUService1.wolun.conf",
        "usr/share/zsh/vendor-completions/_wolun",
        "usr/share/doc/wolun/examples/wolun.service.lio.conf",
        "etc/systemd/system/multi-user.target.wants/wolun.service",
    ):
        assert (there / file).is_symlink() or (there / file).exists(), file
    assert "/opt/wolun" not in (there / "lib/systemd/system/wolun.service").read_text()


def test_unit_of_the_package_is_sound(installed: root.Root, tmp_path: Path) -> None:
    unit = tmp_path / "wolun.service"
    unit.write_text((installed.directory / "lib/systemd/system/wolun.service").read_text())
    command = [peers.require("systemd-analyze"), "verify", "--man=no", f"--root={installed.directory}", "wolun.service"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "wolun.service" not in done.stderr, done.stderr
    security = [peers.require("systemd-analyze"), "security", "--offline=true", "--no-pager", str(unit)]
    said = subprocess.run(security, capture_output=True, text=True, check=True).stdout
    level = re.search(r"Overall exposure level for wolun.service: ([0-9.]+)", said)
    assert level is not None
    assert float(level[1]) < 2


def test_upgrade_keeps_the_configuration_and_purge_keeps_the_data(installed: root.Root) -> None:
    file = "/etc/wolun/wolun.yaml"
    with installed.shell() as shell, root.served(shell):
        shell.good("wolun volume create kept 1MiB && wolun shell saveconfig")
    again = installed.run(
        f"cat {file}; dpkg -i /root/wolun.deb 2>&1; cat {file}; stat -c %U {file}; wolun config check {file}"
    )
    assert again.returncode == 0, again.stdout
    assert again.stdout.count("- name: kept") == 2
    assert "\nwolun\n" in again.stdout
    gone = installed.run(
        "dpkg --purge wolun 2>&1; ls -d /usr/lib/wolun /usr/bin/wolun /etc/wolun /var/lib/wolun/volumes/kept 2>&1; dpkg -i /root/wolun.deb 2>&1"
    )
    assert "/var/lib/wolun/volumes/kept\n" in gone.stdout
    for path in ("/usr/lib/wolun", "/usr/bin/wolun", "/etc/wolun"):
        assert f"cannot access '{path}'" in gone.stdout, gone.stdout
    assert gone.returncode == 0, gone.stdout  # it is installed again, for the next test
