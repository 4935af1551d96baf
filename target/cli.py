# SPDX-License-Identifier: Apache-2.0
"""The `wolun` command: verbs, and the one place where refusals become sentences for people.

Exit status: 0 done, 1 not done (a sentence and a remedy on standard error), 2 the command line is wrong, 130 interrupted.

Every verb but `serve` and `config` is a client of the control socket.  All but `serve` answer within a blink: what a verb
needs is imported where it needs it, and nothing else is, neither HTTP for those that look at a file nor the types of a file for
those that talk.

(Longer than most modules here: it is a list of the verbs, each with its help, and little else.)
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import target
from target import places, show, units

if TYPE_CHECKING:
    from click import shell_completion

    from target import messages
    from target.configuration import settings
    from target.control import client


class Context:
    """What the options before the verb say."""

    def __init__(self, state_dir: Path, json_wanted: bool) -> None:
        self.state_dir = state_dir
        self.json = json_wanted

    def client(self) -> client.Client:
        """The daemon's control socket."""
        from target.control import client

        return client.Client(self.state_dir)

    def answer(self, value: object, text: Callable[[], str]) -> None:
        """Print an answer: `value` (messages) for programs, `text` for people."""
        if self.json:
            from target import messages

            plain = [messages.encode(each) for each in value] if isinstance(value, list) else messages.encode(value)
            click.echo(json.dumps(plain, indent=2))
        else:
            click.echo(text())


def _fail(message: str, remedy: str, code: str, *, json_wanted: bool) -> None:
    if json_wanted:
        click.echo(json.dumps({"error": code, "message": message, "remedy": remedy}), err=True)
    else:
        click.echo(f"wolun: {message}\n{show.sentence(remedy)}", err=True)
    sys.exit(1)


def _verb(function: Callable[..., None]) -> Callable[..., None]:
    """A verb that talks to the daemon: gets the Context, takes `--json` after the verb too, and explains refusals."""

    @functools.wraps(function)
    def run(context: Context, /, *arguments: Any, json_here: bool, **options: Any) -> None:
        from target.control import client

        context.json = context.json or json_here
        try:
            function(context, *arguments, **options)
        except client.Failed as failed:
            refusal = failed.refusal
            _fail(refusal.message, refusal.remedy, refusal.error, json_wanted=context.json)

    passing: Callable[..., None] = click.pass_obj(run)
    return click.option("--json", "json_here", is_flag=True, help="Print JSON.")(passing)


class _SnapshotName(click.ParamType[tuple[str, str]]):
    name = "VOLUME@SNAPSHOT"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[str, str]:
        volume, at, name = str(value).partition("@")
        if not (volume and at and name):
            self.fail(
                f"{value!r} names no snapshot: write VOLUME@SNAPSHOT, like vol0@before-upgrade", parameter, context
            )
        return volume, name

    def shell_complete(
        self, context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[shell_completion.CompletionItem]:
        return _completions(
            context,
            lambda asked: [f"{each.volume}@{each.name}" for each in asked.snapshots()],
            incomplete,
        )


def _completions(
    context: click.Context, look: Callable[[client.Client], list[str]], incomplete: str
) -> list[shell_completion.CompletionItem]:
    """What really is there and begins like that; nothing if the daemon cannot be asked."""
    from click import shell_completion

    from target.control import client

    chosen = context.find_root().params.get("state_dir") or places.default_state_dir()
    try:
        found = look(client.Client(_absolute(Path(chosen)), timeout=2))
    except client.Failed:
        return []
    return [shell_completion.CompletionItem(each) for each in found if each.startswith(incomplete)]


def _volume_names(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[shell_completion.CompletionItem]:
    return _completions(context, lambda asked: [each.name for each in asked.volumes()], incomplete)


class _Size(click.ParamType[int]):
    name = "SIZE"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        try:
            return units.parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), parameter, context)


SNAPSHOT = _SnapshotName()
SIZE = _Size()


class _Label(click.ParamType[tuple[str, str]]):
    name = "KEY=VALUE"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[str, str]:
        key, equals, text = str(value).partition("=")
        if not (key and equals):
            self.fail(f"{value!r} is no label: write KEY=VALUE, like purpose=backup", parameter, context)
        return key, text


LABEL = _Label()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="WOLUN_STATE_DIR",
    show_envvar=True,
    help="Where the daemon keeps its state and its control socket.",
)
@click.option("--json", "json_wanted", is_flag=True, help="Print JSON.")
@click.version_option(target.VERSION, prog_name="wolun", message="%(prog)s %(version)s")
@click.pass_context
def main(context: click.Context, state_dir: Path | None, json_wanted: bool) -> None:
    """Serve volumes over iSCSI, and take snapshots of them."""
    context.obj = Context(Path(os.path.abspath(state_dir or places.default_state_dir())), json_wanted)  # noqa: PTH100 - links stay as given


@main.command()
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="The configuration file.")
@click.option("--state-dir", type=click.Path(file_okay=False, path_type=Path), help="Where to keep state.")
@click.option("--portal", metavar="HOST:PORT", help="Listen here instead of where the configuration says.")
@click.pass_obj
def serve(context: Context, config: Path | None, state_dir: Path | None, portal: str | None) -> None:
    """Serve the volumes of a configuration, in the foreground."""
    from target import daemon
    from target.configuration import reader

    try:
        daemon.serve(config, state_dir.absolute() if state_dir else context.state_dir, portal)
    except reader.ConfigurationError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    except daemon.CannotServe as error:
        click.echo(f"wolun: {error}", err=True)
        sys.exit(1)


@main.command()
@_verb
def status(context: Context) -> None:
    """Volumes, sessions, throughput, space, trouble."""
    answer = context.client().status()
    context.answer(answer, lambda: show.status(answer))


@main.command()
@click.argument("code", required=False)
@click.option("--json", "json_here", is_flag=True, help="Print JSON.")
@click.pass_obj
def explain(context: Context, code: str | None, json_here: bool) -> None:
    """What an alert's CODE means for the data, and what to do; without CODE, all there are."""
    from target.service import alerts

    json_wanted = context.json or json_here
    if code is not None and code not in alerts.EXPLANATIONS:
        remedy = f"the codes are: {', '.join(alerts.EXPLANATIONS)}"
        _fail(f"there is no code {code}", remedy, "no-such-code", json_wanted=json_wanted)
    wanted = alerts.EXPLANATIONS if code is None else {code: alerts.EXPLANATIONS[code]}
    if json_wanted:
        click.echo(json.dumps(wanted, indent=2))
    else:
        click.echo("\n\n".join(f"{name}\n\n{text}" for name, text in wanted.items()))


@main.command()
@click.option("--json", "json_here", is_flag=True, help="Print JSON.")
@click.pass_obj
def version(context: Context, json_here: bool) -> None:
    """The version of this program."""
    click.echo(json.dumps({"version": target.VERSION}) if context.json or json_here else f"wolun {target.VERSION}")


@main.command()
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="The configuration to look at.")
@click.option("--json", "json_here", is_flag=True, help="Print JSON.")
@click.pass_obj
def doctor(context: Context, config: Path | None, json_here: bool) -> None:
    """What this machine can run, and what to do about what is missing; exit status 1 if the fabric asked for cannot."""
    import dataclasses

    from target import doctor as examination
    from target.configuration import fabric_kind

    json_wanted = context.json or json_here
    configured = _load(config, json_wanted=json_wanted) if config else None
    listen = configured.portal.listen if configured else fabric_kind.DEFAULT_LISTEN
    report = examination.examine(context.state_dir, listen)
    if json_wanted:
        plain = [
            dataclasses.asdict(each) | {"fabric": each.fabric.value if each.fabric else None}
            for each in report.findings
        ]
        click.echo(
            json.dumps({"findings": plain, "runs": {each.value: report.can_run(each) for each in fabric_kind.Fabric}})
        )
    else:
        click.echo(examination.show(report))
    if not report.can_run(configured.fabric if configured else fabric_kind.Fabric.PORTAL):
        sys.exit(1)


@main.group()
def snapshot() -> None:
    """Take, look at, export, go back to and delete snapshots."""


@snapshot.command("create")
@click.argument("volume", shell_complete=_volume_names)
@click.argument("name")
@click.option("--label", "labels", type=LABEL, multiple=True, metavar="KEY=VALUE", help="Give it a label; repeatable.")
@_verb
def snapshot_create(context: Context, volume: str, name: str, labels: tuple[tuple[str, str], ...]) -> None:
    """Take a snapshot of VOLUME called NAME."""
    answer = context.client().create_snapshot(volume, name, dict(labels))
    context.answer(answer, lambda: show.taken(answer))


@snapshot.command("create-group")
@click.argument("name")
@click.argument("volumes", nargs=-1, required=True, metavar="VOLUME...", shell_complete=_volume_names)
@click.option("--label", "labels", type=LABEL, multiple=True, metavar="KEY=VALUE", help="Give it a label; repeatable.")
@_verb
def snapshot_create_group(
    context: Context, name: str, volumes: tuple[str, ...], labels: tuple[tuple[str, str], ...]
) -> None:
    """Take a snapshot called NAME of every VOLUME, all at one moment.

    Writes to all of them are held meanwhile.  There are snapshots of all of them afterwards, or of none, even after a
    crash on the way.  From then on each is a snapshot like any other.
    """
    answer = context.client().create_group(name, volumes, dict(labels))
    context.answer(answer, lambda: "\n".join(show.taken(each) for each in answer))


@snapshot.command("label")
@click.argument("which", type=SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@click.argument("labels", type=LABEL, nargs=-1, required=True, metavar="KEY=VALUE...")
@_verb
def snapshot_label(context: Context, which: tuple[str, str], labels: tuple[tuple[str, str], ...]) -> None:
    """Give a snapshot labels; KEY= takes one away."""
    answer = context.client().label_snapshot(*which, {key: value or None for key, value in labels})
    context.answer(answer, lambda: show.labels(answer.labels) or "no labels")


@snapshot.command("list")
@click.argument("volume", required=False, shell_complete=_volume_names)
@_verb
def snapshot_list(context: Context, volume: str | None) -> None:
    """The snapshots of VOLUME, or of all volumes, oldest first."""
    answer = context.client().snapshots(volume)
    context.answer(answer, lambda: show.snapshots(answer))


@snapshot.command("show")
@click.argument("which", type=SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@click.option("--map", "with_map", is_flag=True, help="Picture which parts of the volume have changed since.")
@_verb
def snapshot_show(context: Context, which: tuple[str, str], with_map: bool) -> None:
    """One snapshot in detail."""
    asked = context.client()
    if not with_map:
        details = asked.snapshot(*which)
        context.answer(details, lambda: show.snapshot(details))
        return
    changes = asked.changes(*which, show.map_cells())
    context.answer(changes, lambda: show.change_map(changes))


@snapshot.command("export")
@click.argument("which", type=SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["raw", "qcow2"]),
    help="What FILE is to be. Left out: qcow2 if its name ends so, or with --since; else raw.",
)
@click.option(
    "--since",
    type=SNAPSHOT,
    metavar="VOLUME@SNAPSHOT",
    help="Write only what changed since this older snapshot, as a qcow2 image on top of that one's.",
)
@click.option(
    "--backing",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The older snapshot's image. Left out: beside FILE, called SNAPSHOT.qcow2, .img or .raw.",
)
@click.option(
    "--backing-format", type=click.Choice(["raw", "qcow2"]), help="What that image is, if it is not on this machine."
)
@click.option("--anyway", is_flag=True, help="Try even if there seems to be no room: zeroes take none.")
@_verb
def snapshot_export(
    context: Context,
    which: tuple[str, str],
    file: Path,
    force: bool,
    format_: str | None,
    since: tuple[str, str] | None,
    backing: Path | None,
    backing_format: str | None,
    anyway: bool,
) -> None:
    """Write the volume as it was at that moment to FILE: all of it, or what changed since an older snapshot."""
    path = _absolute(file)
    if since is None and (backing or backing_format):
        raise click.UsageError("--backing and --backing-format belong to --since")
    if since is not None:
        _same_volume(since, which)
        if format_ == "raw":
            raise click.UsageError("what changed --since can only be written as qcow2")
        names = [path.with_name(f"{since[1]}{suffix}") for suffix in (".qcow2", ".img", ".raw")]
        backing = next((name for name in names if name.exists()), names[0]) if backing is None else _absolute(backing)
    if format_ is None:
        format_ = "qcow2" if since is not None or path.suffix == ".qcow2" else "raw"
    asked = context.client()
    begin = functools.partial(
        asked.export,
        *which,
        path,
        overwrite=force,
        image_format=format_,
        since=None if since is None else since[1],
        backing=backing,
        backing_format=backing_format,
        anyway=anyway,
    )
    job = _follow(context, asked, begin, "exporting")
    on_top = "" if since is None else f", on top of {backing}"
    context.answer(job, lambda: f"{'@'.join(which)} is in {file}{on_top}")


@snapshot.command("verify")
@click.argument("which", type=SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@_verb
def snapshot_verify(context: Context, which: tuple[str, str]) -> None:
    """Read all that a snapshot needs, and compare it with its checksums; exit status 1 if something is damaged."""
    from target import messages

    asked = context.client()
    job = _follow(context, asked, lambda: asked.verify(*which), "verifying")
    found = asked.result(messages.Verification, job)
    context.answer(found, lambda: show.verification(found))
    if not found.sound:
        sys.exit(1)


@snapshot.command("diff")
@click.argument("since", type=SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@click.argument("to", type=SNAPSHOT, metavar="[VOLUME@SNAPSHOT]", required=False)
@click.option("--exact", is_flag=True, help="Compare the content, and leave out what is the same after all.")
@_verb
def snapshot_diff(context: Context, since: tuple[str, str], to: tuple[str, str] | None, exact: bool) -> None:
    """What changed from the first snapshot to the second, or to now: what an incremental backup reads."""
    from target import messages

    if to is not None:
        _same_volume(since, to)
    asked = context.client()
    wanted = messages.FindChanges(None if to is None else to[1], exact)
    job = _follow(context, asked, lambda: asked.diff(*since, wanted), "comparing")
    found = asked.result(messages.Difference, job)
    context.answer(found, lambda: show.difference(found))


@snapshot.command("delete")
@click.argument("which", type=SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@_verb
def snapshot_delete(context: Context, which: tuple[str, str]) -> None:
    """Delete a snapshot and free its space."""
    asked = context.client()
    job = _follow(context, asked, lambda: asked.delete_snapshot(*which), "deleting")
    context.answer(job, lambda: f"{'@'.join(which)} is deleted")


@snapshot.command("restore")
@click.argument("which", type=SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@click.option("--force", is_flag=True, help="Even if initiators reach the volume.")
@_verb
def snapshot_restore(context: Context, which: tuple[str, str], force: bool) -> None:
    """Roll the volume back to that moment.

    The volume is at that moment at once, and can be used while its data is brought there; this goes on in the background
    if you press Ctrl-C, and after a crash.  All snapshots stay as they are, newer ones too; what is in none of them - the
    volume as it is now - is gone, so take one first if you may want it back.  Unmount the volume before: refused while
    initiators reach it, unless --force.
    """
    asked = context.client()
    job = _follow(context, asked, lambda: asked.restore_snapshot(*which, force=force), "restoring", goes_on=True)
    context.answer(job, lambda: f"{which[0]} is as it was at {'@'.join(which)}")


@main.group()
def volume() -> None:
    """Change volumes."""


@volume.command("resize")
@click.argument("name", metavar="VOLUME")
@click.argument("size", type=SIZE)
@_verb
def volume_resize(context: Context, name: str, size: int) -> None:
    """Make VOLUME larger, to SIZE (like 2GiB), while it is used.  Its snapshots keep the size they were taken with."""
    answer = context.client().resize_volume(name, size)
    context.answer(answer, lambda: show.resized(answer))


@main.command()
@click.argument("command", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Check every change, and make none.")
@click.option("--keep-going", is_flag=True, help="Run a script to its end even if a line fails.")
@click.pass_obj
def shell(context: Context, command: tuple[str, ...], dry_run: bool, keep_going: bool) -> None:
    """Look at and change everything, in the manner of targetcli.

    COMMAND is run if there is one, like '/volumes/vol0/snapshots create nightly'.  Otherwise commands are read: from a
    person, with completion, if standard input is a terminal, and else as a script, up to the first line that fails.
    """
    from target.shell import main as shell_main

    sys.exit(shell_main.run(context.client(), " ".join(command), dry_run=dry_run, keep_going=keep_going))


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolving links would write through one that stands there


def _same_volume(since: tuple[str, str], to: tuple[str, str]) -> None:
    if since[0] != to[0]:
        raise click.UsageError(f"{'@'.join(since)} and {'@'.join(to)} are snapshots of different volumes")


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete this command's line: eval "$(wolun completion bash)"."""
    from click import shell_completion

    kind = shell_completion.get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"{shell} is not known")
    click.echo(kind(main, {}, "wolun", "_WOLUN_COMPLETE").source())


@main.group()
def config() -> None:
    """Check configuration files."""


@config.command("check")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "json_here", is_flag=True, help="Print JSON.")
@click.pass_obj
def config_check(context: Context, file: Path, json_here: bool) -> None:
    """Say what is wrong with FILE, line by line."""
    json_wanted = context.json or json_here
    _load(file, json_wanted=json_wanted)
    click.echo(json.dumps({"problems": []}) if json_wanted else f"{file}: good")


def _load(file: Path, *, json_wanted: bool) -> settings.Settings:
    """What a configuration file says; with a mistake in it, names all of them and ends with exit status 1."""
    from target.configuration import reader

    try:
        return reader.load(file)
    except reader.ConfigurationError as error:
        if json_wanted:
            from target import messages

            click.echo(json.dumps({"problems": [messages.encode(problem) for problem in error.problems]}, indent=2))
        else:
            click.echo(str(error), err=True)
    except OSError as error:
        _fail(f"{file} cannot be read: {error.strerror}", "name a file that can", "unreadable", json_wanted=json_wanted)
    sys.exit(1)


@config.command("schema")
def config_schema() -> None:
    """Print the JSON schema of configuration files."""
    from target.configuration import settings

    click.echo(json.dumps(settings.json_schema(), indent=2))


def _hold_interrupts(held: bool) -> None:
    """Make Ctrl-C wait, or let it come."""
    signal.pthread_sigmask(signal.SIG_BLOCK if held else signal.SIG_UNBLOCK, {signal.SIGINT})


def _follow(
    context: Context,
    asked: client.Client,
    begin: Callable[[], messages.Job],
    doing: str,
    *,
    goes_on: bool = False,
) -> messages.Job:
    """Begin a job and wait for it, showing its progress on a terminal; Ctrl-C cancels it, unless it `goes_on` once bytes
    were counted.  While the job is asked for, and once it ended, Ctrl-C waits: it would leave the job without a word, or
    take back nothing any more.  Raises Failed.
    """
    from target import messages
    from target.control import client

    _hold_interrupts(True)
    last = job = begin()
    try:
        with show.progress(f"{doing} {job.subject}", enabled=not context.json) as update:
            _hold_interrupts(False)
            for last in asked.watch(job):
                update(last.done, last.total)
            _hold_interrupts(True)
    except KeyboardInterrupt:
        asked.close()  # whatever answer was on its way
        asked.cancel(job)
        for last in asked.watch(job):
            if goes_on and last.total and last.state == "running":
                click.echo(f"wolun: {doing} {job.subject} goes on in the background; see `wolun status`", err=True)
                sys.exit(130)
        if last.state == "cancelled":
            click.echo(f"wolun: {doing} {job.subject} was cancelled", err=True)
            sys.exit(130)
    if last.refusal is not None:
        raise client.Failed(last.refusal)
    if last.state == "cancelled":
        raise client.Failed(
            messages.Refusal(
                "cancelled", f"{doing} {job.subject} was cancelled", "ask for it again if that was not you"
            )
        )
    return last
