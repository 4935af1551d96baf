# SPDX-License-Identifier: Apache-2.0
"""The configuration as a whole: saved to a file, restored from one, cleared.

Restoring goes object by object.  A change that cannot be made is an Outcome with its refusal; the others are made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from lun_backends.files import os_error
from target import messages
from target.administration.access import AccessChanges
from target.administration.in_force import InForce
from target.administration.portals import Portals
from target.administration.volumes import VolumeChanges
from target.configuration import reader, settings, writer
from target.service import own_files, problems
from target.service.inventory import Inventory

P = ParamSpec("P")

_AT_NEXT_START = tuple(key for key in settings.Settings.model_fields if key not in ("access", "volumes"))
"""The keys that cannot change while the daemon runs, except for the addresses to listen on."""


class _Attempts:
    """The changes of one restore, each with its refusal if it was refused."""

    def __init__(self) -> None:
        self.outcomes: list[messages.Outcome] = []

    def make(self, subject: str, action: str, work: Callable[P, None], *args: P.args, **options: P.kwargs) -> None:
        """Call `work` and record the outcome."""
        try:
            work(*args, **options)
        except problems.Problem as problem:
            self.refuse(subject, action, problem)
        else:
            self.outcomes.append(messages.Outcome(subject, action, None))

    def refuse(self, subject: str, action: str, problem: problems.Problem) -> None:
        """Record a refusal."""
        refusal = messages.Refusal(problem.code, problem.message, problem.remedy)
        self.outcomes.append(messages.Outcome(subject, action, refusal))


class ConfigurationFile:
    """The file that the daemon was started with.  One caller at a time (see administration)."""

    def __init__(
        self,
        path: Path,
        inventory: Inventory,
        in_force: InForce,
        portals: Portals,
        access_changes: AccessChanges,
        volume_changes: VolumeChanges,
    ) -> None:
        self._path = path.absolute()
        self._inventory = inventory
        self._in_force = in_force
        self._portals = portals
        self._access = access_changes
        self._volumes = volume_changes

    def save(self, request: messages.ConfigurationFile, *, dry_run: bool) -> messages.Saved:
        """Write the settings in force to a file, or with `dry_run` only return the difference.  Raise Problem."""
        path = self._file(request)
        whose = own_files.claim(self._inventory, path)
        if whose and path.parent.resolve() != self._inventory.state_dir.resolve():
            raise problems.own_file(path, whose)
        if path.exists() and not path.is_file():
            raise problems.file_failed(path, "it is no regular file", "give the path of a file")
        try:
            old = writer.read(path)
            new = writer.render(self._in_force.running(), old, str(path))
        except reader.ConfigurationError as error:
            raise problems.file_failed(path, f"it was changed and is not valid now: {error}") from error
        except writer.CannotSave as error:
            raise problems.file_failed(path, str(error)) from error
        except OSError as error:
            raise problems.write_failed(path, error) from error
        changes = writer.difference(old, new, str(path))
        backup: Path | None = None
        if not dry_run and new != old:
            try:
                backup = writer.write(path, new)
            except OSError as error:
                raise problems.write_failed(path, error) from error
        return messages.Saved(str(path), changes, str(backup or ""))

    def read(self, request: messages.ConfigurationFile) -> settings.Settings:
        """Return the settings in a file.  Raise Problem."""
        path = self._file(request)
        try:
            return reader.load(path)
        except reader.ConfigurationError as error:
            raise problems.invalid(str(path), str(error)) from error
        except OSError as error:
            raise problems.refused(f"{path} cannot be read", os_error.reason(error), "name another file") from error

    def nothing(self) -> settings.Settings:
        """Return the settings in force without volumes, and without initiators that may log in."""
        return self._in_force.running().model_copy(update={"volumes": (), "groups": (), "access": settings.Access()})

    def become(
        self, wanted: settings.Settings, *, force: bool, dry_run: bool, knowingly: bool = False
    ) -> list[messages.Outcome]:
        """Change the system, object by object, until it agrees with `wanted`.  Return the attempted changes.

        Volumes that are left behind `knowingly` are no alert.
        """
        now = self._in_force.running()
        attempts = _Attempts()
        self._refuse_next_start(attempts, now, wanted)
        if wanted.access != now.access:
            attempts.make("access", "change", self._access.become, wanted.access, force=force, dry_run=dry_run)
        self._become_portals(attempts, now, wanted, force=force, dry_run=dry_run)
        if not dry_run:  # a volume leaves its group before it is removed
            known = {volume.name for volume in self._in_force.settings.volumes}
            self._in_force.put_groups(
                tuple(group for group in wanted.groups if known.issuperset(group.volumes)), dry_run=False
            )
        self._become_volumes(attempts, now, wanted, force=force, dry_run=dry_run, knowingly=knowingly)
        if wanted.groups != now.groups:
            attempts.make("groups", "change", self._in_force.put_groups, wanted.groups, dry_run=dry_run)
        if not dry_run:
            for rule in self._inventory.access.rules.broken():
                broken = problems.initiator_broken(rule.broken)
                attempts.refuse(f"initiator {rule.name}", "admit", broken)
        return attempts.outcomes

    def _refuse_next_start(self, attempts: _Attempts, now: settings.Settings, wanted: settings.Settings) -> None:
        """Refuse every change of a key that cannot change while the daemon runs."""
        listen = {"listen": self._in_force.listening(now).listen}  # the part of its group that can change
        for key in _AT_NEXT_START:
            after = getattr(wanted, key)
            if getattr(now, key) != (after.model_copy(update=listen) if key == self._in_force.group else after):
                attempts.refuse(key, "change", problems.at_next_start(f"`{key}`"))

    def _become_portals(
        self, attempts: _Attempts, now: settings.Settings, wanted: settings.Settings, *, force: bool, dry_run: bool
    ) -> None:
        """Add portals before others are removed, because the only portal cannot be removed."""
        before, after = self._in_force.listening(now).listen, self._in_force.listening(wanted).listen
        for address in after:
            if address not in before:
                attempts.make(f"portal {address}", "add", self._portals.create, address, dry_run=dry_run)
        for address in before:
            if address not in after:
                attempts.make(
                    f"portal {address}", "remove", self._portals.forget, address, force=force, dry_run=dry_run
                )

    def _become_volumes(
        self,
        attempts: _Attempts,
        now: settings.Settings,
        wanted: settings.Settings,
        *,
        force: bool,
        dry_run: bool,
        knowingly: bool,
    ) -> None:
        """Remove volumes before others are added, because these may have the same LUNs."""
        before = {volume.name: volume for volume in now.volumes}
        after = {volume.name: volume for volume in wanted.volumes}
        for name in before:
            if name not in after:
                remove = functools.partial(self._volumes.remove, knowingly=knowingly)
                attempts.make(f"volume {name}", "remove", remove, name, force=force, dry_run=dry_run)
        for name, volume in after.items():
            old = before.get(name)
            if old is None:
                attempts.make(f"volume {name}", "add", self._volumes.add, volume, force=force, dry_run=dry_run)
            elif old != volume or name in self._inventory.failed:
                attempts.make(
                    f"volume {name}", "change", self._volumes.become, old, volume, force=force, dry_run=dry_run
                )

    def _file(self, request: messages.ConfigurationFile) -> Path:
        path = self._path if request.file is None else Path(request.file)
        if not path.is_absolute():
            raise problems.file_failed(path, "the path is not absolute")
        return path
