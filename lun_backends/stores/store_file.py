# SPDX-License-Identifier: Apache-2.0
"""A file of a store: how it is opened, and the typed errors for all its faults."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lun_backends import block_device
from lun_backends.files import format as format_
from lun_backends.files import os_error, storage_io

RESTORE = "restore map and chunk file together from a backup, or delete the snapshot"
"""The remedy for damage."""


class StoreError(block_device.BlockDeviceError):
    """A store cannot be created or opened."""


@dataclass(eq=False)
class StoreDamaged(StoreError):
    """The store at `path` is damaged: `field` is the faulty part, `fault` its fault, and `remedy` the remedy."""

    path: Path | str
    field: str
    fault: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.field}: {self.fault}; {self.remedy}"


@dataclass(eq=False)
class StoreNewer(StoreError):
    """The file at `path` has the format `found`, and this version knows formats up to `known`; nothing is damaged."""

    path: Path
    found: int
    known: int

    def __str__(self) -> str:
        return f"{self.path}: {format_.newer_than(self.found, self.known)}; {format_.REMEDY}"


@dataclass(eq=False)
class StoreLocked(StoreError):
    """Another process, or another part of this one, has the store open."""

    path: Path

    def __str__(self) -> str:
        return (
            f"{self.path} is in use by another owner; stop the other daemon, or give this one its own state directory"
        )


@dataclass(eq=False)
class StoreMissing(StoreError):
    """There is no store at `path`."""

    path: Path | str

    def __str__(self) -> str:
        return f"{self.path} does not exist; restore the file, or delete the snapshot it belongs to"


@dataclass(eq=False)
class StoreUnavailable(StoreError):
    """The store at `path` cannot be made, opened or mapped; `reason` is the system's reason."""

    path: Path | str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(eq=False)
class StoreUnfit(StoreError):
    """No store can be at `place`, because of what it is; `reason` says why."""

    place: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}; {self.remedy}"


@dataclass(eq=False)
class Unsettled(StoreError):
    """It is not known which of two stores of the same content is at `path` after a power cut; `reason` says why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}; restart the daemon: then the snapshot takes blocks of newer ones again"


@contextlib.contextmanager
def opened(io: storage_io.StorageIO, path: Path, flags: int) -> Iterator[int]:
    """Open a store's file, and close it again if the body raises.  Raises StoreMissing, StoreUnavailable."""
    try:
        fd = io.open(path, flags)
    except FileNotFoundError as error:
        raise StoreMissing(path) from error
    except OSError as error:
        raise StoreUnavailable(path, os_error.reason(error)) from error
    try:
        yield fd
    except BaseException:
        io.close(fd)
        raise


def typed(path: Path, error: OSError) -> block_device.BlockDeviceError:
    """Return the typed error for a system call on a store's file that failed."""
    if error.errno in storage_io.NO_SPACE:
        return block_device.SpaceExhausted(0)
    return StoreUnavailable(path, os_error.reason(error))
