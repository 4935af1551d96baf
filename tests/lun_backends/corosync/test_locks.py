# SPDX-License-Identifier: Apache-2.0
"""Locks without a network: members that take the same messages in the same order agree."""

from __future__ import annotations

import pytest

from lun_backends.corosync import locks
from lun_backends.corosync.cpg import Member
from lun_backends.corosync.locks import Kind, Locks

ONE, TWO, THREE = (Member(number, 10) for number in (1, 2, 3))


class Group:
    """Members that are not split."""

    def __init__(self, *members: Member) -> None:
        self.locks = {member: Locks() for member in members}

    def say(self, sender: Member, message: tuple[Kind, str]) -> None:
        for each in self.locks.values():
            each.take(sender, *message)

    def join(self, other: Group) -> None:
        """Let the members of another group come; each group sees those of the other join."""
        parts = (self.locks, other.locks)
        self.locks = {**self.locks, **other.locks}
        said = [
            (member, message)
            for mine, theirs in (parts, parts[::-1])
            for member, each in mine.items()
            for message in each.members(member, (), theirs)
        ]
        for sender, message in said:
            self.say(sender, message)

    def leave(self, gone: Member) -> None:
        del self.locks[gone]
        for member, each in self.locks.items():
            assert each.members(member, {gone}, ()) == []

    def holders(self, lock: str) -> set[Member | None]:
        return {each.holder(lock) for each in self.locks.values()}


def test_first_message_holds_and_the_next_follows() -> None:
    group = Group(ONE, TWO, THREE)
    for member in (TWO, ONE, TWO):
        group.say(member, group.locks[member].want("job"))
    assert group.holders("job") == {TWO}
    group.say(TWO, group.locks[TWO].release("job"))
    assert group.holders("job") == {ONE}
    group.leave(ONE)
    assert group.holders("job") == {None}


def test_newcomer_learns_who_holds() -> None:
    group = Group(ONE, TWO)
    for member in (TWO, ONE):
        group.say(member, group.locks[member].want("job"))
    group.join(Group(THREE))
    assert group.holders("job") == {TWO}
    group.say(THREE, group.locks[THREE].want("job"))
    group.leave(TWO)
    assert group.holders("job") == {ONE}


def test_parts_of_a_split_cluster_agree_when_they_join() -> None:
    group, other = Group(ONE, TWO), Group(THREE)
    group.say(ONE, group.locks[ONE].want("job"))
    other.say(THREE, other.locks[THREE].want("job"))
    group.say(TWO, group.locks[TWO].want("job"))
    group.join(other)
    assert group.holders("job") == {ONE}
    group.leave(ONE)
    assert group.holders("job") == {THREE}  # it did the job before TWO, who waited


def test_message_bears_a_lock_and_a_rider() -> None:
    assert locks.unframe(locks.frame(Kind.HOLD, "move x", b"rider")) == (Kind.HOLD, "move x", b"rider")


@pytest.mark.parametrize("data", [b"", b"WLC", b"XXXX\0\0\0", b"WLCK\x09\0\0", b"WLCK\1\x05\0abc", b"WLCK\1\1\0\xff"])
def test_foreign_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        locks.unframe(data)
