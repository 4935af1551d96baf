# SPDX-License-Identifier: Apache-2.0
"""Opens the volumes of a configuration, or makes those that are not there yet.

    <state directory>/volumes/<name>/               the volume's own directory (see lun_backends.volumes.volume)
    <state directory>/volumes/<name>/primary.img    its primary, unless the configuration names another

What a volume was made with stays: block size, chunk size and primary must agree with the configuration, because snapshots
taken with others would be wrong.  The size is the manifest's, since a volume can be resized; that the configuration says
another is an alert.  Durability may change from start to start.  A primary in the default place
may move together with the state directory.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from lun_backends.volumes import manifest, policy, volume
from target import units
from target.configuration import settings
from target.service import problems


def volume_directory(name: str, state_dir: Path) -> Path:
    """Where the volume keeps its manifest and snapshots."""
    return state_dir / "volumes" / name


def primary_path(wanted: settings.Volume, state_dir: Path) -> Path:
    """The file or device with the volume's live data."""
    if wanted.primary is None:
        return volume_directory(wanted.name, state_dir) / "primary.img"
    return Path(os.path.abspath(state_dir / wanted.primary))  # noqa: PTH100 - a name in /dev/disk must not be resolved


def rules(wanted: settings.Volume) -> policy.Policy:
    """How its snapshots are kept."""
    return policy.Policy(
        on_error=wanted.on_error,
        limit=wanted.limit,
        warn_percent=wanted.warn_at,
        copy_timeout=wanted.copy_timeout,
        max_snapshots=wanted.max_snapshots,
    )


def open_volume(wanted: settings.Volume, state_dir: Path, listener: policy.Listener = policy.ignore) -> volume.Volume:
    """The volume, open; `listener` is told what becomes of its snapshots.  Raises Problem, Refused, BlockDeviceError, OSError."""
    directory = volume_directory(wanted.name, state_dir)
    primary = primary_path(wanted, state_dir)
    if manifest.exists(directory):
        _reconcile(wanted, directory, primary)
        return volume.Volume.open(directory, rules=rules(wanted), listener=listener)
    if wanted.size is None and not primary.exists():
        raise problems.refused(
            f"{primary} does not exist", "a new volume needs to know how large", f"add `size` to {wanted.name}"
        )
    return volume.Volume.create(
        directory,
        wanted.name,
        primary,
        size=wanted.size,
        block_size=wanted.block_size,
        chunk_size=wanted.chunk_size,
        durability=wanted.durability,
        rules=rules(wanted),
        listener=listener,
    )


def _reconcile(wanted: settings.Volume, directory: Path, primary: Path) -> None:
    """Bring the manifest in line with the configuration as far as that is safe.  Raises Problem where it is not."""
    record = manifest.load(directory)
    for key, is_, says in (
        ("block_size", str(record.block_size), str(wanted.block_size)),
        ("chunk_size", units.exact_size(record.chunk_size), units.exact_size(wanted.chunk_size)),
    ):
        if is_ != says:
            raise problems.differs(wanted.name, key, is_, says)
    path = record.primary.path
    if path != primary:
        moved_along = wanted.primary is None and primary.exists() and not path.exists()
        if not moved_along:
            raise problems.differs(wanted.name, "primary", str(path), str(primary))
        path = primary
    if path != record.primary.path or wanted.durability is not record.durability:
        changed = dataclasses.replace(
            record, primary=dataclasses.replace(record.primary, path=path), durability=wanted.durability
        )
        manifest.store(directory, changed)
