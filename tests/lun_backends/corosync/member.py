# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.lun_backends.corosync.member NAME`: a node without devices, whose messenger obeys lines of standard input.

| line | answer |
| --- | --- |
| `add N` | adds a committed grain to the tracker |
| `want LOCK`, `release LOCK` | |
| `look LOCK` | JSON: members, problem, grains, whether this node may do that job, counts |
"""

from __future__ import annotations

import json
import sys
import uuid

import pyroaring

from lun_backends.cluster.trackers import Exchange, Known
from lun_backends.corosync.messenger import Messenger

VOLUME, LUN = uuid.UUID(int=1), uuid.UUID(int=2)


def main() -> int:
    """Obey until standard input ends."""
    grains = pyroaring.BitMap64()
    exchange = Exchange(VOLUME, sys.argv[1], 4096, lambda: Known(LUN, grains, 1 << 20))
    messenger = Messenger(VOLUME, exchange, every=0.1)
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "add":
            grains.add(int(rest))
        elif word == "want":
            messenger.want(rest)
        elif word == "release":
            messenger.release(rest)
        status = messenger.status
        answer = {
            "members": status.members,
            "problem": status.problem,
            "grains": list(grains),
            "mine": messenger.may_do(rest),
            "sent": status.trackers.sent_messages,
            "taken": status.trackers.taken_messages,
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    messenger.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
