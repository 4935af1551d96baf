# SPDX-License-Identifier: Apache-2.0
"""The `wolun` command: the options before the verb, and the list of verbs.

Exit status: 0 done, 1 not done (a sentence and a remedy on standard error), 2 the command line is wrong, 130 interrupted.

Every verb but `serve` and `config` is a client of the control socket.  All but `serve` answer within a blink: what a verb
needs is imported where it needs it, and nothing else is, neither HTTP for those that look at a file nor the types of a file for
those that talk.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

import target
from target import places
from target.commands import common, config, daemon, snapshot, volume


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
    context.obj = common.Context(Path(os.path.abspath(state_dir or places.default_state_dir())), json_wanted)  # noqa: PTH100 - links stay as given


for command in (
    daemon.serve,
    daemon.status,
    daemon.explain,
    daemon.version,
    daemon.doctor,
    snapshot.snapshot,
    volume.volume,
    daemon.shell,
    daemon.completion,
    config.config,
):
    main.add_command(command)
