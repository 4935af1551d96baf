# SPDX-License-Identifier: Apache-2.0
"""The metrics for Prometheus, read from the counting parts at the moment it asks."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Iterator

from prometheus_client import core, registry

import target
from lun_backends import write_once
from lun_backends.volumes import manifest
from target import descriptors, messages, printable
from target.service.pool import State
from target.service.service import Service


class Collector(registry.Collector):
    """All metrics of one daemon."""

    def __init__(self, service: Service) -> None:
        self._inventory = service.inventory
        self._jobs = service.jobs
        self._own_clones = service.clones
        self._scheduler = service.scheduler
        self._sharing = service.nodes
        self._shared_pools = service.pools
        self._status = service.status

    def collect(self) -> Iterator[core.Metric]:
        """Yield one family of metrics after the other."""
        yield core.InfoMetricFamily("wolun", "The daemon.", {"version": target.VERSION})
        yield core.GaugeMetricFamily(
            "wolun_sessions", "Sessions of initiators.", len(self._inventory.fabric.sessions())
        )
        yield core.GaugeMetricFamily("wolun_open_files", "File descriptors in use.", descriptors.used())
        yield core.GaugeMetricFamily(
            "wolun_open_files_limit", "File descriptors that the daemon may have.", descriptors.limit()
        )
        running = sum(not job.ended for job in self._jobs.all())
        yield core.GaugeMetricFamily("wolun_jobs_running", "Jobs that run.", running)
        failed = core.CounterMetricFamily("wolun_failed_logins", "Logins refused.", labels=["status"])
        for status, number in self._inventory.fabric.failed_logins().items():
            failed.add_metric([status.name.lower()], number)
        yield failed
        yield from self._state_space()
        yield self._alerts()
        yield from self._load()
        yield from self._units()
        yield from self._latencies()
        yield from self._limited()
        yield from self._volumes()
        yield self._rollbacks()
        yield from self._nodes()
        yield from self._pools()
        yield from self._schedules()
        yield self._scheduled_age()
        yield from self._all_schedules()
        yield from self._checks()
        yield from self._replications()
        yield from self._snapshots()
        yield from self._clones()

    def _state_space(self) -> Iterator[core.Metric]:
        space, gauge = shutil.disk_usage(self._inventory.state_dir), core.GaugeMetricFamily
        yield gauge("wolun_state_free_bytes", "Free bytes of the file system that holds the state.", space.free)
        yield gauge("wolun_state_size_bytes", "Bytes of the file system that holds the state.", space.total)

    def _alerts(self) -> core.Metric:
        alert = core.GaugeMetricFamily(
            "wolun_alert", "1 for each alert, for as long as it lasts.", labels=["code", "subject"]
        )
        # Prometheus refuses a series that comes twice.
        for key in dict.fromkeys((alert.code, printable.line(alert.subject)) for alert in self._status.alerts()):
            alert.add_metric(key, 1)
        return alert

    def _load(self) -> Iterator[core.Metric]:
        load = self._inventory.fabric.load()
        if load is None:
            return
        gauge, counter = core.GaugeMetricFamily, core.CounterMetricFamily
        yield gauge("wolun_sessions_limit", "The most sessions, without those for discovery.", load.most_sessions)
        yield counter("wolun_refused_sessions", "Logins that found no session left.", load.refused_sessions)
        yield gauge("wolun_data_memory_bytes", "Memory that the data of commands takes.", load.memory)
        yield gauge("wolun_data_memory_limit_bytes", "The most that it may take.", load.most_memory)
        yield counter("wolun_task_set_full", "Commands that found no memory for their data.", load.full)

    def _units(self) -> Iterator[core.Metric]:
        labels = ["lun", "unit"]
        commands = core.CounterMetricFamily("wolun_commands", "SCSI commands executed.", labels=labels)
        errors = core.CounterMetricFamily("wolun_command_errors", "SCSI commands that failed.", labels=labels)
        read = core.CounterMetricFamily("wolun_read_bytes", "Bytes read by initiators.", labels=labels)
        written = core.CounterMetricFamily("wolun_written_bytes", "Bytes written by initiators.", labels=labels)
        for lun, unit in self._inventory.scsi.luns.items():
            key = [str(lun), printable.line(unit.name)]
            commands.add_metric(key, unit.counters.commands)
            errors.add_metric(key, unit.counters.errors)
            read.add_metric(key, unit.counters.bytes_read)
            written.add_metric(key, unit.counters.bytes_written)
        yield from (commands, errors, read, written)

    def _limited(self) -> Iterator[core.Metric]:
        labels = ["kind", "subject"]
        commands = core.CounterMetricFamily(
            "wolun_limited_commands", "Commands that waited for a limit.", labels=labels
        )
        seconds = core.CounterMetricFamily(
            "wolun_limited_seconds", "How long commands waited for a limit.", labels=labels
        )
        buckets = [
            ("volume", unit.name, unit.bucket) for unit in self._inventory.scsi.luns.values() if unit.bucket is not None
        ]
        buckets += [("initiator", name, bucket) for name, bucket in self._inventory.access.limited().items()]
        for kind, subject, bucket in buckets:
            commands.add_metric([kind, printable.line(subject)], bucket.limited)
            seconds.add_metric([kind, printable.line(subject)], bucket.seconds)
        yield from (commands, seconds)

    def _latencies(self) -> Iterator[core.Metric]:
        duration = core.HistogramMetricFamily(
            "wolun_command_duration_seconds",
            "How long SCSI commands took, with their wait for a worker, a disk or a limit.",
            labels=["lun", "unit", "command"],
        )
        for lun, unit in self._inventory.scsi.luns.items():
            for kind, row in unit.latencies.by_kind.items():
                buckets = [("+Inf" if bound is None else repr(bound), count) for bound, count in row.buckets()]
                if buckets[-1][1]:
                    duration.add_metric(
                        [str(lun), printable.line(unit.name), kind], buckets, row.microseconds / 1_000_000
                    )
        yield duration

    def _volumes(self) -> Iterator[core.Metric]:
        up = core.GaugeMetricFamily("wolun_volume_up", "1 if the volume is served.", labels=["volume"])
        for name in self._inventory.failed:
            up.add_metric([printable.line(name)], 0)
        counters = {
            "copies": core.CounterMetricFamily("wolun_copies", "Grains (4 KiB) preserved.", labels=["volume"]),
            "futile_copies": core.CounterMetricFamily(
                "wolun_futile_copies", "Grains copied that another writer had preserved already.", labels=["volume"]
            ),
            "copied_bytes": core.CounterMetricFamily("wolun_copied_bytes", "Bytes preserved.", labels=["volume"]),
            "commits": core.CounterMetricFamily(
                "wolun_copy_commits", "Commits of preserved grains, many grains each.", labels=["volume"]
            ),
            "failures": core.CounterMetricFamily(
                "wolun_copy_failures", "Chunks that could not be preserved.", labels=["volume"]
            ),
            "waits": core.CounterMetricFamily(
                "wolun_copy_waits", "Writes that waited for the copy of another write.", labels=["volume"]
            ),
        }
        kept = core.GaugeMetricFamily(
            "wolun_volume_preserved_bytes", "Bytes of old data in all its snapshots.", labels=["volume"]
        )
        limit = core.GaugeMetricFamily(
            "wolun_volume_preserved_limit_bytes",
            "The limit of the bytes of old data in all its snapshots.",
            labels=["volume"],
        )
        low = core.GaugeMetricFamily(
            "wolun_volume_space_low", "1 if the snapshots keep more than the warning threshold.", labels=["volume"]
        )
        for name, volume in self._inventory.open_volumes.items():
            key = [printable.line(name)]
            up.add_metric(key, 1)
            kept.add_metric(key, volume.space.used)
            if volume.space.limit is not None:
                limit.add_metric(key, volume.space.limit)
                low.add_metric(key, int(volume.space.low))
            for field, family in counters.items():
                family.add_metric(key, getattr(volume.counters, field))
        yield from (up, kept, limit, low)
        yield from counters.values()

    def _rollbacks(self) -> core.Metric:
        unfinished = core.GaugeMetricFamily(
            "wolun_volume_rollback_unfinished",
            "1 if a rollback of the volume has begun and has not ended: it runs, or it has stopped.",
            labels=["volume"],
        )
        for name, volume in self._inventory.open_volumes.items():
            unfinished.add_metric([printable.line(name)], 0 if volume.rolling_back_to is None else 1)
        return unfinished

    def _nodes(self) -> Iterator[core.Metric]:
        """Yield the part of this host in shared volumes."""
        labels = ["volume", "node"]
        gauge = core.GaugeMetricFamily
        armed = gauge("wolun_node_armed", "1 if the node takes part in the volume.", labels=labels)
        epoch = gauge("wolun_node_epoch", "The snapshots that were ever taken of the volume.", labels=labels)
        pending = gauge("wolun_node_fence_pending_seconds", "How long a fence has been pending.", labels=labels)
        pool = gauge("wolun_node_pool_luns", "Blank write-once LUNs for further snapshots.", labels=labels)
        members = gauge("wolun_node_exchange_members", "Nodes that tell each other what they preserved.", labels=labels)
        sent = {
            unit: core.CounterMetricFamily(
                f"wolun_node_exchange_{unit}", f"{unit.capitalize()} about what was preserved.", labels=[*labels, "way"]
            )
            for unit in ("messages", "bytes")
        }
        for name, sharing in self._shared():
            key = [printable.line(name), sharing.node]
            members.add_metric(key, sharing.exchange_members)
            for unit, family in sent.items():
                for way in ("sent", "taken"):
                    family.add_metric([*key, way], getattr(sharing, f"exchange_{unit}_{way}"))
            armed.add_metric(key, int(sharing.state == "armed"))
            pending.add_metric(key, sharing.fence_pending_seconds or 0.0)
            if sharing.epoch is not None:
                epoch.add_metric(key, sharing.epoch)
            if sharing.pool is not None:
                pool.add_metric(key, sharing.pool)
        yield from (armed, epoch, pending, pool, members, *sent.values())

    def _shared(self) -> Iterator[tuple[str, messages.Sharing]]:
        for shared in self._inventory.settings.shared:
            sharing = self._sharing.sharing(shared.name)
            if sharing is not None:
                yield shared.name, sharing

    def _pools(self) -> Iterator[core.Metric]:
        luns = core.GaugeMetricFamily(
            "wolun_pool_luns", "Write-once LUNs of the pool, by state.", labels=["volume", "state"]
        )
        wanted = core.GaugeMetricFamily(
            "wolun_pool_blanks_wanted", "Blank write-once LUNs that the pool is to have.", labels=["volume"]
        )
        records = core.GaugeMetricFamily("wolun_pool_log_records", "Records in the log of the pool.", labels=["volume"])
        for pool in self._shared_pools.shown():
            for state in State:
                luns.add_metric([pool.volume, state.value], sum(lun.state == state.value for lun in pool.luns))
            wanted.add_metric([pool.volume], pool.blanks_wanted)
            records.add_metric([pool.volume], pool.records)
        yield from (luns, wanted, records)

    def _schedules(self) -> Iterator[core.Metric]:
        kept = core.GaugeMetricFamily(
            "wolun_volume_schedule_kept", "1 if the volume's schedule is kept, 0 if it is not.", labels=["volume"]
        )
        period = core.GaugeMetricFamily(
            "wolun_volume_schedule_period_seconds",
            "The longest period in which the volume's schedule takes one snapshot.",
            labels=["volume"],
        )
        unkept, now = self._scheduler.unkept(), manifest.now()
        for configured in self._inventory.settings.all_volumes:
            if configured.schedule is not None:
                kept.add_metric([configured.name], 0 if configured.name in unkept else 1)
                longest = configured.schedule.longest(now)
                if longest is not None:
                    period.add_metric([configured.name], longest.total_seconds())
        yield from (kept, period)

    def _all_schedules(self) -> Iterator[core.Metric]:
        labels = ["kind", "subject"]
        kept = core.GaugeMetricFamily(
            "wolun_schedule_kept", "1 if the schedule is kept, 0 if it is not.", labels=labels
        )
        last = core.GaugeMetricFamily(
            "wolun_schedule_last_timestamp_seconds", "When the schedule last did its work, in Unix time.", labels=labels
        )
        following = core.GaugeMetricFamily(
            "wolun_schedule_next_timestamp_seconds", "When the schedule is due next, in Unix time.", labels=labels
        )
        period = core.GaugeMetricFamily(
            "wolun_schedule_period_seconds", "The longest time from one to the next.", labels=labels
        )
        for schedule in self._scheduler.schedules():
            key = [schedule.kind, schedule.subject]
            kept.add_metric(key, 0 if schedule.trouble else 1)
            for family, moment in ((last, schedule.last), (following, schedule.next)):
                if moment is not None:
                    family.add_metric(key, datetime.datetime.fromisoformat(moment).timestamp())
            if schedule.period_seconds is not None:
                period.add_metric(key, schedule.period_seconds)
        yield from (kept, last, following, period)

    def _checks(self) -> Iterator[core.Metric]:
        damaged = core.GaugeMetricFamily(
            "wolun_volume_check_damaged_bytes",
            "Bytes of old data that the volume's last scheduled check found damaged.",
            labels=["volume"],
        )
        for volume in self._inventory.settings.volumes:
            found = self._scheduler.checks.found(volume.name)
            if volume.verify is not None and found is not None:
                damaged.add_metric([volume.name], sum(found.damaged.values()))
        yield damaged

    def _clones(self) -> Iterator[core.Metric]:
        labels = ["clone", "volume", "snapshot"]
        used = core.GaugeMetricFamily("wolun_clone_used_bytes", "Bytes that the clone has itself.", labels=labels)
        limit = core.GaugeMetricFamily("wolun_clone_limit_bytes", "The most of them.", labels=labels)
        online = core.GaugeMetricFamily("wolun_clone_online", "1 if the clone can be used.", labels=labels)
        for clone in self._own_clones.list_clones():
            key = [clone.name, clone.volume, clone.snapshot]
            used.add_metric(key, clone.used_bytes)
            online.add_metric(key, clone.state == "online")
            if clone.limit is not None:
                limit.add_metric(key, clone.limit)
        yield from (used, limit, online)

    def _scheduled_age(self) -> core.Metric:
        age = core.GaugeMetricFamily(
            "wolun_volume_scheduled_age_seconds",
            "Time since the newest valid snapshot that the volume's schedule took.",
            labels=["volume"],
        )
        now = manifest.now()
        for name, volume in self._inventory.open_volumes.items():
            taken = [
                snapshot.taken_at
                for snapshot in volume.snapshots
                if snapshot.scheduled and not snapshot.deleting and not snapshot.is_invalid
            ]
            if taken:
                age.add_metric([printable.line(name)], (now - taken[-1]).total_seconds())
        return age

    def _replications(self) -> Iterator[core.Metric]:
        labels = ["volume", "replication"]
        lag = core.GaugeMetricFamily(
            "wolun_replication_lag_seconds", "The age of the newest snapshot that the receiver has.", labels=labels
        )
        failing = core.GaugeMetricFamily("wolun_replication_failing", "1 if the last try failed.", labels=labels)
        for one in self._status.replications():
            lag.add_metric([one.volume, one.name], one.lag_seconds)
            failing.add_metric([one.volume, one.name], int(bool(one.trouble)))
        yield from (lag, failing)

    def _snapshots(self) -> Iterator[core.Metric]:
        labels = ["volume", "snapshot"]
        used = core.GaugeMetricFamily(
            "wolun_snapshot_used_bytes", "Space that the snapshot takes on disk.", labels=labels
        )
        preserved = core.GaugeMetricFamily(
            "wolun_snapshot_preserved_bytes", "Bytes preserved in the snapshot.", labels=labels
        )
        held = core.GaugeMetricFamily(
            "wolun_snapshot_held_seconds", "How long writes were held to take the snapshot.", labels=labels
        )
        valid = core.GaugeMetricFamily(
            "wolun_snapshot_valid", "0 if the snapshot is invalid: it must no longer be read.", labels=labels
        )
        damaged = core.GaugeMetricFamily(
            "wolun_snapshot_damaged_chunks",
            "Chunks of the snapshot that were found damaged since the daemon started.",
            labels=labels,
        )
        doubtful = core.GaugeMetricFamily(
            "wolun_snapshot_doubtful", "1 if the snapshot may not be true: its primary may have changed.", labels=labels
        )
        syncs = core.CounterMetricFamily("wolun_snapshot_syncs", "Waits for stable storage.", labels=[*labels, "call"])
        for name, volume in self._inventory.open_volumes.items():
            for snapshot in volume.snapshots:
                key = [printable.line(name), printable.line(snapshot.name)]
                used.add_metric(key, snapshot.used_bytes)
                preserved.add_metric(key, snapshot.preserved_bytes)
                valid.add_metric(key, 0 if snapshot.is_invalid else 1)
                damaged.add_metric(key, snapshot.damaged_chunks)
                doubtful.add_metric(key, 1 if snapshot.doubt else 0)
                if snapshot.held_seconds is not None:
                    held.add_metric(key, snapshot.held_seconds)
                if isinstance(snapshot.write_once, write_once.WriteOnce):
                    counted = snapshot.write_once.syncs
                    syncs.add_metric([*key, "data"], counted.data)
                    syncs.add_metric([*key, "map"], counted.map)
        yield from (used, preserved, held, valid, doubtful, damaged, syncs)
