# SPDX-License-Identifier: Apache-2.0
"""A cluster in this process: a real portal with primary, log and pool in memory, and nodes that reach them over libiscsi.

The array records what the primary holds when a FENCED record goes into the log.  That is what each view must show.
"""

from __future__ import annotations

import collections
import contextlib
import random
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lun_backends import block_device
from lun_backends.block_device import Buffers
from lun_backends.cluster import records
from lun_backends.cluster.node import Guards
from lun_backends.cluster.records import Type
from lun_backends.initiator import libiscsi
from lun_backends.initiator.disk import Disk
from lun_backends.shared import devices, fence, volume
from lun_backends.shared.devices import RECORD, WriteOnceLun
from lun_backends.shared.snapshot import SnapshotState
from target.scsi.commands import table
from target.scsi.logical_unit import LogicalUnit, UnitKind
from tests.lun_backends.initiator.serving import Served
from tests.memory_device import MemoryDevice

MIB = 1 << 20
CHUNK = 4096
VOLUME = uuid.UUID(int=0xA5)
PATIENCE = 30.0  # seconds until a test that hangs fails
POOL = 8
_POOL_AT = 10  # the first LUN of the pool


class Slow(MemoryDevice):
    """A device that can be paused at an operation: `stop(method)` lets the next one of that kind wait until `go`."""

    def __init__(self, size: int, **options: Any) -> None:
        super().__init__(size, **options)
        self.blocking = True
        self.commands: collections.Counter[str] = collections.Counter()
        self.before = self._look
        self._stops: dict[str, tuple[threading.Event, threading.Event]] = {}

    def stop(self, method: str) -> tuple[threading.Event, threading.Event]:
        """Return two events: set when the operation has come, and the one that lets it go on."""
        self._stops[method] = threading.Event(), threading.Event()
        return self._stops[method]

    def _look(self, method: str, _offset: int, _length: int) -> None:
        self.commands[method] += 1
        if (events := self._stops.pop(method, None)) is not None:
            events[0].set()
            assert events[1].wait(PATIENCE)


class Log(Slow):
    """The log, which calls `on_record` before a record is in it, and `cut` tells it to lose one."""

    def __init__(self, on_record: Callable[[records.Record], None]) -> None:
        super().__init__(256 * RECORD, write_once=True)
        self._on_record = on_record

    def _write(self, offset: int, buffers: Buffers, *, fua: bool = False) -> None:
        with self._lock:
            if not self.written[offset // self.block_size]:
                self._on_record(records.decode(b"".join(buffers), offset // RECORD, VOLUME))
            super()._write(offset, buffers, fua=fua)


class Array:
    """Primary, log and pool behind one portal; `moments` has the primary's content at the fence of each epoch."""

    def __init__(self, directory: Path, *, size: int = MIB) -> None:
        self.served = Served()
        self.primary = Slow(size)
        self.moments: dict[int, bytes] = {}
        self.log = Log(self._note)
        self.luns = {uuid.UUID(int=0x100 + at): Slow(size, write_once=True) for at in range(POOL)}
        self.unit = LogicalUnit(
            self.primary, uuid=VOLUME, kind=UnitKind.PRIMARY, name="primary", commands=table.for_unit,
            reservation_file=directory / "reservations.json",
        )  # fmt: skip
        self.served.target.add_lun(0, self.unit)
        self.log_unit = self.served.add(1, self.log, UnitKind.WRITE_ONCE)
        self.units = {
            lun: self.served.add(number, device, UnitKind.WRITE_ONCE)
            for number, (lun, device) in enumerate(self.luns.items(), _POOL_AT)
        }
        self.hidden: set[tuple[str, uuid.UUID]] = set()  # (node, LUN) that it does not see

    def _note(self, record: records.Record) -> None:
        if record.type is Type.FENCED:
            self.moments.setdefault(record.epoch, bytes(self.primary.data))

    def address(self, lun: uuid.UUID) -> str:
        return self.served.address(_POOL_AT + list(self.luns).index(lun))

    @staticmethod
    def quiet(opened: Sequence[volume.SharedVolume]) -> None:
        """Return when the nodes have looked at the log a moment ago, and so do not look again for almost a second."""
        for node in opened:
            assert node.refresh(PATIENCE)
        time.sleep(0.1)

    def close(self) -> None:
        self.served.close()


class Pool:
    """The pool as a node sees it."""

    def __init__(self, array: Array, node: str, initiator: libiscsi.Initiator) -> None:
        self._array, self._node, self._initiator = array, node, initiator

    def _disk(self, lun: uuid.UUID) -> Disk:
        return Disk(self._initiator.unit(self._array.address(lun)), write_once=True)

    def find(self, lun: uuid.UUID) -> WriteOnceLun | None:
        if lun not in self._array.luns or (self._node, lun) in self._array.hidden:
            return None
        disk = self._disk(lun)
        return WriteOnceLun(disk, disk)

    def blank(self) -> list[uuid.UUID]:
        found = []
        for lun in self._array.luns:
            disk = self._disk(lun)
            if next(disk.extents(0, disk.size)).length == disk.size and not disk_written(disk):
                found.append(lun)
        return found


def disk_written(disk: block_device.BlockDevice) -> bool:
    return next(disk.extents(0, disk.size)).kind is block_device.ExtentKind.DATA


def open_node(
    array: Array, name: str, *, guards: Guards | None = None, exclusive: bool | None = None, **settings: Any
) -> volume.SharedVolume:
    """Open the volume on a node of that name."""
    initiator = array.served.initiator(f"iqn.2026-11.io.wolun:{name}")
    primary = Disk(initiator.unit(array.served.address(0)))
    log = Disk(initiator.unit(array.served.address(1)), write_once=True)
    own = fence.UnitFence(primary.unit)
    if exclusive is not None:
        own.exclusive = lambda: exclusive  # type: ignore[method-assign]
    parts = devices.Devices(primary, own, devices.DeviceLog(log), Pool(array, name, initiator))
    made = volume.SharedVolume(
        parts, identity=VOLUME, name="archive", node=name,
        settings=volume.Settings(**{"chunk_size": CHUNK, "patience": PATIENCE, **settings}),
    )  # fmt: skip
    if guards is not None:
        made._node.guards = guards
    return made


@contextlib.contextmanager
def nodes(array: Array, *names: str, **settings: Any) -> Iterator[list[volume.SharedVolume]]:
    """Open the volume on these nodes, armed, and close it."""
    with contextlib.ExitStack() as closing:
        opened = [open_node(array, name, **settings) for name in names]
        for node in opened:
            closing.callback(node.close)
        for node in opened:
            wait(lambda node=node: node.status.state == "armed")  # type: ignore[misc]
        yield opened


def wait(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Return when the condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


class Writer(threading.Thread):
    """Initiators of a node: they write blocks that describe themselves to one half of all blocks, and remember the last."""

    def __init__(self, node: volume.SharedVolume, share: int, shares: int, seed: int) -> None:
        super().__init__(name=f"writer {share}", daemon=True)
        self.node, self.share, self.shares = node, share, shares
        self.dice = random.Random(seed)
        self.written: dict[int, int] = {}  # block: the number of the last write that was acknowledged
        self.count = 0
        self.stopping = False
        self.failure: BaseException | None = None
        self.longest = 0.0

    def run(self) -> None:
        try:
            while not self.stopping:
                blocks = self.dice.choice((1, 1, 1, 2, 8))
                first = self.dice.randrange(self.node.device.size // 512 // self.shares - blocks)
                self.write([(first + at) * self.shares + self.share for at in range(blocks)])
        except BaseException as failure:  # noqa: BLE001 - the test shows it
            self.failure = failure

    def write(self, blocks: list[int]) -> None:
        self.count += 1
        for block in blocks:
            began = time.monotonic()
            self.node.device.writev(block * 512, [memoryview(stamp(block, self.share, self.count))])
            self.longest = max(self.longest, time.monotonic() - began)
            self.written[block] = self.count

    def finish(self) -> None:
        """Stop, and check that each acknowledged write is on the primary."""
        self.stopping = True
        self.join(PATIENCE)
        assert not self.is_alive()
        if self.failure is not None:
            raise self.failure
        self.check(content(self.node.device))

    def check(self, data: bytes) -> None:
        for block, number in self.written.items():
            assert data[block * 512 : (block + 1) * 512] == stamp(block, self.share, number), (
                block,
                self.share,
                number,
            )


def stamp(block: int, share: int, number: int) -> bytes:
    """Return the content of a block that says where it belongs and who wrote it."""
    return struct.pack(">QQQQ", block, share, number, block ^ number) * 16


def content(device: block_device.BlockDevice) -> bytes:
    """Return all bytes of a device."""
    data = bytearray(device.size)
    for at in range(0, device.size, 256 << 10):
        device.readv(at, [memoryview(data)[at : at + (256 << 10)]])
    return bytes(data)


def settle(array: Array, *opened: volume.SharedVolume) -> None:
    """Return when all nodes are ARMED in the newest epoch, and have read the whole log."""
    newest = max(array.moments)
    for node in opened:
        assert node.refresh(PATIENCE)
        wait(lambda node=node: (node.status.state, node.status.epoch, node.status.pending) == ("armed", newest, ""))  # type: ignore[misc]


def check_views(array: Array, *opened: volume.SharedVolume) -> int:
    """Compare every snapshot, on each of the nodes, with what the primary held at its fence.  Return how many there are."""
    settle(array, *opened)
    compared = 0
    for node in opened:
        for snapshot in node.snapshots:
            if snapshot.state is SnapshotState.ACTIVE:
                assert content(node.view(str(snapshot.uuid))) == array.moments[snapshot.epoch], snapshot
                compared += 1
    return compared
