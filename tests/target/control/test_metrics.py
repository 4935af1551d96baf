# SPDX-License-Identifier: Apache-2.0
"""The metrics: Prometheus reads them, and they count."""

from __future__ import annotations

import types
from pathlib import Path
from typing import cast

from prometheus_client import parser

from target.configuration import reader
from target.control import metrics
from target.service.service import Service
from tests import daemon
from tests.target.control.asking import ask


def test_prometheus_reads_the_metrics(running: daemon.Daemon) -> None:
    with running.session() as session:
        session.settle(0)
        assert session.command(0, b"\x2a\x00\x00\x00\x00\x00\x00\x00\x80\x00", out=bytes(64 << 10)).status == 0
        _, text = ask(running, "GET", "/metrics")
    samples = {
        (sample.name, sample.labels.get("unit") or sample.labels.get("snapshot") or ""): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["wolun_sessions", ""] == 1
    assert 0 < samples["wolun_open_files", ""] < samples["wolun_open_files_limit", ""]
    assert samples["wolun_written_bytes_total", "vol0"] == 64 << 10
    assert samples["wolun_commands_total", "vol0"] >= 1
    assert samples["wolun_copies_total", ""] == 16  # grains
    assert samples["wolun_futile_copies_total", ""] == 0
    assert samples["wolun_snapshot_preserved_bytes", "kept"] == 64 << 10
    assert samples["wolun_snapshot_held_seconds", "kept"] > 0
    assert samples["wolun_volume_up", ""] == 1
    assert (samples["wolun_sessions_limit", ""], samples["wolun_refused_sessions_total", ""]) == (256, 0)
    assert samples["wolun_data_memory_limit_bytes", ""] == 256 << 20
    assert 0 < samples["wolun_state_free_bytes", ""] <= samples["wolun_state_size_bytes", ""]
    assert samples["wolun_volume_rollback_unfinished", ""] == 0


def test_schedule_that_is_not_kept_is_zero(tmp_path: Path) -> None:
    keys = "size: 1MiB, schedule: hourly, keep: {hourly: 1}"
    volumes = f"[{{name: kept, lun: 0, {keys}}}, {{name: unkept, lun: 1, {keys}}}, {{name: free, lun: 2, size: 1MiB}}]"
    service = Service(reader.parse(f"target: iqn.2026-11.io.wolun:t\nvolumes: {volumes}\n", "f.yaml"), tmp_path)
    service.inventory.remove_volume(service.inventory.settings.volumes[1])
    service.scheduler.look()
    service.scheduler.close()
    families = {family.name: family for family in metrics.Collector(service).collect()}
    samples = families["wolun_volume_schedule_kept"].samples
    assert {sample.labels["volume"]: sample.value for sample in samples} == {"kept": 1, "unkept": 0}
    periods = families["wolun_volume_schedule_period_seconds"].samples
    assert {sample.labels["volume"]: sample.value for sample in periods} == {"kept": 3600, "unkept": 3600}
    service.stop()
    service.close()


def test_pool_has_its_luns_by_state(tmp_path: Path) -> None:
    pool = "write_once: [{volume: far, size: 1MiB, pool: 3}]\n"
    service = Service(reader.parse(f"target: iqn.2026-11.io.wolun:t\n{pool}volumes: []\n", "f.yaml"), tmp_path)
    families = {family.name: family for family in metrics.Collector(service).collect()}
    luns = families["wolun_pool_luns"].samples
    assert {sample.labels["state"]: sample.value for sample in luns} == {"blank": 3, "taken": 0, "lost": 0}
    assert [sample.value for sample in families["wolun_pool_blanks_wanted"].samples] == [3]
    assert [sample.value for sample in families["wolun_pool_log_records"].samples] == [0]
    service.stop()
    service.close()


def test_names_in_metrics_are_printable() -> None:
    inventory = types.SimpleNamespace(failed={"v\x1b[2J": "gone"}, open_volumes={})
    service = types.SimpleNamespace(
        inventory=inventory, jobs=None, clones=None, scheduler=None, nodes=None, pools=None, status=None
    )
    (up,) = (
        family for family in metrics.Collector(cast(Service, service))._volumes() if family.name == "wolun_volume_up"
    )
    assert [sample.labels["volume"] for sample in up.samples] == ["v\\x1b[2J"]
