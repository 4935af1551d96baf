# SPDX-License-Identifier: Apache-2.0
"""The policy's defaults and its words in the configuration file."""

from __future__ import annotations

import pytest

from lun_backends import block_device
from lun_backends.volumes import policy


def test_by_default_writes_are_refused_and_nothing_is_limited() -> None:
    rules = policy.DEFAULT
    assert rules.on_error is policy.OnError.FAIL_WRITES
    assert (rules.limit, rules.copy_timeout, rules.max_snapshots) == (None, None, None)


def test_the_words_of_the_configuration_name_the_policies() -> None:
    assert [rule.value for rule in policy.OnError] == ["fail-writes", "drop-snapshot"]


def test_the_default_cannot_be_changed_by_one_volume() -> None:
    with pytest.raises(AttributeError):
        policy.DEFAULT.limit = 1  # type: ignore[misc]  # the point of the test


@pytest.mark.parametrize(
    "event",
    [
        policy.SpaceLow(1, 2),
        policy.SnapshotInvalidated("a", "no space"),
        policy.WriteRefused(block_device.SpaceExhausted(1)),
        policy.StateUnknown("no space"),
    ],
)
def test_every_event_may_be_ignored(event: policy.Event) -> None:
    policy.ignore(event)
