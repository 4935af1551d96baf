# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.simulate.figures`: print the figures of lun_backends/cluster/README.md, and draw its plot.

All of it is simulated, so it is the same on every machine.
"""

from __future__ import annotations

import collections
import statistics
import sys
from pathlib import Path

from lun_backends.cluster import actions, node
from tests.simulate import locking, sharing
from tests.simulate.wires import Host, Task
from tests.simulate.world import World

PLOT = Path(__file__).parents[2] / "lun_backends" / "cluster" / "first_writes.svg"
AT_DEVICES = (actions.ReadPrimary, actions.WritePrimary, actions.Put, actions.Get, actions.ReadLog)
WAYS = (
    ("none", sharing.Load()),
    ("riding on lock messages", sharing.Load(riding=True)),
    ("asynchronous, every 100 ms", sharing.Load(every=0.1)),
    ("both", sharing.Load(riding=True, every=0.1)),
)


class Counting(World):
    """A calm world that counts what writes ask for."""

    def __init__(self, nodes: int, *, exclusive: bool) -> None:
        """Let that many nodes join, with 8h or 7h."""
        self.asked: collections.Counter[str] = collections.Counter()
        seed = next(seed for seed in range(100) if World(seed, calm=1).exclusive is exclusive)
        super().__init__(seed, calm=nodes)

    def _do(self, host: Host, task: Task, action: object) -> None:
        if task.awaited:
            kind = (
                "device"
                if isinstance(action, AT_DEVICES)
                else "wait"
                if isinstance(action, actions.WaitForGate)
                else "message"
            )
            self.asked[kind] += 1
        super()._do(host, task, action)


def messages_per_write(nodes: int, *, exclusive: bool) -> tuple[float, float, float]:
    """Return messages to other nodes per write, device commands per first write, and per later write."""
    world = Counting(nodes, exclusive=exclusive)
    world.go(5)
    world.ask(world.hosts[0], node.taking(world.volume))
    world.go(5)
    counts = []
    for _ in range(2):
        world.asked.clear()
        for number, host in enumerate(world.hosts[:2]):
            world.write(host, number)
        world.go(5)
        counts.append((world.asked["message"], world.asked["device"]))
    writers = len(world.hosts[:2])
    return sum(messages for messages, _ in counts) / (2 * writers), counts[0][1] / writers, counts[1][1] / writers


def main() -> int:
    """Print the tables as Markdown, and draw the plot."""
    out = sys.stdout.write
    out("| nodes | synchronous messages per write | device commands per first write, 8h and 7h | per later write |\n")
    out("| --- | --- | --- | --- |\n")
    for nodes in (1, 2, 3, 4, 8, 16, 32, 64):
        messages, first, later = messages_per_write(nodes, exclusive=True)
        more, first_7h, later_7h = messages_per_write(nodes, exclusive=False)
        out(f"| {nodes} | {messages + more:g} | {first:g}, {first_7h:g} | {max(later, later_7h):g} |\n")
    out(
        "\n| trackers travel | first writes | futile | share | messages with a tracker | bytes of each |\n| --- | --- | --- | --- | --- | --- |\n"
    )
    for name, load in WAYS:
        result = sharing.run(load)
        size = result.message_bytes / result.messages if result.messages else 0
        out(
            f"| {name} | {result.first_writes:,} | {result.futile:,} | {result.share:.2%} | {result.messages:,} | {size:.0f} |\n"
        )
    out(
        "\n| nodes | here, mean and 99 % | locked map, mean and 99 % | ratio of the means |\n| --- | --- | --- | --- |\n"
    )
    bars = []
    for nodes in (2, 8, 32):
        here, locked = (locking.first_writes(nodes, locked=way) for way in (False, True))
        bars.append((nodes, statistics.mean(here), statistics.mean(locked)))
        columns = [
            f"{statistics.mean(way) * 1e3:.2f} ms, {way[len(way) * 99 // 100] * 1e3:.2f} ms" for way in (here, locked)
        ]
        out(f"| {nodes} | {columns[0]} | {columns[1]} | {bars[-1][2] / bars[-1][1]:.1f} |\n")
    PLOT.write_text(draw(bars), encoding="utf-8")
    return 0


def draw(bars: list[tuple[int, float, float]]) -> str:
    """Return an SVG with two bars for each number of nodes: the mean latency here and with the locked map, in seconds."""
    width, height, base, left = 480, 300, 250, 60
    top = max(max(here, locked) for _, here, locked in bars)
    parts = [
        "<!-- SPDX-License-Identifier: Apache-2.0 -->",
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{width // 2}" y="20" text-anchor="middle">Mean latency of a first write (simulated)</text>',
        f'<line x1="{left}" y1="{base}" x2="{width - 20}" y2="{base}" stroke="black"/>',
    ]
    for at, (nodes, here, locked) in enumerate(bars):
        x = left + 20 + at * 130
        for offset, seconds, colour in ((0, here, "#2a7f62"), (45, locked, "#c05746")):
            tall = round(seconds / top * 190)
            parts.append(f'<rect x="{x + offset}" y="{base - tall}" width="40" height="{tall}" fill="{colour}"/>')
            parts.append(
                f'<text x="{x + offset + 20}" y="{base - tall - 5}" text-anchor="middle">{seconds * 1e3:.1f}</text>'
            )
        parts.append(f'<text x="{x + 42}" y="{base + 18}" text-anchor="middle">{nodes} nodes</text>')
    parts.append(f'<text x="12" y="{base - 90}" transform="rotate(-90 12 {base - 90})" text-anchor="middle">ms</text>')
    for at, (name, colour) in enumerate((("write-once LUN", "#2a7f62"), ("map below a cluster-wide lock", "#c05746"))):
        parts.append(f'<rect x="{left + 20 + at * 150}" y="{base + 30}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{left + 38 + at * 150}" y="{base + 41}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
