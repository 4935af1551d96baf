# SPDX-License-Identifier: Apache-2.0
"""Units of the three kinds, and initiators that reserve."""

from __future__ import annotations

from pathlib import Path

import pytest

from target.scsi.logical_unit import UnitKind
from tests.target.scsi.harness import Bench, Initiator


@pytest.fixture
def primary() -> Bench:
    """Make a primary of 1 MiB with 512-byte blocks."""
    return Bench()


@pytest.fixture
def write_once() -> Bench:
    """Make a write-once unit, blank."""
    return Bench(UnitKind.WRITE_ONCE)


@pytest.fixture
def view() -> Bench:
    """Make a snapshot view."""
    return Bench(UnitKind.SNAPSHOT_VIEW)


@pytest.fixture(params=list(UnitKind), ids=lambda kind: kind.value)
def any_kind(request: pytest.FixtureRequest) -> Bench:
    """Make a unit of each kind in turn."""
    return Bench(request.param)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Make a primary that persists reservations."""
    return Bench(state_dir=tmp_path)


@pytest.fixture
def one(bench: Bench) -> Initiator:
    """Log an initiator in at `bench`."""
    return bench.login("iqn.2026-11.x:one", "000000000001")


@pytest.fixture
def two(bench: Bench) -> Initiator:
    """Log a second initiator in at `bench`."""
    return bench.login("iqn.2026-11.x:two", "000000000002")


@pytest.fixture
def three(bench: Bench) -> Initiator:
    """Log a third initiator in at `bench`."""
    return bench.login("iqn.2026-11.x:three", "000000000003")
