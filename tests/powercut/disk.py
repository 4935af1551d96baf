# SPDX-License-Identifier: Apache-2.0
"""A model of the states that a disk may have after a cut, fed with the recorder's log.

Everything that can change is a register with its versions: a page of a file, the length of a file, a name in a
directory.  The first version is the durable one.  When a sync of the file (or directory) ends, the version that was the newest
at the start of the sync becomes durable, and the older ones become impossible.

| of this                           | a power cut leaves                                                         |
| --------------------------------- | -------------------------------------------------------------------------- |
| a page, a length, a name, a mark  | any of its versions, each register on its own (nothing is in order)        |
| a page that was under way (torn)  | 512 bytes each from any version; 8 bytes each in a page of a map           |
| bytes beyond the length           | lost                                                                       |
| a page never durable              | zeroes                                                                     |

This asks more of the code than file systems do, most of which order names and lengths.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from lun_backends.files import facts
from tests.powercut import recorder
from tests.powercut.recorder import PAGE

SECTOR = 512
ZEROES = bytes(PAGE)
T = TypeVar("T")


class Register(Generic[T]):
    """A value with its versions: `versions[0]` is durable, the later ones follow in order; `settled` counts the past ones."""

    __slots__ = ("settled", "versions")

    def __init__(self, durable: T) -> None:
        self.versions: list[T] = [durable]
        self.settled = 0

    def settle(self, upto: int) -> None:
        """Note that the version with the number `upto`, counted from the beginning of time, is durable."""
        if upto > self.settled:
            del self.versions[: upto - self.settled]
            self.settled = upto

    @property
    def newest(self) -> int:
        """The number of the newest version, counted from the beginning of time."""
        return self.settled + len(self.versions) - 1


@dataclass
class File:
    """The content of one inode."""

    length: Register[int] = field(default_factory=lambda: Register(0))
    pages: dict[int, Register[bytes | None]] = field(default_factory=dict)  # None: a hole
    stored: set[int] = field(default_factory=set)  # pages that were stored to through a mapping
    mark: Register[bytes | None] = field(default_factory=lambda: Register(None))  # an extended attribute

    def registers(self, *, whole: bool = True) -> Iterator[Register[int] | Register[bytes | None]]:
        yield self.length
        yield from self.pages.values()
        if whole:
            yield self.mark


@dataclass(frozen=True, slots=True)
class Choice:
    """One state: the version of each register that has several, in the order of `Disk.open_registers`.

    With `tear`, a random generator with that seed mixes each page from its versions.
    """

    versions: tuple[int, ...]
    tear: int | None = None


class Disk:
    """The model of the disk; `apply` takes the log's events one by one."""

    def __init__(self, start: recorder.Start) -> None:
        self.files: dict[int, File] = {}
        self.names: dict[Path, Register[int | None]] = {path: Register(number) for path, number in start.names}
        self._syncs: dict[int, list[tuple[Register[int] | Register[int | None] | Register[bytes | None], int]]] = {}
        for number, content in start.content.items():
            file = self.files[number] = File(Register(len(content)), mark=Register(start.attributes.get(number)))
            for page in range(0, len(content), PAGE):
                data = content[page : page + PAGE].ljust(PAGE, b"\0")
                if data != ZEROES:
                    file.pages[page // PAGE] = Register(data)

    def apply(self, event: recorder.Event) -> bool:
        """Take one event.  Return whether the set of possible states may have changed."""
        match event:
            case recorder.Write():
                self._write(event)
            case recorder.Length(number, length):
                self._truncate(self.files.setdefault(number, File()), length)
            case recorder.Attribute(number, value):
                self.files[number].mark.versions.append(value)
            case recorder.Name(path, target):
                if target is not None:
                    self.files.setdefault(target, File())
                self.names.setdefault(path, Register(None)).versions.append(target)
            case recorder.SyncBegins(sync, target, whole):
                registers = self._registers_of(target, whole=whole)
                self._syncs[sync] = [(register, register.newest) for register in registers]
                return False
            case recorder.SyncEnds(sync):
                for register, upto in self._syncs.pop(sync):
                    register.settle(upto)
            case recorder.Mark():
                return False
        return True

    def _registers_of(
        self, target: int | Path, *, whole: bool
    ) -> Iterator[Register[int] | Register[int | None] | Register[bytes | None]]:
        if isinstance(target, int):
            yield from self.files[target].registers(whole=whole)
        else:
            yield from (register for path, register in self.names.items() if path.parent == target)

    @staticmethod
    def _truncate(file: File, length: int) -> None:
        for page, register in file.pages.items():
            if (page + 1) * PAGE > length:
                kept = max(0, length - page * PAGE)
                register.versions.append((register.versions[-1] or ZEROES)[:kept].ljust(PAGE, b"\0") if kept else None)
        file.length.versions.append(length)

    def _write(self, event: recorder.Write) -> None:
        file = self.files[event.file]
        offset, data = event.offset, event.data
        if offset + len(data) > file.length.versions[-1]:
            file.length.versions.append(offset + len(data))
        at = 0
        while at < len(data):
            page, start = divmod(offset + at, PAGE)
            part = data[at : at + PAGE - start]
            register = file.pages.setdefault(page, Register(None))
            if event.stored:
                file.stored.add(page)
            if len(part) < PAGE:
                whole = register.versions[-1] or ZEROES
                part = whole[:start] + part + whole[start + len(part) :]
            register.versions.append(part)
            at += PAGE - start

    # States ---------------------------------------------------------------------------------------------------------

    def open_registers(self) -> list[Register[int] | Register[int | None] | Register[bytes | None]]:
        """Return the registers with several versions: of names, and of files that a name may lead to."""
        found: list[Register[int] | Register[int | None] | Register[bytes | None]] = []
        reachable = set()
        for name in self.names.values():
            reachable.update(name.versions)
            if len(name.versions) > 1:
                found.append(name)
        for number, file in self.files.items():
            if number in reachable:
                found += [register for register in file.registers() if len(register.versions) > 1]
        return found

    def newest(self) -> Choice:
        """Return the state in which nothing is lost."""
        return Choice(tuple(len(register.versions) - 1 for register in self.open_registers()))

    def choices(self, rng: random.Random, count: int, bound: int) -> list[Choice]:
        """Return up to `count` different states.

        If there are at most `bound`, and `count` allows it, return all of them, and torn ones, too.  Otherwise return a random
        sample of the extremes, of states in which only one register is late or early, of random states, and of torn ones.
        """
        sizes = [len(register.versions) for register in self.open_registers()]
        total = 1
        for size in sizes:
            total = min(total * size, bound + 1)
        whole = list(self._all(sizes) if total <= bound else self._some(sizes, rng))
        rng.shuffle(whole)
        torn = self._torn(sizes, rng, count if total <= bound else -(-count // 4))
        if total <= bound and total < count:
            return list(dict.fromkeys([*whole, *torn]))[:count]
        mixed = list(dict.fromkeys([*whole[:count], *torn]))
        return rng.sample(mixed, min(count, len(mixed)))

    @staticmethod
    def _all(sizes: list[int]) -> Iterator[Choice]:
        for versions in itertools.product(*map(range, sizes)):
            yield Choice(versions)

    @staticmethod
    def _some(sizes: list[int], rng: random.Random) -> Iterator[Choice]:
        none, all_ = [0] * len(sizes), [size - 1 for size in sizes]
        yield Choice(tuple(none))
        yield Choice(tuple(all_))
        order = list(range(len(sizes)))
        rng.shuffle(order)
        for index in order[:8]:
            yield Choice((*none[:index], all_[index], *none[index + 1 :]))
            yield Choice((*all_[:index], 0, *all_[index + 1 :]))
        for _ in range(64):
            chance = rng.choice((0.1, 0.5, 0.9))
            yield Choice(tuple(rng.randrange(size) if rng.random() < chance else 0 for size in sizes))
            yield Choice(tuple(size - 1 if rng.random() < chance else rng.randrange(size) for size in sizes))

    @staticmethod
    def _torn(sizes: list[int], rng: random.Random, count: int) -> Iterator[Choice]:
        if sizes:
            for _ in range(count):
                yield Choice(tuple(rng.randrange(size) for size in sizes), rng.getrandbits(32))

    def lay_out(self, root: Path, choice: Choice) -> None:
        """Write the files under `root` as they are in that state, and remove all others there."""
        chosen = {
            id(register): version for register, version in zip(self.open_registers(), choice.versions, strict=True)
        }
        tear = None if choice.tear is None else random.Random(choice.tear)
        for directory in sorted(path for path in root.rglob("*") if path.is_dir()):
            _empty(directory)
        _empty(root)
        for path, name in self.names.items():
            number = name.versions[chosen.get(id(name), 0)]
            if number is not None:
                self._lay_out_file(root / path, self.files[number], chosen, tear)

    @staticmethod
    def _lay_out_file(path: Path, file: File, chosen: dict[int, int], tear: random.Random | None) -> None:
        length = file.length.versions[chosen.get(id(file.length), 0)]
        runs: list[tuple[int, list[bytes]]] = []
        following = -1
        for page, register in sorted(file.pages.items()):
            version = chosen.get(id(register), 0)
            content = register.versions[version]
            if tear is not None and len(register.versions) > 1 and tear.random() < 0.6:
                unit = recorder.WORD if page in file.stored and tear.random() < 0.7 else SECTOR
                content = _mixed(register.versions, tear, unit)
            if content is not None and page * PAGE < length:
                if page == following:
                    runs[-1][1].append(content)
                else:
                    runs.append((page, [content]))
                following = page + 1
        fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        try:
            for page, pages in runs:
                os.pwrite(fd, b"".join(pages), page * PAGE)
            os.ftruncate(fd, length)
            if (mark := file.mark.versions[chosen.get(id(file.mark), 0)]) is not None:
                os.setxattr(fd, facts.MARK, mark)
        finally:
            os.close(fd)


def _mixed(versions: list[bytes | None], rng: random.Random, unit: int) -> bytes:
    """Return a page whose every `unit` bytes come from any of the versions, or from one of two."""
    if rng.random() < 0.5:
        versions = [rng.choice(versions), versions[-1]]
    whole = bytearray(rng.choice(versions) or ZEROES)
    for start in range(0, PAGE, unit):
        piece = slice(start, start + unit)
        whole[piece] = (rng.choice(versions) or ZEROES)[piece]
    return bytes(whole)


def _empty(directory: Path) -> None:
    for entry in os.scandir(directory):
        if not entry.is_dir():
            Path(entry.path).unlink()


def clear(root: Path) -> None:
    """Remove `root` with everything in it."""
    shutil.rmtree(root, ignore_errors=True)
