# SPDX-License-Identifier: Apache-2.0
"""The groups `volumes`, `write_once` and `shared`: their rules for combinations of keys."""

from __future__ import annotations

import pytest

from target.configuration import reader
from target.configuration.schedule import Every
from tests.target.configuration.files import HEAD, VOLUME, only


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (VOLUME.replace("1GiB", "1000"), "f.yaml:5: volumes[0].size: 1000B is not a whole number of blocks of 512"),
        (VOLUME.replace("1GiB", "0"), "f.yaml:5: volumes[0].size: 0B is not a whole number of blocks"),
        (VOLUME + "    snapshots: [a, b, a]\n", "f.yaml:6: volumes[0].snapshots[2]: a is listed already"),
        (
            VOLUME + "write_once: [{volume: a, snapshot: s, lun: 1, size: 1KiB, block_size: 4096}]\n",
            "f.yaml:6: write_once[0].size: 1KiB is not a whole number of blocks of 4096 bytes",
        ),
        (
            VOLUME + "write_once: [{volume: a, snapshot: s, size: 1MiB}]\n",
            "f.yaml:6: write_once[0].lun: a single LUN needs a number: write it, or write pool instead of snapshot",
        ),
        (
            VOLUME + "write_once: [{volume: a, lun: 1, size: 1MiB}]\n",
            "f.yaml:6: write_once[0].snapshot: a single LUN belongs to a snapshot: name it, or write pool instead of lun",
        ),
        (
            VOLUME + "write_once: [{volume: a, pool: 2, lun: 1, snapshot: s, size: 1MiB}]\n",
            "f.yaml:6: write_once[0].pool: a single LUN has no pool: write pool alone, or snapshot and lun alone",
        ),
        (
            VOLUME + "write_once: [{volume: a, size: 1MiB}, {volume: a, size: 1MiB, pool: 2}]\n",
            "f.yaml:6: write_once[1].volume: write_once[0] is its pool already",
        ),
        (
            VOLUME + "shared: [{name: a, snapshot: s, primary: /a, write_once: /b}]\n",
            "f.yaml:6: shared[0]: it would not be served: write lun, view_lun, or both",
        ),
    ],
)
def test_mistake_is_explained(text: str, line: str) -> None:
    assert only(text).startswith(line)


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ("schedule: hourly", "volumes[0].schedule: write which of its snapshots to keep"),
        ("schedule: hourly, keep: {}", "volumes[0].schedule: write which of its snapshots to keep"),
        ("keep: {daily: 1}", "volumes[0].keep: it does nothing without a schedule"),
        (
            "store: objects, chunk_size: 1MiB, copy_timeout: 9",
            "volumes[0].store: write where the objects are, like objects: {url: s3://bucket/prefix}",
        ),
        ("store: rados", "volumes[0].store: write where the objects are, like rados: {pool: wolun}"),
        ("rados: {pool: p}", "volumes[0].rados: it does nothing: the store is map"),
        (
            "store: objects, objects: {url: s3://b}, copy_timeout: 9",
            "volumes[0].chunk_size: 64KiB is too small for objects: write 256KiB, 512KiB or 1MiB",
        ),
        (
            "store: objects, objects: {url: s3://b}, chunk_size: 1MiB",
            "volumes[0].copy_timeout: objects need one, like copy_timeout: 60",
        ),
        (
            "store: rados, rados: {pool: p}, map_write_once: read-write",
            "volumes[0].map_write_once: initiators cannot write to rados: write read-only or none",
        ),
        (
            "schedule: weekly, keep: {daily: 3, weekly: 1}",
            "volumes[0].keep.daily: it does nothing: the schedule is weekly",
        ),
        ("schedule: daily, keep: {daily: 3}, max_snapshots: 3", "volumes[0].max_snapshots: the schedule keeps 3"),
        (
            "schedule: daily, keep: {daily: 3}, max_snapshots: 5, snapshots: [a, b]",
            "volumes[0].max_snapshots: the schedule keeps 3, 2 are listed, and takes one before it deletes one: write at least 6",
        ),
        (
            "max_snapshots: 1, snapshots: [a, b]",
            "volumes[0].max_snapshots: 2 snapshots are listed: write at least that many",
        ),
        ("schedule: often, keep: {daily: 3}", "allowed: hourly, daily, weekly, monthly"),
        ("schedule: daily, keep: {daily: -1}", "is too small: at least 0"),
    ],
)
def test_schedule_that_does_not_fit_is_explained(extra: str, problem: str) -> None:
    assert problem in only(f"{HEAD}volumes: [{{name: vol0, lun: 0, size: 1MiB, {extra}}}]\n")


def test_keep_counts_by_kind_of_period() -> None:
    (volume,) = reader.parse(VOLUME + "    schedule: daily\n    keep: {daily: 7, monthly: 2}\n", "f.yaml").volumes
    assert volume.keep is not None
    assert volume.keep.counts == {Every.HOURLY: 0, Every.DAILY: 7, Every.WEEKLY: 0, Every.MONTHLY: 2}


@pytest.mark.parametrize(
    ("group", "problem"),
    [
        ("name: g, volumes: [vol0, vol0]", "groups[0].volumes[1]: vol0 is listed already"),
        ("name: g, volumes: [vol0, vol1]", "groups[0].volumes[1]: there is no volume vol1 in volumes"),
        ("name: g, volumes: []", "this list must not be empty"),
        (f"name: {'g' * 37}, volumes: [vol0]", "groups[0].name: it is too long for names of snapshots"),
    ],
)
def test_group_that_does_not_fit_is_explained(group: str, problem: str) -> None:
    volumes = "volumes: [{name: vol0, lun: 0, size: 1MiB}]\n"
    assert problem in only(f"{HEAD}{volumes}groups: [{{{group}, schedule: daily, keep: {{daily: 1}}}}]\n")


def test_groups_have_names_of_their_own_and_schedules_that_fit() -> None:
    group = "{name: g, volumes: [vol0], schedule: daily, keep: {daily: 1}}"
    volumes = "volumes: [{name: vol0, lun: 0, size: 1MiB}]\n"
    assert "groups[1].name: another group is called g already" in only(f"{HEAD}{volumes}groups: [{group}, {group}]\n")
    hourly = group.replace("daily: 1", "hourly: 1")
    assert "groups[0].keep.hourly: it does nothing: the schedule is daily" in only(
        f"{HEAD}{volumes}groups: [{hourly}]\n"
    )


def test_speed_of_checks_is_a_size() -> None:
    (volume,) = reader.parse(VOLUME + "    verify: {schedule: weekly, speed: 50MiB}\n", "f.yaml").volumes
    assert volume.verify is not None
    assert volume.verify.speed == 50 << 20
    assert "write one of every, at and calendar" in only(VOLUME + "    verify: {schedule: {}}\n")


@pytest.mark.parametrize(
    ("rate", "problem"),
    [
        ("{}", "volumes[0].rate: it limits nothing: write iops, bandwidth, or both"),
        ("{iops: 0}", "volumes[0].rate.iops: 0 is too small: at least 1"),
        ("{bandwidth: 5 bytes}", "volumes[0].rate.bandwidth: 'bytes' is not a unit of size"),
        ("{iops: 5, burst: 0}", "volumes[0].rate.burst"),
    ],
)
def test_limit_that_limits_nothing_is_explained(rate: str, problem: str) -> None:
    assert problem in only(f"{HEAD}volumes: [{{name: vol0, lun: 0, size: 1MiB, rate: {rate}}}]\n")


@pytest.mark.parametrize(
    ("extra", "where"),
    [
        ("volumes: [{name: vol0, lun: 0, size: 1MiB, rate: {iops: 5}}]", "volumes[0].rate"),
        (
            "volumes: [{name: vol0, lun: 0, size: 1MiB}]\n"
            "access: {initiators: [{name: 'iqn.2026-11.org.example:ann', rate: {iops: 5}}]}",
            "access.initiators[0].rate",
        ),
    ],
)
def test_kernel_target_has_no_limits(extra: str, where: str) -> None:
    assert only(f"{HEAD}fabric: lio\n{extra}\n").partition(": ")[2].startswith(f"{where}: the kernel's target sends")
