# SPDX-License-Identifier: Apache-2.0
"""The identity of a volume's primary, by which the volume notices changes of the primary that it did not make.

A snapshot shows the primary wherever it has no copy of its own.  So it is true only if this volume alone writes to the
primary, and if primary and snapshots are of the same moment.  The manifest records the facts by which the primary is
recognised, and the next open compares them.  If something differs, the snapshots become *doubtful*, until the
administrator accepts them.

The *generation* ties manifest and primary together.  It is a number and a random text, in the manifest and in an
extended attribute of the primary.  It changes with every open and every clean close, so the volume finds an older copy
of either.

| step                 | manifest: generation, next | attribute      | clean |
| -------------------- | -------------------------- | -------------- | ----- |
| closed               | a, -                       | a              | yes   |
| open: store          | a, b                       | a              | no    |
| open: set, store     | b, -                       | b              | no    |
| close: store         | b, c                       | b              | no    |
| close: set, store    | c, -                       | c              | yes   |

A crash leaves one of these lines or a step between two.  In each, the attribute is one of the two in the manifest.

| compared           | after a clean close                            | after a crash                                           |
| ------------------ | ---------------------------------------------- | ------------------------------------------------------- |
| generation         | yes                                            | yes                                                     |
| which file or disk | yes; a copy with attribute and times counts as | yes, and a copy counts as another one: nothing tells    |
|                    | the same, because nothing wrote to it since    | whether it was made before the volume's last write      |
| size, change time  | yes                                            | no: the volume's own writes came after the record       |
| sectors written    | of a disk, within one boot                     | no                                                      |

A record without a generation (a disk, a file system without attributes) is compared by the other facts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import secrets
import uuid
from collections.abc import Iterable, Mapping

import pydantic

from lun_backends.files import facts, storage_io
from lun_backends.volumes import boot

_SECOND = 1_000_000_000


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class Identity:
    """The facts about a primary (`facts.Facts`), as the volume last saw them.

    `next` is a generation that the primary may have already.  `clean` says that the volume has not written to the
    primary since the record was made.
    """

    clean: bool
    boot: str
    is_disk: bool
    size: int
    generation: str = ""
    next: str = ""
    device: str = ""
    inode: int = 0
    changed: int = 0
    modified: int = 0
    ids: dict[str, str] = dataclasses.field(default_factory=dict)
    sequence: str = ""
    written: int | None = None


def record(seen: facts.Facts, *, generation: str, following: str = "", clean: bool = False) -> Identity:
    """Return the record of a primary as it was seen."""
    return Identity(
        clean=clean,
        boot=boot.current(),
        is_disk=seen.is_disk,
        size=seen.size,
        generation=generation,
        next=following,
        device=seen.device,
        inode=seen.inode,
        changed=seen.changed,
        modified=seen.modified,
        ids=dict(seen.ids or {}),
        sequence=seen.sequence,
        written=seen.written,
    )


def following(generation: str) -> str:
    """Return a generation that comes after `generation` and was never used before."""
    return f"{_count(generation) + 1} {secrets.token_hex(8)}"


def mark_of(volume: uuid.UUID, generation: str) -> str:
    """Return the mark of a primary of `volume` in that generation."""
    return f"{volume} {generation}"


def move(fd: int, volume: uuid.UUID, generation: str, io: storage_io.StorageIO) -> str:
    """Give the primary a generation, durably.  Return the one that it has then; empty if it can have none.

    Raises OSError of the sync.
    """
    if facts.set_mark(fd, mark_of(volume, generation), io):
        return generation
    return _generation(facts.observe(fd, io).mark, volume)


def difference(known: Identity, seen: facts.Facts, volume: uuid.UUID) -> str:
    """Return why the primary may have changed since the volume left it; an empty text if nothing suggests that.

    The text continues "its primary ...".
    """
    if known.is_disk != seen.is_disk:
        return "is a file now, and was a disk" if known.is_disk else "is a disk now, and was a file"
    return _of_disk(known, seen) if seen.is_disk else _of_file(known, seen, volume)


def _of_file(known: Identity, seen: facts.Facts, volume: uuid.UUID) -> str:
    if reason := _of_mark(known, seen, volume):
        return reason
    tied = bool(known.generation) and bool(seen.mark)
    if known.inode and seen.inode and known.inode != seen.inode:
        if tied and known.clean and known.size == seen.size and _same_time(known.modified, seen.modified):
            return ""
        return f"is another file: it has inode {seen.inode}, and was inode {known.inode}"
    if not tied and known.boot == boot.current() and _differ(map(_fixed, (known.device, seen.device))):
        return f"is on another file system: it is on device {seen.device}, and was on {known.device}"
    if not known.clean:
        return ""
    if known.size != seen.size:
        return f"has {seen.size} bytes, and had {known.size}"
    if known.changed != seen.changed:
        same = "; its modification time is the same" if known.modified == seen.modified else ""
        return f"was changed at {_moment(seen.changed)}, after the volume was closed at {_moment(known.changed)}{same}"
    return ""


def _of_mark(known: Identity, seen: facts.Facts, volume: uuid.UUID) -> str:
    if not known.generation or not seen.marks:
        return ""
    if not seen.mark:
        return "has no mark of wolun: it is another file, or a copy without extended attributes"
    if not seen.mark.startswith(f"{volume} "):
        other = seen.mark.partition(" ")[0]
        return f"was used by another volume, {other}"
    now = _generation(seen.mark, volume)
    if now in (known.generation, known.next):
        return ""
    was, is_ = _count(known.generation), _count(now)
    if is_ > was:
        return f"is newer than the state of the volume: it has generation {is_}, the state {was}"
    if is_ < was:
        return f"is older than the state of the volume: it has generation {is_}, the state {was}"
    return f"was used with another copy of the volume's state since generation {was - 1}"


def _of_disk(known: Identity, seen: facts.Facts) -> str:
    ids = seen.ids or {}
    for key, was in known.ids.items():
        if key in ids and ids[key] != was:
            return f"is another disk: its {key.rpartition('/')[2]} is {ids[key]!r}, and was {was!r}"
    if seen.size < known.size:
        return f"has {seen.size} bytes, and had {known.size}"
    if known.boot != boot.current():
        return ""
    if _differ((known.sequence, seen.sequence)):
        return "" if _named(known.ids, ids) else "is another disk: it appeared after the volume was closed"
    if known.clean and known.written is not None and seen.written is not None and known.written != seen.written:
        return f"was written to after the volume was closed: {seen.written - known.written} sectors"
    return ""


def same(known: Identity | None, seen: facts.Facts, volume: uuid.UUID) -> bool:
    """Return whether something proves that this is the primary, as the volume left it, even in another place."""
    if known is None or difference(known, seen, volume):
        return False
    if seen.is_disk:
        return _named(known.ids, seen.ids or {})
    return bool(known.generation and seen.mark) or (known.clean and bool(known.inode))


def _named(was: Mapping[str, str], is_: Mapping[str, str]) -> bool:
    """Return whether two disks have names of the same kind; the number of a partition names nothing by itself."""
    return bool((was.keys() & is_.keys()) - {"partition"})


def _generation(mark: str, volume: uuid.UUID) -> str:
    """Return the generation in the mark of a primary; empty if the mark is not one of `volume`."""
    prefix = f"{volume} "
    return mark.removeprefix(prefix) if mark.startswith(prefix) else ""


def _count(generation: str) -> int:
    with contextlib.suppress(ValueError):
        return int(generation.partition(" ")[0])
    return 0


def _differ(pair: Iterable[str]) -> bool:
    first, second = pair
    return bool(first) and bool(second) and first != second


def _fixed(device: str) -> str:
    """Return a device number; empty if it is one that changes with each mount."""
    return "" if device.startswith("0:") else device


def _same_time(was: int, is_: int) -> bool:
    """Return whether a copy's modification time is the original's; some tools copy only the seconds."""
    return was == is_ or (is_ % _SECOND == 0 and was // _SECOND == is_ // _SECOND)


def _moment(nanoseconds: int) -> str:
    moment = datetime.datetime.fromtimestamp(nanoseconds / _SECOND, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
