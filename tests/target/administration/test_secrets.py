# SPDX-License-Identifier: Apache-2.0
"""Secrets are stored where only the daemon can read them, and are removed with their initiator."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from target.administration.secrets import Secrets
from target.configuration import settings

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
    mine, target = Secrets(tmp_path).files(NAME)
    assert (tmp_path / mine).resolve().parent == (tmp_path / target).resolve().parent
    assert (tmp_path / mine).resolve().parent.parent == tmp_path / "secrets" / "initiators"


def test_case_of_the_name_does_not_matter(tmp_path: Path) -> None:
    assert Secrets(tmp_path).files(NAME) == Secrets(tmp_path).files(NAME.lower())


@pytest.mark.parametrize(
    "other", [f"{NAME}.target", f"{NAME}/target", f"{NAME}/initiator", f"{NAME}.new", "initiators"]
)
def test_no_file_is_that_of_another_initiator(tmp_path: Path, other: str) -> None:
    secrets = Secrets(tmp_path)
    secrets.keep(NAME, "twelve bytes", "twelve others")
    secrets.keep(other, "other secret", "other target")
    texts = [(tmp_path / file).read_text() for name in (NAME, other) for file in secrets.files(name)]
    assert texts == ["twelve bytes\n", "twelve others\n", "other secret\n", "other target\n"]


def test_without_a_target_secret_the_stored_one_stays(tmp_path: Path) -> None:
    secrets = Secrets(tmp_path)
    secrets.keep(NAME, "twelve bytes", "twelve others")
    secrets.keep(NAME, "twelve again", None)
    mine, target = secrets.files(NAME)
    assert (tmp_path / mine).read_text() == "twelve again\n"
    assert (tmp_path / target).exists()


def test_forgotten_secrets_are_gone_and_others_stay(tmp_path: Path) -> None:
    secrets = Secrets(tmp_path)
    secrets.forget(NAME, None, [])  # none is there
    secrets.keep(NAME, "twelve bytes", "twelve others")
    secrets.keep("other", "twelve bytes", None)
    secrets.forget(NAME, None, [])
    assert [path.name for path in (tmp_path / "secrets" / "initiators").iterdir()] == ["other"]


def chap(file: Path | str, target_file: Path | str | None = None) -> settings.Chap:
    target_name = None if target_file is None else "w"
    fields = {"name": "ann", "secret_file": file, "target_name": target_name, "target_secret_file": target_file}
    return settings.Chap.model_validate(fields)


def test_files_of_older_versions_are_removed_if_no_other_entry_has_them(tmp_path: Path) -> None:
    """An older version stored the target's secret for `ann` and the own secret of `ann.target` in one file."""
    ann = "iqn.2026-11.io.wolun:ann"
    (tmp_path / "secrets").mkdir()
    files = [tmp_path / "secrets" / name for name in (ann, f"{ann}.target")]
    for file in files:
        file.write_text("twelve bytes\n")
    old = chap(f"secrets/{ann}", files[1])
    secrets = Secrets(tmp_path)
    secrets.forget(ann, None, [])
    assert all(file.exists() for file in files), "an entry that names no such files has none"
    secrets.forget(ann, old, [chap(f"secrets/../secrets/{ann}.target")])
    assert [file.exists() for file in files] == [False, True]
    secrets.forget(ann, old, [])
    assert not files[1].exists()


def test_files_of_the_administrator_stay(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    own = tmp_path / "secrets" / "database-server"
    own.write_text("twelve bytes\n")
    Secrets(tmp_path).forget(NAME, chap("secrets/database-server"), [])
    assert own.exists()
