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
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The configuration file; default: /etc/wolun/wolun.yaml, or in a checkout wolun.yaml in the state directory.",
)
@click.option(
    "--state-dir", type=click.Path(file_okay=False, path_type=Path), help="The directory that holds the state."
)
@click.option("--portal", metavar="HOST:PORT", help="Listen at this address instead of the configured one.")
@click.pass_obj
def serve(context: common.Context, config: Path | None, state_dir: Path | None, portal: str | None) -> None:
    """Serve the volumes of a configuration file, in the foreground."""
    from target import daemon
    from target.configuration import reader

    try:
        daemon.serve(config, state_dir.absolute() if state_dir else context.state_dir, portal)
    except reader.ConfigurationError as error:
        common.say(str(error), err=True)
        sys.exit(1)
    except daemon.CannotServe as error:
        common.say(f"wolun: {error}", err=True)
        sys.exit(1)


@click.command()
@common.verb
def status(context: common.Context) -> None:
    """Show volumes, sessions, throughput, free space and alerts."""
    answer = context.client().status()
    context.answer(answer, lambda: show.status(answer))


@click.command()
@click.argument("code", required=False)
@click.option("--json", "json_here", is_flag=True, help="Print JSON.")
@click.pass_obj
def explain(context: common.Context, code: str | None, json_here: bool) -> None:
    """Explain an alert CODE, or all of them.

    The text says what the alert means, what state the data is in, and what to do.
    """
    from target import explanations, refusals

    json_wanted = context.json or json_here
    if code is not None and code not in explanations.EXPLANATIONS:
        common.fail(refusals.no_such_code(code), json_wanted=json_wanted)
    chosen = explanations.EXPLANATIONS if code is None else {code: explanations.EXPLANATIONS[code]}
    if json_wanted:
        click.echo(json.dumps(chosen, indent=2))
    else:
        click.echo("\n\n".join(f"{name}\n\n{text}" for name, text in chosen.items()))


@click.command()
@click.option("--json", "json_here", is_flag=True, help="Print JSON.")
@click.pass_obj
def version(context: common.Context, json_here: bool) -> None:
    """Print the version of this program."""
    click.echo(json.dumps({"version": target.VERSION}) if context.json or json_here else f"wolun {target.VERSION}")


@click.command()
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="The configuration file to check.")
@click.option("--json", "json_here", is_flag=True, help="Print JSON.")
@click.pass_obj
def doctor(context: common.Context, config: Path | None, json_here: bool) -> None:
    """Check what this machine can run.

    For each part that is missing, print how to add it.  The exit status is 1 if the fabric of the configuration (without one: the portal) cannot run.
    """
    import dataclasses

    from target import doctor as examination
    from target.configuration import fabric_kind

    json_wanted = context.json or json_here
    configured = common.load_configuration(config, json_wanted=json_wanted) if config else None
    listen = configured.portal.listen if configured else fabric_kind.DEFAULT_LISTEN
    report = examination.examine(context.state_dir, listen)
    if json_wanted:
        plain = [
            dataclasses.asdict(finding) | {"fabric": finding.fabric.value if finding.fabric else None}
            for finding in report.findings
        ]
        click.echo(
            json.dumps(
                {"findings": plain, "runs": {fabric.value: report.can_run(fabric) for fabric in fabric_kind.Fabric}}
            )
        )
    else:
        common.say(examination.show(report))
    if not report.can_run(configured.fabric if configured else fabric_kind.Fabric.PORTAL):
        sys.exit(1)


@click.command()
@click.argument("command", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Check each change, but make none.")
@click.option("--keep-going", is_flag=True, help="Continue a script after a line fails.")
@click.pass_obj
def shell(context: common.Context, command: tuple[str, ...], dry_run: bool, keep_going: bool) -> None:
    """Show and change everything in a shell.

    The shell works like targetcli, on the tree of all served objects.

    With COMMAND, like '/volumes/vol0/snapshots create nightly', run it and exit.  Without COMMAND, read commands from
    standard input.  On a terminal, the shell is interactive and completes names.  Otherwise it runs the input as a script
    and stops at the first line that fails.
    """
    from target.shell import main as shell_main

    sys.exit(shell_main.run(context.client(), " ".join(command), dry_run=dry_run, keep_going=keep_going))


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.  Use it like this: eval "$(wolun completion bash)"."""
    from click import shell_completion

    kind = shell_completion.get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"there is no completion for {shell}")
    if shell == "bash":  # VOLUME@SNAPSHOT is one word
        click.echo("COMP_WORDBREAKS=${COMP_WORDBREAKS//@/}")
    click.echo(kind(context.find_root().command, {}, "wolun", "_WOLUN_COMPLETE").source())
