# SPDX-License-Identifier: Apache-2.0
"""The group `access`: the addresses that it admits, and its rules for combinations of keys."""

from __future__ import annotations

import ipaddress

import pytest

from target.configuration import reader
from target.configuration.access import within
from tests.target.configuration.files import VOLUME, problems


def access(text: str) -> str:
    """Return a configuration whose `access` is `text`."""
    return f"{VOLUME}access: {{{text}}}\n"


def test_no_initiator_may_log_in_by_default() -> None:
    group = reader.parse(VOLUME, "f.yaml").access
    assert not group.admits("127.0.0.1")
    assert not group.admits("::1")


def test_listed_initiators_come_from_anywhere_without_networks() -> None:
    group = reader.parse(access("initiators: [{name: iqn.2026-11.a:a}]"), "f.yaml").access
    assert group.admits("192.0.2.1")
    assert not reader.parse(access("initiators: []"), "f.yaml").access.admits("192.0.2.1")


def test_ipv4_address_is_recognised_in_ipv6_notation() -> None:
    group = reader.parse(access("networks: [10.0.0.0/8]"), "f.yaml").access
    assert group.admits("::ffff:10.1.2.3")
    assert not group.admits("::ffff:11.1.2.3")


def test_zone_of_an_address_is_ignored() -> None:
    assert within("fe80::1%eth0", [ipaddress.ip_network("fe80::/10")])
    assert not within("fe80::1%eth0", [ipaddress.ip_network("10.0.0.0/8")])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("initators: []", "did you mean initiators?"),
        ("initiators: [{}]", "access.initiators[0].name: this key is missing"),
        (
            "initiators: [{name: iqn.2026-11.a:ann}, {name: IQN.2026-11.A:ANN}]",
            "access.initiators[1].name: initiators[0] has this name",
        ),
        ("initiators: [{name: iqn.2026-11.a:a, chap: {name: ann}}]", "chap.secret_file: this key is missing"),
        ("initiators: [{name: iqn.2026-11.a:a, chap: {name: ann, secret: xx, secret_file: s}}]", "unknown key"),
        ("initiators: [{name: iqn.2026-11.a:a, chap: {name: a, secret_file: s, target_name: b}}]", "belong together"),
        (
            "initiators: [{name: iqn.2026-11.a:a, chap: {name: a, secret_file: s, target_name: b, target_secret_file: s}}]",
            "access.initiators[0].chap.target_secret_file: the two directions must not have the same secret",
        ),
        (
            "initiators: [{name: iqn.2026-11.a:a, chap: {name: a, secret_file: s, algorithms: [sha1]}}]",
            "'sha1' is unknown",
        ),
        ("initiators: [{name: iqn.2026-11.a:a, chap: {name: a, secret_file: s, algorithms: []}}]", "must not be empty"),
        ("initiators: [{name: iqn.2026-11.a:a, luns: [{lun: 0, unit: a}, {lun: 0, unit: b}]}]", "LUN 0 is a already"),
        ("initiators: [{name: iqn.2026-11.a:a, luns: [{lun: 0, unit: a@}]}]", "is not a unit"),
        ("initiators: [{name: iqn.2026-11.a:a, luns: [{lun: 20000, unit: a}]}]", "too large"),
        ("initiators: [{name: iqn.2026-11.a:a b}]", "is not an initiator's name"),
        ("initiators: [{name: iqn.host}]", "'iqn.host' is not an iSCSI name: it is not iqn.YEAR-MONTH"),
        ('initiators: [{name: "iqn.2026-11.a:a\\n"}]', "is not an initiator's name"),
        ("initiators: [{name: host}]", "is not an initiator's name: write an iSCSI name, like iqn."),
    ],
)
def test_mistake_is_explained(text: str, problem: str) -> None:
    assert problem in "\n".join(problems(access(text)))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("networks: [10.0.0.0/8]", "access.networks: the kernel's target cannot distinguish networks"),
        ("discovery_chap: true", "access.discovery_chap: discovery belongs to all of the kernel's targets"),
        (
            "initiators: [{name: 'iqn.2026-11.a:a*'}]",
            "access.initiators[0].name: the kernel's target takes whole names only",
        ),
        (
            "initiators: [{name: iqn.2026-11.a:a, networks: [10.0.0.0/8]}]",
            "access.initiators[0].networks: the kernel's target cannot distinguish networks",
        ),
    ],
)
def test_kernel_refuses_rules_that_it_cannot_keep(text: str, problem: str) -> None:
    (line,) = problems("fabric: lio\n" + access(text))
    assert problem in line
    reader.parse(access(text), "f.yaml")
