# SPDX-License-Identifier: Apache-2.0
"""Configuration files: what they may say, and what is said about each mistake."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
import yaml

from target.configuration import reader, schema

CONFIG = Path(__file__).resolve().parents[3] / "config"

HEAD = "target: iqn.2026-11.io.wolun:test\n"
VOLUME = HEAD + "volumes:\n  - name: vol0\n    lun: 0\n    size: 1GiB\n"


def problems(text: str | bytes) -> list[str]:
    """Return the lines that explain a bad configuration."""
    with pytest.raises(reader.ConfigurationError) as caught:
        reader.parse(text, "f.yaml")
    return str(caught.value).splitlines()


def only(text: str | bytes) -> str:
    """Return the one line that explains a configuration with one mistake."""
    (line,) = problems(text)
    return line


@pytest.mark.parametrize("file", sorted(CONFIG.glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_valid(file: Path) -> None:
    assert reader.load(file).volumes


def test_the_quickstart_is_what_the_readme_promises() -> None:
    quickstart = reader.load(CONFIG / "quickstart.yaml")
    (volume,) = quickstart.volumes
    assert quickstart.target == "iqn.2026-11.io.wolun:quickstart"
    assert quickstart.portal.listen == ("127.0.0.1:3260",)
    assert (volume.name, volume.lun, volume.size, volume.block_size) == ("vol0", 0, 1 << 30, 512)
    assert quickstart.access.admits("127.0.0.1")
    assert quickstart.access.admits("::1")
    assert not quickstart.access.admits("192.0.2.1")


def test_the_full_example_names_every_key() -> None:
    def keys(value: object) -> set[str]:
        if isinstance(value, dict):
            return set(value) | {key for each in value.values() for key in keys(each)}
        return {key for each in value for key in keys(each)} if isinstance(value, list) else set()

    made = schema.json_schema()
    there_are = {key for part in (made, *made["$defs"].values()) for key in part.get("properties", {})}
    assert keys(yaml.safe_load((CONFIG / "full.yaml").read_text())) == there_are


def test_the_schema_is_current() -> None:
    assert json.loads((CONFIG / "schema.json").read_text()) == schema.json_schema(), (
        "run `wolun config schema > config/schema.json`"
    )


def test_everything_but_names_sizes_and_luns_has_a_default() -> None:
    found = reader.parse(VOLUME, "f.yaml")
    (volume,) = found.volumes
    assert found.portal.listen == ("127.0.0.1:3260",)
    assert volume.chunk_size == 64 << 10
    assert volume.durability.value == "power-loss"
    assert volume.snapshots == ()


def test_nobody_may_log_in_unless_the_configuration_says_so() -> None:
    access = reader.parse(VOLUME, "f.yaml").access
    assert not access.admits("127.0.0.1")
    assert not access.admits("::1")


def test_an_ipv4_address_is_recognised_when_it_comes_as_ipv6() -> None:
    access = reader.parse(VOLUME + "access: {networks: [10.0.0.0/8]}\n", "f.yaml").access
    assert access.admits("::ffff:10.1.2.3")
    assert not access.admits("::ffff:11.1.2.3")


@pytest.mark.parametrize(
    ("size", "count"), [("1GiB", 1 << 30), ("64 KiB", 65536), ("4096", 4096), ('"4096"', 4096), ("2TiB", 2 << 40)]
)
def test_sizes(size: str, count: int) -> None:
    assert reader.parse(VOLUME.replace("1GiB", size), "f.yaml").volumes[0].size == count


def test_names_that_yaml_1_1_would_take_for_something_else_stay_names() -> None:
    text = VOLUME + "    snapshots: [2026-11-22, on, yes, 007, 1.2.3]\n"
    assert reader.parse(text, "f.yaml").volumes[0].snapshots == ("2026-11-22", "on", "yes", "007", "1.2.3")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (VOLUME + "    chunk_sze: 4KiB\n", "f.yaml:6: volumes[0].chunk_sze: unknown key; did you mean chunk_size?"),
        ("portl: {}\n" + VOLUME, "f.yaml:1: portl: unknown key; did you mean portal? allowed: target, fabric, portal,"),
        (
            VOLUME.replace("1GiB", "-512"),
            "f.yaml:5: volumes[0].size: -512 bytes is not a size: write one from 0 to 8192PiB",
        ),
        (
            VOLUME.replace("1GiB", "8192PiB"),
            "f.yaml:5: volumes[0].size: 9223372036854775808 bytes is not a size: write one from 0",
        ),
        (VOLUME + "    limit: -1\n", "f.yaml:6: volumes[0].limit: -1 bytes is not a size: write one from 0"),
        (VOLUME + "    zzz: 1\n", "f.yaml:6: volumes[0].zzz: unknown key; allowed: name, lun, size,"),
        (VOLUME + "portal: {lisen: x}\n", "f.yaml:6: portal.lisen: unknown key; did you mean listen?"),
        (VOLUME + "    name: other\n", "f.yaml:6: volumes[0].name: this key stands on line 3 already"),
        (VOLUME + "fabric: portel\n", "f.yaml:6: fabric: 'portel' is unknown; did you mean portal? allowed: portal"),
        (
            VOLUME + "    durability: powerloss\n",
            "f.yaml:6: volumes[0].durability: 'powerloss' is unknown; did you mean power-loss? allowed: power-loss, process-crash",
        ),
        (VOLUME.replace("1GiB", "1GB"), "f.yaml:5: volumes[0].size: 'GB' is not a unit of size; did you mean 1GiB?"),
        (VOLUME.replace("1GiB", "big"), "f.yaml:5: volumes[0].size: 'big' is not a size"),
        (VOLUME.replace("1GiB", "-1"), "f.yaml:5: volumes[0].size"),
        (VOLUME.replace("1GiB", "1000"), "f.yaml:5: volumes[0].size: 1000B is not a whole number of blocks"),
        (VOLUME.replace("lun: 0", "lun: -1"), "f.yaml:4: volumes[0].lun: -1 is too small: at least 0"),
        (VOLUME.replace("lun: 0", "lun: 16384"), "f.yaml:4: volumes[0].lun: 16384 is too large: at most 16383"),
        (VOLUME.replace("lun: 0", "lun: x"), "f.yaml:4: volumes[0].lun: 'x' is not a whole number"),
        (VOLUME.replace("lun: 0", "lun: 1.5"), "f.yaml:4: volumes[0].lun: 1.5 is not a whole number"),
        (VOLUME.replace("    lun: 0\n", ""), "f.yaml:3: volumes[0].lun: this key is missing"),
        (VOLUME.replace("vol0", "vol@0"), "f.yaml:3: volumes[0].name: 'vol@0' is not a name"),
        (VOLUME.replace("vol0", "../x"), "f.yaml:3: volumes[0].name: '../x' is not a name"),
        (VOLUME.replace("vol0", "12"), "f.yaml:3: volumes[0].name: 12 is not a string (in quotes,"),
        (
            VOLUME + "    block_size: 513\n",
            "f.yaml:6: volumes[0].block_size: 513 is not a block size: write 512 or 4096",
        ),
        (VOLUME + "    chunk_size: 3KiB\n", "f.yaml:6: volumes[0].chunk_size: 3KiB is not a chunk size"),
        (VOLUME + "    chunk_size: 2MiB\n", "f.yaml:6: volumes[0].chunk_size: 2MiB is not a chunk size"),
        (
            VOLUME + "    physical_block_size: 512\n",
            "f.yaml:6: volumes[0].physical_block_size: 512B is not a physical",
        ),
        (
            VOLUME + "    physical_block_size: 12KiB\n",
            "f.yaml:6: volumes[0].physical_block_size: 12KiB is not a physical",
        ),
        (VOLUME + "    snapshots: [a, b, a]\n", "f.yaml:6: volumes[0].snapshots[2]: a is listed already"),
        (VOLUME + "    snapshots: [a/b]\n", "f.yaml:6: volumes[0].snapshots[0]: 'a/b' is not a name"),
        (VOLUME + "portal: 5\n", "f.yaml:6: portal: 5 is not a group of keys"),
        (VOLUME + "portal: {listen: here}\n", "f.yaml:6: portal.listen: 'here' is not an address to listen on"),
        (VOLUME + "portal: {listen: 'a:70000'}\n", "f.yaml:6: portal.listen: 'a:70000' is not an address to listen on"),
        (VOLUME + "access: {networks: [1.2.3.4/33]}\n", "f.yaml:6: access.networks[0]: '1.2.3.4/33' does not appear"),
        (VOLUME + "access: {networks: [5]}\n", "f.yaml:6: access.networks[0]: 5 is not a network"),
        (VOLUME.replace("wolun:test", "WOLUN"), "f.yaml:1: target: 'iqn.2026-11.io.WOLUN' is not an iSCSI name"),
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
def test_a_mistake_is_named_with_its_line(text: str | bytes, line: str) -> None:
    assert only(text).startswith(line)


def test_neighbours_must_agree() -> None:
    text = HEAD + textwrap.dedent("""\
        volumes:
          - {name: a, lun: 0, size: 1MiB, primary: x.img}
          - {name: a, lun: 0, size: 1MiB, primary: x.img}
        """)
    assert problems(text) == [
        "f.yaml:4: volumes[1].name: volumes[0] is called a already",
        "f.yaml:4: volumes[1].lun: LUN 0 is a already; the lowest free one is 1",
        "f.yaml:4: volumes[1].primary: x.img is the primary of a already",
    ]


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_lines() -> None:
    text = "target: x\nportal: {listen: x}\nvolumes:\n  - {name: a, lun: x}\n  - 5\nfabric: x\n"
    assert [line.split(": ")[0] for line in problems(text)] == [f"f.yaml:{line}" for line in (1, 2, 4, 5, 6)]


def test_an_empty_file_says_what_is_missing() -> None:
    assert problems("") == ["f.yaml:1: target: this key is missing", "f.yaml:1: volumes: this key is missing"]
