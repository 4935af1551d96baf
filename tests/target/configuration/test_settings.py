# SPDX-License-Identifier: Apache-2.0
"""The settings of a whole file: defaults, and the rules among neighbours."""

from __future__ import annotations

import textwrap

import pytest

from target.configuration import reader
from tests.target.configuration.files import CONFIG, HEAD, VOLUME, only, problems


def test_quickstart_is_as_the_readme_promises() -> None:
    quickstart = reader.load(CONFIG / "quickstart.yaml")
    (volume,) = quickstart.volumes
    assert quickstart.target == "iqn.2026-11.io.wolun:quickstart"
    assert quickstart.portal.listen == ("127.0.0.1:3260",)
    assert (volume.name, volume.lun, volume.size, volume.block_size) == ("vol0", 0, 1 << 30, 512)
    assert quickstart.access.admits("127.0.0.1")
    assert quickstart.access.admits("::1")
    assert not quickstart.access.admits("192.0.2.1")


def test_everything_but_names_sizes_and_luns_has_a_default() -> None:
    settings = reader.parse(VOLUME, "f.yaml")
    (volume,) = settings.volumes
    assert settings.portal.listen == ("127.0.0.1:3260",)
    assert volume.chunk_size == 64 << 10
    assert volume.durability.value == "power-loss"
    assert volume.snapshots == ()


def test_names_luns_and_primaries_are_unique() -> None:
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


SHARED = """\
write_once: [{volume: vol0, snapshot: s, lun: 7, size: 1GiB}]
shared: [{name: other, snapshot: s, primary: /dev/a, write_once: /dev/b, lun: 8, view_lun: 9}]
"""


def test_fixed_luns_are_those_of_all_groups() -> None:
    assert reader.parse(VOLUME + SHARED, "f.yaml").fixed_luns == {0, 7, 8, 9}
    assert reader.parse(VOLUME.replace("lun: 0", "lun: none"), "f.yaml").fixed_luns == frozenset()


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("lun: 7", "lun: 0", "f.yaml:6: write_once[0].lun: LUN 0 is vol0 already"),
        ("lun: 8,", "lun: 7,", "f.yaml:7: shared[0].lun: LUN 7 is vol0@s/write-once already"),
        ("view_lun: 9", "view_lun: 8", "f.yaml:7: shared[0].view_lun: LUN 8 is other already"),
    ],
)
def test_luns_are_unique_across_groups(before: str, after: str, line: str) -> None:
    assert only(VOLUME + SHARED.replace(before, after, 1)) == line


LIO = VOLUME + "fabric: lio\n"


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        (
            "lio: {listen: ['host:3260']}",
            "f.yaml:7: lio.listen[0]: the kernel's target takes numeric addresses, not host",
        ),
        ("lio: {listen: ['0.0.0.0:0']}", "f.yaml:7: lio.listen[0]: the kernel's target takes no port 0"),
        ("lio: {listen: []}", "f.yaml:7: lio.listen: the LUNs could not be reached"),
        (
            "access: {networks: [10.0.0.0/8]}",
            "f.yaml:7: access.networks: the kernel's target cannot distinguish networks",
        ),
    ],
)
def test_the_rules_of_the_kernels_target_are_checked(extra: str, line: str) -> None:
    assert only(f"{LIO}{extra}\n").startswith(line)
    reader.parse(f"{VOLUME}{extra}\n", "f.yaml")


def test_loopback_needs_no_address() -> None:
    assert reader.parse(LIO + "lio: {listen: [], loopback: true}\n", "f.yaml").lio.loopback


@pytest.mark.parametrize("address", ["0.0.0.0:3260", "'[::]:3260'", "nat.example:0"])
def test_announced_address_must_be_one_to_connect_to(address: str) -> None:
    text = f"target: iqn.2026-11.x:t\nportal: {{announce: {address}}}\nvolumes: []\n"
    with pytest.raises(reader.ConfigurationError, match=r"portal\.announce: initiators cannot connect to"):
        reader.parse(text, "f.yaml")
