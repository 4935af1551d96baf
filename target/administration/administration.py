# SPDX-License-Identifier: Apache-2.0
"""Changes what is served while it is being served, and keeps the configuration file in step when asked to.

`Inventory.settings` always says what is in force.  A change is checked as a whole file would be, applied, and only then
entered there; `dry_run` stops after the checks.  One change at a time; everything may be called from any thread.

It is one module although a long one: every change is made under one lock, and restoring a configuration is made of all the
others.

What somebody uses is not taken away, unless `force` says so:

| object     | is in use by                                                                |
| ---------- | --------------------------------------------------------------------------- |
| volume     | sessions that reach it or its snapshots, initiators it is mapped to, jobs   |
| portal     | sessions that came there, all initiators if it is the last                  |
| mapped LUN | sessions of the initiators that see it                                      |
| initiator  | sessions that could not have logged in without the entry                    |
"""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lun_backends.files import os_error, small_file
from target import codec, messages
from target.administration import portals
from target.configuration import reader, settings, values, writer
from target.fabrics import access
from target.fabrics import fabric as fabrics
from target.scsi import scsi_target
from target.service import problems, volumes
from target.service.service import Service

log = logging.getLogger(__name__)

SECRETS = "secrets"
_WHILE_IN_USE = frozenset({"snapshots", "limit", "warn_at", "on_error", "max_snapshots", "schedule", "keep"})
"""What can change about a volume that stays where it is; for all else it is taken away for a moment."""
_AT_NEXT_START = tuple(key for key in settings.Settings.model_fields if key not in ("access", "volumes"))


class Administration:
    """What can be changed about a daemon.  `config` is the file it was started with, `on_file` what that said - which is
    not what is in force when `--portal` was given.  Every method that changes something raises Problem.
    """

    def __init__(self, service: Service, fabric: fabrics.Fabric, config: Path, on_file: settings.Settings) -> None:
        self._service = service
        self._fabric = fabric
        self._config = config.absolute()
        self._portals = portals.Portals(service, fabric, on_file)
        self._lock = threading.RLock()

    # -- looking -------------------------------------------------------------------------------------------------

    def running(self) -> settings.Settings:
        """What a configuration file that gives the system as it is would say."""
        now = self._service.inventory.settings
        return now.model_copy(
            update={
                self._portals.group: self._portals.on_file,
                "volumes": tuple(self._as_it_is(each) for each in now.volumes),
            }
        )

    def _as_it_is(self, each: settings.Volume) -> settings.Volume:
        """As large as it has grown, and without the snapshots that were deleted: they must not be taken again."""
        opened = self._service.inventory.open_volumes.get(each.name)
        if opened is None:
            return each
        there = {snapshot.name for snapshot in opened.snapshots}
        return each.model_copy(
            update={
                "size": None if each.size is None else opened.device.size,
                "snapshots": tuple(name for name in each.snapshots if name in there),
            }
        )

    def who(self) -> messages.Access:
        """Who may log in."""
        return codec.decode(messages.Access, self._service.inventory.settings.access.model_dump(mode="json"))

    def volumes(self) -> list[messages.Volume]:
        """All volumes, as they are served."""
        return [self._service.status.volume(each) for each in self._service.inventory.settings.volumes]

    def volume(self, name: str) -> messages.Volume:
        """One volume, as it is served.  Raises Problem."""
        return self._service.status.volume(self._volume(name))

    def luns(self) -> list[messages.Lun]:
        """The target's units."""
        return [
            messages.Lun(number, access.unit_name(unit), unit.kind.value, unit.device.size)
            for number, unit in sorted(self._service.inventory.scsi.luns.items())
        ]

    def alerts(self) -> list[messages.Alert]:
        """What needs somebody's attention."""
        return self._service.status.alerts()

    def text_of(self, kind: str, name: str) -> messages.Text:
        """One volume or initiator as it would stand in a configuration file.  Raises Problem."""
        with self._lock:
            found = self._volume(name) if kind == "volume" else self._initiator(name)
            return messages.Text(writer.text_of(found))

    # -- volumes -------------------------------------------------------------------------------------------------

    def create_volume(self, request: messages.CreateVolume, *, dry_run: bool) -> None:
        """Make a volume, or take up again one whose data is there, and serve it."""
        with self._lock:
            fields = {key: value for key, value in codec.encode(request).items() if value is not None}
            if fields.pop("hidden"):
                fields["lun"] = values.NO_LUN
            elif request.lun is None:
                fields["lun"] = self._service.inventory.lowest_free_lun()
            wanted = problems.validated(settings.Volume, fields, f"volume {request.name}")
            now = self._service.inventory.settings
            changed = _checked(now.model_copy(update={"volumes": (*now.volumes, wanted)}))
            if dry_run:
                return
            self._service.inventory.add_volume(wanted)
            self._service.inventory.put_settings(changed)
            log.info("volume %s is served as LUN %s", wanted.name, values.NO_LUN if wanted.lun is None else wanted.lun)

    def change_volume(self, name: str, request: messages.ChangeVolume, *, force: bool, dry_run: bool) -> None:
        """Change a volume; for another LUN or durability it is taken away and comes back."""
        with self._lock:
            before = self._volume(name)
            given = {key: value for key, value in codec.encode(request).items() if value is not None}
            if given.pop("hidden"):
                given["lun"] = values.NO_LUN
            if given.get("limit") == messages.NO_LIMIT:
                given["limit"] = None
            wanted = problems.validated(settings.Volume, {**before.model_dump(), **given}, f"volume {name}")
            now = self._service.inventory.settings
            _checked(now.model_copy(update={"volumes": tuple(wanted if v is before else v for v in now.volumes)}))
            if wanted != before:
                self._redo(before, wanted, force, dry_run)

    def resize_volume(self, name: str, size: int) -> messages.Volume:
        """Make a volume larger while it is used."""
        with self._lock:
            before = self._volume(name)
            self._service.reshaping.resize(name, size)
            if before.size is not None:
                after = before.model_copy(update={"size": size})
                now = self._service.inventory.settings
                changed = tuple(after if each is before else each for each in now.volumes)
                self._service.inventory.put_settings(now.model_copy(update={"volumes": changed}))
            return self.volume(name)

    def delete_volume(self, name: str, *, force: bool, data: bool, dry_run: bool) -> None:
        """Serve a volume no more; with `data` remove what it kept in the state directory, too."""
        with self._lock:
            self._delete_volume(self._volume(name), force=force, data=data, dry_run=dry_run)

    def _delete_volume(self, going: settings.Volume, *, force: bool, data: bool, dry_run: bool) -> None:
        users = list(self._users(going))
        if users and not force:
            raise problems.in_use(f"volume {going.name}", users, "let them go first, or say force=true")
        opened = self._service.inventory.open_volumes.get(going.name)
        jobs = [
            job for job in self._service.jobs.all() if not job.ended and job.subject.partition("@")[0] == going.name
        ]
        if jobs:
            running = [f"job {job.number} ({job.kind} {job.subject})" for job in jobs]
            raise problems.in_use(f"volume {going.name}", running, "wait for it, or cancel it")
        if data and opened is not None and opened.snapshots and not force:
            names = [f"snapshot {snapshot.name}" for snapshot in opened.snapshots]
            raise problems.in_use(f"the data of {going.name}", names, "delete them first, or say force=true")
        now = self._service.inventory.settings
        changed = now.model_copy(
            update={
                "volumes": tuple(each for each in now.volumes if each.name != going.name),
                "access": _without_unit(now.access, going.name) if force else now.access,
            }
        )
        if dry_run:
            return
        self._service.inventory.remove_volume(going)
        if changed.access != now.access:
            self._put_in_force(changed.access)
        self._service.inventory.put_settings(changed)
        if data:
            directory = volumes.volume_directory(going.name, self._service.inventory.state_dir)
            with problems.translated(f"the data of {going.name} is not all gone"):
                shutil.rmtree(directory)
        log.info("volume %s is served no more%s", going.name, "; its data is gone" if data else "")

    def _users(self, going: settings.Volume) -> Iterator[str]:
        """Who would miss a volume."""
        yield from self._service.inventory.users(lambda unit: _volume_of(unit.name) == going.name)
        for each in self._service.inventory.settings.access.initiators or ():
            for mapped in each.luns or ():
                if _volume_of(mapped.unit) == going.name:
                    yield f"the mapping of {mapped.unit} to {each.name} as LUN {mapped.lun}"

    def _volume(self, name: str) -> settings.Volume:
        known = self._service.inventory.settings.volumes
        for each in known:
            if each.name == name:
                return each
        raise problems.no_such_volume(name, [each.name for each in known])

    # -- where initiators connect --------------------------------------------------------------------------------

    def create_portal(self, address: str, *, dry_run: bool) -> None:
        """Let initiators connect at HOST:PORT, too."""
        with self._lock:
            self._portals.create(address, dry_run=dry_run)

    def delete_portal(self, address: str, *, force: bool, dry_run: bool) -> None:
        """Let initiators connect at HOST:PORT no more."""
        with self._lock:
            self._portals.delete(address, force=force, dry_run=dry_run)

    # -- access --------------------------------------------------------------------------------------------------

    def change_access(self, request: messages.ChangeAccess, *, force: bool, dry_run: bool) -> None:
        """Change what `access` says about everybody."""
        with self._lock:
            now = self._service.inventory.settings.access
            fields = now.model_dump(mode="json")
            if request.networks is not None:
                fields["networks"] = request.networks
            if request.discovery_chap is not None:
                fields["discovery_chap"] = request.discovery_chap
            if request.anybody is not None:
                if request.anybody and now.initiators:
                    names = [each.name for each in now.initiators]
                    raise problems.in_use("the list of initiators", names, "delete them first")
                fields["initiators"] = None if request.anybody else (now.initiators and fields["initiators"]) or ()
            self._change_access(problems.validated(settings.Access, fields, "access"), force=force, dry_run=dry_run)

    def put_initiator(
        self, name: str, request: messages.Initiator, *, create: bool, force: bool, dry_run: bool
    ) -> None:
        """Create an entry, or change one that is there."""
        with self._lock:
            wanted = problems.validated(settings.Initiator, codec.encode(request), f"initiator {name}")
            now = self._service.inventory.settings.access
            known = now.initiators or ()
            if create:
                if any(each.name.lower() == name.lower() for each in known):
                    raise problems.invalid(f"initiator {name}", "there is an entry of this name already")
                changed = (*known, wanted)
            else:
                before = self._initiator(name)
                changed = tuple(wanted if each is before else each for each in known)
            self._check_units(wanted)
            self._change_access(now.model_copy(update={"initiators": changed}), force=force, dry_run=dry_run)

    def delete_initiator(self, name: str, *, force: bool, dry_run: bool) -> None:
        """Take an entry away."""
        with self._lock:
            now, going = self._service.inventory.settings.access, self._initiator(name)
            left = tuple(each for each in now.initiators or () if each is not going)
            self._change_access(now.model_copy(update={"initiators": left}), force=force, dry_run=dry_run)
            if not dry_run:
                self._forget_secrets(name)

    def set_auth(self, name: str, request: messages.SetAuth | None, *, dry_run: bool) -> None:
        """Have an initiator prove itself by CHAP from now on, or (None) no more.  Sessions that are logged in stay."""
        with self._lock:
            before = self._initiator(name)
            if request is None:
                self._replace(before, before.model_copy(update={"chap": None}), dry_run=dry_run)
                if not dry_run:
                    self._forget_secrets(name)
                return
            mine, target = self._secret_files(name)
            mutual = request.target_name is not None
            fields: dict[str, Any] = {"name": request.name, "secret_file": str(mine)}
            if mutual:
                fields |= {"target_name": request.target_name, "target_secret_file": str(target)}
            wanted = problems.validated(settings.Chap, fields, f"the CHAP of {name}")
            try:
                access.credentials_of(wanted, request.secret, request.target_secret)
            except access.SecretFileRefused as refused:
                raise problems.invalid(f"the CHAP of {name}", str(refused)) from None
            if dry_run:
                return
            with problems.translated(f"the secrets of {name} cannot be kept"):
                self._keep_secret(mine, request.secret)
                if request.target_secret is not None:
                    self._keep_secret(target, request.target_secret)
            self._replace(before, before.model_copy(update={"chap": wanted}), dry_run=False)

    def _replace(self, before: settings.Initiator, after: settings.Initiator, *, dry_run: bool) -> None:
        now = self._service.inventory.settings.access
        changed = tuple(after if each is before else each for each in now.initiators or ())
        self._change_access(now.model_copy(update={"initiators": changed}), force=True, dry_run=dry_run)

    def _initiator(self, name: str) -> settings.Initiator:
        known = self._service.inventory.settings.access.initiators or ()
        for each in known:
            if each.name.lower() == name.lower():
                return each
        raise problems.no_such_initiator(name, [each.name for each in known])

    def _check_units(self, wanted: settings.Initiator) -> None:
        """A mapping to nothing is a slip; one that becomes nothing later is not (the snapshot was deleted)."""
        there = {access.unit_name(unit) for unit in self._service.inventory.scsi.luns.values()}
        there |= {
            mapped.unit
            for each in self._service.inventory.settings.access.initiators or ()
            for mapped in each.luns or ()
        }
        for mapped in wanted.luns or ():
            if mapped.unit not in there:
                known = ", ".join(sorted(there)) or "none"
                raise problems.Problem("no-such-unit", f"there is no unit {mapped.unit}", f"there are: {known}", 404)

    def _change_access(self, wanted: settings.Access, *, force: bool, dry_run: bool) -> None:
        changed = _checked(self._service.inventory.settings.model_copy(update={"access": wanted}))
        rules = access.Rules.read(wanted, self._service.inventory.state_dir)
        if not force:
            self._refuse_if_missed(rules)
        if dry_run:
            return
        self._put_in_force(wanted, rules)
        self._service.inventory.put_settings(changed)

    def _refuse_if_missed(self, rules: access.Rules) -> None:
        """Raise Problem if a session would be ended, or lose a LUN."""
        sessions = self._service.inventory.fabric.sessions()
        ended = [each for each in sessions if not rules.keeps(each.initiator, each.address)]
        if ended:
            users = [f"{each.initiator} from {each.address}" if each.address else each.initiator for each in ended]
            raise problems.in_use("the right to log in", users, "log them out first, or say force=true")
        luns, users = self._service.inventory.scsi.luns, []
        for initiator in sorted({each.initiator for each in sessions if each.target is not None}):
            left = rules.seen(initiator, luns)
            seen = self._service.inventory.access.rules.seen(initiator, luns)
            users += [f"{initiator} (LUN {lun})" for lun, unit in sorted(seen.items()) if left.get(lun) is not unit]
        if users:
            raise problems.in_use("what would no longer be seen", users, "log them out first, or say force=true")

    def _put_in_force(self, wanted: settings.Access, rules: access.Rules | None = None) -> None:
        rules = rules or access.Rules.read(wanted, self._service.inventory.state_dir)
        try:
            self._fabric.admit(rules)
        except fabrics.CannotStart as error:
            raise problems.refused("who may log in was not all changed", str(error), "say it again") from error
        self._service.inventory.access.rules = rules
        for each in self._service.inventory.fabric.sessions():
            if not rules.keeps(each.initiator, each.address):
                self._fabric.end_session(each.tsih)
        for nexus in self._service.inventory.scsi.nexuses:
            rule = rules.find(nexus.initiator)
            view = scsi_target.sees_nothing if rule is None or rule.broken else rule.view
            self._service.inventory.scsi.change_view(nexus, view)

    # -- secrets -------------------------------------------------------------------------------------------------

    def _secret_files(self, name: str) -> tuple[Path, Path]:
        stem = urllib.parse.quote(name.lower(), safe=":")
        return Path(SECRETS) / stem, Path(SECRETS) / f"{stem}.target"

    def _keep_secret(self, file: Path, secret: str) -> None:
        path = self._service.inventory.state_dir / file
        path.parent.mkdir(mode=0o700, exist_ok=True)
        small_file.replace(path, f"{secret}\n".encode())

    def _forget_secrets(self, name: str) -> None:
        """Remove the files that `set_auth` made; others are the administrator's own."""
        for file in self._secret_files(name):
            with contextlib.suppress(OSError):
                (self._service.inventory.state_dir / file).unlink(missing_ok=True)

    # -- the configuration file ----------------------------------------------------------------------------------

    def save(self, request: messages.ConfigurationFile, *, dry_run: bool) -> messages.Saved:
        """Write what is in force into the configuration file; with `dry_run` only tell how that would change it."""
        path = self._file(request)
        with self._lock:
            try:
                old = writer.read(path)
                new = writer.render(self.running(), old, str(path))
            except reader.ConfigurationError as error:
                raise problems.file_failed(path, f"it was changed and is not valid now: {error}") from error
            except writer.CannotSave as error:
                raise problems.file_failed(path, str(error)) from error
            except OSError as error:
                raise problems.file_failed(path, os_error.reason(error)) from error
            changes = writer.difference(old, new, str(path))
            backup: Path | None = None
            if not dry_run and new != old:
                try:
                    backup = writer.write(path, new)
                except OSError as error:
                    raise problems.file_failed(path, os_error.reason(error)) from error
            return messages.Saved(str(path), changes, str(backup or ""))

    def restore(self, request: messages.ConfigurationFile, *, force: bool, dry_run: bool) -> list[messages.Outcome]:
        """Make the system what the file says, object by object: what cannot be done is told, the rest is done."""
        path = self._file(request)
        try:
            wanted = reader.load(path)
        except reader.ConfigurationError as error:
            raise problems.invalid(str(path), str(error)) from error
        except OSError as error:
            raise problems.refused(f"{path} cannot be read", os_error.reason(error), "name another") from error
        with self._lock:
            return self._become(wanted, force=force, dry_run=dry_run)

    def clear(self, *, force: bool, dry_run: bool) -> list[messages.Outcome]:
        """Serve nothing to nobody.  All data stays where it is."""
        with self._lock:
            nothing = self.running().model_copy(update={"volumes": (), "access": settings.Access()})
            return self._become(nothing, force=force, dry_run=dry_run)

    def _file(self, request: messages.ConfigurationFile) -> Path:
        path = self._config if request.file is None else Path(request.file)
        if not path.is_absolute():
            raise problems.file_failed(path, "the path is not absolute")
        return path

    def _become(self, wanted: settings.Settings, *, force: bool, dry_run: bool) -> list[messages.Outcome]:
        now = self.running()
        outcomes: list[messages.Outcome] = []

        def attempt(subject: str, action: str, work: Callable[[], None]) -> None:
            refusal = None
            try:
                work()
            except problems.Problem as problem:
                refusal = messages.Refusal(problem.code, problem.message, problem.remedy)
            outcomes.append(messages.Outcome(subject, action, refusal))

        listen = {"listen": self._portals.of(now).listen}  # that can change
        for key in _AT_NEXT_START:
            after = getattr(wanted, key)
            if getattr(now, key) != (after.model_copy(update=listen) if key == self._portals.group else after):
                attempt(key, "change", functools.partial(_later, key))
        if wanted.access != now.access:
            attempt("access", "change", lambda: self._change_access(wanted.access, force=force, dry_run=dry_run))
        before_listen, after_listen = self._portals.of(now).listen, self._portals.of(wanted).listen
        for name in after_listen:
            if name not in before_listen:
                attempt(f"portal {name}", "add", functools.partial(self._portals.create, name, dry_run=dry_run))
        for name in before_listen:
            if name not in after_listen:
                attempt(f"portal {name}", "remove", functools.partial(self._portals.forget, name, force, dry_run))
        before = {each.name: each for each in now.volumes}
        after = {each.name: each for each in wanted.volumes}
        for name, each in before.items():
            if name not in after:
                attempt(f"volume {name}", "remove", functools.partial(self._remove, each, force, dry_run))
        for name, each in after.items():
            old = before.get(name)
            if old is None:
                attempt(f"volume {name}", "add", functools.partial(self._add, each, dry_run))
            elif old != each or name in self._service.inventory.failed:
                attempt(f"volume {name}", "change", functools.partial(self._redo, old, each, force, dry_run))
        if not dry_run:
            for rule in self._service.inventory.access.rules.broken():
                refusal = messages.Refusal("initiator-broken", rule.broken, "correct the file, then restore again")
                outcomes.append(messages.Outcome(f"initiator {rule.name}", "admit", refusal))
        return outcomes

    def _remove(self, each: settings.Volume, force: bool, dry_run: bool) -> None:
        self._delete_volume(self._volume(each.name), force=force, data=False, dry_run=dry_run)

    def _add(self, each: settings.Volume, dry_run: bool) -> None:
        now = self._service.inventory.settings
        changed = _checked(now.model_copy(update={"volumes": (*now.volumes, each)}))
        if dry_run:
            return
        try:
            self._service.inventory.add_volume(each)
        except problems.Problem as problem:
            # As at start: it is configured, is not served, and `status` says why.
            self._service.inventory.mark_failed(each.name, problem.message)
            self._service.inventory.put_settings(changed)
            raise
        self._service.inventory.put_settings(changed)

    def _redo(self, old: settings.Volume, new: settings.Volume, force: bool, dry_run: bool) -> None:
        same = old.model_copy(update={key: getattr(new, key) for key in _WHILE_IN_USE}) == new
        if same and old.name not in self._service.inventory.failed:
            opened = self._service.inventory.volume(old.name)
            there = {snapshot.name for snapshot in opened.snapshots}
            if not dry_run:
                opened.keep_by(volumes.rules(new))
                for name in new.snapshots:
                    if name not in there:
                        self._service.snapshots.create_snapshot(new.name, name)
                now = self._service.inventory.settings
                changed = tuple(new if each.name == new.name else each for each in now.volumes)
                self._service.inventory.put_settings(now.model_copy(update={"volumes": changed}))
            return
        self._remove(old, force, dry_run)
        if not dry_run:
            self._add(new, dry_run)


def _later(key: str) -> None:
    raise problems.at_next_start(f"`{key}`")


def _volume_of(unit: str) -> str:
    return unit.partition("@")[0]


def _without_unit(before: settings.Access, name: str) -> settings.Access:
    """The same without what is mapped of volume `name`."""
    initiators = before.initiators and tuple(
        each.model_copy(update={"luns": tuple(mapped for mapped in each.luns if _volume_of(mapped.unit) != name)})
        if each.luns
        else each
        for each in before.initiators
    )
    return before.model_copy(update={"initiators": initiators})


def _checked(wanted: settings.Settings) -> settings.Settings:
    """The same, if a file that says so would be taken.  Raises Problem."""
    for where, what in wanted.problems().items():
        match where:
            case ("volumes", int(index), *rest):
                subject = f"volume {wanted.volumes[index].name}"
            case ("access", "initiators", int(index), *rest):
                subject = f"initiator {(wanted.access.initiators or ())[index].name}"
            case _:
                raise problems.invalid(reader.spell(where), what)
        spelled = reader.spell(tuple(rest))
        raise problems.invalid(f"{subject}, {spelled}" if spelled else subject, what)
    return wanted
