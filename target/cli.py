# SPDX-License-Identifier: Apache-2.0
"""The `wolun` command: the options before the verb, and the list of verbs.

Exit status: 0 done, 1 not done (a sentence and a remedy on standard error), 2 the command line is wrong, 130 interrupted.

Each verb except `serve`, `doctor`, `explain`, `version`, `completion` and `config` is a client of the control socket.  A command
must start fast: each verb imports what it needs inside its function.  A verb that reads a file does not import HTTP, and
a verb that talks to the daemon does not import the types of the configuration.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

import target
from target import places
from target.commands import (
    clone,
    common,
    config,
    daemon,
    mount,
    node,
    reservations,
    schedules,
    snapshot,
    stream,
    volume,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="WOLUN_STATE_DIR",
    show_envvar=True,
    help="The directory that holds the daemon's state and its control socket.",
)
@click.option("--json", "json_wanted", is_flag=True, help="Print JSON.")
@click.version_option(target.VERSION, prog_name="wolun", message="%(prog)s %(version)s")
@click.pass_context
def main(context: click.Context, state_dir: Path | None, json_wanted: bool) -> None:
    """Serve volumes over iSCSI, and take snapshots of them."""
    context.obj = common.Context(Path(os.path.abspath(state_dir or places.default_state_dir())), json_wanted)  # noqa: PTH100 - links stay as given


snapshot.snapshot.add_command(stream.send)
snapshot.snapshot.add_command(clone.snapshot_clone)
snapshot.snapshot.add_command(mount.snapshot_mount)
snapshot.snapshot.add_command(mount.umount)
clone.clone.add_command(mount.clone_mount)
clone.clone.add_command(mount.umount)

for command in (
    daemon.serve,
    daemon.status,
    daemon.explain,
    daemon.version,
    daemon.doctor,
    snapshot.snapshot,
    stream.send,
    volume.volume,
    clone.clone,
    node.node,
    reservations.reservations,
    schedules.schedule,
    daemon.shell,
    daemon.completion,
    config.config,
):
    main.add_command(command)
