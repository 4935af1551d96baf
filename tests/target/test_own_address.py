# SPDX-License-Identifier: Apache-2.0
"""The printed address is one that an initiator can connect to."""

from __future__ import annotations

import socket

import pytest

from target import own_address


@pytest.mark.parametrize("address", ["127.0.0.1:3260", "[::1]:3260", "storage.example.org:3260", "tcm_loop"])
def test_an_address_that_can_be_reached_stays(address: str) -> None:
    assert own_address.in_place_of_all(address) == address


def test_all_addresses_become_one_of_this_host() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        host, _, same = own_address.in_place_of_all(f"0.0.0.0:{port}").rpartition(":")
        assert int(same) == port
        socket.create_connection((host, port), timeout=10).close()


def test_all_addresses_of_ipv6_become_one_of_this_host() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        host, _, _ = own_address.in_place_of_all(f"[::]:{port}").rpartition(":")
        socket.create_connection((host.strip("[]"), port), timeout=10).close()
