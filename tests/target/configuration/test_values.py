# SPDX-License-Identifier: Apache-2.0
"""The values of single keys: allowed ones are converted, and the others are explained."""

from __future__ import annotations

import pytest

from target.configuration import reader, values
from tests.target.configuration.files import VOLUME, only


@pytest.mark.parametrize(
    ("size", "count"), [("1GiB", 1 << 30), ("64 KiB", 65536), ("4096", 4096), ('"4096"', 4096), ("2TiB", 2 << 40)]
)
def test_sizes_have_units(size: str, count: int) -> None:
    assert reader.parse(VOLUME.replace("1GiB", size), "f.yaml").volumes[0].size == count


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            VOLUME.replace("1GiB", "-512"),
            "f.yaml:5: volumes[0].size: -512 bytes is not a size: write one from 0 to 8192PiB",
        ),
        (
            VOLUME.replace("1GiB", "8192PiB"),
            "f.yaml:5: volumes[0].size: 9223372036854775808 bytes is not a size: write one from 0",
        ),
        (
            VOLUME + "portal: {memory: 63MiB}\n",
            "f.yaml:6: portal.memory: 63MiB is too little memory: at least 64MiB",
        ),
        (VOLUME + "portal: {sessions: 0}\n", "f.yaml:6: portal.sessions: 0 is too small: at least 1"),
        (VOLUME + "    limit: -1\n", "f.yaml:6: volumes[0].limit: -1 bytes is not a size: write one from 0"),
        (VOLUME.replace("1GiB", "1GB"), "f.yaml:5: volumes[0].size: 'GB' is not a unit of size; did you mean 1GiB?"),
        (VOLUME.replace("1GiB", "big"), "f.yaml:5: volumes[0].size: 'big' is not a size"),
        (VOLUME.replace("1GiB", "-1"), "f.yaml:5: volumes[0].size"),
        (VOLUME.replace("lun: 0", "lun: -1"), "f.yaml:4: volumes[0].lun: -1 is too small: at least 0"),
        (VOLUME.replace("lun: 0", "lun: 16384"), "f.yaml:4: volumes[0].lun: 16384 is too large: at most 16383"),
        (VOLUME.replace("lun: 0", "lun: x"), "f.yaml:4: volumes[0].lun: 'x' is not a whole number"),
        (VOLUME.replace("lun: 0", "lun: 1.5"), "f.yaml:4: volumes[0].lun: 1.5 is not a whole number"),
        (VOLUME.replace("vol0", "vol@0"), "f.yaml:3: volumes[0].name: 'vol@0' is not a name"),
        (VOLUME.replace("vol0", '"vol0\\n"'), "f.yaml:3: volumes[0].name: 'vol0\\n' is not a name"),
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
        (VOLUME + "    snapshots: [a/b]\n", "f.yaml:6: volumes[0].snapshots[0]: 'a/b' is not a name"),
        (VOLUME + '    primary: "/a\\0b"\n', "f.yaml:6: volumes[0].primary: it has a NUL character"),
        (VOLUME + "portal: {listen: here}\n", "f.yaml:6: portal.listen: 'here' is not an address to listen on"),
        (VOLUME + "portal: {listen: 'a:70000'}\n", "f.yaml:6: portal.listen: 'a:70000' is not an address to listen on"),
        (VOLUME + "access: {networks: [1.2.3.4/33]}\n", "f.yaml:6: access.networks[0]: '1.2.3.4/33' does not appear"),
        (VOLUME + "access: {networks: [5]}\n", "f.yaml:6: access.networks[0]: 5 is not a network"),
        (VOLUME.replace("wolun:test", "WOLUN"), "f.yaml:1: target: 'iqn.2026-11.io.WOLUN' is not an iSCSI name"),
    ],
)
def test_bad_value_is_explained(text: str, line: str) -> None:
    assert only(text).startswith(line)


def test_one_address_is_a_list_of_one() -> None:
    assert reader.parse(VOLUME + "portal: {listen: '[::1]:3260'}\n", "f.yaml").portal.listen == ("[::1]:3260",)
    several = reader.parse(VOLUME + "portal: {listen: ['127.0.0.1:1', 'host:0']}\n", "f.yaml")
    assert several.portal.listen == ("127.0.0.1:1", "host:0")


def test_volume_may_have_no_lun() -> None:
    (volume,) = reader.parse(VOLUME.replace("lun: 0", "lun: none"), "f.yaml").volumes
    assert volume.lun is None
    assert volume.model_dump()["lun"] == values.NO_LUN


def test_below_puts_a_path_before_each_problem() -> None:
    assert values.below(("a", 1), {("b",): "bad", (): "worse"}) == {("a", 1, "b"): "bad", ("a", 1): "worse"}
