# SPDX-License-Identifier: Apache-2.0
"""The fuzz targets: functions that take any bytes and return, or raise because a promise is broken.

| target    | the bytes are                                              | what must hold |
| --------- | ---------------------------------------------------------- | --- |
| `pdus`    | a stream of PDUs, digests on or off                        | whole PDUs, or a typed error; never past the end |
| `keys`    | a text of keys and values                                  | a typed error, or the parsed keys are serialised to the same bytes |
| `login`   | Login Requests, more or less                               | an answer that parses, or the end; no initiator gets in by accident |
| `cdbs`    | the kind of unit, CDBs and data-out                        | a status with proper sense data, and never our own HARDWARE ERROR |
| `session` | a script for a logged-in session, beside one that behaves  | bounded memory, proper answers; the other session works as before |
"""

from __future__ import annotations

import itertools
import logging
import struct
from collections.abc import Callable, Mapping

from target.iscsi import errors, keys, pdu
from target.iscsi.connection import State
from target.iscsi.limits import Limits
from target.iscsi.pdu import NO_TAG, Opcode
from target.scsi.logical_unit import UnitKind
from target.scsi.scsi_target import ScsiTarget
from target.scsi.task import Status
from tests.memory_device import MemoryDevice
from tests.target.iscsi import initiator as iscsi
from tests.target.scsi import harness

BLOCKS = 64
SMALL = Limits(queue_depth=8, output_bytes=1 << 16, data_bytes=1 << 18, transfer_bytes=1 << 20, held_bytes=1 << 14)


class Reader:
    """A reader that takes bytes off the front, and zeroes once none are left."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0

    def __bool__(self) -> bool:
        return self._position < len(self._data)

    def take(self, length: int) -> bytes:
        """Return the next `length` bytes."""
        taken = self._data[self._position : self._position + length]
        self._position += length
        return taken.ljust(length, b"\0")

    def number(self, length: int = 1) -> int:
        """Return the next bytes as a number."""
        return int.from_bytes(self.take(length))


class Watch(logging.Handler):
    """A log handler that turns errors, which are bugs of ours, into failures."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            raise AssertionError(record.getMessage()) from (record.exc_info[1] if record.exc_info else None)


def watch() -> None:
    """Make logged errors end the process."""
    logger = logging.getLogger("target")
    if not any(isinstance(handler, Watch) for handler in logger.handlers):
        logger.addHandler(Watch())
        logger.setLevel(logging.ERROR)


def pdus(data: bytes) -> None:
    """Parse PDUs."""
    reader = Reader(data)
    flags = reader.number()
    digests = pdu.Digests(bool(flags & 1), bool(flags & 2))
    stream = memoryview(data)[1:]
    start = 0
    try:
        while (parsed := pdu.find(stream, start, len(stream), digests, 1 << 16)) is not None:
            assert start < parsed.end <= len(stream)
            assert len(parsed.bhs) == pdu.BHS_LENGTH
            try:
                extra = pdu.extra_headers(parsed.ahs)
                assert sum(map(len, extra.values())) <= len(parsed.ahs)
            except ValueError:
                pass
            start = parsed.end
    except (pdu.HeaderDigestError, pdu.DataSegmentTooLong):
        return


def text_keys(data: bytes) -> None:
    """Parse and negotiate keys and values."""
    try:
        pairs = keys.parse(data)
    except errors.PeerError:
        return
    assert keys.parse(keys.serialise(pairs)) == pairs
    try:
        agreed, answers = keys.negotiate(pairs, keys.Parameters(), keys.OURS)
    except errors.PeerError:
        return
    assert keys.parse(keys.serialise(answers)) == answers
    assert 512 <= agreed.max_recv_data_segment_length < 1 << 24
    assert agreed.first_burst_length <= agreed.max_burst_length < 1 << 24


def _target(*, blocking: bool = False) -> ScsiTarget:
    return iscsi.make_target(*(MemoryDevice(BLOCKS * 512, blocking=blocking) for _ in range(2)))


def login(data: bytes) -> None:
    """Run the login phase: each byte string is a request's flags and text, or raw bytes."""
    portal = iscsi.FakePortal({iscsi.TARGET: _target()}, limits=SMALL)
    peer = iscsi.Initiator(portal)
    reader = Reader(data)
    while reader and not peer.connection.finished:
        kind, length = reader.number(), reader.number(2) % 1024
        if kind & 1:
            stream = reader.take(length)
        else:
            request = bytearray(
                peer.request(
                    Opcode.LOGIN_REQUEST, reader.number(), itt=0, word20=0, immediate=True, data=reader.take(length)
                )
            )
            request[2:4] = b"\0\0" if not kind & 2 else reader.take(2)
            stream = bytes(request)
        peer.feed(stream)
        if peer.connection.state is State.FULL_FEATURE:
            assert peer.connection.login.initiator
            break
    peer.connection.close()


KINDS = tuple(UnitKind)


def cdbs(data: bytes) -> None:
    """Run commands of two initiators one after the other on one unit of a kind."""
    reader = Reader(data)
    kind = KINDS[reader.number() % len(KINDS)]
    device = MemoryDevice(
        BLOCKS * 512, write_once=kind is UnitKind.WRITE_ONCE, read_only=kind is UnitKind.SNAPSHOT_VIEW
    )
    bench = harness.Bench(kind, device)
    initiators = bench.initiator, bench.login("iqn.1993-08.org.debian:two", "01")
    while reader:
        control = reader.number()
        cdb = reader.take(16)
        length = (control & 0x7F) * 64
        result = initiators[control >> 7].run(cdb, reader.take(length) if length else b"")
        assert result.status in set(Status)
        assert (result.key, result.asc) != (0x4, 0x4400)
        assert len(result.data) <= 1 << 20
    for initiator in initiators:
        bench.target.close_nexus(initiator.nexus)
    assert not bench.unit.running
    assert not bench.unit.itls


def session(data: bytes) -> None:
    """Run a session that follows the script, beside a well-behaved one on the same target."""
    reader = Reader(data)
    target = _target(blocking=bool(reader.number() & 1))
    portal = iscsi.FakePortal({iscsi.TARGET: target}, limits=SMALL)
    rude, good = iscsi.Initiator(portal), iscsi.Initiator(portal, name=iscsi.INITIATOR + "-2")
    good.log_in()
    offers = [
        (),
        (("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")),
        (("InitialR2T", "No"), ("ImmediateData", "No")),
    ]
    rude.log_in(*offers[reader.number() % 3])
    tags = itertools.cycle(range(8))
    while reader and not rude.connection.finished:
        for reply in rude.feed(_request(rude, reader, next(tags))):
            assert len(reply.data) <= 1 << 24
        if reader.number() & 1:
            rude.run_blocked()
        _bounded(rude)
    rude.run_blocked()
    rude.connection.close()
    for number in range(1, 3):  # the neighbour's own unit is unharmed; unit attentions are allowed
        for _ in range(8):
            stamp = bytes([number]) * 512
            replies = good.feed(good.command(iscsi.write10(0, 1), write=512, data=stamp, lun=1)) or good.run_blocked()
            if replies[-1].status not in (Status.CHECK_CONDITION,):
                break
        assert replies[-1].status in (
            Status.GOOD,
            Status.RESERVATION_CONFLICT,
        )  # the session of the script may have reserved it
        assert good.connection.state is State.FULL_FEATURE


def _bounded(peer: iscsi.Initiator) -> None:
    tasks = peer.connection.tasks
    assert tasks.outstanding <= 3 * SMALL.queue_depth
    assert tasks.data_out.used <= SMALL.data_bytes + SMALL.transfer_bytes
    assert len(tasks.direct) <= 1 << 20


def _request(peer: iscsi.Initiator, reader: Reader, tag: int) -> bytes:
    kind = reader.number() % 10
    immediate = bool(reader.number() & 1)
    if kind < 3:
        cdb, flags, length = reader.take(16), reader.number() & 0xE0, reader.number(3) % (1 << 18)
        data = reader.take(reader.number() * 8) if reader.number() & 1 else b""
        return peer.request(
            Opcode.SCSI_COMMAND, flags, lun=(reader.number() % 3) << 48, itt=tag, word20=length or len(data),
            data=data, tail=cdb, immediate=immediate,
        )  # fmt: skip
    if kind == 3:
        lba, count = reader.number() % BLOCKS, reader.number() % 8
        return peer.command(iscsi.write10(lba, count), write=512 * count, itt=tag, lun=reader.number() % 2)
    if kind == 4:
        ttt = reader.number() % 16 or NO_TAG
        length = reader.number() * 16
        return peer.data_out(tag, ttt, reader.number() % 4, reader.number(2), reader.take(length), final=immediate)
    if kind == 5:
        tail = struct.pack(">I12x", reader.number() % 8)
        function = 0x80 | reader.number() % 10
        return peer.request(
            Opcode.TASK_MANAGEMENT_REQUEST,
            function,
            itt=tag,
            word20=reader.number() % 8,
            immediate=immediate,
            tail=tail,
        )
    if kind == 6:
        return peer.request(Opcode.NOP_OUT, itt=tag, immediate=immediate, data=reader.take(reader.number()))
    if kind == 7:
        return peer.request(
            Opcode.TEXT_REQUEST, reader.number() & 0xC0, itt=tag, immediate=immediate, data=reader.take(reader.number())
        )
    if kind == 8:
        offset = reader.number() % 16 - 8
        return peer.request(Opcode.NOP_OUT, itt=tag, cmd_sn=peer.cmd_sn + offset & 0xFFFFFFFF)
    return reader.take(reader.number())


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "pdus": pdus,
    "keys": text_keys,
    "login": login,
    "cdbs": cdbs,
    "session": session,
}
