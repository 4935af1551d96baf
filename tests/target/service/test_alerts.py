# SPDX-License-Identifier: Apache-2.0
"""Each alert begins and ends with its condition; test_explanations has the codes."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from lun_backends import write_once
from lun_backends.volumes import manifest
from target import messages
from target.configuration import reader
from target.iscsi.load import Load
from target.service import alerts
from target.service.service import Service
from tests.target.administration.fabric import BookFabric
from tests.target.service.conftest import VOLUMES, Serve

GIB = 1 << 30


def current(service: Service, *, free: int = GIB, **unkept: str) -> dict[str, messages.Alert]:
    return {alert.code: alert for alert in alerts.current(service.inventory, unkept, free, GIB, manifest.now())}


def test_sound_daemon_has_no_alert(service: Service) -> None:
    assert current(service) == {}


def test_volume_that_is_not_served_has_an_alert(serve: Serve) -> None:
    service = serve(VOLUMES + "  - {name: vol2, lun: 2, primary: /nonexistent/disk}\n")
    alert = current(service)["volume-failed"]
    assert alert.subject == "vol2"
    assert "/nonexistent/disk does not exist" in alert.message


def test_alert_of_an_invalid_snapshot_ends_with_its_deletion(service: Service) -> None:
    service.snapshots.create_snapshot("vol0", "s")
    device = service.inventory.find("vol0", "s")[1].write_once
    assert isinstance(device, write_once.WriteOnce)
    device.invalidate("for a test")
    alert = current(service)["snapshot-invalid"]
    assert (alert.subject, alert.remedy) == ("vol0@s", "delete vol0@s and take a new one")
    service.snapshots.delete_snapshot("vol0", "s").wait()
    assert current(service) == {}


def test_other_size_in_the_configuration_has_an_alert(serve: Serve) -> None:
    serve()
    service = serve(VOLUMES.replace("vol0, lun: 0, size: 1MiB", "vol0, lun: 0, size: 2MiB"))
    alert = current(service)["size-differs"]
    assert alert.message == "volume vol0 has 1MiB, but the configuration says 2MiB"
    service.reshaping.resize("vol0", 2 << 20)
    assert current(service) == {}


@pytest.mark.parametrize(("chunks", "code"), [(4, None), (5, "snapshot-space-low"), (8, "snapshot-space-full")])
def test_space_near_and_at_the_limit_has_alerts(serve: Serve, chunks: int, code: str | None) -> None:
    """The limit is reached when not one more chunk of 64 KiB fits, 8 KiB before its last byte."""
    service = serve("  - {name: vol0, lun: 0, size: 1MiB, limit: 520KiB, warn_at: 50}\n")
    device = service.inventory.volume("vol0").device
    device.writev(0, [memoryview(bytes([6]) * (1 << 20))])
    service.snapshots.create_snapshot("vol0", "s")
    for chunk in range(chunks):
        device.writev(chunk * (64 << 10), [memoryview(bytes([7]) * 512)])
    assert set(current(service)) == ({code} if code else set())


def test_schedule_that_is_not_kept_has_an_alert(service: Service) -> None:
    assert current(service, vol0="no room")["schedule-failed"].message == "the schedule of vol0 is not kept: no room"


def test_snapshot_with_a_future_date_has_an_alert(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    now = manifest.now()
    monkeypatch.setattr(manifest, "now", lambda: now + datetime.timedelta(days=1))
    service.snapshots.create_snapshot("vol0", "s")
    assert current(service) == {}
    monkeypatch.setattr(manifest, "now", lambda: now)
    alert = current(service)["clock-differs"]
    assert alert.subject == "vol0"
    assert alert.message.startswith("snapshot vol0@s is dated ")
    service.snapshots.delete_snapshot("vol0", "s").wait()
    assert current(service) == {}


def test_little_free_space_has_an_alert(service: Service) -> None:
    limit = GIB * 5 // 100
    assert set(current(service, free=limit - 1)) == {"low-space"}
    assert current(service, free=limit + 1) == {}


def test_access_that_admits_no_initiator_has_an_alert(service: Service) -> None:
    closed = service.inventory.settings.access.model_copy(update={"networks": ()})
    service.inventory.put_settings(service.inventory.settings.model_copy(update={"access": closed}))
    assert set(current(service)) == {"nobody-may-log-in"}


def test_initiator_without_its_secret_has_an_alert(tmp_path: Path) -> None:
    access = "access: {initiators: [{name: 'iqn.2026-11.x:a', chap: {name: a, secret_file: missing}}]}\n"
    text = f"target: iqn.2026-11.io.wolun:t\n{access}volumes: []\n"
    service = Service(reader.parse(text, "f.yaml"), tmp_path / "state")
    assert current(service)["initiator-broken"].subject == "iqn.2026-11.x:a"
    service.stop()
    service.close()


def test_mapping_of_a_write_once_lun_that_its_volume_hides_has_an_alert(serve: Serve) -> None:
    access = "initiators: [{name: 'iqn.2026-11.x:a', luns: [{lun: 4, unit: vol0@s/write-once}]}]"
    volumes = "  - {name: vol0, lun: 0, size: 1MiB, map_write_once: MAPPED}\n"
    for mapped, codes in (("none", ["write-once-not-mapped"]), ("read-only", [])):
        service = serve(volumes.replace("MAPPED", mapped), access=access)
        assert [alert.code for alert in service.status.alerts()] == codes


def test_address_that_cannot_be_bound_has_an_alert(service: Service) -> None:
    fabric = BookFabric("192.0.2.7:3260", "127.0.0.1:3260")
    fabric.not_bound = {"192.0.2.7:3260": "cannot listen for initiators on 192.0.2.7:3260 (no such address)"}
    service.fabric_started(fabric)
    alert = current(service)["portal-unbound"]
    assert (alert.subject, alert.message) == ("192.0.2.7:3260", fabric.not_bound["192.0.2.7:3260"])
    assert service.inventory.portal_address == "127.0.0.1:3260", "URLs that are shown can be reached"
    assert service.status.status().portals_unbound == ("192.0.2.7:3260",)
    fabric.not_bound = {}
    assert current(service) == {}


@pytest.mark.parametrize(("ago", "shown"), [(None, False), (1.0, True), (599.0, True), (601.0, False)])
def test_login_that_found_no_session_left_is_an_alert_for_a_while(
    service: Service, ago: float | None, shown: bool
) -> None:
    fabric = BookFabric("127.0.0.1:3260")
    fabric.loaded = Load(256, 256, 3, ago, 0, 1, 0)
    service.fabric_started(fabric)
    alert = current(service).get("sessions-full")
    assert (alert is not None) is shown
    if alert is not None:
        assert "256 of 256 now" in alert.message


def test_name_that_two_hosts_share_has_an_alert(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    clash = {"iqn.2026-11.x:a": ("192.0.2.1", "192.0.2.2")}
    monkeypatch.setattr(service.inventory.fabric, "name_clashes", lambda: clash, raising=False)
    (alert,) = service.status.alerts()
    assert (alert.code, alert.subject) == ("initiator-name-shared", "iqn.2026-11.x:a")
    assert "192.0.2.1 and 192.0.2.2" in alert.message
