# SPDX-License-Identifier: Apache-2.0
"""Changes of access: refused while a session needs the old rules, and applied to the fabric before they are in force."""

from __future__ import annotations

from pathlib import Path

import pytest

from target import messages
from target.administration.administration import Administration
from target.service import problems
from target.service.service import Service
from tests.target.administration.conftest import IQN
from tests.target.administration.fabric import BookFabric

ANN, BOB = "iqn.2026-11.org.example:ann", "iqn.2026-11.org.example:bob"


def put(admin: Administration, request: messages.Initiator, *, create: bool = True, force: bool = False) -> None:
    admin.put_initiator(request.name, request, create=create, force=force, dry_run=False)


def test_session_that_would_end_is_named_and_kept(admin: Administration, fabric: BookFabric) -> None:
    fabric.log_in(ANN, "127.0.0.1", IQN)
    change = messages.ChangeAccess(networks=("10.0.0.0/8",))
    with pytest.raises(problems.Problem) as caught:
        admin.change_access(change, force=False, dry_run=False)
    assert str(caught.value) == (
        f"the right to log in is in use by {ANN} from 127.0.0.1: log those initiators out first, or use force=true"
    )
    assert (len(fabric.logged_in), fabric.admitted) == (1, [])
    admin.change_access(change, force=True, dry_run=True)
    assert (len(fabric.logged_in), admin.who().networks) == (1, ("127.0.0.0/8",))
    admin.change_access(change, force=True, dry_run=False)
    assert (fabric.logged_in, admin.who().networks) == ([], ("10.0.0.0/8",))


def test_lun_that_a_session_would_lose_is_named(admin: Administration, fabric: BookFabric) -> None:
    fabric.log_in(ANN, "127.0.0.1", IQN)
    mapped = messages.Initiator(ANN, luns=(messages.MappedLun(0, "vol0"),))
    with pytest.raises(problems.Problem, match=rf"a LUN that would disappear is in use by {ANN} \(LUN 1\)"):
        put(admin, mapped)
    put(admin, mapped, force=True)
    assert len(fabric.logged_in) == 1  # it may still be logged in


def test_discovery_session_sees_no_lun_to_lose(admin: Administration, fabric: BookFabric) -> None:
    fabric.log_in(ANN, "127.0.0.1", None)
    put(admin, messages.Initiator(ANN, luns=()))


def test_refusal_of_the_fabric_leaves_the_old_rules_in_force(
    admin: Administration, fabric: BookFabric, service: Service
) -> None:
    before, rules = admin.running(), service.inventory.access.rules
    fabric.refuses_to_admit = True
    with pytest.raises(problems.Problem, match="access was changed only in part: the kernel said no: try again"):
        put(admin, messages.Initiator(ANN))
    assert admin.running() == before
    assert service.inventory.access.rules is rules


def test_entries_are_created_changed_and_deleted_by_name_in_any_case(admin: Administration) -> None:
    put(admin, messages.Initiator(ANN))
    with pytest.raises(problems.Problem, match="there is an entry of this name already"):
        put(admin, messages.Initiator(ANN.upper().replace("IQN", "iqn")))
    put(admin, messages.Initiator(ANN, read_only=True), create=False)
    assert [(initiator.name, initiator.read_only) for initiator in admin.who().initiators or ()] == [(ANN, True)]
    admin.delete_initiator(ANN.upper(), force=False, dry_run=True)
    admin.delete_initiator(ANN.upper(), force=False, dry_run=False)
    assert admin.who().initiators == ()
    with pytest.raises(problems.Problem, match="there is no entry"):
        put(admin, messages.Initiator(ANN), create=False)


def test_mapping_of_no_unit_is_refused(admin: Administration, service: Service) -> None:
    wrong = messages.Initiator(ANN, luns=(messages.MappedLun(0, "vol7"),))
    with pytest.raises(problems.Problem, match="there is no unit vol7: there are: vol0, vol1"):
        put(admin, wrong)
    service.snapshots.create_snapshot("vol0", "s")
    mapped = messages.Initiator(ANN, luns=(messages.MappedLun(0, "vol0@s"),))
    put(admin, mapped)
    service.snapshots.delete_snapshot("vol0", "s").wait()
    put(admin, mapped, create=False)  # the mapping was good when it was made


def test_list_of_initiators_must_be_empty_before_any_initiator_may_log_in(admin: Administration) -> None:
    put(admin, messages.Initiator(ANN))
    anybody = messages.ChangeAccess(anybody=True)
    with pytest.raises(problems.Problem, match="the list of initiators is in use by"):
        admin.change_access(anybody, force=True, dry_run=False)
    admin.change_access(messages.ChangeAccess(anybody=False), force=False, dry_run=False)
    assert len(admin.who().initiators or ()) == 1
    admin.delete_initiator(ANN, force=False, dry_run=False)
    admin.change_access(anybody, force=False, dry_run=False)
    assert admin.who().initiators is None


def test_chap_is_set_with_its_secrets_and_removed_with_them(admin: Administration, tmp_path: Path) -> None:
    put(admin, messages.Initiator(ANN))
    secrets = tmp_path / "state" / "secrets"
    request = messages.SetAuth("ann", "secret of ann", "target", "secret of target")
    admin.set_auth(ANN, request, dry_run=True)
    assert not secrets.exists()
    admin.set_auth(ANN, request, dry_run=False)
    files = [path for path in secrets.rglob("*") if path.is_file()]
    assert sorted(path.read_text() for path in files) == ["secret of ann\n", "secret of target\n"]
    (entry,) = admin.running().access.initiators or ()
    assert entry.chap is not None
    assert entry.chap.name == "ann"
    admin.set_auth(ANN, None, dry_run=False)
    (entry,) = admin.running().access.initiators or ()
    assert entry.chap is None
    assert not any(path.is_file() for path in secrets.rglob("*"))


def test_secret_that_cannot_be_used_is_refused_and_not_stored(admin: Administration, tmp_path: Path) -> None:
    put(admin, messages.Initiator(ANN))
    with pytest.raises(problems.Problem, match=f"the CHAP of {ANN}"):
        admin.set_auth(ANN, messages.SetAuth("ann", "short"), dry_run=False)
    assert not (tmp_path / "state" / "secrets").exists()


def test_secret_that_another_initiator_knows_is_refused(admin: Administration) -> None:
    """The target proves itself to `ann` with a secret, which `ann` knows; nobody may log in with that one."""
    for name in (ANN, BOB):
        put(admin, messages.Initiator(name))
    admin.set_auth(ANN, messages.SetAuth("ann", "secret of ann", "target", "secret of target"), dry_run=False)
    with pytest.raises(problems.Problem, match=f"the CHAP of {BOB}: its secret is the one by which .* to {ANN}, which"):
        admin.set_auth(BOB, messages.SetAuth("bob", "secret of target"), dry_run=False)
    with pytest.raises(problems.Problem, match=f"the target cannot prove itself with the secret of {ANN}"):
        admin.set_auth(BOB, messages.SetAuth("bob", "secret of bob", "target", "secret of ann"), dry_run=False)
    admin.set_auth(BOB, messages.SetAuth("bob", "secret of bob", "target", "secret of target"), dry_run=False)
    admin.set_auth(ANN, messages.SetAuth("ann", "secret of ann, anew", "target", "secret of target"), dry_run=False)


def test_secrets_that_another_entry_uses_stay(admin: Administration, tmp_path: Path) -> None:
    put(admin, messages.Initiator(ANN))
    admin.set_auth(ANN, messages.SetAuth("ann", "secret of ann"), dry_run=False)
    (entry,) = admin.running().access.initiators or ()
    assert entry.chap is not None
    file = tmp_path / "state" / entry.chap.secret_file
    put(admin, messages.Initiator(BOB, chap=messages.Chap("bob", str(entry.chap.secret_file))))
    admin.delete_initiator(ANN, force=False, dry_run=False)
    assert file.exists()
    admin.delete_initiator(BOB, force=False, dry_run=False)
    assert file.exists(), "it is not the file of that initiator"
