# SPDX-License-Identifier: Apache-2.0
"""`wolun snapshot clone` and `wolun clone`: writable clones of snapshots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from target import show
from target.commands import common

if TYPE_CHECKING:
    from click import shell_completion


def clone_names(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[shell_completion.CompletionItem]:
    """Complete the name of a clone."""
    return common.completions(context, lambda asked: [clone.name for clone in asked.clones()], incomplete)


@click.command("clone")
@click.argument("which", type=common.SNAPSHOT, metavar="VOLUME@SNAPSHOT")
@click.argument("name")
@click.option("--limit", type=common.SIZE, metavar="SIZE", help="How much it may hold of its own.  Default: the disk.")
@common.verb
def snapshot_clone(context: common.Context, which: tuple[str, str], name: str, limit: int | None) -> None:
    """Make a writable clone of a snapshot and call it NAME.

    The clone begins with the content of the snapshot, in milliseconds and without taking space.  Writes to it go to files of
    its own; the volume and the snapshot stay as they are.  So you can try a restore, let a file system replay its journal, or
    boot a virtual machine from the past.

    While the clone stands, the snapshot cannot be deleted; `wolun clone delete` deletes the clone.
    """
    from target import messages

    answer = context.client().create_clone(*which, messages.CreateClone(name, limit))
    context.answer(answer, lambda: f"{show.cloned(answer)}\n{show.RESCAN}")


@click.group()
def clone() -> None:
    """Show and delete writable clones of snapshots."""


@clone.command("list")
@common.verb
def clone_list(context: common.Context) -> None:
    """List the clones."""
    answer = context.client().clones()
    context.answer(answer, lambda: show.clones(answer))


@clone.command("show")
@click.argument("name", metavar="CLONE", shell_complete=clone_names)
@common.verb
def clone_show(context: common.Context, name: str) -> None:
    """Show one clone."""
    answer = context.client().clone(name)
    context.answer(answer, lambda: f"{show.clones([answer])}\n{answer.url}".rstrip())


@clone.command("delete")
@click.argument("name", metavar="CLONE", shell_complete=clone_names)
@click.option("--force", is_flag=True, help="Do it even if an initiator uses it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common.verb
def clone_delete(context: common.Context, name: str, force: bool, yes: bool) -> None:
    """Delete a clone with all that was written to it.  Its snapshot stays."""
    from target import messages

    common.confirm(context, f"All that was written to {name} is lost for good.  Delete it?", yes=yes)
    context.client().delete_clone(name, force=force)
    context.answer(messages.Deleted(name), lambda: f"{name} is deleted")
