# SPDX-License-Identifier: Apache-2.0
"""The configuration's `access` in force: who may log in, how they prove their names, and which LUNs they see.

| the initiator                                               | may log in                                     |
| ----------------------------------------------------------- | ---------------------------------------------- |
| has an address outside `access.networks`, if that is given  | no                                             |
| any, if `access.initiators` is left out                     | if `access.networks` has its address           |
| has its full name in the list                               | as that entry says                             |
| fits a pattern in the list                                  | as the first such entry says                   |
| none of these                                               | no                                             |

If the secrets of an entry cannot be used, the entry refuses its initiators, and no later entry applies to them.  Names
are compared without regard to case (RFC 7143 4.2.7.2).

The event loop asks `Access`, and any thread may change it: the rules in force are one immutable object, which is
replaced as a whole.  Secrets are read when that object is made, never later.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lun_backends.initiator.part import Role
from target.configuration import settings, values
from target.configuration.access import within
from target.iscsi import login
from target.iscsi.chap import Algorithm, ChapAuthenticator, Credentials, Secret, SecretRefused
from target.iscsi.errors import LoginRefused, LoginStatus
from target.scsi import limits, logical_unit, nexus

_ALGORITHMS = {values.ChapAlgorithm.SHA256: Algorithm.SHA_256, values.ChapAlgorithm.MD5: Algorithm.MD5}
_SECRET_FILE_MAXIMUM = 4096
_KNOWN = (
    "its secret is the one by which the target proves itself to {}, which knows it: choose another (RFC 7143 9.2.1)"
)


class SecretFileRefused(Exception):
    """A secret file cannot be used; the text names the file and the reason."""


def read_secret(path: Path) -> Secret:
    """Return the secret in the file at `path`: its one line, without the newline.

    The file must be a regular file of this process's user or of root that no other user may read or write.  Raise
    SecretFileRefused if it is not, or if the secret is too short or too long.
    """
    try:
        # O_NONBLOCK: a FIFO of that name must not hold up the daemon.
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


def credentials(chap: settings.Chap, state_dir: Path) -> Credentials:
    """Return the credentials that the configuration's `chap` names, with the secrets of its files.  Raises SecretFileRefused."""
    mutual = chap.target_secret_file
    try:
        return _credentials(
            chap,
            read_secret(state_dir / chap.secret_file),
            None if mutual is None else read_secret(state_dir / mutual),
        )
    except SecretRefused as refused:
        raise SecretFileRefused(f"{state_dir / chap.secret_file} and {mutual}: {refused}") from None


def credentials_of(chap: settings.Chap, secret: str, target_secret: str | None) -> Credentials:
    """Return the credentials with secrets that are not in their files yet.  Raises SecretFileRefused."""
    if any(end in line for line in (secret, target_secret or "") for end in "\r\n\0"):
        raise SecretFileRefused("a secret is one line")
    try:
        mutual = None if target_secret is None else Secret(target_secret.encode())
        return _credentials(chap, Secret(secret.encode()), mutual)
    except SecretRefused as refused:
        raise SecretFileRefused(str(refused)) from None


def _credentials(chap: settings.Chap, secret: Secret, target_secret: Secret | None) -> Credentials:
    return Credentials(
        name=chap.name,
        secret=secret,
        target_name=chap.target_name,
        target_secret=target_secret,
        algorithms=tuple(_ALGORITHMS[algorithm] for algorithm in chap.algorithms),
    )


def unit_name(unit: logical_unit.LogicalUnit) -> str:
    """Return the name of a unit in the configuration: `vol0`, `vol0@nightly`, `vol0@nightly/write-once`.

    The units of a pool have names that the configuration cannot know.
    """
    if unit.part is not None and unit.part.role in (Role.LOG, Role.POOL):
        return unit.name
    if unit.kind is logical_unit.UnitKind.WRITE_ONCE:
        return unit.name.partition(" ")[0].removesuffix("/write-once") + "/write-once"
    return unit.name


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of `access.initiators`, ready to use; `broken` says why it refuses its initiators."""

    name: str
    networks: Sequence[values.Network] = ()
    credentials: Credentials | None = None
    read_only: bool = False
    luns: Mapping[str, tuple[nexus.Reach, ...]] | None = None
    """By the name of the unit; None: all units under their own LUNs."""
    broken: str = ""
    rate: limits.Rate | None = None
    """The limit of each of the initiators."""

    def admits(self, address: str) -> bool:
        """Return whether the initiators of this rule may log in from an address."""
        return not self.broken and (not self.networks or within(address, self.networks))

    def view(self, number: int, unit: logical_unit.LogicalUnit) -> Iterable[nexus.Reach]:
        """Yield the LUNs under which the initiator reaches a unit of the target (`nexus.View`)."""
        if self.luns is None:
            return (nexus.Reach(number, self.read_only),)
        return self.luns.get(unit_name(unit), ())


ANY_INITIATOR = Rule("*")


@dataclass(frozen=True)
class Rules:
    """The rules of the whole `access`, immutable."""

    wanted: settings.Access
    exact: Mapping[str, Rule] = field(default_factory=dict)
    patterns: Sequence[tuple[re.Pattern[str], Rule]] = ()

    @classmethod
    def read(cls, wanted: settings.Access, state_dir: Path) -> Rules:
        """Return the rules for `wanted`.

        A secret that cannot be read breaks only its own rule.  So does a secret by which the target proves itself.
        """
        exact: dict[str, Rule] = {}
        patterns: list[tuple[re.Pattern[str], Rule]] = []
        for rule in _apart([_rule(initiator, state_dir) for initiator in wanted.initiators or ()]):
            name = rule.name.lower()
            if values.is_pattern(name):
                patterns.append((re.compile(fnmatch.translate(name)), rule))
            else:
                exact[name] = rule
        return cls(wanted, exact, patterns)

    def find(self, initiator: str) -> Rule | None:
        """Return the rule for an initiator of that name."""
        if self.wanted.initiators is None:
            return ANY_INITIATOR
        name = initiator.lower()
        return self.exact.get(name) or next((rule for pattern, rule in self.patterns if pattern.match(name)), None)

    def seen(
        self, initiator: str, units: Mapping[int, logical_unit.LogicalUnit]
    ) -> Mapping[int, logical_unit.LogicalUnit]:
        """Return the units of a target that an initiator of that name sees, under its own numbers."""
        rule = self.find(initiator)
        if rule is None or rule.broken:
            return {}
        return {reach.lun: unit for number, unit in units.items() for reach in rule.view(number, unit)}

    def admitting(self, initiator: str, address: str) -> Rule | None:
        """Return the rule under which an initiator may log in from an address; None if it may not."""
        rule = self.find(initiator) if self.wanted.admits(address) else None
        return rule if rule is not None and rule.admits(address) else None

    def keeps(self, initiator: str, address: str) -> bool:
        """Return whether an initiator that is logged in could still log in.  An empty `address` is unknown."""
        if address:
            return self.admitting(initiator, address) is not None
        rule = self.find(initiator)
        return rule is not None and not rule.broken and bool(self.wanted.networks or self.wanted.initiators)

    def reach(self, address: str) -> bool:
        """Return whether a listed initiator may come from the address."""
        return any(not rule.networks or within(address, rule.networks) for rule in self._all())

    def broken(self) -> list[Rule]:
        """Return the rules that refuse their initiators because their secrets cannot be used."""
        return [rule for rule in self._all() if rule.broken]

    def check_apart(self, name: str, proof: Credentials) -> None:
        """Raise SecretFileRefused if another entry has a new secret of the entry `name` for the other direction."""
        for rule in self._all():
            theirs = rule.credentials
            if theirs is not None and rule.name != name:
                if proof.secret == theirs.target_secret:
                    raise SecretFileRefused(_KNOWN.format(rule.name))
                if proof.target_secret == theirs.secret:
                    raise SecretFileRefused(f"the target cannot prove itself with the secret of {rule.name}")

    def _all(self) -> Iterator[Rule]:
        yield from self.exact.values()
        yield from (rule for _, rule in self.patterns)


def _apart(rules: Sequence[Rule]) -> Iterator[Rule]:
    """Yield the rules.  A rule is broken if another initiator knows its secret, because the target proves itself with it."""
    known = {
        rule.credentials.target_secret.reveal(): rule.name
        for rule in rules
        if rule.credentials is not None and rule.credentials.target_secret is not None
    }
    for rule in rules:
        owner = None if rule.credentials is None else known.get(rule.credentials.secret.reveal())
        yield rule if owner is None else replace(rule, broken=_KNOWN.format(owner))


def _rule(wanted: settings.Initiator, state_dir: Path) -> Rule:
    proof: Credentials | None = None
    broken = ""
    try:
        proof = None if wanted.chap is None else credentials(wanted.chap, state_dir)
    except SecretFileRefused as refused:
        broken = str(refused)
    luns: dict[str, tuple[nexus.Reach, ...]] | None = None
    if wanted.luns is not None:
        luns = {}
        for mapped in wanted.luns:
            reach = nexus.Reach(mapped.lun, wanted.read_only or mapped.read_only)
            luns[mapped.unit] = (*luns.get(mapped.unit, ()), reach)
    limit = wanted.rate
    rate = None if limit is None else limits.Rate(limit.iops, limit.bandwidth, limit.burst)
    return Rule(wanted.name, wanted.networks, proof, wanted.read_only, luns, broken, rate)


class Access:
    """The portal's access policy (`login.AccessPolicy`), whose rules can be replaced while it is in use."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._limiting = threading.Lock()
        self._buckets: dict[str, limits.Bucket] = {}  # by the initiator's name in small letters

    def allows(self, initiator: str, address: str, target: str) -> bool:
        """Return whether the initiator may log in."""
        return self.rules.admitting(initiator, address) is not None

    def reaches(self, address: str) -> bool:
        """Return whether any initiator may log in from the address.  An entry that is broken counts: its refusal says why."""
        rules = self.rules
        if not rules.wanted.admits(address):
            return False
        return rules.wanted.initiators is None or rules.reach(address)

    def admits(self, initiator: str, address: str) -> bool:
        """Return whether the initiator may log in at all, if only for discovery."""
        return self.rules.admitting(initiator, address) is not None

    def authenticator(self, initiator: str, target: str | None) -> login.Authenticator:
        """Return how the initiator proves its name.  Raise LoginRefused if it may not log in at all."""
        rules = self.rules
        rule = rules.find(initiator)
        if rule is None or rule.broken:  # the rules changed after `allows` was asked
            raise LoginRefused(LoginStatus.AUTHORIZATION_FAILURE, f"{initiator} may use nothing here")
        if rule.credentials is None:
            return login.NoAuthentication()
        return ChapAuthenticator(rule.credentials, optional=target is None and not rules.wanted.discovery_chap)

    def limit(self, initiator: str) -> limits.Bucket | None:
        """Return the tokens that all sessions of an initiator share; None if nothing limits it."""
        rule = self.rules.find(initiator)
        name = initiator.lower()
        with self._limiting:
            if rule is None or rule.rate is None:
                self._buckets.pop(name, None)
                return None
            bucket = self._buckets.get(name)
            if bucket is None or bucket.rate != rule.rate:
                bucket = self._buckets[name] = limits.Bucket(rule.rate)
            return bucket

    def limited(self) -> Mapping[str, limits.Bucket]:
        """Return the tokens of each initiator that is limited, and has logged in."""
        with self._limiting:
            return dict(self._buckets)

    def view(self, initiator: str, address: str, target: str) -> nexus.View:
        """Return the view of the LUNs that the initiator reaches."""
        rule = self.rules.admitting(initiator, address)
        return nexus.sees_nothing if rule is None else rule.view
