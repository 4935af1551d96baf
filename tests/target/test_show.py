# SPDX-License-Identifier: Apache-2.0
"""Answers as text: tables, maps, alerts and sentences."""

from __future__ import annotations

import re

import pytest

from target import messages, show

SNAPSHOT = messages.Snapshot("v", "s", "", "2026-11-22T00:00:00.000Z", "active", "", 1 << 30, 0, 0, 0.0, 1, None)


def test_only_unchanged_cells_are_empty_and_only_changed_ones_full() -> None:
    picture = show.change_map(messages.Changes(SNAPSHOT, 65536, 1, (0.0, 0.0001, 0.5, 0.9999, 1.0)))
    (drawn,) = re.findall(r"\|(.*)\|", picture)
    assert (drawn[0], drawn[4]) == (" ", show.map_marks()[-1])
    assert list(drawn) == sorted(set(drawn), key=show.map_marks().index)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("delete it", "Delete it."),
        ("did you mean vol0?", "Did you mean vol0?"),
        ("`ls` lists them", "`ls` lists them"),
        ("", ""),
    ],
)
def test_a_sentence_has_a_capital_and_a_full_stop(text: str, sentence: str) -> None:
    assert show.sentence(text) == sentence


def test_columns_of_numbers_are_aligned_at_the_right() -> None:
    assert show.table(("NAME", "SIZE"), [("a", "1"), ("longer", "10")], {1}).splitlines() == [
        "NAME    SIZE",
        "a          1",
        "longer    10",
    ]


def test_the_table_has_labels_only_if_a_snapshot_has_one() -> None:
    labelled = messages.Snapshot(
        "v", "t", "", "2026-11-22T00:00:00.000Z", "active", "", 1 << 30, 0, 0, 0.0, 1, 2, labels={"b": "2", "a": "1"}
    )
    assert "LABELS" not in show.snapshots([SNAPSHOT])
    head, without, with_labels = show.snapshots([SNAPSHOT, labelled]).splitlines()
    assert head.endswith("  LABELS")
    assert without.endswith("-")  # the snapshot has no write-once LUN
    assert with_labels.endswith("  a=1,b=2")


def test_damage_beyond_the_listed_extents_is_counted() -> None:
    damage = messages.Damage("s", 8, 1, 4096, 512, "wrong checksum")
    text = show.verification(messages.Verification("v", "s", False, 4096, 0, 1536, (damage,), ("v/s: no header",)))
    assert text.startswith("v@s is DAMAGED: 4 KiB good, 0 B unverifiable, 1.50 KiB damaged\nv/s: no header\n")
    assert "and 1 KiB more" in text


def test_text_from_outside_stays_on_its_line_and_is_printable() -> None:
    session = messages.Session("iqn.x:\x1b[31m\nforged", "::1", None, None, None, None, None)
    status = messages.Status("1", 2, SNAPSHOT.taken, "/state", "portal", "t", "p", (), 1, 1, (), (session,), (), (), ())
    assert "\niqn.x:\\x1b[31m\\nforged (discovery)  ::1 " in show.status(status)
    alert = messages.Alert("c", "s", "volume v\x9b2J\nno trouble", "wait")
    assert show.alert(alert).splitlines()[0] == "TROUBLE: volume v\\x9b2J\\nno trouble"


def test_an_alert_names_its_explanation() -> None:
    text = show.alert(messages.Alert("low-space", "/state", "/state has little space left: 3 %", "delete snapshots"))
    assert (
        text == "TROUBLE: /state has little space left: 3 %\n  delete snapshots; `wolun explain low-space` explains it"
    )


def test_pool_lists_its_luns_and_what_they_are() -> None:
    luns = (
        messages.PoolLun(3, "aaaa", "taken", "nightly", 65536),
        messages.PoolLun(300, "bbbb", "blank", "", 12288),
    )
    assert show._pool(messages.Pool("archive", "cccc", 2, 1, 1, 4, luns, "")).splitlines() == [
        "pool of archive, volume cccc: log at LUN 2 with 1 record",
        "LUN  STATE  SNAPSHOT  IDENTITY    USED",
        "  3  taken  nightly   aaaa      64 KiB",
        "300  blank  -         bbbb      12 KiB",
    ]


def test_nodes_are_listed_with_what_is_known_of_them() -> None:
    nodes = (
        messages.Node("archive", "alpha", True, False, True, 12, None, "iqn.x:alpha"),
        messages.Node("archive", "beta", False, True, False, 3, SNAPSHOT.taken),
        messages.Node("archive", "", False, False, None, None, None, "iqn.x:\x1b[2J"),
    )
    text = show.nodes(nodes).splitlines()
    assert [line.split()[0] for line in text[:3]] == ["NODE", "alpha", "beta"]
    assert "alpha (this)  registered     12  -" in text[1]
    assert " expelled " in text[2]
    assert text[3].endswith("iqn.x:\\x1b[2J")


def test_status_shows_the_part_of_this_host_in_shared_volumes() -> None:
    sharing = messages.Sharing("alpha", "out", "no route to host", 4, 75.0, 0, 90, 10, "none")
    shown = messages.Volume(
        "archive", 0, "online", "", None, 1, 512, 65536, "", "p", 0, 0, 0, 0, None, "", 0.0, 0.0, 0.0, sharing=sharing
    )
    (head, row) = show._sharing([shown]).splitlines()
    assert head.split() == [
        "SHARED",
        "NODE",
        "STATE",
        "EPOCH",
        "FENCE",
        "PENDING",
        "POOL",
        "FUTILE",
        "COPIES",
        "EXCHANGE",
    ]
    assert row.split() == [
        "archive",
        "alpha",
        "out:",
        "no",
        "route",
        "to",
        "host",
        "4",
        "for",
        "75",
        "s",
        "0",
        "10",
        "of",
        "100",
        "none",
    ]
