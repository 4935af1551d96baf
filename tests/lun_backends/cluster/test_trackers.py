# SPDX-License-Identifier: Apache-2.0
"""Tracker exchange: what two nodes tell each other, and what they must not take."""

from __future__ import annotations

import random
import uuid

import crc32c
import pyroaring
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lun_backends.cluster.trackers import Exchange, Known

VOLUME, LUN, NEXT = (uuid.UUID(int=number) for number in (1, 2, 3))
END = 1 << 30


class Side:
    """A node with a tracker, and its exchange."""

    def __init__(self, name: str, volume: uuid.UUID = VOLUME, grain: int = 4096) -> None:
        self.lun: uuid.UUID | None = LUN
        self.tracker = pyroaring.BitMap64()
        self.exchange = Exchange(volume, name, grain, self._known)

    def _known(self) -> Known | None:
        return None if self.lun is None else Known(self.lun, self.tracker, END)

    def arm(self, lun: uuid.UUID | None) -> None:
        self.lun, self.tracker = lun, pyroaring.BitMap64()


def test_grains_are_told_once_and_not_sent_on() -> None:
    one, two = Side("one"), Side("two")
    one.tracker.update([1, 5, 1 << 29])
    message = one.exchange.attach(1000)
    assert two.exchange.absorb(message) == 3
    assert two.tracker == one.tracker
    assert one.exchange.attach(1000) == b""
    assert two.exchange.attach(1000) == b""
    assert two.exchange.absorb(message) == 0  # again
    two.tracker.add(7)
    assert one.exchange.absorb(two.exchange.attach(1000)) == 1
    assert (one.exchange.counters.sent_grains, one.exchange.counters.taken_grains) == (3, 1)
    assert one.exchange.peers == {"two": 1}


def test_own_message_is_nothing_new() -> None:
    one = Side("one")
    one.tracker.add(1)
    assert one.exchange.absorb(one.exchange.attach(1000)) == 0
    assert one.exchange.counters.taken_messages == 0


@pytest.mark.parametrize("other", [Side("two", volume=NEXT), Side("two", grain=65536)], ids=["volume", "grain"])
def test_message_about_something_else_is_ignored(other: Side) -> None:
    one = Side("one")
    other.tracker.add(1)
    assert one.exchange.absorb(other.exchange.attach(1000)) == 0
    assert one.exchange.counters.ignored == 1
    assert not one.tracker


@pytest.mark.parametrize("lun", [NEXT, None], ids=["another epoch", "not armed"])
def test_only_a_node_that_is_armed_in_the_epoch_takes_a_message(lun: uuid.UUID | None) -> None:
    one, two = Side("one"), Side("two")
    two.tracker.add(1)
    message = two.exchange.attach(1000)
    one.arm(lun)
    assert one.exchange.absorb(message) == 0
    assert one.exchange.counters.ignored == 1
    assert not one.tracker


def test_new_epoch_begins_with_nothing_told() -> None:
    one, two = Side("one"), Side("two")
    one.tracker.add(1)
    two.exchange.absorb(one.exchange.attach(1000))
    for side in (one, two):
        side.arm(NEXT)
    assert one.exchange.attach(1000) == b""
    one.tracker.add(1)
    assert two.exchange.absorb(one.exchange.attach(1000)) == 1


def test_node_that_is_not_armed_tells_nothing() -> None:
    one = Side("one")
    one.tracker.add(1)
    one.lun = None
    assert one.exchange.attach(1000) == b""


@pytest.mark.parametrize("limit", [0, 60, 90, 120, 400, 5000])
def test_message_fits_and_the_rest_follows(limit: int) -> None:
    one, two = Side("one"), Side("two")
    scattered = random.Random(7)
    one.tracker.update(scattered.randrange(END) for _ in range(300))
    messages = 0
    while message := one.exchange.attach(limit):
        assert len(message) <= limit
        two.exchange.absorb(message)
        messages += 1
    assert (two.tracker == one.tracker) == (limit > 100)
    assert (messages > 1) == (100 < limit < 5000)


def test_loss_is_counted_and_disorder_harmless() -> None:
    one, two = Side("one"), Side("two")
    messages = []
    for grain in range(5):
        one.tracker.add(grain)
        messages.append(one.exchange.attach(1000))
    for at in (0, 4, 2):
        two.exchange.absorb(messages[at])
    assert set(two.tracker) == {0, 4, 2}
    assert two.exchange.counters.missed == 3


def test_grain_behind_the_end_of_the_volume_is_refused() -> None:
    one, two = Side("one"), Side("two")
    two.tracker.update([1, END])
    assert one.exchange.absorb(two.exchange.attach(1000)) == 0
    assert one.exchange.counters.damaged == 1
    assert not one.tracker


@given(st.data())
def test_damaged_message_changes_nothing(data: st.DataObject) -> None:
    one, two = Side("one"), Side("two")
    two.tracker.update([1, 77, 100000])
    message = bytearray(two.exchange.attach(1000))
    kind = data.draw(st.sampled_from(["flip", "cut", "noise", "resealed"]))
    at = data.draw(st.integers(0, len(message) - 1))
    if kind == "cut":
        del message[at:]
    elif kind == "noise":
        message = bytearray(data.draw(st.binary(max_size=100)))
    else:
        message[at] ^= data.draw(st.integers(1, 255))
    if kind == "resealed":
        message[-4:] = crc32c.crc32c(bytes(message[:-4])).to_bytes(4, "little")
    one.exchange.absorb(bytes(message))
    if kind != "resealed":
        assert not one.tracker
        assert one.exchange.counters.damaged == 1
