# SPDX-License-Identifier: Apache-2.0
"""A block device over another one, which fails on demand and otherwise keeps the contract.

`fail("writev", MediumError(…), offset=…, length=…)` lets calls that touch the range fail; `times` bounds their number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lun_backends import block_device
from lun_backends.block_device import Buffers, Extent


@dataclass
class _Rule:
    method: str
    error: block_device.BlockDeviceError
    start: int
    end: int
    times: int


class FaultyDevice(block_device.BlockDevice):
    """The device `under` with rules for failures."""

    def __init__(self, under: block_device.BlockDevice) -> None:
        self.under = under
        self.size = under.size
        self.block_size = under.block_size
        self.read_only = under.read_only  # type: ignore[misc] # a class variable elsewhere, that of the device under this one here
        self.write_once = under.write_once  # type: ignore[misc] # likewise
        self._rules: list[_Rule] = []

    def fail(
        self,
        method: str,
        error: block_device.BlockDeviceError,
        *,
        offset: int = 0,
        length: int = 1 << 62,
        times: int = 1 << 62,
    ) -> None:
        """Let calls of `method` that touch the range raise `error`."""
        self._rules.append(_Rule(method, error, offset, offset + length, times))

    def heal(self) -> None:
        """Forget all rules."""
        self._rules.clear()

    def _meet(self, method: str, offset: int = 0, length: int = 1) -> None:
        for rule in self._rules:
            if rule.method == method and rule.times and offset < rule.end and offset + length > rule.start:
                rule.times -= 1
                raise rule.error

    def readv(self, offset: int, buffers: Buffers) -> None:
        self._meet("readv", offset, block_device.total_length(buffers))
        self.under.readv(offset, buffers)

    def read_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        self._meet("readv", offset, length)
        return self.under.read_now(offset, length, buffers)

    def writev(self, offset: int, buffers: Buffers, *, fua: bool = False) -> None:
        self._meet("writev", offset, block_device.total_length(buffers))
        self.under.writev(offset, buffers, fua=fua)

    def write_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        self._meet("writev", offset, length)
        return self.under.write_now(offset, length, buffers)

    def write_zeroes(self, offset: int, length: int, *, discard: bool, fua: bool = False) -> None:
        self._meet("write_zeroes", offset, length)
        self.under.write_zeroes(offset, length, discard=discard, fua=fua)

    def flush(self) -> None:
        self._meet("flush")
        self.under.flush()

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._meet("extents", offset, length)
        return self.under.extents(offset, length)

    def close(self) -> None:
        self.under.close()

    def prepare_writes(self, ranges: Sequence[tuple[int, int]]) -> None:
        self.under.prepare_writes(ranges)

    def prepare_now(self, ranges: Sequence[tuple[int, int]]) -> bool:
        return self.under.prepare_now(ranges)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[block_device.BlockDevice]:
        with self.under.exclusive() as held:
            yield held
