# SPDX-License-Identifier: Apache-2.0
"""The fabric over wolun's own iSCSI portal in user space."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

from lun_backends.files import os_error
from target import liveness
from target.configuration import fabric_kind, settings
from target.fabrics import access
from target.fabrics.fabric import RETRY_SECONDS, CannotListen, cannot_listen
from target.iscsi import errors
from target.iscsi.load import Load
from target.iscsi.session_info import SessionInfo
from target.portal import listeners, portal
from target.scsi import scsi_target

log = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True)
class _Place:
    """An address to listen on: as it is configured, as it is bound, and why it is not."""

    configured: str
    bound: str | None = None
    reason: str = ""

    @property
    def address(self) -> str:
        return self.bound or self.configured


class PortalFabric:
    """Wolun's own iSCSI portal.

    The constructor binds the addresses.  It raises CannotListen if it can bind none of them.  The others are tried again
    by a thread, until all are bound.
    """

    def __init__(self, configured: settings.Settings, served: scsi_target.ScsiTarget, policy: access.Access) -> None:
        self._changing = threading.Lock()  # held while addresses change
        self._closing = threading.Event()
        self._retrying: threading.Thread | None = None
        self._places = [_Place(address) for address in configured.portal.listen]
        self._portal = self._first(configured, served, policy)
        for place in self._places:
            if place.bound is None and not place.reason:
                self._bind(place)
        for place in self._places:
            if place.bound is None:
                log.error("%s; wolun goes on without it, and tries again", place.reason)

    def _first(
        self, configured: settings.Settings, served: scsi_target.ScsiTarget, policy: access.Access
    ) -> portal.Portal:
        """Return a portal on the first address that can be bound.  Raises CannotListen if there is none."""
        refused: CannotListen | None = None
        for place in self._places:
            try:
                with _explained(place.configured):
                    made = portal.Portal(
                        *fabric_kind.host_and_port(place.configured),
                        {configured.target: served},
                        policy=policy,
                        sessions=configured.portal.sessions,
                        memory=configured.portal.memory,
                        announce=configured.portal.announce,
                    )
            except CannotListen as error:
                place.reason = error.reason
                refused = refused or error
            else:
                place.bound = made.addresses[0]
                return made
        assert refused is not None  # a configuration has at least one address
        raise refused

    def _bind(self, place: _Place) -> bool:
        """Listen on an address, and return whether that worked."""
        try:
            with _explained(place.configured):
                place.bound = listeners.spell(*self._portal.listen(*fabric_kind.host_and_port(place.configured)))
        except CannotListen as error:
            place.reason = error.reason
            return False
        place.reason = ""
        return True

    def _retry(self) -> None:
        """Try again to bind the addresses that could not be bound, until all are."""
        while self.unbound() and not self._closing.wait(RETRY_SECONDS):
            with self._changing:
                for place in self._places:
                    if place.bound is None and not self._closing.is_set() and self._bind(place):
                        log.info("initiators can connect to %s now", place.bound)

    def addresses(self) -> Sequence[str]:
        return [place.address for place in self._places]

    def unbound(self) -> Mapping[str, str]:
        return {place.configured: place.reason for place in list(self._places) if place.bound is None}

    def listen(self, address: str) -> None:
        with self._changing, _explained(address):
            bound = listeners.spell(*self._portal.listen(*fabric_kind.host_and_port(address)))
            self._places = [*self._places, _Place(address, bound)]

    def unlisten(self, address: str) -> None:
        with self._changing:
            self._places = [place for place in self._places if place.address != address]
        self._portal.unlisten(address)
        for session in self._portal.sessions():
            if session.portal == address:
                self._portal.end_session(session.tsih)

    def users(self, address: str) -> Sequence[str]:
        return [
            f"{session.initiator} from {session.address}"
            for session in self._portal.sessions()
            if session.portal == address
        ]

    def sessions(self) -> Sequence[SessionInfo]:
        return self._portal.sessions()

    def failed_logins(self) -> Mapping[errors.LoginStatus, int]:
        return self._portal.failed_logins.counts

    def load(self) -> Load | None:
        return self._portal.load()

    def name_clashes(self) -> Mapping[str, tuple[str, str]]:
        return self._portal.name_clashes.current(time.monotonic())

    def end_session(self, tsih: int) -> None:
        self._portal.end_session(tsih)

    def admit(self, rules: access.Rules) -> None:
        """Do nothing: the portal asks the access policy at each login."""

    def start(self) -> None:
        portal.tune_interpreter()
        self._portal.start()
        if self.unbound():
            self._retrying = threading.Thread(target=self._retry, name="portal-retry", daemon=True)
            self._retrying.start()

    def pulses(self) -> Sequence[liveness.Pulse]:
        return (self._portal.pulse,)

    def close(self, drain: float) -> None:
        self._closing.set()
        if self._retrying is not None:
            self._retrying.join()
        self._portal.close(drain)


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turn an OSError into a CannotListen that says why and what to do."""
    try:
        yield
    except OSError as error:
        remedy = "choose another with --portal HOST:PORT, or in the configuration file"
        if isinstance(error, socket.gaierror):
            remedy = f"write an address of this machine instead of a name; `ip address` lists them; {remedy}"
        if error.errno == errno.EADDRINUSE:
            remedy = f"stop the program that uses it (`ss -tlnp` lists it), or {remedy}"
        elif error.errno == errno.EADDRNOTAVAIL:
            remedy = f"`ip address` lists those that this machine has; {remedy}"
        reason = os_error.reason(error)  # `error.strerror` may name the address a second time
        what = cannot_listen(address, reason)
        raise CannotListen(what, os_error.remedy(error, remedy)) from error
