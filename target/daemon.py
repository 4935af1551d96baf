# SPDX-License-Identifier: Apache-2.0
"""`wolun serve`: one process that owns a state directory, from the lock to the last sync.

Order of start: lock the directory, open the volumes, listen for initiators, open the control socket, print `ready`.
Order of stop (SIGTERM, SIGINT): no new requests, cancel jobs, log initiators out, sync and close the volumes, unlock.
The signals are blocked in every thread and waited for by the main one, which does nothing else.

    <state directory>/lock            locked by the daemon that owns the directory
    <state directory>/control.sock    the control socket
    <state directory>/luns.json       which LUNs the snapshots have
    <state directory>/volumes/        see volumes.py
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import target
from target import places
from target.configuration import reader, settings
from target.fabrics import fabric as fabrics
from target.service import lun_numbers, service

log = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0
STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})


class CannotServe(Exception):
    """The daemon cannot start; says why and what to do."""


def serve(config: Path | None, state_dir: Path, listen: str | None) -> None:
    """Run until SIGTERM or SIGINT.  Raises CannotServe, ConfigurationError."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    os.umask(0o077)  # whatever a volume holds is nobody else's business
    config = config or places.default_configuration()
    on_file = _configuration(config)
    configured = _listening(on_file, listen)
    with _owned(state_dir):
        try:
            served = service.Service(configured, state_dir)
        except (lun_numbers.Damaged, OSError) as error:
            raise CannotServe(f"the state in {state_dir} cannot be used: {error}") from error
        try:
            if (configured.volumes or configured.write_once or configured.shared) and not (
                served.open_volumes or served.scsi.luns
            ):
                raise CannotServe("no volume can be served; see above for each one's reason and remedy")
            _run(served, config, on_file)
        finally:
            served.stop()
            served.close()
    log.info("stopped")


def _configuration(path: Path) -> settings.Settings:
    try:
        return reader.load(path)
    except OSError as error:
        raise CannotServe(
            f"{path} cannot be read ({error.strerror}): name a configuration file with --config"
        ) from error


def _listening(configured: settings.Settings, listen: str | None) -> settings.Settings:
    """The same, listening where `--portal` says."""
    if listen is None:
        return configured
    try:
        return configured.model_copy(update={"portal": settings.Portal(listen=(listen,))})
    except ValueError as error:
        raise CannotServe(f"--portal {listen}: write HOST:PORT, like 127.0.0.1:3260 or [::1]:3260") from error


@contextlib.contextmanager
def _owned(state_dir: Path) -> Iterator[None]:
    """Make the state directory if need be, and be its only daemon."""
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(state_dir / places.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotServe(
            f"the state directory {state_dir} cannot be used ({error.strerror}): "
            "make it writable, or name another with --state-dir"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
            raise CannotServe(
                f"a daemon (process {owner}) serves {state_dir} already: stop it first, or name another --state-dir"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def _run(served: service.Service, config: Path, on_file: settings.Settings) -> None:
    configured, state_dir = served.settings, served.state_dir
    try:
        fabric = fabrics.make(configured, served.scsi, served.access)
    except fabrics.CannotStart as error:
        raise CannotServe(str(error)) from error
    try:
        fabric.start()
        served.fabric_started(fabric.addresses, fabric.sessions, fabric.failed_logins)
        # Slow to import, and initiators that lost a killed daemon are waiting: they come first.
        from target.administration import administration
        from target.control import control_socket

        admin = administration.Administration(served, fabric, config, on_file)
        control = control_socket.ControlSocket(served, admin, state_dir)
        try:
            control.start()
        except OSError as error:
            raise CannotServe(f"the control socket in {state_dir} cannot be opened: {error.strerror}") from error
        try:
            _announce(served, configured)
            number = signal.sigwait(STOP_SIGNALS)
            _tell_systemd("STOPPING=1")
            log.info("%s: stopping", signal.Signals(number).name)
            served.stop()
        finally:
            control.close()
    except fabrics.CannotStart as error:
        raise CannotServe(str(error)) from error
    finally:
        fabric.close(DRAIN_SECONDS)


def _announce(served: service.Service, configured: settings.Settings) -> None:
    """Say on standard error how to log in, and on standard output, in one line, that one can."""
    address, name = served.portal_address, configured.target
    lines = [f"wolun {target.VERSION} serves {name} on {address}"]
    there = [each for each in configured.volumes if each.name in served.open_volumes]
    lines += [f"  LUN {each.lun}: {each.name}" for each in there if each.lun is not None]
    if configured.fabric is settings.Fabric.PORTAL:
        lines += [
            "log in with the kernel's initiator (as root):",
            f"  iscsiadm -m discovery -t sendtargets -p {address}",
            f"  iscsiadm -m node -T {name} -p {address} --login",
        ]
        shown = [each.lun for each in there if each.lun is not None]
        lines += ["or without one:", f"  qemu-img info {served.url(shown[0])}"] if shown else []
    command = f"{_program()} {_state_option(served.state_dir)}"
    if there:
        lines += ["take a snapshot, from another terminal:", f"  {command}snapshot create {there[0].name} NAME"]
    else:
        lines += ["make a volume, from another terminal:", f"  {command}shell '/volumes create NAME SIZE'"]
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()
    sys.stdout.write(f"ready: {name} on {address}\n")
    sys.stdout.flush()
    _tell_systemd("READY=1")


def _tell_systemd(state: str) -> None:
    """Tell systemd, if it started us as `Type=notify` (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)


def _program() -> str:
    """How this program is called from a shell in the current directory."""
    if shutil.which("wolun"):
        return "wolun"
    return os.path.relpath(sys.argv[0])


def _state_option(state_dir: Path) -> str:
    return "" if state_dir == places.default_state_dir() else f"--state-dir {state_dir} "
