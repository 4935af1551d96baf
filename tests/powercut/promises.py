# SPDX-License-Identifier: Apache-2.0
"""The promises that a volume's user has at a point of the workload: the model that every state is compared with.

The content consists of sectors of 512 bytes.  Every written sector carries a label, 32 times: the number of its write (its
*version*), its own address, and the CRC32C of both.  So stale, misplaced, torn and foreign data can be distinguished:

| of the 32 labels                                            | the sector is                                           |
| ----------------------------------------------------------- | ------------------------------------------------------- |
| one has a wrong checksum (and it is not a sector of zeroes) | foreign: no write made it                               |
| not all are the same                                        | torn: parts of several writes, or of zeroes and a write |
| all have the same address, another one                      | misplaced                                               |
| all have an earlier version than any that is promised       | stale                                                   |

Version 0 is a sector of zeroes.

| object                   | promise                                                                                     |
| ------------------------ | ------------------------------------------------------------------------------------------- |
| the volume               | the version that a flush or FUA made durable, or one issued after it                        |
| ... while it is restored | all of it as above, or all of it as the snapshot has it (with writes beside it: each sector) |
| ... while it is resized  | as large as before or after; what it has grown by is zeroes                                 |
| a snapshot               | has exactly the versions of its moment (with or without writes that ran while it was taken) |
| one in creation          | is not there, or as above                                                                   |
| one in deletion          | is as above, or is not there, or is `deleting` and a resumed deletion ends that             |
| a write-once device      | acknowledged blocks are written, untouched blocks are blank                                 |
"""

from __future__ import annotations

import copy
import enum
import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import crc32c

SECTOR = 512
_GRAIN = 8  # sectors that a write preserves at least
_LABEL = struct.Struct("<QII")  # version, address, CRC32C of these two
_LABELLED = struct.Struct("<QI")


@functools.lru_cache(maxsize=1 << 16)
def sector(version: int, address: int) -> bytes:
    """Return the content of the sector at `address` (in sectors) after write number `version`."""
    if not version:
        return bytes(SECTOR)
    checksum = crc32c.crc32c(_LABELLED.pack(version, address))
    return _LABEL.pack(version, address, checksum) * (SECTOR // _LABEL.size)


def content(version: int, address: int, count: int) -> bytes:
    """Return `count` sectors from `address` on, all of one write."""
    return b"".join(sector(version, address + index) for index in range(count))


def describe(data: bytes | memoryview, address: int) -> int | str:
    """Return the version of a sector that was read, or its defect; `complaint` explains a stale one."""
    version = int(_LABEL.unpack_from(data)[0])
    if data == sector(version, address):
        return version
    parts = set(_LABEL.iter_unpack(data))
    zeroes = (0, 0, 0)
    for version, at, checksum in parts - {zeroes}:
        if crc32c.crc32c(_LABELLED.pack(version, at)) != checksum:
            return "foreign: a checksum is wrong"
    if len(parts) > 1:
        writes = (f"write {version} of sector {at}" if version else "zeroes" for version, at, _ in sorted(parts))
        return f"torn: {', '.join(writes)}"
    version, at, _ = parts.pop()
    return f"misplaced: write {version} of sector {at}"


def complaint(found: int | str, allowed: Sequence[int]) -> str:
    """Return the complaint about a sector that `describe` calls `found`, a version that is not in `allowed`."""
    promised = f"promised {allowed[0]}" if len(allowed) == 1 else f"promised one of {sorted(allowed)}"
    if isinstance(found, str):
        return f"{found}, {promised}"
    return f"{'stale' if found < min(allowed) else 'of another write'}: write {found}, {promised}"


class Violation(AssertionError):
    """A promise was broken; the text says which."""


class Phase(enum.Enum):
    """The phase of a snapshot's life, as far as its user knows."""

    CREATING = enum.auto()
    THERE = enum.auto()
    DELETING = enum.auto()


@dataclass
class Moment:
    """A snapshot's promises; `must` and `may` are sets of written sectors as bits."""

    versions: list[int]
    others: dict[int, set[int]] = field(default_factory=dict)  # sector -> further versions it may have
    phase: Phase = Phase.CREATING
    must: int = 0
    may: int = 0
    cached: bytes | None = None  # the exact content, while there are no `others`

    def data(self) -> bytes:
        """Return the content in which every sector has its first version."""
        if self.cached is None:
            self.cached = b"".join(sector(version, address) for address, version in enumerate(self.versions))
        return self.cached


# The notes of the workload.  `serial` pairs the beginning of a call with its end.


@dataclass(frozen=True, slots=True)
class WriteBegins:
    """Sectors [first, first + count) of the volume get `version`; 0 for zeroes."""

    serial: int
    first: int
    count: int
    version: int


@dataclass(frozen=True, slots=True)
class WriteEnds:
    serial: int
    fua: bool


@dataclass(frozen=True, slots=True)
class FlushBegins:
    serial: int


@dataclass(frozen=True, slots=True)
class FlushEnds:
    serial: int


@dataclass(frozen=True, slots=True)
class CreateBegins:
    name: str


@dataclass(frozen=True, slots=True)
class CreateEnds:
    name: str


@dataclass(frozen=True, slots=True)
class Pinned:
    """Snapshot `name`, taken while writes ran, was read: these are the versions of the sectors that were uncertain."""

    name: str
    versions: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class DeleteBegins:
    name: str


@dataclass(frozen=True, slots=True)
class DeleteEnds:
    name: str


@dataclass(frozen=True, slots=True)
class RestoreBegins:
    """The volume goes back to snapshot `name`."""

    name: str


@dataclass(frozen=True, slots=True)
class RestoreEnds:
    """The volume has gone back, durably."""

    name: str


@dataclass(frozen=True, slots=True)
class ResizeBegins:
    """The volume grows to `sectors`."""

    sectors: int


@dataclass(frozen=True, slots=True)
class ResizeEnds:
    sectors: int


@dataclass(frozen=True, slots=True)
class PutBegins:
    """A write to the write-once LUN of the oldest snapshot, `name`."""

    serial: int
    name: str
    first: int
    count: int
    version: int


@dataclass(frozen=True, slots=True)
class PutEnds:
    serial: int
    stored: bool


Note = (
    WriteBegins
    | WriteEnds
    | FlushBegins
    | FlushEnds
    | CreateBegins
    | CreateEnds
    | Pinned
    | DeleteBegins
    | DeleteEnds
    | RestoreBegins
    | RestoreEnds
    | ResizeBegins
    | ResizeEnds
    | PutBegins
    | PutEnds
)


@dataclass
class _Running:
    write: WriteBegins
    newest: str | None  # the snapshot that its pre-images go to; None if that is uncertain
    restores: int  # how many restores had ended


class Promises:
    """The promises that hold now; `take` applies the notes in order."""

    def __init__(self, versions: list[int], chunk_sectors: int) -> None:
        self.chunk_sectors = chunk_sectors
        self.durable = list(versions)
        self.acknowledged = list(versions)
        self.later: dict[int, list[int]] = {}  # sector -> versions issued after the durable one, in order
        self.moments: dict[str, Moment] = {}  # oldest first
        self.restored: list[int] | None = None  # the volume's content if a restore under way has taken effect
        self.unsure: set[int] = set()  # sectors written while a restore took effect: their order is not known
        self._beside: dict[int, list[int]] = {}  # sector -> versions issued while a restore is under way
        self._restores = 0
        self.smallest = len(versions)  # sectors the volume has at least; `durable` says how many at most
        self._running: dict[int, _Running] = {}
        self._puts: dict[int, PutBegins] = {}
        self._flushes: dict[int, list[int]] = {}
        self._unsettled = 0  # creations and deletions under way

    def copy(self) -> Promises:
        """Return a copy that can be continued separately."""
        return copy.deepcopy(self)

    def take(self, note: Note) -> None:
        """Apply the next note."""
        match note:
            case WriteBegins():
                self._write_begins(note)
            case WriteEnds(serial, fua):
                self._write_ends(self._running.pop(serial), fua)
            case FlushBegins(serial):
                self._flushes[serial] = list(self.acknowledged)
            case FlushEnds(serial):
                for address, version in enumerate(self._flushes.pop(serial)):
                    self._settle(address, version)
            case CreateBegins(name):
                self._unsettled += 1
                moment = self.moments[name] = Moment(list(self.acknowledged))
                for running in self._running.values():
                    self._also(moment, running.write)
                    moment.may |= self._touched(running.write, self.chunk_sectors)
                    running.newest = None
            case CreateEnds(name):
                self._unsettled -= 1
                self.moments[name].phase = Phase.THERE
            case Pinned(name, versions):
                moment = self.moments[name]
                for address, version in versions:
                    moment.versions[address] = version
                    moment.others.pop(address, None)
                moment.cached = None
            case DeleteBegins(name):
                self._unsettled += 1
                self.moments[name].phase = Phase.DELETING
                self._complete(self.moments[name])
                self._older_may(name)
                for running in self._running.values():
                    running.newest = None
            case DeleteEnds(name):
                self._unsettled -= 1
                self._delete_ends(name)
            case RestoreBegins(name):
                moment = self.moments[name]
                self.restored = moment.versions + [0] * (len(self.durable) - len(moment.versions))
                for other in self.moments.values():
                    other.may = _bits(0, len(other.versions))
                self._beside = {}
                for running in self._running.values():
                    self._note_beside(running.write)
            case RestoreEnds(name):
                self._restored()
            case ResizeBegins(sectors):
                more = [0] * (sectors - len(self.durable))
                self.durable += more
                self.acknowledged += more
            case ResizeEnds(sectors):
                self.smallest = sectors
            case PutBegins():
                self._puts[note.serial] = note
                moment = self.moments[note.name]
                for address in range(note.first, note.first + note.count):
                    moment.others.setdefault(address, set()).add(note.version)
                moment.may |= _bits(note.first, note.count)
            case PutEnds(serial, stored):
                self._put_ends(self._puts.pop(serial), stored)

    def expect_deletion(self) -> None:
        """Note that a deletion from before these promises is under way."""
        self._unsettled += 1

    def _restored(self) -> None:
        assert self.restored is not None
        self.durable = self.restored
        self.acknowledged = list(self.restored)
        self.later = self._beside
        self.unsure = set(self._beside)
        self._beside = {}
        self.restored = None
        self._restores += 1

    def _note_beside(self, write: WriteBegins) -> None:
        for address in range(write.first, write.first + write.count):
            self._beside.setdefault(address, []).append(write.version)

    def sure(self, address: int) -> int | None:
        """Return the version that the sector's only writer must read; None if several are possible."""
        return None if self.restored is not None or address in self.unsure else self.acknowledged[address]

    def allowed(self, address: int) -> list[int]:
        """Return the versions that a sector may have."""
        others = self.later.get(address, [])
        if self.restored is not None and self._beside:
            others = [*others, self.restored[address]]
        return [self.durable[address], *others]

    def newest(self) -> str | None:
        """Return the snapshot that pre-images go to; None if that is uncertain."""
        there = [name for name, moment in self.moments.items() if moment.phase is Phase.THERE]
        return there[-1] if there and not self._unsettled else None

    def _touched(self, write: WriteBegins, per: int) -> int:
        """Return the sectors of all chunks or grains, of `per` sectors each, that a write touches."""
        first = write.first // per * per
        end = min(len(self.durable), -(-(write.first + write.count) // per) * per)
        return _bits(first, end - first)

    def _write_begins(self, write: WriteBegins) -> None:
        self._running[write.serial] = _Running(write, self.newest(), self._restores)
        if self.restored is not None:
            self._note_beside(write)
        touched = self._touched(write, self.chunk_sectors)
        for address in range(write.first, write.first + write.count):
            self.later.setdefault(address, []).append(write.version)
        for moment in self.moments.values():
            moment.may |= touched
            if moment.phase is Phase.CREATING:
                self._also(moment, write)

    def _write_ends(self, running: _Running, fua: bool) -> None:
        write = running.write
        # Zeroes preserve nothing where the primary has a hole.  The snapshot's content is compared all the same.
        if write.version and running.newest is not None and running.newest == self.newest():
            self.moments[running.newest].must |= self._touched(write, _GRAIN)
        sure = self.restored is None and running.restores == self._restores
        for address in range(write.first, write.first + write.count):
            self.acknowledged[address] = write.version
            if sure:
                self.unsure.discard(address)
            if fua and sure:
                self._settle(address, write.version)

    def _settle(self, address: int, version: int) -> None:
        later = self.later.get(address)
        if later and version in later:
            self.durable[address] = version
            del later[: later.index(version) + 1]
            if not later:
                del self.later[address]

    @staticmethod
    def _also(moment: Moment, write: WriteBegins) -> None:
        for address in range(write.first, write.first + write.count):
            if moment.versions[address] != write.version:
                moment.others.setdefault(address, set()).add(write.version)

    def _complete(self, moment: Moment) -> None:
        """Note that a deletion may complete the chunks that are written in part."""
        per = self.chunk_sectors
        for first in range(0, len(self.durable), per):
            whole = _bits(first, min(per, len(self.durable) - first))
            if moment.may & whole:
                moment.may |= whole

    def _older_may(self, name: str) -> None:
        """Note that the pre-images of a deleted snapshot may move down to the older ones."""
        names = list(self.moments)
        index = names.index(name)
        for older in names[:index]:
            self.moments[older].may |= self.moments[name].may

    def _delete_ends(self, name: str) -> None:
        names = list(self.moments)
        index = names.index(name)
        self._older_may(name)  # it may have got more since the deletion began
        if index and self.moments[names[index - 1]].phase is Phase.THERE:
            self.moments[names[index - 1]].must |= self.moments[name].must
        del self.moments[name]

    def _put_ends(self, put: PutBegins, stored: bool) -> None:
        moment = self.moments[put.name]
        for address in range(put.first, put.first + put.count):
            moment.others[address].discard(put.version)
            if stored:
                moment.versions[address] = put.version
            if not moment.others[address]:
                del moment.others[address]
        if stored:
            moment.cached = None
            moment.must |= _bits(put.first, put.count)


def _bits(first: int, count: int) -> int:
    return ((1 << count) - 1) << first
