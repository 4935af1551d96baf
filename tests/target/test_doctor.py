# SPDX-License-Identifier: Apache-2.0
"""`wolun doctor` on the machine of the tests, and with faults that a test can arrange."""

from __future__ import annotations

import json
import resource
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from lun_backends.initiator import libiscsi
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


def test_a_free_port_and_a_new_state_directory_are_good(tmp_path: Path) -> None:
    report = doctor.examine(tmp_path / "new/state", ["127.0.0.1:0"])
    assert report.can_run(settings.Fabric.PORTAL)
    assert "can be created" in doctor.show(report)


def test_the_kernel_target_needs_all_modules(tmp_path: Path) -> None:
    report = doctor.examine(tmp_path, ["127.0.0.1:0"])
    modules = [finding for finding in report.findings if finding.what.startswith("module ")]
    assert len(modules) == 3
    assert report.can_run(settings.Fabric.LIO) <= all(module.good for module in modules)
    for module in modules:
        assert module.good or module.remedy


def test_an_invalid_configuration_is_reported_as_text_or_json(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("taget: x\n")
    for words in (["doctor", "--config"], ["config", "check"]):
        done = CliRunner().invoke(cli.main, ["--json", *words, str(bad)])
        assert done.exit_code == 1
        assert {problem["path"] for problem in json.loads(done.stdout)["problems"]} >= {"taget"}
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


def test_json_and_the_exit_status_report_what_runs(tmp_path: Path) -> None:
    config = tmp_path / "lio.yaml"
    config.write_text("target: iqn.2026-11.io.wolun:doctor\nfabric: lio\nvolumes: []\n")
    done = CliRunner().invoke(cli.main, ["--state-dir", str(tmp_path), "doctor", "--config", str(config), "--json"])
    answer = json.loads(done.stdout)
    assert set(answer["runs"]) == {"portal", "lio"}
    assert done.exit_code == (0 if answer["runs"]["lio"] else 1)


def test_missing_libiscsi_is_a_warning_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libiscsi, "is_installed", lambda: False)
    (found,) = [one for one in doctor.examine(tmp_path, []).findings if one.what == "libiscsi"]
    assert (found.good, found.optional) == (False, True)
    assert "apt-get install libiscsi7" in found.remedy


def test_few_open_files_are_a_warning_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for most, good in ((2048, False), (524288, True)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, most=most: (1024, most))
        (finding,) = [one for one in doctor.examine(tmp_path, []).findings if one.what == "open files"]
        assert finding.good == good
        assert finding.optional
    assert finding.found == "524288, enough for about 228864 snapshots"
