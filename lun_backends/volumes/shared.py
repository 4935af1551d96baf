# SPDX-License-Identifier: Apache-2.0
"""A volume on storage that several nodes share: the primary and a snapshot's write-once LUN, stacked on one node.

    writer: volume                  any node: view
            |         \\                      |      \\  (blank, or look again)
            v          v (pre-images)        v       v
         primary    write-once LUN     write-once   primary

No node talks to another.  The write-once LUN decides which node preserved a chunk first (lun_backends.copy_on_write),
and the view asks it again after each read of the primary (lun_backends.snapshot_view).  A node learns which chunks are
preserved as it writes.  After a restart it knows of none, and its first copies are futile and harmless.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Self

from lun_backends import block_device, copy_on_write, flat, remote, snapshot_view, view_chain
from lun_backends.block_device import Buffers


class RemoteView(snapshot_view.SnapshotView):
    """A view on remote devices: every read waits for the network, so `read_now` never reads."""

    def read_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        return False


class Shared:
    """The stack on one node.  `volume` is None on a node that only reads; `view` shows the moment of the snapshot.

    It owns `primary` and `write_once`: `close` closes them.
    """

    def __init__(
        self, primary: block_device.BlockDevice, write_once: remote.RemoteWriteOnce, *, chunk_size: int | None
    ) -> None:
        self._closing = contextlib.ExitStack()
        self._closing.callback(write_once.close)
        self._closing.callback(primary.close)
        self.volume: copy_on_write.CopyOnWrite | None = None
        if chunk_size is not None:
            self.volume = copy_on_write.CopyOnWrite(primary, chunk_size)
            self._closing.callback(self.volume.close)
            self.volume.arm(write_once)
        self.view = RemoteView(primary, view_chain.Chain([write_once]), write_once)
        self._closing.callback(self.view.close)

    @classmethod
    def open(cls, primary: Path, write_once: Path, *, block_size: int, chunk_size: int | None) -> Self:
        """Open both block devices, read-only if `chunk_size` is None, and stack them.

        Raises backing_file.CannotOpen.
        """
        reader = chunk_size is None
        with contextlib.ExitStack() as undo:
            side = remote.RemoteWriteOnce(write_once, block_size=block_size, read_only=reader)
            undo.callback(side.close)
            device = flat.Flat(primary, block_size=block_size, direct=True, read_only=reader, size=side.size)
            undo.callback(device.close)
            stack = cls(device, side, chunk_size=chunk_size)
            undo.pop_all()
            return stack

    def close(self) -> None:
        """Close the view, the volume and both devices."""
        self._closing.close()
