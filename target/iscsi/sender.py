# SPDX-License-Identifier: Apache-2.0
"""The answers of one connection: sequence numbers, residuals, data segments and digests (RFC 7143 11.4 to 11.18).

This module serves every combination of digests and lengths.  Only one answer is also built elsewhere, for speed: the
single Data-In or SCSI Response of a command that was answered at once (`TaskSet.receive_commands`).
"""

from __future__ import annotations

from collections.abc import Sequence

from target.iscsi import pdu
from target.iscsi.output import Output
from target.iscsi.pdu import NO_TAG, Opcode
from target.scsi.task import Status

COPY_LIMIT = 16384
"""Bytes: to copy fewer into the arena is cheaper than one more element in sendmsg's vector."""

MASK = 0xFFFFFFFF
PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")
"""The padding, by the two low bits of a length."""


class Sender:
    """A packer of PDUs into `output`; the next answer carries `stat_sn`, `exp_cmd_sn` and `max_cmd_sn`."""

    __slots__ = ("digests", "exp_cmd_sn", "max_burst", "max_cmd_sn", "max_segment", "output", "stat_sn")

    def __init__(self, output: Output) -> None:
        self.output = output
        self.digests = pdu.NO_DIGESTS
        self.stat_sn = 1
        self.exp_cmd_sn = 0
        self.max_cmd_sn = 0
        self.max_segment = 8192  # the initiator's MaxRecvDataSegmentLength
        self.max_burst = 262144

    @property
    def window_open(self) -> bool:
        """Whether the initiator may send a command (RFC 7143 4.2.2.1)."""
        return self.exp_cmd_sn != self.max_cmd_sn + 1 & MASK

    def send(
        self,
        opcode: int,
        flags: int = pdu.FINAL,
        response: int = 0,
        status: int = 0,
        *,
        lun: int = 0,
        itt: int = NO_TAG,
        word20: int = 0,
        stat_sn: int | None = None,
        words: tuple[int, int, int] = (0, 0, 0),
        data: Sequence[bytes | memoryview] = (),
    ) -> None:
        """Send one PDU.  With `stat_sn` None, the PDU carries status and takes the next number."""
        if stat_sn is None:
            stat_sn = self.stat_sn
            self.stat_sn = stat_sn + 1 & MASK
        output = self.output
        length = sum(map(len, data))
        output.reserve(pdu.BHS_LENGTH)
        start = output.fill
        output.fill = start + pdu.BHS_LENGTH
        pdu.RESPONSE.pack_into(
            output.arena, start, opcode, flags, response, status, length, lun, itt, word20,
            stat_sn, self.exp_cmd_sn, self.max_cmd_sn, *words,
        )  # fmt: skip
        if self.digests.header:
            output.append(pdu.digest_bytes(pdu.digest(output.arena[start : output.fill])))
        if length:
            self._send_data(data, length)

    def _send_data(self, data: Sequence[bytes | memoryview], length: int) -> None:
        output = self.output
        for piece in data:
            if len(piece) <= COPY_LIMIT:
                output.append(piece)
            else:
                output.append_view(memoryview(piece))
        padding = PADDING[length & 3]
        if padding:
            output.append(padding)
        if self.digests.data:
            value = 0
            for piece in data:
                value = pdu.digest(piece, value)
            output.append(pdu.digest_bytes(pdu.digest(padding, value)))

    def scsi_response(
        self, itt: int, status: int, sense: bytes, *, residual: tuple[int, int] = (0, 0), exp_data_sn: int = 0
    ) -> None:
        """Send a SCSI Response; `residual` is (flag, count)."""
        flag, count = residual
        data = (len(sense).to_bytes(2, "big") + sense,) if sense else ()
        self.send(Opcode.SCSI_RESPONSE, pdu.FINAL | flag, 0, status, itt=itt, words=(exp_data_sn, 0, count), data=data)

    def data_in(self, itt: int, status: int, sense: bytes, data: Sequence[memoryview], expected: int) -> None:
        """Send all Data-In PDUs of a command and its status: GOOD in the last of them, any other status behind them.

        The views are sent uncopied unless they are small.
        """
        actual = sum(map(len, data))
        residual = residual_of(expected, actual)
        total = min(actual, expected)
        offset = data_sn = 0
        burst_left = self.max_burst
        with_status = status == Status.GOOD and total > 0
        while offset < total:
            length = min(self.max_segment, total - offset, burst_left)
            burst_left -= length
            last = offset + length == total
            flags = pdu.FINAL if last or not burst_left else 0
            if not burst_left:
                burst_left = self.max_burst
            status_here = last and with_status
            self.send(
                Opcode.DATA_IN,
                flags | (pdu.DATA_IN_STATUS | residual[0] if status_here else 0),
                itt=itt,
                word20=NO_TAG,
                stat_sn=None if status_here else 0,
                words=(data_sn, offset, residual[1] if status_here else 0),
                data=piece_of(data, offset, length),
            )
            offset += length
            data_sn += 1
        if not with_status:
            self.scsi_response(itt, status, sense, residual=residual, exp_data_sn=data_sn)

    def r2t(self, itt: int, lun: int, ttt: int, r2t_sn: int, offset: int, length: int) -> None:
        """Ask for `length` bytes from `offset` on.  The R2T names the next StatSN and does not take it."""
        self.send(
            Opcode.R2T, lun=lun, itt=itt, word20=ttt, stat_sn=self.stat_sn, words=(r2t_sn, offset, length)
        )  # fmt: skip

    def reject(self, reason: int, bhs: bytes | memoryview) -> None:
        """Send a Reject with the header of the rejected PDU."""
        self.send(Opcode.REJECT, response=reason, data=(bytes(bhs),))

    def nop_in(self, itt: int, ttt: int, lun: int = 0, data: bytes | memoryview = b"") -> None:
        """Send a NOP-In: an answer if `itt` is a tag, otherwise a ping that takes no StatSN."""
        answer = itt != NO_TAG
        self.send(
            Opcode.NOP_IN,
            lun=lun,
            itt=itt,
            word20=ttt,
            stat_sn=None if answer else self.stat_sn,
            data=(data,) if data else (),
        )

    def async_message(self, event: int, code: int = 0, parameters: tuple[int, int, int] = (0, 0, 0)) -> None:
        """Send an Asynchronous Message without sense data."""
        words = (event << 24 | code << 16 | parameters[0], parameters[1] << 16 | parameters[2], 0)
        self.send(Opcode.ASYNC_MESSAGE, words=words)


def residual_of(expected: int, actual: int) -> tuple[int, int]:
    """Return the residual flag and count of a SCSI Response, from expected and actual bytes (RFC 7143 11.4.5)."""
    if actual < expected:
        return pdu.RESIDUAL_UNDERFLOW, expected - actual
    if actual > expected:
        return pdu.RESIDUAL_OVERFLOW, actual - expected
    return 0, 0


def piece_of(data: Sequence[memoryview], offset: int, length: int) -> Sequence[memoryview]:
    """Return `length` bytes from `offset` on of a scatter list."""
    pieces: list[memoryview] = []
    for view in data:
        if not length:
            break
        if offset >= len(view):
            offset -= len(view)
            continue
        piece = view[offset : offset + length]
        pieces.append(piece)
        length -= len(piece)
        offset = 0
    return pieces
