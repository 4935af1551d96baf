# SPDX-License-Identifier: Apache-2.0
"""The connection that gives way when there are too many."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from target.portal import crowd


@dataclass(frozen=True)
class Silent:
    """A connection from an address, silent since a moment."""

    address: str
    last_heard: float


@pytest.mark.parametrize(
    ("connections", "chosen"),
    [
        pytest.param(["a 3", "a 1", "a 2"], "a 1", id="the one that is silent longest"),
        pytest.param(["a 1", "b 3", "b 2"], "b 2", id="of the peer that has the most"),
        pytest.param(["6::1 1", "6::2 3", "6::2 2"], "6::2 2", id="of the address that has the most in its /64"),
        pytest.param(["a 1", "a 2", "6::1 5", "6::2 4", "6::3 6"], "6::2 4", id="a /64 is one peer"),
    ],
)
def test_the_connection_that_gives_way(connections: list[str], chosen: str) -> None:
    def made(text: str) -> Silent:
        address, moment = text.split()
        return Silent({"a": "192.0.2.1", "b": "192.0.2.2"}.get(address, f"2001:db8:0:{address}"), float(moment))

    assert crowd.gives_way([made(text) for text in connections]) == made(chosen)


def test_the_sessions_of_a_peer_are_those_of_all_its_addresses() -> None:
    connections = [Silent(address, 0) for address in ("2001:db8::1", "2001:db8::2", "192.0.2.1")]
    assert crowd.sessions_of("2001:db8::9", connections) == 2
    assert crowd.sessions_of("::ffff:192.0.2.1", connections) == 1
