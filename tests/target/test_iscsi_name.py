# SPDX-License-Identifier: Apache-2.0
"""The names of iSCSI nodes and their normal form."""

from __future__ import annotations

import pytest

from target import iscsi_name


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("iqn.2026-11.io.wolun:vol", "iqn.2026-11.io.wolun:vol"),
        ("iqn.2026-11.io.wolun", "iqn.2026-11.io.wolun"),
        ("IQN.2026-11.io.Wolun:VOL", "iqn.2026-11.io.wolun:vol"),
        ("iqn.1991-05.com.microsoft:my_host.example.com", "iqn.1991-05.com.microsoft:my_host.example.com"),
        ("iqn.2001-04.com.example:a:b:c", "iqn.2001-04.com.example:a:b:c"),
        ("eui.02004567A425678D", "eui.02004567a425678d"),
        ("naa.52004567BA64678D", "naa.52004567ba64678d"),
        ("naa.62004567BA64678D0123456789ABCDEF", "naa.62004567ba64678d0123456789abcdef"),
        ("iqn.2026-11.org.example:BÜRO", "iqn.2026-11.org.example:büro"),
        ("iqn.2026-11.org.example:bu\u0308ro", "iqn.2026-11.org.example:büro"),
        ("iqn.2026-11.org.example:\uff44\uff42", "iqn.2026-11.org.example:db"),
        ("iqn.2026-11.org.example:straße", "iqn.2026-11.org.example:strasse"),
        ("iqn.2026-11.org.example:d\u200bb", "iqn.2026-11.org.example:db"),
    ],
)
def test_normal_form(name: str, normal: str) -> None:
    assert iscsi_name.normal_form(name) == normal
    assert iscsi_name.normal_form(normal) == normal


@pytest.mark.parametrize(
    "name",
    [
        "iqn.2026-11",
        "iqn.2026-13.io.wolun:vol",
        "iqn.2026-11.io.wolun:",
        "wolun",
        "eui.0200",
        "naa.52004567BA64678D00",
        "iqn.2026-11.io.wolun:" + "x" * 220,
        "iqn.2026-11.io.wolun:" + "ü" * 110,
        "iqn.2026-11.io.wo lun",
        "iqn.2026-11.org.example:\x1b]0;owned\x07",
        "iqn.2026-11.org.example:h\n",
        "iqn.2026-11.org.example:[/red]",
        "iqn.2026-11.org.example:a/b",
        "iqn.2026-11.org.example:a,b",
        "iqn.2026-11.org.example:\u202ebd",
        "iqn.2026-11.org.example:\u00a0",
        "iqn.2026-11.org.example:\u3002",
        "iqn.2026-11.org.example:\ue000",
        "iqn.2026-11.org.example:\u0221",  # not assigned in Unicode 3.2
        "iqn.2026-11.org.example:\u05d0",  # from right to left, in a name from left to right
        "iqn.2026-11.org.example:\udc80",
        "iqn.\u0662\u0660\u0662\u0666-11.org.example:h",
    ],
)
def test_other_text_is_no_name(name: str) -> None:
    with pytest.raises(iscsi_name.NotAName):
        iscsi_name.normal_form(name)
    assert iscsi_name.comparable(name) == name


def test_character_that_is_refused_is_named() -> None:
    with pytest.raises(iscsi_name.NotAName, match=r"the character U\+001B"):
        iscsi_name.normal_form("iqn.2026-11.org.example:\x1b[31m")


def test_names_are_found_in_either_spelling() -> None:
    known = ["naa.52004567BA64678D", "iqn.2026-11.io.wolun:vol"]
    assert iscsi_name.find("NAA.52004567ba64678d", known) == known[0]
    assert iscsi_name.find("iqn.2026-11.io.WOLUN:vol", known) == known[1]
    assert iscsi_name.find("iqn.2026-11.io.wolun:other", known) is None
    assert iscsi_name.find("no name", known) is None
