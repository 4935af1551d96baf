# SPDX-License-Identifier: Apache-2.0
"""The engine on object storage: S3, Google Cloud Storage, Azure, whatever `obstore` speaks.

| key, below the URL's prefix                      | content                                               |
| ------------------------------------------------ | ----------------------------------------------------- |
| `VOLUME/volume`                                  | the volume's mark                                     |
| `VOLUME/SNAPSHOT/created`, `.../invalid`         | the marks of a snapshot                               |
| `VOLUME/SNAPSHOT/SHARD/CHUNK`                    | a chunk; its CRC32C is the metadata `crc32c`          |

SHARD is the last hexadecimal digit of CHUNK, so a list of all chunks is sixteen ordered lists that are merged, and a
deletion is sixteen lists with bulk deletes.

A value is created by a conditional PUT (`If-None-Match: *`).  A service may answer 409 to one that met another under way,
though nothing is stored, so every refusal is confirmed by a HEAD, and the PUT is repeated if there is nothing.  Some
services ignore the condition.  `check` finds them: it creates a name twice, and the second time must be refused.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import datetime
import heapq
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import obstore
import obstore.exceptions
import obstore.store

from lun_backends.files import os_error
from lun_backends.stores import contract, engine
from lun_backends.stores.settings import Objects

SHARDS = 16
_PAGE = 1000  # keys of a LIST, and of a bulk deletion
_ATTEMPTS = 8  # PUTs of a value that others are putting and nobody stores
_PAUSE = 0.05  # seconds before the second of them; it doubles
_CRC = "crc32c"

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_REFUSED = (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError)


class ObjectStorage:
    """The values of one volume in an object store; see `engine.Engine`."""

    def __init__(self, store: Any, volume: uuid.UUID, name: str) -> None:
        """Take a store of `obstore`, with the prefix that all keys begin with; `name` names it in messages."""
        self.name = name
        self._store = store
        self._volume = volume
        self._pool = concurrent.futures.ThreadPoolExecutor(engine.IN_FLIGHT, thread_name_prefix="objects")

    @classmethod
    def open(cls, settings: Objects, volume: uuid.UUID) -> ObjectStorage:
        """Return the engine at a URL.  It connects to nothing yet.  Raises StoreUnfit."""
        timeout = f"{settings.timeout:g}s"
        config = {**_credentials(settings.credentials), **({"region": settings.region} if settings.region else {})}
        if settings.endpoint:
            config["endpoint"] = settings.endpoint
        try:
            store = obstore.store.from_url(
                settings.url,
                config=config,  # type: ignore[call-overload]  # the keys are those of the URL's scheme
                client_options={
                    "timeout": timeout,
                    "connect_timeout": timeout,
                    "allow_http": settings.endpoint.startswith("http://"),
                },
                retry_config={"max_retries": 3, "retry_timeout": datetime.timedelta(seconds=settings.timeout)},
            )
        except (ValueError, TypeError, obstore.exceptions.BaseError) as error:
            raise contract.StoreUnfit(settings.url, _words(error), "correct `objects` of the volume") from error
        return cls(store, volume, settings.url)

    def check(self) -> None:
        key = f"{self._volume}/probe/{uuid.uuid4()}"
        try:
            with _reached(creating=True):
                obstore.put(self._store, key, b"1", mode="create")
            try:
                with _reached(creating=True):
                    obstore.put(self._store, key, b"2", mode="create")
            except _REFUSED:
                return
            finally:
                with contextlib.suppress(engine.EngineError, OSError), _reached():
                    obstore.delete(self._store, key)
        except (obstore.exceptions.NotSupportedError, *_REFUSED) as error:
            raise contract.StoreUnfit(self.name, f"it takes no conditional PUT: {_words(error)}", _ELSEWHERE) from error
        reason = "it stored a second value under a name that was to be created (it ignores If-None-Match)"
        raise contract.StoreUnfit(self.name, reason, _ELSEWHERE)

    def mark(self, snapshot: uuid.UUID | None, name: str) -> bytes | None:
        try:
            with _reached():
                return bytes(obstore.get(self._store, self._mark(snapshot, name)).bytes())
        except FileNotFoundError:
            return None

    def set_mark(self, snapshot: uuid.UUID | None, name: str, content: bytes) -> bool:
        return self._create(self._mark(snapshot, name), content, {})

    def snapshots(self) -> Sequence[uuid.UUID]:
        with _reached():
            found = obstore.list_with_delimiter(self._store, f"{self._volume}/")["common_prefixes"]
        identities: list[uuid.UUID] = []
        for prefix in found:
            with contextlib.suppress(ValueError):  # `probe`
                identities.append(uuid.UUID(prefix.rstrip("/").rpartition("/")[2]))
        return identities

    def put(self, snapshot: uuid.UUID, chunk: int, data: bytes, checksum: int) -> engine.Pending[bool]:
        return self._begin(self._create, self._key(snapshot, chunk), data, {_CRC: f"{checksum:08x}"})

    def get(self, snapshot: uuid.UUID, chunk: int) -> engine.Pending[engine.Chunk | None]:
        return self._begin(self._get, self._key(snapshot, chunk))

    def has(self, snapshot: uuid.UUID, chunk: int) -> engine.Pending[bool]:
        return self._begin(self._has, self._key(snapshot, chunk))

    def chunks(self, snapshot: uuid.UUID, first: int, end: int) -> Iterator[int]:
        return heapq.merge(*[self._listed(snapshot, shard, first, end) for shard in range(SHARDS)])

    def count(self, snapshot: uuid.UUID, within: float = engine.COUNTED) -> int:
        return sum(1 for _ in self.chunks(snapshot, 0, sys.maxsize))

    def sweep(self, snapshot: uuid.UUID) -> None:
        for _ in range(2):
            calls = [self._begin(self._sweep, f"{self._volume}/{snapshot}/{shard:x}/") for shard in range(SHARDS)]
            for call in calls:
                call.result()

    def forget(self, snapshot: uuid.UUID | None) -> None:
        if snapshot is None:
            with contextlib.suppress(FileNotFoundError), _reached():
                obstore.delete(self._store, self._mark(None, "volume"))
            return
        created = self._mark(snapshot, "created")
        with _reached():
            keys = [
                entry["path"]
                for page in obstore.list(self._store, f"{self._volume}/{snapshot}/", chunk_size=_PAGE)
                for entry in page
            ]
            obstore.delete(self._store, [key for key in keys if key != created])
            obstore.delete(self._store, [key for key in keys if key == created])

    def close(self) -> None:
        self._pool.shutdown()

    # -- inside

    def _begin(
        self, call: Callable[_Parameters, _Result], *arguments: _Parameters.args, **options: _Parameters.kwargs
    ) -> concurrent.futures.Future[_Result]:
        return self._pool.submit(call, *arguments, **options)

    def _create(self, key: str, data: bytes, attributes: dict[str, str]) -> bool:
        """Create a value exclusively; return False if there is one, and a HEAD has confirmed that."""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_PAUSE * 2**attempt * random.random())
            try:
                with _reached(creating=True):
                    obstore.put(
                        self._store, key, data, mode="create", attributes=attributes or None, use_multipart=False
                    )
                return True
            except _REFUSED:
                if self._has(key):
                    return False
            except FileNotFoundError as error:
                raise engine.EngineError(f"there is no such place: {error}") from error
        raise engine.EngineError("it refuses a value as existing that it does not have")

    def _has(self, key: str) -> bool:
        try:
            with _reached():
                obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        return True

    def _get(self, key: str) -> engine.Chunk | None:
        try:
            with _reached():
                answer = obstore.get(self._store, key)
                data = bytes(answer.bytes())
                text = answer.attributes.get(_CRC, "0")
        except FileNotFoundError:
            return None
        try:
            return data, int(str(text), 16)
        except ValueError:
            return data, 0

    def _listed(self, snapshot: uuid.UUID, shard: int, first: int, end: int) -> Iterator[int]:
        """Return the numbers of the chunks of a shard, in order; the first page is under way when this returns."""
        prefix = f"{self._volume}/{snapshot}/{shard:x}/"
        offset = f"{prefix}{first - 1:010x}" if first else None
        pages = iter(obstore.list(self._store, prefix, offset=offset, chunk_size=_PAGE))
        call = self._begin(_next, pages)

        def numbers() -> Iterator[int]:
            under_way = call
            while page := under_way.result():
                under_way = self._begin(_next, pages)
                for entry in page:
                    with contextlib.suppress(ValueError):
                        chunk = int(entry["path"].rpartition("/")[2], 16)
                        if chunk >= end:
                            under_way.result()
                            return
                        if chunk >= first:
                            yield chunk

        return numbers()

    def _sweep(self, prefix: str) -> None:
        with _reached():
            while keys := [
                entry["path"] for entry in next(iter(obstore.list(self._store, prefix, chunk_size=_PAGE)), [])
            ]:
                obstore.delete(self._store, keys)

    def _key(self, snapshot: uuid.UUID, chunk: int) -> str:
        return f"{self._volume}/{snapshot}/{chunk % SHARDS:x}/{chunk:010x}"

    def _mark(self, snapshot: uuid.UUID | None, name: str) -> str:
        return f"{self._volume}/{name}" if snapshot is None else f"{self._volume}/{snapshot}/{name}"


_ELSEWHERE = "use another service, or another kind of store"


def _next(pages: Iterator[Sequence[Any]]) -> Sequence[Any] | None:
    with _reached():
        return next(pages, None)


@contextlib.contextmanager
def _reached(*, creating: bool = False) -> Iterator[None]:
    """Turn the errors of a call into EngineError, but not those that are answers to it.  Raises FileNotFoundError, too."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (obstore.exceptions.BaseError, OSError) as error:
        if creating and isinstance(error, (obstore.exceptions.NotSupportedError, *_REFUSED)):
            raise
        words = _words(error)
        raise (engine.EngineFull if "QuotaExceeded" in words else engine.EngineError)(words) from error


def _words(error: BaseException) -> str:
    """Return the request and the answer from an error's text, which goes on with much else."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (line.partition("Error performing ")[2] or line)[:500]


def _credentials(path: Path | None) -> dict[str, str]:
    """Return the lines KEY=VALUE of a file; without a file the environment has the credentials.  Raises StoreUnfit."""
    if path is None:
        return {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise contract.StoreUnfit(str(path), os_error.reason(error), "correct `credentials`, or the file") from error
    pairs: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not equals:
            raise contract.StoreUnfit(str(path), f"line {number} is not KEY=VALUE", "correct the file")
        pairs[key.strip().lower()] = value.strip().strip("\"'")
    return pairs
