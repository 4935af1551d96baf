# SPDX-License-Identifier: Apache-2.0
"""The fabric over wolun's own iSCSI portal in user space."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Mapping, Sequence

from lun_backends.files import os_error
from target import liveness
from target.configuration import fabric_kind, settings
from target.fabrics import access
from target.fabrics.fabric import CannotListen, CannotStart
from target.iscsi import errors
from target.iscsi.session_info import SessionInfo
from target.portal import portal
from target.scsi import scsi_target


class PortalFabric:
    """Wolun's own iSCSI portal.  The constructor binds the addresses."""

    def __init__(self, configured: settings.Settings, served: scsi_target.ScsiTarget, policy: access.Access) -> None:
        first, *others = configured.portal.listen
        with _explained(first):
            self._portal = portal.Portal(
                *fabric_kind.host_and_port(first),
                {configured.target: served},
                policy=policy,
                memory=configured.portal.memory,
            )
        try:
            for address in others:
                self.listen(address)
        except CannotStart:
            self._portal.close()
            raise

    def addresses(self) -> Sequence[str]:
        return self._portal.addresses

    def listen(self, address: str) -> None:
        with _explained(address):
            self._portal.listen(*fabric_kind.host_and_port(address))

    def unlisten(self, address: str) -> None:
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

    def end_session(self, tsih: int) -> None:
        self._portal.end_session(tsih)

    def admit(self, rules: access.Rules) -> None:
        """Do nothing: the portal asks the access policy at each login."""

    def start(self) -> None:
        portal.tune_interpreter()
        self._portal.start()

    def pulses(self) -> Sequence[liveness.Pulse]:
        return (self._portal.pulse,)

    def close(self, drain: float) -> None:
        self._portal.close(drain)


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turn an OSError into a CannotListen that says why and what to do."""
    try:
        yield
    except OSError as error:
        remedy = "choose another with --portal HOST:PORT, or in the configuration file"
        if error.errno == errno.EADDRINUSE:
            remedy = f"stop the program that uses it (`ss -tlnp` lists it), or {remedy}"
        elif error.errno == errno.EADDRNOTAVAIL:
            remedy = f"`ip address` lists those that this machine has; {remedy}"
        reason = os_error.reason(error)  # `error.strerror` may name the address a second time
        raise CannotListen(f"cannot listen for initiators on {address} ({reason})", remedy) from error
