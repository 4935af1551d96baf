# SPDX-License-Identifier: Apache-2.0
"""Two processes that put the same chunks into one store at the same time: one winner each, and its content whole.

`WOLUN_RACE_ROUNDS` says how many chunks; `make races` takes 10,000.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

from tests.lun_backends.stores import kinds

ROUNDS = int(os.environ.get("WOLUN_RACE_ROUNDS", "64"))
_TOGETHER = 16
CHILD = """
import sys, uuid
from pathlib import Path
from tests.lun_backends.stores import kinds, race
race.child(*sys.argv[1:])
"""


def run(kind: str, place: Path, rounds: int) -> None:
    """Let two processes race for `rounds` chunks of a new store.  The kind must be one that processes can share."""
    of = kinds.ALL[kind]
    stores = of.stores(place)
    stores.check(new=True)
    store = kinds.create(stores, kinds.geometry(of, rounds))
    arguments = [kind, str(place), of.address(), str(store.snapshot), str(rounds)]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments, str(own)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for own in range(2)
    ]
    won: list[list[int]] = [[], []]
    for first in range(0, rounds, _TOGETHER):
        for child in children:
            assert child.stdin is not None
            child.stdin.write(f"{first}\n")
            child.stdin.flush()
        for own, child in enumerate(children):
            assert child.stdout is not None
            won[own] += [int(number) for number in child.stdout.readline().split()]
    for child in children:
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(30) == 0
    assert sorted(won[0] + won[1]) == list(range(rounds))
    for own in range(2):
        for number in won[own]:
            content = kinds.read(store, number * of.chunk_size, of.chunk_size)
            assert content == kinds.data(own * rounds + number, of.chunk_size)
    store.close()
    stores.close()


def child(kind: str, place: str, address: str, snapshot: str, rounds: str, own: str) -> None:
    """Put the chunks whose numbers come in, and say which of them were stored."""
    of = kinds.ALL[kind]
    stores = of.connect(Path(place), address)
    store = kinds.reopen(stores, uuid.UUID(snapshot))
    for line in sys.stdin:
        numbers = range(int(line), min(int(line) + _TOGETHER, int(rounds)))
        size = of.chunk_size
        requests = [(number * size, kinds.data(int(own) * int(rounds) + number, size)) for number in numbers]
        results = kinds.put_many(store, requests)
        stored = [str(number) for number, is_stored in zip(numbers, results, strict=True) if is_stored]
        sys.stdout.write(" ".join(stored) + "\n")
        sys.stdout.flush()
    store.close()
    stores.close()
