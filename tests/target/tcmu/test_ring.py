# SPDX-License-Identifier: Apache-2.0
"""The command ring of a TCMU device, on a region in memory in which the test plays the kernel's side."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest

from target.scsi.task import Status
from target.tcmu.ring import Ring, RingError, RingTask
from tests.target.tcmu import kernel_side
from tests.target.tcmu.kernel_side import KernelSide, Response

READ, WRITE, INQUIRY = 0x28, 0x2A, 0x12
SENSE = bytes(range(96))
ENTRY = kernel_side.ENTRY_SIZE + 16  # a command with a CDB of 10 or 16 bytes and at most four buffers


def cdb(opcode: int, second: int = 0) -> bytes:
    return bytes((opcode, second)).ljust(16, b"\0")


@pytest.fixture
def kernel() -> Iterator[KernelSide]:
    side = KernelSide()
    yield side
    side.close()


@pytest.fixture
def ring(kernel: KernelSide) -> Iterator[Ring]:
    opened = Ring(kernel.descriptor, kernel.length)
    yield opened
    opened.close()


def take_one(ring: Ring) -> RingTask:
    (task,) = ring.take()
    return task


def answer(ring: Ring, task: RingTask, status: int = Status.GOOD, sense: bytes = b"") -> None:
    task.status, task.sense = status, sense
    ring.complete((task,))


def ids(responses: Sequence[Response]) -> list[int]:
    return [response.command_id for response in responses]


class TestMailbox:
    """The checks of the region when a ring is opened."""

    @pytest.mark.parametrize(("version", "flags"), [(1, 7), (3, 7), (2, 0), (2, 1), (2, 2), (2, 6)])
    def test_ring_without_a_needed_ability_is_refused(self, version: int, flags: int) -> None:
        side = KernelSide(version=version, flags=flags)
        with pytest.raises(RingError, match=f"has version {version}, flags {flags:#x}; version 2"):
            Ring(side.descriptor, side.length)
        side.close()

    def test_task_management_is_not_needed(self) -> None:
        side = KernelSide(flags=3)
        assert Ring(side.descriptor, side.length).close() == ""
        side.close()

    def test_ring_begins_at_the_tail_that_a_predecessor_left(self) -> None:
        side = KernelSide(start=640)
        ring = Ring(side.descriptor, side.length)
        assert ring.idle
        side.put(4, cdb(READ), (0, 512))
        assert not ring.idle
        answer(ring, take_one(ring))
        assert ids(side.responses()) == [4]
        assert side.tail == 640 + ENTRY
        assert ring.close() == ""
        side.close()


class TestTake:
    """The tasks that `take` makes of entries."""

    def test_task_has_the_command_and_its_part_of_the_data_area(self, kernel: KernelSide, ring: Ring) -> None:
        assert ring.take() == ()
        kernel.fill(4096, b"data to write".ljust(512))
        kernel.put(7, cdb(WRITE, 3), (4096, 512))
        task = take_one(ring)
        assert (task.command_id, bytes(task.cdb), task.length, task.expected_in) == (7, cdb(WRITE, 3), 512, 512)
        assert b"".join(task.data_out) == b"data to write".ljust(512)
        assert not ring.take()
        answer(ring, task)

    def test_scatter_list_keeps_its_order(self, kernel: KernelSide, ring: Ring) -> None:
        kernel.fill(0, b"a" * 512 + b"b" * 512 + b"c" * 1024)
        kernel.put(1, cdb(WRITE), (512, 512), (0, 512), (1024, 1024))
        task = take_one(ring)
        assert b"".join(task.data_out) == b"b" * 512 + b"a" * 512 + b"c" * 1024
        assert task.length == 2048
        answer(ring, task)

    def test_command_without_data_has_no_buffers(self, kernel: KernelSide, ring: Ring) -> None:
        kernel.put(1, cdb(0x00))
        task = take_one(ring)
        assert (list(task.buffers), task.length, task.expected_in) == ([], 0, 0)
        answer(ring, task)
        assert kernel.responses() == [Response(1, 0, 0, 0, b"")]

    def test_reused_task_has_the_buffers_of_its_new_command(self, kernel: KernelSide, ring: Ring) -> None:
        kernel.fill(0, b"a" * 512 + b"b" * 512 + b"c" * 512)
        for command_id, buffers in enumerate(
            [[(0, 512)], [(0, 512)], [(512, 512)], [(512, 256)], [(0, 256), (1024, 256)], [(512, 512)]]
        ):
            kernel.put(command_id, cdb(WRITE), *buffers)
            task = take_one(ring)
            assert b"".join(task.data_out) == b"".join(kernel.data(*buffer) for buffer in buffers)
            answer(ring, task)
            kernel.responses()

    def test_variable_length_cdb_is_copied_whole(self, kernel: KernelSide, ring: Ring) -> None:
        long = bytes((0x7F, 0, 0, 0, 0, 0, 0, 24, *range(24)))
        kernel.put(1, long, (0, 512))
        task = take_one(ring)
        assert bytes(task.cdb) == long
        answer(ring, task)

    @pytest.mark.parametrize(("opcode", "second"), [(0x00, 0x1F), (0x03, 0x1F), (0x12, 0x1F), (0x28, 0xFF)])
    def test_lun_in_the_cdb_is_removed_from_commands_before_the_first_inquiry(
        self, kernel: KernelSide, ring: Ring, opcode: int, second: int
    ) -> None:
        kernel.put(1, cdb(opcode, 0xFF), (0, 512))
        task = take_one(ring)
        assert bytes(task.cdb) == cdb(opcode, second)
        answer(ring, task)

    def test_request_is_copied_before_another_response_overwrites_it(self, kernel: KernelSide, ring: Ring) -> None:
        kernel.fill(0, b"1" * 512 + b"2" * 512)
        kernel.put(1, cdb(WRITE, 1), (0, 512))
        kernel.put(2, cdb(WRITE, 2), (512, 512))
        first, second = ring.take()
        answer(ring, second, Status.CHECK_CONDITION, SENSE)
        assert ids(kernel.responses()) == [2]
        assert (first.command_id, bytes(first.cdb), b"".join(first.data_out)) == (1, cdb(WRITE, 1), b"1" * 512)
        answer(ring, first)
        assert ids(kernel.responses()) == [1]

    @pytest.mark.parametrize(
        ("length", "why"), [(0, "entry of 0 bytes"), (2048, "entry of 2048 bytes at 128 in a ring of 1024")]
    )
    def test_entry_of_an_impossible_length_is_an_error(
        self, kernel: KernelSide, ring: Ring, length: int, why: str
    ) -> None:
        kernel.put(1, cdb(READ))
        answer(ring, take_one(ring))
        kernel.put_header(kernel_side.COMMAND, ENTRY, claimed=length)
        with pytest.raises(RingError, match=why):
            ring.take()


class TestWithoutCommands:
    """Batches in which nothing is left for a caller to answer."""

    def test_pad_is_passed_without_a_caller(self, kernel: KernelSide, ring: Ring) -> None:
        kernel.pad(256)
        assert not ring.take()
        assert ring.idle
        assert (kernel.tail, kernel.kicks) == (256, 1)

    def test_task_management_of_ended_commands_is_passed(self, kernel: KernelSide, ring: Ring) -> None:
        kernel.manage(1, 2, 3)
        assert not ring.take()
        assert ring.idle
        assert kernel.kicks == 1

    def test_unknown_operation_is_marked_and_passed(self, kernel: KernelSide, ring: Ring) -> None:
        kernel.put_header(5, 64)
        kernel.put_header(7, 64)
        assert not ring.take()
        assert ring.idle
        assert [kernel.flags_at(at) for at in (0, 64)] == [kernel_side.UNKNOWN_OP_FLAG] * 2
        assert kernel.kicks == 1

    def test_pads_between_commands_take_no_response(self, kernel: KernelSide, ring: Ring) -> None:
        kernel.pad(64)
        kernel.put(1, cdb(READ))
        kernel.pad(64)
        kernel.put_header(6, 64)
        kernel.put(2, cdb(READ))
        kernel.pad(64)
        first, second = ring.take()
        answer(ring, second)
        assert ids(kernel.responses()) == [2]
        answer(ring, first)
        assert ids(kernel.responses()) == [1]
        assert ring.idle

    def test_pad_that_comes_while_a_command_runs_is_passed_with_its_answer(
        self, kernel: KernelSide, ring: Ring
    ) -> None:
        kernel.put(1, cdb(READ))
        task = take_one(ring)
        kernel.pad(64)
        assert not ring.take()
        assert (kernel.tail, kernel.kicks) == (0, 0)
        answer(ring, task)
        assert ring.idle
        assert kernel.kicks == 1


class TestTaskManagement:
    """Aborts, which the kernel only notes beside the commands."""

    def test_running_command_is_marked_and_still_answered(self, kernel: KernelSide, ring: Ring) -> None:
        for command_id in (1, 2, 3):
            kernel.put(command_id, cdb(READ))
        tasks = ring.take()
        kernel.manage(3, 9, 1)
        assert not ring.take()
        assert [task.aborted for task in tasks] == [True, False, True]
        ring.complete(tasks)
        assert ids(kernel.responses()) == [1, 2, 3]
        assert ring.idle

    def test_command_of_the_same_batch_is_marked(self, kernel: KernelSide, ring: Ring) -> None:
        kernel.put(1, cdb(READ))
        kernel.manage(1)
        task = take_one(ring)
        assert task.aborted
        answer(ring, task)

    def test_mark_does_not_stay_on_a_reused_task(self, kernel: KernelSide, ring: Ring) -> None:
        kernel.put(1, cdb(READ))
        kernel.manage(1)
        aborted = take_one(ring)
        answer(ring, aborted)
        kernel.put(1, cdb(READ))
        task = take_one(ring)
        assert task is aborted
        assert not task.aborted
        answer(ring, task)


class TestResponses:
    """The responses that `complete` writes."""

    def test_one_kick_publishes_all_responses_of_a_call(self, kernel: KernelSide, ring: Ring) -> None:
        for command_id in (5, 6, 7):
            kernel.put(command_id, cdb(READ))
        first, second, third = ring.take()
        ring.complete((third, first))
        assert ids(kernel.responses()) == [7, 5]
        assert kernel.kicks == 1
        ring.complete(())
        assert kernel.kicks == 1
        ring.complete((second,))
        assert ids(kernel.responses()) == [6]
        assert kernel.kicks == 2

    def test_error_carries_its_sense_data(self, kernel: KernelSide, ring: Ring) -> None:
        kernel.put(1, cdb(READ), (0, 512))
        answer(ring, take_one(ring), Status.CHECK_CONDITION, SENSE)
        assert kernel.responses() == [Response(1, 2, 0, 0, SENSE)]

    def test_whole_data_in_needs_no_length(self, kernel: KernelSide, ring: Ring) -> None:
        kernel.put(1, cdb(READ), (0, 512))
        task = take_one(ring)
        task.data_in = task.allocate(512)
        task.data_in[0][:] = b"r" * 512
        answer(ring, task)
        (response,) = kernel.responses()
        assert (response.flags, response.status) == (0, 0)
        assert kernel.data(0, 512) == b"r" * 512

    @pytest.mark.parametrize("status", [Status.GOOD, Status.CHECK_CONDITION])
    def test_short_data_in_tells_its_length(self, kernel: KernelSide, ring: Ring, status: int) -> None:
        kernel.put(1, cdb(INQUIRY), (0, 256), (512, 256))
        task = take_one(ring)
        task.data_in = task.allocate(300)
        for buffer in task.data_in:
            buffer[:] = b"i" * len(buffer)
        answer(ring, task, status, SENSE)
        (response,) = kernel.responses()
        assert (response.flags, response.read_len, response.status) == (kernel_side.READ_LEN_FLAG, 300, status)
        assert kernel.data(0, 256) + kernel.data(512, 44) == b"i" * 300

    def test_whole_data_in_with_an_error_tells_its_length(self, kernel: KernelSide, ring: Ring) -> None:
        kernel.put(1, cdb(READ), (0, 512))
        task = take_one(ring)
        task.data_in = task.allocate(512)
        answer(ring, task, Status.CHECK_CONDITION, SENSE)
        assert kernel.responses() == [Response(1, 2, kernel_side.READ_LEN_FLAG, 512, SENSE)]

    def test_data_beyond_the_announced_length_does_not_reach_the_initiator(
        self, kernel: KernelSide, ring: Ring
    ) -> None:
        kernel.fill(0, b"-" * 2048)
        kernel.put(1, cdb(READ), (0, 512), (512, 512))
        task = take_one(ring)
        task.data_in = task.allocate(1536)
        assert [len(buffer) for buffer in task.data_in] == [512, 512, 512]
        for buffer in task.data_in:
            buffer[:] = b"r" * len(buffer)
        answer(ring, task)
        (response,) = kernel.responses()
        assert (response.flags, kernel.data(0, 2048)) == (0, b"r" * 1024 + b"-" * 1024)

    def test_old_data_is_zeroed_if_there_is_no_data_in(self, kernel: KernelSide, ring: Ring) -> None:
        kernel.fill(0, b"secret of another initiator".ljust(1536, b"!"))
        kernel.put(1, cdb(INQUIRY), (0, 512), (1024, 512))
        answer(ring, take_one(ring))
        assert kernel.responses() == [Response(1, 0, 0, 0, b"")]
        assert kernel.data(0, 1536) == bytes(512) + b"!" * 512 + bytes(512)

    @pytest.mark.parametrize("opcode", [0x0A, 0x2A, 0xAA, 0x8A])
    def test_data_of_a_write_is_not_zeroed(self, kernel: KernelSide, ring: Ring, opcode: int) -> None:
        kernel.fill(0, b"w" * 512)
        kernel.put(1, cdb(opcode), (0, 512))
        answer(ring, take_one(ring))
        assert kernel.data(0, 512) == b"w" * 512

    def test_data_in_of_an_earlier_command_does_not_stay_on_a_reused_task(self, kernel: KernelSide, ring: Ring) -> None:
        kernel.put(1, cdb(READ), (0, 512))
        task = take_one(ring)
        task.data_in = task.allocate(512)
        answer(ring, task)
        kernel.fill(0, b"!" * 512)
        kernel.put(2, cdb(INQUIRY), (0, 512))
        answer(ring, take_one(ring))
        assert kernel.data(0, 512) == bytes(512)


class Runner:
    """Runs commands for `answer_alone`: reads fill their buffers with their number, all but reads are left to `take`.

    While a command runs, the kernel adds the next of `coming`.
    """

    def __init__(self, kernel: KernelSide, coming: Sequence[int] = ()) -> None:
        self._kernel = kernel
        self._coming = list(coming)
        self.ran: list[int] = []

    def __call__(self, memory: memoryview, at: int, buffers: Sequence[memoryview], length: int) -> bool:
        opcode, number = memory[at : at + 2]
        if opcode != READ:
            return False
        assert sum(map(len, buffers)) == length
        for buffer in buffers:
            buffer[:] = bytes([number]) * len(buffer)
        self.ran.append(number)
        if self._coming:
            read(self._kernel, self._coming.pop(0))
        return True


def read(kernel: KernelSide, number: int) -> None:
    """Add a READ with that number, whose data goes to block `number` of the data area."""
    kernel.put(number, cdb(READ, number), (512 * number, 512))


class TestAlone:
    """The short way for commands that come one at a time."""

    def test_command_is_answered_with_good_and_one_kick(self, kernel: KernelSide, ring: Ring) -> None:
        read(kernel, 3)
        runner = Runner(kernel)
        assert ring.answer_alone(runner, 0, 64) == 1
        assert (kernel.kicks, ring.idle, runner.ran) == (1, True, [3])
        (response,) = kernel.responses()
        assert (response.command_id, response.status, response.flags) == (3, 0, 0)
        assert kernel.data(3 * 512, 512) == b"\3" * 512
        assert ring.answer_alone(runner, 0, 64) == 0

    def test_next_command_is_answered_as_well_past_the_end_of_the_ring(self, kernel: KernelSide, ring: Ring) -> None:
        read(kernel, 1)
        runner = Runner(kernel, range(2, 31))
        answered = 0
        while not ring.idle:  # a turn is as long as the ring, or the kernel could not tell full from empty
            answered += ring.answer_alone(runner, 0, 7)
            kernel.responses()
        assert runner.ran == list(range(1, 31))
        assert (answered, kernel.kicks) == (30, 30)
        assert kernel.data(512, 30 * 512) == b"".join(bytes([number]) * 512 for number in range(1, 31))

    def test_no_more_commands_than_turns_are_answered(self, kernel: KernelSide, ring: Ring) -> None:
        read(kernel, 1)
        runner = Runner(kernel, [2, 3, 4])
        assert ring.answer_alone(runner, 0, 2) == 2
        assert ids(kernel.responses()) == [1, 2]
        assert ring.answer_alone(runner, 0, 2) == 2
        assert ids(kernel.responses()) == [3, 4]

    def test_command_that_is_not_run_is_left_to_take(self, kernel: KernelSide, ring: Ring) -> None:
        kernel.put(8, cdb(INQUIRY), (0, 512))
        assert ring.answer_alone(Runner(kernel), 5, 64) == 0
        assert (kernel.kicks, kernel.responses()) == (0, [])
        task = take_one(ring)
        assert (task.command_id, bytes(task.cdb)) == (8, cdb(INQUIRY))
        answer(ring, task)

    def test_nothing_runs_while_commands_are_left_to_complete(self, kernel: KernelSide, ring: Ring) -> None:
        kernel.put(1, cdb(INQUIRY), (0, 512))
        task = take_one(ring)
        read(kernel, 2)
        runner = Runner(kernel)
        assert ring.answer_alone(runner, 0, 64) == 0
        answer(ring, task)
        assert ring.answer_alone(runner, 0, 64) == 1
        assert ids(kernel.responses()) == [1, 2]

    @pytest.mark.parametrize("what", ["two commands", "two buffers", "no buffer", "pad", "task management"])
    def test_batch_that_is_no_single_plain_command_is_left_to_take(
        self, kernel: KernelSide, ring: Ring, what: str
    ) -> None:
        match what:
            case "two commands":
                read(kernel, 1)
                read(kernel, 2)
            case "two buffers":
                kernel.put(1, cdb(READ), (0, 512), (1024, 512))
            case "no buffer":
                kernel.put(1, cdb(READ))
            case "pad":
                kernel.pad(64)
                read(kernel, 1)
            case _:
                kernel.manage(1)
        runner = Runner(kernel)
        assert ring.answer_alone(runner, 3, 64) == 0
        assert (runner.ran, kernel.kicks) == ([], 0)
        ring.complete(ring.take())
        assert ring.idle

    def test_buffer_of_another_place_or_length_is_the_commands_own(self, kernel: KernelSide, ring: Ring) -> None:
        runner = Runner(kernel)
        expected = bytearray(4096)
        for number, offset, length in ((1, 0, 512), (2, 512, 512), (3, 512, 1024), (4, 0, 512), (5, 0, 512)):
            kernel.put(number, cdb(READ, number), (offset, length))
            assert ring.answer_alone(runner, 0, 64) == 1
            expected[offset : offset + length] = bytes([number]) * length
            assert kernel.data(0, 4096) == expected
            kernel.responses()


class TestClose:
    """The end of a ring."""

    def test_idle_ring_closes_without_a_word(self, kernel: KernelSide) -> None:
        ring = Ring(kernel.descriptor, kernel.length)
        read(kernel, 1)
        answer(ring, take_one(ring))
        read(kernel, 2)
        assert ring.answer_alone(Runner(kernel), 0, 64) == 1
        assert ring.close() == ""

    def test_running_command_is_named_and_its_late_answer_is_dropped(self, kernel: KernelSide) -> None:
        ring = Ring(kernel.descriptor, kernel.length)
        read(kernel, 1)
        task = take_one(ring)
        assert ring.close() == "1 commands still run"
        ring.complete((task,))
        assert (kernel.responses(), kernel.kicks) == ([], 0)
        task.buffers = task.data_out = ()

    def test_region_that_is_still_referred_to_stays_mapped(self, kernel: KernelSide) -> None:
        ring = Ring(kernel.descriptor, kernel.length)
        read(kernel, 1)
        task = take_one(ring)
        kept = task.data_out
        answer(ring, task)
        assert ring.close() == "its memory is still referred to"
        assert bytes(kept[0]) == bytes(512)


@pytest.mark.parametrize("ring_size", [1024, 1000, 4096, 65536])
@pytest.mark.parametrize("seed", range(4))
def test_each_command_gets_its_own_answer_once_in_any_order(ring_size: int, seed: int) -> None:
    """Commands of all shapes, answered in a random order for many turns of the ring."""
    dice = random.Random(seed)
    kernel = KernelSide(ring_size)
    ring = Ring(kernel.descriptor, kernel.length)
    runner = Runner(kernel)
    free = list(range(64))  # command ids; each has its own block of the data area
    sent: dict[int, int] = {}  # command id -> the status that it will get
    taken: list[RingTask] = []
    answered = 0

    def check(response: Response) -> None:
        command_id = response.command_id
        assert response.status == sent.pop(command_id)
        if not response.status:
            assert kernel.data(1024 * command_id, 512) == bytes([command_id]) * 512
        free.append(command_id)

    while answered < 2000 or sent:
        buffers = dice.choice([1, 1, 2, 8])
        while answered < 2000 and free and kernel.fits(buffers=buffers) and dice.random() < 0.6:
            command_id = free.pop(dice.randrange(len(free)))
            sent[command_id] = dice.choice([0, 0, 2, 8])
            size = 512 // buffers
            scatter = [(1024 * command_id + size * index, size) for index in range(buffers)]
            opcode = INQUIRY if sent[command_id] else READ
            kernel.put(command_id, cdb(opcode, command_id), *scatter)
            buffers = dice.choice([1, 1, 2, 8])
        ring.answer_alone(runner, 0, 64)
        taken += ring.take()
        dice.shuffle(taken)
        batch = [taken.pop() for _ in range(dice.randrange(len(taken) + 1))]
        for task in batch:
            command_id = task.command_id
            assert bytes(task.cdb)[1] & 0x1F == command_id & 0x1F
            task.status, task.sense = sent[command_id], SENSE
            if not task.status:
                task.data_in = task.allocate(512)
                for buffer in task.data_in:
                    buffer[:] = bytes([command_id]) * len(buffer)
        ring.complete(batch)
        for response in kernel.responses():
            check(response)
            answered += 1
    assert ring.idle
    batch.clear()
    del task, buffer
    assert ring.close() == ""
    kernel.close()
