# SPDX-License-Identifier: Apache-2.0
"""The walker: it takes random steps on one volume, and compares everything with its model after each."""

from __future__ import annotations

import collections
import contextlib
import random
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from target import messages
from target.control import client
from tests import daemon, libiscsi

BLOCK = 512
SIZES = (640 << 10, 1 << 20)  # bytes: at first, and at most
MOST_SNAPSHOTS = 6
_PIECE = 256  # blocks read at a time
_UNIT_ATTENTION = 6


class Wrong(Exception):
    """The daemon shows something else than the model."""


class Walker:
    """A daemon with the volume `v`, and the model of it; a context manager."""

    def __init__(self, directory: Path, seed: str) -> None:
        self.steps: collections.Counter[str] = collections.Counter()
        self._rng = rng = random.Random(seed)
        self._directory = directory
        durability = rng.choice(("process-crash", "power-loss"))
        chunk = rng.choice((4096, 16384, 65536))
        self.setting = f"chunks of {chunk} bytes, {durability}"
        volume = f"name: v, lun: 0, primary: {directory}/disk, size: {SIZES[0]}, chunk_size: {chunk}"
        self.daemon = daemon.Daemon(directory, f"  - {{{volume}, durability: {durability}}}\n")
        self._now = bytearray(SIZES[0])
        self._moments: dict[str, bytes] = {}  # oldest first
        self._names = 0

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(libiscsi.LibiscsiError):
            self._session.close()
        if self.daemon.process is not None:
            self.daemon.stop()

    def step(self) -> str:
        """Take a step, compare everything, and return what it was.  Raise Wrong."""
        kinds = {
            self._write: 6.0,
            self._write_on: 2.0,
            self._write_at_many_places: 2.0,
            self._unmap: 1.5,
            self._snapshot: 2.0,
            self._delete: 1.3,
            self._restore: 0.5,
            self._resize: 0.1,
            self._export: 0.6,
            self._diff: 0.5,
            self._verify: 0.4,
            self._restart: 0.2,
            self._kill: 0.5,
        }
        taken = self._rng.choices(list(kinds), list(kinds.values()))[0]()
        self.steps[taken.split(" ", maxsplit=1)[0]] += 1
        self._compare()
        return taken

    # The steps ------------------------------------------------------------------------------------------------------

    def _write(self) -> str:
        """Write anywhere, mostly little."""
        first, data = self._somewhere((1, 1, 3, 8, 8, 40, 300))
        self._put(first, data)
        return f"write {len(data)} bytes at {first * BLOCK}"

    def _write_on(self) -> str:
        """Write a run of adjacent ranges, one after the other."""
        count = self._rng.choice((1, 4, 8, 8, 16))
        first = self._rng.randrange(self._blocks)
        number = min(self._rng.randint(2, 24), (self._blocks - first) // count)
        for at in range(number):
            self._put(first + at * count, self._rng.randbytes(count * BLOCK))
        return f"sequential: {number} writes of {count * BLOCK} bytes from {first * BLOCK} on"

    def _write_at_many_places(self) -> str:
        """Write to some of the grains all over the volume."""
        grains = self._rng.sample(range(self._blocks // 8), self._rng.randint(2, 20))
        for grain in grains:
            self._put(grain * 8 + self._rng.randrange(8), self._rng.randbytes(BLOCK))
        return f"scattered: a block in each of {len(grains)} grains"

    def _unmap(self) -> str:
        ranges = [self._range((1, 8, 8, 30, 200)) for _ in range(self._rng.randint(1, 4))]
        self._discard(ranges)
        for first, count in ranges:
            self._now[first * BLOCK : (first + count) * BLOCK] = bytes(count * BLOCK)
        return f"unmap {ranges}"

    def _snapshot(self) -> str:
        if len(self._moments) == MOST_SNAPSHOTS:
            return self._delete()
        name = self._name()
        self._client.create_snapshot("v", name)
        self._moments[name] = bytes(self._now)
        return f"snapshot {name}"

    def _delete(self) -> str:
        if not self._moments:
            return self._snapshot()
        name = self._any_or_newest()
        job = self._client.delete_snapshot("v", name, force=True)
        beside = self._write_beside()
        self._end(job)
        del self._moments[name]
        return f"delete {name}, {beside}"

    def _write_beside(self) -> str:
        """Write while a job runs, perhaps."""
        if self._rng.random() < 0.3:
            return "alone"
        return " and ".join(self._write_at_many_places() for _ in range(self._rng.randint(1, 4)))

    def _restore(self) -> str:
        if not self._moments:
            return self._snapshot()
        name = self._rng.choice(list(self._moments))
        self._end(self._client.restore_snapshot("v", name, force=True))
        self._now[:] = self._restored(name)
        return f"restore {name}"

    def _resize(self) -> str:
        size = self._larger()
        if size == len(self._now):
            return self._write()
        self._client.resize_volume("v", size)
        self._now += bytes(size - len(self._now))
        return f"resize to {size}"

    def _export(self) -> str:
        """Export a snapshot, as a raw image or in two steps: an older one, and what changed since."""
        if not self._moments:
            return self._snapshot()
        names = list(self._moments)
        name = self._rng.choice(names)
        older = names[: names.index(name)]
        base, image, raw = (self._directory / f"exported.{kind}" for kind in ("base", "image", "raw"))
        for path in (base, image, raw):
            path.unlink(missing_ok=True)
        since = self._rng.choice([None, *older])
        if since is None:
            job = self._client.export("v", name, raw, overwrite=False)
            self._write_beside()
            self._end(job)
        else:
            self._end(self._client.export("v", since, base, overwrite=False, image_format="qcow2"))
            self._end(
                self._client.export("v", name, image, overwrite=False, image_format="qcow2", since=since, backing=base)
            )
            subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True, timeout=60)
        self._equal(f"the export of {name} since {since}", raw.read_bytes(), self._moments[name])
        return f"export {name} since {since}"

    def _diff(self) -> str:
        """Ask for the changes: all must be named, and with a comparison, nothing else."""
        if not self._moments:
            return self._snapshot()
        names = [*self._moments, None]
        first = self._rng.randrange(len(names) - 1)
        since, to = names[first], self._rng.choice(names[first + 1 :])
        assert since is not None
        exact = self._rng.random() < 0.5
        job = self._end(self._client.diff("v", since, messages.FindChanges(to, exact)))
        found = self._client.result(messages.Difference, job)
        old, new = self._moments[since], bytes(self._now) if to is None else self._moments[to]
        named = {grain for e in found.extents for grain in range(e.offset // 4096, -(-(e.offset + e.length) // 4096))}
        differing = {at // 4096 for at in range(0, len(new), 4096) if old[at : at + 4096] != new[at : at + 4096]}
        if differing - named or (exact and named - differing):
            raise Wrong(f"diff {since} {to}: grains {sorted(differing ^ named)} are named and equal, or the reverse")
        return f"diff from {since} to {to}"

    def _verify(self) -> str:
        if not self._moments:
            return self._snapshot()
        name = self._rng.choice(list(self._moments))
        found = self._client.result(messages.Verification, self._end(self._client.verify("v", name)))
        if not found.sound:
            raise Wrong(f"verify {name}: {found}")
        return f"verify {name}"

    def _restart(self) -> str:
        self._session.close()
        if (status := self.daemon.stop()) != 0:
            raise Wrong(f"the daemon ended with {status}")
        self._start()
        return "restart"

    def _kill(self) -> str:
        """Kill the daemon in the middle of another step, and accept either what was before that, or what would be after."""
        kinds = [self._killed_write, self._killed_unmap, self._killed_resize]
        if len(self._moments) < MOST_SNAPSHOTS:
            kinds += [self._killed_snapshot] * 2
        if self._moments:
            kinds += [self._killed_delete, self._killed_delete, self._killed_restore]
        what, act, resolve = self._rng.choice(kinds)()
        thread = threading.Thread(target=self._until_the_end, args=(act,))
        thread.start()
        time.sleep(self._rng.choice((0.0, 0.002, 0.01, 0.03, 0.1)) * self._rng.random())
        self.daemon.kill()
        thread.join()
        self._session.close()
        self._start()
        resolve()
        beside = self._write_beside()
        for job in self._client.jobs():
            self._end(job)  # a deletion or a rollback goes on
        return f"kill during: {what}; then {beside}"

    def _killed_write(self) -> tuple[str, Callable[[], object], Callable[[], None]]:
        first, data = self._somewhere((8, 40, 400))
        return (
            f"write of {len(data)} bytes at {first * BLOCK}",
            lambda: self._send(first, data),
            lambda: self._either([(first, data)]),
        )

    def _killed_unmap(self) -> tuple[str, Callable[[], object], Callable[[], None]]:
        ranges = [self._range((8, 30, 200)) for _ in range(3)]
        changes = [(first, bytes(count * BLOCK)) for first, count in ranges]
        return f"unmap {ranges}", lambda: self._discard(ranges), lambda: self._either(changes)

    def _killed_resize(self) -> tuple[str, Callable[[], object], Callable[[], None]]:
        size = self._larger()

        def resolve() -> None:
            if self._size() != len(self._now):
                self._now += bytes(size - len(self._now))

        return f"resize to {size}", lambda: self._client.resize_volume("v", size), resolve

    def _killed_snapshot(self) -> tuple[str, Callable[[], object], Callable[[], None]]:
        name = self._name()

        def resolve() -> None:
            if name in self._listed():
                self._moments[name] = bytes(self._now)

        return f"snapshot {name}", lambda: self._client.create_snapshot("v", name), resolve

    def _killed_delete(self) -> tuple[str, Callable[[], object], Callable[[], None]]:
        name = self._any_or_newest()

        def resolve() -> None:
            if name not in self._listed():
                del self._moments[name]

        return f"delete {name}", lambda: self._end(self._client.delete_snapshot("v", name, force=True)), resolve

    def _killed_restore(self) -> tuple[str, Callable[[], object], Callable[[], None]]:
        name = self._rng.choice(list(self._moments))

        def resolve() -> None:
            restored = self._restored(name)
            if self._read(0, len(self._now)) == restored:
                self._now[:] = restored

        return f"restore {name}", lambda: self._end(self._client.restore_snapshot("v", name, force=True)), resolve

    @staticmethod
    def _until_the_end(act: Callable[[], object]) -> None:
        with contextlib.suppress(client.Failed, libiscsi.LibiscsiError):
            act()

    # The model ------------------------------------------------------------------------------------------------------

    @property
    def _blocks(self) -> int:
        return len(self._now) // BLOCK

    def _name(self) -> str:
        self._names += 1
        return f"s{self._names}"

    def _any_or_newest(self) -> str:
        """Return a snapshot's name, most often the newest one's: while that is deleted, copies go to the next older one."""
        names = list(self._moments)
        return self._rng.choice(names) if self._rng.random() < 0.5 else names[-1]

    def _larger(self) -> int:
        return min(SIZES[1], len(self._now) + self._rng.randint(1, 60) * BLOCK)

    def _range(self, lengths: tuple[int, ...]) -> tuple[int, int]:
        """Return (first block, blocks)."""
        first = self._rng.randrange(self._blocks)
        if self._rng.random() < 0.5:
            first -= first % 8
        return first, min(self._rng.choice(lengths), self._blocks - first)

    def _somewhere(self, lengths: tuple[int, ...]) -> tuple[int, bytes]:
        first, count = self._range(lengths)
        return first, self._rng.randbytes(count * BLOCK)

    def _restored(self, name: str) -> bytes:
        """Return the volume as a rollback makes it: what has grown since is zeroes."""
        return self._moments[name] + bytes(len(self._now) - len(self._moments[name]))

    def _either(self, changes: list[tuple[int, bytes]]) -> None:
        """Take over which of the blocks that a killed command was to change have changed."""
        seen = self._read(0, len(self._now))
        for first, data in changes:
            for at in range(0, len(data), BLOCK):
                place = first * BLOCK + at
                if seen[place : place + BLOCK] == data[at : at + BLOCK]:
                    self._now[place : place + BLOCK] = data[at : at + BLOCK]

    def _compare(self) -> None:
        """Read the volume and all views, and compare them byte by byte.  Raise Wrong."""
        if (size := self._size()) != len(self._now):
            raise Wrong(f"the volume has {size} bytes instead of {len(self._now)}")
        self._equal("the volume", self._read(0, size), self._now)
        listed = self._listed()
        if list(listed) != list(self._moments):
            raise Wrong(f"there are the snapshots {list(listed)} instead of {list(self._moments)}")
        for name, content in self._moments.items():
            shown = listed[name]
            if shown.state != "active" or shown.size != len(content) or shown.view_lun is None:
                raise Wrong(f"snapshot {name}: {shown}")
            self._equal(f"the view of {name}", self._read(shown.view_lun, len(content)), content)

    @staticmethod
    def _equal(what: str, seen: bytes, expected: bytes | bytearray) -> None:
        if seen != expected:
            wrong = [
                at
                for at in range(0, max(len(seen), len(expected)), BLOCK)
                if seen[at : at + BLOCK] != expected[at : at + BLOCK]
            ]
            raise Wrong(f"{what}: {len(wrong)} blocks are wrong, the first ones at {wrong[:8]}")

    # The daemon -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.daemon.start()
        self._client = client.Client(self.daemon.state)
        self._session = self.daemon.session()

    def _end(self, job: messages.Job) -> messages.Job:
        """Wait for the end of a job, and return it.  Raise Wrong if it failed."""
        *_, job = self._client.watch(job)
        if job.state != "done":
            raise Wrong(f"job {job}")
        return job

    def _listed(self) -> dict[str, messages.Snapshot]:
        return {shown.name: shown for shown in self._client.snapshots("v") if shown.state != "deleting"}

    def _put(self, first: int, data: bytes) -> None:
        self._send(first, data)
        self._now[first * BLOCK : first * BLOCK + len(data)] = data

    def _send(self, first: int, data: bytes) -> None:
        self._command(0, struct.pack(">BBQIBB", 0x8A, 0, first, len(data) // BLOCK, 0, 0), out=data)

    def _discard(self, ranges: list[tuple[int, int]]) -> None:
        """Send UNMAP (SBC-4 5.34)."""
        descriptors = b"".join(struct.pack(">QI4x", first, count) for first, count in ranges)
        data = struct.pack(">HH4x", len(descriptors) + 6, len(descriptors)) + descriptors
        self._command(0, struct.pack(">BB4xBHB", 0x42, 0, 0, len(data), 0), out=data)

    def _read(self, lun: int, size: int) -> bytes:
        parts = []
        for first in range(0, size // BLOCK, _PIECE):
            count = min(_PIECE, size // BLOCK - first)
            cdb = struct.pack(">BBQIBB", 0x88, 0, first, count, 0, 0)
            parts.append(self._command(lun, cdb, read=count * BLOCK).data)
        return b"".join(parts)

    def _size(self) -> int:
        """Return the bytes of the volume (READ CAPACITY (16), SBC-4 5.20)."""
        answer = self._command(0, bytes([0x9E, 0x10]) + bytes(11) + bytes([32]) + bytes(2), read=32)
        return (int.from_bytes(answer.data[:8], "big") + 1) * int.from_bytes(answer.data[8:12], "big")

    def _command(self, lun: int, cdb: bytes, *, out: bytes = b"", read: int = 0) -> libiscsi.Answer:
        """Send a command, again after unit attentions.  Raise Wrong if it fails."""
        for _ in range(16):
            answer = self._session.command(lun, cdb, out=out, read=read)
            if answer.status != 0x02 or answer.key != _UNIT_ATTENTION:
                break
        if answer.status != 0:
            raise Wrong(f"LUN {lun}, command {cdb.hex()}: status {answer.status:#x}, sense {answer.sense.hex()}")
        return answer
