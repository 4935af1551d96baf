# SPDX-License-Identifier: Apache-2.0
"""The `lio` fabric: each LUN of a SCSI target becomes a TCMU device, which the kernel's target exports and this process serves.

The configuration string of a device names its content, and stock tools show it.  An administrator may make a device
with such a string (`targetcli /backstores/user:copyonwrite create …`).  The daemon serves this device, too, but never
changes or removes it.  It leaves the devices of another wolun daemon alone.

| configuration                    | device                                     |
| -------------------------------- | ------------------------------------------ |
| `copyonwrite/<volume>`           | the volume, whose snapshots stay valid      |
| `writeonce/<volume>@<snapshot>`  | the snapshot's write-once LUN               |
| `snapview/<volume>@<snapshot>`   | the snapshot's view                         |

* *Crash.* All objects stay in the kernel, and commands wait there for at most 130 s.  The next start takes each device
  over: it blocks the device, resets its ring, serves it, and unblocks it.  Commands in flight are answered BUSY, and
  come again.
  Devices of a volume that is still being opened (`ScsiTarget.expected`) stay, and are taken over when their units come.
* *Start.* A new device gets the persistent reservations that the kernel has kept for its unit.
* *Stop.* First the targets are removed while the rings are still served, so the kernel can wait for the commands in
  flight.  Then the devices are removed.  Devices that an administrator made are blocked, drained and left for the next
  start to take over.  If one step fails, the error is logged and the other steps follow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from target import liveness
from target.scsi import plain
from target.scsi.logical_unit import LogicalUnit
from target.scsi.nexus import Nexus
from target.scsi.scsi_target import ScsiTarget
from target.scsi.unit_kind import UnitKind
from target.tcmu import aptpl, configfs, connections, dbus, netlink, uio
from target.tcmu.ring import Ring, RingError
from target.tcmu.server import Served, Server

log = logging.getLogger(__name__)

HANDLERS = {
    UnitKind.PRIMARY: "copyonwrite",
    UnitKind.WRITE_ONCE: "writeonce",
    UnitKind.SNAPSHOT_VIEW: "snapview",
}
DESCRIPTIONS = {
    "copyonwrite": "A volume of a running wolun daemon, by its name: <volume>",
    "writeonce": "A snapshot's write-once LUN, with the old content of the blocks that changed since: <volume>@<snapshot>",
    "snapview": "A snapshot's read-only view, the volume as it was then: <volume>@<snapshot>",
}
ERRORS = (configfs.ConfigfsError, netlink.NetlinkError, RingError, OSError)
"""The errors that `LioFabric.start` raises."""
DRAIN = 30.0  # seconds for a ring to become empty; at a stop, for all of them together


def config_of(unit: LogicalUnit) -> str:
    """Return the configuration string of the device that serves a unit."""
    return f"{HANDLERS[unit.kind]}/{unit.name.removesuffix('/write-once')}"


@dataclass(eq=False)
class _Device:
    """A device that this process serves."""

    uio: uio.UioDevice
    unit: LogicalUnit
    served: Served
    target: ScsiTarget
    nexus: Nexus


class LioFabric:
    """The fabric that keeps the LUNs of `scsi_target` in the kernel's target, from `start` to `close`."""

    def __init__(self, scsi_target: ScsiTarget, configuration: configfs.Configuration) -> None:
        self._scsi_target = scsi_target
        self._configuration = configuration
        # Guards the devices.  The netlink thread takes it, so no holder may wait for the kernel.
        self._lock = threading.RLock()
        self._changing = threading.Lock()  # guards configfs: LUNs come and go one after another
        self._devices: dict[str, _Device] = {}  # by UIO node
        self._luns: dict[int, tuple[LogicalUnit, str]] = {}  # LUN -> its unit and the node of our device
        self._kept: set[str] = set()  # the names of a predecessor's devices whose units come later
        self._server = Server()
        self._listener: netlink.Listener | None = None
        self._announcer = dbus.Announcer(DESCRIPTIONS, self._check)
        self._kernel: configfs.KernelTarget | None = None
        self._open = False

    def start(self) -> None:
        """Set up the kernel's target, or take it over, and serve.  Raises one of `ERRORS`; `close` then cleans up."""
        configfs.load_modules()
        self._listener = netlink.Listener(self._announced)
        self._server.start()
        wanted = {self._configuration.device_name(config_of(unit)) for unit in self._scsi_target.luns.values()}
        # A device without a LUN may lack its serial number, and so its reservations.  Make such a device anew.
        wanted &= configfs.exported()
        with self._lock:
            for device in uio.devices():
                if not configfs.is_made_by_a_daemon(device.name) or device.name in wanted:
                    self._adopt(device, fresh=False)
        self._listener.start()
        self._kernel = configfs.KernelTarget(dataclasses.replace(self._configuration, reserving=self._reserving()))
        self._open = True
        self._scsi_target.on_change(self._changed)
        self._reconcile()
        self._kernel.open()
        log.info("the kernel's target serves %d LUNs", len(self._luns))
        self._announcer.start()

    def pulses(self) -> Sequence[liveness.Pulse]:
        """Return the signs of life of the loops that `start` has started."""
        return (self._server.pulse,) if self._listener is None else (self._server.pulse, self._listener.pulse)

    def close(self) -> None:
        """Stop serving, and leave no object of ours in the kernel.  Never raises; a second call does nothing."""
        with self._changing:
            if self._listener is None:
                return
            self._open = False
            self._announcer.close()
            if self._kernel is not None:
                with _going_on("remove the targets"):
                    self._kernel.delete()
            self._luns.clear()
            deadline = time.monotonic() + DRAIN
            for device in list(self._devices.values()):
                foreign = not device.uio.name.startswith(self._configuration.device_prefix)
                with _going_on(f"hold the commands for {device.uio.name}"):
                    if foreign:
                        configfs.action(device.uio, "block_dev", 1)
                with _going_on(f"leave {device.uio.name}"):
                    self._release(device, deadline)
            with _going_on("look for what is left"):
                for hba, name in configfs.our_devices(self._configuration.device_prefix):
                    with _going_on(f"remove {name}"):
                        configfs.delete_device(hba, name)
            with _going_on("leave the kernel's announcements"):
                self._listener.close()
            self._listener = None
            self._server.close()

    def admit(self, initiators: tuple[configfs.Initiator, ...], *, anyone: bool) -> None:
        """Let these initiators log in, and end the sessions of initiators that have lost their entry.  Raises one of `ERRORS`."""
        with self._changing:
            if self._kernel is not None and self._open:
                self._kernel.admit(initiators, anyone=anyone)
                for lun, (unit, node) in self._luns.items():
                    device = self._devices[node].uio
                    self._kernel.add_lun(lun, device.hba, device.name, unit)
                self._kernel.open()

    def listen(self, address: str, port: int) -> None:
        """Listen on another address.  Raises one of `ERRORS`; then initiators cannot connect there."""
        with self._changing:
            if self._kernel is not None and self._open:
                self._kernel.listen(address, port)

    def unlisten(self, address: str, port: int) -> None:
        """Stop listening on an address, and end the sessions that came there.  Raises one of `ERRORS`."""
        with self._changing:
            if self._kernel is not None and self._open:
                self._kernel.unlisten(address, port)
                try:
                    for connection in connections.established(address, port):
                        connections.end(connection)
                except OSError:
                    self._kernel.listen(address, port)
                    raise

    def unbound(self) -> dict[tuple[str, int], str]:
        """Return the addresses that the kernel could not bind, with the reasons."""
        kernel = self._kernel
        return {} if kernel is None else dict(kernel.unbound)

    def bind_again(self) -> list[tuple[str, int]]:
        """Try again to listen on the addresses that could not be bound, and return those that are bound now."""
        with self._changing:
            return self._kernel.bind_again() if self._kernel is not None and self._open else []

    def sessions(self) -> list[tuple[str, str]]:
        """Return the initiators that are logged in, with the addresses that they came from, empty if unknown."""
        kernel = self._kernel  # without a lock, because a thread that changes LUNs waits for the kernel
        return kernel.sessions() if kernel is not None and self._open else []

    def _changed(self) -> None:
        """Follow a change of the SCSI target's LUNs."""
        # The kernel's target informs its initiators.  Our unit attention would reach only one of them, through the one
        # nexus.
        for device in list(self._devices.values()):
            device.nexus.luns_reported()
        self._reconcile()

    def _reconcile(self) -> None:
        """Make the kernel's LUNs those of the SCSI target."""
        with self._changing:
            if not self._open:
                return
            assert self._kernel is not None
            wanted = self._scsi_target.luns
            left = self._kernel.luns()  # after a crash: the LUNs that a predecessor exported
            names = {lun: self._configuration.device_name(config_of(unit)) for lun, unit in wanted.items()}
            for lun, name in left.items():
                if lun not in names and self._is_expected(name):
                    self._kept.add(name)
                elif names.get(lun) != name or (lun in self._luns and self._luns[lun][0] is not wanted[lun]):
                    self._remove(lun)
                elif name in self._kept:
                    self._take_over(name)
            self._delete_stale({names[lun]: unit for lun, unit in wanted.items()})
            for lun, unit in wanted.items():
                if lun not in self._luns:
                    try:
                        self._add(lun, unit, names[lun])
                    except aptpl.Damaged as error:
                        log.error("LUN %d is not served, because a reservation of it may be lost: %s", lun, error)

    def _add(self, lun: int, unit: LogicalUnit, name: str) -> None:
        assert self._kernel is not None
        device = self._served_as(name)
        if device is None:
            configfs.create_device(
                name, config_of(unit), size=unit.blocks << unit.shift, block_size=unit.block_size, serial=str(unit.uuid)
            )
            # Look it up by its name, because the kernel chose the UIO number.
            made = next((entry for entry in uio.devices(besides=self._devices) if entry.name == name), None)
            if made is None:
                raise configfs.ConfigfsError(f"the kernel made no UIO device for {name}")
            with self._lock:
                device = self._serve(made, unit)
        self._kernel.add_lun(lun, device.uio.hba, name, unit)
        self._luns[lun] = (unit, str(device.uio.node))

    def _reserving(self) -> frozenset[str]:
        """Return the initiators that have persistent registrations of a LUN by iSCSI."""
        initiators: set[str] = set()
        for unit in self._scsi_target.luns.values():
            with contextlib.suppress(aptpl.Damaged):  # that LUN will not be served, and the log will have the reason
                registrations = configfs.reservations(str(unit.uuid))
                initiators |= {entry.initiator for entry in registrations if entry.fabric == "iscsi"}
        return frozenset(initiators)

    def _remove(self, lun: int) -> None:
        assert self._kernel is not None
        self._kernel.remove_lun(lun)
        self._luns.pop(lun, None)

    def _delete_stale(self, wanted: dict[str, LogicalUnit]) -> None:
        """Remove our devices that no LUN needs: of removed or replaced units, and those that a crash left unfinished."""
        served = {(device.uio.hba, device.uio.name): device for device in self._devices.values()}
        for hba, name in configfs.our_devices(self._configuration.device_prefix):
            stale = served.get((hba, name))
            if stale is None and name not in wanted and self._is_expected(name):
                continue
            if stale is not None:
                if wanted.get(name) is stale.unit:
                    continue
                self._release(stale)
            configfs.delete_device(hba, name)

    def _is_expected(self, name: str) -> bool:
        """Return whether a device belongs to a volume that is still being opened."""
        return any(
            name == self._configuration.device_name(f"{handler}/{volume}")
            or name.startswith(self._configuration.device_name(f"{handler}/{volume}@"))
            for volume in self._scsi_target.expected
            for handler in HANDLERS.values()
        )

    def _take_over(self, name: str) -> None:
        """Serve a device that waited for its unit."""
        self._kept.discard(name)
        with self._lock:
            for device in uio.devices(besides=self._devices):
                if device.name == name:
                    self._adopt(device, fresh=False)

    def _unit(self, config: str) -> LogicalUnit | None:
        return next((unit for unit in self._scsi_target.luns.values() if config_of(unit) == config), None)

    def _judge(self, config: str) -> str:
        """Return the fault of a device's configuration; empty if this daemon serves the device."""
        if self._unit(config) is not None:
            return ""
        known = sorted(config_of(unit) for unit in self._scsi_target.luns.values())
        return f"this daemon does not serve {config}; it serves {', '.join(known) or 'nothing'}"

    def _check(self, config: str, beside_another: bool) -> str:
        """Check the configuration of a device that targetcli is about to make; runs on the D-Bus thread."""
        trouble = self._judge(config)
        if not trouble and beside_another and self._listener is not None:
            self._listener.expect_device()
        return trouble

    def _served_as(self, name: str) -> _Device | None:
        return next((device for device in self._devices.values() if device.uio.name == name), None)

    def _adopt(self, device: uio.UioDevice, *, fresh: bool) -> int | None:
        """Serve a device that exists already.  Return 0 or a negative errno; None if the device is not ours to serve.

        A `fresh` device is just being enabled, so its ring is empty, and the kernel takes no orders about it yet.
        """
        if device.handler not in HANDLERS.values():
            return None
        unit = self._unit(device.config)
        if unit is None:
            log.error("device %s: %s", device.name, self._judge(device.config))
            return -errno.ENOENT
        try:
            if not fresh:
                os.close(device.open())  # fails if another process has it open, whose ring must not be reset
                configfs.action(device, "block_dev", 1)
                configfs.action(device, "reset_ring", 1)
            self._serve(device, unit)
            if not fresh:
                configfs.action(device, "block_dev", 0)
        except OSError as error:
            log.error("cannot serve %s for %s: %s", device.node, device.name, error.strerror)
            return -(error.errno or errno.EIO)
        except (configfs.ConfigfsError, RingError) as error:
            log.error("cannot serve %s for %s: %s", device.node, device.name, error)
            return -errno.EIO
        return 0

    def _serve(self, device: uio.UioDevice, unit: LogicalUnit) -> _Device:
        descriptor = device.open()
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, descriptor)
            ring = Ring(descriptor, device.length)
            # Make a SCSI target of its own with this unit as LUN 0, because the kernel numbers the LUNs.
            target = ScsiTarget(device.name)
            target.add_lun(0, unit)
            nexus = target.open_nexus("tcmu")
            served = Served(ring, descriptor, nexus, plain.Plain(nexus.reached[0]).run)
            self._server.add(served)
            undo.pop_all()
        serving = self._devices[str(device.node)] = _Device(device, unit, served, target, nexus)
        return serving

    def _release(self, device: _Device, deadline: float | None = None) -> None:
        """Answer the commands that are left in the ring, and stop serving it.  Errors are logged."""
        if deadline is None:
            deadline = time.monotonic() + DRAIN
        if not self._server.remove(device.served, deadline):
            log.error("device %s still has commands that were not answered", device.uio.name)
        device.target.close_nexus(device.nexus)
        trouble = device.served.ring.close()
        if trouble:
            log.error("the ring of device %s stays mapped: %s", device.uio.name, trouble)
        os.close(device.served.descriptor)
        with self._lock:
            self._devices.pop(str(device.uio.node), None)

    def _announced(self, event: netlink.Event) -> int | None:
        """Handle an announcement of the kernel; runs on the netlink thread."""
        if event.command == netlink.REMOVED:
            with self._lock:
                removed = self._devices.get(f"/dev/uio{event.minor}")
            if removed is None or configfs.is_made_by_a_daemon(removed.uio.name):
                return None
            self._release(removed)
            return 0
        device = uio.by_minor(event.minor)
        if device is None or configfs.is_made_by_a_daemon(device.name) or device.handler not in HANDLERS.values():
            return None
        if event.command == netlink.RECONFIG:
            return -errno.EOPNOTSUPP
        with self._lock:
            failed = self._devices.get(str(device.node))
            if failed is not None:  # announced, but not enabled, which the kernel does not report
                self._release(failed)
            return self._adopt(device, fresh=True)


@contextlib.contextmanager
def _going_on(what: str) -> Iterator[None]:
    """Run a step of the stop.  Log its error, and let the stop continue."""
    try:
        yield
    except ERRORS as error:
        log.error("while stopping, cannot %s: %s", what, error)
