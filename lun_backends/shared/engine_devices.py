# SPDX-License-Identifier: Apache-2.0
"""The log and the write-once LUNs of a shared volume in an engine (`stores.engine`), with no storage host of ours.

| what          | where it is                                                                                          |
| ------------- | ---------------------------------------------------------------------------------------------------- |
| the plate     | the mark `shared` at a place that the volume's name alone leads to: identity and primary of the volume |
| the log       | the chunks of the identity `LOG`: chunk *i* is record *i*, created exclusively                         |
| LUN(e)        | a store (`stores.engine_store`), made when epoch *e* is about to be taken                              |
| a tombstone   | the volume's mark `retired.LUN`; it is never deleted                                                   |

All of it is made by exclusive creation, so the first node decides, and no node needs another one.

A call that got no answer may take effect later.  README.md of `cluster` has the argument why that harms nothing.  Three
rules of this module belong to it:

* Two nodes that are about to take epoch *e* make the same LUN: its identity follows from the volume, *e* and its
  geometry.  No record names it twice, because epochs never come back.  So no LUN is left over.
* A value of a LUN is deleted only behind its tombstone.  A reader that finds a block blank looks for the tombstone
  *afterwards*.  So it never takes a deleted block for a blank one.
* The records of the log, the tombstones and the plate are never deleted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from lun_backends import block_device, write_once
from lun_backends.block_device import Buffers, Extent, ExtentKind
from lun_backends.damage import OnDamage
from lun_backends.durability import Durability
from lun_backends.shared.devices import WriteOnceLun
from lun_backends.stores import chunk_file, contract, engine, engine_store
from lun_backends.stores.space import Space
from lun_backends.volumes import errors

logger = logging.getLogger(__name__)

LOG = uuid.UUID(int=0)
"""The identity that has the log's records; no snapshot has it."""
_NAMES = uuid.UUID(
    "6f0f3a5c-9d0e-4a4b-8a55-6b1f9ad3c1d7"
)  # the name space of the names of shared volumes (RFC 4122 4.3)
_PLATE = "shared"
_COUNTED = 2.0  # seconds for which a count serves

Engines = Callable[[uuid.UUID], engine.Engine]
"""Returns the engine for the values of an identity.  Raises StoreUnfit."""


@dataclass(frozen=True, slots=True)
class Plate:
    """The identity of a shared volume, and the name that its primary gives itself (page 83h); empty if it has none."""

    identity: uuid.UUID
    primary: str


def find_plate(engines: Engines, name: str, primary: str, is_used: Callable[[], bool]) -> Plate:
    """Return the plate of the shared volume of that name; make it if there is none.

    `primary` is the name of the primary that this node sees, and `is_used` says whether an initiator is registered there.
    If one is, there is a cluster already, and its plate must be elsewhere.  Raise VolumeError, StoreUnfit, NoAnswer.
    """
    directory = engines(uuid.uuid5(_NAMES, name))
    try:
        with answers():
            directory.check()
            content = directory.mark(None, _PLATE)
            if content is None:
                content = _make_plate(engines, directory, name, primary, is_used)
    finally:
        directory.close()
    try:
        fields = json.loads(content)
        plate = Plate(uuid.UUID(fields["identity"]), str(fields["primary"]))
    except (ValueError, KeyError, TypeError) as error:
        reason = f"what {directory.name} says about the volume is damaged: {error}"
        raise errors.VolumeError(name, reason, "restore it from a copy of the pool or the bucket") from error
    if primary != plate.primary:
        reason = f"the primary is {primary or 'nameless'}, and that of the volume is {plate.primary or 'nameless'}"
        raise errors.VolumeError(name, reason, "correct `primary` in the configuration")
    return plate


def _make_plate(
    engines: Engines, directory: engine.Engine, name: str, primary: str, is_used: Callable[[], bool]
) -> bytes:
    """Make the plate of a new volume; return it, or that of another node that was first.  Raise VolumeError, EngineError."""
    if is_used():
        content = directory.mark(None, _PLATE)  # another node may have made the volume a moment ago
        if content is None:
            reason = f"initiators are registered at its primary, and {directory.name} has nothing of the volume"
            remedy = "correct the place of the store; or end that reservation, if it is of no cluster"
            raise errors.VolumeError(name, reason, remedy)
        return content
    identity = uuid.uuid4()
    made = engine_store.EngineStores(identity, engines(identity))
    try:
        made.check(new=True)
        content = json.dumps({"identity": str(identity), "name": name, "primary": primary}).encode()
        if not directory.set_mark(None, _PLATE, content):
            made.clear()
            content = directory.mark(None, _PLATE)
            assert content is not None
    finally:
        made.close()
    return content


class EngineLog:
    """The log; see `devices.Log`."""

    blocks = 0  # no limit

    def __init__(self, of: engine.Engine) -> None:
        self._engine = of

    def read(self, position: int) -> tuple[bytes, ...]:
        """Return the records from that position up to the first blank one.  One call if there is none."""
        found: list[bytes] = []
        calls = [self._engine.get(LOG, position)]
        with answers():
            while calls:
                records = [call.result() for call in calls]
                for record in records:
                    if record is None:
                        return tuple(found)
                    found.append(record[0])
                first = position + len(found)
                calls = [self._engine.get(LOG, at) for at in range(first, first + engine.IN_FLIGHT)]
        raise AssertionError(position)

    def append(self, position: int, block: bytes) -> bool:
        """Create a record.  Return False if there is one already."""
        with answers():
            return self._engine.put(LOG, position, block, chunk_file.checksum([memoryview(block)])).result()

    def close(self) -> None:
        """Do nothing: the pool closes the engine."""


class EngineLun(write_once.WriteOnce):
    """A write-once LUN whose blank blocks are known not to be deleted ones, and whose silent engine is NoAnswer."""

    def __init__(self, store: engine_store.EngineStore) -> None:
        super().__init__(store)
        self._engine = store.engine

    def readv(self, offset: int, buffers: Buffers) -> None:
        with answers(), self._blank():
            super().readv(offset, buffers)

    def read_checked(self, offset: int, buffers: Buffers, on_damage: OnDamage | None = None) -> None:
        with answers(), self._blank():
            super().read_checked(offset, buffers, on_damage)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        with answers():
            found = list(super().extents(offset, length))
            if any(extent.kind is ExtentKind.BLANK for extent in found):
                self._check_not_retired()
        yield from found

    def put_many(self, requests: Iterable[tuple[int, Buffers]]) -> Sequence[block_device.BlockWritten | None]:
        with answers():
            return super().put_many(requests)

    def written_bytes(self) -> int:
        """Return how many bytes are written, as counted a moment ago.  Raise NoAnswer, DeviceClosed."""
        with answers(), self._call():
            return min(self._engine.count(self.uuid, _COUNTED) * self.chunk_size, self.size)

    @contextlib.contextmanager
    def _blank(self) -> Iterator[None]:
        try:
            yield
        except block_device.BlankBlock:
            self._check_not_retired()
            raise

    def _check_not_retired(self) -> None:
        if is_retired(self._engine, self.uuid):
            raise block_device.NotReady(f"write-once LUN {self.uuid} is retired: its snapshot is deleted")


class EnginePool:
    """The write-once LUNs of a volume, made on demand; see `devices.Pool`."""

    on_demand = True

    def __init__(self, of: engine.Engine, identity: uuid.UUID, size: int, block_size: int, chunk_size: int) -> None:
        """LUNs that are made from now on have these sizes, in bytes.  `close` closes the engine."""
        self._engine = of
        self._stores = engine_store.EngineStores(identity, of, counts=False)
        self._volume = identity
        self._sizes = size, block_size, chunk_size
        self._retired: set[uuid.UUID] = set()
        self._started = False

    def find(self, lun: uuid.UUID) -> WriteOnceLun | None:
        """Open a write-once LUN; return None if there is none of that identity, or no longer."""
        with answers():
            try:
                store = self._stores.open(lun, durability=Durability.POWER_LOSS, space=Space())
            except contract.StoreMissing:
                return None
        device = EngineLun(store)
        return WriteOnceLun(device, device)

    def blank(self, epoch: int) -> Sequence[uuid.UUID]:
        """Return the LUN for that epoch, which exists then.  It is blank: no node puts anything before a record names it."""
        size, block_size, chunk_size = self._sizes
        lun = uuid.uuid5(self._volume, f"epoch {epoch}, {size}, {block_size}, {chunk_size}")
        geometry = contract.Geometry(lun, self._volume, size, block_size, chunk_size)
        with answers():
            self._stores.make(geometry)
        return [lun]

    def look(self) -> None:
        """Delete the values of the LUNs that were forgotten.

        The node that makes the tombstone deletes them at once.  After its start a node does it whoever made the tombstone:
        that one may have died, and a value may have landed late.
        """
        if not self._retired:
            return
        with answers():
            for lun in self._retired.intersection(self._engine.snapshots()):
                first = self._engine.set_mark(None, _tombstone(lun), b"")
                if first or not self._started:
                    self._stores.remove(lun)
                    logger.info("the old data of write-once LUN %s is deleted", lun)
        self._retired.clear()
        self._started = True

    def forget(self, lun: uuid.UUID) -> None:
        """Let the next `look` delete a LUN that no chain holds."""
        self._retired.add(lun)

    def close(self) -> None:
        """Disconnect; all LUNs are closed."""
        self._stores.close()


def is_retired(of: engine.Engine, lun: uuid.UUID) -> bool:
    """Return whether a LUN has a tombstone.  Raise EngineError."""
    return of.mark(None, _tombstone(lun)) is not None


@contextlib.contextmanager
def answers() -> Iterator[None]:
    """Turn the errors of an engine that did not do it, or of which that is not known, into NoAnswer."""
    try:
        yield
    except (block_device.DamagedBlocks, contract.StoreUnfit):
        raise
    except (engine.EngineError, contract.StoreUnavailable) as error:
        raise block_device.NoAnswer(str(error)) from error
    except block_device.MediumError as error:  # an EngineError of a store
        raise block_device.NoAnswer(error.reason) from error


def _tombstone(lun: uuid.UUID) -> str:
    return f"retired.{lun}"
