# SPDX-License-Identifier: Apache-2.0
"""The records of a log together mean epochs, chains, deletions and rollbacks."""

from __future__ import annotations

import uuid

import pytest

from lun_backends.cluster import history
from lun_backends.cluster.history import History, Refused, Standing
from lun_backends.cluster.records import Record, Type

VOLUME = uuid.UUID(int=1)
A, B, C = (uuid.UUID(int=number) for number in (10, 11, 12))


def lun(snapshot: uuid.UUID) -> uuid.UUID:
    return uuid.UUID(int=snapshot.int + 100)


def with_snapshots(*snapshots: uuid.UUID) -> History:
    """Return the history of a volume with these fenced snapshots."""
    log = History()
    log.add(Record(Type.EPOCH, VOLUME))
    log.add(Record(Type.FENCED, VOLUME, answers=0))
    for number, snapshot in enumerate(snapshots, 1):
        log.add(Record(Type.EPOCH, VOLUME, number, snapshot, lun(snapshot), name=f"s{number}"))
        log.add(Record(Type.FENCED, VOLUME, number, answers=log.demand))
    return log


def mark(log: History, kind: Type, snapshot: uuid.UUID) -> None:
    target = log.older_lun(log.find(snapshot).number) if kind is Type.DELETED else None
    record = Record(kind, VOLUME, snapshot=snapshot, lun=target)
    log.check(record)
    log.add(record)


def newest(log: History) -> history.Epoch:
    assert log.newest is not None
    return log.newest


def test_snapshot_is_pending_until_its_fence_is_answered() -> None:
    log = with_snapshots()
    log.add(Record(Type.EPOCH, VOLUME, 1, A, lun(A)))
    assert log.fence_is_due
    assert log.standing(A) is Standing.PENDING
    with pytest.raises(Refused, match="is pending"):
        log.chain(A, newest(log))
    log.add(Record(Type.FENCED, VOLUME, 1, answers=log.demand))
    assert not log.fence_is_due
    assert log.chain(A, newest(log)) == (lun(A),)


def test_epoch_record_that_skips_or_repeats_a_number_means_nothing() -> None:
    log = with_snapshots(A)
    log.add(Record(Type.EPOCH, VOLUME, 1, B, lun(B)))
    log.add(Record(Type.EPOCH, VOLUME, 3, C, lun(C)))
    assert newest(log).snapshot == A
    assert not log.fence_is_due
    assert not log.names_lun(lun(B))


def test_fence_begun_before_an_expulsion_does_not_answer_it() -> None:
    log = with_snapshots(A)
    log.add(Record(Type.EXPEL, VOLUME, node="bad"))
    log.add(Record(Type.FENCED, VOLUME, 1, answers=newest(log).position))
    assert log.fence_is_due
    assert log.expelled == {"bad"}


def test_chain_ends_at_the_epoch_of_the_reader() -> None:
    log = with_snapshots(A, B, C)
    assert log.chain(A, newest(log)) == (lun(A), lun(B), lun(C))
    assert log.chain(A, log.find(B)) == (lun(A), lun(B))
    with pytest.raises(Refused):
        log.chain(C, log.find(B))


def test_deleted_snapshot_leaves_the_chain_only_when_its_chunks_have_moved() -> None:
    log = with_snapshots(A, B, C)
    mark(log, Type.DELETE, B)
    assert log.standing(B) is Standing.HIDDEN
    assert log.chain(A, newest(log)) == (lun(A), lun(B), lun(C))
    assert log.older_lun(log.find(B).number) == lun(A)
    mark(log, Type.DELETED, B)
    assert log.chain(A, newest(log)) == (lun(A), lun(C))
    assert log.older_lun(log.find(C).number) == lun(A)
    assert log.older_lun(log.find(A).number) is None


def test_chunks_of_the_newest_snapshot_move_only_behind_the_next_fence() -> None:
    log = with_snapshots(A, B)
    mark(log, Type.DELETE, B)
    assert not log.may_move(B)
    with pytest.raises(Refused, match="only hidden until a newer epoch is fenced"):
        log.check(Record(Type.DELETED, VOLUME, snapshot=B))
    log.add(Record(Type.EPOCH, VOLUME, 3, C, lun(C)))
    assert not log.may_move(B)  # nodes of its epoch still copy into it
    log.add(Record(Type.FENCED, VOLUME, 3, answers=log.demand))
    assert log.may_move(B)
    mark(log, Type.DELETED, B)


def test_of_two_neighbours_in_deletion_the_older_one_goes_first() -> None:
    log = with_snapshots(A, B, C)
    log.add(Record(Type.EPOCH, VOLUME, 4))
    log.add(Record(Type.FENCED, VOLUME, 4, answers=log.demand))
    mark(log, Type.DELETE, C)
    assert log.may_move(C)
    mark(log, Type.DELETE, B)
    assert not log.may_move(C)  # its chunks could come behind the mover of B
    with pytest.raises(Refused, match="next older one is deleted"):
        log.check(Record(Type.DELETED, VOLUME, snapshot=C, lun=lun(B)))
    mark(log, Type.DELETED, B)
    with pytest.raises(Refused, match="move them again"):
        log.check(Record(Type.DELETED, VOLUME, snapshot=C, lun=lun(B)))
    mark(log, Type.DELETED, C)


def test_chunks_for_a_lost_snapshot_need_not_move() -> None:
    log = with_snapshots(A, B, C)
    mark(log, Type.DELETE, B)
    mark(log, Type.INVALID, A)
    assert log.older_lun(log.find(B).number) is None
    mark(log, Type.DELETED, B)


def test_snapshot_that_the_volume_is_rolled_back_to_is_kept() -> None:
    log = with_snapshots(A, B)
    log.add(Record(Type.ROLLBACK, VOLUME, snapshot=A, node="worker"))
    with pytest.raises(Refused, match="worker rolls the volume back"):
        log.check(Record(Type.DELETE, VOLUME, snapshot=A))
    log.check(Record(Type.DELETE, VOLUME, snapshot=B))
    with pytest.raises(Refused, match="needs the snapshots"):
        log.check(Record(Type.INVALID, VOLUME, snapshot=B))


def test_lost_snapshot_takes_the_older_ones_with_it() -> None:
    log = with_snapshots(A, B, C)
    mark(log, Type.INVALID, B)
    assert log.standing(A) is log.standing(B) is Standing.INVALID
    assert log.standing(C) is Standing.TAKEN


def test_only_the_node_that_rolls_back_ends_the_rollback() -> None:
    log = with_snapshots(A)
    log.add(Record(Type.ROLLBACK, VOLUME, snapshot=A, node="dead"))
    log.add(Record(Type.ROLLBACK, VOLUME, snapshot=A, node="heir"))
    dead, heir = log.end - 2, log.end - 1
    log.add(Record(Type.ROLLED_BACK, VOLUME, snapshot=A, answers=dead, node="dead"))
    assert log.rollback is not None
    with pytest.raises(Refused, match="another node took it over"):
        log.check(Record(Type.ROLLED_BACK, VOLUME, snapshot=A, answers=dead))
    with pytest.raises(Refused, match="heir rolls the volume back"):
        log.check(Record(Type.EPOCH, VOLUME, 2, B, lun(B)))
    log.add(Record(Type.ROLLED_BACK, VOLUME, snapshot=A, answers=heir, node="heir"))
    assert log.rollback is None


def test_rollback_keeps_its_source() -> None:
    log = with_snapshots(A, B)
    log.add(Record(Type.ROLLBACK, VOLUME, snapshot=A, node="node"))
    with pytest.raises(Refused, match="wait until that has ended"):
        log.check(Record(Type.DELETE, VOLUME, snapshot=A))
    with pytest.raises(Refused, match="free some space"):
        log.check(Record(Type.INVALID, VOLUME, snapshot=B))
    log.check(Record(Type.DELETE, VOLUME, snapshot=B))


def test_write_needs_no_copy_once_the_loss_of_its_snapshot_is_fenced() -> None:
    log = with_snapshots(A, B)
    mark(log, Type.INVALID, B)
    assert log.fence_is_due
    assert log.target(newest(log)) == lun(B)
    log.add(Record(Type.FENCED, VOLUME, 2, answers=log.demand))
    assert log.target(newest(log)) is None
    mark(log, Type.DELETE, B)
    assert log.movable() == [B]
    assert log.older_lun(2) is None  # A is lost with B, so it needs none of its chunks
    mark(log, Type.DELETED, B)
    assert log.target(newest(log)) is None


def test_copies_do_not_end_while_a_snapshot_exists() -> None:
    log = with_snapshots(A)
    with pytest.raises(Refused, match="delete them first"):
        log.check(Record(Type.EPOCH, VOLUME, 2))
    mark(log, Type.DELETE, A)
    log.check(Record(Type.EPOCH, VOLUME, 2))


def test_name_of_a_snapshot_is_free_after_its_deletion() -> None:
    log = with_snapshots(A, B)
    with pytest.raises(Refused, match="choose another name"):
        log.check(Record(Type.EPOCH, VOLUME, 3, C, lun(C), name="s1"))
    mark(log, Type.DELETE, A)
    log.check(Record(Type.EPOCH, VOLUME, 3, C, lun(C), name="s1"))


def test_epochs_have_different_keys_even_without_a_snapshot() -> None:
    log = with_snapshots(A)
    mark(log, Type.DELETE, A)
    log.add(Record(Type.EPOCH, VOLUME, 2))
    keys = {history.key(VOLUME, epoch) for epoch in log.epochs}
    assert len(keys) == 3
    assert 0 not in keys


def noted(log: History, snapshot: uuid.UUID, name: str, answers: int | None = None, **labels: str) -> None:
    position = log.note(snapshot)[0] if answers is None else answers
    record = Record(Type.NOTE, VOLUME, snapshot=snapshot, answers=position, name=name, labels=labels)
    if answers is None:
        log.check(record)
    log.add(record)


def test_note_gives_a_snapshot_its_name_and_labels() -> None:
    log = with_snapshots(A, B)
    noted(log, A, "first", by="hand")
    noted(log, A, "again", by="them")
    assert (log.note(A)[1].name, log.note(A)[1].labels) == ("again", {"by": "them"})
    assert log.note(B)[1].name == "s2"
    with pytest.raises(Refused, match="there is a snapshot named s2"):
        noted(log, A, "s2")
    assert log.newest is log.epochs[2]


def test_note_of_a_node_that_had_not_read_the_one_before_means_nothing() -> None:
    log = with_snapshots(A)
    stale = log.note(A)[0]
    noted(log, A, "first")
    noted(log, A, "second", answers=stale)
    assert log.note(A)[1].name == "first"
    with pytest.raises(Refused, match="changed meanwhile"):
        log.check(Record(Type.NOTE, VOLUME, snapshot=A, answers=stale, name="second"))


def test_held_snapshot_is_neither_deleted_nor_lost() -> None:
    log = with_snapshots(A, B)
    noted(log, A, "kept", _hold="audit")
    for kind, snapshot in ((Type.DELETE, A), (Type.INVALID, A), (Type.INVALID, B)):
        with pytest.raises(Refused, match=r"kept is held \(audit\): release it first"):
            mark(log, kind, snapshot)
    mark(log, Type.DELETE, B)
    noted(log, A, "kept")
    mark(log, Type.INVALID, A)
    assert log.standing(A) is Standing.INVALID


def test_look_for_jobs_costs_nothing_for_snapshots_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = [uuid.UUID(int=number) for number in range(1, 1001)]
    log = with_snapshots(*snapshots)
    for snapshot in snapshots[1:-2]:
        mark(log, Type.DELETE, snapshot)
        mark(log, Type.DELETED, snapshot)
    mark(log, Type.DELETE, snapshots[-2])
    looked = 0
    standing_of = History.standing_of

    def count(self: History, epoch: history.Epoch) -> Standing:
        nonlocal looked
        looked += 1
        return standing_of(self, epoch)

    monkeypatch.setattr(History, "standing_of", count)
    assert log.movable() == [snapshots[-2]]
    assert looked < 10
