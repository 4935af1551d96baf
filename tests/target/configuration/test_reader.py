# SPDX-License-Identifier: Apache-2.0
"""The reader: it returns the settings of a file, or explains every mistake with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from target.configuration import reader
from tests.target.configuration.files import CONFIG, HEAD, VOLUME, only, problems

EXAMPLES = sorted(path for path in CONFIG.glob("*.yaml") if path.name != "prometheus-rules.yaml")


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(file: Path) -> None:
    assert reader.load(file).all_volumes


def test_names_that_yaml_1_1_reads_as_other_types_stay_names() -> None:
    text = VOLUME + "    snapshots: [2026-11-22, on, yes, 007, 1.2.3]\n"
    assert reader.parse(text, "f.yaml").volumes[0].snapshots == ("2026-11-22", "on", "yes", "007", "1.2.3")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (VOLUME + "    chunk_sze: 4KiB\n", "f.yaml:6: volumes[0].chunk_sze: unknown key; did you mean chunk_size?"),
        ("portl: {}\n" + VOLUME, "f.yaml:1: portl: unknown key; did you mean portal? allowed: target, fabric, portal,"),
        (VOLUME + "    zzz: 1\n", "f.yaml:6: volumes[0].zzz: unknown key; allowed: name, lun, size,"),
        (VOLUME + "portal: {lisen: x}\n", "f.yaml:6: portal.lisen: unknown key; did you mean listen?"),
        (VOLUME + "    name: other\n", "f.yaml:6: volumes[0].name: this key stands on line 3 already"),
        (VOLUME + "fabric: portel\n", "f.yaml:6: fabric: 'portel' is unknown; did you mean portal? allowed: portal"),
        (
            VOLUME + "    durability: powerloss\n",
            "f.yaml:6: volumes[0].durability: 'powerloss' is unknown; did you mean power-loss? allowed: power-loss, process-crash",
        ),
        (VOLUME.replace("    lun: 0\n", ""), "f.yaml:3: volumes[0].lun: this key is missing"),
        (VOLUME + "portal: 5\n", "f.yaml:6: portal: 5 is not a group of keys"),
        (HEAD + "volumes: {a: 1}\n", "f.yaml:2: volumes: a group of keys is not a list"),
        (HEAD + "volumes:\n", "f.yaml:2: volumes: nothing is not a list"),
        (HEAD, "f.yaml:1: volumes: this key is missing"),
        ("- 1\n", "f.yaml:1: a list is not a group of keys"),
        ("a: [\n", "f.yaml:2: this is not YAML"),
        ("a:\n\t- b\n", "f.yaml:2: this is not YAML"),
        (b"\xff\xfe\xff", "f.yaml:1: this is not YAML"),
        ("a: &x [*x]\n", "f.yaml:1: a[0]: this alias contains itself"),
        ("a: !!python/object:os.system x\n", "f.yaml:1: this is not YAML"),
        ("a: !secret x\n", "f.yaml:1: a: tags like !secret have no meaning here"),
        ("? [a]\n: b\n", "f.yaml:1: a key must be a plain word"),
        (VOLUME + "---\na: b\n", "f.yaml:6: this is not YAML"),
    ],
)
def test_mistake_is_named_with_its_line(text: str | bytes, line: str) -> None:
    assert only(text).startswith(line)


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_lines() -> None:
    text = "target: x\nportal: {listen: x}\nvolumes:\n  - {name: a, lun: x}\n  - 5\nfabric: x\n"
    assert [line.split(": ")[0] for line in problems(text)] == [f"f.yaml:{line}" for line in (1, 2, 4, 5, 6)]


def test_empty_file_lacks_two_keys() -> None:
    assert problems("") == ["f.yaml:1: target: this key is missing", "f.yaml:1: volumes: this key is missing"]


def test_path_is_spelt_as_users_write_it() -> None:
    assert reader.spell(("volumes", 0, "keep", "daily")) == "volumes[0].keep.daily"
    assert reader.spell(()) == ""
