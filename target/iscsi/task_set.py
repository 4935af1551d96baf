# SPDX-License-Identifier: Apache-2.0
"""The SCSI commands of one session: received, executed and answered (RFC 7143 4.2, 11.3 to 11.8).

Almost every command is simple and takes the *fast path* (`receive_commands`); all others take the general one
(`begin`).  Both hand it to the device server at once.  A command that would wait for a disk is left in `blocked`, comes
back through `complete`, and is answered out of order.  The two paths must do the same, so they are side by side here.
command.py lists the stages of a command, and data_out.py collects its data.

Bounds: CmdSN's window is `queue_depth` commands wide and moves only when one of them is answered.  Solicited data takes
from a budget of `data_bytes`, and all data of commands from the portal's memory (memory.py).  A command that would move
more than `transfer_bytes` is refused.

The device server looks at a command before its data is asked for.  If it is sure to be refused, it costs no memory: the
target sends no R2T, and throws unsolicited data away.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

from lun_backends import in_place
from lun_backends.block_device import WouldBlock
from target.iscsi import errors, keys, pdu
from target.iscsi.command import Command, Refusal, Stage, private_buffers
from target.iscsi.data_out import DataOut, Place
from target.iscsi.errors import PeerError, Rejected
from target.iscsi.limits import Limits
from target.iscsi.memory import LARGE, Account
from target.iscsi.pdu import NO_TAG, Opcode, RejectReason
from target.iscsi.sender import MASK, Sender, residual_of
from target.scsi import sense
from target.scsi.task import ForeseeingExecutor, Status, Task

TOO_LONG = Refusal(
    Status.CHECK_CONDITION,
    sense.Sense(sense.SenseKey.ILLEGAL_REQUEST, sense.Asc.INVALID_FIELD_IN_CDB).pack(descriptor=False),
)
FULL = Refusal(Status.TASK_SET_FULL, b"")
"""The answer to a command that the portal has no memory for: its initiator sends it again (SAM-5 5.3.1)."""
AHEAD = 16
"""Writes that are prepared together in place.  This is half of the usual number in flight.  Their answers are sent before the
next writes are prepared, so both sides are busy at the same time."""

SMALL_OUTPUT = 65536
"""Bytes of answers that a session may always have waiting, so small requests need no test of the memory."""

DIRECT_LENGTH = 16384
"""Missing bytes from which on it is cheaper to receive in place than to copy."""


class Relieved(BaseException):
    """The calling thread was relieved of the loop (`in_place`) while it executed the command at `TaskSet.at`.

    The relief has taken the session over, so the thread must touch nothing of it any longer.  `executed` says whether the
    command has an outcome.  No guard of a session catches this.
    """

    def __init__(self, *, executed: bool) -> None:
        super().__init__()
        self.executed = executed


class TaskSet:
    """The commands of one session; raises PeerError and Rejected for the peer's mistakes."""

    def __init__(self, sender: Sender, limits: Limits, account: Account) -> None:
        self.sender = sender
        self.output = sender.output
        self.blocked: list[Command] = []
        self.answering = False
        """Whether commands are answered: from `open` until the session ends or logs out."""
        self.direct: memoryview = memoryview(b"")
        """The place for the next bytes from the peer, ahead of the receive buffer; see `received_direct`."""
        self.paused = False
        """Whether `receive_commands` stopped so that its answers are sent before it continues."""
        self.at = 0
        """Where in the receive buffer the command begins that `receive_commands` executes."""
        self.bytes_in = 0  # data-out, from the initiator
        self.bytes_out = 0
        self.done = 0
        self.commands: dict[int, Command] = {}
        self.fast = False  # whether `receive_commands` may be used: there are no digests
        self.max_immediate = 0
        self._limits = limits
        self.account = account
        self._agreed = keys.Parameters()
        self.data_out = DataOut(sender, limits, account)
        self._after_direct: Callable[[], None] | None = None
        # bytes, since when there were so many, and since when the command waits for data
        self._collecting: dict[Command, tuple[int, float, float]] = {}
        self._task = Task(sender.output.allocate)
        self._ahead: list[Task] = []  # spare tasks of `_prepare_ahead`
        no_executor: ForeseeingExecutor = _NoExecutor()
        self._execute = no_executor.execute
        self._prepare = no_executor.prepare
        self._refuses = no_executor.refuses

    def open(self, executor: ForeseeingExecutor, name: str, agreed: keys.Parameters, max_segment: int) -> None:
        """Begin the session of the initiator `name`, which may send data segments of `max_segment` bytes."""
        self._execute = executor.execute
        self._prepare = executor.prepare
        self._refuses = executor.refuses
        self._agreed = agreed
        self.data_out.open(name, agreed)
        self.max_immediate = min(agreed.first_burst_length, max_segment) if agreed.immediate_data else 0
        self.fast = self.sender.digests == pdu.NO_DIGESTS
        self.answering = True

    def close(self) -> list[Command]:
        """Stop answering, abort every command, and return those that still run."""
        self.answering = self.fast = False
        self.direct, self._after_direct = memoryview(b""), None
        return self.abort(lambda command: True)

    @property
    def running(self) -> list[Command]:
        """The commands that are with the device server."""
        return [command for command in self.commands.values() if command.stage is Stage.RUNNING]

    @property
    def outstanding(self) -> int:
        """The number of commands not answered yet."""
        return len(self.commands)

    @property
    def congested(self) -> bool:
        """Whether the peer must take answers before more of its requests are read."""
        waiting = len(self.output)
        return waiting > SMALL_OUTPUT and (waiting > self._limits.output_bytes or waiting > self.account.room)

    def complete(self, command: Command) -> None:
        """Answer `command`, which was in `blocked` and is executed now, unless it was aborted."""
        task = command.task
        try:
            if not self.answering:
                return
            if not task.aborted:
                self._answer(command)
            elif command.refused is not None:
                task.status, task.sense, task.data_in = command.refused.status, command.refused.sense, ()
                self._answer(command)
        finally:
            self._forget(command)

    def prepare_in_place(self) -> None:
        """Let units prepare blocked writes at once, without waiting, and execute the writes that no longer have to wait.

        This spares them the way through the workers.  Copy-on-write, for example, can copy the pre-image of a first
        write within the page cache.  Writes of the fast path have been through this already, see `_prepare_ahead`.
        """
        writes = [command for command in self.blocked if command.writes and not command.borrows]
        if not writes or not self._prepare([command.task for command in writes], nowait=True):
            return
        blocked, self.blocked = self.blocked, []
        for command in blocked:
            if command.writes and not command.borrows:
                try:
                    self._execute(command.task, nowait=True)
                except WouldBlock:
                    self.blocked.append(command)
                else:
                    self.complete(command)
            else:
                self.blocked.append(command)

    def abort(self, selects: Callable[[Command], bool], answer: Refusal | None = None) -> list[Command]:
        """Abort the commands that `selects` accepts.  Return those still with the device server, and forget the others.

        With `answer` they are answered: those still with the device server when it is done with them.
        """
        still: list[Command] = []
        for command in list(self.commands.values()):
            if selects(command):
                command.task.aborted = True
                if command.stage is Stage.RUNNING:
                    command.refused = answer
                    still.append(command)
                elif answer is not None and self.answering:
                    self._refuse_command(command, answer)
                else:
                    self._forget(command)
        return still

    def abort_on(self, luns: Container[int], answer: Refusal | None = None) -> list[Command]:
        """Call `abort` for all commands on `luns`, which are the 8-byte fields that address units."""
        return self.abort(lambda command: command.task.lun in luns, answer)

    def overdue(self, now: float) -> bool:
        """Return whether a command's data-out has stalled for too long.  Call it every second or so."""
        collecting: dict[Command, tuple[int, float, float]] = {}
        for command in self.commands.values():
            if command.stage in (Stage.UNSOLICITED, Stage.SOLICITED):
                progress = command.progress
                before = self._collecting.get(command)
                if before is None:
                    collecting[command] = (progress, now, now)
                else:
                    collecting[command] = before if before[0] == progress else (progress, now, before[2])
        self._collecting = collecting
        return any(now - since > self._limits.stall_seconds for _, since, _ in collecting.values())

    def collecting_since(self) -> float | None:
        """Return since when the first command that holds memory has waited for its data; None if there is none."""
        return min((began for command, (_, _, began) in self._collecting.items() if command.taken), default=None)

    def free_slot(self) -> None:
        """Open the command window by one place, because a request that took one is done."""
        self.sender.max_cmd_sn = self.sender.max_cmd_sn + 1 & MASK

    # -- the fast path -------------------------------------------------------------------------------------------

    def receive_commands(self, buffer: memoryview, start: int, end: int) -> int:
        """Execute the simple SCSI commands at `buffer[start:end]`, and return where it stopped.

        A write that would have to wait is prepared together with those behind it (`_prepare_ahead`), and tried again.
        Once all of them are executed, the method stops there with `paused`.

        A simple command has no digests, no AHS, the next CmdSN and a tag not in use. It has either no data, data-in
        that fits one Data-In, or data-out that came whole as immediate data.  All other commands are left to `begin`,
        which does the same in the general way.  Answers that are not plain GOOD are built in the general way, too.
        """
        loop = in_place.current()
        loop.open = True
        sender = self.sender
        output = self.output
        task = self._task
        execute = self._execute
        commands = self.commands
        max_segment = min(sender.max_segment, sender.max_burst)  # one Data-In is a sequence of its own
        max_immediate = self.max_immediate
        unpack = pdu.SCSI_COMMAND.unpack_from
        pack = pdu.RESPONSE.pack_into
        expected_sn = sender.exp_cmd_sn
        bytes_in = bytes_out = done = 0
        prepared = 0  # up to where `_prepare_ahead` looked
        self.paused = False
        if expected_sn == sender.max_cmd_sn + 1 & MASK:
            loop.open = False
            return start
        while end - start >= 48:
            if prepared and start >= prepared:
                self.paused = True
                break
            opcode, flags, _, lengths, lun, itt, expected, cmd_sn, _, cdb = unpack(buffer, start)
            if opcode != 1 or cmd_sn != expected_sn or not flags & 0x80 or itt in commands or itt == NO_TAG:
                break
            direction = flags & 0x60
            stop = start + 48
            if direction == 0x40:
                if lengths or expected > max_segment:
                    break
                task.data_out = ()
                task.expected_in = expected
            else:
                if lengths != expected or lengths > max_immediate or direction == 0x60:
                    break
                task.expected_in = 0
                if lengths:
                    stop += lengths + 3 & ~3
                    if stop > end or not direction:
                        break
                    task.data_out = (buffer[start + 48 : start + 48 + lengths],)
                else:
                    task.data_out = ()
            task.lun = lun
            task.cdb = cdb
            self.at = start
            start = stop
            expected_sn = cmd_sn + 1 & MASK
            sender.exp_cmd_sn = expected_sn
            try:
                try:
                    execute(task, nowait=True)
                except WouldBlock:
                    if not lengths or prepared or loop.relieved:
                        raise
                    prepared = self._prepare_ahead(task, buffer, start, end)
                    if prepared > end or loop.relieved:
                        raise
                    execute(task, nowait=True)
                if loop.relieved:
                    raise Relieved(executed=True)
            except WouldBlock:
                if loop.relieved:
                    raise Relieved(executed=False) from None
                command = Command(itt, task, expected, reads=direction != 0x20, writes=lengths > 0, counted=True)
                command.borrows = lengths > 0
                self._task = task = Task(output.allocate)
                bytes_in += lengths
                if lengths and not self._take(command, lengths):
                    self._refuse_command(command, FULL)
                    continue
                self._block(command)
                if expected_sn == sender.max_cmd_sn + 1 & MASK:
                    break  # the window is closed; test that only here, because every answered command opens it again
                continue
            sender.max_cmd_sn = sender.max_cmd_sn + 1 & MASK
            done += 1
            bytes_in += lengths
            if task.status:
                self._answer_now(task, itt, expected, reads=direction != 0x20)
                if self.congested:
                    break
                continue
            stat_sn = sender.stat_sn
            if direction == 0x40 and expected:
                data = task.data_in
                if len(data) != 1 or data is not output.offered:
                    self._answer_now(task, itt, expected, reads=True)
                    continue
                length = len(data[0])
                flags = 0x81
                residual = 0
                if length != expected:
                    flag, residual = residual_of(expected, length)
                    flags |= flag
                    length = min(length, expected)
                bytes_out += length
                fill = output.fill
                pack(output.arena, fill, 0x25, flags, 0, 0, length, 0, itt, NO_TAG,
                     stat_sn, expected_sn, sender.max_cmd_sn, 0, 0, residual)  # fmt: skip
                fill += 48 + length
                if length & 3:
                    padding = -length & 3
                    output.arena[fill : fill + padding] = bytes(padding)
                    fill += padding
                output.fill = fill
                sender.stat_sn = stat_sn + 1 & MASK
                if fill > 0x80000 and self.congested:  # a cheap first look: most batches never fill half an arena
                    break
            else:
                if task.residual_out or task.data_in:
                    self._answer_now(task, itt, expected, reads=direction != 0x20)
                    continue
                if output.fill + 48 > output.room:
                    output.reserve(48)
                fill = output.fill
                pack(output.arena, fill, 0x21, 0x80, 0, 0, 0, 0, itt, 0,
                     stat_sn, expected_sn, sender.max_cmd_sn, 0, 0, 0)  # fmt: skip
                output.fill = fill + 48
                sender.stat_sn = stat_sn + 1 & MASK
        loop.open = False
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        self.done += done
        return start

    def take_over(self, buffer: memoryview) -> tuple[Command, int]:
        """Go on for a thread that was relieved while it executed a command, whose data lies in `buffer`.

        Return the command, which is no longer of the fast path, and where in the buffer the next one begins.
        """
        _, flags, _, lengths, _, itt, expected, _, _, _ = pdu.SCSI_COMMAND.unpack_from(buffer, self.at)
        command = Command(itt, self._task, expected, reads=flags & 0x60 != 0x20, writes=lengths > 0, counted=True)
        command.borrows = lengths > 0
        command.task.allocate = private_buffers
        command.stage = Stage.RUNNING
        self._task = Task(self.output.allocate)
        self.bytes_in += lengths
        self.commands[itt] = command
        return command, self.at + pdu.BHS_LENGTH + (lengths + 3 & ~3)

    def _prepare_ahead(self, task: Task, buffer: memoryview, start: int, end: int) -> int:
        """Let the units prepare the write `task` and the simple ones behind it at `buffer[start:end]`, without waiting.

        Return the place up to which it looked, or `end + 1` if no unit could prepare anything.

        `receive_commands` parses these headers once more.  To keep the parsed fields would cost every command of the
        fast path a look-up.  The second parse costs only first writes, and is cheap in comparison to the copy that each
        makes.
        """
        tasks = [task]
        if not self._ahead:
            self._ahead = [Task(private_buffers) for _ in range(AHEAD - 1)]
        for ahead in self._ahead:
            if end - start < pdu.BHS_LENGTH:
                break
            opcode, flags, _, lengths, lun, _, expected, _, _, cdb = pdu.SCSI_COMMAND.unpack_from(buffer, start)
            stop = start + pdu.BHS_LENGTH + (lengths + 3 & ~3)
            if opcode != Opcode.SCSI_COMMAND or flags & 0xE0 != 0xA0 or lengths != expected or stop > end:
                break
            ahead.lun = lun
            ahead.cdb = cdb
            tasks.append(ahead)
            start = stop
        return start if self._prepare(tasks, nowait=True) else end + 1

    def _answer_now(self, task: Task, itt: int, expected: int, *, reads: bool) -> None:
        """Send the general answer to a command of the fast path.

        Its data may lie in the free part of the arena, so it is copied.
        """
        command = Command(itt, task, expected, reads=reads, writes=not reads and expected > 0, counted=False)
        if reads and task.data_in:
            task.data_in = (memoryview(b"".join(task.data_in)),)
        self._answer(command, count=False)
        task.residual_out = 0

    # -- the general path ----------------------------------------------------------------------------------------

    def begin(self, request: pdu.Pdu) -> None:
        """Take one SCSI Command of any kind.  Raises PeerError, Rejected."""
        _, flags, _, _, lun, itt, expected, _, _, cdb = pdu.SCSI_COMMAND.unpack(request.bhs)
        counted = not request.immediate
        reads, writes = bool(flags & pdu.COMMAND_READ), bool(flags & pdu.COMMAND_WRITE)
        try:
            if itt == NO_TAG:
                raise Rejected(RejectReason.INVALID_PDU_FIELD, "a command with the reserved tag")
            if itt in self.commands:
                raise Rejected(RejectReason.TASK_IN_PROGRESS, "a command with a tag in use")
            if request.immediate and len(self.commands) >= 2 * self._limits.queue_depth:
                raise Rejected(RejectReason.IMMEDIATE_COMMAND_REJECT, "too many commands")
            try:
                extra = pdu.extra_headers(request.ahs) if len(request.ahs) else {}
            except ValueError as error:
                raise Rejected(RejectReason.INVALID_PDU_FIELD, str(error)) from error
            if len(request.data) and not writes:
                raise Rejected(RejectReason.INVALID_PDU_FIELD, "data with a command that does not write")
        except Rejected:
            if counted:
                self.free_slot()
            raise
        task = Task(private_buffers)
        task.lun = lun
        task.cdb = cdb + extra.get(pdu.AHS_EXTENDED_CDB, b"\0")[1:]
        if reads and writes:
            task.expected_in = int.from_bytes(extra.get(pdu.AHS_BIDIRECTIONAL_READ_LENGTH, bytes(5))[1:5], "big")
        elif reads:
            task.expected_in = expected
        # A command that announces no data may still have some, which is reported as its residual.  So it counts as a
        # read.
        command = Command(itt, task, expected, reads=not writes, writes=writes and expected > 0, counted=counted)
        self.commands[itt] = command
        if not command.writes:
            if task.expected_in > self._limits.transfer_bytes:
                self._refuse_command(command, TOO_LONG)
            elif task.expected_in > LARGE and not self._take(command, task.expected_in):
                self._refuse_command(command, FULL)
            else:
                self._run(command)
            return
        agreed = self._agreed
        if len(request.data) and not agreed.immediate_data:
            raise PeerError("immediate data although ImmediateData=No")
        more = not flags & pdu.FINAL
        if more and agreed.initial_r2t:
            raise PeerError("unsolicited data announced although InitialR2T=Yes")
        refusal = self._foresee(command, len(request.data), more=more)
        self.bytes_in += len(request.data)
        if refusal is not None:
            command.refuse(refusal)
            command.stage = Stage.UNSOLICITED
            if not more:
                self._refuse_command(command, refusal)
            return
        command.begin_data_out(request.data, agreed.first_burst_length, more=more)
        if command.stage is Stage.WAITING:
            self.data_out.solicit(command)
        elif command.stage is Stage.READY:
            self._run_with_data(command)

    def _foresee(self, command: Command, immediate: int, *, more: bool) -> Refusal | None:
        """Return the answer to a write that fails whatever its data is.  Return None if the write may go on.

        Then it has memory for its unsolicited data.

        `immediate` bytes of data came with the command, and `more` may follow unasked.
        """
        task = command.task
        most = self._limits.transfer_bytes
        if command.expected > most or task.expected_in > most:
            return TOO_LONG
        if (more or immediate < command.expected) and self._refuses(task):
            return Refusal(task.status, task.sense)
        room = min(self._agreed.first_burst_length, command.expected) if more else immediate
        room += task.expected_in
        return None if not room or self._take(command, room) else FULL

    def _take(self, command: Command, length: int) -> bool:
        """Take memory for a command, and return whether there is enough."""
        if not self.account.take(length):
            self.account.memory.refusals += 1
            return False
        command.taken += length
        return True

    def _refuse_command(self, command: Command, why: Refusal) -> None:
        """Answer a command without executing it.  Its data did not reach the unit."""
        if command.counted:
            self.free_slot()
            command.counted = False
        residual = residual_of(command.expected, 0 if command.writes else command.expected)
        self.sender.scsi_response(command.itt, why.status, why.sense, residual=residual)
        self._forget(command)

    def _run(self, command: Command) -> None:
        command.stage = Stage.RUNNING
        try:
            self._execute(command.task, nowait=True)
        except WouldBlock:
            self._block(command)
            return
        self._answer(command)
        self._forget(command)

    def _block(self, command: Command) -> None:
        """Leave a command for a worker."""
        command.task.allocate = private_buffers
        command.stage = Stage.RUNNING
        self.commands[command.itt] = command
        self.blocked.append(command)

    def _answer(self, command: Command, *, count: bool = True) -> None:
        task = command.task
        if count and command.counted:
            self.free_slot()
            command.counted = False
        self.done += count
        if command.reads:
            self.bytes_out += min(task.expected_in, sum(map(len, task.data_in)))
            self.sender.data_in(command.itt, task.status, task.sense, task.data_in, task.expected_in)
            return
        self.sender.scsi_response(
            command.itt,
            task.status,
            task.sense,
            residual=residual_of(command.expected, command.expected + task.residual_out),
            exp_data_sn=command.r2t_sn,
        )

    def _forget(self, command: Command) -> None:
        """Drop a command that is answered, or aborted and no longer running."""
        if self.commands.get(command.itt) is command:
            del self.commands[command.itt]
        if command.counted:
            self.free_slot()
            command.counted = False
        self.data_out.forget(command)
        command.finish()
        if self.answering:
            self.data_out.admit()

    # -- data-out ------------------------------------------------------------------------------------------------

    def take_data_out(self, bhs: memoryview, data: memoryview) -> None:
        """Put the data of a whole Data-Out in its place.  Raises PeerError."""
        place = self.data_out.place(bhs, self.commands)
        if place is None:
            return
        if place.memory is not None:
            place.memory[:] = data
        self._placed(place, len(data), final=bool(bhs[1] & pdu.FINAL))

    def _placed(self, place: Place, length: int, *, final: bool) -> None:
        self.bytes_in += length
        command = self.data_out.placed(place.command, place.r2t, final=final)
        if command is None:
            return
        if command.refused is not None:
            self._refuse_command(command, command.refused)
        else:
            self._run_with_data(command)

    def _run_with_data(self, command: Command) -> None:
        command.task.data_out = command.gathered()
        self._run(command)

    def receive_direct(self, buffer: memoryview, start: int, end: int) -> int:
        """Take the beginning of a large Data-Out, and let the rest be received in its final place, uncopied.

        Return the bytes taken, or 0 if the Data-Out must be received whole first.  Raises PeerError.
        """
        present = end - start - pdu.BHS_LENGTH
        if present < 0 or buffer[start] != Opcode.DATA_OUT or self.sender.digests != pdu.NO_DIGESTS:
            return 0
        lengths = int.from_bytes(buffer[start + 4 : start + 8], "big")
        if lengths >> 24 or lengths & 3 or lengths - present < DIRECT_LENGTH:
            return 0
        bhs = buffer[start : start + pdu.BHS_LENGTH]
        place = self.data_out.place(bhs, self.commands)
        if place is None or place.memory is None:
            return 0  # its data is thrown away, so it goes through the buffer
        final = bool(bhs[1] & pdu.FINAL)
        place.memory[:present] = buffer[start + pdu.BHS_LENGTH : end]
        self.direct = place.memory[present:]
        self._after_direct = lambda: self._placed(place, lengths, final=final)
        return end - start

    def received_direct(self, length: int) -> None:
        """Note that `length` bytes were received at the beginning of `direct`.  Raises PeerError."""
        self.direct = self.direct[length:]
        if not len(self.direct) and self._after_direct is not None:
            then, self._after_direct = self._after_direct, None
            then()


class _NoExecutor:
    """The executor of a session that has none (yet): a discovery session, or one that is logging in."""

    def execute(self, task: Task, *, nowait: bool) -> None:
        raise errors.UsageError("a command outside of a normal session")

    def prepare(self, tasks: Sequence[Task], *, nowait: bool = False) -> bool:
        raise errors.UsageError("a write outside of a normal session")

    def refuses(self, task: Task) -> bool:
        raise errors.UsageError("a command outside of a normal session")

    def takes_long(self, task: Task) -> bool:
        raise errors.UsageError("a command outside of a normal session")
