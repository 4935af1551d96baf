# SPDX-License-Identifier: Apache-2.0
"""Commands over iSCSI with libiscsi, against wolun's portal."""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.initiator import libiscsi, unit
from target.scsi.logical_unit import UnitKind
from tests.daemon import Daemon
from tests.lun_backends.initiator.serving import NAME, Served
from tests.memory_device import MIB, MemoryDevice
from tests.target.portal.test_portal import wait_for


def write16(lba: int, blocks: int) -> bytes:
    return b"\x8a\0" + lba.to_bytes(8) + blocks.to_bytes(4) + b"\0\0"


def read16(lba: int, blocks: int) -> bytes:
    return b"\x88\0" + lba.to_bytes(8) + blocks.to_bytes(4) + b"\0\0"


def test_data_goes_both_ways_in_scatter_lists(served: Served) -> None:
    device = MemoryDevice(4 * MIB)
    served.add(0, device)
    lun = served.unit(0)
    data = random.Random(1).randbytes(3 * MIB)
    pieces = [memoryview(bytearray(data[:512])), memoryview(data[512:4096]), memoryview(bytearray(data[4096:]))]
    lun.execute(write16(8, len(data) // 512), pieces)
    assert device.data[4096 : 4096 + len(data)] == data
    assert lun.execute(read16(8, len(data) // 512), in_length=len(data)) == data
    into = [memoryview(bytearray(1024)), memoryview(bytearray(2048))]
    assert lun.execute_into(read16(8, 6), into) == 3072
    assert b"".join(into) == data[:3072]


def test_a_short_answer_has_its_own_length(served: Served) -> None:
    served.add(0, MemoryDevice())
    lun = served.unit(0)
    answer = lun.execute(b"\x12\x01\x00\x00\xff\x00", in_length=255)
    assert len(answer) == 4 + int.from_bytes(answer[2:4])


def test_luns_above_255_are_addressed(served: Served) -> None:
    device = MemoryDevice()
    served.add(0, MemoryDevice())
    served.add(300, device)
    served.unit(300).execute(write16(1, 1), b"\x5a" * 512)
    assert device.data[512:1024] == b"\x5a" * 512


def test_sense_data_is_exact(served: Served) -> None:
    side = MemoryDevice(write_once=True)
    side.fill(b"\x11" * 512, 7 * 512)
    served.add(0, MemoryDevice())
    served.add(1, side, UnitKind.WRITE_ONCE)
    lun = served.unit(1)
    with pytest.raises(unit.CheckCondition) as refused:
        lun.execute(write16(4, 8), bytes(8 * 512))
    assert refused.value.sense == unit.Sense(unit.BLANK_CHECK, 0, 7)
    with pytest.raises(unit.CheckCondition) as blank:
        lun.execute(read16(7, 2), in_length=1024)
    assert blank.value.sense == unit.Sense(unit.BLANK_CHECK, 0, 8)


def test_unit_attentions_are_noted_and_the_command_runs(served: Served) -> None:
    served.add(0, MemoryDevice())
    lun = served.unit(0)
    lun.execute(bytes(6))
    lun.take_attentions()
    served.add(1, MemoryDevice())
    lun.execute(write16(0, 1), bytes(512))
    assert lun.take_attentions() == [unit.REPORTED_LUNS_DATA_HAS_CHANGED]
    assert lun.take_attentions() == []


def test_a_lun_that_is_not_there(served: Served) -> None:
    served.add(0, MemoryDevice())
    with pytest.raises(unit.CheckCondition) as missing:
        served.unit(5).execute(bytes(6))
    assert missing.value.sense.asc == unit.LOGICAL_UNIT_NOT_SUPPORTED


def test_many_threads_share_one_session(served: Served) -> None:
    device = MemoryDevice(4 * MIB, blocking=True)
    served.add(0, device)
    served.add(1, MemoryDevice())
    initiator = served.initiator()
    luns = [initiator.unit(served.address(0)) for _ in range(8)]
    wrong: list[object] = []

    def work(index: int) -> None:
        dice, lun = random.Random(index), luns[index]
        try:
            for _ in range(60):
                blocks = dice.choice((1, 8, 128))
                data = dice.randbytes(512 * blocks)
                lba = index * 1024 + dice.randrange(1024 - blocks)
                lun.execute(write16(lba, blocks), data)
                if lun.execute(read16(lba, blocks), in_length=len(data)) != data:
                    wrong.append(index)
        except Exception as error:  # noqa: BLE001 - the test's own thread reports it
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert len(served.portal.sessions()) == 1
    for lun in luns:
        lun.close()
    assert not served.portal.sessions()


def test_slow_command_does_not_hold_up_others(served: Served) -> None:
    slow, answer = MemoryDevice(), threading.Event()
    slow.before = lambda *_: threading.current_thread().name != "iscsi-portal" and answer.wait(20)
    served.add(0, slow)
    served.add(1, MemoryDevice())
    initiator = served.initiator()
    first, second = initiator.unit(served.address(0)), initiator.unit(served.address(1))
    second.execute(bytes(6))
    thread = threading.Thread(target=first.execute, args=(write16(0, 1), bytes(512)))
    thread.start()
    for _ in range(20):
        second.execute(write16(0, 1), bytes(512))
    assert thread.is_alive()
    answer.set()
    thread.join(20)
    assert not thread.is_alive()


def test_lost_link_fails_what_is_in_flight_and_the_next_command_logs_in(served: Served) -> None:
    slow, reached, answer = MemoryDevice(), threading.Event(), threading.Event()

    def wait(method: str, *_: int) -> bool:
        if threading.current_thread().name == "iscsi-portal":
            return False
        reached.set()
        return answer.wait(20)

    served.add(0, slow)
    lun = served.unit(0)
    lun.execute(bytes(6))
    (before,) = served.target.nexuses
    slow.before = wait
    problems: list[Exception] = []

    def write() -> None:
        try:
            lun.execute(write16(0, 1), bytes(512))
        except block_device.NoAnswer as problem:
            problems.append(problem)

    thread = threading.Thread(target=write)
    thread.start()
    assert reached.wait(20)
    slow.before = None
    threading.Timer(0.2, answer.set).start()
    served.restart()
    thread.join(20)
    assert len(problems) == 1
    lun.execute(write16(0, 1), b"\x22" * 512)
    (after,) = served.target.nexuses
    assert after.tag == before.tag  # the same ISID: the same nexus
    assert slow.data[:512] == b"\x22" * 512


def test_link_lost_while_idle_is_not_noticed_by_the_caller(served: Served) -> None:
    device = MemoryDevice()
    served.add(0, device)
    lun = served.unit(0)
    lun.execute(bytes(6))
    served.restart()
    lun.execute(write16(0, 1), b"\x33" * 512)
    assert device.data[:512] == b"\x33" * 512


def test_command_that_takes_too_long_has_no_answer(served: Served) -> None:
    slow, answer = MemoryDevice(), threading.Event()
    served.add(0, slow)
    lun = served.unit(0)
    lun.execute(bytes(6))
    slow.before = lambda *_: threading.current_thread().name != "iscsi-portal" and answer.wait(20)
    with pytest.raises(block_device.NoAnswer, match="timed out"):
        lun.execute(write16(0, 1), bytes(512), timeout=0.2)
    threading.Timer(0.2, answer.set).start()
    # The new login waits until the old session's command has ended.
    assert lun.execute(read16(0, 1), in_length=512) == bytes(512)
    assert answer.is_set()


def test_other_portal_of_the_target_is_the_same_nexus(served: Served) -> None:
    device = MemoryDevice()
    served.add(0, device)
    host, port = served.portal.listen("127.0.0.1", 0)
    other = f"{host}:{port}"
    lun = served.initiator().unit(f"iscsi://127.0.0.1:1,{served.place},{other}/{served.name}/0")
    lun.execute(bytes(6))
    (before,) = served.target.nexuses
    served.portal.unlisten(served.place)
    for session in served.portal.sessions():
        served.portal.end_session(session.tsih)
    wait_for(lambda: not served.portal.sessions())
    lun.execute(write16(0, 1), b"\x66" * 512)
    assert device.data[:512] == b"\x66" * 512
    (after,) = served.target.nexuses
    assert (after.initiator, after.tag) == (before.initiator, before.tag)
    assert [session.portal for session in served.portal.sessions()] == [other]


def test_nobody_at_the_address() -> None:
    with pytest.raises(block_device.NoAnswer, match="cannot be reached"):
        libiscsi.Initiator(NAME).unit("iscsi://127.0.0.1:1/iqn.2026-11.io.wolun:nobody/0").execute(bytes(6))


def test_target_that_is_not_there(served: Served) -> None:
    host, port = served.portal.address
    lun = served.initiator().unit(f"iscsi://{host}:{port}/iqn.2026-11.io.wolun:other/0")
    with pytest.raises(block_device.NoAnswer, match="Target not found"):
        lun.execute(bytes(6))


def test_reset_ends_the_commands_of_others(served: Served) -> None:
    slow, reached, answer = MemoryDevice(), threading.Event(), threading.Event()

    def wait(method: str, *_: int) -> bool:
        if threading.current_thread().name == "iscsi-portal":
            return False
        reached.set()
        return answer.wait(20)

    served.add(0, slow)
    victim, fencer = served.unit(0, port=1), served.unit(0, port=2)
    victim.execute(bytes(6))
    fencer.execute(bytes(6))
    slow.before = wait
    refused = threading.Event()

    def write() -> None:
        with pytest.raises(block_device.NoAnswer):
            victim.execute(write16(0, 1), bytes(512), timeout=2)
        refused.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert reached.wait(20)
    ended = threading.Event()

    def reset() -> None:
        fencer.reset_logical_unit()
        ended.set()

    resetting = threading.Thread(target=reset)
    resetting.start()
    assert not ended.wait(0.3)
    answer.set()
    resetting.join(20)
    assert ended.is_set()
    thread.join(20)
    assert refused.is_set()


def test_own_command_that_a_reset_ends_gets_no_answer_and_does_not_wait_for_one(served: Served) -> None:
    slow, reached, answer = MemoryDevice(), threading.Event(), threading.Event()

    def wait(*_: object) -> bool:
        if threading.current_thread().name == "iscsi-portal":
            return False
        reached.set()
        return answer.wait(20)

    served.add(0, slow)
    lun = served.unit(0)
    lun.execute(bytes(6))
    slow.before = wait
    ended = threading.Event()

    def write() -> None:
        with pytest.raises(block_device.NoAnswer, match="LOGICAL UNIT RESET"):
            lun.execute(write16(0, 1), bytes(512))
        ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert reached.wait(20)
    threading.Timer(0.2, answer.set).start()
    lun.reset_logical_unit()
    assert ended.wait(10)  # its own time limit is 30 s
    thread.join(10)
    slow.before = None
    lun.execute(write16(0, 1), bytes(512))


def test_target_that_answers_no_ping_is_lost_while_a_command_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libiscsi, "_KEEPER_PERIOD", 0.1)
    monkeypatch.setattr(libiscsi, "_PING_TIMEOUT", 1.0)
    with Daemon(tmp_path, "  - {name: vol, lun: 0, size: 1MiB}\n") as daemon:
        initiator = libiscsi.Initiator(NAME)
        lun = initiator.unit(daemon.url(0))
        lun.execute(bytes(6))
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(block_device.NoAnswer, match="ping timed out"):
                while True:  # the signal may take its time
                    lun.execute(bytes(6))
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        lun.execute(bytes(6))
        initiator.close()


@pytest.mark.parametrize(
    "text",
    [
        "iscsi://host/iqn.x",
        "iscsi:///iqn.x/0",
        "/dev/sda",
        "iscsi://host:99999/iqn.x/0",
        "iscsi://host/iqn.x/16384",
        "iscsi://::1/iqn.x/0",
        "iscsi://a,/iqn.x/0",
    ],
)
def test_wrong_addresses_are_refused(text: str) -> None:
    with pytest.raises(libiscsi.AddressWrong, match="write iscsi://HOST"):
        libiscsi.Address.parse(text)


@pytest.mark.parametrize(
    ("text", "portal"),
    [
        ("iscsi://host/iqn.x:y/3", "host:3260"),
        ("iscsi://10.0.0.1:860/iqn.x:y/3", "10.0.0.1:860"),
        ("iscsi://[::1]:1/iqn.x:y/3", "[::1]:1"),
        ("iscsi://a,[::1],b:7/iqn.x:y/3", "a:3260,[::1]:3260,b:7"),
    ],
)
def test_addresses(text: str, portal: str) -> None:
    assert libiscsi.Address.parse(text) == libiscsi.Address(portal, "iqn.x:y", 3)


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libiscsi, "_loaded", [])
    monkeypatch.setattr(libiscsi, "LIBRARY", "libiscsi.so.none")
    assert not libiscsi.is_installed()
    with pytest.raises(unit.CannotSend, match="apt-get install libiscsi7"):
        libiscsi.Initiator(NAME)


def test_closed_units_are_refused(served: Served) -> None:
    served.add(0, MemoryDevice())
    lun = served.unit(0)
    lun.execute(bytes(6))
    lun.close()
    lun.close()
    with pytest.raises(block_device.DeviceClosed):
        lun.execute(bytes(6))
