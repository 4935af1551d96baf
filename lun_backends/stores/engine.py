# SPDX-License-Identifier: Apache-2.0
"""The contract of an engine: a service that creates named values exclusively, and so can keep write-once stores.

An engine keeps, for each snapshot of one volume, chunks by number (their data and its checksum) and a few marks.  A value
is created once and never changed.  Creating one that exists is refused, by the service itself and not by a look before.
So any number of nodes can preserve into one snapshot without a word between them.

A call that fails with EngineError may take effect later all the same: see `contract`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

IN_FLIGHT = 32
"""The calls of one operation that are under way at once."""

COUNTED = 60.0
"""Seconds for which a count of all objects serves, so that all snapshots are opened with one."""

ResultT_co = TypeVar("ResultT_co", covariant=True)


@dataclass(eq=False)
class EngineError(Exception):
    """The engine did not do it, or it is not known whether it did; `reason` says why."""

    reason: str

    def __str__(self) -> str:
        return self.reason


class EngineFull(EngineError):
    """The engine has no room."""


class Pending(Protocol[ResultT_co]):
    """A call that is under way."""

    def result(self) -> ResultT_co:
        """Wait for its end and return its result.  Raises EngineError."""
        ...


Chunk = tuple[bytes, int]
"""The data of a chunk and its checksum; 0: none."""


class Engine(Protocol):
    """The values of one volume.  Thread-safe."""

    name: str
    """The kind and the place, for messages."""

    def check(self) -> None:
        """Raise StoreUnfit if the service does not refuse to create what exists, and EngineError if it cannot be asked."""
        ...

    def mark(self, snapshot: uuid.UUID | None, name: str) -> bytes | None:
        """Return a mark of a snapshot (None: of the volume); None if there is none.  Raises EngineError."""
        ...

    def set_mark(self, snapshot: uuid.UUID | None, name: str, content: bytes) -> bool:
        """Create a mark exclusively; return False if it exists.  Raises EngineError."""
        ...

    def snapshots(self) -> Sequence[uuid.UUID]:
        """Return the snapshots that have any value.  Raises EngineError."""
        ...

    def put(self, snapshot: uuid.UUID, chunk: int, data: bytes, checksum: int) -> Pending[bool]:
        """Begin to create a chunk exclusively; the result is False if it exists."""
        ...

    def get(self, snapshot: uuid.UUID, chunk: int) -> Pending[Chunk | None]:
        """Begin to read a chunk; the result is None if there is none."""
        ...

    def has(self, snapshot: uuid.UUID, chunk: int) -> Pending[bool]:
        """Begin to ask whether there is a chunk."""
        ...

    def chunks(self, snapshot: uuid.UUID, first: int, end: int) -> Iterator[int]:
        """Yield the numbers of the chunks of [first, end), in order.  Raises EngineError."""
        ...

    def count(self, snapshot: uuid.UUID, within: float = COUNTED) -> int:
        """Return how many chunks a snapshot has, or had some time ago: at most `within` seconds.  Raises EngineError."""
        ...

    def sweep(self, snapshot: uuid.UUID) -> None:
        """Delete all chunks of a snapshot, and look a second time for those that came late.  Raises EngineError."""
        ...

    def forget(self, snapshot: uuid.UUID | None) -> None:
        """Delete the marks of a snapshot (None: of the volume), and whatever else is left of it.  Raises EngineError."""
        ...

    def close(self) -> None:
        """Disconnect."""
        ...
