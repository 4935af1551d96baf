# SPDX-License-Identifier: Apache-2.0
"""A cluster in this process: a real portal with primary, log and pool in memory, and nodes that reach them over libiscsi.

The array records what the primary holds when a FENCED record goes into the log.  That is what each view must show.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import random
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from lun_backends import block_device
from lun_backends.block_device import Buffers
from lun_backends.cluster import records
from lun_backends.cluster.records import Type
from lun_backends.initiator import libiscsi
from lun_backends.initiator.disk import Disk
from lun_backends.initiator.unit import Answer, Unit
from lun_backends.shared import devices, fence, volume
from lun_backends.shared.devices import RECORD, WriteOnceLun
from lun_backends.shared.snapshot import SnapshotState
from target.scsi.commands import table
from target.scsi.logical_unit import LogicalUnit, UnitKind
from tests.lun_backends.initiator.serving import TARGET, Served
from tests.memory_device import MemoryDevice

MIB = 1 << 20
CHUNK = 4096
VOLUME = uuid.UUID(int=0xA5)
PATIENCE = 30.0  # seconds until a test that hangs fails
POOL = 8
POOL_AT = 10  # the first LUN of the pool


class Slow(MemoryDevice):
    """A device that can be paused at an operation: `stop(method)` lets the next one of that kind wait until `go`."""

    def __init__(self, size: int, **options: Any) -> None:
        super().__init__(size, **options)
        self.blocking = True
        self.commands: collections.Counter[str] = collections.Counter()
        self.before = self._look
        self._stops: dict[str, tuple[threading.Event, threading.Event]] = {}
        self.on_command: Callable[[str], None] = lambda _method: None

    def stop(self, method: str) -> tuple[threading.Event, threading.Event]:
        """Return two events: set when the operation has come, and the one that lets it go on."""
        self._stops[method] = threading.Event(), threading.Event()
        return self._stops[method]

    def _look(self, method: str, _offset: int, _length: int) -> None:
        self.commands[method] += 1
        self.on_command(method)
        if (events := self._stops.pop(method, None)) is not None:
            events[0].set()
            assert events[1].wait(PATIENCE)


class PausableDisk(Disk):
    """A disk on a node that can be paused before it sends a command, as by SIGSTOP; see `Slow.stop`."""

    def __init__(self, *words: Any, **options: Any) -> None:
        self._stops: dict[str, tuple[threading.Event, threading.Event]] = {}
        super().__init__(*words, **options)

    def stop(self, method: str) -> tuple[threading.Event, threading.Event]:
        self._stops[method] = threading.Event(), threading.Event()
        return self._stops[method]

    def readv(self, offset: int, buffers: Buffers) -> None:
        self._pause("readv")
        super().readv(offset, buffers)

    def writev(self, offset: int, buffers: Buffers, *, fua: bool = False) -> None:
        self._pause("writev")
        super().writev(offset, buffers, fua=fua)

    def _pause(self, method: str) -> None:
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

    def __init__(self, directory: Path, *, size: int = MIB, pool: int = POOL) -> None:
        self.served = Served()
        self.primary = Slow(size)
        self.moments: dict[int, bytes] = {}
        self.log = Log(self._note)
        self.luns = {uuid.UUID(int=0x100 + at): Slow(size, write_once=True) for at in range(pool)}
        self._directory = directory
        self._serve_primary()
        self.log_unit = self.served.add(1, self.log, UnitKind.WRITE_ONCE)
        self.units = {
            lun: self.served.add(number, device, UnitKind.WRITE_ONCE)
            for number, (lun, device) in enumerate(self.luns.items(), POOL_AT)
        }
        self.hidden: set[tuple[str, uuid.UUID]] = set()  # (node, LUN) that it does not see

    def _note(self, record: records.Record) -> None:
        if record.type is Type.FENCED:
            self.moments.setdefault(record.epoch, bytes(self.primary.data))

    def address(self, lun: uuid.UUID | int, through: str = "") -> str:
        number = lun if isinstance(lun, int) else POOL_AT + list(self.luns).index(lun)
        host, port = self.served.portal.address
        return f"iscsi://{through or f'{host}:{port}'}/{TARGET}/{number}"

    def restart(self) -> None:
        """Restart the storage host: only what reached the disks is left, and the reservations' file."""
        self.served.portal.close(0)
        self.served.target.remove_lun(0)
        self._serve_primary()
        self.served.restart()

    def _serve_primary(self) -> None:
        self.unit = LogicalUnit(
            self.primary, uuid=VOLUME, kind=UnitKind.PRIMARY, name="primary", commands=table.for_unit,
            reservation_file=self._directory / "reservations.json",
        )  # fmt: skip
        self.served.target.add_lun(0, self.unit)

    def initiator(self, name: str, port: int = 0) -> libiscsi.Initiator:
        return self.served.initiator(name, port)

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

    on_demand = False

    def __init__(self, array: AsSeen, initiator: libiscsi.Initiator, node: str, through: str) -> None:
        self._array, self._initiator, self._node, self._through = array, initiator, node, through
        self.opened: dict[uuid.UUID, PausableDisk] = {}
        self.forgotten: list[uuid.UUID] = []

    def _disk(self, lun: uuid.UUID) -> PausableDisk:
        return PausableDisk(self._initiator.unit(self._array.address(lun, self._through)), write_once=True)

    def find(self, lun: uuid.UUID) -> WriteOnceLun | None:
        if lun not in self._array.luns or (self._node, lun) in self._array.hidden:
            return None
        disk = self.opened[lun] = self._disk(lun)
        return WriteOnceLun(disk, disk)

    def look(self) -> None:
        """Do nothing: the array knows its LUNs."""

    def forget(self, lun: uuid.UUID) -> None:
        self.forgotten.append(lun)

    def blank(self, _epoch: int) -> list[uuid.UUID]:
        found = []
        for lun in self._array.luns:
            disk = self._disk(lun)
            if next(disk.extents(0, disk.size)).length == disk.size and not disk_written(disk):
                found.append(lun)
        return found


def disk_written(disk: block_device.BlockDevice) -> bool:
    return next(disk.extents(0, disk.size)).kind is block_device.ExtentKind.DATA


class AsSeen(Protocol):
    """The array, as nodes of this process or of another one see it."""

    hidden: set[tuple[str, uuid.UUID]]

    @property
    def luns(self) -> Collection[uuid.UUID]: ...

    def address(self, lun: uuid.UUID | int, through: str = "", /) -> str: ...

    def initiator(self, name: str, port: int = 0) -> libiscsi.Initiator: ...


class Node(volume.SharedVolume):
    """The volume on a node, with what a test needs of its devices."""

    primary: PausableDisk
    pool: Pool


class Paths(Unit):
    """A LUN over two paths, which are two nexuses: each command goes by the next one that answers, as with dm-multipath."""

    def __init__(self, *paths: Unit) -> None:
        super().__init__(paths[0].address)
        self.paths = paths
        self._next = itertools.cycle(range(len(paths)))

    def reset_logical_unit(self, timeout: float = 30.0) -> None:
        self.paths[0].reset_logical_unit(timeout)

    def close(self) -> None:
        for path in self.paths:
            path.close()

    def _send(self, cdb: bytes, data_out: Buffers, data_in: Buffers, timeout: float) -> Answer:
        first = next(self._next)
        try:
            return self.paths[first]._send(cdb, data_out, data_in, timeout)
        except block_device.NoAnswer:
            return self.paths[1 - first]._send(cdb, data_out, data_in, timeout)


def open_node(
    array: AsSeen,
    name: str,
    *,
    exclusive: bool | None = None,
    through: str = "",
    other_path: str | None = None,
    **settings: Any,
) -> Node:
    """Open the volume on a node of that name.

    `through` is the HOST:PORT of a link to the portal, and `other_path` that of a second path to the primary.
    """
    initiator = array.initiator(f"iqn.2026-11.io.wolun:{name}")
    pool = Pool(array, initiator, name, through)
    unit: Unit = initiator.unit(array.address(0, through))
    paths: Callable[[], Sequence[Unit]] | None = None
    if other_path is not None:
        second = array.initiator(f"iqn.2026-11.io.wolun:{name}", 1)
        unit = several = Paths(unit, second.unit(array.address(0, other_path)))
        paths = lambda: several.paths  # noqa: E731 - mypy wants the type above
    primary = PausableDisk(unit)
    log = Disk(initiator.unit(array.address(1, through)), write_once=True)
    own = fence.UnitFence(primary.unit, paths)
    if exclusive is not None:
        own.exclusive = lambda: exclusive  # type: ignore[method-assign]
    made = Node(
        devices.Devices(primary, own, devices.DeviceLog(log), pool),
        identity=VOLUME,
        name="archive",
        node=name,
        settings=volume.Settings(**{"chunk_size": CHUNK, "patience": PATIENCE, **settings}),
    )
    made.primary, made.pool = primary, pool
    return made


@contextlib.contextmanager
def nodes(array: Array, *names: str, **settings: Any) -> Iterator[list[Node]]:
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


class Link:
    """A TCP link between a node and the portal that can be cut: what is under way is lost, and nothing gets through."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self.is_cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        with self._lock:
            self.is_cut = True
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def heal(self) -> None:
        self.is_cut = False

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self.is_cut:
                    near.close()
                    continue
                far = socket.create_connection(self._array.served.portal.address)
                self._pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
                end.close()


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
