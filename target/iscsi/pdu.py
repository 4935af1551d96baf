# SPDX-License-Identifier: Apache-2.0
"""iSCSI protocol data units: their layout on the wire (RFC 7143 section 11), not their meaning.

A PDU is a 48-byte basic header segment (BHS), additional header segments (AHS), and the data segment, padded with
zeroes to 4 bytes.  A CRC32C of both headers follows them if the header digest is on.  A CRC32C of the data segment
follows it if the data digest is on and there is data.  Digests are sent least significant byte first (RFC 7143 13.1);
everything else is big-endian.

Each request is unpacked whole with one of the precompiled structs below; answers are packed the same way.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

import crc32c

BHS_LENGTH = 48
DIGEST_LENGTH = 4
NO_TAG = 0xFFFFFFFF
"""The reserved tag: no initiator task tag, no target transfer tag."""

MAX_DATA_SEGMENT_LENGTH = (1 << 24) - 1

IMMEDIATE = 0x40
FINAL = 0x80


class Opcode(enum.IntEnum):
    """The opcodes of RFC 7143 11.2.1.2, without the I bit."""

    NOP_OUT = 0x00
    SCSI_COMMAND = 0x01
    TASK_MANAGEMENT_REQUEST = 0x02
    LOGIN_REQUEST = 0x03
    TEXT_REQUEST = 0x04
    DATA_OUT = 0x05
    LOGOUT_REQUEST = 0x06
    SNACK_REQUEST = 0x10
    NOP_IN = 0x20
    SCSI_RESPONSE = 0x21
    TASK_MANAGEMENT_RESPONSE = 0x22
    LOGIN_RESPONSE = 0x23
    TEXT_RESPONSE = 0x24
    DATA_IN = 0x25
    LOGOUT_RESPONSE = 0x26
    R2T = 0x31
    ASYNC_MESSAGE = 0x32
    REJECT = 0x3F


class RejectReason(enum.IntEnum):
    """RFC 7143 11.17.1."""

    DATA_DIGEST_ERROR = 0x02
    SNACK_REJECT = 0x03
    PROTOCOL_ERROR = 0x04
    COMMAND_NOT_SUPPORTED = 0x05
    IMMEDIATE_COMMAND_REJECT = 0x06
    TASK_IN_PROGRESS = 0x07
    INVALID_DATA_ACK = 0x08
    INVALID_PDU_FIELD = 0x09
    LONG_OPERATION_REJECT = 0x0A
    NEGOTIATION_RESET = 0x0B
    WAITING_FOR_LOGOUT = 0x0C


class TaskManagementFunction(enum.IntEnum):
    """RFC 7143 11.5.1."""

    ABORT_TASK = 1
    ABORT_TASK_SET = 2
    CLEAR_ACA = 3
    CLEAR_TASK_SET = 4
    LOGICAL_UNIT_RESET = 5
    TARGET_WARM_RESET = 6
    TARGET_COLD_RESET = 7
    TASK_REASSIGN = 8


class TaskManagementResponse(enum.IntEnum):
    """RFC 7143 11.6.1."""

    FUNCTION_COMPLETE = 0
    TASK_DOES_NOT_EXIST = 1
    LUN_DOES_NOT_EXIST = 2
    TASK_STILL_ALLEGIANT = 3
    REASSIGN_NOT_SUPPORTED = 4
    FUNCTION_NOT_SUPPORTED = 5
    AUTHORIZATION_FAILED = 6
    FUNCTION_REJECTED = 255


class AsyncEvent(enum.IntEnum):
    """RFC 7143 11.9.1."""

    SCSI = 0
    LOGOUT_REQUESTED = 1
    CONNECTION_DROPPED = 2
    SESSION_DROPPED = 3
    NEGOTIATION_REQUESTED = 4


class LogoutReason(enum.IntEnum):
    """RFC 7143 11.14.1."""

    CLOSE_SESSION = 0
    CLOSE_CONNECTION = 1
    RECOVERY = 2


class LogoutResponse(enum.IntEnum):
    """RFC 7143 11.15.1."""

    CLOSED = 0
    CID_NOT_FOUND = 1
    RECOVERY_NOT_SUPPORTED = 2
    CLEANUP_FAILED = 3


# SCSI Command flags, byte 1 (RFC 7143 11.3.1); Data-In flags (11.7.1); SCSI Response flags (11.4.1).
COMMAND_READ = 0x40
COMMAND_WRITE = 0x20
DATA_IN_STATUS = 0x01
RESIDUAL_OVERFLOW = 0x04
RESIDUAL_UNDERFLOW = 0x02

AHS_EXTENDED_CDB = 1
AHS_BIDIRECTIONAL_READ_LENGTH = 2

TEXT_CONTINUE = 0x40
LOGIN_TRANSIT = 0x80

# Requests.  `lengths` is TotalAHSLength (words) in the top byte and DataSegmentLength (bytes) in the other three.
SCSI_COMMAND = struct.Struct(">BBHIQIIII16s")
"""opcode, flags, -, lengths, LUN, ITT, expected data transfer length, CmdSN, ExpStatSN, CDB (RFC 7143 11.3)."""
REQUEST = struct.Struct(">BBBBIQIIII16x")
"""opcode, flags, byte 2, byte 3, lengths, LUN, ITT, word 20, CmdSN, ExpStatSN: the fields that NOP-Out, Text, Login,
Logout and task management requests share; word 20 is the TTT, the referenced task tag, or the CID."""
DATA_OUT = struct.Struct(">BBHIQIIIIIII4x")
"""opcode, flags, -, lengths, LUN, ITT, TTT, -, ExpStatSN, -, DataSN, buffer offset (RFC 7143 11.7)."""

# Answers.
RESPONSE = struct.Struct(">BBBBIQIIIIIIII")
"""opcode, flags, response, status, lengths, LUN, ITT, word 20, StatSN, ExpCmdSN, MaxCmdSN, and words 36, 40, 44:
ExpDataSN, bidirectional residual, residual of a SCSI Response (RFC 7143 11.4); DataSN, buffer offset, residual of a
Data-In (11.7); R2TSN, buffer offset, length of an R2T (11.8).  All answers fit it."""

_LENGTHS = struct.Struct(">4xI40x")
_DIGEST = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Digests:
    """The digests that a connection uses."""

    header: bool = False
    data: bool = False


NO_DIGESTS = Digests()


@dataclass(frozen=True, slots=True)
class Pdu:
    """One PDU found in a receive buffer; the views are into that buffer."""

    bhs: memoryview
    ahs: memoryview
    data: memoryview
    end: int  # where the next PDU begins
    data_digest_ok: bool

    @property
    def opcode(self) -> int:
        """The opcode, without the I bit."""
        return self.bhs[0] & 0x3F

    @property
    def immediate(self) -> bool:
        """Whether the request takes no place in the command window."""
        return bool(self.bhs[0] & IMMEDIATE)


class HeaderDigestError(Exception):
    """A header cannot be trusted, and so the start of the next one is unknown."""


class DataSegmentTooLong(Exception):
    """The peer sends more data in one PDU than MaxRecvDataSegmentLength allows."""


def padded(length: int) -> int:
    """Return `length` rounded up to 4 bytes."""
    return (length + 3) & ~3


def digest(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """Return the CRC32C of `data`, continued from `value`."""
    return crc32c.crc32c(data, value)


def digest_bytes(value: int) -> bytes:
    """Return a CRC32C as it is sent."""
    return _DIGEST.pack(value)


def find(buffer: memoryview, start: int, end: int, digests: Digests, max_data: int) -> Pdu | None:
    """Return the complete PDU at `buffer[start:end]`, or None if more bytes are needed.

    Raise HeaderDigestError, and DataSegmentTooLong if the data segment is longer than `max_data` bytes.  Both are
    raised as soon as the header is complete, before the data has arrived.
    """
    if end - start < BHS_LENGTH:
        return None
    (lengths,) = _LENGTHS.unpack_from(buffer, start)
    header_end = start + BHS_LENGTH + (lengths >> 24) * 4
    data_length = lengths & 0xFFFFFF
    if digests.header:
        data_start = header_end + DIGEST_LENGTH
        if end < data_start:
            return None
        if digest(buffer[start:header_end]) != _DIGEST.unpack_from(buffer, header_end)[0]:
            raise HeaderDigestError("header digest does not match")
    else:
        data_start = header_end
    if data_length > max_data:
        raise DataSegmentTooLong(f"data segment of {data_length} bytes, at most {max_data} were declared")
    data_end = data_start + padded(data_length)
    pdu_end = data_end
    data_digest_ok = True
    if digests.data and data_length:
        pdu_end += DIGEST_LENGTH
        if end < pdu_end:
            return None
        data_digest_ok = digest(buffer[data_start:data_end]) == _DIGEST.unpack_from(buffer, data_end)[0]
    elif end < pdu_end:
        return None
    return Pdu(
        buffer[start : start + BHS_LENGTH],
        buffer[start + BHS_LENGTH : header_end],
        buffer[data_start : data_start + data_length],
        pdu_end,
        data_digest_ok,
    )


def extra_headers(ahs: memoryview) -> dict[int, bytes]:
    """Return the additional header segments by type (RFC 7143 11.2.2).

    Raise ValueError if they do not fit their lengths.
    """
    segments: dict[int, bytes] = {}
    position = 0
    while position < len(ahs):
        if len(ahs) - position < 4:
            raise ValueError("truncated additional header segment")
        length = ahs[position] << 8 | ahs[position + 1]
        kind = ahs[position + 2] & 0x3F
        body = bytes(ahs[position + 3 : position + 3 + length])
        if len(body) < length or kind in segments:
            raise ValueError("additional header segments do not fit their lengths")
        segments[kind] = body
        position += padded(3 + length)
    return segments


def encode(
    bhs: bytes | bytearray, data: bytes | memoryview = b"", digests: Digests = NO_DIGESTS, ahs: bytes = b""
) -> bytes:
    """Return a whole PDU, with the lengths in `bhs` filled in.  Meant for small PDUs, because it copies the data."""
    header = bytearray(bhs)
    header[4:8] = (len(ahs) // 4 << 24 | len(data)).to_bytes(4, "big")
    header += ahs
    parts = [bytes(header)]
    if digests.header:
        parts.append(digest_bytes(digest(header)))
    if data:
        body = bytes(data) + bytes(padded(len(data)) - len(data))
        parts.append(body)
        if digests.data:
            parts.append(digest_bytes(digest(body)))
    return b"".join(parts)
