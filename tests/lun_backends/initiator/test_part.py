# SPDX-License-Identifier: Apache-2.0
"""The vendor's page that says what part a LUN plays in a volume."""

from __future__ import annotations

from uuid import UUID

import pytest

from lun_backends.initiator import part

PART = part.Part(UUID(int=1), "Straße", part.Role.LOG, UUID(int=2), 4096, 1 << 16, write_once=True, power_loss=False)


def test_part_is_read_as_it_was_written() -> None:
    assert part.decode(part.encode(PART)) == PART


def test_later_versions_only_add_fields() -> None:
    page = bytearray(part.encode(PART) + b"more")
    page[8] = 2
    assert part.decode(bytes(page)) == PART


@pytest.mark.parametrize(
    ("position", "value"),
    [
        pytest.param(0, 0, id="another magic"),
        pytest.param(8, 0, id="version 0"),
        pytest.param(9, 99, id="an unknown role"),
        pytest.param(52, 200, id="a name that is longer than the page"),
    ],
)
def test_page_of_another_kind_is_no_part(position: int, value: int) -> None:
    page = bytearray(part.encode(PART))
    page[position] = value
    assert part.decode(bytes(page)) is None


def test_page_that_is_cut_is_no_part() -> None:
    page = part.encode(PART)
    assert all(part.decode(page[:length]) is None for length in range(len(page)))
