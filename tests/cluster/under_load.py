# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a cluster under verified load."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import threading
from collections.abc import Iterator, Sequence

from tests.cluster import load
from tests.cluster.cluster import Cluster
from tests.cluster.load import Writer

REGION = 96
"""The cells of a writer: few, so that most of them are written again before and after each snapshot."""
_SOME = 15  # writes after which a node surely writes again

regions = itertools.count(0, REGION)
"""The first cells of regions that no writer has yet."""


@contextlib.contextmanager
def writing(cluster: Cluster, *through: Sequence[str]) -> Iterator[list[Writer]]:
    """Yield writers that write while the context is open; each goes through the nodes of one item, in turn."""
    with contextlib.ExitStack() as closing:
        writers = []
        for nodes in through:
            sessions = [closing.enter_context(cluster.session(node)) for node in nodes]
            first = next(regions)
            writers.append(Writer(sessions, first, REGION, first, pause=0.002))
        for writer in writers:
            writer.start()
            closing.callback(writer.stop)
        some(writers)
        yield writers


def some(writers: Sequence[Writer]) -> None:
    """Return when each of them has written some more."""
    for writer in writers:
        writer.wait_for(_SOME)


class Taken:
    """Snapshots that were taken under load: what each of them must show."""

    def __init__(self, cluster: Cluster, writers: Sequence[Writer]) -> None:
        self._cluster, self._writers = cluster, writers
        self._lock = threading.Lock()
        self.bounds: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def take(self, node: str, name: str) -> None:
        """Take a snapshot on a node."""
        least = load.ended(self._writers)
        self._cluster.take(node, name)
        with self._lock:
            self.bounds[name] = least, load.begun(self._writers)

    def check(self, nodes: Sequence[str], *names: str) -> None:
        """Check what each snapshot shows, and that every one of the nodes shows the same."""
        for name in names or tuple(self.bounds):
            images = [self._cluster.view(node, name) for node in nodes]
            load.check(images[0], self._writers, *self.bounds[name])
            assert len({hashlib.sha256(image).digest() for image in images}) == 1, name


def mine(names: Sequence[str], taken: Taken) -> list[str]:
    """Return the snapshots of this test among those that a host lists."""
    return [name for name in names if name in taken.bounds]
