# SPDX-License-Identifier: Apache-2.0
"""PREEMPT AND ABORT as the cluster's barrier (rule 10, lun_backends/README.md), on a real daemon, in thousands of races.

Two nodes write as fast as they can under one key; a third node takes over with a new key.  The LUN has the acknowledged
writes, and it does not have the refused writes.  Once the taker has its answer, no write under the old key arrives.
"""

from __future__ import annotations

import random
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path

from tests import libiscsi
from tests.daemon import Daemon

ROUNDS = 2000
GOOD, CHECK, CONFLICT = 0x00, 0x02, 0x18
WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 5
REGISTER, RESERVE, CLEAR, PREEMPT_AND_ABORT, IGNORE = 0, 1, 3, 5, 6
BLOCKS = 8
FUA = 0x08


def reserve_out(
    session: libiscsi.Session,
    action: int,
    key: int,
    service_key: int,
    *,
    flags: int = 0,
    kind: int = WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
) -> int:
    cdb = struct.pack(">BBB2xIB", 0x5F, action, kind, 24, 0)
    for _ in range(8):  # unit attentions come first
        answer = session.command(0, cdb, out=struct.pack(">QQ4xB3x", key, service_key, flags))
        if answer.status != CHECK or answer.key != 6:
            break
    return answer.status


@dataclass
class Node:
    """One initiator that writes stamps to its own blocks until it is refused."""

    session: libiscsi.Session
    lba: int
    dice: random.Random
    written: int = 0  # the last stamp acknowledged
    refused: int = 0
    answers: set[int] = field(default_factory=set)
    going: threading.Event = field(default_factory=threading.Event)

    def write_until_refused(self, stamp: int) -> None:
        while True:
            stamp += 1
            cdb = struct.pack(">BBIxHx", 0x2A, self.dice.choice((0, 0, FUA)), self.lba, BLOCKS)
            answer = self.session.command(0, cdb, out=struct.pack(">Q", stamp) * 64 * BLOCKS)
            self.answers.add(answer.status)
            if answer.status != GOOD:
                self.refused = stamp
                self.going.set()
                return
            self.written = stamp
            self.going.set()


def stamps(session: libiscsi.Session, lba: int) -> set[int]:
    answer = session.command(0, struct.pack(">BBIxHx", 0x28, 0, lba, BLOCKS), read=512 * BLOCKS)
    assert answer.status == GOOD
    return {stamp for (stamp,) in struct.iter_unpack(">Q", answer.data)}


def test_the_old_key_writes_nothing_after_preempt_and_abort(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    with Daemon(tmp_path, "  - {name: vol, lun: 0, size: 64MiB, durability: process-crash}\n") as daemon:
        sessions = [daemon.session(initiator=f"iqn.2026-11.io.wolun:node{number}") for number in range(3)]
        key = 1
        for session in sessions:
            session.settle(0)
            assert reserve_out(session, REGISTER, 0, key) == GOOD
        assert reserve_out(sessions[0], RESERVE, key, 0) == GOOD
        for number in range(ROUNDS):
            dice.shuffle(sessions)
            taker, *others = sessions
            if number % 200 == 0:  # copy-on-write takes part in some of the writes
                daemon.run("snapshot", "create", "vol", f"s{number}")
                for session in sessions:
                    session.settle(0)  # the new LUNs raise a unit attention
            nodes = [Node(session, 64 * index, random.Random(dice.random())) for index, session in enumerate(others, 1)]
            assert reserve_out(taker, REGISTER, key, key + 1) == GOOD
            threads = [threading.Thread(target=node.write_until_refused, args=(number << 32,)) for node in nodes]
            for thread in threads:
                thread.start()
            for node in nodes:
                assert node.going.wait(60)
            assert reserve_out(taker, PREEMPT_AND_ABORT, key + 1, key) == GOOD
            at_once = [stamps(taker, node.lba) for node in nodes]
            for thread in threads:
                thread.join(60)
            for node, seen in zip(nodes, at_once, strict=True):
                assert node.answers <= {GOOD, CHECK, CONFLICT}
                assert seen == stamps(taker, node.lba) == {node.written}, f"seed {seed}, round {number}"
                assert node.written < node.refused
            key += 1
            for node in nodes:
                node.session.settle(0)
                answer = node.session.command(0, struct.pack(">BBIxHx", 0x2A, 0, node.lba, 1), out=bytes(512))
                assert answer.status == CONFLICT
                assert stamps(taker, node.lba) == {node.written}
                assert reserve_out(node.session, REGISTER, 0, key) == GOOD
        for session in sessions:
            session.close()


def test_a_reservation_outlives_a_killed_daemon_with_aptpl_alone(tmp_path: Path) -> None:
    """Initiator ports log in again after the kill; without APTPL the daemon has forgotten their registrations."""
    node, other = "iqn.2026-11.io.wolun:node", "iqn.2026-11.io.wolun:other"
    write = struct.pack(">BBIxHx", 0x2A, 0, 0, 1)
    full_status = struct.pack(">BB5xHx", 0x5E, 3, 4096)
    with Daemon(tmp_path, "  - {name: vol, lun: 0, size: 64MiB}\n") as daemon:
        for persists in (True, False):
            with daemon.session(initiator=node) as session:
                session.settle(0)
                assert reserve_out(session, IGNORE, 0, 1) == GOOD
                assert reserve_out(session, REGISTER, 1, 2, flags=1 if persists else 0) == GOOD
                assert reserve_out(session, RESERVE, 2, 0) == GOOD
                before = session.command(0, full_status, read=4096).data
                assert len(before) > 8
                daemon.kill()
            daemon.start()
            with daemon.session(initiator=other) as session:
                session.settle(0)
                after = session.command(0, full_status, read=4096).data
                assert after[8:] == (before[8:] if persists else b"")
                assert session.command(0, write, out=bytes(512)).status == (CONFLICT if persists else GOOD)
                if persists:  # a new session is another port, and takes over like the next node of a cluster
                    assert reserve_out(session, REGISTER, 0, 3) == GOOD
                    assert reserve_out(session, PREEMPT_AND_ABORT, 3, 2) == GOOD
                    assert session.command(0, write, out=bytes(512)).status == GOOD
                    assert reserve_out(session, CLEAR, 3, 0) == GOOD


def test_at_most_one_of_two_takers_wins(tmp_path: Path) -> None:
    with Daemon(tmp_path, "  - {name: vol, lun: 0, size: 64MiB}\n") as daemon:
        sessions = [daemon.session(initiator=f"iqn.2026-11.io.wolun:node{number}") for number in range(2)]
        for number in range(ROUNDS // 4):
            old, new = 1 + number, (1 + (number + 1) * 1000, 2 + (number + 1) * 1000)
            for session in sessions:
                session.settle(0)
                assert reserve_out(session, IGNORE, 0, 1 << 40 | old) == GOOD
            assert reserve_out(sessions[0], CLEAR, 1 << 40 | old, 0) == GOOD
            for session in sessions:
                session.settle(0)
                assert reserve_out(session, REGISTER, 0, old) == GOOD
            assert reserve_out(sessions[0], RESERVE, old, 0) == GOOD
            won: list[int] = []

            def take(index: int, won: list[int] = won, old: int = old, new: tuple[int, int] = new) -> None:
                if reserve_out(sessions[index], REGISTER, old, new[index]) == GOOD and (
                    reserve_out(sessions[index], PREEMPT_AND_ABORT, new[index], old) == GOOD
                ):
                    won.append(index)

            threads = [threading.Thread(target=take, args=(index,)) for index in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert len(won) <= 1
            holder = sessions[0].command(0, struct.pack(">BB5xHx", 0x5E, 1, 64), read=64)
            if holder.status == CHECK:
                sessions[0].settle(0)
                holder = sessions[0].command(0, struct.pack(">BB5xHx", 0x5E, 1, 64), read=64)
            key = int.from_bytes(holder.data[8:16])
            assert key in ((new[won[0]],) if won else new)
        for session in sessions:
            session.close()
