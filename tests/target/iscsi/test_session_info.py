# SPDX-License-Identifier: Apache-2.0
"""The session that status displays show: an immutable value, with None where a fabric does not know a field."""

from __future__ import annotations

import dataclasses

import pytest

from target.iscsi.session_info import SessionInfo

INITIATOR = "iqn.2026-11.org.example:ann"
KERNEL = SessionInfo(1, INITIATOR, "", "", "iqn.2026-11.io.wolun:t", None, None, None, None, None)


def test_the_kernels_target_does_not_know_times_counts_and_portal() -> None:
    assert (KERNEL.since, KERNEL.bytes_read, KERNEL.bytes_written, KERNEL.commands) == (None, None, None, None)
    assert (KERNEL.outstanding, KERNEL.portal) == (None, "")


def test_sessions_are_equal_if_all_fields_are() -> None:
    assert dataclasses.replace(KERNEL) == KERNEL
    assert dataclasses.replace(KERNEL, tsih=2) != KERNEL
    assert len({KERNEL, dataclasses.replace(KERNEL), dataclasses.replace(KERNEL, commands=1)}) == 2


def test_a_display_cannot_change_a_session() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        KERNEL.alias = "else"  # type: ignore[misc]  # the point of the test
