# SPDX-License-Identifier: Apache-2.0
"""The fabric over the kernel's target; the commands come through TCMU.

The functions import target.tcmu themselves, because the packages below it are slow to import and the portal needs none
of them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from target import liveness
from target.configuration import settings
from target.fabrics import access, packages
from target.fabrics.fabric import RETRY_SECONDS, CannotListen, CannotStart, cannot_listen
from target.iscsi import chap, errors
from target.iscsi.load import Load
from target.iscsi.session_info import SessionInfo
from target.portal import portal
from target.scsi import scsi_target

if TYPE_CHECKING:
    from target.tcmu import configfs

log = logging.getLogger(__name__)


class KernelFabric:
    """The kernel's target.  The constructor raises CannotStart if the packages of the extra `lio` are not installed."""

    def __init__(self, configured: settings.Settings, served: scsi_target.ScsiTarget, policy: access.Access) -> None:
        if lacking := packages.missing():
            reason = f"`fabric: lio` needs Python packages that are not installed ({', '.join(lacking)})"
            raise CannotStart(reason, packages.REMEDY)
        from target.tcmu import configfs, fabric

        self._listen = configured.lio.listen
        self._target = configured.target
        self._errors = fabric.ERRORS
        self._closing = threading.Event()
        self._retrying: threading.Thread | None = None
        self._fabric = fabric.LioFabric(
            served,
            configfs.Configuration(
                configured.target,
                portals=tuple(_address(listen) for listen in self._listen),
                initiators=_initiators(policy.rules),
                anyone=_anyone(policy.rules),
                loopback=configured.lio.loopback,
            ),
        )

    def addresses(self) -> Sequence[str]:
        return self._listen

    def unbound(self) -> Mapping[str, str]:
        reasons = self._fabric.unbound()
        places = {listen: _address(listen) for listen in self._listen}
        return {listen: cannot_listen(listen, reasons[place]) for listen, place in places.items() if place in reasons}

    def load(self) -> Load | None:
        return None

    def listen(self, address: str) -> None:
        try:
            self._fabric.listen(*_address(address))
        except self._errors as error:
            raise CannotListen(str(error)) from error
        self._listen = (*self._listen, address)

    def unlisten(self, address: str) -> None:
        try:
            self._fabric.unlisten(*_address(address))
        except self._errors as error:
            raise CannotStart(str(error)) from error
        self._listen = tuple(other for other in self._listen if other != address)

    def users(self, address: str) -> Sequence[str]:
        """Return the initiators whose TCP connections go to that address.

        The kernel's target does not report which of its portals an initiator came by.
        """
        from target.tcmu import connections

        named: dict[str, list[str]] = {}
        for initiator, peer in self._fabric.sessions():
            named.setdefault(peer, []).append(initiator)
        peers = dict.fromkeys(connection.peer for connection in connections.established(*_address(address)))
        return [f"{name} from {peer}" for peer in peers for name in named.get(peer, ["an unknown initiator"])]

    def admit(self, rules: access.Rules) -> None:
        try:
            self._fabric.admit(_initiators(rules), anyone=_anyone(rules))
        except self._errors as error:
            raise CannotStart(str(error)) from error

    def sessions(self) -> Sequence[SessionInfo]:
        return [
            SessionInfo(
                tsih=0,
                initiator=initiator,
                alias="",
                address=address,
                target=self._target,
                since=None,
                bytes_read=None,
                bytes_written=None,
                commands=None,
                outstanding=None,
            )
            for initiator, address in self._fabric.sessions()
        ]

    def failed_logins(self) -> Mapping[errors.LoginStatus, int]:
        return {}  # the kernel has counters of its own

    def name_clashes(self) -> Mapping[str, tuple[str, str]]:
        return {}  # the kernel does not say which session a login ended

    def end_session(self, tsih: int) -> None:
        """Do nothing: the kernel ends the sessions of initiators that may no longer log in."""

    def start(self) -> None:
        try:
            self._fabric.start()
        except self._errors as error:
            self._fabric.close()
            raise CannotStart(f"{error}: `wolun doctor` says what this machine lacks") from error
        for reason in self.unbound().values():
            log.error("%s; wolun goes on without it, and tries again", reason)
        if self.unbound():
            self._retrying = threading.Thread(target=self._retry, name="lio-retry", daemon=True)
            self._retrying.start()
        portal.tune_interpreter()

    def _retry(self) -> None:
        """Try again to bind the addresses that could not be bound, until all are."""
        while self.unbound() and not self._closing.wait(RETRY_SECONDS):
            for address, port in self._fabric.bind_again():
                log.info("initiators can connect to %s:%d now", address, port)

    def pulses(self) -> Sequence[liveness.Pulse]:
        return self._fabric.pulses()

    def close(self, drain: float) -> None:
        self._closing.set()
        if self._retrying is not None:
            self._retrying.join()
        self._fabric.close()


def _initiators(rules: access.Rules) -> tuple[configfs.Initiator, ...]:
    """Return the initiators with full names, in the form of the kernel's target.

    An initiator whose secrets cannot be read is left out.
    """
    from target.tcmu import configfs

    for rule in rules.broken():
        log.error("%s may not log in: %s", rule.name, rule.broken)
    return tuple(
        configfs.Initiator(
            rule.name,
            user=proof.name if proof else "",
            secret=_clear(proof.secret) if proof else "",
            target_user=(proof.target_name or "") if proof else "",
            target_secret=_clear(proof.target_secret) if proof and proof.target_secret else "",
            view=rule.view,
        )
        for rule in rules.exact.values()
        if not rule.broken
        for proof in (rule.credentials,)
    )


def _anyone(rules: access.Rules) -> bool:
    return rules.wanted.initiators is None and bool(rules.wanted.networks)


def _address(listen: str) -> tuple[str, int]:
    """Split an address for the kernel's target, which requires brackets around IPv6."""
    host, _, port = listen.rpartition(":")
    return host, int(port)


def _clear(secret: chap.Secret) -> str:
    return secret.reveal().decode("utf-8", "surrogateescape")
