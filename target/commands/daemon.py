# SPDX-License-Identifier: Apache-2.0
"""The commands that concern the daemon as a whole: `serve`, `status`, `explain`, `version`, `doctor`, `shell`, `completion`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

import target
from target import show
from target.commands import common


@click.command()
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="The configuration file.")
@click.option("--state-dir", type=click.Path(file_okay=False, path_type=Path), help="Where to keep state.")
@click.option("--portal", metavar="HOST:PORT", help="Listen here instead of where the configuration says.")
@click.pass_obj
def serve(context: common.Context, config: Path | None, state_dir: Path | None, portal: str | None) -> None:
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


@click.command()
@common.verb
def status(context: common.Context) -> None:
    """Volumes, sessions, throughput, space, trouble."""
    answer = context.client().status()
    context.answer(answer, lambda: show.status(answer))


@click.command()
@click.argument("code", required=False)
@click.option("--json", "json_here", is_flag=True, help="Print JSON.")
@click.pass_obj
def explain(context: common.Context, code: str | None, json_here: bool) -> None:
    """What an alert's CODE means for the data, and what to do; without CODE, all there are."""
    from target.service import alerts

    json_wanted = context.json or json_here
    if code is not None and code not in alerts.EXPLANATIONS:
        remedy = f"the codes are: {', '.join(alerts.EXPLANATIONS)}"
        common.fail(f"there is no code {code}", remedy, "no-such-code", json_wanted=json_wanted)
    wanted = alerts.EXPLANATIONS if code is None else {code: alerts.EXPLANATIONS[code]}
    if json_wanted:
        click.echo(json.dumps(wanted, indent=2))
    else:
        click.echo("\n\n".join(f"{name}\n\n{text}" for name, text in wanted.items()))


@click.command()
@click.option("--json", "json_here", is_flag=True, help="Print JSON.")
@click.pass_obj
def version(context: common.Context, json_here: bool) -> None:
    """The version of this program."""
    click.echo(json.dumps({"version": target.VERSION}) if context.json or json_here else f"wolun {target.VERSION}")


@click.command()
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="The configuration to look at.")
@click.option("--json", "json_here", is_flag=True, help="Print JSON.")
@click.pass_obj
def doctor(context: common.Context, config: Path | None, json_here: bool) -> None:
    """What this machine can run, and what to do about what is missing; exit status 1 if the fabric asked for cannot."""
    import dataclasses

    from target import doctor as examination
    from target.configuration import fabric_kind

    json_wanted = context.json or json_here
    configured = common.load_configuration(config, json_wanted=json_wanted) if config else None
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


@click.command()
@click.argument("command", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Check every change, and make none.")
@click.option("--keep-going", is_flag=True, help="Run a script to its end even if a line fails.")
@click.pass_obj
def shell(context: common.Context, command: tuple[str, ...], dry_run: bool, keep_going: bool) -> None:
    """Look at and change everything, in the manner of targetcli.

    COMMAND is run if there is one, like '/volumes/vol0/snapshots create nightly'.  Otherwise commands are read: from a
    person, with completion, if standard input is a terminal, and else as a script, up to the first line that fails.
    """
    from target.shell import main as shell_main

    sys.exit(shell_main.run(context.client(), " ".join(command), dry_run=dry_run, keep_going=keep_going))


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete this command's line: eval "$(wolun completion bash)"."""
    from click import shell_completion

    kind = shell_completion.get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"{shell} is not known")
    click.echo(kind(context.find_root().command, {}, "wolun", "_WOLUN_COMPLETE").source())
