# SPDX-License-Identifier: Apache-2.0
"""Sense data (SPC-4 4.5): the reason of a failure in the terms on which initiators act.

Handlers raise `CheckCondition`.  The block devices below raise their typed errors, and `from_error` holds the one table
that turns those into sense data.  `Sense.pack` returns fixed (70h) or descriptor (72h) format, as the D_SENSE bit of
the control mode page asks.  The fixed format's INFORMATION field has 32 bits, so that format omits a larger LBA, with
VALID = 0 (SBC-4 4.18.1).  For this reason, a unit of more than 2**32 blocks starts with D_SENSE = 1.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lun_backends import block_device


class SenseKey(enum.IntEnum):
    """The sense keys of SPC-4 table 49."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    MISCOMPARE = 0xE
    COMPLETED = 0xF


class Asc(enum.IntEnum):
    """ADDITIONAL SENSE CODE and its QUALIFIER as one 16-bit number (SPC-4 annex F)."""

    NO_ADDITIONAL_SENSE_INFORMATION = 0x0000
    LOGICAL_UNIT_NOT_READY_CAUSE_NOT_REPORTABLE = 0x0400
    LOGICAL_UNIT_IS_IN_PROCESS_OF_BECOMING_READY = 0x0401
    LOGICAL_UNIT_NOT_READY_MANUAL_INTERVENTION_REQUIRED = 0x0403
    LOGICAL_UNIT_COMMUNICATION_FAILURE = 0x0800
    WRITE_ERROR = 0x0C00
    COPY_TARGET_DEVICE_NOT_REACHABLE = 0x0D02
    INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT = 0x0E03
    UNRECOVERED_READ_ERROR = 0x1100
    PARAMETER_LIST_LENGTH_ERROR = 0x1A00
    MISCOMPARE_DURING_VERIFY_OPERATION = 0x1D00
    INVALID_COMMAND_OPERATION_CODE = 0x2000
    LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE = 0x2100
    INVALID_FIELD_IN_CDB = 0x2400
    LOGICAL_UNIT_NOT_SUPPORTED = 0x2500
    INVALID_FIELD_IN_PARAMETER_LIST = 0x2600
    INVALID_RELEASE_OF_PERSISTENT_RESERVATION = 0x2604
    TOO_MANY_TARGET_DESCRIPTORS = 0x2606
    UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE = 0x2607
    TOO_MANY_SEGMENT_DESCRIPTORS = 0x2608
    UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE = 0x2609
    INLINE_DATA_LENGTH_EXCEEDED = 0x260B
    WRITE_PROTECTED = 0x2700
    LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED = 0x2702
    SPACE_ALLOCATION_FAILED_WRITE_PROTECT = 0x2707
    MEDIUM_MAY_HAVE_CHANGED = 0x2800
    POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED = 0x2900
    BUS_DEVICE_RESET_FUNCTION_OCCURRED = 0x2903
    I_T_NEXUS_LOSS_OCCURRED = 0x2907
    MODE_PARAMETERS_CHANGED = 0x2A01
    RESERVATIONS_PREEMPTED = 0x2A03
    RESERVATIONS_RELEASED = 0x2A04
    REGISTRATIONS_PREEMPTED = 0x2A05
    CAPACITY_DATA_HAS_CHANGED = 0x2A09
    COMMANDS_CLEARED_BY_ANOTHER_INITIATOR = 0x2F00
    THIN_PROVISIONING_SOFT_THRESHOLD_REACHED = 0x3807
    SAVING_PARAMETERS_NOT_SUPPORTED = 0x3900
    LOGICAL_UNIT_FAILED_SELF_TEST = 0x3E03
    INQUIRY_DATA_HAS_CHANGED = 0x3F03
    REPORTED_LUNS_DATA_HAS_CHANGED = 0x3F0E
    INTERNAL_TARGET_FAILURE = 0x4400
    INSUFFICIENT_REGISTRATION_RESOURCES = 0x5504


@dataclass(frozen=True, slots=True)
class FieldPointer:
    """The field of the CDB or of the parameter list that is in error (SPC-4 4.5.2.4.2): its byte and, if known, its bit."""

    byte: int
    bit: int | None = None
    in_cdb: bool = True

    def pack(self) -> bytes:
        """Return the three SENSE KEY SPECIFIC bytes."""
        flags = 0x80 | (0x40 if self.in_cdb else 0) | (0 if self.bit is None else 0x08 | self.bit)
        return struct.pack(">BH", flags, self.byte)


_FIXED = struct.Struct(">BxBIBIHB3s")
_DESCRIPTOR_HEADER = struct.Struct(">BBH3xB")
_INFORMATION_DESCRIPTOR = struct.Struct(">BBBxQ")
_SENSE_KEY_SPECIFIC_DESCRIPTOR = struct.Struct(">BB2x3sx")


@dataclass(frozen=True, slots=True)
class Sense:
    """One piece of sense data; `asc` is ASC and ASCQ as one number, `information` an LBA or, for MISCOMPARE, an offset."""

    key: SenseKey
    asc: int
    information: int | None = None
    field: FieldPointer | None = None

    def pack(self, *, descriptor: bool) -> bytes:
        """Return the sense data as bytes: fixed format (18 bytes) or descriptor format."""
        specific = b"" if self.field is None else self.field.pack()
        if descriptor:
            descriptors = b""
            if self.information is not None:
                descriptors += _INFORMATION_DESCRIPTOR.pack(0x00, 0x0A, 0x80, self.information)
            if specific:
                descriptors += _SENSE_KEY_SPECIFIC_DESCRIPTOR.pack(0x02, 0x06, specific)
            return _DESCRIPTOR_HEADER.pack(0x72, self.key, self.asc, len(descriptors)) + descriptors
        code, information = 0x70, 0
        if self.information is not None and self.information <= 0xFFFFFFFF:
            code, information = 0xF0, self.information
        return _FIXED.pack(code, self.key, information, 10, 0, self.asc, 0, specific)


class CheckCondition(Exception):
    """A command ends with CHECK CONDITION and this sense data."""

    def __init__(self, sense: Sense, data_in: Sequence[memoryview] = ()) -> None:
        super().__init__(f"{sense.key.name} {sense.asc >> 8:02X}h/{sense.asc & 0xFF:02X}h")
        self.sense = sense
        self.data_in = data_in  # the data before the block that made a read fail


NO_SENSE = Sense(SenseKey.NO_SENSE, Asc.NO_ADDITIONAL_SENSE_INFORMATION)


def illegal_request(asc: Asc) -> CheckCondition:
    """Return ILLEGAL REQUEST with an additional sense code alone."""
    return CheckCondition(Sense(SenseKey.ILLEGAL_REQUEST, asc))


def invalid_field(byte: int, bit: int | None = None) -> CheckCondition:
    """Return ILLEGAL REQUEST, INVALID FIELD IN CDB, with a pointer at the field."""
    return CheckCondition(Sense(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB, field=FieldPointer(byte, bit)))


def invalid_parameter(byte: int, bit: int | None = None) -> CheckCondition:
    """Return ILLEGAL REQUEST, INVALID FIELD IN PARAMETER LIST, with a pointer at the field."""
    field = FieldPointer(byte, bit, in_cdb=False)
    return CheckCondition(Sense(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_PARAMETER_LIST, field=field))


def parameter_list_length() -> CheckCondition:
    """Return ILLEGAL REQUEST, PARAMETER LIST LENGTH ERROR."""
    return illegal_request(Asc.PARAMETER_LIST_LENGTH_ERROR)


def out_of_range(lba: int) -> CheckCondition:
    """Return ILLEGAL REQUEST, LOGICAL BLOCK ADDRESS OUT OF RANGE; `lba` is the first one that does not exist."""
    return CheckCondition(Sense(SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, lba))


def write_protected() -> CheckCondition:
    """Return DATA PROTECT, WRITE PROTECTED."""
    return CheckCondition(Sense(SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED))


def miscompare(offset: int) -> CheckCondition:
    """Return MISCOMPARE; INFORMATION is the offset of the first byte that differs (SBC-4 5.3, 5.35)."""
    return CheckCondition(Sense(SenseKey.MISCOMPARE, Asc.MISCOMPARE_DURING_VERIFY_OPERATION, offset))


def from_error(error: block_device.BlockDeviceError) -> Sense:  # one row per error, as long as there are errors
    """Return the sense data for an error of a block device, by this table.

    `ReservationConflict` is not here: it is a status of its own, without sense data.

    | error             | sense key       | ASC/ASCQ | why |
    | ----------------- | --------------- | -------- | --- |
    | `BlankBlock`      | BLANK CHECK     | 00h/00h  | a read met blank medium (SPC-4 table 49); INFORMATION = first blank LBA |
    | `BlockWritten`    | BLANK CHECK     | 00h/00h  | a write met non-blank medium (same); INFORMATION = first written LBA |
    | `SpaceExhausted`  | DATA PROTECT    | 27h/07h  | SBC-4 4.7.3.6; Linux returns ENOSPC |
    | `WriteProtected`  | DATA PROTECT    | 27h/00h  | SBC-4 4.13 |
    | `OutOfRange`      | ILLEGAL REQUEST | 21h/00h  | INFORMATION = first LBA beyond the end |
    | `MediumError`     | MEDIUM ERROR    | 11h/00h reading, 0Ch/00h writing | Linux does not retry; INFORMATION = LBA |
    | `NotSupported`    | ILLEGAL REQUEST | 20h/00h  | this kind of unit does not know the command |
    | `SnapshotInvalid` | NOT READY       | 04h/03h  | the whole unit is lost for good, not one block: only an administrator can act |
    | `PreserveFailed`  | as its cause: DATA PROTECT 27h/07h when out of space, else MEDIUM ERROR 0Ch/00h | | the device refused the write |
    | `StateInDoubt`    | DATA PROTECT    | 27h/02h  | all writes are refused until an administrator sees to the disk; Linux does not retry |
    | `CopyTimedOut`    | MEDIUM ERROR    | 0Ch/00h  | INFORMATION = first LBA of the chunk; on its own only while copying, else a cause |
    | `NoAnswer`        | ABORTED COMMAND | 08h/00h  | the path to a device of another host is lost; Linux tries again |
    | `NotReady`        | NOT READY       | 04h/01h, for good 04h/03h | Linux sends the command again after the first, for minutes |
    | `DeviceClosed`    | NOT READY       | 04h/00h  | the unit is about to close |
    """
    match error:
        case block_device.BlankBlock(lba) | block_device.BlockWritten(lba):
            return Sense(SenseKey.BLANK_CHECK, Asc.NO_ADDITIONAL_SENSE_INFORMATION, lba)
        case block_device.SpaceExhausted(lba):
            return Sense(SenseKey.DATA_PROTECT, Asc.SPACE_ALLOCATION_FAILED_WRITE_PROTECT, lba)
        case block_device.WriteProtected():
            return Sense(SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)
        case block_device.StateInDoubt():
            return Sense(SenseKey.DATA_PROTECT, Asc.LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED)
        case block_device.OutOfRange(lba):
            return Sense(SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, lba)
        case block_device.MediumError(lba, writing):
            return Sense(SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR if writing else Asc.UNRECOVERED_READ_ERROR, lba)
        case block_device.CopyTimedOut(lba):
            return Sense(SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR, lba)
        case block_device.NotSupported():
            return Sense(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_COMMAND_OPERATION_CODE)
        case block_device.SnapshotInvalid():
            return Sense(SenseKey.NOT_READY, Asc.LOGICAL_UNIT_NOT_READY_MANUAL_INTERVENTION_REQUIRED)
        case block_device.PreserveFailed(lba, block_device.SpaceExhausted() as cause):
            return replace(from_error(cause), information=lba)
        case block_device.PreserveFailed(lba):
            return Sense(SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR, lba)
        case block_device.NoAnswer():
            return Sense(SenseKey.ABORTED_COMMAND, Asc.LOGICAL_UNIT_COMMUNICATION_FAILURE)
        case block_device.NotReady(_, for_good):
            return Sense(
                SenseKey.NOT_READY,
                Asc.LOGICAL_UNIT_NOT_READY_MANUAL_INTERVENTION_REQUIRED
                if for_good
                else Asc.LOGICAL_UNIT_IS_IN_PROCESS_OF_BECOMING_READY,
            )
        case block_device.DeviceClosed():
            return Sense(SenseKey.NOT_READY, Asc.LOGICAL_UNIT_NOT_READY_CAUSE_NOT_REPORTABLE)
        case _:
            return Sense(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE)
