# SPDX-License-Identifier: Apache-2.0
"""The functions that the nodes of the shell share."""

from __future__ import annotations

from pathlib import Path

import pytest

from target.shell import console, node


@pytest.mark.parametrize(("text", "value"), [("true", True), ("Yes", True), ("1", True), ("no", False), ("0", False)])
def test_booleans_have_the_spellings_of_targetcli(text: str, value: bool) -> None:
    assert node.flag(text, "force") is value


def test_other_text_is_not_a_boolean() -> None:
    with pytest.raises(console.Refused, match="force=maybe is not true or false"):
        node.flag("maybe", "force")


@pytest.mark.parametrize("text", ["", "-1", "1.0", "0x10", "²"])
def test_other_text_is_not_a_number(text: str) -> None:
    with pytest.raises(console.Refused, match="is not a number"):
        node.number(text, "lun")


def test_a_number_may_be_left_out() -> None:
    assert (node.number(None, "lun"), node.number("12", "lun")) == (None, 12)


def test_only_a_single_completion_is_complete() -> None:
    assert node.one_of(["vol0", "vol1", "db"], "vol") == ["vol0", "vol1"]
    assert node.one_of(["vol0", "vol1", "db"], "d") == ["db "]
    assert node.one_of(["/etc/"], "/e") == [
        "/etc/"
    ]  # a directory is completed with a slash, so that its path can go on


def test_files_are_completed_with_their_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    assert node.files(f"{tmp_path}/f") == [f"{tmp_path}/file", f"{tmp_path}/folder/"]
    assert node.files(f"{tmp_path}/missing/") == []


def test_an_export_does_not_overwrite_a_file(tmp_path: Path) -> None:
    node.export("text\n", str(tmp_path / "new"))
    with pytest.raises(console.Refused, match="cannot be written: File exists"):
        node.export("other\n", str(tmp_path / "new"))
    assert (tmp_path / "new").read_text() == "text\n"


def test_nouns_have_a_plural() -> None:
    assert [node.plural(count, "LUN") for count in (0, 1, 2)] == ["0 LUNs", "1 LUN", "2 LUNs"]
