# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.lun_backends.shared.child`: nodes in processes of their own, each of which kills itself with SIGKILL.

Each line of standard input is an order, as JSON: the portal, the LUNs of the pool, the node's name, a job (`take NAME`,
`delete NAME`, `rollback NAME`), and `after`, the number of commands of that job that it may send.  A fork carries the
order out.  The answers on standard output are `pid NUMBER`, then `killed`, or `done` if the job had fewer commands.
The job `load SECONDS` writes to the odd blocks; before `done`, it says as JSON what it wrote last to each block.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from typing import Any

from lun_backends.initiator import libiscsi
from tests.lun_backends.initiator.serving import TARGET
from tests.lun_backends.shared import rig


class FarArray:
    """The array, as another process sees it."""

    def __init__(self, portal: str, luns: list[str]) -> None:
        self.portal = portal
        self.luns = {uuid.UUID(lun): None for lun in luns}
        self.hidden: set[tuple[str, uuid.UUID]] = set()

    def address(self, lun: uuid.UUID | int, _through: str = "") -> str:
        number = lun if isinstance(lun, int) else rig.POOL_AT + list(self.luns).index(lun)
        return f"iscsi://{self.portal}/{TARGET}/{number}"

    @staticmethod
    def initiator(name: str, port: int = 0) -> libiscsi.Initiator:
        return libiscsi.Initiator(name, port=port)


class Fuse:
    """Kills the process instead of letting it send one command more than it may."""

    def __init__(self, left: int) -> None:
        self.left = left

    def on(self, command: Callable[..., Any]) -> Callable[..., Any]:
        """Return the command with this fuse in front."""

        def burn(*words: Any, **options: Any) -> Any:
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            return command(*words, **options)

        return burn


def carry_out(order: dict[str, Any]) -> None:
    array = FarArray(order["portal"], order["luns"])
    node = rig.open_node(array, order["node"])
    rig.wait(lambda: node.status.state == "armed")
    fuse = Fuse(order["after"])
    job, name = order["job"].split()
    if job == "load":
        writer = rig.Writer(node, 1, 2, seed=1)
        writer.start()
        time.sleep(float(name))
        writer.finish()
        node.close()
        sys.stdout.write(json.dumps(writer.written) + "\n")
        sys.stdout.flush()
    elif job == "take":
        node._driver._command = fuse.on(node._driver._command)  # type: ignore[method-assign]
        node.create_snapshot(name)
    elif job == "rollback":
        node.primary.writev = fuse.on(node.primary.writev)  # type: ignore[method-assign]
        node.rollback(name)
    else:
        for lun in [snapshot.lun for snapshot in node.snapshots]:
            assert node._driver.lun(lun) is not None
            disk = node.pool.opened[lun]
            disk.writev = fuse.on(disk.writev)  # type: ignore[method-assign]
        node.delete_snapshot(name)


def main() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            try:
                carry_out(json.loads(line))
            except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        sys.stdout.write(f"pid {pid}\n")
        sys.stdout.flush()
        _, status = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        sys.stdout.write("killed\n" if killed else "done\n" if not status else f"failed {status}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
