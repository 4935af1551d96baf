# SPDX-License-Identifier: Apache-2.0
"""The identity of an exported image: the volume and the snapshot whose content it shows.

An image of the changes shows the right content only on top of the image of the right older snapshot.  Names do not say
which that is: a name is used again after a deletion, and each volume has its own `monday`.  So an image carries the
UUIDs.

| format | place of the identity                                                | counts until                                  |
| ------ | -------------------------------------------------------------------- | --------------------------------------------- |
| qcow2  | an extension of the header (see `qcow2`), which QEMU keeps           | QEMU opens the image for writing, and clears  |
|        |                                                                      | an autoclear bit                              |
| raw    | the extended attribute `ATTRIBUTE` of the file, which `mv` and       | the file has another size or time of its last |
|        | `cp -a` keep; and the file `FILE.wolun` beside it, because many file | change                                        |
|        | systems and programs drop attributes                                 |                                               |
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import pydantic

from lun_backends.files import os_error, small_file
from target.exports import qcow2

log = logging.getLogger(__name__)

ATTRIBUTE = "user.wolun.image"
_SUFFIX = ".wolun"
_MAX = 4096
_TOLERANCE = 2_000_000_000
"""Nanoseconds: file systems and archives round the time of the last change, some to two seconds."""


class Unknown(Exception):
    """It is unknown which snapshot an image shows; the text has the reason."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The snapshot that an image shows.

    `since_uuid` is the snapshot of the image below it, empty if there is none or its snapshot was unknown.  `modified`
    is the time of the last change of a raw file, in nanoseconds since 1970.
    """

    volume: str
    volume_uuid: str
    snapshot: str
    snapshot_uuid: str
    size: int
    since_uuid: str = ""
    damaged_bytes: int = 0
    modified: int = 0

    def encoded(self) -> bytes:
        """Return the identity in the form that images carry."""
        return _FORM.dump_json(self)


_FORM = pydantic.TypeAdapter(Identity)


def of(path: Path) -> Identity:
    """Return the identity of the image at `path`, raw or qcow2.  Raises Unknown, OSError."""
    if qcow2.virtual_size(path)[1] == "qcow2":
        note, unchanged = qcow2.note(path)
        if note is None:
            raise Unknown("it carries no identity")
        if not unchanged:
            raise Unknown("a program has opened it for writing since it was exported")
        return _decoded(note)
    found = path.stat()
    notes = list(filter(None, (_attribute(path), _beside(path))))
    if not notes:
        raise Unknown("it carries no identity")
    for note in notes:
        identity = _decoded(note)
        if identity.size == found.st_size and abs(identity.modified - found.st_mtime_ns) <= _TOLERANCE:
            return identity
    raise Unknown("it was changed or copied since it was exported (`cp -a` keeps what is needed)")


def mark_raw(fd: int, identity: Identity) -> Identity:
    """Write the identity into the attribute of a complete raw file, if it can have one.

    Return the identity with the file's time.  Raises OSError.
    """
    timed = dataclasses.replace(identity, modified=os.fstat(fd).st_mtime_ns)
    with contextlib.suppress(OSError):  # many file systems have none; the file beside it says the same
        os.setxattr(fd, ATTRIBUTE, timed.encoded())
    return timed


def write_beside(path: Path, identity: Identity) -> None:
    """Write the identity into the file beside the raw image at `path`, unless a file of another kind is there."""
    place = _place(path)
    try:
        if os.path.lexists(place):
            _decoded(_beside(path) or b"")
        small_file.replace(place, identity.encoded() + b"\n", 0o600)
    except Unknown:
        log.warning("%s is not written: another file is there", place)
    except OSError as error:
        log.warning("%s is not written: %s", place, os_error.reason(error))


def _place(path: Path) -> Path:
    return path.with_name(f"{path.name}{_SUFFIX}")


def _attribute(path: Path) -> bytes | None:
    try:
        return os.getxattr(path, ATTRIBUTE)
    except OSError:
        return None


def _beside(path: Path) -> bytes | None:
    """Return the content of the file beside an image; None if there is no such regular file."""
    try:
        fd = os.open(_place(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(fd, "rb") as file:
        try:
            return file.read(_MAX)
        except OSError:
            return None


def _decoded(note: bytes) -> Identity:
    """Return the identity in a note.  Raises Unknown."""
    try:
        return _FORM.validate_json(note)
    except pydantic.ValidationError:
        raise Unknown("its identity cannot be read") from None
