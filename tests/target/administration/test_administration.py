# SPDX-License-Identifier: Apache-2.0
"""The face of the administration: its answers, and the mutual exclusion of changes."""

from __future__ import annotations

import threading

import pytest

from target import messages
from target.administration.administration import Administration
from target.configuration import settings
from target.service import problems
from target.service.service import Service


def test_volumes_and_luns_are_shown(admin: Administration, service: Service) -> None:
    taken = service.snapshots.create_snapshot("vol0", "s")
    assert [(volume.name, volume.lun, volume.state) for volume in admin.volumes()] == [
        ("vol0", 0, "online"),
        ("vol1", 1, "online"),
    ]
    assert admin.volume("vol1").size == 1 << 20
    assert {lun.lun: lun.unit for lun in admin.luns()} == {
        0: "vol0",
        1: "vol1",
        taken.view_lun: "vol0@s",
    }
    assert admin.who().networks == ("127.0.0.0/8",)


def test_text_of_an_object_is_a_part_of_a_configuration_file(admin: Administration) -> None:
    assert "name: vol0" in admin.text_of("volume", "vol0").text
    admin.put_initiator(
        "iqn.2026-11.x:a", messages.Initiator("iqn.2026-11.x:a"), create=True, force=True, dry_run=False
    )
    assert "name: iqn.2026-11.x:a" in admin.text_of("initiator", "IQN.2026-11.x:A").text
    with pytest.raises(problems.Problem, match="did you mean vol0"):
        admin.text_of("volume", "vol00")


def test_changes_wait_for_each_other(admin: Administration, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both volumes are there afterwards: neither change began from settings that the other replaced."""
    adding, second_made = threading.Event(), threading.Event()
    add = service.inventory.add_volume

    def slow(configured: settings.Volume, *, force: bool = False) -> None:
        adding.set()
        second_made.wait(0.2)  # a second change that did not wait would be made within this time
        add(configured)

    monkeypatch.setattr(service.inventory, "add_volume", slow)

    def create(name: str) -> None:
        admin.create_volume(messages.CreateVolume(name, "1MiB"), dry_run=False)

    first = threading.Thread(target=create, args=("a",))
    first.start()
    assert adding.wait(30)

    def create_second() -> None:
        create("b")
        second_made.set()

    second = threading.Thread(target=create_second)
    second.start()
    first.join()
    second.join()
    assert [volume.name for volume in admin.running().volumes] == ["vol0", "vol1", "a", "b"]


def test_failed_change_leaves_the_lock_free(admin: Administration) -> None:
    for _ in range(2):
        with pytest.raises(problems.Problem):
            admin.create_volume(messages.CreateVolume("vol0", "1MiB"), dry_run=False)
