# SPDX-License-Identifier: Apache-2.0
"""`wolun node`: the nodes of a shared volume."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from target import show
from target.commands import common

if TYPE_CHECKING:
    from click import shell_completion


def _shared_names(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[shell_completion.CompletionItem]:
    return common.completions(
        context, lambda asked: [volume.name for volume in asked.volumes() if volume.sharing is not None], incomplete
    )


def _node_names(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[shell_completion.CompletionItem]:
    volume = context.params.get("volume") or ""
    return common.completions(context, lambda asked: [node.name for node in asked.nodes(volume)], incomplete)


@click.group()
def node() -> None:
    """Show and expel the nodes that share a volume."""


@node.command("list")
@click.argument("volume", shell_complete=_shared_names)
@common.verb
def node_list(context: common.Context, volume: str) -> None:
    """List the nodes of VOLUME: who is registered, in which epoch, and when each one was last seen.

    The log and the primary of VOLUME say it, so the answer is the same on every node.
    """
    answer = context.client().nodes(volume)
    context.answer(answer, lambda: show.nodes(answer))


@node.command("expel")
@click.argument("volume", shell_complete=_shared_names)
@click.argument("name", metavar="NODE", shell_complete=_node_names)
@click.option("--force", is_flag=True, help="Expel the node that the command runs on, or one that nobody has seen.")
@common.verb
def node_expel(context: common.Context, volume: str, name: str, force: bool) -> None:
    """Expel NODE from VOLUME, for good.

    Every other node keeps its place.  The commands of NODE have ended when this command ends, and NODE can neither read
    nor write the volume again under its name.  Use it for a host that will not come back, or that must not.
    """
    answer = context.client().expel_node(volume, name, force=force)
    context.answer(answer, lambda: show.nodes(answer))
