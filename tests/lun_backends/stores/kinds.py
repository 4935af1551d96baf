# SPDX-License-Identifier: Apache-2.0
"""The kinds of stores, for the tests that each kind has to pass."""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import obstore.store

from lun_backends.durability import Durability
from lun_backends.stores import contract, engine_store, object_storage, opening, rados, settings, space, sparse
from tests import ceph, object_servers
from tests.lun_backends.stores import disk

BLOCK = 512
VOLUME = uuid.UUID(int=2)


def _nowhere(_path: Path, _address: str) -> contract.Stores:
    raise NotImplementedError("one process at a time has a store of this kind")


@dataclass(frozen=True)
class Kind:
    """A kind of store: how the stores of a volume are made in a directory, and what the kind can do."""

    stores: Callable[[Path], contract.Stores]
    chunk_size: int = 8192
    checksums: bool = True
    marks: bool = True
    local: bool = True
    whole: bool = True  # nothing is stored of a put that is refused
    address: Callable[[], str] = str  # of the service, for other processes
    connect: Callable[[Path, str], contract.Stores] = _nowhere


_MEMORY: dict[Path, obstore.store.MemoryStore] = {}


def objects(path: Path) -> contract.Stores:
    """Return stores in an object store in this process's memory."""
    memory = _MEMORY.setdefault(path, obstore.store.MemoryStore())
    volume = uuid.UUID(int=2)
    return engine_store.EngineStores(volume, object_storage.ObjectStorage(memory, volume, "memory"))


def at_gateway(
    path: Path, address: str, volume: uuid.UUID = VOLUME, timeout: float = 30.0
) -> engine_store.EngineStores:
    """Return stores in Ceph's S3 gateway; each path has a prefix of its own."""
    credentials = path / "s3.env"
    credentials.write_text(f"AWS_ACCESS_KEY_ID={ceph.KEY}\nAWS_SECRET_ACCESS_KEY={ceph.SECRET}\n", encoding="ascii")
    prefix = path.as_posix().strip("/").replace("/", "-")
    place = settings.Objects(f"s3://bucket/{prefix}", address, "us-east-1", credentials, timeout)
    return engine_store.EngineStores(volume, object_storage.ObjectStorage.open(place, volume))


@functools.cache
def server(name: str) -> object_servers.Server:
    """Return a server of this test run, `moto` or `azurite`; it ends with the run."""
    directory = tempfile.mkdtemp(prefix=f"wolun-{name}-")
    closing = contextlib.ExitStack()
    closing.callback(shutil.rmtree, directory, ignore_errors=True)
    atexit.register(closing.close)
    run = {"moto": object_servers.moto, "azurite": object_servers.azurite}[name]
    return closing.enter_context(run(Path(directory)))


def at_server(path: Path, address: str, volume: uuid.UUID = VOLUME) -> engine_store.EngineStores:
    """Return stores in a server; its address is the URL and the endpoint, and each path has a prefix of its own."""
    url, _, endpoint = address.partition(" ")
    credentials = path / "credentials"
    prefix = path.as_posix().strip("/").replace("/", "-")
    region = "us-east-1" if url.startswith("s3:") else ""  # Azure has none
    place = settings.Objects(f"{url}/{prefix}", endpoint, region, credentials)
    return engine_store.EngineStores(volume, object_storage.ObjectStorage.open(place, volume))


def _served(name: str) -> Kind:
    def address() -> str:
        return f"{server(name).url} {server(name).endpoint}"

    def stores(path: Path) -> engine_store.EngineStores:
        (path / "credentials").write_text(server(name).credentials, encoding="ascii")
        return at_server(path, address())

    return Kind(stores, marks=False, local=False, whole=False, address=address, connect=at_server)


def in_pool(
    path: Path, conf: str, volume: uuid.UUID = VOLUME, timeout: float = 30.0, pool: str = ceph.Cluster.POOL
) -> engine_store.EngineStores:
    """Return stores in a pool of Ceph; each path has a namespace of its own."""
    place = settings.Rados(pool, path.as_posix(), "admin", Path(conf), timeout)
    return engine_store.EngineStores(volume, rados.RadosEngine(place, volume))


KINDS: Mapping[str, Kind] = {
    "map": Kind(lambda path: opening.stores(path, uuid.UUID(int=2))),
    "log": Kind(lambda path: opening.stores(path, VOLUME, settings.Settings(settings.Kind.LOG))),
    "objects": Kind(objects, marks=False, local=False, whole=False),
    "gateway": Kind(
        lambda path: at_gateway(path, ceph.gateway()),
        marks=False,
        local=False,
        whole=False,
        address=ceph.gateway,
        connect=at_gateway,
    ),
    "rados": Kind(
        lambda path: in_pool(path, str(ceph.cluster().conf)),
        marks=False,
        local=False,
        whole=False,
        address=lambda: str(ceph.cluster().conf),
        connect=in_pool,
    ),
    "sparse": Kind(lambda path: sparse.SparseStores(disk.with_journal(path)), checksums=False),
}

SERVED: Mapping[str, Kind] = {"moto": _served("moto"), "azurite": _served("azurite")}
"""Kinds whose servers take minutes for a whole suite: `make stores` lets them pass it."""

ALL: Mapping[str, Kind] = {**KINDS, **SERVED}


def geometry(kind: Kind, chunks: int = 8, *, cut: int = 0, block_size: int = BLOCK) -> contract.Geometry:
    """Return the geometry of a new store of `chunks` chunks, the last one `cut` bytes shorter."""
    return contract.Geometry(
        uuid.uuid4(), uuid.UUID(int=2), chunks * kind.chunk_size - cut, block_size, kind.chunk_size
    )


def create(
    stores: contract.Stores,
    of: contract.Geometry,
    durability: Durability = Durability.POWER_LOSS,
    counted: space.Space | None = None,
) -> contract.Store:
    """Make a store."""
    return stores.create(of, durability=durability, space=counted or space.Space())


def reopen(
    stores: contract.Stores,
    snapshot: uuid.UUID,
    durability: Durability = Durability.POWER_LOSS,
    counted: space.Space | None = None,
) -> contract.Store:
    """Open a store."""
    return stores.open(snapshot, durability=durability, space=counted or space.Space())


def data(seed: int, length: int) -> bytes:
    """Return `length` bytes that differ from those of other seeds, and from sector to sector."""
    return b"".join((seed << 32 | at).to_bytes(8, "little") * 64 for at in range(-(-length // 512)))[:length]


def put(store: contract.Store, offset: int, content: bytes) -> bool:
    """Put bytes; return whether they were stored."""
    return put_many(store, [(offset, content)]) == [True]


def put_many(store: contract.Store, requests: list[tuple[int, bytes]]) -> list[bool]:
    """Put bytes at each offset with one commit; return for each whether it was stored."""
    puts = (
        contract.Put(
            offset // store.block_size,
            len(content) // store.block_size,
            [memoryview(content)[:512], memoryview(content)[512:]],
        )
        for offset, content in requests
    )
    return [result is None for result in store.put_many(puts)]


def read(store: contract.Store, offset: int, length: int) -> bytes:
    """Read bytes."""
    buffer = bytearray(length)
    view = memoryview(buffer)
    store.reader.read(
        offset // store.block_size, length // store.block_size, [view[: length // 2], view[length // 2 :]]
    )
    return bytes(buffer)


def written(store: contract.Store) -> list[tuple[int, int]]:
    """Return the written extents, (offset, length) in bytes."""
    of = store.block_size
    extents = list(store.extents(0, store.size // of))
    assert sum(blocks for _, blocks, _ in extents) * of == store.size
    assert all(a[0] + a[1] == b[0] and a[2] is not b[2] for a, b in itertools.pairwise(extents))
    return [(first * of, blocks * of) for first, blocks, is_written in extents if is_written]
