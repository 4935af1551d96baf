# SPDX-License-Identifier: Apache-2.0
"""The values that keys of the configuration may have: sizes, names, LUNs, addresses."""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic

from lun_backends import names
from target import iscsi_name, units

CHUNK_MINIMUM = 4 << 10
CHUNK_MAXIMUM = 1 << 20
PHYSICAL_MINIMUM = 4 << 10
PHYSICAL_MAXIMUM = 1 << 20
LUN_MAXIMUM = 16383
"""SAM-5 4.7.7.4: flat space addressing has 14 bits."""

MEMORY_MINIMUM = 64 << 20
"""The least memory for the data of commands: that of the largest command fits."""

LARGEST = (1 << 63) - 1
"""The most bytes that a file may have: the largest off_t."""

NO_LUN = "none"

NAME_PATTERN = f"^{names.PATTERN}$"
"""Names of volumes and snapshots. They become file names, and `@` separates the two."""

# The names of iscsi_name.py, as far as they are ASCII.
IQN_PATTERN = (
    r"^(iqn\.[0-9]{4}-(0[1-9]|1[0-2])\.[a-z0-9][a-z0-9.-]*(:[a-z0-9.:_-]+)?"
    r"|eui\.[0-9A-Fa-f]{16}|naa\.([0-9A-Fa-f]{16}){1,2})$"
)
INITIATOR_PATTERN = r"^([Ii][Qq][Nn]\.|[Ee][Uu][Ii]\.|[Nn][Aa][Aa]\.|[A-Za-z]{0,3}[*?\[])[A-Za-z0-9.:_*?\[\]!-]*$"
"""A name, or a pattern as the shell has for file names: `*`, `?` and `[...]`."""
WRITE_ONCE_SUFFIX = "/write-once"
UNIT_PATTERN = f"^{names.PATTERN}(@{names.PATTERN}(/write-once)?)?$"
"""`vol0`, `vol0@nightly` (the snapshot's view), `vol0@nightly/write-once`."""
_PORTAL = r"(\[[0-9A-Fa-f:.]+\]|[^/\s\[\]:,]+)(:[0-9]{1,5})?"
DEVICE_PATTERN = rf"^((?!iscsi:).+|iscsi://{_PORTAL}(,{_PORTAL})*/[^/\s]+/[0-9]{{1,5}})$"
"""A block device of this host, or a LUN that the daemon reaches over iSCSI by itself; several portals may lead to it."""
LISTEN_PATTERN = r"^(\[[0-9A-Fa-f:.]+\]|[^:\[\]\s]+):[0-9]{1,5}$"


Where = tuple[str | int, ...]
"""The path to a value: keys and indices."""

Problems = Mapping[Where, str]
"""The path of each value that does not fit its neighbours, and why."""


class ChapAlgorithm(enum.Enum):
    """The way to compute CHAP's answers."""

    SHA256 = "sha256"
    MD5 = "md5"


def _size(value: object) -> object:
    return units.parse_size(value) if isinstance(value, str) else value


def _allowed_size(value: int) -> int:
    if not 0 <= value <= LARGEST:
        raise ValueError(
            f"{value} bytes is not a size: write one from 0 to {units.exact_size(LARGEST + 1)}, less one byte"
        )
    return value


def _network(value: object) -> object:
    if not isinstance(value, str):  # ipaddress would take the number 5 for 0.0.0.5
        raise ValueError(f"{value!r} is not a network: write one like 127.0.0.0/8 or 10.1.2.3/32")
    try:
        return ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError(f"{error}: write a network like 127.0.0.0/8 or 10.1.2.3/32") from None


def _listen(value: str) -> str:
    host, _, port = value.rpartition(":")
    wrong = ValueError(f"{value!r} is not an address to listen on: write HOST:PORT, like 127.0.0.1:3260 or [::1]:3260")
    if not re.fullmatch(LISTEN_PATTERN, value) or int(port) > 65535:
        raise wrong
    try:
        if host.startswith("["):
            ipaddress.IPv6Address(host[1:-1])
        else:
            host.encode("idna")  # as a socket does
    except ValueError:
        raise wrong from None
    return value


def _reachable(values: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse an address that no initiator could connect to.  Raises ValueError."""
    for value in values:
        host, _, port = value.rpartition(":")
        if int(port) == 0 or host in ("0.0.0.0", "[::]"):
            raise ValueError(
                f"initiators cannot connect to {value}: write the HOST:PORT by which they reach this machine"
            )
    return values


def _matching(pattern: str, what: str) -> pydantic.AfterValidator:
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise ValueError(f"{value!r} is not {what}")
        return value

    return pydantic.AfterValidator(check)


def is_pattern(name: str) -> bool:
    """Return whether the name of an entry for initiators is a pattern of names."""
    return re.search(r"[*?\[]", name) is not None


def _initiator(value: str) -> str:
    if not is_pattern(value):
        try:
            iscsi_name.normal_form(value)
        except iscsi_name.NotAName as why:
            raise ValueError(f"{value!r} is not an iSCSI name: {why}") from None
    return value


def _schema(**extra: Any) -> Any:
    return pydantic.Field(json_schema_extra=extra)


Size = Annotated[
    int,
    pydantic.BeforeValidator(_size),
    pydantic.AfterValidator(_allowed_size),
    pydantic.WithJsonSchema(
        {
            "anyOf": [{"type": "string", "pattern": units.SIZE_PATTERN}, {"type": "integer", "minimum": 0}],
            "examples": ["64KiB", "1GiB"],
        }
    ),
]
Percent = Annotated[int, pydantic.Field(ge=1, le=100)]
Seconds = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
Name = Annotated[
    str,
    _matching(NAME_PATTERN, f"a name: {names.RULE}"),
    _schema(pattern=NAME_PATTERN),
]
TargetName = Annotated[
    str,
    _matching(IQN_PATTERN, "an iSCSI name: write iqn.YEAR-MONTH.REVERSED-DOMAIN:ANYTHING, in small letters"),
    pydantic.Field(max_length=iscsi_name.MAXIMUM, json_schema_extra={"pattern": IQN_PATTERN}),
]
InitiatorName = Annotated[
    str,
    _matching(
        INITIATOR_PATTERN,
        "an initiator's name: write an iSCSI name, like iqn.2026-11.org.example:host, or a pattern with * and ?",
    ),
    pydantic.AfterValidator(_initiator),
    pydantic.Field(max_length=iscsi_name.MAXIMUM, json_schema_extra={"pattern": INITIATOR_PATTERN}),
]
UnitName = Annotated[
    str,
    _matching(UNIT_PATTERN, "a unit: write VOLUME, VOLUME@SNAPSHOT or VOLUME@SNAPSHOT/write-once"),
    _schema(pattern=UNIT_PATTERN),
]


def _lun_or_none(value: object) -> object:
    if value is None:
        raise ValueError(f"write a number, or {NO_LUN}")
    return None if value == NO_LUN else value


ChapName = Annotated[str, pydantic.Field(min_length=1, max_length=255, pattern=r"^[!-~]+$")]
Lun = Annotated[int, pydantic.Field(ge=0, le=LUN_MAXIMUM)]
LunOrNone = Annotated[
    Lun | None,
    pydantic.BeforeValidator(_lun_or_none),
    pydantic.PlainSerializer(lambda value: NO_LUN if value is None else value),
    pydantic.WithJsonSchema(
        {
            "anyOf": [{"type": "integer", "minimum": 0, "maximum": LUN_MAXIMUM}, {"const": NO_LUN}],
            "examples": [0, NO_LUN],
        }
    ),
]
Listen = Annotated[str, pydantic.AfterValidator(_listen), _schema(pattern=LISTEN_PATTERN)]
Listens = Annotated[
    tuple[Listen, ...],
    pydantic.Field(min_length=1),
    pydantic.BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    pydantic.PlainSerializer(lambda value: value[0] if len(value) == 1 else value),
    pydantic.WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": LISTEN_PATTERN},
                {"type": "array", "items": {"type": "string", "pattern": LISTEN_PATTERN}, "minItems": 1},
            ]
        }
    ),
]
Announced = Annotated[
    tuple[Listen, ...],
    pydantic.BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    pydantic.PlainSerializer(lambda value: value[0] if len(value) == 1 else value),
    pydantic.AfterValidator(_reachable),
    pydantic.WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": LISTEN_PATTERN},
                {"type": "array", "items": {"type": "string", "pattern": LISTEN_PATTERN}},
            ]
        }
    ),
]
Network = Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, pydantic.BeforeValidator(_network)]
Kept = Annotated[int, pydantic.Field(ge=0, le=10_000)]


def _allowed_block_size(value: int) -> int:
    if value not in (512, 4096):
        raise ValueError(f"{value} is not a block size: write 512 or 4096")
    return value


def _allowed_chunk_size(value: int) -> int:
    if value & (value - 1) or not CHUNK_MINIMUM <= value <= CHUNK_MAXIMUM:
        raise ValueError(f"{units.exact_size(value)} is not a chunk size: write a power of two from 4KiB to 1MiB")
    return value


def _allowed_physical_block_size(value: int) -> int:
    if value & (value - 1) or not PHYSICAL_MINIMUM <= value <= PHYSICAL_MAXIMUM:
        raise ValueError(
            f"{units.exact_size(value)} is not a physical block size: write a power of two from 4KiB to 1MiB"
        )
    return value


def _allowed_memory(value: int) -> int:
    if value < MEMORY_MINIMUM:
        raise ValueError(f"{units.exact_size(value)} is too little memory: at least {units.exact_size(MEMORY_MINIMUM)}")
    return value


Sessions = Annotated[int, pydantic.Field(ge=1, le=10_000)]
Memory = Annotated[Size, pydantic.AfterValidator(_allowed_memory)]


def _possible_path(value: Path) -> Path:
    try:
        text = str(value).encode()
    except UnicodeEncodeError:
        raise ValueError("it has a character that is not valid in UTF-8") from None
    if b"\0" in text:
        raise ValueError("it has a NUL character, which no path has")
    return value


FilePath = Annotated[Path, pydantic.AfterValidator(_possible_path)]


def _device(value: str) -> str:
    if not re.fullmatch(DEVICE_PATTERN, value):
        raise ValueError(
            f"{value!r} is no device: write a path, like /dev/disk/by-id/wwn-0x6001405000000001, or "
            "iscsi://HOST[:PORT]/TARGET/LUN"
        )
    _possible_path(Path(value))
    return value


Device = Annotated[str, pydantic.AfterValidator(_device), _schema(pattern=DEVICE_PATTERN)]
BlockSize = Annotated[int, pydantic.AfterValidator(_allowed_block_size), _schema(enum=[512, 4096])]
ChunkSize = Annotated[Size, pydantic.AfterValidator(_allowed_chunk_size)]
PhysicalBlockSize = Annotated[Size, pydantic.AfterValidator(_allowed_physical_block_size)]


class Group(pydantic.BaseModel):
    """A group of keys: immutable, and without unknown keys."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=False)


def below(where: Where, problems: Problems) -> Problems:
    """Return the problems of the group at `where`, with whole paths."""
    return {(*where, *inside): what for inside, what in problems.items()}
