# SPDX-License-Identifier: Apache-2.0
"""First writes into RADOS, against those of a snapshot of RBD in the same cluster: 4 KiB in each 64 KiB, 32 in flight.

RBD's cache is off, so both sides wait until the OSD has the data.  The writes of one side go to a new namespace, those of
the other to a new image that was filled and then snapshotted.
"""

from __future__ import annotations

import itertools
import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from lun_backends.stores import contract
from tests import ceph, peers
from tests.bench import common, measure, servers
from tests.lun_backends.stores import kinds

_WRITES = 4000
_BAR = 1.0
_numbers = itertools.count()


def first_writes(settings: common.Settings) -> Iterator[measure.Row]:
    """Measure both sides, with chunks of 4 KiB and with chunks of 64 KiB."""
    cluster = ceph.Cluster()
    try:
        for chunk, bar in ((4096, _BAR), (common.CHUNK, None)):
            pair = measure.alternate(
                lambda chunk=chunk: _ours(cluster, settings.directory, chunk),  # type: ignore[misc]
                lambda: _rbd(cluster, settings.directory),
                settings.rounds,
            )
            work = f"4 KiB first write in each 64 KiB into RADOS, chunks of {chunk >> 10} KiB"
            yield pair.row(work, unit="writes/s", at_least=bar, peer="rbd")
    finally:
        cluster.close()


def _ours(cluster: ceph.Cluster, directory: Path, chunk: int) -> float:
    place = directory / f"ours-{next(_numbers)}"
    stores = kinds.in_pool(place, str(cluster.conf), uuid.uuid4())
    stores.check(new=True)
    geometry = contract.Geometry(uuid.uuid4(), stores.volume, _WRITES * common.CHUNK, 512, chunk)
    store = kinds.create(stores, geometry)
    data, per_write = [memoryview(os.urandom(chunk))], common.CHUNK // 512
    puts = (contract.Put(number * per_write, chunk // 512, data) for number in range(_WRITES))
    began = time.perf_counter()
    store.put_many(puts)
    seconds = time.perf_counter() - began
    store.close()
    stores.remove(store.snapshot)
    stores.close()
    return _WRITES / seconds


def _rbd(cluster: ceph.Cluster, directory: Path) -> float:
    name = f"image-{next(_numbers)}"
    image = f"{ceph.Cluster.POOL}/{name}"
    size = _WRITES * common.CHUNK >> 20
    rbd = ["env", f"CEPH_CONF={cluster.conf}", peers.require("rbd", "ceph-common")]
    servers.run([*rbd, "create", "--size", f"{size}M", image])
    whole = ["--io-type", "write", "--io-size", "4M", "--io-threads", "4", "--io-total", f"{size}M"]
    servers.run([*rbd, "bench", *whole, image])
    servers.run([*rbd, "snap", "create", f"{image}@before"])
    job = directory / "job.fio"
    job.write_text(
        f"[first]\nioengine=rbd\nclientname=admin\npool={ceph.Cluster.POOL}\nrbdname={name}\n"
        f"rw=write:{common.CHUNK - 4096}\nbs=4k\niodepth=32\nnumber_ios={_WRITES}\nsize={size}M\n"
    )
    fio = ["env", f"CEPH_CONF={cluster.conf}", "CEPH_ARGS=--rbd_cache=false", peers.require("fio")]
    text = servers.run([*fio, "--output-format=json", str(job)])
    (done,) = json.loads(text[text.index("{") :])["jobs"]
    servers.run([*rbd, "snap", "rm", f"{image}@before"])
    servers.run([*rbd, "rm", image])
    assert done["write"]["total_ios"] == _WRITES
    return float(done["write"]["iops"])
