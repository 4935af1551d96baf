# SPDX-License-Identifier: Apache-2.0
"""The three kinds of units, each with an initiator."""

from __future__ import annotations

import pytest

from target.scsi.logical_unit import UnitKind
from tests.target.scsi.harness import Bench


@pytest.fixture
def primary() -> Bench:
    """A primary of 1 MiB with 512-byte blocks."""
    return Bench()


@pytest.fixture
def write_once() -> Bench:
    """A write-once unit, blank."""
    return Bench(UnitKind.WRITE_ONCE)


@pytest.fixture
def view() -> Bench:
    """A snapshot view."""
    return Bench(UnitKind.SNAPSHOT_VIEW)


@pytest.fixture(params=list(UnitKind), ids=lambda kind: kind.value)
def any_kind(request: pytest.FixtureRequest) -> Bench:
    """Each kind in turn."""
    return Bench(request.param)
