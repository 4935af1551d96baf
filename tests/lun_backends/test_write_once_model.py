# SPDX-License-Identifier: Apache-2.0
"""A write-once LUN, compared with a dictionary: any sequence of writes, reads, batches, flushes and reopenings."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lun_backends import block_device, write_once
from lun_backends.durability import Durability
from lun_backends.stores import contract
from tests.lun_backends import store_factory

SIZES = st.sampled_from([(512, 4096), (4096, 4096), (4096, 8192), (512, 8192)])
CHUNKS = 6


class WriteOnceModel(RuleBasedStateMachine):
    """The operations on a LUN; `model` maps the LBA of a written block to its content."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name)
        self.model: dict[int, bytes] = {}
        self.seed = 0
        self.lun: write_once.WriteOnce | None = None

    @property
    def device(self) -> write_once.WriteOnce:
        assert self.lun is not None
        return self.lun

    @initialize(sizes=SIZES, durability=st.sampled_from(Durability), cut=st.integers(0, 1))
    def create(self, sizes: tuple[int, int], durability: Durability, cut: int) -> None:
        self.block_size, chunk_size = sizes
        self.durability = durability
        self.blocks = CHUNKS * chunk_size // self.block_size - cut * (chunk_size // self.block_size > 1)
        size = self.blocks * self.block_size
        self.lun = store_factory.create(
            self.path, size=size, block_size=self.block_size, chunk_size=chunk_size, durability=durability
        )

    def fresh(self, blocks: int) -> list[memoryview]:
        self.seed += 1
        return store_factory.data(self.seed, blocks, self.block_size)

    def range(self, at: float, length: float) -> tuple[int, int]:
        first = min(int(at * self.blocks), self.blocks - 1)
        return first, 1 + int(length**2 * (self.blocks - first - 1))

    def expect(self, first: int, buffers: list[memoryview], error: block_device.BlockWritten | None) -> None:
        content = b"".join(buffers)
        blocks = len(content) // self.block_size
        taken = next((lba for lba in range(first, first + blocks) if lba in self.model), None)
        assert (error and error.lba) == taken
        if error is None:
            for index in range(blocks):
                self.model[first + index] = content[index * self.block_size : (index + 1) * self.block_size]

    @rule(at=st.floats(0, 1), length=st.floats(0, 1), zeroes=st.booleans())
    def write(self, at: float, length: float, zeroes: bool) -> None:
        first, blocks = self.range(at, length)
        buffers = [memoryview(bytes(blocks * self.block_size))] if zeroes else self.fresh(blocks)
        error = None
        try:
            if zeroes:
                self.device.write_zeroes(first * self.block_size, blocks * self.block_size, discard=False)
            else:
                self.device.writev(first * self.block_size, buffers)
        except block_device.BlockWritten as written:
            error = written
        self.expect(first, buffers, error)

    @rule(places=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=5))
    def put_many(self, places: list[tuple[float, float]]) -> None:
        ranges = [self.range(at, length) for at, length in places]
        requests = [(first, self.fresh(blocks)) for first, blocks in ranges]
        answers = self.device.put_many((first * self.block_size, buffers) for first, buffers in requests)
        for (first, buffers), answer in zip(requests, answers, strict=True):
            self.expect(first, buffers, answer)

    @rule(at=st.floats(0, 1), length=st.floats(0, 1))
    def read(self, at: float, length: float) -> None:
        first, blocks = self.range(at, length)
        blank = next((lba for lba in range(first, first + blocks) if lba not in self.model), None)
        try:
            content = store_factory.read(self.device, first, blocks)
        except block_device.BlankBlock as error:
            assert error.lba == blank
        else:
            assert blank is None
            assert content == b"".join(self.model[lba] for lba in range(first, first + blocks))

    @rule()
    def flush(self) -> None:
        self.device.flush()

    @rule()
    def reopen(self) -> None:
        self.device.close()
        self.lun = store_factory.reopen(self.path, self.durability)

    @precondition(lambda self: self.lun is not None)
    @invariant()
    def the_same_everywhere(self) -> None:
        device = self.device
        assert device.written_bytes() == len(self.model) * self.block_size
        at = 0
        for extent in device.extents(0, device.size):
            assert extent.offset == at
            at += extent.length
            written = extent.kind is block_device.ExtentKind.DATA
            for lba in range(extent.offset // self.block_size, at // self.block_size):
                assert (lba in self.model) == written
        assert at == device.size
        assert contract.Verdict.DAMAGED not in {report.verdict for report in device.verify()}

    def teardown(self) -> None:
        if self.lun is not None:
            self.lun.close()
        self.directory.cleanup()


TestWriteOnceModel = WriteOnceModel.TestCase
TestWriteOnceModel.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
