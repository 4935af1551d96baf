# SPDX-License-Identifier: Apache-2.0
"""`wolun serve`: the process that owns a state directory, from the lock to the last sync.

Order of start: lock the directory, open the volumes, listen for initiators, open the control socket, print `ready`.
Order of stop (SIGTERM, SIGINT): refuse new requests, cancel jobs, log initiators out, sync and close the volumes, unlock.
All threads block these signals, and one waits for them.  `ending` has the ends that are not orderly.

    <state directory>/lock            locked by the daemon that owns the directory
    <state directory>/control.sock    the control socket
    <state directory>/luns.json       the LUNs of the snapshots
    <state directory>/volumes.json    the LUNs of the volumes, see service/left_behind.py
    <state directory>/volumes/        see volumes.py
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import target
from lun_backends.files import os_error, small_file
from target import descriptors, ending, liveness, places, printable, systemd
from target.configuration import reader, settings
from target.fabrics import choice
from target.fabrics.fabric import CannotStart
from target.service import lun_numbers
from target.service.inventory import Inventory
from target.service.service import Service

if TYPE_CHECKING:
    from target.administration.administration import Administration
    from target.web.status_page import StatusPage

log = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0


class CannotServe(Exception):
    """The daemon cannot start; the text says why, and what to do."""


_ExceptionInfo = tuple[type[BaseException], BaseException, types.TracebackType | None] | tuple[None, None, None]


class Records(logging.Formatter):
    """The format of the log: a line for each record, and behind it indented lines if there is a traceback.

    So no text from outside can look like a record of its own.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that logging calls
        """Return the record's line."""
        record.message = printable.line(record.message.rstrip("\n"))
        return super().formatMessage(record)

    def formatException(self, ei: _ExceptionInfo) -> str:  # noqa: N802 - the name that logging calls
        """Return the traceback's lines."""
        return textwrap.indent(printable.lines(super().formatException(ei)), "  ", lambda _: True)


def serve(config: Path | None, state_dir: Path, listen: str | None) -> None:
    """Run until SIGTERM or SIGINT.  Raises CannotServe, ConfigurationError."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Records("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    ending.with_any_thread()
    descriptors.raise_limit()
    stop_signals = ending.StopSignals()
    os.umask(0o077)  # only the daemon's user may read the content of volumes
    config = config or _default_configuration(state_dir)
    on_file = _configuration(config)
    configured = _listening(on_file, listen)
    with _owned(state_dir):
        try:
            service = Service(configured, state_dir)
        except (lun_numbers.Damaged, OSError) as error:
            raise CannotServe(f"the state in {state_dir} cannot be used: {error}") from error
        try:
            if (configured.volumes or configured.write_once or configured.shared) and not (
                service.inventory.open_volumes
                or service.inventory.scsi.luns
                or service.inventory.undecided
                or service.nodes.any
            ):
                raise CannotServe("no volume can be served; the messages above name the reason and the remedy for each")
            _run(service, config, on_file, stop_signals)
        finally:
            service.stop()
            service.close()
    log.info("stopped")


def _default_configuration(state_dir: Path) -> Path:
    """Return the file to serve without `--config`; a checkout gets its copy of the quickstart if it has none."""
    path = places.default_configuration(state_dir)
    if places.CHECKOUT and not path.exists():
        try:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            small_file.replace(path, places.quickstart().encode())
        except OSError as error:
            raise CannotServe(f"{path} cannot be written ({error.strerror}): {places.UNUSABLE_REMEDY}") from error
        log.info("made %s, a copy of the quickstart; `saveconfig` writes into it", path)
    return path


def _configuration(path: Path) -> settings.Settings:
    try:
        return reader.load(path)
    except OSError as error:
        raise CannotServe(
            f"{path} cannot be read ({error.strerror}): name a configuration file with --config"
        ) from error


def _listening(configured: settings.Settings, listen: str | None) -> settings.Settings:
    """Return the same settings with the address of `--portal`."""
    if listen is None:
        return configured
    try:
        portal = settings.Portal.model_validate({**configured.portal.model_dump(), "listen": (listen,)})
        return configured.model_copy(update={"portal": portal})
    except ValueError as error:
        raise CannotServe(f"--portal {listen}: write HOST:PORT, like 127.0.0.1:3260 or [::1]:3260") from error


@contextlib.contextmanager
def _owned(state_dir: Path) -> Iterator[None]:
    """Create the state directory if necessary, and lock it, so that no other daemon serves it."""
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(state_dir / places.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotServe(
            f"the state directory {state_dir} cannot be used ({os_error.reason(error)}): "
            f"{os_error.remedy(error, places.UNUSABLE_REMEDY)}"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
            raise CannotServe(
                f"a daemon (process {owner}) already serves {state_dir}: stop it first, or choose another with --state-dir"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def _run(service: Service, config: Path, on_file: settings.Settings, stop_signals: ending.StopSignals) -> None:
    inventory = service.inventory
    try:
        fabric = choice.make(inventory.settings, inventory.scsi, inventory.access)
    except CannotStart as error:
        raise CannotServe(str(error)) from error
    try:
        fabric.start()
        service.fabric_started(fabric)
        # These modules import slowly.  Initiators that wait for a restarted daemon are served first.
        from target.administration import administration
        from target.control import control_socket
        from target.exports import replicator

        admin = administration.Administration(service, fabric, config, on_file)
        control = control_socket.ControlSocket(service, admin, inventory.state_dir)
        try:
            control.start()
        except OSError as error:
            raise CannotServe(
                f"the control socket in {inventory.state_dir} cannot be opened ({os_error.reason(error)}): "
                f"{os_error.remedy(error, places.UNUSABLE_REMEDY)}"
            ) from error
        page, replications = None, replicator.Replicator(service)
        service.status.replications = replications.shown
        try:
            replications.start()
            page = _status_page(service, admin)
            _announce(inventory)
            pulses = (
                *fabric.pulses(),
                *service.pulses(),
                replications.pulse,
                control.pulse,
                *([page.pulse] if page else []),
            )
            watchdog = liveness.Watchdog(pulses, systemd.watchdog_seconds())
            watchdog.start()
            stop_signals.wait()
            watchdog.stopping()
            systemd.notify(systemd.STOPPING)
            service.stop()
            replications.close()
        finally:
            if page is not None:
                page.close()
            control.close()
    except CannotStart as error:
        raise CannotServe(str(error)) from error
    finally:
        fabric.close(DRAIN_SECONDS)


def _status_page(service: Service, admin: Administration) -> StatusPage | None:
    """Serve the status page, if the configuration has one.  Raise CannotServe."""
    configured = service.inventory.settings.status
    if configured.listen is None:
        return None
    from target.control import application
    from target.web import status_page

    try:
        page = status_page.StatusPage(
            application.application(service, admin), service.audit, configured, service.inventory.state_dir
        )
        page.start()
    except status_page.CannotShow as error:
        raise CannotServe(str(error)) from error
    return page


def _announce(inventory: Inventory) -> None:
    """Print on standard error how to log in, and then the line `ready` on standard output."""
    configured = inventory.settings
    address, name = inventory.portal_address, configured.target
    lines = [f"wolun {target.VERSION} serves {name} on {address}"]
    volumes = [volume for volume in configured.all_volumes if volume.name in inventory.open_volumes]
    lines += [f"  LUN {volume.lun}: {volume.name}" for volume in volumes if volume.lun is not None]
    if configured.fabric is settings.Fabric.PORTAL:
        lines += [
            "log in with the kernel's initiator (as root):",
            f"  iscsiadm -m discovery -t sendtargets -p {address}",
            f"  iscsiadm -m node -T {name} -p {address} --login",
        ]
        shown = [volume.lun for volume in volumes if volume.lun is not None]
        lines += ["or without the kernel's initiator:", f"  qemu-img info {inventory.url(shown[0])}"] if shown else []
    command = f"{_program()} {_state_option(inventory.state_dir)}"
    names = [volume.name for volume in configured.all_volumes if volume in volumes or volume in configured.shared]
    if names:
        lines += ["take a snapshot from another terminal:", f"  {command}snapshot create {names[0]} NAME"]
    else:
        lines += ["create a volume from another terminal:", f"  {command}volume create NAME SIZE"]
    sys.stderr.write(printable.lines("\n".join(lines)) + "\n")
    sys.stderr.flush()
    sys.stdout.write(f"ready: {name} on {address}\n")
    sys.stdout.flush()
    systemd.notify(systemd.READY)


def _program() -> str:
    """Return the command that runs this program in the current directory."""
    if shutil.which("wolun"):
        return "wolun"
    return os.path.relpath(sys.argv[0])


def _state_option(state_dir: Path) -> str:
    return "" if state_dir == places.default_state_dir() else f"--state-dir {state_dir} "
