# SPDX-License-Identifier: Apache-2.0
"""The framed stream: the content of a snapshot, or its changes since an older one, from front to back.

A stream is a preamble and frames.  All numbers are big-endian.

| preamble   | bytes | content                                            |
| ---------- | ----- | -------------------------------------------------- |
| magic      | 8     | `WOLUNSTR`                                         |
| version    | 4     | 1                                                  |
| reserved   | 4     | 0                                                  |

| frame      | bytes | content                                                                                     |
| ---------- | ----- | ------------------------------------------------------------------------------------------- |
| magic      | 4     | `WFRM`                                                                                      |
| kind       | 1     | see below                                                                                   |
| flags      | 1     | 1: the payload is compressed with zstd (RFC 8878)                                           |
| reserved   | 2     | 0                                                                                           |
| payload    | 4     | the bytes of payload that follow the header                                                 |
| offset     | 8     | where in the volume the frame begins, in bytes                                              |
| length     | 8     | how many bytes of the volume it stands for                                                  |
| checksum   | 4     | CRC32C of the header before this field and of the payload, begun with the checksum of the   |
|            |       | frame before, or of the preamble                                                            |

So a frame that changed, was lost, or comes in another place is found at once.

| kind       | meaning                                                                                             |
| ---------- | --------------------------------------------------------------------------------------------------- |
| 1 HELLO    | the sender asks what the receiver has, and waits for a line of JSON on another way; comes first     |
| 2 BEGIN    | JSON: what the stream has (`Begin`); comes before all data                                          |
| 3 DATA     | the payload belongs at `offset`                                                                     |
| 4 ZERO     | zeroes belong there, or a hole; no payload                                                          |
| 5 END      | JSON: the number of frames before; a stream without it is not complete                              |

DATA and ZERO come in order of address and do not overlap.  Without a base they cover the whole volume.  With a base they
cover all that may differ from it.  A stream that goes on from an offset has only what lies behind it.

A reader refuses a version, a kind and a flag that it does not know.  It keeps at most one frame in memory.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import crc32c
import pydantic

MAGIC = b"WOLUNSTR"
VERSION = 1
STEP = 1 << 20
"""The most bytes of data in a frame."""

_PREAMBLE = struct.Struct(">8sII")
_HEADER = struct.Struct(">4sBBHIQQ")
_CHECKSUM = struct.Struct(">I")
_FRAME = b"WFRM"
_COMPRESSED = 1
_JSON_MAX = 256 << 10
_TOKEN = "wolun1-"


class Kind(enum.IntEnum):
    """The kind of a frame; see the module's table."""

    HELLO = 1
    BEGIN = 2
    DATA = 3
    ZERO = 4
    END = 5


class StreamError(Exception):
    """A stream that cannot be used; the text says why."""


class Incomplete(StreamError):
    """The stream ends before its end."""


class NotOurs(StreamError):
    """It is no stream of wolun, or one of a version that this one does not know."""


_CONFIG = pydantic.ConfigDict(extra="ignore")


@pydantic.dataclasses.dataclass(frozen=True, config=_CONFIG)
class Base:
    """The snapshot that a receiver must have: its name at the sender, and its identity."""

    name: str
    identity: str


@pydantic.dataclasses.dataclass(frozen=True, config=_CONFIG)
class Begin:
    """The content of a stream.  Sizes are in bytes, identities are UUIDs.

    `identity` is that of the snapshot where it was first taken, and a receiver keeps it.  `taken` is that moment (ISO 8601).
    `total` bytes of the volume are in the stream, `start` is where it begins.
    """

    volume: str
    volume_uuid: str
    snapshot: str
    identity: str
    taken: str
    size: int
    block_size: int
    chunk_size: int
    consistency: str = "crash"
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    since: Base | None = None
    start: int = 0
    total: int = 0


@pydantic.dataclasses.dataclass(frozen=True, config=_CONFIG)
class Token:
    """A place to go on from: in the stream of `identity` since `since` (empty: from nothing), all before `offset` is there."""

    identity: str
    since: str
    offset: int

    def encoded(self) -> str:
        """Return the token as one word."""
        return _TOKEN + base64.urlsafe_b64encode(_TOKENS.dump_json(self)).decode().rstrip("=")


_BEGINS = pydantic.TypeAdapter(Begin)
_TOKENS = pydantic.TypeAdapter(Token)


def token(text: str) -> Token:
    """Return the token in a word.  Raises ValueError."""
    body = text.strip().removeprefix(_TOKEN)
    if body == text.strip():
        raise ValueError("it is no token of an interrupted stream: `wolun volume show` tells the right one")
    try:
        return _TOKENS.validate_json(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (ValueError, pydantic.ValidationError):
        raise ValueError("the token is damaged: copy all of it") from None


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that was read and checked; `payload` is not compressed any longer."""

    kind: Kind
    offset: int
    length: int
    payload: bytes

    @property
    def begin(self) -> Begin:
        """The content of BEGIN.  Raises StreamError."""
        try:
            return _BEGINS.validate_json(self.payload)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise StreamError(f"its beginning is wrong at {where}: {first['msg']}") from None


class Writer:
    """A writer of one stream; `write` takes the bytes, in order.

    `compress` is a level of zstd from 1 to 19, None leaves data as it is.  Every method raises the errors of `write`.
    """

    def __init__(self, write: Callable[[bytes | memoryview], object], compress: int | None = None) -> None:
        self._write = write
        self._checksum = 0
        self._frames = 0
        self._compress: Callable[[bytes | memoryview], bytes] | None = None
        if compress is not None:
            import zstandard

            self._compress = zstandard.ZstdCompressor(level=compress).compress
        preamble = _PREAMBLE.pack(MAGIC, VERSION, 0)
        self._checksum = crc32c.crc32c(preamble)
        write(preamble)

    def hello(self) -> None:
        """Ask the receiver what it has."""
        self._frame(Kind.HELLO)

    def begin(self, begin: Begin) -> None:
        """Say what the stream has."""
        self._frame(Kind.BEGIN, payload=_BEGINS.dump_json(begin))

    def data(self, offset: int, data: memoryview) -> None:
        """Send at most `STEP` bytes of data."""
        payload: bytes | memoryview = data
        flags = 0
        if self._compress is not None:
            packed = self._compress(data)
            if len(packed) < len(data):
                payload, flags = packed, _COMPRESSED
        self._frame(Kind.DATA, offset, len(data), payload, flags)

    def zero(self, offset: int, length: int) -> None:
        """Say that zeroes, or a hole, belong there."""
        self._frame(Kind.ZERO, offset, length)

    def end(self) -> None:
        """End the stream."""
        self._frame(Kind.END, payload=json.dumps({"frames": self._frames}).encode())

    def _frame(
        self, kind: Kind, offset: int = 0, length: int = 0, payload: bytes | memoryview = b"", flags: int = 0
    ) -> None:
        header = _HEADER.pack(_FRAME, kind, flags, 0, len(payload), offset, length)
        self._checksum = crc32c.crc32c(payload, crc32c.crc32c(header, self._checksum))
        self._write(header + _CHECKSUM.pack(self._checksum))
        if len(payload):
            self._write(payload)
        self._frames += 1


class Reader:
    """A reader of one stream; `read(n)` returns at most n bytes, and none at the end.  It reads no byte beyond the last frame."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._checksum = 0
        self._frames = 0
        self._decompress: Any = None

    def frames(self) -> Iterator[Frame]:
        """Yield the frames, END as the last.  Raises StreamError, and the errors of `read`."""
        preamble = self._exactly(_PREAMBLE.size)
        magic, version, _ = _PREAMBLE.unpack(preamble)
        if magic != MAGIC:
            raise NotOurs("it is no stream of `wolun send`")
        if version != VERSION:
            raise NotOurs(f"it has version {version} of the stream, and this wolun reads version {VERSION}")
        self._checksum = crc32c.crc32c(preamble)
        while True:
            frame = self._frame()
            yield frame
            if frame.kind is Kind.END:
                return

    def _frame(self) -> Frame:
        header = self._exactly(_HEADER.size)
        magic, kind, flags, _, size, offset, length = _HEADER.unpack(header)
        said = _CHECKSUM.unpack(self._exactly(_CHECKSUM.size))[0]
        # The size is not checked yet: it must not make the reader take more memory than a frame may have.
        if magic != _FRAME or size > max(_JSON_MAX, STEP):
            raise StreamError(f"frame {self._frames} is damaged")
        payload = self._exactly(size)
        self._checksum = crc32c.crc32c(payload, crc32c.crc32c(header, self._checksum))
        if said != self._checksum:
            raise StreamError(f"frame {self._frames} is damaged, or one before it was lost: its checksum is wrong")
        if kind not in list(Kind) or flags & ~_COMPRESSED:
            raise NotOurs(f"frame {self._frames} is of a kind that this wolun does not know ({kind}, {flags})")
        if flags:
            payload = self._plain(payload, length)
        if (kind == Kind.DATA and len(payload) != length) or (kind == Kind.END and not self._counted(payload)):
            raise StreamError(f"frame {self._frames} contradicts itself")
        self._frames += 1
        return Frame(Kind(kind), offset, length, payload)

    def _counted(self, payload: bytes) -> bool:
        try:
            return bool(json.loads(payload)["frames"] == self._frames)
        except (ValueError, KeyError, TypeError):
            return False

    def _plain(self, payload: bytes, length: int) -> bytes:
        import zstandard

        if self._decompress is None:
            self._decompress = zstandard.ZstdDecompressor()
        try:
            if length > STEP or zstandard.frame_content_size(payload) != length:
                raise StreamError(f"frame {self._frames} contradicts itself")
            plain: bytes = self._decompress.decompress(payload, max_output_size=length)
        except zstandard.ZstdError as error:
            raise StreamError(f"frame {self._frames} cannot be decompressed: {error}") from None
        return plain

    def _exactly(self, size: int) -> bytes:
        data = b""
        parts = []
        while size:
            data = self._read(min(size, STEP))
            if not data:
                raise Incomplete("it ends before its end")
            parts.append(data)
            size -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)
