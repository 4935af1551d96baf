# SPDX-License-Identifier: Apache-2.0
"""The stores of a volume in files of one directory: a chunk map with a chunk file (`thin`), or with a log (`log`).

New stores are of one kind.  Existing ones say themselves what they are, by the format of their map.  So the snapshots of
a volume may be of both kinds, and read and deleted together.

A store is converted (`contract.Convertible`) into a draft, in files NAME.new.*.  The files of both kinds differ only by
the suffix of their data, so one step puts the draft in place: its map is renamed over that of the store.

| step                              | the next open finds, and removes as leftovers                       |
| --------------------------------- | ------------------------------------------------------------------- |
| make the draft, fill it, close it | the store; the draft                                                |
| rename the draft's data           | the store; its map says that the other data file is not its own     |
| rename the draft's map            | the draft, as the store; the store's data                           |
| remove the store's data           | the draft, as the store                                             |
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Container
from pathlib import Path

from lun_backends.durability import Durability
from lun_backends.files import os_error, storage_io
from lun_backends.stores import contract, log, log_map, maps, store_file, thin
from lun_backends.stores.settings import Kind
from lun_backends.stores.space import Space

_SUFFIXES = (".map", ".chunks", ".log", ".outside")
_DATA = {Kind.MAP: ".chunks", Kind.LOG: ".log"}
_FILES = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(\.new)?\.(?:map|chunks|log|outside)")


class LocalStores:
    """The stores in a directory, new ones of a kind, MAP or LOG; see `contract.Stores`."""

    def __init__(self, directory: Path, kind: Kind = Kind.MAP, io: storage_io.StorageIO = storage_io.SYSTEM) -> None:
        self.directory = directory
        self.kind = kind
        self._io = io

    def check(self, *, new: bool) -> None:
        """Return: a chunk map is right on every file system."""

    def create(self, geometry: contract.Geometry, *, durability: Durability, space: Space) -> contract.Store:
        path = self._path(geometry.snapshot)
        return create(self.kind, path, geometry, durability=durability, io=self._io, space=space)

    def open(self, snapshot: uuid.UUID, *, durability: Durability, space: Space) -> contract.Store:
        store = open_existing(self._path(snapshot), durability=durability, io=self._io, space=space)
        self.discard_replaced(snapshot, self.kind_of(store))  # a crash may have left it
        return store

    def remove(self, snapshot: uuid.UUID) -> None:
        remove(self._path(snapshot), self._io)

    def remove_leftovers(self, named: Container[uuid.UUID]) -> None:
        for path in sorted(self.directory.glob("*")):
            match = _FILES.fullmatch(path.name)
            if match is not None and (match[2] or uuid.UUID(match[1]) not in named):
                with contextlib.suppress(OSError):  # the file only costs space, and the next open tries again
                    self._io.unlink(path)

    def clear(self) -> None:
        self.remove_leftovers(())

    def close(self) -> None:
        """Do nothing: every file belongs to a store."""

    def sync(self, snapshot: uuid.UUID) -> None:
        path = self._path(snapshot)
        for suffix in (".log", ".chunks", ".map"):  # data before what says where it is
            with contextlib.suppress(FileNotFoundError):
                fd = self._io.open(path.with_name(path.name + suffix), os.O_RDWR)
                try:
                    self._io.fdatasync(fd)
                finally:
                    self._io.close(fd)

    # Conversion: see `contract.Convertible`

    def kind_of(self, store: contract.Store) -> Kind:
        return Kind.LOG if isinstance(store, log.LogStore) else Kind.MAP

    def draft(self, geometry: contract.Geometry) -> contract.Store:
        self.discard_draft(geometry.snapshot)
        path = self._draft(geometry.snapshot)
        return create(self.kind, path, geometry, durability=Durability.POWER_LOSS, io=self._io)

    def put_in_place(self, snapshot: uuid.UUID, *, durability: Durability, space: Space) -> contract.Store:
        draft, path = self._draft(snapshot), self._path(snapshot)
        data = next(suffix for suffix in _DATA.values() if draft.with_name(draft.name + suffix).exists())
        try:
            for suffix in (data, ".map"):
                self._io.rename(draft.with_name(draft.name + suffix), path.with_name(path.name + suffix))
        except OSError as error:
            raise store_file.typed(path, error) from error
        try:
            self._io.fsync_directory(self.directory)
        except OSError as error:
            raise contract.Unsettled(path, os_error.reason(error)) from error
        try:
            return open_existing(path, durability=durability, io=self._io, space=space)
        except contract.StoreError as error:
            raise contract.Unsettled(path, str(error)) from error

    def discard_draft(self, snapshot: uuid.UUID) -> None:
        remove(self._draft(snapshot), self._io)

    def discard_replaced(self, snapshot: uuid.UUID, by: Kind) -> None:
        for kind, suffix in _DATA.items():
            if kind is not by:
                with contextlib.suppress(OSError):  # the file only costs space, and the next open tries again
                    self._io.unlink(self.directory / f"{snapshot}{suffix}")

    def _draft(self, snapshot: uuid.UUID) -> Path:
        return self.directory / f"{snapshot}.new"

    def _path(self, snapshot: uuid.UUID) -> Path:
        return self.directory / str(snapshot)


def create(
    kind: Kind,
    path: Path,
    geometry: contract.Geometry,
    *,
    durability: Durability,
    io: storage_io.StorageIO = storage_io.SYSTEM,
    space: Space | None = None,
) -> contract.Store:
    """Make an empty store in the files `path`.  Raises StoreUnavailable, SpaceExhausted, ValueError (geometry)."""
    if kind is Kind.LOG:
        return log.LogStore.create(path, log.superblock(geometry), durability=durability, io=io, space=space)
    return thin.ThinStore.create(path, thin.superblock(geometry), durability=durability, io=io, space=space)


def open_existing(
    path: Path, *, durability: Durability, io: storage_io.StorageIO = storage_io.SYSTEM, space: Space | None = None
) -> contract.Store:
    """Open the store in the files `path`.  Raises StoreMissing, StoreUnavailable, StoreLocked, StoreDamaged, StoreNewer."""
    found = maps.open_existing(thin.files(path)[0], io)
    try:
        if isinstance(found, log_map.LogMap):
            return log.LogStore.open_with(found, path, durability=durability, io=io, space=space)
        return thin.ThinStore.open_with(found, path, durability=durability, io=io, space=space)
    except BaseException:
        found.close()
        raise


def remove(path: Path, io: storage_io.StorageIO = storage_io.SYSTEM) -> None:
    """Delete the files of a closed store that exist, durably.  Raises StoreUnavailable."""
    for suffix in _SUFFIXES:
        file = path.with_name(path.name + suffix)
        try:
            io.unlink(file)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise store_file.typed(file, error) from error
    io.fsync_directory(path.parent)
