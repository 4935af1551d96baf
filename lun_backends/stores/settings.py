# SPDX-License-Identifier: Apache-2.0
"""The kinds of stores, and where the stores of a volume are; a module of its own because settings need no store."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path


class Kind(enum.Enum):
    """The kind of the stores of a volume's snapshots."""

    MAP = "map"
    LOG = "log"
    SPARSE = "sparse"
    OBJECTS = "objects"
    RADOS = "rados"


@dataclass(frozen=True, slots=True)
class Objects:
    """A place in object storage, for `Kind.OBJECTS`; `timeout` in seconds is for one request and its repetitions."""

    url: str
    endpoint: str = ""
    region: str = ""
    credentials: Path | None = None
    timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class Rados:
    """A pool of a Ceph cluster, for `Kind.RADOS`; `timeout` in seconds is for one operation."""

    pool: str
    namespace: str = "wolun"
    client: str = "admin"
    conf: Path = Path("/etc/ceph/ceph.conf")
    timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class Settings:
    """The stores of a volume."""

    kind: Kind = Kind.MAP
    objects: Objects | None = None
    rados: Rados | None = None


DEFAULT = Settings()
