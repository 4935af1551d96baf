# SPDX-License-Identifier: Apache-2.0
"""A service works before its fabric has started, and sees the fabric afterwards."""

from __future__ import annotations

from target.service.service import Service
from tests.target.administration.fabric import BookFabric
from tests.target.service.conftest import IQN, Serve


def test_addresses_before_the_start_are_the_configured_ones(serve: Serve) -> None:
    service = serve(extra="portal: {listen: 127.0.0.1:3261}\n")
    assert service.inventory.portal_address == "127.0.0.1:3261"
    assert service.status.status().sessions == ()
    assert service.inventory.fabric.failed_logins() == {}


def test_a_started_fabric_is_shown(service: Service) -> None:
    fabric = BookFabric("127.0.0.1:4000", "[::1]:4000")
    service.fabric_started(fabric)
    fabric.log_in("iqn.2026-11.x:a", "127.0.0.1", IQN)
    status = service.status.status()
    assert status.portals == ("127.0.0.1:4000", "[::1]:4000")
    assert [session.initiator for session in status.sessions] == ["iqn.2026-11.x:a"]
    assert service.inventory.url(0) == f"iscsi://127.0.0.1:4000/{IQN}/0"


def test_fabric_without_iscsi_has_no_address(service: Service) -> None:
    service.fabric_started(BookFabric())
    assert service.inventory.portal_address == "tcm_loop"
