# SPDX-License-Identifier: Apache-2.0
"""Does a fence wait for the write that another initiator has in flight?  A row of the table in lun_backends/cluster/README.md.

The primary is a volume of wolun behind the kernel's target (`fabric: lio`).  The recorder holds the write before it
reaches the medium.  A fence that has not ended after PATIENCE seconds waits for the write; then the write is let go.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from tests.kernel.guest_daemon import GuestDaemon
from tests.kernel.lab import CHECKOUT
from tests.kernel.machine import Completed, Machine
from tests.kernel.sessions import Session

PORT = 3267
PATIENCE = 5  # seconds; a fence that waits for nothing takes less than one, on an emulated processor
_MEDIUM = "/run/medium"
_RECORDING = f"env PYTHONPATH={CHECKOUT} {CHECKOUT}/.venv/bin/python -m tests.kernel.recorder"
_SERVED = f"""
target: iqn.2026-11.io.wolun:tcmu
fabric: lio
lio: {{listen: "0.0.0.0:{PORT}"}}
access: {{networks: [10.9.0.0/24]}}
volumes:
  - {{name: vol0, lun: 0, size: 16MiB, primary: {_MEDIUM}/image}}
"""


@dataclass(frozen=True)
class Fence:
    """The steps of two initiators: the keys of writer and taker, then `before` the write and `behind` it.

    The steps are the taker's: `new` registers key c instead of its own, `preempt KEY` and `abort KEY` are PREEMPT and
    PREEMPT AND ABORT of that service key with its present one, `reset` is LOGICAL UNIT RESET.
    """

    type: int
    keys: str  # of the writer, and of the taker
    before: tuple[str, ...]
    behind: tuple[str, ...]
    waits: bool | None = None  # what was measured for a volume behind `fabric: lio`

    def __str__(self) -> str:
        keys = "one key" if self.keys[0] == self.keys[1] else "a key each"
        return f"{self.type}h, {keys}: {', '.join((*self.before, 'WRITE', *self.behind))}"


@dataclass(frozen=True)
class Seen:
    """The outcome of a fence."""

    waited: bool
    write_succeeded: bool
    applied: bool  # the write is on the medium in the end


class Target:
    """The storage host, and two sessions on another machine."""

    def __init__(self, machine: Machine, node: Machine) -> None:
        self.machine, self.node = machine, node
        machine.run(f"mkdir -p {_MEDIUM} && truncate -s 16M {_MEDIUM}/image")
        self.daemon = GuestDaemon(machine, _SERVED, name="tcmu")
        self.daemon.start(program=_RECORDING)
        self.writer, self.taker, self.helper = (
            Session.open(node, f"iqn.2026-11.test.lab:{name}", f"target:{PORT}") for name in ("hand", "take", "help")
        )

    def close(self) -> None:
        """Log out and end the daemon."""
        for session in (self.writer, self.taker, self.helper):
            session.close()
        self.daemon.stop()

    def on_medium(self) -> bool:
        """Return whether the write is on the medium."""
        return self.machine.output(f"head -c 1 {_MEDIUM}/image | tr '\\0' -") == "o"

    def hold(self) -> None:
        """Clear the block, and let no write reach the medium."""
        self.machine.run(f"cd {_MEDIUM}; dd if=/dev/zero of=image bs=4096 count=1 conv=notrunc status=none; touch hold")

    def begin_write(self) -> Future[Completed]:
        """Begin the writer's write, and return when it is held."""
        self.machine.run(f"rm -f {_MEDIUM}/held")
        write = self.writer.write("o")
        self.machine.wait_until(f"[ -e {_MEDIUM}/held ]")
        return write

    def let_go(self) -> None:
        """Let the write reach the medium."""
        self.machine.run(f"rm {_MEDIUM}/hold")

    def see(self, fence: Fence) -> Seen:
        """Carry a fence out."""
        self._clear()
        own = fence.keys[1]
        reserve = f"--prout-type={fence.type}"
        self.node.run(
            f"{self.writer.reserve_out('--register-ignore', f'--param-sark={fence.keys[0]}')}\n"
            f"{self.taker.reserve_out('--register-ignore', f'--param-sark={own}')}\n"
            f"{self.taker.reserve_out('--reserve', f'--param-rk={own}', reserve)}"
        )
        script: dict[bool, list[str]] = {False: ["set -e"], True: ["set -e"]}
        for behind, steps in ((False, fence.before), (True, fence.behind)):
            for step in steps:
                match step.split():
                    case ["new"]:
                        words = self.taker.reserve_out("--register", f"--param-rk={own}", "--param-sark=c")
                        own = "c"
                    case ["preempt" | "abort" as how, key]:
                        option = "--preempt" if how == "preempt" else "--preempt-abort"
                        words = self.taker.reserve_out(option, f"--param-rk={own}", f"--param-sark={key}", reserve)
                    case _:
                        words = f"sg_reset --no-esc --device {self.taker.disk}"
                script[behind].append(words)
        self.node.run("\n".join(script[False]))
        self.hold()
        write = self.begin_write()
        return self._end(write, [self.node.submit("\n".join(script[True]))])

    def see_two(self) -> Seen:
        """Carry out the fence of wolun's nodes, and that of a second one while the first one waits."""
        self._clear()
        for session in (self.writer, self.taker, self.helper):
            self.node.run(session.reserve_out("--register-ignore", "--param-sark=a"))
        self.node.run(self.taker.reserve_out("--reserve", "--param-rk=a", "--prout-type=8"))
        self.hold()
        write, resets = self.begin_write(), []
        for session in (self.taker, self.helper):
            self.node.run(
                f"{session.reserve_out('--register-ignore', '--param-sark=a')} && "
                + session.reserve_out("--preempt", "--param-rk=a", "--param-sark=0", "--prout-type=8")
            )
            resets.append(self.node.submit(f"sg_reset --no-esc --device {session.disk}"))
        return self._end(write, resets)

    def _clear(self) -> None:
        """End the reservation, and all registrations."""
        register = self.taker.reserve_out("--register-ignore", "--param-sark=f")
        self.node.run(f"{register} && {self.taker.reserve_out('--clear', '--param-rk=f')}")

    def _end(self, write: Future[Completed], fences: list[Future[Completed]]) -> Seen:
        """Wait until the fences have ended, and let the write go if they wait for it."""
        self.node.run(f"read -t {PATIENCE} -u 9 9<> <(:)", check=False)
        waited = [not fence.done() for fence in fences]
        self.let_go()
        for fence, did_wait in zip(fences, waited, strict=True):
            ended = fence.result()
            assert ended.code == 0, ended.output
            assert not did_wait or self.on_medium(), "a fence waited, and ended before the write"
        return Seen(all(waited), write.result().code == 0, self.on_medium())


OURS = Fence(8, "aa", (), ("preempt 0", "reset"), True)
FENCES = (
    Fence(5, "aa", ("new",), ("abort a",)),
    Fence(5, "aa", (), ("abort a",)),
    Fence(5, "ab", (), ("abort a",)),
    Fence(7, "aa", ("new",), ("abort a",)),
    Fence(7, "aa", ("new",), ("abort 0",)),
    Fence(7, "aa", (), ("new", "abort 0")),
    Fence(7, "aa", (), ("abort 0",)),
    Fence(7, "ab", (), ("abort 0",)),
    Fence(7, "ab", (), ("new", "abort 0")),
    Fence(8, "aa", (), ("preempt 0",)),
    OURS,
)
