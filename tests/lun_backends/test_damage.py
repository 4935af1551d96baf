# SPDX-License-Identifier: Apache-2.0
"""Damage that a reader met: neighbours are joined, and blocks are named."""

from __future__ import annotations

import uuid

from lun_backends import damage
from lun_backends.damage import Damage

ONE, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)


def found(*extents: tuple[int, int, uuid.UUID]) -> damage.Found:
    result = damage.Found()
    for offset, length, kept_in in extents:
        result(Damage(offset, length, "rot", kept_in))
    return result


def test_neighbours_of_one_snapshot_are_joined() -> None:
    met = found((0, 512, ONE), (512, 1024, ONE), (1536, 512, OTHER), (4096, 512, OTHER))
    assert [(extent.offset, extent.length) for extent in met.extents] == [(0, 1536), (1536, 512), (4096, 512)]
    assert met.bytes == 2560
    assert met
    assert not found()


def test_blocks_are_named_for_a_sentence() -> None:
    assert found((512, 512, ONE)).blocks(512) == "block 1"
    assert found((512, 1024, ONE)).blocks(512) == "blocks 1 to 2"
    assert found((0, 512, ONE), (1024, 512, ONE)).blocks(512) == "blocks 0 and 2"
    assert found(*((at * 1024, 512, ONE) for at in range(6))).blocks(512) == "blocks 0, 2, 4, 6, 8 and 1 more extent"
    assert found(*((at * 1024, 512, ONE) for at in range(9))).blocks(512, most=1) == "blocks 0 and 8 more extents"


def test_only_so_many_extents_are_kept() -> None:
    met = found(*((at * 1024, 512, ONE) for at in range(damage.NAMED + 2)))
    assert len(met.extents) == damage.NAMED
    assert met.bytes == (damage.NAMED + 2) * 512
