# SPDX-License-Identifier: Apache-2.0
"""What is said and kept about the portals of the kernel's target, apart from the kernel (tests/kernel/test_iscsi.py has it)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from target import messages
from target.administration import administration
from target.configuration import reader
from target.fabrics import access, fabric
from target.iscsi import errors
from target.iscsi.session_info import SessionInfo
from target.service import problems
from target.service.service import Service

FIRST, SECOND = "0.0.0.0:3260", "10.0.0.1:3270"
TEXT = f"""
target: iqn.2026-11.io.wolun:t
fabric: lio
lio:
  listen: [{FIRST}]
volumes:
  - {{name: vol0, lun: 0, size: 1MiB}}
"""


class Kernel:
    """A fabric that keeps books of where it listens."""

    def __init__(self) -> None:
        self.there = [FIRST]
        self.came_by: dict[str, list[str]] = {}

    def addresses(self) -> Sequence[str]:
        return tuple(self.there)

    def listen(self, address: str) -> None:
        if address.endswith(":99"):
            raise fabric.CannotListen("the kernel said no")
        self.there.append(address)

    def unlisten(self, address: str) -> None:
        self.there.remove(address)

    def users(self, address: str) -> Sequence[str]:
        return self.came_by.get(address, [])

    def sessions(self) -> Sequence[SessionInfo]:
        return []

    def failed_logins(self) -> Mapping[errors.LoginStatus, int]:
        return {}

    def end_session(self, tsih: int) -> None:
        pass

    def admit(self, rules: access.Rules) -> None:
        pass

    def start(self) -> None:
        pass

    def close(self, drain: float) -> None:
        pass


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "wolun.yaml"
    file.write_text(TEXT)
    return file


@pytest.fixture
def admin(kernel: Kernel, file: Path, tmp_path: Path) -> Iterator[administration.Administration]:
    on_file = reader.load(file)
    service = Service(on_file, tmp_path / "state")
    service.fabric_started(kernel)
    yield administration.Administration(service, kernel, file, on_file)
    service.stop()
    service.close()


def restored(admin: administration.Administration) -> dict[str, str]:
    """What became of each object: nothing if it was done, else why not."""
    outcomes = admin.restore(messages.ConfigurationFile(), force=False, dry_run=False)
    return {f"{each.action} {each.subject}": each.refusal.error if each.refusal else "" for each in outcomes}


def test_they_come_and_go_and_are_saved(admin: administration.Administration, kernel: Kernel, file: Path) -> None:
    admin.create_portal(SECOND, dry_run=True)
    assert kernel.there == [FIRST]
    admin.create_portal(SECOND, dry_run=False)
    admin.save(messages.ConfigurationFile(), dry_run=False)
    assert kernel.there == [FIRST, SECOND]
    assert reader.load(file).lio.listen == (FIRST, SECOND)
    assert restored(admin) == {}
    kernel.came_by[SECOND] = ["somebody from 10.0.0.2"]
    with pytest.raises(problems.Problem, match="is in use by somebody from 10"):
        admin.delete_portal(SECOND, force=False, dry_run=False)
    admin.delete_portal(SECOND, force=True, dry_run=False)
    assert kernel.there == [FIRST]
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
def test_what_cannot_be_changes_nothing(
    admin: administration.Administration, kernel: Kernel, address: str, reason: str
) -> None:
    before = admin.running()
    with pytest.raises(problems.Problem, match=reason):
        admin.create_portal(address, dry_run=False)
    assert (kernel.there, admin.running()) == ([FIRST], before)


def test_the_last_one_stays(admin: administration.Administration, kernel: Kernel) -> None:
    with pytest.raises(problems.Problem, match="it is the only one"):
        admin.delete_portal(FIRST, force=True, dry_run=False)
    assert kernel.there == [FIRST]


def test_a_restored_file_moves_them_and_leaves_the_rest_to_the_next_start(
    admin: administration.Administration, kernel: Kernel, file: Path
) -> None:
    file.write_text(TEXT.replace(FIRST, SECOND))
    assert restored(admin) == {f"add portal {SECOND}": "", f"remove portal {FIRST}": ""}
    file.write_text(TEXT.replace(f"[{FIRST}]", f"[{SECOND}]\n  loopback: true"))
    assert restored(admin) == {"change lio": "at-next-start"}
    assert kernel.there == [SECOND]
    assert (admin.running().lio.listen, admin.running().lio.loopback) == ((SECOND,), False)
