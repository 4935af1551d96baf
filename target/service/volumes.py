# SPDX-License-Identifier: Apache-2.0
"""Opening of the volumes of a configuration, and creation of those that do not exist yet.

    <state directory>/volumes/<name>/               the volume's own directory (see lun_backends.volumes.volume)
    <state directory>/volumes/<name>/primary.img    its primary, unless the configuration names another

Block size, chunk size and kind of store of a volume never change.  The configuration must agree with them, because snapshots taken with other
ones would be wrong.  The primary may be in another place if it is known to be the same (`lun_backends.volumes.identity`).  The size is the manifest's, because a volume can be resized; a different size in the
configuration is an alert.  Durability may change from start to start.  A primary in the default place may move together with
the state directory.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from lun_backends.files import facts, os_error, small_file
from lun_backends.stores import opening
from lun_backends.stores import settings as store_settings
from lun_backends.volumes import identity, manifest, policy, volume
from target import units
from target.configuration import settings
from target.service import problems


def volume_directory(name: str, state_dir: Path) -> Path:
    """Return the directory of the volume's manifest and snapshots."""
    return state_dir / "volumes" / name


def primary_path(configured: settings.Volume, state_dir: Path) -> Path:
    """Return the file or device that has the volume's current data."""
    if configured.primary is None:
        return volume_directory(configured.name, state_dir) / "primary.img"
    return Path(os.path.abspath(state_dir / configured.primary))  # noqa: PTH100 - a name in /dev/disk must not be resolved


def rules(configured: settings.Volume) -> policy.Policy:
    """Return the rules for the volume's snapshots."""
    return policy.Policy(
        on_error=configured.on_error,
        limit=configured.limit,
        warn_percent=configured.warn_at,
        copy_timeout=configured.copy_timeout,
        max_snapshots=configured.max_snapshots,
        verify_reads=configured.verify_reads,
    )


def stores(configured: settings.Volume | settings.SharedVolume, state_dir: Path) -> store_settings.Settings:
    """Return what keeps the volume's snapshots; a shared volume must name it."""
    objects: store_settings.Objects | None = None
    rados: store_settings.Rados | None = None
    if (bucket := configured.objects) is not None:
        credentials = None if bucket.credentials is None else state_dir / bucket.credentials
        objects = store_settings.Objects(bucket.url, bucket.endpoint, bucket.region, credentials, bucket.timeout)
    if (pool := configured.rados) is not None:
        conf = state_dir / pool.conf
        rados = store_settings.Rados(pool.pool, pool.namespace, pool.client, conf, pool.timeout)
    assert configured.store is not None
    return store_settings.Settings(store_settings.Kind(configured.store.value), objects, rados)


def clear(configured: settings.Volume, state_dir: Path) -> None:
    """Delete all snapshots of a volume that is not open, wherever they are.  Raise Refused, BlockDeviceError."""
    directory = volume_directory(configured.name, state_dir)
    if not manifest.exists(directory):
        return
    record = manifest.load(directory)
    place = opening.stores(directory / "snapshots", record.uuid, stores(configured, state_dir))
    try:
        place.clear()
    finally:
        place.close()


def open_volume(
    configured: settings.Volume, state_dir: Path, listener: policy.Listener = policy.ignore
) -> volume.Volume:
    """Open or create the volume; `listener` receives the events of its snapshots.

    Raise Problem, Refused, BlockDeviceError, OSError.
    """
    directory = volume_directory(configured.name, state_dir)
    primary = primary_path(configured, state_dir)
    if manifest.exists(directory):
        _reconcile(configured, directory, primary)
        return volume.Volume.open(
            directory, rules=rules(configured), listener=listener, store=stores(configured, state_dir)
        )
    if configured.size is None and not primary.exists():
        raise problems.refused(
            f"{primary} does not exist", "a new volume needs a size", f"add `size` to {configured.name}"
        )
    return volume.Volume.create(
        directory,
        configured.name,
        primary,
        size=configured.size,
        block_size=configured.block_size,
        chunk_size=configured.chunk_size,
        durability=configured.durability,
        rules=rules(configured),
        listener=listener,
        store=stores(configured, state_dir),
    )


def _reconcile(configured: settings.Volume, directory: Path, primary: Path) -> None:
    """Bring the manifest in line with the configuration where that is safe.  Raise Problem where it is not."""
    record = manifest.load(directory)
    local = (store_settings.Kind.MAP, store_settings.Kind.LOG)  # snapshots of both kinds may be side by side
    store = configured.store if record.store in local and configured.store in local else record.store
    for key, is_, says in (
        ("block_size", str(record.block_size), str(configured.block_size)),
        ("chunk_size", units.exact_size(record.chunk_size), units.exact_size(configured.chunk_size)),
        ("store", store.value, configured.store.value),
    ):
        if is_ != says:
            raise problems.differs(configured.name, key, is_, says)
    path = record.primary.path
    moved_along = not Path(configured.primary or "").is_absolute() and primary.exists() and not path.exists()
    if path != primary and not moved_along and (why := _other_primary(record, primary)):
        raise problems.primary_moved(configured.name, path, primary, why)
    changed = dataclasses.replace(
        record,
        name=configured.name,
        primary=dataclasses.replace(record.primary, path=primary),
        durability=configured.durability,
        store=store,
    )
    if changed != record:
        manifest.store(directory, changed)


def _other_primary(record: manifest.Manifest, primary: Path) -> str:
    """Return why the file or disk `primary` is not known to be the volume's primary; empty if it is known to be.

    The text continues a sentence.
    """
    try:
        if primary.samefile(record.primary.path):
            return ""
    except OSError:  # one of them is missing; the rest decides
        pass
    try:
        fd = os.open(primary, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return f"that cannot be opened: {os_error.reason(error)}"
    try:
        seen = facts.observe(fd)
    except OSError as error:
        return f"that cannot be looked at: {os_error.reason(error)}"
    finally:
        os.close(fd)
    if identity.same(record.identity, seen, record.uuid):
        return ""
    reason = "" if record.identity is None else identity.difference(record.identity, seen, record.uuid)
    return f"that {reason}" if reason else "nothing tells whether that is the same"


def relocate(configured: settings.Volume, state_dir: Path, old: str | None, *, force: bool) -> None:
    """Take up the directory of the volume `old` under another name, and a primary in another place.

    The volume is not open.  With `force`, its snapshots become doubtful if the primary is not known to be the same.
    Raise Problem, Refused, OSError.
    """
    directory = volume_directory(configured.name, state_dir)
    if old is not None:
        source = volume_directory(old, state_dir)
        manifest.load(source)
        if manifest.exists(directory):
            raise problems.refused(
                f"{old} was not renamed",
                f"there is a volume {configured.name} in the state directory",
                "delete it first",
            )
        source.rename(directory)
        small_file.sync_directory(directory.parent)
    record = manifest.load(directory)
    primary = primary_path(configured, state_dir)
    if force and record.primary.path != primary and (why := _other_primary(record, primary)):
        reason = f"its primary was moved from {record.primary.path} to {primary}, and {why}"
        doubtful = {snapshot.uuid: reason for snapshot in record.snapshots} | record.doubtful
        moved = dataclasses.replace(record.primary, path=primary)
        manifest.store(directory, dataclasses.replace(record, primary=moved, doubtful=doubtful))
