# SPDX-License-Identifier: Apache-2.0
"""`wolun send`, which is `wolun snapshot send`, too: a snapshot as a stream for `wolun volume receive`."""

from __future__ import annotations

import sys

import click

from target.commands import common


@click.command("send")
@click.argument("which", type=common.SNAPSHOT, metavar="[VOLUME@SNAPSHOT]", required=False)
@click.option(
    "--since",
    type=common.SNAPSHOT,
    metavar="VOLUME@OLDER",
    help="Send only the changes since this snapshot, which the receiver has.",
)
@click.option("--resume", "token", metavar="TOKEN", help="Go on with a stream that was interrupted.")
@click.option("--compress", is_flag=True, help="Compress the data with zstd.")
@click.option("--limit", type=common.RATE, metavar="RATE", help="The most data a second, like 50MiB/s.")
@click.option("--damaged", is_flag=True, help="Send damaged blocks as they are, and unreadable ones as zeroes.")
@common.verb
def send(
    context: common.Context,
    which: tuple[str, str] | None,
    since: tuple[str, str] | None,
    token: str | None,
    compress: bool,
    limit: int | None,
    damaged: bool,
) -> None:
    """Write a snapshot to standard output as a stream, for `wolun volume receive` on another host.

    \b
        wolun send vol0@monday | ssh backup wolun volume receive vol0
        wolun send vol0@tuesday --since vol0@monday | ssh backup wolun volume receive vol0

    The stream has the identity of the snapshot and a checksum for each part.  Holes take no room in it.

    If a stream is interrupted, the receiver keeps what has come and tells a TOKEN.  --resume goes on there.
    """
    from target import messages

    if (which is None) is (token is None) or (token is not None and since is not None):
        raise click.UsageError("name either a snapshot, or with --resume the token of an interrupted stream")
    if since is not None and which is not None and since[0] != which[0]:
        raise click.UsageError(f"{'@'.join(since)} and {'@'.join(which)} are snapshots of different volumes")
    if sys.stdout.isatty():
        raise click.UsageError("standard output is a terminal: pipe it into `wolun volume receive`, or redirect it")
    asked = context.client()
    if token is not None:
        rest = messages.Resume(token, compress, limit, damaged)
        job = common.to_standard_output(
            context, "sending", "the rest", lambda write, progress: asked.resume(rest, write, progress=progress)
        )
    else:
        assert which is not None
        request, named = messages.Send(None if since is None else since[1], compress, limit, damaged), which
        job = common.to_standard_output(
            context,
            "sending",
            "@".join(named),
            lambda write, progress: asked.send(*named, request, write, progress=progress),
        )
    common.warn_of_damage(job)
