# SPDX-License-Identifier: Apache-2.0
"""Secrets are stored where only the daemon can read them, and are removed with their initiator."""

from __future__ import annotations

import stat
from pathlib import Path

from target.administration.secrets import Secrets

NAME = "iqn.2026-11.io.wolun:Ann/../x"


def test_secrets_are_stored_for_the_daemon_alone(tmp_path: Path) -> None:
    secrets = Secrets(tmp_path)
    secrets.keep(NAME, "twelve bytes", "twelve others")
    mine, target = secrets.files(NAME)
    assert (tmp_path / mine).read_text() == "twelve bytes\n"
    assert (tmp_path / target).read_text() == "twelve others\n"
    assert stat.S_IMODE((tmp_path / mine).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / mine).parent.stat().st_mode) == 0o700


def test_name_cannot_leave_the_directory(tmp_path: Path) -> None:
    for file in Secrets(tmp_path).files(NAME):
        assert (tmp_path / file).resolve().parent == tmp_path / "secrets"


def test_case_of_the_name_does_not_matter(tmp_path: Path) -> None:
    assert Secrets(tmp_path).files(NAME) == Secrets(tmp_path).files(NAME.lower())


def test_without_a_target_secret_the_stored_one_stays(tmp_path: Path) -> None:
    secrets = Secrets(tmp_path)
    secrets.keep(NAME, "twelve bytes", "twelve others")
    secrets.keep(NAME, "twelve again", None)
    mine, target = secrets.files(NAME)
    assert (tmp_path / mine).read_text() == "twelve again\n"
    assert (tmp_path / target).exists()


def test_forgotten_secrets_are_gone_and_others_stay(tmp_path: Path) -> None:
    secrets = Secrets(tmp_path)
    secrets.forget(NAME)  # none is there
    secrets.keep(NAME, "twelve bytes", "twelve others")
    secrets.keep("other", "twelve bytes", None)
    secrets.forget(NAME)
    assert [path.name for path in (tmp_path / "secrets").iterdir()] == ["other"]
