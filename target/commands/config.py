# SPDX-License-Identifier: Apache-2.0
"""`wolun config`: check configuration files."""

from __future__ import annotations

import json
from pathlib import Path

import click

from target.commands import common


@click.group()
def config() -> None:
    """Check configuration files."""


@config.command("check")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "json_here", is_flag=True, help="Print JSON.")
@click.pass_obj
def config_check(context: common.Context, file: Path, json_here: bool) -> None:
    """Check FILE and list its mistakes, each with its line."""
    json_wanted = context.json or json_here
    common.load_configuration(file, json_wanted=json_wanted)
    common.say(json.dumps({"problems": []}) if json_wanted else f"{file}: good")


@config.command("schema")
def config_schema() -> None:
    """Print the JSON schema of configuration files."""
    from target.configuration import schema

    click.echo(json.dumps(schema.json_schema(), indent=2))
