# SPDX-License-Identifier: Apache-2.0
"""`wolun reservations`: show and clear the reservations of logical units."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from target import refusals, show
from target.commands import common

if TYPE_CHECKING:
    from click import shell_completion

    from target import messages


def _unit_names(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[shell_completion.CompletionItem]:
    return common.completions(context, lambda asked: [lun.unit for lun in asked.luns()], incomplete)


@click.group()
def reservations() -> None:
    """Show and clear the reservations that initiators made on units."""


@reservations.command("list")
@click.argument("unit", required=False, shell_complete=_unit_names)
@common.verb
def reservations_list(context: common.Context, unit: str | None) -> None:
    """List reservations, registrations and who holds them.

    UNIT is VOLUME, VOLUME@SNAPSHOT or VOLUME@SNAPSHOT/write-once.  Without UNIT, list those of all units.
    """
    answer = context.client().reservations()
    if unit is not None:
        answer = [_find(answer, unit)]
    context.answer(answer, lambda: show.reservations(answer))


@reservations.command("clear")
@click.argument("unit", shell_complete=_unit_names)
@click.option("--initiator", metavar="NAME", help="Clear only the reservations of this initiator.")
@click.option("--force", is_flag=True, help="Clear them even if their initiators are logged in.")
@common.verb
def reservations_clear(context: common.Context, unit: str, initiator: str | None, force: bool) -> None:
    """Remove the reservations and registrations of UNIT, for good.

    Use it for a host that will not come back.  The running commands of the initiators that lose their registrations
    have ended when this command ends.  The command refuses to run while such an initiator is logged in, unless --force
    is given, because a cluster fences its nodes with reservations.
    """
    asked = context.client()
    found = _find(asked.reservations(), unit)
    asked.clear_reservations(found.lun, initiator, force=force)
    after = _find(asked.reservations(), unit)
    context.answer(after, lambda: show.cleared(after))


def _find(units: list[messages.UnitReservations], name: str) -> messages.UnitReservations:
    from target.control import client

    for unit in units:
        if unit.unit == name:
            return unit
    raise client.Failed(refusals.no_such_unit(name, [unit.unit for unit in units]))
