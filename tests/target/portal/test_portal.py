# SPDX-License-Identifier: Apache-2.0
"""The portal's sockets: many sessions at once, rude peers, workers, and shutdown."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from target.iscsi import login, pdu
from target.iscsi.connection import State
from target.iscsi.errors import LoginStatus
from target.iscsi.limits import Limits
from target.iscsi.memory import DEFAULT_BYTES, SHORT_SECONDS
from target.iscsi.pdu import NO_TAG, AsyncEvent, Opcode
from target.portal.portal import Portal
from target.portal.room import DISCOVERY_SESSIONS, LOGIN_CONNECTIONS
from target.scsi.scsi_target import ScsiTarget
from target.scsi.task import Status
from tests.memory_device import MemoryDevice
from tests.target.iscsi.initiator import (
    INITIATOR,
    MIB,
    TARGET,
    FakePortal,
    Initiator,
    Reply,
    make_target,
    parse_replies,
    read10,
    write10,
)

PATTERN = random.Random(7).randbytes(MIB)


class Client:
    """A blocking initiator on a real socket; `Initiator` builds its requests."""

    def __init__(
        self,
        portal: Portal,
        *,
        name: str = INITIATOR,
        isid: int = 1,
        log_in: bool = True,
        source: str | None = None,
    ) -> None:
        here = None if source is None else (source, 0)
        self.sock = socket.create_connection(portal.address, timeout=20, source_address=here)
        self.make = Initiator(FakePortal({}), name=name)
        self._stream = b""
        if log_in:
            pairs = [("InitiatorName", name), ("TargetName", TARGET), ("MaxRecvDataSegmentLength", "262144")]
            self.send(self.make.login_request(0x87, pairs, isid=isid))
            assert self.reply().words[0] == 0

    def send(self, stream: bytes) -> None:
        self.sock.sendall(stream)

    def reply(self) -> Reply:
        """Return the next PDU.  Raises EOFError when the portal hangs up."""
        while True:
            view = memoryview(self._stream)
            parsed = pdu.find(view, 0, len(view), pdu.NO_DIGESTS, pdu.MAX_DATA_SEGMENT_LENGTH)
            if parsed is not None:
                (one,) = parse_replies(self._stream[: parsed.end], pdu.NO_DIGESTS)
                self._stream = self._stream[parsed.end :]
                return one
            more = self.sock.recv(1 << 20)
            if not more:
                raise EOFError
            self._stream += more

    def ask(self, request: bytes) -> Reply:
        self.send(request)
        return self.reply()

    def settle(self) -> None:
        while self.ask(self.make.command(b"\0" * 6)).status:
            pass

    def hung_up(self) -> bool:
        try:
            while True:
                self.reply()
        except (EOFError, ConnectionResetError):
            return True


@pytest.fixture
def device() -> MemoryDevice:
    device = MemoryDevice(4 * MIB)
    device.fill(PATTERN)
    return device


@pytest.fixture
def scsi(device: MemoryDevice) -> ScsiTarget:
    return make_target(device)


Serve = Callable[..., Portal]


@pytest.fixture
def serve(scsi: ScsiTarget) -> Iterator[Serve]:
    with contextlib.ExitStack() as stack:

        def serve(
            limits: Limits | None = None,
            sessions: int = 64,
            memory: int = DEFAULT_BYTES,
            policy: login.AccessPolicy | None = None,
        ) -> Portal:
            portal = Portal(
                "127.0.0.1", 0, {TARGET: scsi}, limits=limits, sessions=sessions, memory=memory, policy=policy
            )
            stack.callback(portal.close, 0)
            portal.start()
            return portal

        yield serve


def waits_for(event: threading.Event) -> Callable[[str, int, int], None]:
    """Return a device's `before` that blocks every call until the event."""

    def before(method: str, offset: int, length: int) -> None:
        event.wait(20)

    return before


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def outstanding(portal: Portal, count: int) -> bool:
    """Return whether a session has that many commands outstanding."""
    return any(session.outstanding == count for session in portal.sessions())


def test_a_new_session_gets_a_unit_attention(serve: Serve) -> None:
    """RESERVE ends with the session, so an initiator that logs in again must learn that it no longer holds the unit."""
    portal = serve()
    first = Client(portal)
    first.settle()
    assert first.ask(first.make.command(b"\x16" + bytes(5))).status == 0
    again = Client(portal)  # the same initiator port: its old session is replaced
    reply = again.ask(again.make.command(write10(0, 1), write=512, data=bytes(512)))
    assert (reply.status, reply.data[4] & 0x0F, reply.data[14:16]) == (2, 6, b"\x29\0")
    assert again.ask(again.make.command(read10(0, 1), read=512)).data == PATTERN[:512]
    assert first.hung_up()


def test_several_sessions_are_served_and_counted(serve: Serve) -> None:
    portal = serve()
    clients = [Client(portal, isid=number) for number in range(1, 9)]
    for client in clients:
        client.settle()
        client.send(b"".join(client.make.command(read10(n, 8), read=4096, itt=n) for n in range(64)))
    for client in clients:
        for n in range(64):
            assert client.reply().data == PATTERN[n * 512 : n * 512 + 4096]
    sessions = portal.sessions()
    assert len({session.tsih for session in sessions}) == len(sessions) == 8
    assert {session.bytes_read for session in sessions} == {64 * 4096}
    assert sessions[0].initiator == INITIATOR
    assert sessions[0].address == "127.0.0.1"
    assert (sessions[0].commands or 0) >= 64
    clients[0].sock.close()
    wait_for(lambda: len(portal.sessions()) == 7)


@pytest.mark.parametrize("blocking", [False, True])
def test_batches_of_reads_and_writes_are_done(serve: Serve, device: MemoryDevice, blocking: bool) -> None:
    client = Client(serve())
    client.settle()
    device.blocking = blocking
    blocks = list(range(1024))
    random.Random(1).shuffle(blocks)
    for start in range(0, 1024, 64):
        batch = blocks[start : start + 64]
        client.send(b"".join(client.make.command(write10(b, 1), write=512, data=PATTERN[-512 * (b + 1) :][:512], itt=b) for b in batch))  # fmt: skip
        assert sorted(client.reply().itt for _ in batch) == sorted(batch)
        client.send(b"".join(client.make.command(read10(b, 1), read=512, itt=b) for b in batch))
        answers = {reply.itt: reply.data for reply in (client.reply() for _ in batch)}
        assert answers == {b: PATTERN[-512 * (b + 1) :][:512] for b in batch}
    if blocking:
        assert max(map(len, device.prepared)) > 1, "writes of a batch are prepared together"


def test_large_transfers_are_done(serve: Serve, device: MemoryDevice) -> None:
    client = Client(serve())
    client.settle()
    source = random.Random(2).randbytes(MIB)
    r2t = client.ask(client.make.command(write10(0, 2048), write=MIB, itt=1))
    offset = 0
    while r2t.opcode == Opcode.R2T:
        _, offset, length = r2t.words
        pieces = range(offset, offset + length, 131072)
        client.send(b"".join(client.make.data_out(1, r2t.word20, n, at, source[at : at + 131072], final=at == pieces[-1]) for n, at in enumerate(pieces)))  # fmt: skip
        r2t = client.reply()
    assert r2t.status == 0
    assert device.data[:MIB] == source
    client.send(client.make.command(read10(0, 2048), read=MIB))
    answers = [client.reply() for _ in range(4)]
    assert b"".join(reply.data for reply in answers) == source


def test_a_slow_device_delays_no_other_session(serve: Serve, device: MemoryDevice) -> None:
    portal = serve()
    slow, quick = Client(portal, isid=1), Client(portal, isid=2)
    for client in (slow, quick):
        client.settle()
    release = threading.Event()

    def before(method: str, offset: int, length: int) -> None:
        if offset >= MIB:
            release.wait(20)

    device.blocking = True
    device.before = before
    for n in range(20):  # each a job of its own, more than there are workers
        slow.send(slow.make.command(read10(2048 + n, 1), read=512))
        wait_for(partial(outstanding, portal, n + 1))
    for n in range(50):
        assert quick.ask(quick.make.command(read10(n, 1), read=512)).data == PATTERN[n * 512 :][:512]
    release.set()
    assert {slow.reply().status for _ in range(20)} == {0}


def test_silent_and_babbling_peers_are_dropped(serve: Serve) -> None:
    portal = serve(Limits(login_seconds=0.5))
    silent = Client(portal, log_in=False)
    mad = [Client(portal, log_in=False) for _ in range(10)]
    for number, client in enumerate(mad):
        with contextlib.suppress(ConnectionError):
            client.send(random.Random(number).randbytes(100_000))
    http = Client(portal, log_in=False)
    http.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    good = Client(portal)
    good.settle()
    for client in (silent, http, *mad):
        assert client.hung_up()
    assert good.ask(good.make.command(read10(0, 1), read=512)).data == PATTERN[:512]


def test_requests_may_come_one_byte_at_a_time(serve: Serve) -> None:
    client = Client(serve())
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.settle()
    for byte in client.make.command(write10(0, 1), write=512, data=b"1" * 512) + client.make.command(
        read10(0, 1), read=512
    ):
        client.send(bytes([byte]))
    assert client.reply().status == 0
    assert client.reply().data == b"1" * 512


def test_a_peer_that_takes_no_answers_costs_bounded_memory(serve: Serve) -> None:
    portal = serve(Limits(output_bytes=MIB))
    greedy, other = Client(portal, isid=1), Client(portal, isid=2)
    for client in (greedy, other):
        client.settle()
    greedy.sock.settimeout(1)
    batch = b"".join(greedy.make.command(read10(0, 512), read=262144, itt=n) for n in range(30_000))
    with contextlib.suppress(TimeoutError):  # the portal stops reading from it
        greedy.send(batch)
    for _ in range(20):
        assert other.ask(other.make.command(read10(0, 1), read=512)).data == PATTERN[:512]
    channel = next(c for c in portal._channels.values() if len(c.output))
    assert len(channel.output) < 3 * MIB
    greedy.sock.settimeout(20)
    for _ in range(100):  # once it reads again, it is served
        assert greedy.reply().data == PATTERN[:262144]


def login_status(portal: Portal, *, isid: int = 1, name: str = INITIATOR, **names: str) -> int:
    """Return the status of a login, class and detail as one number."""
    client = Client(portal, name=name, log_in=False)
    pairs = [("InitiatorName", name), *(names or {"TargetName": TARGET}).items()]
    answer = client.ask(client.make.login_request(0x87, pairs, isid=isid))
    client.sock.close()
    return answer.words[0] >> 16


def test_sessions_beyond_the_limit_are_refused_with_a_status(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    portal = serve(sessions=3)
    clients = [Client(portal, isid=number) for number in range(1, 4)]
    assert login_status(portal, isid=4) == LoginStatus.OUT_OF_RESOURCES
    assert "all 3 sessions are in use" in caplog.text
    load = portal.load()
    assert (load.sessions, load.most_sessions, load.refused_sessions) == (3, 3, 1)
    assert load.refused_ago is not None
    again = Client(portal, isid=1)  # the same port: its old session makes room
    again.settle()
    assert clients[0].hung_up()
    assert login_status(portal, SessionType="Discovery") == 0, "discovery has a share of its own"
    again.sock.close()
    wait_for(lambda: len(portal.sessions()) == 2)
    Client(portal, isid=9).settle()


def test_one_peer_cannot_have_all_sessions(serve: Serve) -> None:
    portal = serve(sessions=8)
    clients = [Client(portal, isid=number) for number in range(1, 8)]
    assert login_status(portal, isid=9) == LoginStatus.OUT_OF_RESOURCES
    other = Client(portal, isid=9, source="127.0.0.2")
    other.settle()
    for client in clients:
        client.settle()


def test_a_login_is_let_in_while_silent_connections_fill_all_places(serve: Serve) -> None:
    portal = serve()
    for source in ("127.0.0.9", "127.0.0.1"):  # a foreign address, and the honest initiator's own
        silent = [Client(portal, log_in=False, source=source) for _ in range(2 * LOGIN_CONNECTIONS)]
        for isid in range(1, 6):
            Client(portal, isid=isid).settle()
        assert (
            sum(channel.connection.state is State.LOGIN for channel in portal._channels.values()) <= LOGIN_CONNECTIONS
        )
        for client in silent:
            client.sock.close()


def test_a_login_under_way_is_not_dropped_for_silent_ones_of_others(serve: Serve) -> None:
    portal = serve()
    honest = Client(portal, log_in=False)
    honest.ask(honest.make.login_request(0x04, [("InitiatorName", INITIATOR), ("TargetName", TARGET)], isid=1))
    silent = [Client(portal, log_in=False, source="127.0.0.9") for _ in range(3 * LOGIN_CONNECTIONS)]
    answer = honest.ask(honest.make.login_request(0x87, [], isid=1))
    assert (answer.opcode, answer.words[0]) == (Opcode.LOGIN_RESPONSE, 0)
    for client in silent:
        client.sock.close()


def test_an_address_from_which_nobody_may_log_in_is_refused_at_once(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    class Elsewhere(login.OpenAccess):
        def reaches(self, address: str) -> bool:
            return address != "127.0.0.9"

    portal = serve(policy=Elsewhere())
    assert Client(portal, log_in=False, source="127.0.0.9").hung_up()
    wait_for(lambda: "127.0.0.9 : login refused: no initiator may log in from this address" in caplog.text)
    Client(portal).settle()


def test_discovery_sessions_have_a_share_and_the_oldest_gives_way(serve: Serve) -> None:
    portal = serve()

    def discover(isid: int) -> Client:
        client = Client(portal, log_in=False, source="127.0.0.66")
        pairs = [("InitiatorName", INITIATOR), ("SessionType", "Discovery")]
        assert client.ask(client.make.login_request(0x87, pairs, isid=isid)).words[0] == 0
        return client

    clients = [discover(isid) for isid in range(1, DISCOVERY_SESSIONS + 9)]
    assert len(portal.sessions()) == DISCOVERY_SESSIONS
    assert all(client.hung_up() for client in clients[:8])
    Client(portal).settle()
    newest = clients[-1]
    reply = newest.ask(newest.make.request(Opcode.TEXT_REQUEST, itt=7, data=b"SendTargets=All\0"))
    assert TARGET.encode() in reply.data


def test_one_port_has_one_session_however_its_name_is_spelled(serve: Serve) -> None:
    portal = serve()
    first = Client(portal)
    first.settle()
    second = Client(portal, name=INITIATOR.upper())
    second.settle()
    assert first.hung_up()
    assert [session.initiator for session in portal.sessions()] == [INITIATOR]


def test_initiator_that_has_the_answer_to_its_logout_uses_no_unit(serve: Serve, scsi: ScsiTarget) -> None:
    portal = serve()
    for isid in range(1, 31):
        client = Client(portal, isid=isid)
        client.settle()
        assert (
            client.ask(client.make.request(Opcode.LOGOUT_REQUEST, 0x80, itt=9, word20=0)).opcode
            == Opcode.LOGOUT_RESPONSE
        )
        assert not scsi.nexuses
        assert not portal.sessions()


def test_a_new_login_replaces_the_session(serve: Serve, device: MemoryDevice, scsi: ScsiTarget) -> None:
    portal = serve()
    old = Client(portal)
    old.settle()
    release = threading.Event()
    device.blocking = True
    device.before = waits_for(release)
    old.send(old.make.command(write10(0, 1), write=512, data=b"o" * 512))
    wait_for(lambda: any(session.outstanding for session in portal.sessions()))
    threading.Timer(0.2, release.set).start()
    new = Client(portal)
    assert release.is_set(), "no login before the old session's write is over"
    assert old.hung_up()
    new.settle()
    assert len(portal.sessions()) == 1
    wait_for(lambda: len(scsi.nexuses) == 1)


def test_task_management_waits_for_commands_of_other_sessions(serve: Serve, device: MemoryDevice) -> None:
    portal = serve()
    one, two = Client(portal, isid=1), Client(portal, isid=2)
    for client in (one, two):
        client.settle()
    release = threading.Event()
    device.blocking = True
    device.before = waits_for(release)
    two.send(two.make.command(read10(0, 1), read=512, itt=1))
    wait_for(lambda: any(session.outstanding for session in portal.sessions()))
    one.send(one.make.request(Opcode.TASK_MANAGEMENT_REQUEST, 0x85, itt=500, word20=NO_TAG, immediate=True))
    one.sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        one.reply()
    one.sock.settimeout(20)
    release.set()
    assert one.reply().opcode == Opcode.TASK_MANAGEMENT_RESPONSE
    ended = two.reply()
    assert (ended.opcode, ended.itt, ended.status) == (Opcode.SCSI_RESPONSE, 1, Status.TASK_ABORTED)
    assert two.ask(two.make.request(Opcode.NOP_OUT, itt=3)).opcode == Opcode.NOP_IN


def test_a_session_gets_events_and_can_be_ended(serve: Serve) -> None:
    portal = serve()
    client = Client(portal)
    (session,) = portal.sessions()
    portal.async_event(session.tsih, AsyncEvent.NEGOTIATION_REQUESTED, parameters=(1, 2, 3))
    reply = client.reply()
    assert (reply.opcode, reply.words) == (Opcode.ASYNC_MESSAGE, (4 << 24 | 1, 2 << 16 | 3, 0))
    portal.end_session(session.tsih)
    assert client.hung_up()


def test_closing_lets_initiators_log_out(scsi: ScsiTarget) -> None:
    portal = Portal("127.0.0.1", 0, {TARGET: scsi})
    portal.start()
    client = Client(portal)
    closer = threading.Thread(target=portal.close, args=(20,))
    closer.start()
    reply = client.reply()
    assert (reply.opcode, reply.words[0] >> 24) == (Opcode.ASYNC_MESSAGE, AsyncEvent.LOGOUT_REQUESTED)
    answer = client.ask(client.make.request(Opcode.LOGOUT_REQUEST, 0x80, itt=2, word20=0))
    assert answer.opcode == Opcode.LOGOUT_RESPONSE
    assert client.hung_up()
    closer.join(10)
    assert not closer.is_alive()
    assert not scsi.nexuses
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(portal.address)


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_closing_ends_the_remaining_sessions_and_frees_everything(scsi: ScsiTarget) -> None:
    before = descriptors()
    threads = threading.active_count()
    portal = Portal("127.0.0.1", 0, {TARGET: scsi})
    portal.start()
    client = Client(portal)
    portal.close(0.1)
    portal.close()
    assert client.hung_up()
    client.sock.close()
    never_started = Portal("127.0.0.1", 0, {TARGET: scsi})
    never_started.close()
    assert descriptors() == before
    assert threading.active_count() == threads


def test_a_busy_address_is_reported_at_once(serve: Serve, scsi: ScsiTarget) -> None:
    with pytest.raises(OSError, match="in use"):
        Portal(*serve().address, {TARGET: scsi})


def asks_for_room(client: Client, itt: int) -> None:
    """Send a write of 3 MiB whose data must be asked for."""
    client.send(client.make.command(write10(0, 6144), write=3 * MIB, itt=itt))


def test_a_session_that_waits_for_memory_gets_what_another_gives_back(serve: Serve) -> None:
    portal = serve(memory=8 * MIB)
    first, second = Client(portal, isid=1), Client(portal, isid=2)
    for client in (first, second):
        client.settle()
    asks_for_room(first, 1)
    assert first.reply().opcode == Opcode.R2T
    asks_for_room(second, 2)
    wait_for(lambda: bool(portal.memory.waiting))
    first.send(first.make.request(Opcode.TASK_MANAGEMENT_REQUEST, 0x81, itt=9, word20=1, immediate=True))
    assert (second.reply().opcode, bool(portal.memory.waiting)) == (Opcode.R2T, False)


def test_the_session_whose_data_is_late_longest_is_dropped_when_memory_stays_short(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    portal = serve(memory=8 * MIB)
    late, second = Client(portal, isid=1), Client(portal, isid=2)
    for client in (late, second):
        client.settle()
    asks_for_room(late, 1)
    assert late.reply().opcode == Opcode.R2T
    asks_for_room(second, 2)
    wait_for(lambda: bool(portal.memory.waiting))
    now = time.monotonic()
    for second_passed in range(SHORT_SECONDS + 2):
        portal._call(partial(portal._tick, now + second_passed))
    assert second.reply().opcode == Opcode.R2T
    assert late.hung_up()
    assert "others need the memory: session dropped" in caplog.text


def test_two_hosts_of_one_name_are_noticed() -> None:
    served = Portal("127.0.0.1", 0, {TARGET: make_target(MemoryDevice())})
    served.start()
    try:
        clients = [Client(served, source=address) for address in ("127.0.0.2", "127.0.0.3", "127.0.0.2")]
        assert served.name_clashes.current(time.monotonic()) == {INITIATOR: ("127.0.0.2", "127.0.0.3")}
        for client in clients:
            client.sock.close()
    finally:
        served.close(0)


def test_discovery_answers_with_the_announced_addresses() -> None:
    served = Portal(
        "127.0.0.1", 0, {TARGET: make_target(MemoryDevice())}, announce=("nat.example:3260", "[2001:db8::1]:1")
    )
    served.start()
    try:
        client = Client(served, log_in=False)
        pairs = [("InitiatorName", INITIATOR), ("SessionType", "Discovery")]
        assert client.ask(client.make.login_request(0x87, pairs)).words[0] == 0
        answer = client.ask(client.make.request(Opcode.TEXT_REQUEST, itt=7, data=b"SendTargets=All\0"))
        addresses = [pair for pair in answer.data.decode().split("\0") if pair.startswith("TargetAddress=")]
        assert addresses == ["TargetAddress=nat.example:3260,1", "TargetAddress=[2001:db8::1]:1,1"]
        client.sock.close()
    finally:
        served.close(0)
