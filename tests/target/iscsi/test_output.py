# SPDX-License-Identifier: Apache-2.0
"""The send queue of a connection: arenas, views, and what is left in between."""

from __future__ import annotations

from tests.target.iscsi.initiator import (
    PATTERN,
    Connect,
    read10,
)


def test_more_answers_than_an_arena_holds(connect: Connect) -> None:
    initiator = connect()
    replies = initiator.feed(b"".join(initiator.command(read10(n * 400, 400), read=204800, itt=n) for n in range(12)))
    assert [len(reply.data) for reply in replies] == [204800] * 12
    assert [reply.data[:9] for reply in replies[:5]] == [PATTERN[n * 204800 :][:9] for n in range(5)]
