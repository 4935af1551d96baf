# SPDX-License-Identifier: Apache-2.0
"""Verified load on one LUN, from libiscsi sessions that run until the daemon dies.

The content describes itself (see `tests.powercut.promises`): every sector carries its address, the number of its write
and a checksum of both, 32 times.  So stale, misplaced and torn sectors can be distinguished.  An acknowledged write must survive a
killed process without a flush, so the notes call it durable.

Each sector has one writer, but writers share chunks: cells of 4 KiB belong to the small writers in turn, and the end of the
LUN belongs to one that writes across chunks.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator

from tests import daemon, libiscsi
from tests.powercut import promises
from tests.powercut.promises import SECTOR, Violation

CELL = 8  # sectors
SMALL_WRITERS = 2
LARGEST = 256  # sectors that the large writer writes at a time
STEP = 2048  # sectors read at a time


class Promised:
    """The promises about one volume, fed by many threads."""

    def __init__(self, versions: list[int], chunk_sectors: int) -> None:
        self.lock = threading.Lock()
        self.now = promises.Promises(versions, chunk_sectors)

    def take(self, note: promises.Note) -> None:
        with self.lock:
            self.now.take(note)


class Load:
    """Sessions that write to and read from `lun` until they fail; `block` is its block size in sectors."""

    def __init__(
        self, target: daemon.Daemon, lun: int, block: int, promised: Promised, versions: Iterator[int], seed: str
    ) -> None:
        self._target, self._lun, self._block, self._promised = target, lun, block, promised
        self._versions = versions
        self._serials = itertools.count()
        self._sectors = len(promised.now.durable)
        self.commands = 0
        self.errors: list[BaseException] = []
        bodies: list[Callable[[libiscsi.Session, random.Random], None]] = [self._large]
        bodies += [lambda session, dice, me=number: self._small(session, dice, me) for number in range(SMALL_WRITERS)]  # type: ignore[misc] # mypy sees no type for `me`
        self._threads = [
            threading.Thread(target=self._run, args=(body, random.Random(f"{seed}/{number}")))
            for number, body in enumerate(bodies)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Return when all sessions have met the end of the daemon.  Raise Violation if one of them found a fault."""
        for thread in self._threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def _run(self, body: Callable[[libiscsi.Session, random.Random], None], dice: random.Random) -> None:
        try:
            with self._target.session() as session:
                session.settle(self._lun)
                while True:
                    body(session, dice)
                    self.commands += 1
        except libiscsi.LibiscsiError:
            return  # the daemon is gone
        except BaseException as error:  # noqa: BLE001 - raised by the thread that joins
            self.errors.append(error)

    def _small(self, session: libiscsi.Session, dice: random.Random, me: int) -> None:
        """Send one command to a cell of our own: mostly a write, now and then a read."""
        cells = (self._sectors - LARGEST) // CELL
        first = dice.randrange(me, cells, SMALL_WRITERS) * CELL
        count = dice.choice((self._block, CELL))
        kind = dice.random()
        if kind < 0.7:
            self._write(session, first, count)
        elif kind < 0.75:
            self._zero(session, first, CELL)
        elif kind < 0.8:
            self._check(session.command(self._lun, bytes([0x35]) + bytes(9)))
        else:
            self._verify(session, first, count)

    def _large(self, session: libiscsi.Session, dice: random.Random) -> None:
        start = self._sectors - LARGEST
        first = dice.randrange(start, self._sectors, self._block)
        self._write(session, first, min(dice.choice((8, 32, 64, 128)), self._sectors - first))

    def _write(self, session: libiscsi.Session, first: int, count: int) -> None:
        version, serial = next(self._versions), next(self._serials)
        data = promises.content(version, first, count)
        self._promised.take(promises.WriteBegins(serial, first, count, version))
        self._again(session, _cdb(0x8A, first // self._block, count // self._block), out=data)
        self._promised.take(promises.WriteEnds(serial, True))

    def _zero(self, session: libiscsi.Session, first: int, count: int) -> None:
        """Send WRITE SAME (16) with UNMAP (SBC-4 5.50)."""
        serial = next(self._serials)
        cdb = bytearray(_cdb(0x93, first // self._block, count // self._block))
        cdb[1] = 0x08
        self._promised.take(promises.WriteBegins(serial, first, count, 0))
        self._again(session, bytes(cdb), out=bytes(self._block * SECTOR))
        self._promised.take(promises.WriteEnds(serial, True))

    def _verify(self, session: libiscsi.Session, first: int, count: int) -> None:
        """Check that a read returns the last acknowledged writes: this thread is the only writer here.

        Sectors that a rollback may have changed meanwhile are left out.
        """
        before = [self._promised.now.sure(first + index) for index in range(count)]
        answer = self._again(session, _cdb(0x88, first // self._block, count // self._block), read=count * SECTOR)
        for index in range(count):
            version = promises.describe(answer.data[index * SECTOR : (index + 1) * SECTOR], first + index)
            expected = self._promised.now.sure(first + index)
            if expected is not None and expected == before[index] and version != expected:
                wrong = promises.complaint(version, [expected])
                raise Violation(f"LUN {self._lun}, sector {first + index}: {wrong}")

    def _again(self, session: libiscsi.Session, cdb: bytes, *, out: bytes = b"", read: int = 0) -> libiscsi.Answer:
        """Send a command again for as long as unit attentions (new or removed LUNs) come instead of its own answer."""
        while True:
            answer = session.command(self._lun, cdb, out=out, read=read)
            if answer.status == 0x02 and answer.key == 0x06:
                continue
            return self._check(answer)

    @staticmethod
    def _check(answer: libiscsi.Answer) -> libiscsi.Answer:
        if answer.status not in (0x00, 0x02) or (answer.status == 0x02 and answer.key != 0x06):
            raise Violation(f"a command failed: status {answer.status:#x}, sense {answer.sense.hex()}")
        return answer


def read_all(session: libiscsi.Session, lun: int, sectors: int, block: int) -> bytes:
    """Return the whole content of a LUN."""
    session.settle(lun)
    parts = []
    for first in range(0, sectors, STEP):
        count = min(STEP, sectors - first)
        answer = session.command(lun, _cdb(0x88, first // block, count // block), read=count * SECTOR)
        if answer.status:
            raise Violation(f"LUN {lun} cannot be read: sense {answer.sense.hex()}")
        parts.append(answer.data)
    return b"".join(parts)


def _cdb(code: int, lba: int, blocks: int) -> bytes:
    """Return the CDB of a READ, WRITE or WRITE SAME (16)."""
    return bytes([code, 0]) + lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(2)
