# SPDX-License-Identifier: Apache-2.0
"""The kinds of stores, and the one place that knows them by name."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

from lun_backends.durability import Durability
from lun_backends.files import storage_io
from lun_backends.stores import contract, engine, engine_store, local, rados, sparse, thin
from lun_backends.stores.settings import DEFAULT, Kind, Settings

NOBODY = uuid.UUID(int=0)


def stores(
    directory: Path,
    volume: uuid.UUID = NOBODY,
    settings: Settings = DEFAULT,
    io: storage_io.StorageIO = storage_io.SYSTEM,
) -> contract.Stores:
    """Return the stores of a volume; those in local files are in `directory`.  Only other kinds ask whose they are.

    Raises StoreUnfit.
    """
    match settings.kind:
        case Kind.MAP | Kind.LOG:
            return local.LocalStores(directory, settings.kind, io)
        case Kind.SPARSE:
            return sparse.SparseStores(directory, io)
        case Kind.OBJECTS | Kind.RADOS:
            return engine_store.EngineStores(volume, engine_of(settings, volume))


def engine_of(settings: Settings, volume: uuid.UUID) -> engine.Engine:
    """Return the engine of a volume; it has not connected yet.  Raises StoreUnfit."""
    match settings.kind:
        case Kind.OBJECTS:
            if settings.objects is None:
                raise contract.StoreUnfit("objects", "the URL is missing", "open the volume with its configuration")
            try:
                from lun_backends.stores import object_storage
            except ImportError as error:
                needs = "the Python package obstore is missing"
                raise contract.StoreUnfit(settings.objects.url, needs, "pip install 'wolun[objects]'") from error
            return object_storage.ObjectStorage.open(settings.objects, volume)
        case Kind.RADOS:
            if settings.rados is None:
                raise contract.StoreUnfit("rados", "the pool is missing", "open the volume with its configuration")
            return rados.RadosEngine(settings.rados, volume)
        case _:
            raise ValueError(f"{settings.kind.value} is no engine")


def left_in(directory: Path) -> bool:
    """Return whether a local directory has a store, of whatever volume."""
    return any(path.suffix in (".map", ".sparse") for path in directory.glob("*"))


def lone(path: Path, geometry: Callable[[], contract.Geometry], durability: Durability) -> contract.Store:
    """Open the store in the files `path`, which belongs to no volume of this host; make it first if it does not exist.

    Raises StoreError, SpaceExhausted, ValueError (geometry).
    """
    if thin.files(path)[0].exists():
        return local.open_existing(path, durability=durability)
    return local.create(DEFAULT.kind, path, geometry(), durability=durability)
