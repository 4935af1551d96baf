# SPDX-License-Identifier: Apache-2.0
"""The fabric over wolun's own portal, on sockets of this machine."""

from __future__ import annotations

import gc
import os
import resource
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from target.configuration import settings
from target.fabrics import access, portal
from target.fabrics.fabric import CannotListen
from target.fabrics.portal import PortalFabric
from target.scsi.commands import table
from target.scsi.logical_unit import LogicalUnit, UnitKind
from target.scsi.scsi_target import ScsiTarget
from tests import libiscsi
from tests.memory_device import MemoryDevice

IQN = "iqn.2026-11.io.wolun:t"
ANY_PORT = "127.0.0.1:0"


def fabric_on(*listen: str, **keys: object) -> PortalFabric:
    configured = settings.Settings.model_validate(
        {
            "target": IQN,
            "portal": {"listen": list(listen), **keys},
            "access": {"networks": ["127.0.0.0/8"]},
            "volumes": [{"name": "vol0", "lun": 0, "size": "1MiB"}],
        }
    )
    served = ScsiTarget(IQN)
    served.add_lun(
        0, LogicalUnit(MemoryDevice(), uuid=uuid.uuid4(), kind=UnitKind.PRIMARY, name="vol0", commands=table.for_unit)
    )
    return PortalFabric(configured, served, access.Access(access.Rules.read(configured.access, Path())))


@pytest.fixture
def fabric() -> Iterator[PortalFabric]:
    thresholds = gc.get_threshold()
    started = fabric_on(ANY_PORT)
    started.start()
    yield started
    started.close(1)
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.fixture
def taken() -> Iterator[str]:
    """Return an address that another program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def log_in(address: str, name: str) -> libiscsi.Session:
    return libiscsi.Session(address, IQN, initiator=f"iqn.2026-11.org.example:{name}")


def test_address_that_is_taken_is_refused_with_the_remedy(taken: str) -> None:
    with pytest.raises(CannotListen, match=f"on {taken} .Address already in use") as refused:
        fabric_on(taken)
    assert refused.value.remedy.startswith("stop the program that uses it (`ss -tlnp` lists it)")


def test_process_without_descriptors_is_not_told_to_choose_another_address() -> None:
    address = free_port()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)  # all below it are in use
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(CannotListen, match=f"on {address} .Too many open files") as refused:
            fabric_on(address)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert refused.value.remedy == "raise the limit of open files and start the daemon again, or delete snapshots"


def test_address_of_another_machine_is_refused_with_the_remedy(fabric: PortalFabric) -> None:
    with pytest.raises(CannotListen, match=r"on 192\.0\.2\.1:3260 .Cannot assign") as refused:
        fabric.listen("192.0.2.1:3260")
    assert refused.value.remedy.startswith("`ip address` lists those that this machine has")


def test_the_addresses_that_can_be_bound_are_served(taken: str, caplog: pytest.LogCaptureFixture) -> None:
    served = free_port()
    fabric = fabric_on("192.0.2.1:3260", served, taken)
    fabric.start()
    try:
        assert list(fabric.addresses()) == ["192.0.2.1:3260", served, taken]
        assert {address: reason.partition(" (")[2] for address, reason in fabric.unbound().items()} == {
            "192.0.2.1:3260": "Cannot assign requested address)",
            taken: "Address already in use)",
        }
        assert "wolun goes on without it, and tries again" in caplog.text
        log_in(served, "ann").close()
        fabric.unlisten("192.0.2.1:3260")
        assert list(fabric.addresses()) == [served, taken]
    finally:
        fabric.close(1)


def test_no_address_that_can_be_bound_is_refused_with_the_first_remedy(taken: str) -> None:
    with pytest.raises(CannotListen, match=r"192\.0\.2\.1:3260 .Cannot assign"):
        fabric_on("192.0.2.1:3260", taken)


def test_address_that_was_taken_is_served_once_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portal, "RETRY_SECONDS", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as server:
        late = f"127.0.0.1:{server.getsockname()[1]}"
        fabric = fabric_on(late, ANY_PORT)
        fabric.start()
        assert list(fabric.unbound()) == [late]
    try:
        deadline = time.monotonic() + 20
        while fabric.unbound():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert fabric.addresses()[0] == late
        with log_in(late, "ann") as ann:
            ann.settle(0)
            assert [session.portal for session in fabric.sessions()] == [late]
    finally:
        fabric.close(1)


def test_limits_of_the_configuration_are_the_portals() -> None:
    fabric = fabric_on(ANY_PORT, sessions=7, memory="64MiB")
    load = fabric.load()
    assert load is not None
    assert (load.most_sessions, load.most_memory) == (7, 64 << 20)
    fabric.close(0)


def test_load_counts_sessions_and_knows_their_limit(fabric: PortalFabric) -> None:
    with log_in(fabric.addresses()[0], "ann"):
        load = fabric.load()
        assert load is not None
        assert (load.sessions, load.most_sessions, load.most_memory) == (1, 256, 256 << 20)


def test_second_address_serves_until_it_is_removed_and_ends_its_own_sessions_only(fabric: PortalFabric) -> None:
    (first,) = fabric.addresses()
    second = free_port()
    fabric.listen(second)
    assert list(fabric.addresses()) == [first, second]
    with log_in(first, "ann") as ann, log_in(second, "bob") as bob:
        ann.settle(0)
        bob.settle(0)
        assert list(fabric.users(first)) == ["iqn.2026-11.org.example:ann from 127.0.0.1"]
        assert list(fabric.users(second)) == ["iqn.2026-11.org.example:bob from 127.0.0.1"]
        fabric.unlisten(second)
        assert ann.command(0, bytes(6)).status == 0
        with pytest.raises(libiscsi.LibiscsiError):
            bob.command(0, bytes(6))
        assert [session.portal for session in fabric.sessions()] == [first]
    assert list(fabric.addresses()) == [first]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(second.rpartition(":")[2])))
