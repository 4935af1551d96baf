# SPDX-License-Identifier: Apache-2.0
"""The fabric over the kernel's target, with a stand-in for the kernel; tests/kernel has the real one."""

from __future__ import annotations

import gc
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from target.configuration import reader, settings
from target.fabrics import access
from target.fabrics import kernel as fabric_kernel
from target.fabrics.fabric import CannotListen, CannotStart
from target.fabrics.kernel import KernelFabric
from target.scsi.commands import table
from target.scsi.logical_unit import LogicalUnit, UnitKind
from target.scsi.scsi_target import ScsiTarget
from target.tcmu import configfs, connections
from target.tcmu import fabric as tcmu_fabric
from tests.memory_device import MemoryDevice

IQN = "iqn.2026-11.io.wolun:t"
FIRST, SECOND = "0.0.0.0:3260", "[::1]:3270"
ANN, BOB = "iqn.2026-11.org.example:ann", "iqn.2026-11.org.example:bob"


class Kernel:
    """A stand-in for `LioFabric`: keeps what it was told, and refuses everything while `broken`."""

    def __init__(self, scsi_target: ScsiTarget, configuration: configfs.Configuration) -> None:
        self.configuration = configuration
        self.broken = False
        self.calls: list[tuple[object, ...]] = []
        self.logged_in: list[tuple[str, str]] = []
        self.missing: dict[tuple[str, int], str] = {}
        self.tried = threading.Event()

    def _call(self, *call: object) -> None:
        if self.broken:
            raise configfs.ConfigfsError("the kernel said no")
        self.calls.append(call)

    def start(self) -> None:
        self._call("start")

    def close(self) -> None:
        self.calls.append(("close",))

    def listen(self, address: str, port: int) -> None:
        self._call("listen", address, port)

    def unlisten(self, address: str, port: int) -> None:
        self._call("unlisten", address, port)

    def unbound(self) -> dict[tuple[str, int], str]:
        return dict(self.missing)

    def bind_again(self) -> list[tuple[str, int]]:
        if not self.tried.is_set():
            self.tried.set()
            return []
        bound, self.missing = list(self.missing), {}
        return bound

    def admit(self, initiators: tuple[configfs.Initiator, ...], *, anyone: bool) -> None:
        self._call("admit", [initiator.name for initiator in initiators], anyone)

    def sessions(self) -> list[tuple[str, str]]:
        return self.logged_in


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Kernel]]:
    """Return the kernels that were made, the newest last."""
    made: list[Kernel] = []

    def make(scsi_target: ScsiTarget, configuration: configfs.Configuration) -> Kernel:
        made.append(Kernel(scsi_target, configuration))
        return made[-1]

    monkeypatch.setattr(tcmu_fabric, "LioFabric", make)
    thresholds = gc.get_threshold()
    yield made
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def rules_of(text: str, state_dir: Path = Path("/nonexistent")) -> access.Rules:
    return access.Rules.read(_settings(text).access, state_dir)


def fabric_of(text: str = "networks: [0.0.0.0/0]", state_dir: Path = Path("/nonexistent")) -> KernelFabric:
    return KernelFabric(_settings(text), ScsiTarget(IQN), access.Access(rules_of(text, state_dir)))


def _settings(text: str) -> settings.Settings:
    head = f"target: {IQN}\nfabric: lio\nlio: {{listen: ['{FIRST}'], loopback: true}}\n"
    volumes = "volumes: [{name: vol0, lun: 0, size: 1MiB}]\n"
    return reader.parse(head + volumes + "access:\n" + textwrap.indent(textwrap.dedent(text), "  "), "f.yaml")


def test_kernel_gets_the_target_with_its_addresses(kernels: list[Kernel]) -> None:
    fabric = fabric_of()
    configuration = kernels[0].configuration
    assert (configuration.target, configuration.loopback) == (IQN, True)
    assert configuration.portals == (("0.0.0.0", 3260),)
    assert list(fabric.addresses()) == [FIRST]


@pytest.mark.parametrize(
    ("text", "names", "anyone"),
    [
        ("networks: [0.0.0.0/0]", [], True),
        ("networks: []", [], False),
        (f"networks: [0.0.0.0/0]\ninitiators: [{{name: '{ANN}'}}]", [ANN], False),
        ("networks: [0.0.0.0/0]\ninitiators: []", [], False),
    ],
)
def test_any_initiator_is_admitted_only_without_a_list(
    kernels: list[Kernel], text: str, names: list[str], anyone: bool
) -> None:
    fabric = fabric_of(text)
    configuration = kernels[0].configuration
    assert ([initiator.name for initiator in configuration.initiators], configuration.anyone) == (names, anyone)
    fabric.admit(rules_of(text))
    assert kernels[0].calls == [("admit", names, anyone)]


def test_initiator_has_the_secrets_of_its_files_or_is_left_out(
    kernels: list[Kernel], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, secret in (("ann", "ann's own secret"), ("target", "the target's secret")):
        (tmp_path / name).write_text(secret)
        (tmp_path / name).chmod(0o600)
    text = f"""
        initiators:
          - name: {ANN}
            chap: {{name: ann, secret_file: ann, target_name: wolun, target_secret_file: target}}
            luns: [{{lun: 7, unit: vol0}}]
          - name: {BOB}
            chap: {{name: bob, secret_file: missing}}
        """
    fabric_of(text, tmp_path)
    (ann,) = kernels[0].configuration.initiators
    assert (ann.name, ann.user, ann.secret) == (ANN, "ann", "ann's own secret")
    assert (ann.target_user, ann.target_secret) == ("wolun", "the target's secret")
    unit = LogicalUnit(MemoryDevice(), uuid=uuid.uuid4(), kind=UnitKind.PRIMARY, name="vol0", commands=table.for_unit)
    assert [reach.lun for reach in ann.view(0, unit)] == [7]
    assert f"{BOB} may not log in: {tmp_path}/missing cannot be read" in caplog.text


def test_addresses_change_as_the_kernel_does(kernels: list[Kernel]) -> None:
    fabric = fabric_of()
    (kernel,) = kernels
    fabric.listen(SECOND)
    assert kernel.calls == [("listen", "[::1]", 3270)]
    assert list(fabric.addresses()) == [FIRST, SECOND]
    kernel.broken = True
    with pytest.raises(CannotStart, match="the kernel said no"):
        fabric.unlisten(FIRST)
    with pytest.raises(CannotListen, match="the kernel said no"):
        fabric.listen("127.0.0.1:3280")
    assert list(fabric.addresses()) == [FIRST, SECOND]
    kernel.broken = False
    fabric.unlisten(FIRST)
    assert kernel.calls[-1] == ("unlisten", "0.0.0.0", 3260)
    assert list(fabric.addresses()) == [SECOND]


def test_failed_start_is_cleaned_up_and_points_to_the_doctor(kernels: list[Kernel]) -> None:
    fabric = fabric_of()
    kernels[0].broken = True
    with pytest.raises(CannotStart, match="the kernel said no: `wolun doctor` says what this machine lacks"):
        fabric.start()
    assert kernels[0].calls == [("close",)]


def test_start_and_close_reach_the_kernel(kernels: list[Kernel]) -> None:
    fabric = fabric_of()
    fabric.start()
    fabric.close(1)
    assert kernels[0].calls == [("start",), ("close",)]


def test_address_that_the_kernel_cannot_bind_is_tried_again(
    kernels: list[Kernel], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fabric_kernel, "RETRY_SECONDS", 0.02)
    caplog.set_level("INFO")
    fabric = fabric_of()
    kernels[0].missing = {("0.0.0.0", 3260): "Address already in use"}
    fabric.start()
    assert fabric.unbound() == {FIRST: f"cannot listen for initiators on {FIRST} (Address already in use)"}
    assert list(fabric.addresses()) == [FIRST]
    deadline = time.monotonic() + 60
    while fabric.unbound() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not fabric.unbound()
    fabric.close(0)
    assert "goes on without it" in caplog.text
    assert f"initiators can connect to {FIRST} now" in caplog.text


def test_fabric_closes_while_an_address_is_missing(kernels: list[Kernel]) -> None:
    fabric = fabric_of()
    kernels[0].missing = {("0.0.0.0", 3260): "Address already in use"}
    fabric.start()
    fabric.close(0)
    assert kernels[0].calls == [("start",), ("close",)]
    assert not any(thread.name == "lio-retry" for thread in threading.enumerate())


def test_refused_rules_are_reported(kernels: list[Kernel]) -> None:
    fabric = fabric_of()
    kernels[0].broken = True
    with pytest.raises(CannotStart, match="the kernel said no"):
        fabric.admit(rules_of("networks: []"))


def test_sessions_have_only_what_the_kernel_knows(kernels: list[Kernel]) -> None:
    fabric = fabric_of()
    kernels[0].logged_in = [(ANN, "10.0.0.2"), (BOB, "")]
    ann, bob = fabric.sessions()
    assert (ann.initiator, ann.address, ann.target, ann.commands) == (ANN, "10.0.0.2", IQN, None)
    assert (bob.initiator, bob.address) == (BOB, "")
    assert fabric.failed_logins() == {}


def test_users_of_an_address_are_those_with_connections_to_it(
    kernels: list[Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two initiators on one machine cannot be told apart; a connection without a session is an unknown initiator."""
    fabric = fabric_of()
    kernels[0].logged_in = [(ANN, "10.0.0.2"), (BOB, "10.0.0.2"), ("iqn.2026-11.org.example:carl", "10.0.0.9")]
    asked = []

    def established(address: str, port: int) -> list[connections.Connection]:
        asked.append((address, port))
        return [connections.Connection(peer, 2, b"") for peer in ("10.0.0.2", "10.0.0.2", "10.0.0.3")]

    monkeypatch.setattr(connections, "established", established)
    assert fabric.users(SECOND) == [
        f"{ANN} from 10.0.0.2",
        f"{BOB} from 10.0.0.2",
        "an unknown initiator from 10.0.0.3",
    ]
    assert asked == [("[::1]", 3270)]
