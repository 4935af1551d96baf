# SPDX-License-Identifier: Apache-2.0
"""The command ring of one TCMU device (Linux: Documentation/target/tcmu-design.rst, include/uapi/linux/target_core_user.h).

The kernel shares one region through a UIO device: mailbox, command ring, data area.  The daemon maps it once.

| offset        | content                                                                                     |
| ------------- | ------------------------------------------------------------------------------------------- |
| 0             | u16 version, u16 flags, u32 cmdr_off, u32 cmdr_size, u32 cmd_head (the kernel's)             |
| 64            | u32 cmd_tail (ours)                                                                         |
| cmdr_off      | the ring: entries of variable length, wrapped at cmdr_size; a PAD entry fills the end         |
| … to the end  | the data area: the scatter lists of the entries point into it, as offsets from the mailbox   |

Three rules may surprise:

* Commands may be answered out of order: the *slot* at the tail takes the response of *any* command, named by its id.
  So an answer may overwrite the request of another command that still runs, and `take` copies all parts of a request
  that are needed later.  Answers do not touch the data area, so a scatter list stays valid until its command is
  answered.
* A response says how much of its data-in is valid (READ_LEN).  But the kernel ignores a length of 0, and would hand the
  initiator the data that an earlier command left in the data area.  So such data is zeroed.
* A task management entry is only a note about other commands, which still must be answered.

`take` is for one thread, `complete` for any.  Each call of `complete` publishes its answers together, and notifies the
kernel once.

With one command in flight, the initiator waits for the time between two system calls.  So the usual entry and the usual
answer (GOOD) have short paths of their own.  The usual entry has one buffer, often that of the task object's last
command.
"""

from __future__ import annotations

import gc
import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterable, Sequence

from target.scsi.task import Task

MAILBOX_VERSION = 2
CAP_OUT_OF_ORDER = 0x1
CAP_READ_LEN = 0x2

OP_MASK = 0x7
OP_PAD, OP_CMD, OP_TMR = 0, 1, 2
UFLAG_UNKNOWN_OP = 0x1
UFLAG_READ_LEN = 0x2
UFLAGS_OFFSET = 7  # in an entry's header

HEAD_WORD = 3  # cmd_head and cmd_tail, as indexes of 32-bit words
TAIL_WORD = 16
STATUS_WORD = 2  # in an entry: iov_cnt in a request; status (GOOD is 0) and padding in a response
IOV_OFFSET = 48
CDB_LENGTH = 16
VARIABLE_LENGTH_CDB = 0x7F  # SPC-4 4.2.4: 8 bytes, and as many more as byte 7 says
SENSE_LENGTH = 96

_MAILBOX = struct.Struct("=HHIII")
_REQUEST = struct.Struct("=4xH2xI12xQ16xQQ")  # id, iov_cnt, cdb_off, and base and length of the first buffer
_SHORT = struct.Struct("=I4xI12xQ16xQQ").unpack_from  # len_op, iov_cnt, cdb_off; base and length of the first buffer
_RESPONSE = struct.Struct(f"=IHBBBxxxI{SENSE_LENGTH}s")  # len_op, id, kflags, uflags, status, read_len, sense
_GOOD = struct.Struct("=IHBBBxxxI")  # the same without sense data, which the kernel does not read with GOOD
_TMR = struct.Struct("=IHBBBxxxI")  # len_op, id, kflags, uflags, type, cmd_cnt
_TMR_IDS = 32
_IOV = struct.Struct("=QQ")
_KICK = b"\0\0\0\0"

# Until a target has answered its first INQUIRY, Linux takes it for a SCSI-2 device, and puts the LUN into the CDB, too.
# With tcm_loop, that LUN arrives here if the first LUN is not 0.
SCSI2_LUN = 0xE0  # in byte 1
_BEFORE_INQUIRY = frozenset({0x00, 0x03, 0x12})  # TEST UNIT READY, REQUEST SENSE, INQUIRY

# Commands without data-in: the initiator gets nothing of their buffers, so the buffers need not be zeroed.
_DATA_OUT_ONLY = frozenset({0x0A, 0x2A, 0xAA, 0x8A})  # WRITE 6, 10, 12, 16


Run = Callable[[memoryview, int, Sequence[memoryview], int], bool]
"""A function that runs one command: (memory, place of the CDB in it, buffers, their bytes in all).

It returns whether it has run the command, with GOOD."""


class RingError(Exception):
    """The region is not a command ring of the needed kind, or the kernel broke its rules."""


class RingTask(Task):
    """A command taken from the ring; `buffers` is its part of the data area, `length` bytes in all."""

    __slots__ = ("base", "buffers", "command_id", "length")

    def __init__(self) -> None:
        super().__init__(self._room)
        self.command_id = 0
        self.base = 0  # begin of the only buffer; 0, which is the mailbox, if there is none or more than one
        self.buffers: Sequence[memoryview] = ()
        self.length = 0

    def _room(self, length: int) -> Sequence[memoryview]:
        if length == self.length:
            return self.buffers
        room = []
        for buffer in self.buffers:
            if not length:
                break
            room.append(buffer[:length])
            length -= len(room[-1])
        if length:  # the initiator announced less than its CDB asks for: it does not get the rest
            room.append(memoryview(bytearray(length)))
        return room


class Ring:
    """The ring behind an open UIO device.  The caller closes `descriptor`, after `close`."""

    def __init__(self, descriptor: int, length: int) -> None:
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._view = memoryview(self._map)
        version, flags, self._start, self._size, _ = _MAILBOX.unpack_from(self._view, 0)
        if version != MAILBOX_VERSION or not flags & CAP_OUT_OF_ORDER or not flags & CAP_READ_LEN:
            self._view.release()
            self._map.close()
            raise RingError(
                f"the kernel's ring has version {version}, flags {flags:#x}; version 2 with flags 0x3 is needed"
            )
        self._words = self._view[: self._start + self._size].cast("I")
        self._tail = self._taken = self._words[TAIL_WORD]  # offsets in the ring, not in the region
        self._lock = threading.Lock()
        self._running: dict[int, RingTask] = {}
        self._base = self._length = 0  # the buffer of the last command that came alone
        self._buffers: Sequence[memoryview] = ()
        self._spare: list[RingTask] = []
        self._closed = False

    @property
    def idle(self) -> bool:
        """Return whether all commands that the kernel has put into the ring are answered."""
        return bool(self._words[HEAD_WORD] == self._words[TAIL_WORD])

    def take(self) -> Sequence[RingTask]:
        """Return the commands that the kernel has added since the last call.

        A task management entry among them marks its tasks as `aborted`.  Raise RingError if an entry breaks the rules
        of the ring.
        """
        words = self._words
        head = words[HEAD_WORD]
        position = self._taken
        if position == head:
            return ()
        tasks: list[RingTask] = []
        while position != head:
            at = self._start + position
            word = words[at >> 2]
            length = word & ~OP_MASK
            if not length or position + length > self._size:
                raise RingError(f"entry of {length} bytes at {position} in a ring of {self._size}")
            operation = word & OP_MASK
            if operation == OP_CMD:
                tasks.append(self._task(at))
            elif operation == OP_TMR:
                self._abort(at)
            elif operation != OP_PAD:
                self._view[at + UFLAGS_OFFSET] |= UFLAG_UNKNOWN_OP
            position += length
            if position == self._size:
                position = 0
        self._taken = position
        if not tasks:
            self.complete(())
        return tasks

    def answer_alone(self, run: Run, looks: int, turns: int) -> int:
        """Answer commands that come one at a time with GOOD, as long as `run` runs them; return their number.

        It answers at most `turns` commands, and looks `looks` times for the next one before it returns.  Only the
        thread that calls `take` may call this; `take` then returns the first command that `run` has refused.  While
        commands wait for `complete`, no command is alone, and this returns 0.
        """
        if self._running or self._lock.locked():  # another thread may be about to complete a command
            return 0
        words, view, start, size = self._words, self._view, self._start, self._size
        base, length, buffers = self._base, self._length, self._buffers
        position = self._taken
        answered = 0
        while answered < turns:
            head = words[HEAD_WORD]
            if head == position:
                for _ in range(looks):
                    head = words[HEAD_WORD]
                    if head != position:
                        break
                else:
                    break
            at = start + position
            word, count, cdb_at, its_base, its_length = _SHORT(view, at)
            # The next entry, if this one is a command.  If it is not, no entry begins there.
            after = position + word - OP_CMD
            if after == size:
                after = 0
            if count != 1 or head != after:
                break
            if its_base != base or its_length != length:
                self._base = base = its_base
                self._length = length = its_length
                self._buffers = buffers = (view[base : base + length],)
            if not run(view, cdb_at, buffers, length):
                break
            # The slot at the tail is the command's own, so the id is there already, and only the status replaces
            # iov_cnt.
            words[(at >> 2) + STATUS_WORD] = 0
            self._taken = self._tail = words[TAIL_WORD] = position = after
            os.write(self._descriptor, _KICK)
            answered += 1
        return answered

    def complete(self, tasks: Iterable[RingTask]) -> None:
        """Answer commands, in any order.  The next `take` may use their task objects again."""
        with self._lock:
            if self._closed:
                return
            before = self._tail
            for task in tasks:
                self._respond(task)
            if self._tail != self._taken:
                self._skip()
            if self._tail != before:
                self._words[TAIL_WORD] = self._tail
                os.write(self._descriptor, _KICK)

    def close(self) -> str:
        """Unmap the region, and no longer use the descriptor.  Call it when the ring is idle, and not while `take` runs.

        Return why the region cannot be unmapped, or an empty string.  A stop continues in any case, because a mapped
        region does no harm: the kernel keeps it until the process ends, and commands that still run get no answer.
        """
        with self._lock:  # the thread that made the ring idle may still be about to kick
            self._closed = True
            for task in self._spare:
                task.buffers = task.data_in = task.data_out = ()
            self._buffers = ()
            self._words.release()
            self._view.release()
        if self._running:
            return f"{len(self._running)} commands still run"
        try:
            self._map.close()
        except BufferError:
            gc.collect()  # an exception in a circle with its traceback keeps the buffers of the calls that it passed
            try:
                self._map.close()
            except BufferError:
                return "its memory is still referred to"
        return ""

    def _task(self, at: int) -> RingTask:
        command_id, count, cdb_at, base, length = _REQUEST.unpack_from(self._view, at)
        task = self._spare.pop() if self._spare else RingTask()
        if count == 1:
            if base != task.base or length != task.length:
                task.base = base
                task.length = length
                task.buffers = (self._view[base : base + length],)
        else:
            view = self._view
            end = at + IOV_OFFSET + count * _IOV.size
            task.base = 0
            task.buffers = [view[b : b + n] for b, n in _IOV.iter_unpack(view[at + IOV_OFFSET : end])]
            task.length = sum(map(len, task.buffers))
        cdb = self._map[cdb_at : cdb_at + CDB_LENGTH]
        if cdb[0] == VARIABLE_LENGTH_CDB:
            cdb = self._map[cdb_at : cdb_at + 8 + cdb[7]]
        elif cdb[0] in _BEFORE_INQUIRY and cdb[1] & SCSI2_LUN:
            cdb = cdb[:1] + bytes((cdb[1] & ~SCSI2_LUN & 0xFF,)) + cdb[2:]
        task.cdb = cdb
        task.command_id = command_id
        # only the command knows which of the two the buffers are
        task.data_out = task.buffers
        task.expected_in = task.length
        task.aborted = False
        self._running[command_id] = task
        return task

    def _abort(self, at: int) -> None:
        *_, count = _TMR.unpack_from(self._view, at)
        ids = struct.unpack_from(f"={count}H", self._view, at + _TMR_IDS)
        for command_id in ids:
            task = self._running.get(command_id)
            if task is not None:
                task.aborted = True

    def _skip(self) -> None:
        """Pass the slots at the tail that take no response."""
        tail = self._tail
        while tail != self._taken:
            word = self._words[(self._start + tail) >> 2]
            if word & OP_MASK == OP_CMD:
                break
            tail = (tail + (word & ~OP_MASK)) % self._size
        self._tail = tail

    def _respond(self, task: RingTask) -> None:
        at = self._start + self._tail
        word = self._words[at >> 2]
        if word & OP_MASK != OP_CMD:
            self._skip()
            at = self._start + self._tail
            word = self._words[at >> 2]
        flags = given = 0
        data_in = task.data_in
        if data_in:
            if data_in is task.buffers:
                given = task.length
            else:
                given = min(sum(map(len, data_in)), task.length)
            if task.status or given != task.length:
                flags = UFLAG_READ_LEN
            task.data_in = ()
        elif not task.status and task.length and task.cdb[0] not in _DATA_OUT_ONLY:
            for buffer in task.buffers:
                buffer[:] = bytes(len(buffer))
        if task.status:
            _RESPONSE.pack_into(self._view, at, word, task.command_id, 0, flags, task.status, given, task.sense)
        else:
            _GOOD.pack_into(self._view, at, word, task.command_id, 0, flags, 0, given)
        tail = self._tail + (word & ~OP_MASK)
        self._tail = tail if tail != self._size else 0
        del self._running[task.command_id]
        self._spare.append(task)
