# SPDX-License-Identifier: Apache-2.0
"""/, /jobs and /alerts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from target import messages, show, units
from target.shell import console
from target.shell.iscsi import Iscsi
from target.shell.node import Leaf, Node, files, flag, number
from target.shell.volumes import Volumes


class Root(Node):
    """/."""

    def __init__(self, shell: console.Shell) -> None:
        super().__init__("/", None, shell)

    def list_children(self) -> None:
        Volumes(self)
        Iscsi(self)
        Jobs(self)
        Alerts(self)

    def summary(self) -> tuple[str, bool | None]:
        """For ls."""
        status = self.status()
        return f"wolun {status.version}, {units.human_size(status.space_free_bytes)} free", None

    def ui_command_status(self) -> None:
        """Shows the daemon at a glance: volumes, sessions, throughput, space, trouble."""
        console.say(show.status(self.status()))

    def ui_command_saveconfig(self, file: str | None = None, dry_run: str = "false") -> None:
        """Writes what is in force into the configuration file; comments in it are kept, and so is the old file.

        file     another file to write
        dry_run  true: only show what would change
        """
        only = flag(dry_run, "dry_run") or self.asked.dry_run
        answer = self.asked.save_configuration(_path(file), dry_run=only)
        if only:
            console.say(answer.changes or f"{answer.file} says what is in force")
        elif not answer.changes:
            console.say(f"{answer.file} says what is in force already")
        else:
            console.say(f"saved to {answer.file}" + (f"; the old one is {answer.backup}" if answer.backup else ""))

    def ui_command_restoreconfig(self, file: str | None = None, force: str = "false", dry_run: str = "false") -> None:
        """Makes the system what the configuration file says.  What cannot be done is told; everything else is done.

        file     another file to restore from
        force    true: take away even what is in use
        dry_run  true: only tell what would be done
        """
        only = flag(dry_run, "dry_run") or self.asked.dry_run
        self._tell(self.asked.restore_configuration(_path(file), force=flag(force, "force"), dry_run=only), only)

    def ui_command_clearconfig(self, confirm: str = "false", force: str = "false", dry_run: str = "false") -> None:
        """Serves nothing to nobody any more.  All data stays where it is, and so does the configuration file until
        `saveconfig`.

        confirm  must be true
        force    true: take away even what is in use
        dry_run  true: only tell what would be done
        """
        only = flag(dry_run, "dry_run") or self.asked.dry_run
        if not only and not flag(confirm, "confirm"):
            raise console.Refused("nothing was cleared", "say confirm=true if you mean it")
        self._tell(self.asked.clear_configuration(force=flag(force, "force"), dry_run=only), only)

    def ui_command_diff(self, file: str | None = None) -> None:
        """Shows how what is in force differs from the configuration file.

        file  another file to compare with
        """
        answer = self.asked.save_configuration(_path(file), dry_run=True)
        console.say(answer.changes or f"{answer.file} says what is in force")

    @staticmethod
    def _tell(outcomes: Sequence[messages.Outcome], only: bool) -> None:
        """What became of each object.  Raises Refused if one of them failed."""
        for each in outcomes:
            if each.refusal is None:
                console.say(f"{'would ' if only else ''}{each.action} {each.subject}")
            else:
                console.say(f"FAILED to {each.action} {each.subject}: {each.refusal.message}")
        if not outcomes:
            console.say("nothing to do")
        failed = [each for each in outcomes if each.refusal is not None]
        if failed:
            objects = ", ".join(each.subject for each in failed)
            raise console.Refused(
                f"not everything was done: {objects}", failed[0].refusal.remedy if failed[0].refusal else ""
            )

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """For completion."""
        return files(given.get("file", "")) if parameter == "file" else None


class Jobs(Node):
    """/jobs."""

    def __init__(self, parent: Node) -> None:
        super().__init__("jobs", parent)

    def told(self) -> list[messages.Job]:
        """All of them."""
        return self.facts.get("jobs", self.asked.jobs)

    def list_children(self) -> None:
        for each in self.told():
            if each.state == "running":
                done = units.human_percent(each.done, each.total)
                Leaf(str(each.id), self, f"{each.kind} {each.subject}, {done}", healthy=True)
            elif each.refusal is not None:
                Leaf(str(each.id), self, f"{each.kind} {each.subject}, {each.refusal.message}", healthy=False)

    def summary(self) -> tuple[str, bool | None]:
        """For ls."""
        return f"{sum(each.state == 'running' for each in self.told())} running", None

    def ui_command_cancel(self, job: str) -> None:
        """Asks a job to stop.

        job  its number
        """
        found = self._job(job)
        if not self.only_checks(f"cancelled job {job}"):
            self.asked.cancel(found)
            *_, last = self.asked.watch(found)
            console.say(f"job {job}: {last.state}")

    def ui_command_wait(self, job: str) -> None:
        """Waits until a job has ended, with its progress on a terminal.

        job  its number
        """
        found = self._job(job)
        self.follow(found, found.kind)
        console.say(f"job {job}: done")

    def _job(self, job: str) -> messages.Job:
        wanted = number(job, "job")
        for each in self.told():
            if each.id == wanted:
                return each
        raise console.Refused(f"there is no job {job}", "`ls /jobs` lists them")

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """For completion."""
        return [str(each.id) for each in self.told() if each.state == "running"] if parameter == "job" else None


class Alerts(Node):
    """/alerts."""

    def __init__(self, parent: Node) -> None:
        super().__init__("alerts", parent)

    def told(self) -> list[messages.Alert]:
        """All of them."""
        return self.facts.get("alerts", self.asked.alerts)

    def list_children(self) -> None:
        for index, each in enumerate(self.told(), 1):
            Leaf(f"{each.code}:{index}", self, each.message, healthy=False)

    def summary(self) -> tuple[str, bool | None]:
        """For ls."""
        count = len(self.told())
        return (f"{count} to look at", False) if count else ("nothing", True)

    def ui_command_explain(self, code: str) -> None:
        """Explains what an alert means, where it comes from, and what to do.

        code  which; with or without the number behind it
        """
        from target.service import alerts

        wanted = code.partition(":")[0]
        if wanted not in alerts.EXPLANATIONS:
            raise console.Refused(f"there is no alert {code}", f"there are: {', '.join(alerts.EXPLANATIONS)}")
        console.say(alerts.EXPLANATIONS[wanted])
        for each in self.told():
            if each.code == wanted:
                console.say(f"\nnow: {each.message}\n{show.sentence(each.remedy)}")

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """For completion."""
        from target.service import alerts

        return list(alerts.EXPLANATIONS) if parameter == "code" else None


def _path(file: str | None) -> str | None:
    return None if file is None else os.path.abspath(file)  # noqa: PTH100 - links stay as given
