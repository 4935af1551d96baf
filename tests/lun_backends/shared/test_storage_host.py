# SPDX-License-Identifier: Apache-2.0
"""Three nodes at a real `wolun serve` with files on disk, which is killed with SIGKILL under load.

No recorder can look into that process.  But each writer writes one block after another, so a view that shows its n-th
write must show all earlier ones and no later one.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from target.configuration import settings
from target.service.shared_devices import Opener
from tests.daemon import IQN, Daemon
from tests.lun_backends.shared.rig import PATIENCE, Writer, content, stamp, wait

STORAGE = "write_once:\n  - {volume: archive, size: 4MiB, pool: 6}\n"
PRIMARY = "  - {name: archive, lun: 0, size: 4MiB}\n"


class Historian(Writer):
    """A writer that remembers all that it wrote, in order."""

    def __init__(self, *words: object) -> None:
        super().__init__(*words)  # type: ignore[arg-type]
        self.order: list[tuple[int, int]] = []  # (block, number)

    def write(self, blocks: list[int]) -> None:
        for block in blocks[:1]:
            self.order.append((block, self.count + 1))
            super().write([block])

    def check_view(self, view: bytes) -> int:
        """Check that a view shows a moment of this writer's past.  Return how many of its writes came before it."""
        shown = {int.from_bytes(view[block * 512 + 16 : block * 512 + 24]) for block, _ in self.order}
        last = max(shown)
        expected: dict[int, int] = {block: 0 for block, _ in self.order}
        expected.update((block, number) for block, number in self.order if number <= last)
        for block, number in expected.items():
            wanted = stamp(block, self.share, number) if number else bytes(512)
            assert view[block * 512 : (block + 1) * 512] == wanted, (block, number, last)
        return last


def test_the_storage_host_is_killed_under_load(tmp_path: Path) -> None:
    with contextlib.ExitStack() as closing:
        daemon = closing.enter_context(Daemon(tmp_path, PRIMARY, extra=STORAGE))
        primary = f"iscsi://{daemon.portal}/{IQN}/0"
        configured = settings.SharedVolume(name="archive", primary=primary, lun=1)
        opened = []
        for name in ("one", "two", "three"):
            opener = Opener(tmp_path)
            closing.callback(opener.close)
            owner = opener.open(configured, name, tmp_path)
            closing.callback(owner.close)
            opened.append(owner.shared)
        wait(lambda: all(node.status.state == "armed" for node in opened))
        writers = [Historian(node, share, 2, share) for share, node in enumerate(opened[:2])]
        for writer in writers:
            writer.start()
        before = []
        for number in range(4):
            before.append([writer.count - 1 for writer in writers])  # the last one may be under way
            opened[number % 3].create_snapshot(f"s{number}", timeout=PATIENCE)
            if number < 2:
                daemon.kill()
                daemon.start()
        for writer in writers:
            writer.finish()
        for node in opened:
            assert node.refresh(PATIENCE)
            for number, snapshot in enumerate(node.snapshots):
                view = content(node.view(snapshot.name))
                shown = [writer.check_view(view) for writer in writers]
                assert all(then <= last for then, last in zip(before[number], shown, strict=True))
            assert len(node.snapshots) == 4
