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
    """Take part in shared volumes, and show and expel their nodes."""


@node.command("join")
@click.argument("volume")
@click.argument("primary")
@click.option("--lun", type=int, help="The LUN of the volume on this node. Default: initiators do not see it.")
@click.option("--node", "own", metavar="NAME", help="The name of this node. Default: the name of the host.")
@click.option("--log", metavar="DEVICE", help="The LUN of the volume's log. Default: it is found.")
@click.option(
    "--pool", metavar="DEVICE", multiple=True, help="A blank write-once LUN; repeatable. Default: they are found."
)
@click.option(
    "--store", type=click.Choice(["rados", "objects"]), help="Keep log and old data there.  Default: in LUNs."
)
@click.option(
    "--place",
    type=common.SETTING,
    multiple=True,
    metavar="KEY=VALUE",
    help="Where the store is, as in the configuration, like pool=wolun or url=s3://bucket/prefix; repeatable.",
)
@click.option("--chunk-size", metavar="SIZE", help="The most that a first write copies.  Default: 64KiB.")
@common.verb
def node_join(
    context: common.Context,
    volume: str,
    primary: str,
    lun: int | None,
    own: str | None,
    log: str | None,
    pool: tuple[str, ...],
    store: str | None,
    place: tuple[tuple[str, str], ...],
    chunk_size: str | None,
) -> None:
    """Take part in the shared volume VOLUME, whose primary is PRIMARY.

    PRIMARY is iscsi://HOST:PORT/TARGET/LUN or a block device.  The log and the write-once LUNs of the volume say what they
    are, so they are found beside it.  With --store they are in Ceph or in object storage instead.  `saveconfig` in the shell writes this into the configuration file.
    """
    from target import messages

    asked = context.client()
    if place and store is None:
        raise click.UsageError("--place does nothing without --store")
    rados, objects = (dict(place) if store == kind else None for kind in ("rados", "objects"))
    asked.share_volume(
        messages.ShareVolume(
            volume, primary, lun, own, log, pool, chunk_size, store=store, objects=objects, rados=rados
        )
    )
    answer = asked.volume(volume)
    context.answer(answer, lambda: f"this host joins {volume}; `wolun status` shows when it takes part")


@node.command("leave")
@click.argument("volume", shell_complete=_shared_names)
@click.option("--force", is_flag=True, help="Leave even if initiators use the volume here.")
@common.verb
def node_leave(context: common.Context, volume: str, force: bool) -> None:
    """Take part in VOLUME no longer.

    The volume, its snapshots and the other nodes stay as they are, and this host can join again.
    """
    asked = context.client()
    asked.unshare_volume(volume, force=force)
    context.answer(asked.volumes(), lambda: f"this host has left {volume}")


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
