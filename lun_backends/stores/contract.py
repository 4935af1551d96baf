# SPDX-License-Identifier: Apache-2.0
"""The contract of a write-once store: what lies below a write-once LUN, whatever engine keeps the data.

A store is an array of blocks, each of which takes one write.  `write_once.WriteOnce` makes a LUN of it, and a volume
makes its snapshots of those.  Nothing above knows which kind of store it has: `opening` makes the `Stores` of a volume,
and `Stores` creates, opens and removes its members.

| what             | the contract                                                                                     |
| ---------------- | ------------------------------------------------------------------------------------------------ |
| geometry         | `size`, `block_size`, `chunk_size` and the owners, from `Geometry`; they never change            |
| grain            | `grain`: what has a checksum of its own; copy-on-write preserves no part of it by itself         |
| unit             | `unit`: what a write must cover as a whole, or up to the end of the store; at most the grain      |
| put              | `put_many` commits many ranges at once, each stored or refused as a whole; where `local` is False, |
|                  | a range of several units may be refused as a whole and stored in part                            |
| read             | `reader`: blank blocks raise BlankBlock; data is compared with its checksum if there is one       |
| extents          | `extents` says what is written, in order, at a cost that grows with what is written               |
| state            | valid, or invalid for ever with a `reason`: `invalidate` is durable when it returns              |
| verify           | `verify` reads all that is stored; without checksums the verdict is UNVERIFIABLE                 |
| moved checksums  | `Put.origin` goes with data from another store, so that damage stays damage                      |
| space            | `allocated_bytes` is what counts against the volume's limit, and `Space` refuses to pass that    |
| discard          | frees the data of an invalid store                                                               |
| durability       | `Durability.POWER_LOSS`: what is put survives a power cut when `put_many` returns                |

A block that was put stays as it was put.  A reader never sees a block as written before its data can be read.  If two
writers put the same block at once, even in two processes, one is stored and the other gets BlockWritten; and
BlockWritten promises that the data of the first is as durable as the store makes it.  A killed process loses no put
that returned, and opening needs no repair.

A put can fail and still be stored later, where the engine is on the other side of a network.  That is harmless: it
carries a true pre-image, or it is refused, or it lies under an identity that is never used again.  So such an error
means "not known", and never "not written".

All methods are thread-safe except `close`, which is the last call.  Ranges are in blocks, and the caller has checked
that they lie within the store.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import pyroaring

from lun_backends import block_device
from lun_backends.block_device import Buffers
from lun_backends.damage import OnDamage
from lun_backends.durability import Durability
from lun_backends.stores.settings import Kind
from lun_backends.stores.space import Space
from lun_backends.stores.store_file import StoreDamaged as StoreDamaged
from lun_backends.stores.store_file import StoreError as StoreError
from lun_backends.stores.store_file import StoreLocked as StoreLocked
from lun_backends.stores.store_file import StoreMissing as StoreMissing
from lun_backends.stores.store_file import StoreNewer as StoreNewer
from lun_backends.stores.store_file import StoreUnavailable as StoreUnavailable
from lun_backends.stores.store_file import StoreUnfit as StoreUnfit
from lun_backends.stores.store_file import Unsettled as Unsettled

GRAIN = 4096
"""The grain of a store on local files, in bytes."""

COMPUTE = 0
"""For a grain that moves: the data was compared with its checksum; the grain that it becomes part of gets a computed one."""
UNVERIFIED = -1
"""For a grain that moves: the data has no checksum; the grain that it becomes part of must not get one."""

NOTHING = pyroaring.BitMap()
"""No chunks; callers must not change it."""
NO_MARKS = pyroaring.BitMap64()
"""No marks; callers must not change it."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """The owners of a store, and its size: `size`, `block_size` and `chunk_size` in bytes."""

    snapshot: uuid.UUID
    volume: uuid.UUID
    size: int
    block_size: int
    chunk_size: int


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of blocks of one chunk that move to another store."""

    grain: int
    """The grain of the store that they come from."""
    checksums: tuple[int, ...]
    """For each grain that has any of the blocks: the checksum that has to go along, COMPUTE or UNVERIFIED."""
    damaged: bool = False
    """Whether a checksum is among them that the data does not fit."""


class Put(NamedTuple):
    """A write of `blocks` blocks (0: of none) from block `first` on; `buffers` None stands for zeroes.

    With an `origin` the blocks are of one chunk and come from another store: see `Reader.read_to_move`.  With `mark`
    their chunks are marked, durably and before the commit, as written by an initiator (`Store.marked`).
    """

    first: int
    blocks: int
    buffers: Buffers | None
    origin: Origin | None = None
    mark: bool = False


class Verdict(enum.Enum):
    """The result of `verify` for a chunk."""

    GOOD = "good"
    UNVERIFIABLE = "unverifiable"  # no checksum is recorded
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class ChunkReport:
    """The result for blocks of one chunk; `offset` and `length` are bytes of the LUN."""

    offset: int
    length: int
    verdict: Verdict
    reason: str = ""


@dataclass(slots=True)
class Syncs:
    """Counts of the waits for stable storage."""

    data: int = 0  # of the data
    map: int = 0  # of what says where the data is
    commits: int = 0  # groups committed


class Reader(Protocol):
    """The reading half of a store.  Ranges are in blocks."""

    verify: bool
    """Whether `read` compares data with its checksum; `read_checked` always does."""

    @property
    def damaged(self) -> pyroaring.BitMap64:
        """The chunks that were found damaged since the store was opened."""
        ...

    def read(self, first: int, count: int, buffers: Buffers, *, now: bool = False) -> bool:
        """Fill `buffers` with `count` blocks from block `first` on; with `now` return False if that would wait.

        Raises BlankBlock, MediumError, DamagedBlocks.
        """
        ...

    def read_checked(self, first: int, count: int, buffers: Buffers, on_damage: OnDamage | None = None) -> None:
        """Fill `buffers` as `read`, and compare whatever has a checksum.

        With `on_damage`, call it for damaged and unreadable blocks instead of raising an error.  Damaged blocks are
        read as they are, and unreadable ones as zeroes.  Raises BlankBlock, MediumError, DamagedBlocks.
        """
        ...

    def read_to_move(
        self,
        first: int,
        count: int,
        buffers: Buffers,
        on_damage: OnDamage,
        *,
        grain: int,
        size: int,
        accept_loss: bool,
    ) -> Origin:
        """Fill `buffers` with blocks of one chunk that go to another store, and return their origin for it.

        `grain` and `size` are those of the other store.  Damage can go along if the blocks fill the grains that it is
        in, here and there: the data goes as it is, with a checksum that it does not fit, and `on_damage` is called.  So the
        data is damaged there, too.  With `accept_loss`, zeroes with such a checksum replace blocks that cannot be read.

        Raise MediumError if the blocks cannot be read, and DamagedBlocks if the damage cannot go along, because the
        other store would forget it.
        """
        ...

    def found(self, chunk: int, *, damaged: bool) -> None:
        """Note the result of a comparison."""
        ...


class Store(Protocol):
    """An open store; `Stores` makes them."""

    snapshot: uuid.UUID
    volume: uuid.UUID
    size: int
    block_size: int
    chunk_size: int
    local: bool
    """Whether no call waits for another host."""
    unit: int
    """Bytes; a put covers whole units, or reaches the end of the store."""
    durability: Durability
    syncs: Syncs

    @property
    def grain(self) -> int:
        """Bytes; a multiple of `block_size` and a divisor of `chunk_size`, or the chunk size."""
        ...

    @property
    def reader(self) -> Reader:
        """The reading half."""
        ...

    @property
    def marked(self) -> pyroaring.BitMap64:
        """The chunks that an initiator wrote to; a copy.  A store that has no marks refuses `Put.mark`."""
        ...

    def is_marked(self, chunk: int) -> bool:
        """Return whether an initiator wrote to the chunk."""
        ...

    @property
    def reason(self) -> str | None:
        """Why it is invalid; None if it is valid.  An invalid store must not be read."""
        ...

    @property
    def broken(self) -> bool:
        """Whether it is unknown how much of what was put is durable; then it takes no more."""
        ...

    @property
    def allocated_bytes(self) -> int:
        """The bytes that count against the limit of the volume."""
        ...

    def put_many(self, puts: Iterable[Put]) -> Sequence[block_device.BlockWritten | None]:
        """Store each range of `puts`, and commit them together.

        Return one result per put, in order: None if it is stored, or the BlockWritten that refused it.  The next put is
        taken from `puts` only when the buffers of all earlier ones are no longer needed.

        Raise SpaceExhausted, MediumError, NotSupported (a part of a unit; a mark that the store cannot keep), and the
        errors of the iterator.  The puts before the failed one are committed first.  A MediumError of the commit itself
        means that it is not known what is stored since the previous commit.
        """
        ...

    def flush(self) -> None:
        """Make all committed writes durable.  Raises MediumError."""
        ...

    def set_durability(self, durability: Durability) -> None:
        """Set what commits survive from now on.  Raises MediumError.

        With POWER_LOSS, all earlier commits are durable when this returns.
        """
        ...

    def extents(self, first: int, count: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (first block, blocks, written?) over the range, adjacent ones merged.  Raises MediumError."""
        ...

    def on_their_way(self) -> Sequence[tuple[int, int]]:
        """Return (first block, blocks) of all ranges that `extents` may show before they are durable, and of no others."""
        ...

    def used_bytes(self) -> int:
        """Return the space that it takes, in bytes, as well as the engine can tell."""
        ...

    def written_bytes(self) -> int:
        """Return how many bytes of it are written."""
        ...

    def verify(self, passed_over: pyroaring.BitMap = NOTHING) -> Iterator[ChunkReport]:
        """Read every chunk that has data, except those `passed_over`, and compare.

        Yield reports in order of address, at least one for each chunk.
        """
        ...

    def check_headers(self) -> list[str]:
        """Return the faults of what describes the store, as it is on the disk, a phrase each."""
        ...

    def invalidate(self, reason: str) -> None:
        """Record, durably and for ever, that it must not be read.  Raises MediumError."""
        ...

    def discard(self) -> None:
        """Free the space of its data, for good.  It must be invalid, and no call may be running.  Raises MediumError."""
        ...

    def close(self) -> None:
        """Flush and close.  No call may be running or follow.  The store is closed even if this raises MediumError."""
        ...


@runtime_checkable
class Convertible(Protocol):
    """Stores of which one can take the place of another of the same snapshot."""

    kind: Kind
    """The kind of new stores."""

    def kind_of(self, store: Store) -> Kind:
        """Return the kind of an open store."""
        ...

    def draft(self, geometry: Geometry) -> Store:
        """Make an empty store that `put_in_place` can put in place of the snapshot's; the next open removes it before.

        It is durable whatever the volume is.  Raises StoreUnavailable, SpaceExhausted.
        """
        ...

    def put_in_place(self, snapshot: uuid.UUID, *, durability: Durability, space: Space) -> Store:
        """Put the closed draft in place of the snapshot's store, durably, and open it.

        A crash leaves the one or the other.  The store that is replaced is still open, and the caller closes it.

        Raises StoreUnavailable; then the store stays.  Raises Unsettled if it is not known which of the two the next open
        finds.
        """
        ...

    def discard_draft(self, snapshot: uuid.UUID) -> None:
        """Delete a closed draft.  Raises StoreUnavailable."""
        ...

    def discard_replaced(self, snapshot: uuid.UUID, by: Kind) -> None:
        """Delete what is left of the closed store that one of kind `by` replaced.  If that fails, the next open does it."""
        ...


@runtime_checkable
class Quick(Protocol):
    """A store that says faster than with `Store.extents` whether it has anything of a range."""

    def lacks(self, first: int, count: int) -> bool:
        """Return whether no block of the range is written."""
        ...


class Stores(Protocol):
    """The place of all stores of one volume.  Their names are the identities of the snapshots."""

    def check(self, *, new: bool) -> None:
        """Raise StoreUnfit if the place cannot hold stores that are right, or is another one than that of the volume.

        With `new` the volume is new, and the place becomes its place.  Raises StoreUnavailable if it cannot be asked.
        """
        ...

    def create(self, geometry: Geometry, *, durability: Durability, space: Space) -> Store:
        """Make an empty store, durable when this returns.

        Raises StoreUnavailable, StoreUnfit, SpaceExhausted, ValueError (geometry).
        """
        ...

    def open(self, snapshot: uuid.UUID, *, durability: Durability, space: Space) -> Store:
        """Open an existing store.

        Raises StoreMissing and StoreDamaged, which mean that the data is lost; StoreNewer; and StoreUnavailable and
        StoreLocked, which mean that it may be there another time.
        """
        ...

    def remove(self, snapshot: uuid.UUID) -> None:
        """Delete a closed store, durably; a part that is left of one, too.  Raises StoreUnavailable."""
        ...

    def remove_leftovers(self, named: Container[uuid.UUID]) -> None:
        """Delete the stores that are not `named`.  A store that cannot be deleted now only costs space."""
        ...

    def clear(self) -> None:
        """Delete all stores, which are closed, and what says that the place is the volume's.  Raises StoreUnavailable."""
        ...

    def close(self) -> None:
        """Release what the place itself holds; all stores are closed."""
        ...

    def sync(self, snapshot: uuid.UUID) -> None:
        """Make what an earlier process put into the store durable, if it exists.  Raises OSError."""
        ...
