# SPDX-License-Identifier: Apache-2.0
"""The handlers of this daemon in the list of stock targetcli, over the D-Bus system bus.

targetcli lists the objects that `org.kernel.TCMUService1` has below its path of the same name, and it hides all errors.
So this module logs its steps:

| owner of `org.kernel.TCMUService1`  | our part                                                                       |
| ----------------------------------- | ------------------------------------------------------------------------------ |
| none                                | own the name, and answer targetcli ourselves                                   |
| tcmu-runner, or another             | register each handler with its HandlerManager1, and own a name for each         |

The owner may change at any time.  Then this module begins again.

The policy of the bus may forbid us to own the name.  `config/` has a policy file, and the log names it as the remedy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Annotated

from dbus_fast import DBusFastError, Message, MessageType
from dbus_fast.aio import MessageBus
from dbus_fast.annotations import DBusSignature, DBusStr
from dbus_fast.constants import BusType, NameFlag, PropertyAccess, RequestNameReply
from dbus_fast.service import ServiceInterface, dbus_method, dbus_property

log = logging.getLogger(__name__)

SERVICE = "org.kernel.TCMUService1"
MANAGER = SERVICE + ".HandlerManager1"
PATH = "/org/kernel/TCMUService1"
MANAGER_PATH = PATH + "/HandlerManager1"
BUS = "org.freedesktop.DBus"
BUS_PATH = "/org/freedesktop/DBus"
REMEDY = "install config/org.kernel.TCMUService1.wolun.conf in /etc/dbus-1/system.d and reload the bus"

Check = Callable[[str, bool], str]
"""A function that checks the configuration string of a device, and returns its fault or an empty string.

The second argument says whether another service (tcmu-runner) asks.  The kernel announces the new device to that
service, too."""


class _Handler(ServiceInterface):
    """The object of a handler, which targetcli asks."""

    def __init__(self, description: str, check: Check, *, registered: bool) -> None:
        super().__init__(SERVICE)
        self._description = description
        self._check = check
        self._registered = registered

    @dbus_method()
    def CheckConfig(self, config: DBusStr) -> Annotated[tuple[bool, str], DBusSignature("bs")]:  # noqa: N802 - the name in the interface
        """Return whether a device may be made with this configuration, and the reason if not."""
        trouble = self._check(config, self._registered)
        return (not trouble, trouble)

    @dbus_property(access=PropertyAccess.READ)
    def ConfigDesc(self) -> DBusStr:  # noqa: N802 - the name in the interface
        """Return the help text of `create`."""
        return self._description


class Announcer:
    """A thread that keeps `handlers` (name -> help text) in targetcli's list, from `start` to `close`.

    Without a bus it lists nothing and logs that; everything else works.
    """

    def __init__(self, handlers: Mapping[str, str], check: Check) -> None:
        self._handlers = handlers
        self._check = check
        self._own_name: str | None = None
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="tcmu dbus", daemon=True)

    def start(self) -> None:
        """Start the thread, without waiting for the bus."""
        self._thread.start()

    def close(self) -> None:
        """Leave the bus, and so all lists."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # its loop is closed: the thread is about to end by itself
                self._loop.call_soon_threadsafe(self._wake_to_stop)
            self._thread.join()

    def _wake_to_stop(self) -> None:
        self._stop.set()
        self._changed.set()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except (OSError, DBusFastError, EOFError) as error:
            log.warning("targetcli will not list our handlers: no D-Bus system bus (%s)", error)
        except Exception:  # only the list of targetcli depends on this thread
            log.exception("targetcli will not list our handlers")
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
        self._own_name = bus.unique_name
        try:
            for handler, description in self._handlers.items():
                # targetcli asks below the path of the service, tcmu-runner below that of its manager
                bus.export(f"{PATH}/{handler}", _Handler(description, self._check, registered=False))
            bus.add_message_handler(self._noticed)
            rule = f"type='signal',sender='{BUS}',member='NameOwnerChanged',arg0='{SERVICE}'"
            await self._call(bus, BUS, BUS_PATH, BUS, "AddMatch", "s", [rule])
            while not self._stop.is_set():
                self._changed.clear()
                await self._announce(bus)
                await self._changed.wait()
        finally:
            bus.disconnect()

    def _noticed(self, message: Message) -> None:
        signal = message.message_type is MessageType.SIGNAL and message.member == "NameOwnerChanged"
        if signal and message.body[0] == SERVICE and message.body[2] != self._own_name:
            self._changed.set()

    async def _announce(self, bus: MessageBus) -> None:
        try:
            reply = await bus.request_name(SERVICE, NameFlag.DO_NOT_QUEUE)
        except DBusFastError as error:
            log.warning("the bus does not let us own %s (%s): %s", SERVICE, error, REMEDY)
            return
        if reply in (RequestNameReply.PRIMARY_OWNER, RequestNameReply.ALREADY_OWNER):
            for handler in self._handlers:
                bus.unexport(f"{MANAGER_PATH}/{handler}")  # otherwise targetcli, which now asks us, would find it twice
            log.info("targetcli lists %s", ", ".join(f"user:{handler}" for handler in self._handlers))
            return
        for handler, description in self._handlers.items():
            await self._register(bus, handler, description)

    async def _register(self, bus: MessageBus, handler: str, description: str) -> None:
        """Register a handler with the owner of the service."""
        try:
            await bus.request_name(f"{MANAGER}.{handler}", NameFlag.DO_NOT_QUEUE)
            path = f"{MANAGER_PATH}/{handler}"
            bus.unexport(path)  # left from an earlier owner
            bus.export(path, _Handler(description, self._check, registered=True))
            arguments = [handler, description]
            reply = await self._call(bus, SERVICE, MANAGER_PATH, MANAGER, "RegisterHandler", "ss", arguments)
        except DBusFastError as error:
            log.warning("cannot register %s with %s: %s", handler, SERVICE, error)
            return
        accepted, reason, *_ = [*reply.body, False, ""]
        if not accepted:
            log.warning("%s refused the handler %s: %s", SERVICE, handler, reason)
            return
        log.info("targetcli lists user:%s, through the owner of %s", handler, SERVICE)

    async def _call(
        self, bus: MessageBus, to: str, path: str, interface: str, member: str, signature: str, body: list[str]
    ) -> Message:
        message = Message(destination=to, path=path, interface=interface, member=member, signature=signature, body=body)
        reply = await bus.call(message)
        if reply is None or reply.message_type is MessageType.ERROR:
            reason = reply.body[0] if reply is not None and reply.body else "no answer"
            raise DBusFastError(f"{member}: {reason}")
        return reply
