# SPDX-License-Identifier: Apache-2.0
"""The fabric over wolun's own iSCSI portal in user space."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Mapping, Sequence

from lun_backends.files import os_error
from target.configuration import fabric_kind, settings
from target.fabrics import access
from target.fabrics.fabric import CannotListen, CannotStart
from target.iscsi import errors
from target.iscsi.session_info import SessionInfo
from target.portal import portal
from target.scsi import scsi_target


class PortalFabric:
    """Our own iSCSI portal; the address is bound when this is made."""

    def __init__(self, configured: settings.Settings, served: scsi_target.ScsiTarget, policy: access.Access) -> None:
        first, *others = configured.portal.listen
        with _explained(first):
            self._portal = portal.Portal(*fabric_kind.host_and_port(first), {configured.target: served}, policy=policy)
        try:
            for each in others:
                self.listen(each)
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
        for each in self._portal.sessions():
            if each.portal == address:
                self._portal.end_session(each.tsih)

    def users(self, address: str) -> Sequence[str]:
        return [f"{each.initiator} from {each.address}" for each in self._portal.sessions() if each.portal == address]

    def sessions(self) -> Sequence[SessionInfo]:
        return self._portal.sessions()

    def failed_logins(self) -> Mapping[errors.LoginStatus, int]:
        return self._portal.failed_logins.counts

    def end_session(self, tsih: int) -> None:
        self._portal.end_session(tsih)

    def admit(self, rules: access.Rules) -> None:
        """The portal asks the access policy at each login."""

    def start(self) -> None:
        portal.tune_interpreter()
        self._portal.start()

    def close(self, drain: float) -> None:
        self._portal.close(drain)


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    """Explain why nobody can listen there.  Raises CannotListen."""
    try:
        yield
    except OSError as error:
        remedy = "choose another with --portal HOST:PORT, or in the configuration file"
        if error.errno == errno.EADDRINUSE:
            remedy = f"stop what uses it (`ss -tlnp` lists who listens), or {remedy}"
        elif error.errno == errno.EADDRNOTAVAIL:
            remedy = f"`ip address` lists those that this machine has; {remedy}"
        reason = os_error.reason(error)  # without the address once more, which `error.strerror` may have
        raise CannotListen(f"initiators cannot be listened for on {address} ({reason})", remedy) from error
