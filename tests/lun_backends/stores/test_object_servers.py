# SPDX-License-Identifier: Apache-2.0
"""Servers of object storage that others wrote: one winner in each race, or the place is refused."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from lun_backends.stores import contract, engine_store, object_storage, settings
from tests import object_servers
from tests.lun_backends.stores import kinds, race


@pytest.mark.parametrize("kind", ["azurite", "moto"])
def test_two_processes_race_for_the_same_chunks(kind: str, tmp_path: Path) -> None:
    race.run(kind, tmp_path, rounds=race.ROUNDS)


def test_a_server_that_ignores_the_condition_is_refused_when_made_and_when_opened(tmp_path: Path) -> None:
    with object_servers.s3rver(tmp_path) as server:
        credentials = tmp_path / "credentials"
        credentials.write_text(server.credentials, encoding="ascii")
        place = settings.Objects(server.url, server.endpoint, "us-east-1", credentials)
        stores = engine_store.EngineStores(kinds.VOLUME, object_storage.ObjectStorage.open(place, uuid.uuid4()))
        for new in (True, False):
            with pytest.raises(contract.StoreUnfit, match="ignores If-None-Match"):
                stores.check(new=new)
        assert stores.engine.snapshots() == []
        stores.close()
