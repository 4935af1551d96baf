# SPDX-License-Identifier: Apache-2.0
"""The fabrics as the daemon runs them: one interface over the portal in user space and the kernel's target.

| `fabric:`  | who listens                       | what it needs                                                  |
| ---------- | --------------------------------- | -------------------------------------------------------------- |
| `portal`   | this process                      | nothing                                                        |
| `lio`      | the kernel; SCSI comes by TCMU    | root, and the modules target_core_user, iscsi_target_mod, tcm_loop |
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from lun_backends.files import os_error
from target.configuration import fabric_kind, settings
from target.fabrics import access
from target.iscsi import chap, errors
from target.iscsi.session_info import SessionInfo
from target.portal import portal
from target.scsi import scsi_target

if TYPE_CHECKING:
    from target.tcmu import configfs

log = logging.getLogger(__name__)


class CannotStart(Exception):
    """The fabric cannot be started; says why and what to do."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(f"{reason}: {remedy}" if remedy else reason)
        self.reason = reason
        self.remedy = remedy


class CannotListen(CannotStart):
    """Initiators cannot be let in at an address; says why and what to do."""


class Fabric(Protocol):
    """Lets initiators reach the LUNs of a SCSI target."""

    def addresses(self) -> Sequence[str]:
        """Where initiators connect, HOST:PORT each."""

    def listen(self, address: str) -> None:
        """Let initiators connect there, too.  Raises CannotListen."""

    def unlisten(self, address: str) -> None:
        """Let them connect there no more, and end the sessions of those who did.  Raises CannotStart."""

    def users(self, address: str) -> Sequence[str]:
        """Who came by way of an address and is logged in, for people."""

    def sessions(self) -> Sequence[SessionInfo]:
        """Who is logged in."""

    def failed_logins(self) -> Mapping[errors.LoginStatus, int]:
        """How many logins were refused since the start, by status."""

    def end_session(self, tsih: int) -> None:
        """Drop a session."""

    def admit(self, rules: access.Rules) -> None:
        """Other initiators may log in from now on, or see other LUNs.  Raises CannotStart."""

    def start(self) -> None:
        """Let initiators in.  Raises CannotStart."""

    def close(self, drain: float) -> None:
        """Let nobody in any more, and end what is under way, within about `drain` seconds."""


def make(configured: settings.Settings, served: scsi_target.ScsiTarget, policy: access.Access) -> Fabric:
    """The fabric that the configuration asks for.  Raises CannotStart."""
    if configured.fabric is settings.Fabric.LIO:
        return KernelFabric(configured, served, policy)
    return PortalFabric(configured, served, policy)


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


class KernelFabric:
    """The kernel's target."""

    def __init__(self, configured: settings.Settings, served: scsi_target.ScsiTarget, policy: access.Access) -> None:
        from target.tcmu import configfs, fabric  # what they need is slow to import, and the portal does without

        self._listen = configured.lio.listen
        self._target = configured.target
        self._errors = fabric.ERRORS
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
        self._listen = tuple(each for each in self._listen if each != address)

    def users(self, address: str) -> Sequence[str]:
        """By their TCP connections: the kernel's target does not tell by which of its portals somebody came."""
        from target.tcmu import connections

        named: dict[str, list[str]] = {}
        for initiator, peer in self._fabric.sessions():
            named.setdefault(peer, []).append(initiator)
        peers = dict.fromkeys(each.peer for each in connections.established(*_address(address)))
        return [f"{name} from {peer}" for peer in peers for name in named.get(peer, ["somebody"])]

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
        return {}  # the kernel counts its own

    def end_session(self, tsih: int) -> None:
        """The kernel ends the sessions of those who may not log in any more."""

    def start(self) -> None:
        try:
            self._fabric.start()
        except self._errors as error:
            self._fabric.close()
            raise CannotStart(f"{error}: `wolun doctor` says what this machine lacks") from error
        portal.tune_interpreter()

    def close(self, drain: float) -> None:
        self._fabric.close()


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


def _initiators(rules: access.Rules) -> tuple[configfs.Initiator, ...]:
    """Those that are named, as the kernel's target wants them; one whose secrets cannot be read is left out."""
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
    """An address as the kernel's target wants it: IPv6 in its brackets."""
    host, _, port = listen.rpartition(":")
    return host, int(port)


def _clear(secret: chap.Secret) -> str:
    return secret.reveal().decode("utf-8", "surrogateescape")
