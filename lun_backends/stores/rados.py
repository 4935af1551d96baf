# SPDX-License-Identifier: Apache-2.0
"""The engine on a Ceph cluster: RADOS, through Debian's binding (the package python3-rados).

| namespace                   | object                              | content                                             |
| --------------------------- | ----------------------------------- | --------------------------------------------------- |
| `NAMESPACE/VOLUME`          | `volume`                            | the volume's mark                                   |
|                             | `SNAPSHOT.created`, `.invalid`      | the marks of a snapshot                             |
|                             | `snapshots`                         | omap: the snapshots, also those that were deleted   |
| `NAMESPACE/VOLUME/SNAPSHOT` | the chunk's number, hexadecimal     | a chunk; the xattr `crc` has its CRC32C             |

A chunk, its data and its checksum are created by one atomic operation with LIBRADOS_CREATE_EXCLUSIVE.

An operation that timed out may land later.  So a deleted snapshot stays in `snapshots` until the next start has swept its
namespace once more.  Without `rados_osd_op_timeout` and `set_osdmap_full_try` a full pool would block for ever.

RADOS lists a namespace by looking at all objects of the pool, so a list costs as much as the pool is large.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import importlib
import importlib.machinery
import importlib.util
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from lun_backends.stores import contract, engine
from lun_backends.stores.settings import Rados

DEBIAN = Path("/usr/lib/python3/dist-packages")
"""Where Debian has the binding.  Only that one file is loaded, and nothing else of the directory."""
_LONGEST = 1 << 20  # bytes of a chunk
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
_SNAPSHOTS = "snapshots"
_KEPT, _DELETED = b"kept", b"deleted"

_Result = TypeVar("_Result")


def binding() -> ModuleType:
    """Return the module `rados`.  Raises StoreUnfit if it is not installed."""
    with contextlib.suppress(ImportError):
        return importlib.import_module("rados")
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = DEBIAN / f"rados{suffix}"
        if path.exists() and (spec := importlib.util.spec_from_file_location("rados", path)) is not None:
            module = importlib.util.module_from_spec(spec)
            assert spec.loader is not None
            try:
                spec.loader.exec_module(module)
            except ImportError as error:
                raise contract.StoreUnfit(str(path), str(error), "install the package python3-rados anew") from error
            sys.modules["rados"] = module
            return module
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    reason = f"Python {version} has no binding for RADOS"
    raise contract.StoreUnfit("rados", reason, "apt install python3-rados, for the Python of the distribution")


class _Call(Generic[_Result]):
    """An operation that is under way; see `engine.Pending`."""

    __slots__ = ("_answer", "_completion")

    def __init__(self, completion: Any, answer: Callable[[int], _Result]) -> None:
        self._completion = completion
        self._answer = answer

    def result(self) -> _Result:
        self._completion.wait_for_complete_and_cb()
        return self._answer(self._completion.get_return_value())


class _Failed:
    """An operation that could not begin."""

    def __init__(self, error: engine.EngineError) -> None:
        self._error = error

    def result(self) -> Any:
        raise self._error


class RadosEngine:
    """The values of one volume in a pool; see `engine.Engine`.  It connects with the first operation."""

    def __init__(self, settings: Rados, volume: uuid.UUID) -> None:
        """Prepare; connect to nothing.  Raises StoreUnfit."""
        self.name = f"rados:{settings.pool}/{settings.namespace}"
        self._settings = settings
        self._module = binding()
        self._base = f"{settings.namespace}/{volume}"
        self._lock = threading.Lock()
        self._cluster: Any = None
        self._contexts: dict[uuid.UUID | None, Any] = {}
        self._counts: collections.Counter[str] = collections.Counter()
        self._counted = float("-inf")

    def check(self) -> None:
        key = f"probe.{uuid.uuid4()}"
        for expected in (True, False):
            if self._create(None, key, b"1", None).result() is not expected:
                raise contract.StoreUnfit(self.name, "it creates what exists", "use another pool")
        self._remove(None, [key])

    def mark(self, snapshot: uuid.UUID | None, name: str) -> bytes | None:
        with self._asking():
            try:
                content: bytes = self._context(None).read(_mark(snapshot, name), _LONGEST)
            except self._module.ObjectNotFound:
                return None
            return content

    def set_mark(self, snapshot: uuid.UUID | None, name: str, content: bytes) -> bool:
        if snapshot is not None:
            self._list(snapshot, _KEPT)  # before the first value, so that none is ever forgotten
        return self._create(None, _mark(snapshot, name), content, None).result()

    def snapshots(self) -> Sequence[uuid.UUID]:
        return [uuid.UUID(key) for key in self._listed()]

    def put(self, snapshot: uuid.UUID, chunk: int, data: bytes, checksum: int) -> engine.Pending[bool]:
        return self._create(snapshot, f"{chunk:x}", data, f"{checksum:08x}".encode())

    def get(self, snapshot: uuid.UUID, chunk: int) -> engine.Pending[engine.Chunk | None]:
        key = f"{chunk:x}"
        read: list[bytes | None] = []

        def answer(code: int) -> engine.Chunk | None:
            if code == -errno.ENOENT:
                return None
            self._raise(code)
            try:
                with self._asking():
                    checksum = int(self._context(snapshot).get_xattr(key, "crc"), 16)
            except (self._module.NoData, self._module.ObjectNotFound, ValueError):
                checksum = 0
            return (read[0] or b"") if read else b"", checksum

        return self._begin(
            lambda: self._context(snapshot).aio_read(key, _LONGEST, 0, lambda _done, data: read.append(data)), answer
        )

    def has(self, snapshot: uuid.UUID, chunk: int) -> engine.Pending[bool]:
        def answer(code: int) -> bool:
            if code == -errno.ENOENT:
                return False
            self._raise(code)
            return True

        return self._begin(
            lambda: self._context(snapshot).aio_stat(f"{chunk:x}", lambda _done, _size, _time: None), answer
        )

    def chunks(self, snapshot: uuid.UUID, first: int, end: int) -> Iterator[int]:
        numbers = (int(key, 16) for key in self._keys(snapshot))
        yield from sorted(number for number in numbers if first <= number < end)

    def count(self, snapshot: uuid.UUID, within: float = engine.COUNTED) -> int:
        with self._lock:
            fresh = time.monotonic() - self._counted < within
        if not fresh:
            counts: collections.Counter[str] = collections.Counter()
            with self._asking():
                context = self._cluster_now().open_ioctx(self._settings.pool)
                try:
                    context.set_namespace(self._module.LIBRADOS_ALL_NSPACES)
                    counts.update(found.nspace for found in context.list_objects())
                finally:
                    context.close()
            with self._lock:
                self._counts, self._counted = counts, time.monotonic()
        return self._counts[f"{self._base}/{snapshot}"]

    def sweep(self, snapshot: uuid.UUID) -> None:
        for _ in range(2):
            self._remove(snapshot, self._keys(snapshot))

    def forget(self, snapshot: uuid.UUID | None) -> None:
        if snapshot is None:
            self._remove(None, ["volume", _SNAPSHOTS])
            return
        self._remove(None, [_mark(snapshot, name) for name in ("invalid", "created")])
        if self._listed().get(str(snapshot)) == _KEPT:
            self._list(snapshot, _DELETED)
            return
        with self._asking(), self._module.WriteOpCtx() as operation:
            self._context(None).remove_omap_keys(operation, (str(snapshot),))
            self._context(None).operate_write_op(operation, _SNAPSHOTS)

    def close(self) -> None:
        with self._lock:
            contexts, self._contexts = self._contexts, {}
            cluster, self._cluster = self._cluster, None
        for context in contexts.values():
            context.close()
        if cluster is not None:
            cluster.shutdown()

    # -- inside

    def _create(self, snapshot: uuid.UUID | None, key: str, data: bytes, crc: bytes | None) -> engine.Pending[bool]:
        def begin() -> Any:
            context = self._context(snapshot)
            with self._module.WriteOpCtx() as operation:
                operation.new(self._module.LIBRADOS_CREATE_EXCLUSIVE)
                operation.write(data, 0)
                if crc is not None:
                    operation.set_xattr("crc", crc)
                return context.operate_aio_write_op(operation, key)

        def answer(code: int) -> bool:
            if code == -errno.EEXIST:
                return False
            self._raise(code)
            return True

        return self._begin(begin, answer)

    def _begin(self, begin: Callable[[], Any], answer: Callable[[int], _Result]) -> engine.Pending[_Result]:
        try:
            with self._asking():
                return _Call(begin(), answer)
        except engine.EngineError as error:
            return _Failed(error)

    def _keys(self, snapshot: uuid.UUID) -> list[str]:
        with self._asking():
            return [found.key for found in self._context(snapshot).list_objects()]

    def _remove(self, snapshot: uuid.UUID | None, keys: Sequence[str]) -> None:
        under_way: collections.deque[engine.Pending[None]] = collections.deque()

        def answer(code: int) -> None:
            if code != -errno.ENOENT:
                self._raise(code)

        for key in keys:
            under_way.append(self._begin(lambda key=key: self._context(snapshot).aio_remove(key), answer))  # type: ignore[misc]
            if len(under_way) >= engine.IN_FLIGHT:
                under_way.popleft().result()
        while under_way:
            under_way.popleft().result()

    def _listed(self) -> dict[str, bytes]:
        """Return the omap of the snapshots."""
        found: dict[str, bytes] = {}
        last = ""
        with self._asking():
            while True:
                with self._module.ReadOpCtx() as operation:
                    values, _ = self._context(None).get_omap_vals(operation, last, "", 1000)
                    try:
                        self._context(None).operate_read_op(operation, _SNAPSHOTS)
                    except self._module.ObjectNotFound:
                        return found
                    page = dict(values)
                if not page:
                    return found
                found.update(page)
                last = max(page)

    def _list(self, snapshot: uuid.UUID, value: bytes) -> None:
        with self._asking(), self._module.WriteOpCtx() as operation:
            self._context(None).set_omap(operation, (str(snapshot),), (value,))
            self._context(None).operate_write_op(operation, _SNAPSHOTS)

    def _cluster_now(self) -> Any:
        """Return the cluster, connected."""
        with self._lock:
            if self._cluster is None:
                settings, seconds = self._settings, f"{self._settings.timeout:g}"
                limits = ("rados_osd_op_timeout", "rados_mon_op_timeout", "client_mount_timeout")
                cluster = self._module.Rados(
                    conffile=str(settings.conf), rados_id=settings.client, conf=dict.fromkeys(limits, seconds)
                )
                try:
                    cluster.connect(timeout=max(1, int(settings.timeout)))
                except BaseException:
                    cluster.shutdown()
                    raise
                self._cluster = cluster
            return self._cluster

    def _context(self, snapshot: uuid.UUID | None) -> Any:
        """Return the I/O context of a snapshot's namespace; None: of the volume's."""
        context = self._contexts.get(snapshot)
        if context is None:
            context = self._cluster_now().open_ioctx(self._settings.pool)
            context.set_namespace(self._base if snapshot is None else f"{self._base}/{snapshot}")
            context.set_osdmap_full_try()
            context = self._contexts.setdefault(snapshot, context)
        return context

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn the binding's errors into EngineError, except a miss."""
        try:
            yield
        except (self._module.ObjectNotFound, self._module.NoData) as error:
            if "pool" not in str(error):
                raise
            raise engine.EngineError(f"there is no pool {self._settings.pool}") from error
        except self._module.Error as error:
            code = abs(getattr(error, "errno", 0) or 0)
            raise (engine.EngineFull if code in _FULL else engine.EngineError)(str(error)) from error

    def _raise(self, code: int) -> None:
        """Raise EngineError if a call returned an error."""
        if code < 0:
            words = errno.errorcode.get(-code, str(code))
            raise (engine.EngineFull if -code in _FULL else engine.EngineError)(words)


def _mark(snapshot: uuid.UUID | None, name: str) -> str:
    return name if snapshot is None else f"{snapshot}.{name}"
