# SPDX-License-Identifier: Apache-2.0
"""`wolun doctor` on this machine, whatever it is, and with something wrong that a test can arrange."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from click.testing import CliRunner

from target import cli, doctor
from target.configuration import settings


def test_a_port_in_use_is_found_with_its_remedy(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        report = doctor.examine(tmp_path, [f"127.0.0.1:{holder.getsockname()[1]}"])
    assert not report.can_run(settings.Fabric.PORTAL)
    assert "fabric: portal, wolun's own iSCSI portal: CANNOT RUN" in doctor.show(report)
    assert "portal.listen" in doctor.show(report)


def test_a_free_port_and_a_state_directory_to_be_made_are_good(tmp_path: Path) -> None:
    report = doctor.examine(tmp_path / "new/state", ["127.0.0.1:0"])
    assert report.can_run(settings.Fabric.PORTAL)
    assert "can be created" in doctor.show(report)


def test_a_kernel_without_the_modules_is_told_from_one_with_them(tmp_path: Path) -> None:
    report = doctor.examine(tmp_path, ["127.0.0.1:0"])
    modules = [each for each in report.findings if each.what.startswith("module ")]
    assert len(modules) == 3
    assert report.can_run(settings.Fabric.LIO) <= all(each.good for each in modules)
    for each in modules:
        assert each.good or each.remedy


def test_a_configuration_that_cannot_be_used_is_told_in_the_form_asked_for(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("taget: x\n")
    for words in (["doctor", "--config"], ["config", "check"]):
        done = CliRunner().invoke(cli.main, ["--json", *words, str(bad)])
        assert done.exit_code == 1
        assert {each["path"] for each in json.loads(done.stdout)["problems"]} >= {"taget"}
        done = CliRunner().invoke(cli.main, [*words, str(bad)])
        assert (done.exit_code, done.stdout) == (1, "")
        assert f"{bad}:1: taget: unknown key; did you mean target?" in done.stderr
        done = CliRunner().invoke(cli.main, ["--json", *words, str(tmp_path / "none")])
        assert (done.exit_code, json.loads(done.stderr)["error"]) == (1, "unreadable")
        done = CliRunner().invoke(cli.main, [*words, str(tmp_path / "none")])
        assert (
            done.stderr
            == f"wolun: {tmp_path / 'none'} cannot be read: No such file or directory\nName a readable file.\n"
        )


def test_the_command_speaks_json_and_tells_by_its_status(tmp_path: Path) -> None:
    config = tmp_path / "lio.yaml"
    config.write_text("target: iqn.2026-11.io.wolun:doctor\nfabric: lio\nvolumes: []\n")
    done = CliRunner().invoke(cli.main, ["--state-dir", str(tmp_path), "doctor", "--config", str(config), "--json"])
    answer = json.loads(done.stdout)
    assert set(answer["runs"]) == {"portal", "lio"}
    assert done.exit_code == (0 if answer["runs"]["lio"] else 1)
