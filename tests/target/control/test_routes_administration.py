# SPDX-License-Identifier: Apache-2.0
"""The requests for volumes, LUNs, portals and alerts."""

from __future__ import annotations

import pytest

from target.control.client import Client, Failed
from target.messages import ChangeVolume, CreateVolume
from tests import daemon
from tests.target.control.asking import ask


def test_volume_is_created_changed_resized_and_deleted(client: Client) -> None:
    client.create_volume(CreateVolume("more", size="1MiB", lun=9))
    assert {volume.name for volume in client.volumes()} == {"vol0", "more"}
    client.change_volume("more", ChangeVolume(lun=11), force=False)
    assert client.volume("more").lun == 11
    assert client.resize_volume("more", 2 << 20).size == 2 << 20
    assert "name: more" in client.text_of_volume("more")
    assert 11 in [lun.lun for lun in client.luns()]
    client.delete_volume("more", force=False, data=True)
    assert [volume.name for volume in client.volumes()] == ["vol0"]


def test_dry_run_changes_nothing(client: Client) -> None:
    client.dry_run = True
    client.create_volume(CreateVolume("dry", size="1MiB"))
    client.delete_volume("vol0", force=False, data=False)
    assert [volume.name for volume in client.volumes()] == ["vol0"]
    with pytest.raises(Failed) as refused:
        client.create_volume(CreateVolume("vol0", size="1MiB"))
    assert "vol0" in refused.value.refusal.message


def test_portal_is_created_and_deleted(client: Client, running: daemon.Daemon) -> None:
    def addresses() -> list[str]:
        return list(ask(running, "GET", "/v1/status")[1]["portals"])

    (first,) = addresses()
    client.create_portal("127.0.0.1:0")
    (second,) = set(addresses()) - {first}
    client.delete_portal(second, force=False)
    assert addresses() == [first]


def test_there_are_no_alerts_without_trouble(client: Client) -> None:
    assert client.alerts() == []
