# SPDX-License-Identifier: Apache-2.0
"""Portals of the kernel's target are added, removed and saved; the kernel itself is in tests/kernel/test_iscsi.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from target import messages
from target.administration import administration
from target.configuration import reader
from target.service import problems
from target.service.service import Service
from tests.target.administration.fabric import BookFabric

FIRST, SECOND = "0.0.0.0:3260", "10.0.0.1:3270"
TEXT = f"""
target: iqn.2026-11.io.wolun:t
fabric: lio
lio:
  listen: [{FIRST}]
volumes:
  - {{name: vol0, lun: 0, size: 1MiB}}
"""


@pytest.fixture
def kernel() -> BookFabric:
    return BookFabric(FIRST)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "wolun.yaml"
    file.write_text(TEXT)
    return file


@pytest.fixture
def admin(kernel: BookFabric, file: Path, tmp_path: Path) -> Iterator[administration.Administration]:
    on_file = reader.load(file)
    service = Service(on_file, tmp_path / "state")
    service.fabric_started(kernel)
    yield administration.Administration(service, kernel, file, on_file)
    service.stop()
    service.close()


def restored(admin: administration.Administration) -> dict[str, str]:
    """Restore the file; return the refusal code of each attempt, empty if it was done."""
    outcomes = admin.restore(messages.ConfigurationFile(), force=False, dry_run=False)
    return {
        f"{outcome.action} {outcome.subject}": outcome.refusal.error if outcome.refusal else "" for outcome in outcomes
    }


def test_portals_are_added_removed_and_saved(
    admin: administration.Administration, kernel: BookFabric, file: Path
) -> None:
    admin.create_portal(SECOND, dry_run=True)
    assert kernel.listening == [FIRST]
    admin.create_portal(SECOND, dry_run=False)
    admin.save(messages.ConfigurationFile(), dry_run=False)
    assert kernel.listening == [FIRST, SECOND]
    assert reader.load(file).lio.listen == (FIRST, SECOND)
    assert restored(admin) == {}
    kernel.came_by[SECOND] = ["an unknown initiator from 10.0.0.2"]
    with pytest.raises(problems.Problem, match="is in use by an unknown initiator from 10"):
        admin.delete_portal(SECOND, force=False, dry_run=False)
    admin.delete_portal(SECOND, force=True, dry_run=False)
    assert kernel.listening == [FIRST]
    assert admin.running().lio.listen == (FIRST,)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (FIRST, "initiators connect there already"),
        ("localhost:3270", "takes numeric addresses, not localhost"),
        ("10.0.0.1:0", "takes no port 0"),
        ("10.0.0.1:99", "the kernel said no"),
    ],
)
def test_refused_portal_changes_nothing(
    admin: administration.Administration, kernel: BookFabric, address: str, reason: str
) -> None:
    before = admin.running()
    with pytest.raises(problems.Problem, match=reason):
        admin.create_portal(address, dry_run=False)
    assert (kernel.listening, admin.running()) == ([FIRST], before)


def test_only_portal_is_not_deleted_even_by_force(admin: administration.Administration, kernel: BookFabric) -> None:
    with pytest.raises(problems.Problem, match="it is the only one"):
        admin.delete_portal(FIRST, force=True, dry_run=False)
    assert kernel.listening == [FIRST]


def test_restored_file_moves_portals_and_leaves_the_rest_to_the_next_start(
    admin: administration.Administration, kernel: BookFabric, file: Path
) -> None:
    file.write_text(TEXT.replace(FIRST, SECOND))
    assert restored(admin) == {f"add portal {SECOND}": "", f"remove portal {FIRST}": ""}
    file.write_text(TEXT.replace(f"[{FIRST}]", f"[{SECOND}]\n  loopback: true"))
    assert restored(admin) == {"change lio": "at-next-start"}
    assert kernel.listening == [SECOND]
    assert (admin.running().lio.listen, admin.running().lio.loopback) == ((SECOND,), False)


def test_address_on_file_stays_when_the_portal_in_its_place_is_removed(tmp_path: Path, file: Path) -> None:
    """The daemon listens on SECOND, as if `--portal` said so, and the file would otherwise be left without an address."""
    kernel, on_file = BookFabric(SECOND), reader.load(file)
    listening = on_file.model_copy(update={"lio": on_file.lio.model_copy(update={"listen": (SECOND,)})})
    service = Service(listening, tmp_path / "state")
    service.fabric_started(kernel)
    admin = administration.Administration(service, kernel, file, on_file)
    admin.create_portal(FIRST, dry_run=False)
    admin.delete_portal(FIRST, force=False, dry_run=False)
    assert (kernel.listening, admin.running().lio.listen) == ([SECOND], (FIRST,))
    service.stop()
    service.close()


def test_the_kernels_reservations_are_not_ours(admin: administration.Administration) -> None:
    with pytest.raises(problems.Problem, match="the kernel's target keeps the reservations itself"):
        admin.reservations()
    with pytest.raises(problems.Problem, match="keeps the reservations itself"):
        admin.clear_reservations(0, None, force=True, dry_run=False)


def test_last_portal_that_is_bound_is_not_deleted(admin: administration.Administration, kernel: BookFabric) -> None:
    admin.create_portal(SECOND, dry_run=False)
    kernel.not_bound = {SECOND: "there is no such address"}
    with pytest.raises(problems.Problem, match="it is the only one"):
        admin.delete_portal(FIRST, force=True, dry_run=False)
    admin.delete_portal(SECOND, force=False, dry_run=False)
    assert kernel.listening == [FIRST]
