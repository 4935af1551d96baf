# SPDX-License-Identifier: Apache-2.0
"""A disk that makes the loop wait: another thread is the loop from then on, and nothing else waits.

tests/faults/test_frozen_disk.py does it with a frozen file system.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lun_backends.copy_on_write import CopyOnWrite
from lun_backends.files import backing_file
from lun_backends.flat import Flat
from target.iscsi.pdu import Opcode
from target.portal.portal import Portal
from target.scsi.task import Status
from tests.lun_backends.memory_side import MemorySide
from tests.memory_device import MIB, MemoryDevice
from tests.target.iscsi.initiator import TARGET, make_target, read10, write10
from tests.target.portal.test_portal import Client, outstanding, wait_for

SLOW = b"SLOWSLOW" * 64
QUICK = b"quick..." * 64


class Disk:
    """A file on a disk that takes a write of SLOW only once `answer` is set, and then as `outcome` says."""

    def __init__(self, path: Path) -> None:
        backing_file.create(path, MIB)
        self.device = Flat(path)
        self.device._waits = True  # also where the temporary directory is in memory
        self.answer = threading.Event()
        self.outcome: int | OSError | None = None
        self.writers: list[str] = []
        self._pwritev = self.device._pwritev
        self.device._pwritev = self._write

    def _write(self, fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        self.writers.append(threading.current_thread().name)
        if buffers[0][:8] == SLOW[:8] and not self.answer.is_set():
            assert self.answer.wait(60)
            outcome, self.outcome = self.outcome, None
            if isinstance(outcome, OSError):
                raise outcome
            if outcome is not None:
                return outcome
        return self._pwritev(fd, buffers, offset, flags)

    def content(self, lba: int) -> bytes:
        return self.device.path.read_bytes()[lba * 512 : lba * 512 + 512]


class Lab:
    """A portal with slow disks as LUNs 0 and 1, a healthy one as LUN 2, and one with a snapshot as LUN 3."""

    def __init__(self, directory: Path) -> None:
        self.disks = [Disk(directory / name) for name in ("slow0", "slow1")]
        self.side = MemorySide(MIB)
        self.side.commits_in_memory = True
        self.cow = CopyOnWrite(MemoryDevice(MIB), 4096)
        self.cow.arm(self.side)
        devices = (*(disk.device for disk in self.disks), MemoryDevice(MIB), self.cow)
        self.portal = Portal("127.0.0.1", 0, {TARGET: make_target(*devices)})
        self.portal.start()

    def log_in(self, isid: int = 1) -> Client:
        client = Client(self.portal, isid=isid)
        for lun in range(4):
            while client.ask(client.make.command(bytes(6), lun=lun)).status:
                pass
        return client

    def close(self) -> None:
        for disk in self.disks:
            disk.answer.set()
        self.portal.close(0)
        for disk in self.disks:
            disk.device.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.close()


def write(client: Client, lun: int, lba: int, data: bytes) -> bytes:
    return client.make.command(write10(lba, 1), write=512, data=data, lun=lun)


def read(client: Client, lun: int, lba: int) -> bytes:
    return client.make.command(read10(lba, 1), read=512, lun=lun)


def wait_in_place(lab: Lab, client: Client, lun: int = 0, *behind: bytes) -> None:
    """Let the loop begin a write that waits, with these requests behind it, and wait until it is relieved."""
    disk = lab.disks[lun]
    before = len(lab.portal._relieved)
    client.send(write(client, lun, 8, SLOW) + b"".join(behind))
    wait_for(lambda: len(lab.portal._relieved) == before + 1)
    assert disk.writers[-1] == "iscsi-portal"


def test_write_in_place_that_waits_holds_up_no_other_unit_of_its_session(lab: Lab) -> None:
    """Neither what came before it nor what comes behind it, in the same bytes or later."""
    client = lab.log_in()
    requests = [write(client, 2, 0, QUICK)]
    slow = write(client, 0, 8, SLOW)
    requests += [slow, read(client, 2, 0), read(client, 0, 0), write(client, 2, 1, QUICK)]
    client.send(b"".join(requests))
    assert [client.reply().opcode for _ in range(4)] == [0x21, 0x25, 0x25, 0x21]
    assert client.ask(read(client, 2, 1)).data == QUICK
    assert outstanding(lab.portal, 1)
    lab.disks[0].answer.set()
    assert client.reply().status == 0
    assert lab.disks[0].content(8) == SLOW
    assert client.ask(read(client, 0, 8)).data == SLOW
    wait_for(lambda: not lab.portal._relieved)


def test_disk_that_waited_proves_itself_to_workers(lab: Lab) -> None:
    client = lab.log_in()
    wait_in_place(lab, client)
    client.send(write(client, 0, 0, QUICK))
    assert client.reply().status == 0  # a worker has written it, beside the one that waits
    lab.disks[0].answer.set()
    assert client.reply().status == 0
    lab.disks[0].writers.clear()
    while "iscsi-portal" not in lab.disks[0].writers:
        assert client.ask(write(client, 0, 0, QUICK)).status == 0
    quick = lab.disks[0].writers.index("iscsi-portal")
    assert quick >= 63
    assert all(name.startswith("iscsi-worker") for name in lab.disks[0].writers[:quick])


def test_several_disks_may_wait_at_once(lab: Lab) -> None:
    client, other = lab.log_in(), lab.log_in(2)
    wait_in_place(lab, client, 0)
    wait_in_place(lab, other, 1)
    for session in (client, other):
        assert session.ask(read(session, 2, 0)).status == 0
    for disk in lab.disks:
        disk.answer.set()
    assert [session.reply().status for session in (client, other)] == [0, 0]


@pytest.mark.parametrize(
    ("outcome", "status"), [(0, 0), (OSError(errno.EIO, "no"), 2)], ids=["written in part", "failed"]
)
def test_outcome_of_the_write_that_waited_is_its_own(lab: Lab, outcome: int | OSError, status: int) -> None:
    client = lab.log_in()
    wait_in_place(lab, client)
    lab.disks[0].outcome = outcome
    lab.disks[0].answer.set()
    assert client.reply().status == status
    assert lab.disks[0].content(8) == (bytes(512) if status else SLOW)


def test_login_of_the_same_port_waits_for_the_write(lab: Lab) -> None:
    client = lab.log_in()
    wait_in_place(lab, client)
    client.sock.close()
    again = Client(lab.portal, log_in=False)
    pairs = [("InitiatorName", again.make.name), ("TargetName", TARGET)]
    again.send(again.make.login_request(0x87, pairs, isid=1))
    again.sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        again.reply()
    again.sock.settimeout(20)
    lab.disks[0].answer.set()
    assert again.reply().words[0] == 0
    assert lab.disks[0].content(8) == SLOW
    wait_for(lambda: not lab.portal._lost)


def test_reset_by_another_session_waits_for_the_write(lab: Lab) -> None:
    client, other = lab.log_in(), lab.log_in(2)
    wait_in_place(lab, client)
    other.send(other.make.request(Opcode.TASK_MANAGEMENT_REQUEST, 0x85, itt=500, immediate=True))
    other.sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        other.reply()
    other.sock.settimeout(20)
    lab.disks[0].answer.set()
    assert other.reply().opcode == Opcode.TASK_MANAGEMENT_RESPONSE
    assert client.reply().status == Status.TASK_ABORTED  # that is the write
    assert client.ask(read(client, 2, 0)).status == 0


def test_copy_in_place_that_waits_holds_up_no_other_unit(lab: Lab) -> None:
    """The write goes to a worker, which waits for the copy."""
    reached, answer = threading.Event(), threading.Event()

    def on_commit() -> None:
        if not reached.is_set():
            reached.set()
            assert answer.wait(60)

    lab.side.on_commit = on_commit
    client = lab.log_in()
    client.send(write(client, 3, 0, QUICK) + read(client, 2, 0))
    assert client.reply().opcode == 0x25
    assert reached.is_set()
    assert client.ask(read(client, 2, 0)).status == 0
    answer.set()
    assert client.reply().status == 0
    assert client.ask(read(client, 3, 0)).data == QUICK
    assert lab.side.commits == [[0]]


def test_closing_waits_for_the_write(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    client = lab.log_in()
    wait_in_place(lab, client)
    closing = threading.Thread(target=lab.portal.close, args=(0,))
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    lab.disks[0].answer.set()
    closing.join(30)
    assert not closing.is_alive()
    assert lab.disks[0].content(8) == SLOW
    lab.close()


def test_session_may_be_ended_while_its_write_waits(lab: Lab) -> None:
    client = lab.log_in()
    wait_in_place(lab, client, 0)
    lab.portal.end_session(lab.portal.sessions()[0].tsih)
    assert client.hung_up()
    lab.disks[0].answer.set()
    wait_for(lambda: not lab.portal._lost)
    other = lab.log_in(2)
    assert other.ask(write(other, 1, 0, QUICK)).status == 0
    assert set(lab.disks[1].writers) == {"iscsi-portal"}


def test_many_hosts_that_wait_for_one_disk_leave_workers_to_other_units(lab: Lab) -> None:
    """Each session takes workers of its own."""
    lab.disks[0].device.distrust()
    hosts = [lab.log_in(isid) for isid in range(2, 12)]
    for host in hosts:
        host.send(b"".join(write(host, 0, 8 * lba, SLOW) for lba in range(4)))
    wait_for(lambda: len(lab.disks[0].writers) >= 5)
    other = lab.log_in(1)
    sync = other.make.command(bytes((0x35, *bytes(9))), lun=2)
    assert other.ask(sync).status == 0
    lab.disks[0].answer.set()
    for host in hosts:
        assert [host.reply().status for _ in range(4)] == [0] * 4
