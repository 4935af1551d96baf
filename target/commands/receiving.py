# SPDX-License-Identifier: Apache-2.0
"""The receiving end of a stream, for `wolun volume receive`: it reads the beginning, and hands all on to the daemon.

A stream that begins with HELLO asks what is here.  The answer is one line of JSON on standard output (`messages.Replica`), and
another one when all is received (`messages.Identified`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from lun_backends.backups import frames
from target import codec, messages, show
from target.commands import common
from target.control import client

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_STEP = 1 << 18
ALREADY = "received-already"
"""The code of the daemon's refusal for a snapshot that the volume has."""


def receive(context: common.Context, name: str, *, lun: int | None, keep: int | None, force: bool) -> None:
    """Receive the stream from standard input.  Raises Failed."""
    if sys.stdin.isatty():
        raise click.UsageError("standard input is a terminal: pipe `wolun send` into this command")
    asked, taken = context.client(), bytearray()

    def read(most: int) -> bytes:
        data = os.read(0, most)
        taken.extend(data)
        return data

    stream = frames.Reader(read).frames()
    try:
        frame = next(stream)
        talks = frame.kind is frames.Kind.HELLO
        if talks:
            _tell(asked.replica(name))
            frame = next(stream)
        if frame.kind is not frames.Kind.BEGIN:
            raise frames.StreamError("it has data before its beginning")
        begin = frame.begin
    except frames.StreamError as error:
        raise client.Failed(_unusable(error)) from error
    request = messages.Receive(
        **{
            **codec.encode(begin),
            "since": None if begin.since is None else messages.StreamBase(begin.since.name, begin.since.identity),
        },
        lun=lun,
        keep=keep,
        force=force,
    )
    there = messages.Identified(begin.snapshot, begin.identity)
    try:
        job = asked.receive(name, request)
    except client.Failed as failed:
        if failed.refusal.error != ALREADY:
            raise
        _answer(context, there, failed.refusal.message, talks=talks)
        return
    try:
        with show.progress(f"receiving {job.subject}", enabled=not context.json and not talks) as update:

            def content() -> Iterator[bytes]:
                done = len(taken)
                yield bytes(taken)
                while data := os.read(0, _STEP):
                    done += len(data)
                    update(min(done, begin.total), begin.total)
                    yield data

            job = asked.fill(job, content())
    except KeyboardInterrupt:
        common.say(
            f"wolun: receiving {job.subject} was cancelled; `wolun volume show {name}` tells how to go on", err=True
        )
        sys.exit(130)
    common.done(job, "receiving")
    _answer(context, there, f"received {name}@{begin.snapshot}", talks=talks)


def _tell(value: DataclassInstance) -> None:
    click.echo(json.dumps(codec.encode(value)))  # it flushes: the sender reads a line


def _answer(context: common.Context, there: messages.Identified, text: str, *, talks: bool) -> None:
    if talks:
        _tell(there)
    else:
        context.answer(there, lambda: text)


def _unusable(error: frames.StreamError) -> messages.Refusal:
    return messages.Refusal("not-a-stream", f"the stream cannot be received: {error}", "see the error of the sender")
