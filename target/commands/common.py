# SPDX-License-Identifier: Apache-2.0
"""The parts that commands share: the options before the verb, refusals, parameter types, and waiting for a job."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from target import places, printable, show, units

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from click import shell_completion

    from target import messages
    from target.configuration import settings
    from target.control import client


class Context:
    """The values of the options before the verb."""

    def __init__(self, state_dir: Path, json_wanted: bool) -> None:
        self.state_dir = state_dir
        self.json = json_wanted

    def client(self) -> client.Client:
        """Return a client of the daemon's control socket."""
        from target.control import client

        return client.Client(self.state_dir)

    def answer(
        self, value: DataclassInstance | Sequence[DataclassInstance], text: Callable[[], str], *, coloured: bool = False
    ) -> None:
        """Print an answer: `value` (messages) as JSON with `--json`, otherwise `text`, with our colours if `coloured`."""
        if self.json:
            from target import codec

            plain = [codec.encode(message) for message in value] if isinstance(value, Sequence) else codec.encode(value)
            click.echo(json.dumps(plain, indent=2))
        else:
            click.echo(text() if coloured else printable.lines(text()))


def say(text: str, *, err: bool = False) -> None:
    """Print text for people; it may contain names from outside."""
    click.echo(printable.lines(text), err=err)


def fail(refusal: messages.Refusal, *, json_wanted: bool) -> NoReturn:
    """Print a refusal on standard error and exit with status 1."""
    if json_wanted:
        click.echo(json.dumps({"error": refusal.error, "message": refusal.message, "remedy": refusal.remedy}), err=True)
    else:
        say(f"wolun: {refusal.message}\n{show.sentence(refusal.remedy)}", err=True)
    sys.exit(1)


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """Decorate a verb that talks to the daemon: pass the Context, accept `--json` after the verb too, print refusals."""

    @functools.wraps(function)
    def run(context: Context, /, *arguments: Any, json_here: bool, **options: Any) -> None:
        from target.control import client

        context.json = context.json or json_here
        try:
            function(context, *arguments, **options)
        except client.Failed as failed:
            fail(failed.refusal, json_wanted=context.json)

    passing: Callable[..., None] = click.pass_obj(run)
    return click.option("--json", "json_here", is_flag=True, help="Print JSON.")(passing)


class _SnapshotPattern(click.ParamType[tuple[str, str]]):
    """VOLUME@PATTERN; with `whole`, a volume alone stands for all its snapshots."""

    name = "VOLUME@PATTERN"

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[str, str]:
        volume, at, pattern = str(value).partition("@")
        if not (volume and pattern) if at else not self._whole:
            self.fail(
                f"{value!r} names no snapshots: write VOLUME@SNAPSHOT, or a pattern like 'vol0@nightly-*'",
                parameter,
                context,
            )
        return volume, pattern or "*"

    def shell_complete(
        self, context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[shell_completion.CompletionItem]:
        if self._whole and "@" not in incomplete:
            return volume_names(context, parameter, incomplete)
        return SNAPSHOT.shell_complete(context, parameter, incomplete)


class _SnapshotName(click.ParamType[tuple[str, str]]):
    name = "VOLUME@SNAPSHOT"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[str, str]:
        volume, at, name = str(value).partition("@")
        if not (volume and at and name):
            self.fail(
                f"{value!r} is not the name of a snapshot: write VOLUME@SNAPSHOT, like vol0@before-upgrade",
                parameter,
                context,
            )
        return volume, name

    def shell_complete(
        self, context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[shell_completion.CompletionItem]:
        return completions(
            context,
            lambda asked: [f"{snapshot.volume}@{snapshot.name}" for snapshot in asked.snapshots()],
            incomplete,
        )


def completions(
    context: click.Context, look: Callable[[client.Client], list[str]], incomplete: str
) -> list[shell_completion.CompletionItem]:
    """Return the names from `look` that begin with `incomplete`; none if the daemon does not answer."""
    from click import shell_completion

    from target.control import client

    chosen = context.find_root().params.get("state_dir") or places.default_state_dir()
    try:
        names = look(client.Client(absolute(Path(chosen)), timeout=2))
    except client.Failed:
        return []
    matching = (name for name in names if name.startswith(incomplete) and name.isprintable())
    return [shell_completion.CompletionItem(name) for name in matching]


def volume_names(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[shell_completion.CompletionItem]:
    return completions(context, lambda asked: [volume.name for volume in asked.volumes()], incomplete)


class _Size(click.ParamType[int]):
    name = "SIZE"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        try:
            return units.parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), parameter, context)


class _Rate(click.ParamType[int]):
    """Bytes a second, like 50MiB/s."""

    name = "RATE"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        try:
            rate = units.parse_size(str(value).removesuffix("/s"))
        except ValueError as error:
            self.fail(f"{error}, or 50MiB/s", parameter, context)
        if not rate:
            self.fail("at least one byte a second must pass: write a rate like 50MiB/s", parameter, context)
        return rate


SNAPSHOT = _SnapshotName()
SNAPSHOTS = _SnapshotPattern(whole=False)
VOLUME_OR_SNAPSHOTS = _SnapshotPattern(whole=True)
SIZE = _Size()
RATE = _Rate()


class _Label(click.ParamType[tuple[str, str]]):
    name = "KEY=VALUE"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[str, str]:
        key, equals, text = str(value).partition("=")
        if not (key and equals):
            self.fail(f"{value!r} is not a label: write KEY=VALUE, like purpose=backup", parameter, context)
        return key, text


LABEL = _Label()


class _Setting(_Label):
    """A key of a group of the configuration, with its value."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[str, str]:
        key, equals, text = str(value).partition("=")
        if not (key and equals):
            self.fail(f"{value!r} is no setting: write KEY=VALUE, like pool=wolun", parameter, context)
        return key, text


SETTING = _Setting()


class _Moment(click.ParamType[str]):
    """A moment, as ISO 8601 in UTC; empty for `never`."""

    name = "WHEN"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        from target import when

        try:
            moment = when.parse(str(value), datetime.datetime.now(datetime.UTC))
        except ValueError as error:
            self.fail(str(error), parameter, context)
        return "" if moment is None else moment.isoformat()


MOMENT = _Moment()


def absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolving links would write through one that stands there


def load_configuration(file: Path, *, json_wanted: bool) -> settings.Settings:
    """Return the settings of a configuration file; if it has mistakes, print all of them and exit with status 1."""
    from target import refusals
    from target.configuration import reader

    try:
        return reader.load(file)
    except reader.ConfigurationError as error:
        if json_wanted:
            from target import codec

            click.echo(json.dumps({"problems": [codec.encode(problem) for problem in error.problems]}, indent=2))
        else:
            say(str(error), err=True)
    except OSError as error:
        fail(refusals.unreadable(file, error), json_wanted=json_wanted)
    sys.exit(1)


def warn_of_damage(job: messages.Job) -> None:
    """Print on standard error the damaged blocks that a job passed on, if there are any."""
    if job.damaged_bytes:
        say(f"wolun: {show.damage(job)}", err=True)


def confirm(context: Context, question: str, *, yes: bool) -> None:
    """Ask on a terminal before data is replaced, and end if the answer is no.  A script and `--yes` are not asked."""
    if yes or context.json or not sys.stdin.isatty():
        return
    if not click.confirm(question, err=True):
        say("wolun: nothing was changed", err=True)
        sys.exit(1)


def _hold_interrupts(held: bool) -> None:
    """Block SIGINT (Ctrl-C), or unblock it."""
    signal.pthread_sigmask(signal.SIG_BLOCK if held else signal.SIG_UNBLOCK, {signal.SIGINT})


def follow(
    context: Context,
    asked: client.Client,
    begin: Callable[[], messages.Job],
    doing: str,
    *,
    goes_on: bool = False,
    held: bool = False,
) -> messages.Job:
    """Begin a job and wait until it ends, with its progress on a terminal.  Return the job as it ended.  Raises Failed.

    Ctrl-C cancels the job, unless it `goes_on`: such a job continues in the background once its first bytes are done.  With
    `held`, the daemon cancels the job if this process ends in any other way.
    SIGINT is blocked during the request, because otherwise the job could continue without a message.  SIGINT is blocked
    again after the job has ended, because nothing is left to cancel.
    """
    _hold_interrupts(True)
    last = job = begin()
    try:
        with (
            show.progress(f"{doing} {job.subject}", enabled=not context.json) as update,
            asked.holding(job) if held else contextlib.nullcontext(),
        ):
            _hold_interrupts(False)
            for last in asked.watch(job):
                update(last.done, last.total)
            _hold_interrupts(True)
    except KeyboardInterrupt:
        asked.close()  # an answer may be half read
        asked.cancel(job)
        for last in asked.watch(job):
            if goes_on and last.total and last.state == "running":
                say(f"wolun: {doing} {job.subject} continues in the background; see `wolun status`", err=True)
                sys.exit(130)
        if last.state == "cancelled":
            say(f"wolun: {doing} {job.subject} was cancelled", err=True)
            sys.exit(130)
    return done(last, doing)


def to_standard_output(
    context: Context,
    doing: str,
    subject: str,
    begin: Callable[[Callable[[bytes], object], Callable[[int, int], None]], messages.Job],
) -> messages.Job:
    """Write what `begin` hands on to standard output, with its progress if standard error is a terminal.

    `begin` takes the functions for the content and for the progress.  Return the job as it ended.  Ctrl-C and the end of this
    process cancel it.  Raises Failed.
    """
    output = sys.stdout.buffer
    try:
        with show.progress(f"{doing} {subject}", enabled=not context.json) as update:
            job = begin(output.write, update)
        output.flush()
    except KeyboardInterrupt:
        say(f"wolun: {doing} {subject} was cancelled", err=True)
        sys.exit(130)
    return done(job, doing)


def done(job: messages.Job, doing: str) -> messages.Job:
    """Return the job that has ended.  Raises Failed if it failed or was cancelled."""
    from target import refusals
    from target.control import client

    if job.refusal is not None:
        raise client.Failed(job.refusal)
    if job.state == "cancelled":
        raise client.Failed(refusals.cancelled(doing, job))
    return job
