# SPDX-License-Identifier: Apache-2.0
"""The kinds of stores, and the one place that knows them by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lun_backends.durability import Durability
from lun_backends.files import storage_io
from lun_backends.stores import contract, thin


def stores(directory: Path, io: storage_io.StorageIO = storage_io.SYSTEM) -> contract.Stores:
    """Return the stores of a volume, in files of `directory`."""
    return thin.ThinStores(directory, io)


def lone(path: Path, geometry: Callable[[], contract.Geometry], durability: Durability) -> contract.Store:
    """Open the store in the files `path`, which belongs to no volume of this host; make it first if it does not exist.

    Raises StoreError, SpaceExhausted, ValueError (geometry).
    """
    if thin.files(path)[0].exists():
        return thin.ThinStore.open(path, durability=durability)
    return thin.ThinStore.create(path, thin.superblock(geometry()), durability=durability)
