# SPDX-License-Identifier: Apache-2.0
"""Two nodes that share a primary and keep log and snapshots in Ceph, or in object storage: nobody serves write-once LUNs.

Ceph runs on a host of its own.  The host of the primary is a `wolun serve` that knows nothing but plain volumes.
"""

from __future__ import annotations

import functools
import threading
from pathlib import Path

from tests import ceph
from tests.cluster.cluster import LATE, SIZE, STORAGE, VOLUME, Cluster

TIMEOUT = 3
"""Seconds after which a call has no answer."""


class EngineCluster(Cluster):
    """The hosts; the nodes keep the old data in RADOS, and in object storage after `move_to_objects`."""

    nodes = ("alpha", "beta")

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._gateway = ""
        self._is_served = threading.Event()
        self._credentials = directory / "s3.env"
        self._credentials.write_text(f"AWS_ACCESS_KEY_ID={ceph.KEY}\nAWS_SECRET_ACCESS_KEY={ceph.SECRET}\n")
        on_host = functools.partial(self.network.on, LATE)
        try:
            self.ceph = ceph.Cluster(self.network.address(LATE), self.network.command(LATE), on_host)
        except BaseException:
            self._closing.close()
            raise
        self._closing.callback(self.ceph.close)

    def start_storage(self) -> None:
        """Start the host of the primary, the first time or again."""
        volumes = f"  - {{name: {VOLUME}, lun: 0, size: {SIZE}}}\n  - {{name: other, lun: 1, size: {SIZE}}}\n"
        self._start(STORAGE, volumes, "", "  networks: [10.99.0.0/24]\n", f"{self.network.address(STORAGE)}:3260")
        self._is_served.set()

    def move_to_objects(self) -> None:
        """Start the nodes anew with another primary and object storage: a new volume of the same name."""
        self._gateway = self.ceph.start_gateway()
        for name in self.nodes:
            self.hosts[name].stop()
            self.start(name)
        for name in self.nodes:
            self.wait_for_state(name, "armed")

    @property
    def other(self) -> str:
        """The address of another LUN beside the primary."""
        return f"{self.primary[:-1]}1"

    @property
    def place(self) -> dict[str, str]:
        """The place in RADOS, as the configuration says it."""
        return {"pool": ceph.Cluster.POOL, "conf": str(self.ceph.conf), "timeout": str(TIMEOUT)}

    def text(self, node: str, *, primary: str = "", namespace: str = "wolun") -> str:
        """Return the configuration's `shared` for a node."""
        if self._gateway:
            primary = self.other
            place = (
                f"{{url: 's3://bucket/x', endpoint: '{self._gateway}', region: r, credentials: {self._credentials}}}"
            )
            rest = f"store: objects, chunk_size: 256KiB, objects: {place}"
        else:
            place = (
                "{"
                + ", ".join(f"{key}: {value}" for key, value in {**self.place, "namespace": namespace}.items())
                + "}"
            )
            rest = f"store: rados, rados: {place}"
        return f"shared:\n  - {{name: {VOLUME}, node: {node}, primary: '{primary or self.primary}', lun: 0, {rest}}}\n"

    def start(self, name: str, text: str = "") -> None:
        """Start a node, the first time or again; `text` is another `shared` than that of the cluster."""
        self._is_served.wait()
        self._start(name, "", text or self.text(name), "  networks: [127.0.0.0/8]\n", "127.0.0.1:3260")
