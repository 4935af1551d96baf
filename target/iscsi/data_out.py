# SPDX-License-Identifier: Apache-2.0
"""The data-out of one session's commands: asked for within a budget, and put in its place (RFC 7143 4.2.3, 11.7, 11.8).

`DataOut` returns a command once its data is complete, and its caller executes that command.  It takes no callback,
because a bound method of its owner would close a reference circle, and closed sessions must not wait for the garbage
collector.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from target.iscsi import keys, pdu
from target.iscsi.command import Command, OutOfOrder, ReadyToTransfer, Refusal, Stage
from target.iscsi.errors import PeerError
from target.iscsi.limits import Limits
from target.iscsi.memory import Account
from target.iscsi.pdu import NO_TAG
from target.iscsi.sender import Sender
from target.scsi import sense
from target.scsi.task import Status

log = logging.getLogger(__name__)

LOST_DATA = Refusal(Status.CHECK_CONDITION, sense.Sense(sense.SenseKey.ABORTED_COMMAND, 0x4705).pack(descriptor=False))
"""PROTOCOL SERVICE CRC ERROR: the answer of RFC 7143 11.4.7.2 to data that is incomplete."""


class Place(NamedTuple):
    """The destination of one Data-Out."""

    command: Command
    r2t: ReadyToTransfer | None  # None: unsolicited data
    memory: memoryview | None  # None: the data is thrown away, because its command fails


class DataOut:
    """The R2Ts of one session, and the budget of `Limits.data_bytes` that their data takes from.

    The data takes from the portal's memory as well, by way of the session's account.
    """

    __slots__ = ("_account", "_agreed", "_limits", "_name", "_next_ttt", "_r2ts", "_sender", "_waiting", "used")

    def __init__(self, sender: Sender, limits: Limits, account: Account) -> None:
        self._account = account
        self._name = ""  # the initiator's
        self._agreed = keys.Parameters()
        self._sender = sender
        self._limits = limits
        self._waiting: deque[Command] = deque()  # for the budget
        self.used = 0  # bytes of the budget
        self._r2ts: dict[int, Command] = {}
        self._next_ttt = 1

    def open(self, name: str, agreed: keys.Parameters) -> None:
        """Begin the full feature phase of the initiator `name`."""
        self._name = name
        self._agreed = agreed

    def new_ttt(self) -> int:
        """Return the next target transfer tag."""
        ttt = self._next_ttt
        self._next_ttt = ttt + 1 if ttt < NO_TAG - 1 else 1
        return ttt

    def solicit(self, command: Command) -> None:
        """Ask for the rest of the data of `command`, which is WAITING, as soon as the budget has room for it."""
        self._waiting.append(command)
        self.admit()

    def admit(self) -> None:
        """Ask for the data of waiting commands, as far as the budget reaches.  One command always has room."""
        while self._waiting:
            command = self._waiting[0]
            if self.used and self.used + command.budget > self._limits.data_bytes:
                break
            if not self._account.take(command.budget):
                self._account.wait()
                return
            self._waiting.popleft()
            command.charged = command.budget
            command.taken += command.charged
            self.used += command.charged
            command.begin_solicited()
            self._ask(command)
        if self._account.memory.waiting:
            self._account.stop_waiting()

    def _ask(self, command: Command) -> None:
        """Keep as many R2Ts out as were agreed."""
        agreed = self._agreed
        while len(command.r2ts) < agreed.max_outstanding_r2t:
            r2t = command.next_r2t(self.new_ttt(), agreed.max_burst_length)
            if r2t is None:
                return
            self._r2ts[r2t.ttt] = command
            self._sender.r2t(command.itt, command.task.lun, r2t.ttt, command.r2t_sn, r2t.offset, r2t.length)
            command.r2t_sn += 1

    def forget(self, command: Command) -> None:
        """Take back the R2Ts and the budget of a command that is over.  Then `admit` may have room for others."""
        for ttt in command.r2ts:
            del self._r2ts[ttt]
        command.r2ts.clear()
        self.used -= command.charged
        command.charged = 0
        self._account.give(command.taken)
        command.taken = 0
        if command.stage is Stage.WAITING:
            self._waiting.remove(command)
            if not self._waiting:
                self._account.stop_waiting()

    def place(self, bhs: memoryview, commands: Mapping[int, Command]) -> Place | None:
        """Return where the data of a Data-Out belongs, or None if its command is unknown, because it was aborted.

        `commands` are the session's, by initiator task tag. Raises PeerError.
        """
        _, _, _, lengths, _, itt, ttt, _, _, _, data_sn, offset = pdu.DATA_OUT.unpack(bhs)
        length = lengths & 0xFFFFFF
        command = commands.get(itt) if ttt == NO_TAG else self._r2ts.get(ttt)
        if command is None:
            return None
        if command.itt != itt:
            raise PeerError("data of an R2T with another command's tag")
        r2t = None if ttt == NO_TAG else command.r2ts[ttt]
        if command.broken:
            return Place(command, r2t, None)
        try:
            if r2t is None:
                return Place(command, r2t, command.unsolicited_place(data_sn, offset, length))
            return Place(command, r2t, command.solicited_place(r2t, data_sn, offset, length))
        except OutOfOrder:
            log.warning("%s: data out of order, its command fails", self._name)
            command.refuse(LOST_DATA)
            return Place(command, r2t, None)

    def placed(self, command: Command, r2t: ReadyToTransfer | None, *, final: bool) -> Command | None:
        """Note that the data of one Data-Out is in its place.  Return `command` if that was the last of its data.

        The returned command is either READY or `broken`.  Raises PeerError.
        """
        if command.stage is Stage.DONE or not final:  # aborted while its data was on the way, or more data follows
            return None
        if r2t is not None:
            if r2t.received != r2t.length and not command.broken:
                raise PeerError("less data than the R2T asked for")
            del command.r2ts[r2t.ttt], self._r2ts[r2t.ttt]
        if command.broken:
            return None if command.r2ts else command
        if r2t is None:
            command.end_unsolicited()
            if command.stage is Stage.READY:
                return command
            self.solicit(command)
        elif not command.r2ts and command.next_offset == command.expected:
            command.stage = Stage.READY
            return command
        else:
            self._ask(command)
        return None
