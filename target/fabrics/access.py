# SPDX-License-Identifier: Apache-2.0
"""Who may log in, how they prove it, and which LUNs they see: the configuration's `access`, ready to be asked.

| the initiator                                            | may log in                                        |
| -------------------------------------------------------- | ------------------------------------------------- |
| comes from outside of `access.networks`, if there are any | no                                               |
| `access.initiators` is left out                          | if `access.networks` has its address              |
| has its full name in the list                            | as that entry says                                |
| fits a pattern in the list                               | as the first such entry says                      |
| none of these                                            | no                                                |

An entry whose secrets cannot be read lets nobody in, and nobody falls through it to a later one.  Names are compared
without regard to case (RFC 7143 4.2.7.2).

`Access` is asked on the event loop and changed on any thread: what is in force is one immutable object, replaced as a
whole.  Secrets are read when it is made, never later.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from target.configuration import settings, values
from target.configuration.access import within
from target.iscsi import login
from target.iscsi.chap import Algorithm, ChapAuthenticator, Credentials, Secret, SecretRefused
from target.iscsi.errors import LoginRefused, LoginStatus
from target.scsi import logical_unit, nexus

_ALGORITHMS = {values.ChapAlgorithm.SHA256: Algorithm.SHA_256, values.ChapAlgorithm.MD5: Algorithm.MD5}
_SECRET_FILE_MAXIMUM = 4096


class SecretFileRefused(Exception):
    """A secret file that cannot be used: which, and why."""


def read_secret(path: Path) -> Secret:
    """The secret in the file at `path`: its one line, without the newline.

    Raises SecretFileRefused unless it is a regular file that belongs to this process's user or root, that nobody else may
    touch, and that holds a secret of the right length.
    """
    try:
        # Not blocking: a FIFO of that name must not hold up the daemon.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SecretFileRefused(f"{path} cannot be read: {error.strerror}") from None
    try:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode):
            raise SecretFileRefused(f"{path} is not a regular file")
        if state.st_uid not in (os.geteuid(), 0):
            raise SecretFileRefused(f"{path} belongs to another user: chown it to the daemon's")
        if state.st_mode & 0o077:
            raise SecretFileRefused(f"{path} is open to others (mode {state.st_mode & 0o777:04o}): chmod 600 {path}")
        content = os.read(fd, _SECRET_FILE_MAXIMUM)
    except OSError as error:
        raise SecretFileRefused(f"{path} cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)
    line = content.removesuffix(b"\n").removesuffix(b"\r")
    if b"\n" in line or b"\0" in line:
        raise SecretFileRefused(f"{path} holds more than one line")
    try:
        return Secret(line)
    except SecretRefused as refused:
        raise SecretFileRefused(f"{path}: {refused}") from None


def credentials(wanted: settings.Chap, state_dir: Path) -> Credentials:
    """What the configuration's `chap` stands for, its secrets read.  Raises SecretFileRefused."""
    mutual = wanted.target_secret_file
    try:
        return _credentials(
            wanted,
            read_secret(state_dir / wanted.secret_file),
            None if mutual is None else read_secret(state_dir / mutual),
        )
    except SecretRefused as refused:
        raise SecretFileRefused(f"{state_dir / wanted.secret_file} and {mutual}: {refused}") from None


def credentials_of(wanted: settings.Chap, secret: str, target_secret: str | None) -> Credentials:
    """The same with secrets that are not in their files yet.  Raises SecretFileRefused."""
    if any(end in each for each in (secret, target_secret or "") for end in "\r\n\0"):
        raise SecretFileRefused("a secret is one line")
    try:
        mutual = None if target_secret is None else Secret(target_secret.encode())
        return _credentials(wanted, Secret(secret.encode()), mutual)
    except SecretRefused as refused:
        raise SecretFileRefused(str(refused)) from None


def _credentials(wanted: settings.Chap, secret: Secret, target_secret: Secret | None) -> Credentials:
    return Credentials(
        name=wanted.name,
        secret=secret,
        target_name=wanted.target_name,
        target_secret=target_secret,
        algorithms=tuple(_ALGORITHMS[each] for each in wanted.algorithms),
    )


def unit_name(unit: logical_unit.LogicalUnit) -> str:
    """What the configuration calls a unit: `vol0`, `vol0@nightly`, `vol0@nightly/write-once`."""
    if unit.kind is logical_unit.UnitKind.WRITE_ONCE:
        return unit.name.partition(" ")[0].removesuffix("/write-once") + "/write-once"
    return unit.name


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of `access.initiators`, ready to use; `broken` says why it lets nobody in."""

    name: str
    networks: Sequence[values.Network] = ()
    credentials: Credentials | None = None
    read_only: bool = False
    luns: Mapping[str, tuple[nexus.Reach, ...]] | None = None  # by the unit's name; None: all as they are
    broken: str = ""

    def admits(self, address: str) -> bool:
        """Whether initiators that this rule is for may log in from there."""
        return not self.broken and (not self.networks or within(address, self.networks))

    def view(self, number: int, unit: logical_unit.LogicalUnit) -> Iterable[nexus.Reach]:
        """Under which LUNs the initiator reaches a unit of the target (`nexus.View`)."""
        if self.luns is None:
            return (nexus.Reach(number, self.read_only),)
        return self.luns.get(unit_name(unit), ())


ANYBODY = Rule("*")


@dataclass(frozen=True)
class Rules:
    """All of `access`, immutable."""

    wanted: settings.Access
    exact: Mapping[str, Rule] = field(default_factory=dict)
    patterns: Sequence[tuple[re.Pattern[str], Rule]] = ()

    @classmethod
    def read(cls, wanted: settings.Access, state_dir: Path) -> Rules:
        """The rules that `wanted` stands for; what cannot be read makes its own rule broken and nothing else."""
        exact: dict[str, Rule] = {}
        patterns: list[tuple[re.Pattern[str], Rule]] = []
        for each in wanted.initiators or ():
            rule = _rule(each, state_dir)
            name = each.name.lower()
            if re.search(r"[*?\[]", name):
                patterns.append((re.compile(fnmatch.translate(name)), rule))
            else:
                exact[name] = rule
        return cls(wanted, exact, patterns)

    def find(self, initiator: str) -> Rule | None:
        """The rule for an initiator of that name."""
        if self.wanted.initiators is None:
            return ANYBODY
        name = initiator.lower()
        return self.exact.get(name) or next((rule for pattern, rule in self.patterns if pattern.match(name)), None)

    def seen(
        self, initiator: str, units: Mapping[int, logical_unit.LogicalUnit]
    ) -> Mapping[int, logical_unit.LogicalUnit]:
        """What an initiator of that name sees of a target's units, under its own numbers."""
        rule = self.find(initiator)
        if rule is None or rule.broken:
            return {}
        return {reach.lun: unit for number, unit in units.items() for reach in rule.view(number, unit)}

    def admitting(self, initiator: str, address: str) -> Rule | None:
        """The rule under which an initiator may log in from there; None if it may not."""
        rule = self.find(initiator) if self.wanted.admits(address) else None
        return rule if rule is not None and rule.admits(address) else None

    def keeps(self, initiator: str, address: str) -> bool:
        """Whether one that is logged in could still do so; its `address` may be empty, which is none."""
        if address:
            return self.admitting(initiator, address) is not None
        rule = self.find(initiator)
        return rule is not None and not rule.broken and bool(self.wanted.networks or self.wanted.initiators)

    def broken(self) -> list[Rule]:
        """The rules that let nobody in because something about them is wrong."""
        return [rule for rule in (*self.exact.values(), *(rule for _, rule in self.patterns)) if rule.broken]


def _rule(wanted: settings.Initiator, state_dir: Path) -> Rule:
    found: Credentials | None = None
    broken = ""
    try:
        found = None if wanted.chap is None else credentials(wanted.chap, state_dir)
    except SecretFileRefused as refused:
        broken = str(refused)
    luns: dict[str, tuple[nexus.Reach, ...]] | None = None
    if wanted.luns is not None:
        luns = {}
        for mapped in wanted.luns:
            reach = nexus.Reach(mapped.lun, wanted.read_only or mapped.read_only)
            luns[mapped.unit] = (*luns.get(mapped.unit, ()), reach)
    return Rule(wanted.name, wanted.networks, found, wanted.read_only, luns, broken)


class Access:
    """The portal's access policy (`login.AccessPolicy`), which can be given other rules while it is in use."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def allows(self, initiator: str, address: str, target: str) -> bool:
        """Whether the initiator may log in."""
        return self.rules.admitting(initiator, address) is not None

    def admits(self, initiator: str, address: str) -> bool:
        """Whether the initiator may log in to anything, if only to ask what there is."""
        return self.rules.admitting(initiator, address) is not None

    def authenticator(self, initiator: str, target: str | None) -> login.Authenticator:
        """How the initiator proves itself.  Raises LoginRefused if it may not log in at all."""
        rules = self.rules
        rule = rules.find(initiator)
        if rule is None or rule.broken:  # the rules changed after `allows` was asked
            raise LoginRefused(LoginStatus.AUTHORIZATION_FAILURE, f"{initiator} may use nothing here")
        if rule.credentials is None:
            return login.NoAuthentication()
        return ChapAuthenticator(rule.credentials, optional=target is None and not rules.wanted.discovery_chap)

    def view(self, initiator: str, address: str, target: str) -> nexus.View:
        """Which LUNs the initiator reaches."""
        rule = self.rules.admitting(initiator, address)
        return nexus.sees_nothing if rule is None else rule.view
