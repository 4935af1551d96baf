# SPDX-License-Identifier: Apache-2.0
"""`wolun config check` and `wolun config schema`."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.target.commands import commanding


def test_keys_of_a_file_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    bad = tmp_path / "bad\x1b[2J.yaml"
    bad.write_text('"\\e]0;owned\\a\\n/etc: good": 1\n')
    done = commanding.wolun("config", "check", bad)
    assert (done.returncode, done.stdout) == (1, "")
    assert all(line.isprintable() for line in done.stderr.splitlines())
    assert "\\x1b]0;owned\\x07\\n/etc: good: unknown key" in done.stderr


def test_check_names_each_mistake_and_schema_is_the_published_one(tmp_path: Path) -> None:
    good = Path(__file__).resolve().parents[3] / "config" / "quickstart.yaml"
    assert commanding.wolun("config", "check", good).stdout == f"{good}: good\n"
    bad = tmp_path / "bad.yaml"
    bad.write_text(good.read_text().replace("block_size", "blok_size"))
    done = commanding.wolun("config", "check", bad)
    assert done.returncode == 1
    assert re.match(
        rf"{re.escape(str(bad))}:\d+: volumes\[0\]\.blok_size: unknown key; did you mean block_size\?", done.stderr
    )
    (problem,) = json.loads(commanding.wolun("config", "check", bad, "--json").stdout)["problems"]
    assert problem["path"] == "volumes[0].blok_size"
    assert commanding.wolun("config", "check", tmp_path / "none").returncode == 1
    assert json.loads(commanding.wolun("config", "schema").stdout) == json.loads(
        good.with_name("schema.json").read_text()
    )
