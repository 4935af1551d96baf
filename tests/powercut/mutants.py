# SPDX-License-Identifier: Apache-2.0
"""Contexts that break one rule of the code on purpose: a tester that stays green within them is broken."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from lun_backends import block_device, copy_on_write, flat, preserving, tracking, write_once
from lun_backends.block_device import ExtentKind
from lun_backends.files import facts, small_file, storage_io
from lun_backends.stores import chunk_map, contract, log_file, log_map, record_map, thin
from lun_backends.volumes import deleting, identity, manifest, opening, rollback, rollback_overlay, state, taking
from lun_backends.volumes.snapshot import Snapshot

Mutant = Callable[[], contextlib.AbstractContextManager[object]]


@contextlib.contextmanager
def write_before_commit() -> Iterator[None]:
    """Break rule 1: write the new data to the primary before the pre-image is durable."""
    saved: list[tuple[Any, int, bytes]] = []
    preserve_and = copy_on_write.CopyOnWrite._preserve_and

    def copy(self: preserving.Preserver, side: Any, grains: list[tracking.Grains], *, extended: bool) -> bool:
        for piece in self._pieces(side, grains):
            data = bytearray(piece.length)
            self.primary.readv(piece.offset, [memoryview(data)])
            saved.append((side.device, piece.offset, bytes(data)))
        side.tracker.add_all(grains)
        self._release(grains)
        return True

    def write_first(self: copy_on_write.CopyOnWrite, *arguments: Any) -> None:
        preserve_and(self, *arguments)
        for device, offset, data in saved:
            with contextlib.suppress(block_device.DeviceClosed):  # deleted meanwhile
                device.put_many(
                    (extent.offset, [memoryview(data)[extent.offset - offset :][: extent.length]])
                    for extent in list(device.extents(offset, len(data)))
                    if extent.kind is ExtentKind.BLANK
                )
        saved.clear()

    with (
        mock.patch.object(preserving.Preserver, "_copy", copy),
        mock.patch.object(copy_on_write.CopyOnWrite, "_preserve_and", write_first),
    ):
        yield


@contextlib.contextmanager
def publish_before_data() -> Iterator[None]:
    """Break rule 2: store map entries before their data is synced.  Everything is right again when the commit ends."""

    def commit(self: thin.ThinStore, group: list[thin.Batch]) -> None:
        for batch in group:
            self._publish(batch.claims)
        self._sync_data()
        self._sync_map()

    with mock.patch.object(thin.ThinStore, "_commit_synced", commit):
        yield


@contextlib.contextmanager
def stale_words_kept() -> Iterator[None]:
    """Skip the search for leftovers of an interrupted commit in the map."""
    with mock.patch.object(record_map.RecordMap, "is_stale", lambda _self, _entry: False):
        yield


@contextlib.contextmanager
def stale_words_cleaned_unsynced() -> Iterator[None]:
    """Clean the leftovers, but publish the chunk before the cleaning is durable."""
    commit = thin.ThinStore._commit_synced

    def hasty(self: thin.ThinStore, group: list[thin.Batch]) -> None:
        for batch in group:
            for claim in batch.claims:
                if self._map.is_stale(claim):
                    self._map.clean(claim[0])
        commit(self, group)

    with mock.patch.object(thin.ThinStore, "_commit_synced", hasty):
        yield


@contextlib.contextmanager
def confirmed_before_synced() -> Iterator[None]:
    """Confirm a chunk before its other words are durable."""
    publish = record_map.RecordMap.publish_many

    def hasty(self: record_map.RecordMap, entries: Sequence[chunk_map.Entry]) -> None:
        publish(self, entries)
        self.confirm(entry[0] for entry in entries)

    with mock.patch.object(record_map.RecordMap, "publish_many", hasty):
        yield


@contextlib.contextmanager
def zeroes_replaced_unsynced() -> Iterator[None]:
    """Publish other data of a chunk of zeroes before its slot is durable."""
    ahead = thin.ThinStore._store_ahead

    def hasty(self: thin.ThinStore, *arguments: Any) -> bool:
        ahead(self, *arguments)
        return False

    with mock.patch.object(thin.ThinStore, "_store_ahead", hasty):
        yield


@contextlib.contextmanager
def map_never_synced() -> Iterator[None]:
    """End a commit before its map entries are durable."""
    with mock.patch.object(chunk_map.ChunkMap, "sync", lambda _self: None):
        yield


@contextlib.contextmanager
def manifest_renamed_unsynced() -> Iterator[None]:
    """Give the new manifest the old one's name before its content is durable."""
    prepare = manifest.prepare

    def hasty(at: Path, record: manifest.Manifest, io: storage_io.StorageIO) -> None:
        with mock.patch.object(io, "fdatasync", lambda _fd: None):
            prepare(at, record, io)

    with mock.patch.object(manifest, "prepare", hasty):
        yield


def _rename(at: Path, io: storage_io.StorageIO) -> None:
    path = at / manifest._FILE
    io.rename(small_file.beside(path), path)


def manifest_name_unsynced() -> contextlib.AbstractContextManager[object]:
    """Leave out the sync that makes the new manifest's name durable."""
    return mock.patch.object(manifest, "commit", _rename)


def exchanged_unsynced() -> contextlib.AbstractContextManager[object]:
    """Write the next manifest into the file of the old one before the exchange of both is durable."""

    def commit(at: Path, io: storage_io.StorageIO = storage_io.SYSTEM) -> None:
        path = at / manifest._FILE
        if not path.exists():
            io.rename(small_file.beside(path), path)
            return
        io.exchange(small_file.beside(path), path)
        io.rename(small_file.beside(path), at / manifest._SPARE)

    return mock.patch.object(manifest, "commit", commit)


def marked_before_recorded() -> contextlib.AbstractContextManager[object]:
    """Give the primary a generation that no manifest names yet."""

    def move(of: state.State, fd: int, generation: str, *, clean: bool) -> None:
        following = identity.following(generation)
        identity.move(fd, of.uuid, following, of.io)
        after = identity.record(facts.observe(fd, of.io), generation=following, clean=clean)
        of.store(dataclasses.replace(of.manifest, identity=after))

    return mock.patch.object(opening, "_move", move)


@contextlib.contextmanager
def taken_without_flush() -> Iterator[None]:
    """Break rule 7: take a snapshot without flushing the primary."""
    prepare, commit = taking.prepare, taking.commit

    def hasty(step: Any, *arguments: Any) -> None:
        with mock.patch.object(flat.Flat, "flush", lambda _self: None):
            step(*arguments)

    with (
        mock.patch.object(taking, "prepare", lambda *arguments: hasty(prepare, *arguments)),
        mock.patch.object(taking, "commit", lambda *arguments: hasty(commit, *arguments)),
    ):
        yield


@contextlib.contextmanager
def restored_without_flush() -> Iterator[None]:
    """Let a rollback leave out chunks that equal the snapshot's in memory, though not on the disk."""
    prepare, commit = rollback.prepare, rollback.commit

    def hasty(step: Any, *arguments: Any, **options: Any) -> Any:
        with mock.patch.object(flat.Flat, "flush", lambda _self: None):
            return step(*arguments, **options)

    with (
        mock.patch.object(rollback, "prepare", lambda *arguments, **options: hasty(prepare, *arguments, **options)),
        mock.patch.object(rollback, "commit", lambda *arguments, **options: hasty(commit, *arguments, **options)),
    ):
        yield


@contextlib.contextmanager
def settled_without_flush() -> Iterator[None]:
    """Let a rollback forget that a chunk is pending before the chunk is durable."""
    settle = rollback_overlay.RollbackOverlay._settle_round

    def hasty(self: rollback_overlay.RollbackOverlay, *arguments: Any) -> None:
        with mock.patch.object(flat.Flat, "flush", lambda _self: None):
            settle(self, *arguments)

    with mock.patch.object(rollback_overlay.RollbackOverlay, "_settle_round", hasty):
        yield


@contextlib.contextmanager
def forgotten_move() -> Iterator[None]:
    """Break rule 8: forget at a restart that chunks are still moving down, so that changed ones are copied over them."""
    arm = state.State.arm

    def forget(self: state.State, _tracker: tracking.Tracker) -> None:
        arm(self, tracking.Tracker(self.device.grains))

    with mock.patch.object(state.State, "arm", forget):
        yield


@contextlib.contextmanager
def second_deletion_forgets_the_first() -> Iterator[None]:
    """Break rule 8: delete the newest snapshot while a deletion of the next older one is stopped.

    The chunks of the older one, which still move down, too, are forgotten.
    """
    mark, moving = deleting.mark_deleting, state.State.moving_tracker

    def forget(changed: state.State, snapshot: Snapshot) -> None:
        def only_its_own(self: state.State, snapshots: Sequence[Snapshot]) -> tracking.Tracker:
            return moving(self, [other for other in snapshots if other is snapshot])

        with mock.patch.object(state.State, "moving_tracker", only_its_own):
            mark(changed, snapshot)

    with mock.patch.object(deleting, "mark_deleting", forget):
        yield


@contextlib.contextmanager
def grains_of_partly_written_chunks_forgotten() -> Iterator[None]:
    """Take grains for unchanged, while they move down, whose chunk is not written as a whole."""
    moving = state.State.moving_tracker

    def forget(self: state.State, snapshots: Sequence[Snapshot]) -> tracking.Tracker:
        tracker, per_chunk = moving(self, snapshots), self.chunk_size >> tracking.SHIFT
        for first in range(0, tracker.grains, per_chunk):
            if not tracker.covers(first, min(first + per_chunk, tracker.grains) - 1):
                tracker.known.remove_range(first, first + per_chunk)
        return tracker

    with mock.patch.object(state.State, "moving_tracker", forget):
        yield


@contextlib.contextmanager
def move_computes_the_checksum_anew() -> Iterator[None]:
    """Checksum the chunks of a deleted snapshot anew as they move, so that rot becomes good data."""
    read = write_once.WriteOnce.read_to_move

    def launder(self: write_once.WriteOnce, *arguments: Any, **options: Any) -> contract.Origin:
        origin = read(self, *arguments, **options)
        return contract.Origin(origin.grain, (contract.COMPUTE,) * len(origin.checksums))

    with mock.patch.object(write_once.WriteOnce, "read_to_move", launder):
        yield


@contextlib.contextmanager
def moved_checksum_is_not_ahead() -> Iterator[None]:
    """Store the checksum of a moved chunk together with its slot and bits, so that a cut may lose it alone."""
    commit = thin.ThinStore._commit_synced

    def hasty(self: thin.ThinStore, group: list[thin.Batch]) -> None:
        for batch in group:
            batch.moved.clear()
        commit(self, group)

    with mock.patch.object(thin.ThinStore, "_commit_synced", hasty):
        yield


def log_never_synced() -> contextlib.AbstractContextManager[object]:
    """End a commit of a log before the batch is durable."""
    return mock.patch.object(log_file.LogFile, "sync", lambda _self: None)


@contextlib.contextmanager
def checkpoint_before_index() -> Iterator[None]:
    """Write the checkpoint of a log's index before the index is durable."""
    write_back = log_map.LogMap.write_back

    def hasty(self: log_map.LogMap, *arguments: Any) -> None:
        with mock.patch.object(self, "sync", lambda: None):
            write_back(self, *arguments)

    with mock.patch.object(log_map.LogMap, "write_back", hasty):
        yield


def torn_batch_counts() -> contextlib.AbstractContextManager[object]:
    """Take a batch for whole whose header has arrived, whatever its grains are."""
    return mock.patch.object(log_file.LogFile, "_has_all", lambda _self, _header: True)


LOGS: tuple[Mutant, ...] = (log_never_synced, checkpoint_before_index, torn_batch_counts)
"""Those that need a log."""

MOVES: tuple[Mutant, ...] = (move_computes_the_checksum_anew, moved_checksum_is_not_ahead)
"""Those that need a rotten chunk, see `rotten_move`."""

ALL: tuple[Mutant, ...] = (
    write_before_commit,
    publish_before_data,
    confirmed_before_synced,
    map_never_synced,
    manifest_renamed_unsynced,
    manifest_name_unsynced,
    exchanged_unsynced,
    marked_before_recorded,
    taken_without_flush,
    restored_without_flush,
    settled_without_flush,
    forgotten_move,
    second_deletion_forgets_the_first,
    grains_of_partly_written_chunks_forgotten,
)
