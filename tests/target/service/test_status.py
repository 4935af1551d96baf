# SPDX-License-Identifier: Apache-2.0
"""The status shows volumes, sessions and jobs as they are."""

from __future__ import annotations

import threading

from target.service import jobs
from target.service.service import Service
from tests.target.service.conftest import VOLUMES, Serve


def test_volume_is_shown_as_it_is(service: Service) -> None:
    owner = service.inventory.volume("vol0")
    owner.device.writev(0, [memoryview(bytes([6]) * 512)])
    service.snapshots.create_snapshot("vol0", "a")
    owner.device.writev(0, [memoryview(bytes([7]) * 512)])
    first, second = service.status.status().volumes
    assert (first.name, first.lun, first.state, first.size, first.snapshots) == ("vol0", 0, "online", 1 << 20, 1)
    assert first.preserved_bytes == owner.chunk_size
    assert second.snapshots == 0
    service.reshaping.resize("vol0", 2 << 20)
    assert service.status.volume(service.inventory.settings.volumes[0]).size == 2 << 20


def test_failed_volume_has_its_reason_and_configured_size(serve: Serve) -> None:
    service = serve(VOLUMES + "  - {name: vol2, lun: 2, size: 3MiB, primary: /nonexistent/dir/disk}\n")
    status = service.status.status()
    failed = status.volumes[2]
    assert (failed.state, failed.size, failed.primary_used_bytes) == ("failed", 3 << 20, 0)
    assert "/nonexistent/dir/disk" in failed.trouble
    assert status.trouble == (f"volume vol2 is not served: {failed.trouble}",)
    assert [alert.code for alert in status.alerts] == [alert.code for alert in service.status.alerts()]


def test_only_running_jobs_are_shown(service: Service) -> None:
    ending = threading.Event()

    def work(job: jobs.Job) -> None:
        ending.wait(60)

    job = service.jobs.start("test", "nothing", work)
    assert [shown.id for shown in service.status.status().jobs] == [job.number]
    ending.set()
    assert job.wait(60)
    assert service.status.status().jobs == ()
