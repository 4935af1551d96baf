# SPDX-License-Identifier: Apache-2.0
"""Events of snapshots reach initiators and the log."""

from __future__ import annotations

import logging
import types
from uuid import UUID

import pytest

from lun_backends import block_device
from lun_backends.volumes import policy
from target.scsi.commands import table
from target.scsi.logical_unit import LogicalUnit, UnitKind
from target.service import snapshot_events
from tests.memory_device import MemoryDevice


@pytest.fixture
def unit() -> LogicalUnit:
    return LogicalUnit(
        MemoryDevice(1 << 20), uuid=UUID(int=1), kind=UnitKind.PRIMARY, name="vol0", commands=table.for_unit
    )


def test_low_space_is_a_unit_attention(unit: LogicalUnit, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(unit, "attention", lambda asc, ascq: raised.append((asc, ascq)))
    snapshot_events.Watch("vol0", lambda: unit)(policy.SpaceLow(1 << 20, 2 << 20))
    assert raised == [(0x38, 0x07)]


def test_volume_without_a_lun_only_logs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        snapshot_events.Watch("vol0", lambda: None)(policy.SpaceLow(1 << 20, 2 << 20))
    assert "the snapshots of vol0 take 1 MiB of 2 MiB allowed" in caplog.text


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (policy.SnapshotInvalidated("s", "no room"), "vol0@s is invalid: no room"),
        (policy.StateUnknown("disk full"), "writes to vol0 are refused until its state can be recorded: disk full"),
    ],
)
def test_other_events_are_logged_as_errors(
    event: policy.Event, text: str, unit: LogicalUnit, caplog: pytest.LogCaptureFixture
) -> None:
    snapshot_events.Watch("vol0", lambda: unit)(event)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("ERROR", text)]


def test_refused_writes_are_logged_once_a_minute(
    unit: LogicalUnit, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(snapshot_events, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    watch = snapshot_events.Watch("vol0", lambda: unit)
    event = policy.WriteRefused(block_device.SpaceExhausted(7))
    logged = []
    for moment in (0.0, 1.0, 60.0, 60.1, 61.0):
        now[0] = moment
        before = len(caplog.records)
        watch(event)
        if len(caplog.records) > before:
            logged.append(moment)
    assert logged == [0.0, 60.1]
