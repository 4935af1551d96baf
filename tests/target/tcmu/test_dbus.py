# SPDX-License-Identifier: Apache-2.0
"""The names of the handlers on a bus of the test's own; tests/kernel asks with the real targetcli."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree

import pytest
from dbus_fast import Message, MessageType
from dbus_fast.aio import MessageBus
from dbus_fast.annotations import DBusSignature, DBusStr
from dbus_fast.constants import BusType, RequestNameReply
from dbus_fast.service import ServiceInterface, dbus_method

from target.tcmu import dbus
from target.tcmu.dbus import MANAGER, MANAGER_PATH, PATH, SERVICE, Announcer
from tests import peers

HANDLERS = {"copyonwrite": "a volume", "snapview": "a view"}
POLICY = Path(__file__).parents[3] / "config" / "org.kernel.TCMUService1.wolun.conf"
ANY = '<policy context="default"><allow own="*"/><allow send_destination="*"/></policy>'
CONFIGURATION = """
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_destination="org.freedesktop.DBus"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
  </policy>
  {policy}
</busconfig>
"""


class Manager(ServiceInterface):
    """Another owner of the service, like tcmu-runner; it refuses handlers named in `refused`."""

    def __init__(self, refused: tuple[str, ...] = ()) -> None:
        super().__init__(MANAGER)
        self.registered: list[tuple[str, str]] = []
        self._refused = refused

    @dbus_method()
    def RegisterHandler(  # noqa: N802 - the name in the interface
        self, subtype: DBusStr, description: DBusStr
    ) -> Annotated[tuple[bool, str], DBusSignature("bs")]:
        """Take a handler over."""
        if subtype in self._refused:
            return (False, "no room")
        self.registered.append((subtype, description))
        return (True, "")


@pytest.fixture
def start_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Return a function that starts the system bus of this test, with a policy."""
    running: list[subprocess.Popen[str]] = []

    def start(policy: str) -> None:
        file = tmp_path / "bus.conf"
        file.write_text(CONFIGURATION.format(socket=tmp_path / "bus", policy=policy))
        command = [peers.require("dbus-daemon"), "--nofork", "--print-address", f"--config-file={file}"]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert running[0].stdout is not None
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", running[0].stdout.readline().strip())

    yield start
    for process in running:
        process.terminate()
        process.communicate(timeout=30)


@pytest.fixture
def bus(start_bus: Callable[[str], None]) -> None:
    start_bus(ANY)


@contextlib.contextmanager
def announcing() -> Iterator[list[tuple[str, bool]]]:
    """Announce the handlers; yield the configurations that the announcer was asked to check."""
    checked: list[tuple[str, bool]] = []

    def check(config: str, beside_another: bool) -> str:
        checked.append((config, beside_another))
        return "" if config == "copyonwrite/vol0" else "no such volume"

    announcer = Announcer(HANDLERS, check)
    announcer.start()
    try:
        yield checked
    finally:
        announcer.close()


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[MessageBus]:
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    try:
        yield bus
    finally:
        bus.disconnect()


async def call(
    bus: MessageBus, path: str, member: str, *body: str, interface: str = SERVICE, destination: str = SERVICE
) -> Any:
    """Call a method of the service, or of another name; return the body of the answer, None for an error."""
    message = Message(
        destination=destination,
        path=path,
        interface=interface,
        member=member,
        signature="s" * len(body),
        body=list(body),
    )
    reply = await bus.call(message)
    return reply.body if reply is not None and reply.message_type is MessageType.METHOD_RETURN else None


async def until(condition: Callable[[], Any]) -> None:
    """Wait until a condition holds, or a call that it begins has an answer; the test's own time limit ends this."""
    while True:
        result = condition()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return
        await asyncio.sleep(0.01)


async def asks_and_is_answered() -> None:
    async with connected() as bus:
        path = f"{PATH}/copyonwrite"
        await until(lambda: call(bus, path, "CheckConfig", "copyonwrite/vol0"))
        assert await call(bus, path, "CheckConfig", "copyonwrite/vol0") == [True, ""]
        assert await call(bus, path, "CheckConfig", "copyonwrite/x") == [False, "no such volume"]
        properties = "org.freedesktop.DBus.Properties"
        (description,) = await call(bus, path, "Get", SERVICE, "ConfigDesc", interface=properties)
        assert description.value == "a volume"


def test_service_without_an_owner_is_owned_and_answered(bus: None) -> None:
    with announcing() as checked:
        asyncio.run(asks_and_is_answered())
    assert ("copyonwrite/vol0", False) in checked
    assert not any(beside_another for _, beside_another in checked)


def test_installed_policy_is_enough(start_bus: Callable[[str], None]) -> None:
    peers.need_root("the policy")
    start_bus(f"<include>{POLICY}</include>")
    with announcing():
        asyncio.run(asks_and_is_answered())


def test_each_rule_of_the_policy_names_destination_and_interface() -> None:
    rules = [rule.attrib for rule in ElementTree.parse(POLICY).iter("allow")]
    sends = [rule for rule in rules if not {"own", "own_prefix"} & rule.keys()]
    assert sends
    for rule in sends:
        assert rule.keys() == {"send_destination", "send_interface"}
        assert rule["send_destination"].startswith(SERVICE)
    assert not [policy for policy in ElementTree.parse(POLICY).iter("policy") if policy.get("user") != "root"]


def test_installed_policy_opens_no_other_interface_and_no_other_service(start_bus: Callable[[str], None]) -> None:
    peers.need_root("the policy")
    start_bus(f"<policy user='root'><allow own='org.example.Other'/></policy><include>{POLICY}</include>")

    async def asks() -> None:
        async with connected() as owner, connected() as bus:
            await until(lambda: call(bus, f"{PATH}/copyonwrite", "CheckConfig", "copyonwrite/vol0"))
            peer = "org.freedesktop.DBus.Peer"
            assert await call(bus, f"{PATH}/copyonwrite", "GetMachineId", interface=peer) is None
            await owner.request_name("org.example.Other")
            owner.export(f"{PATH}/copyonwrite", dbus._Handler("x", lambda *_: "", registered=False))
            path, other = f"{PATH}/copyonwrite", "org.example.Other"
            assert await call(bus, path, "CheckConfig", "copyonwrite/vol0", destination=other) is None

    with announcing():
        asyncio.run(asks())


def test_refusal_of_the_bus_is_logged_with_its_remedy(
    start_bus: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    start_bus("")
    with announcing():
        asyncio.run(until(lambda: caplog.records))
    assert "does not let us own org.kernel.TCMUService1" in caplog.text
    assert dbus.REMEDY in caplog.text


def test_handlers_are_registered_with_another_owner_until_it_leaves(bus: None) -> None:
    async def scenario() -> None:
        async with connected() as asking, connected() as owner:
            manager = Manager()
            owner.export(MANAGER_PATH, manager)
            assert await owner.request_name(SERVICE) is RequestNameReply.PRIMARY_OWNER
            with announcing() as checked:
                await until(lambda: len(manager.registered) == len(HANDLERS))
                assert dict(manager.registered) == HANDLERS
                name = f"{MANAGER}.copyonwrite"
                path = f"{MANAGER_PATH}/copyonwrite"
                answer = await call(owner, path, "CheckConfig", "copyonwrite/vol0", destination=name)
                assert answer == [True, ""]
                assert checked == [("copyonwrite/vol0", True)]
                await owner.release_name(SERVICE)
                await until(lambda: call(asking, f"{PATH}/snapview", "CheckConfig", "x"))
                assert checked[-1] == ("x", False)
                assert await call(asking, path, "CheckConfig", "x") is None  # or targetcli would list it twice

    asyncio.run(scenario())


def test_refusal_of_another_owner_is_logged_and_the_other_handlers_are_registered(
    bus: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with connected() as owner:
            manager = Manager(refused=("copyonwrite",))
            owner.export(MANAGER_PATH, manager)
            await owner.request_name(SERVICE)
            with announcing():
                await until(lambda: manager.registered and caplog.records)
            assert dict(manager.registered) == {"snapview": "a view"}

    asyncio.run(scenario())
    assert f"{SERVICE} refused the handler copyonwrite: no room" in caplog.text


def test_machine_without_a_bus_is_logged_and_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path / 'none'}")
    with announcing():
        asyncio.run(until(lambda: caplog.records))
    assert "targetcli will not list our handlers: no D-Bus system bus" in caplog.text
