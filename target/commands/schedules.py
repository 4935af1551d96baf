# SPDX-License-Identifier: Apache-2.0
"""`wolun schedule`: what happens by itself, and when."""

from __future__ import annotations

import click

from target import show
from target.commands import common


@click.group()
def schedule() -> None:
    """Show what happens by itself: snapshots, groups of them, checks."""


@schedule.command("list")
@common.verb
def schedule_list(context: common.Context) -> None:
    """List the schedules, with when each is due next, in its time zone."""
    answer = list(context.client().status().schedules)
    context.answer(answer, lambda: show.schedules(answer))
