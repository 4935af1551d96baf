# SPDX-License-Identifier: Apache-2.0
"""Damage: blocks of a write-once LUN that are no longer what was stored, or that cannot be read."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Damage:
    """`length` damaged bytes from byte `offset` of the LUN on; `kept_in` is the UUID of the write-once LUN that stores them."""

    offset: int
    length: int
    reason: str
    kept_in: uuid.UUID


OnDamage = Callable[[Damage], None]
"""Called for damaged blocks, in place of an error."""

NAMED = 10_000
"""The extents that `Found` keeps."""


class Found:
    """The damage that a reader met, in order of address; neighbours are joined.  Call it with each piece of damage."""

    def __init__(self) -> None:
        self.extents: list[Damage] = []
        """The first extents, up to `NAMED` of them."""
        self.bytes = 0
        """The bytes of all damage, also of extents that are not kept."""

    def __call__(self, damage: Damage) -> None:
        self.bytes += damage.length
        if self.extents:
            last = self.extents[-1]
            if last.kept_in == damage.kept_in and last.offset + last.length == damage.offset:
                self.extents[-1] = dataclasses.replace(last, length=last.length + damage.length)
                return
        if len(self.extents) < NAMED:
            self.extents.append(damage)

    def __bool__(self) -> bool:
        return bool(self.bytes)

    def blocks(self, block_size: int, most: int = 5) -> str:
        """Return the damaged blocks as part of a sentence, like "blocks 8 to 15, 64 and 3 more extents"."""
        texts = [blocks(extent, block_size) for extent in self.extents[:most]]
        if (more := len(self.extents) - len(texts)) > 0:
            texts.append("1 more extent" if more == 1 else f"{more} more extents")
        word = "block" if texts == [text for text in texts if text.isdigit()][:1] else "blocks"
        return f"{word} {' and '.join(filter(None, (', '.join(texts[:-1]), texts[-1])))}"


def blocks(damage: Damage, block_size: int) -> str:
    """Return the numbers of the damaged blocks, like "8 to 15" or "64"."""
    first, last = damage.offset // block_size, (damage.offset + damage.length) // block_size - 1
    return str(first) if first == last else f"{first} to {last}"
