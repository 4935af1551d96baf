# SPDX-License-Identifier: Apache-2.0
"""`wolun volume` against a real daemon."""

from __future__ import annotations

import json

import pytest

from tests import daemon

VOLUMES = "  - {name: vol0, lun: 0, size: 1MiB}\n"


def size(served: daemon.Daemon) -> int:
    return int(served.json("status")["volumes"][0]["size"])


def test_resize_enlarges_the_volume_and_names_the_next_steps(shared: daemon.Daemon) -> None:
    said = shared.run("volume", "resize", "vol0", "2MiB").stdout
    assert said.startswith("vol0 now has 2MiB; its snapshots keep their size\n")
    assert "change it to `size: 2MiB`" in said
    assert size(shared) == 2 << 20


def test_resize_answers_in_json(shared: daemon.Daemon) -> None:
    answer = json.loads(shared.run("volume", "resize", "vol0", "3MiB", "--json").stdout)
    assert (answer["name"], answer["size"]) == ("vol0", 3 << 20)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("vol1", "8MiB"), 1, "there is no volume vol1"),
        (("vol0", "512KiB"), 1, "vol0 was not resized"),
        (("vol0", "much"), 2, "'SIZE'"),
        (("vol0",), 2, "Missing argument 'SIZE'"),
    ],
)
def test_a_refused_resize_changes_nothing(
    shared: daemon.Daemon, words: tuple[str, ...], status: int, message: str
) -> None:
    before = size(shared)
    done = shared.run("volume", "resize", *words, check=False)
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr
    assert size(shared) == before
