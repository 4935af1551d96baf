# SPDX-License-Identifier: Apache-2.0
"""A tiny iSCSI initiator that talks to a `Connection` without a network, and a stand-in for the portal."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from lun_backends.block_device import BlockDevice
from target.iscsi import keys, login, pdu
from target.iscsi.command import Command
from target.iscsi.connection import Connection
from target.iscsi.errors import LoginStatus
from target.iscsi.failed_logins import FailedLogins
from target.iscsi.limits import Limits
from target.iscsi.memory import Memory
from target.iscsi.output import ArenaPool, Output
from target.iscsi.pdu import NO_TAG, Opcode
from target.scsi.commands import table
from target.scsi.logical_unit import LogicalUnit, UnitKind
from target.scsi.nexus import Nexus
from target.scsi.scsi_target import ScsiTarget

TARGET = "iqn.2026-11.io.wolun:test"
INITIATOR = "iqn.2026-11.io.wolun:initiator"
MIB = 1 << 20
PATTERN = random.Random(7).randbytes(MIB)
DIGESTS = (("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C"))
UNSOLICITED = ("InitialR2T", "No")


def make_target(*devices: BlockDevice, name: str = TARGET) -> ScsiTarget:
    target = ScsiTarget(name)
    for number, device in enumerate(devices):
        target.add_lun(
            number,
            LogicalUnit(
                device, uuid=UUID(int=number + 1), kind=UnitKind.PRIMARY, name=f"vol{number}", commands=table.for_unit
            ),
        )
    return target


class NeverLate(FailedLogins):
    """A FailedLogins that delays no answer, however many logins fail."""

    def failed(self, address: str, initiator: str, status: LoginStatus, why: str, now: float) -> float:
        super().failed(address, initiator, status, why, now)
        return 0.0


@dataclass
class FakePortal:
    """A `connection.Host` for connections without sockets."""

    targets: Mapping[str, ScsiTarget]
    policy: login.AccessPolicy = field(default_factory=login.OpenAccess)
    failed_logins: FailedLogins = field(default_factory=NeverLate)
    parameters: keys.Parameters = keys.OURS
    limits: Limits = field(default_factory=Limits)
    memory: Memory = field(default_factory=Memory)
    connections: list[Connection] = field(default_factory=list)

    def reinstate(self, connection: Connection) -> list[Command]:
        return []

    def open_session(self, connection: Connection) -> tuple[int, Nexus | None]:
        self.connections.append(connection)
        name = connection.login.target
        return len(self.connections), None if name is None else self.targets[name].open_nexus(
            connection.login.initiator
        )

    def portals(self, reached: str) -> Iterable[str]:
        return [reached]

    def neighbours(self, connection: Connection) -> Iterable[Connection]:
        return self.connections

    def logged_out(self, connection: Connection) -> None:
        if connection.nexus is not None and connection.login.target is not None:
            self.targets[connection.login.target].close_nexus(connection.nexus)

    def has_output(self, connection: Connection) -> None:
        pass


@dataclass(frozen=True)
class Reply:
    """One PDU from the target."""

    opcode: int
    flags: int
    response: int
    status: int
    lun: int
    itt: int
    word20: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    words: tuple[int, int, int]
    data: bytes


def parse_replies(stream: bytes, digests: pdu.Digests) -> list[Reply]:
    """Return all PDUs in `stream`, which must end with one."""
    view, start, replies = memoryview(stream), 0, []
    while start < len(view):
        one = pdu.find(view, start, len(view), digests, pdu.MAX_DATA_SEGMENT_LENGTH)
        assert one is not None, "half a PDU"
        assert one.data_digest_ok
        opcode, flags, response, status, _, lun, itt, word20, stat, exp, most, *words = pdu.RESPONSE.unpack(one.bhs)
        w0, w1, w2 = words
        replies.append(
            Reply(opcode, flags, response, status, lun, itt, word20, stat, exp, most, (w0, w1, w2), bytes(one.data))
        )
        start = one.end
    return replies


class Initiator:
    """An initiator that builds requests with the right numbers, feeds them to a connection, and returns the answers."""

    def __init__(self, host: FakePortal, *, name: str = INITIATOR) -> None:
        self.host = host
        self.name = name
        self.connection = Connection(host, Output(ArenaPool()), "192.0.2.1", "192.0.2.2:3260", 0.0)
        self.now = 0.0
        self.cmd_sn = 100
        self.digests = pdu.NO_DIGESTS
        self.tags = itertools.count(1)
        self._unhandled = b""

    def feed(self, stream: bytes) -> list[Reply]:
        """Give the connection bytes, and return its answers."""
        self._unhandled += stream
        while True:
            direct = self.connection.tasks.direct
            if len(direct):
                part = self._unhandled[: len(direct)]
                direct[: len(part)] = part
                self._unhandled = self._unhandled[len(part) :]
                self.connection.received_direct(len(part), self.now)
            buffer = memoryview(bytearray(self._unhandled))
            handled = self.connection.receive(buffer, len(buffer), self.now)
            self._unhandled = self._unhandled[handled:]
            if not (len(self.connection.tasks.direct) and self._unhandled):
                break
        return self.take()

    def take(self) -> list[Reply]:
        """Take the output of the connection, as the peer would, and return its PDUs."""
        output = self.connection.output
        stream = b"".join(output.gather(1 << 20))
        output.sent(len(stream))
        assert not len(output)
        return parse_replies(stream, self.digests)

    def request(
        self,
        opcode: int,
        flags: int = pdu.FINAL,
        *,
        lun: int = 0,
        itt: int = NO_TAG,
        word20: int = NO_TAG,
        cmd_sn: int | None = None,
        data: bytes = b"",
        immediate: bool = False,
        tail: bytes = bytes(16),
        ahs: bytes = b"",
    ) -> bytes:
        if cmd_sn is None:
            cmd_sn = self.cmd_sn
            if not immediate:
                self.cmd_sn = cmd_sn + 1 & 0xFFFFFFFF
        bhs = pdu.REQUEST.pack(opcode | (0x40 if immediate else 0), flags, 0, 0, 0, lun, itt, word20, cmd_sn, 0)
        return pdu.encode(bhs[:32] + tail, data, self.digests, ahs)

    def login_request(self, flags: int, pairs: Iterable[tuple[str, str]], *, isid: int = 1, tsih: int = 0) -> bytes:
        lun = isid << 16 | tsih
        return self.request(
            Opcode.LOGIN_REQUEST, flags, lun=lun, itt=0, word20=0, immediate=True, data=keys.serialise(pairs)
        )

    def log_in(self, *offers: tuple[str, str], discovery: bool = False) -> dict[str, str]:
        """Log in in one step, and return the keys of the answer."""
        names = [("InitiatorName", self.name)]
        names += [("SessionType", "Discovery")] if discovery else [("TargetName", TARGET)]
        (reply,) = self.feed(self.login_request(0x87, [*names, *offers]))
        assert reply.opcode == Opcode.LOGIN_RESPONSE
        assert reply.words[0] == 0, f"login refused: {reply.words[0]:#010x}"
        answers = dict(keys.parse(reply.data))
        self.digests = pdu.Digests(answers.get("HeaderDigest") == "CRC32C", answers.get("DataDigest") == "CRC32C")
        return answers

    def command(
        self, cdb: bytes, *, read: int = 0, write: int = 0, data: bytes = b"", final: bool = True, itt: int | None = None,
        lun: int = 0, immediate: bool = False, cmd_sn: int | None = None, ahs: bytes = b"",
    ) -> bytes:  # fmt: skip
        """Return a SCSI Command PDU; `read` or `write` is its expected data transfer length."""
        flags = (pdu.FINAL if final else 0) | (0x40 if read else 0) | (0x20 if write else 0)
        return self.request(
            Opcode.SCSI_COMMAND, flags, lun=lun << 48, itt=next(self.tags) if itt is None else itt, word20=read or write,
            data=data, tail=cdb.ljust(16, b"\0"), immediate=immediate, cmd_sn=cmd_sn, ahs=ahs,
        )  # fmt: skip

    def data_out(self, itt: int, ttt: int, data_sn: int, offset: int, data: bytes, *, final: bool) -> bytes:
        bhs = pdu.DATA_OUT.pack(
            Opcode.DATA_OUT, pdu.FINAL if final else 0, 0, 0, 0, itt, ttt, 0, 0, 0, data_sn, offset
        )  # fmt: skip
        return pdu.encode(bhs, data, self.digests)

    @property
    def nexus(self) -> Nexus:
        """The nexus of the session, which is not a discovery session."""
        assert self.connection.nexus is not None
        return self.connection.nexus

    def run_blocked(self) -> list[Reply]:
        """Do the workers' work, and return the answers that follow."""
        blocked, self.connection.tasks.blocked = self.connection.tasks.blocked, []
        for command in blocked:
            if not command.task.aborted:
                self.nexus.execute(command.task, nowait=False)
            self.connection.tasks.complete(command)
        return self.take()

    def clear_attention(self) -> None:
        """Take the unit attentions that a new nexus may have."""
        for _ in range(8):
            (reply,) = self.feed(self.command(b"\0" * 6))
            if reply.status == 0:
                return


Connect = Callable[..., Initiator]
"""Log in with these offers."""


def read10(lba: int, blocks: int) -> bytes:
    return b"\x28\0" + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"


def write10(lba: int, blocks: int) -> bytes:
    return b"\x2a\0" + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"
