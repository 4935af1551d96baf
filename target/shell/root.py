# SPDX-License-Identifier: Apache-2.0
"""/, /jobs and /alerts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from target import explanations, messages, printable, refusals, show, units
from target.shell import console
from target.shell.clones import Clones
from target.shell.iscsi import Iscsi
from target.shell.node import Leaf, Node, files, flag, number, plural
from target.shell.volumes import Volumes


class Root(Node):
    """The node /."""

    def __init__(self, shell: console.Shell) -> None:
        super().__init__("/", None, shell)

    def list_children(self) -> None:
        Volumes(self)
        Iscsi(self)
        Clones(self)
        Jobs(self)
        Alerts(self)

    def summary(self) -> tuple[str, bool | None]:
        """Return the text and the health for `ls`."""
        status = self.status()
        return f"wolun {status.version}, {units.human_size(status.space_free_bytes)} free", None

    def ui_command_status(self) -> None:
        """Show volumes, sessions, throughput, free space and alerts."""
        console.say(show.status(self.status()))

    def ui_command_saveconfig(self, file: str | None = None, dry_run: str = "false") -> None:
        """Save the running configuration to the configuration file.  Comments in the file stay, and the old file is kept.

        file     another file to write
        dry_run  true: only show the changes
        """
        only = flag(dry_run, "dry_run") or self.asked.dry_run
        answer = self.asked.save_configuration(_path(file), dry_run=only)
        if only:
            console.say(answer.changes or f"{answer.file} matches the running configuration")
        elif not answer.changes:
            console.say(f"{answer.file} already matches the running configuration")
        else:
            console.say(f"saved to {answer.file}" + (f"; the old file is {answer.backup}" if answer.backup else ""))

    def ui_command_restoreconfig(self, file: str | None = None, force: str = "false", dry_run: str = "false") -> None:
        """Change the running configuration to that of the file.

        An object that cannot be changed is reported, and all other objects are changed.

        file     another file to restore from
        force    true: remove even objects that are in use
        dry_run  true: only list the changes
        """
        only = flag(dry_run, "dry_run") or self.asked.dry_run
        self._report(self.asked.restore_configuration(_path(file), force=flag(force, "force"), dry_run=only), only)

    def ui_command_clearconfig(self, confirm: str = "false", force: str = "false", dry_run: str = "false") -> None:
        """Remove all volumes and initiators from the running configuration.

        All data stays where it is.  The configuration file stays as it is until `saveconfig`.

        confirm  must be true
        force    true: remove even objects that are in use
        dry_run  true: only list the changes
        """
        only = flag(dry_run, "dry_run") or self.asked.dry_run
        if not only and not flag(confirm, "confirm"):
            raise console.Refused("nothing was cleared", "add confirm=true to confirm")
        self._report(self.asked.clear_configuration(force=flag(force, "force"), dry_run=only), only)

    def ui_command_diff(self, file: str | None = None) -> None:
        """Show how the running configuration differs from the configuration file.

        file  another file to compare with
        """
        answer = self.asked.save_configuration(_path(file), dry_run=True)
        console.say(answer.changes or f"{answer.file} matches the running configuration")

    @staticmethod
    def _report(outcomes: Sequence[messages.Outcome], only: bool) -> None:
        """Print the result for each object.  Raises Refused if one of them failed."""
        outcomes = printable.message(outcomes)
        for outcome in outcomes:
            if outcome.refusal is None:
                console.say(f"{'would ' if only else ''}{outcome.action} {outcome.subject}")
            else:
                console.say(f"FAILED to {outcome.action} {outcome.subject}: {outcome.refusal.message}")
        if not outcomes:
            console.say("nothing to do")
        failed = [outcome for outcome in outcomes if outcome.refusal is not None]
        if failed:
            objects = ", ".join(outcome.subject for outcome in failed)
            raise console.Refused(
                f"some objects failed: {objects}", failed[0].refusal.remedy if failed[0].refusal else ""
            )

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """Return the possible values for completion."""
        return files(given.get("file", "")) if parameter == "file" else None


class Jobs(Node):
    """The node /jobs."""

    def __init__(self, parent: Node) -> None:
        super().__init__("jobs", parent)

    def all_jobs(self) -> list[messages.Job]:
        """Return all jobs."""
        return self.facts.get("jobs", self.asked.jobs)

    def list_children(self) -> None:
        for job in self.all_jobs():
            if job.state == "running":
                done = units.human_percent(job.done, job.total)
                Leaf(str(job.id), self, f"{job.kind} {job.subject}, {done}", healthy=True)
            elif job.refusal is not None:
                Leaf(str(job.id), self, f"{job.kind} {job.subject}, {job.refusal.message}", healthy=False)

    def summary(self) -> tuple[str, bool | None]:
        """Return the text and the health for `ls`."""
        return f"{sum(job.state == 'running' for job in self.all_jobs())} running", None

    def ui_command_cancel(self, job: str) -> None:
        """Cancel a job.

        job  its number
        """
        running = self._job(job)
        if not self.only_checks(f"cancelled job {job}"):
            self.asked.cancel(running)
            *_, last = self.asked.watch(running)
            console.say(f"job {job}: {last.state}")

    def ui_command_wait(self, job: str) -> None:
        """Wait until a job ends, and show its progress on a terminal.

        job  its number
        """
        running = self._job(job)
        self.follow(running, running.kind)
        console.say(f"job {job}: done")

    def _job(self, job: str) -> messages.Job:
        job_id = number(job, "job")
        for known in self.all_jobs():
            if known.id == job_id:
                return known
        raise console.Refused(f"there is no job {job}", "`ls /jobs` lists them")

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """Return the possible values for completion."""
        return [str(job.id) for job in self.all_jobs() if job.state == "running"] if parameter == "job" else None


class Alerts(Node):
    """The node /alerts."""

    def __init__(self, parent: Node) -> None:
        super().__init__("alerts", parent)

    def all_alerts(self) -> list[messages.Alert]:
        """Return all alerts."""
        return self.facts.get("alerts", self.asked.alerts)

    def list_children(self) -> None:
        for index, alert in enumerate(self.all_alerts(), 1):
            Leaf(f"{alert.code}:{index}", self, alert.message, healthy=False)

    def summary(self) -> tuple[str, bool | None]:
        """Return the text and the health for `ls`."""
        count = len(self.all_alerts())
        return (plural(count, "alert"), False) if count else ("none", True)

    def ui_command_explain(self, code: str) -> None:
        """Explain what an alert means, what causes it, and what to do.

        code  the alert's code, with or without the number behind it
        """
        name = code.partition(":")[0]
        if name not in explanations.EXPLANATIONS:
            raise console.Refused.because(refusals.no_such_code(code))
        console.say(explanations.EXPLANATIONS[name])
        for alert in self.all_alerts():
            if alert.code == name:
                console.say(f"\nnow: {alert.message}\n{show.sentence(alert.remedy)}")

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """Return the possible values for completion."""
        return list(explanations.EXPLANATIONS) if parameter == "code" else None


def _path(file: str | None) -> str | None:
    return None if file is None else os.path.abspath(file)  # noqa: PTH100 - links stay as given
