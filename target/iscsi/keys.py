# SPDX-License-Identifier: Apache-2.0
"""Text keys and their negotiation (RFC 7143 sections 6 and 13), as one table.

| kind       | who speaks          | result                                                       |
| ---------- | ------------------- | ------------------------------------------------------------ |
| DECLARE    | each for itself     | the value declared; not answered                             |
| LIST       | initiator offers    | the first of its values that we know, else `Reject`          |
| AND, OR    | initiator offers    | both booleans and-ed / or-ed                                 |
| MINIMUM    | initiator offers    | the smaller number                                           |
| MAXIMUM    | initiator offers    | the larger number                                            |
| OBSOLETE   | initiator offers    | a fixed answer: RFC 3720 keys that RFC 7143 withdrew         |

A value out of range or of the wrong type is answered `Reject` and leaves the default in force.  An unknown key is
answered `NotUnderstood` (6.2.2).  `Parameters` holds what is in force.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass

from target.iscsi import errors

MAX_VALUE_LENGTH = 255
"""RFC 7143 6.1, unless the key allows more; only SendTargets answers may be longer, and a target never reads those."""

_KEY = re.compile(r"[A-Z][A-Za-z0-9.\-+@_/]{0,62}\Z|[XYZ][-#][A-Za-z0-9.\-+@_/]{1,61}\Z")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]{1,8}\Z|[0-9]{1,10}\Z")

NOT_UNDERSTOOD = "NotUnderstood"
REJECT = "Reject"
IRRELEVANT = "Irrelevant"


@dataclass(frozen=True, slots=True)
class Parameters:
    """The values that both sides agreed on; a field per key of RFC 7143 section 13, at the RFC's defaults."""

    header_digest: str = "None"
    data_digest: str = "None"
    max_connections: int = 1
    initial_r2t: bool = True
    immediate_data: bool = True
    max_recv_data_segment_length: int = 8192  # the initiator's: the most bytes that we may send in one PDU
    max_burst_length: int = 262144
    first_burst_length: int = 65536
    default_time2wait: int = 2
    default_time2retain: int = 20
    max_outstanding_r2t: int = 1
    data_pdu_in_order: bool = True
    data_sequence_in_order: bool = True
    error_recovery_level: int = 0
    task_reporting: str = "RFC3720"
    protocol_level: int = 1


OURS = Parameters(
    max_recv_data_segment_length=262144,
    initial_r2t=False,
    max_burst_length=1 << 20,
    first_burst_length=262144,
    default_time2wait=2,
    default_time2retain=0,
    max_outstanding_r2t=8,
)
"""The portal's side of a negotiation.  Time2Retain 0: at ErrorRecoveryLevel 0 a session ends with its connection."""


class Kind(enum.Enum):
    """The way in which a key's result is found; see the module's docstring."""

    DECLARE = enum.auto()
    LIST = enum.auto()
    AND = enum.auto()
    OR = enum.auto()
    MINIMUM = enum.auto()
    MAXIMUM = enum.auto()
    OBSOLETE = enum.auto()


@dataclass(frozen=True, slots=True)
class Key:
    """One row of the negotiation table."""

    name: str
    kind: Kind
    field: str = ""  # of Parameters; "" when login handles the key itself
    low: int = 0
    high: int = 0
    choices: tuple[str, ...] = ()  # LIST: the values we support; OBSOLETE: the fixed answer
    full_feature: bool = False  # may also be sent in the full feature phase


TABLE: dict[str, Key] = {
    key.name: key
    for key in (
        Key("HeaderDigest", Kind.LIST, "header_digest", choices=("CRC32C", "None")),
        Key("DataDigest", Kind.LIST, "data_digest", choices=("CRC32C", "None")),
        Key("MaxConnections", Kind.MINIMUM, "max_connections", 1, 65535),
        Key("InitialR2T", Kind.OR, "initial_r2t"),
        Key("ImmediateData", Kind.AND, "immediate_data"),
        Key(
            "MaxRecvDataSegmentLength",
            Kind.DECLARE,
            "max_recv_data_segment_length",
            512,
            (1 << 24) - 1,
            full_feature=True,
        ),
        Key("MaxBurstLength", Kind.MINIMUM, "max_burst_length", 512, (1 << 24) - 1),
        Key("FirstBurstLength", Kind.MINIMUM, "first_burst_length", 512, (1 << 24) - 1),
        Key("DefaultTime2Wait", Kind.MAXIMUM, "default_time2wait", 0, 3600),
        Key("DefaultTime2Retain", Kind.MINIMUM, "default_time2retain", 0, 3600),
        Key("MaxOutstandingR2T", Kind.MINIMUM, "max_outstanding_r2t", 1, 65535),
        Key("DataPDUInOrder", Kind.OR, "data_pdu_in_order"),
        Key("DataSequenceInOrder", Kind.OR, "data_sequence_in_order"),
        Key("ErrorRecoveryLevel", Kind.MINIMUM, "error_recovery_level", 0, 2),
        Key("TaskReporting", Kind.LIST, "task_reporting", choices=("RFC3720",)),
        Key("iSCSIProtocolLevel", Kind.MINIMUM, "protocol_level", 0, 31),
        Key("IFMarker", Kind.OBSOLETE, choices=("No",)),
        Key("OFMarker", Kind.OBSOLETE, choices=("No",)),
        Key("IFMarkInt", Kind.OBSOLETE, choices=(IRRELEVANT,)),
        Key("OFMarkInt", Kind.OBSOLETE, choices=(IRRELEVANT,)),
        Key("AuthMethod", Kind.DECLARE),
        Key("InitiatorName", Kind.DECLARE),
        Key("InitiatorAlias", Kind.DECLARE),
        Key("TargetName", Kind.DECLARE),
        Key("SessionType", Kind.DECLARE),
        Key("SendTargets", Kind.DECLARE, full_feature=True),
    )
}

ONLY_TARGETS_SEND = frozenset({"TargetAlias", "TargetAddress", "TargetPortalGroupTag"})


def parse(data: bytes) -> list[tuple[str, str]]:
    """Return the key=value pairs of a text data segment (RFC 7143 6.1).

    Raise errors.PeerError if the data is not UTF-8, a pair has no "=", or a key is malformed or occurs twice.
    """
    pairs: list[tuple[str, str]] = []
    seen: set[str] = set()
    for raw in data.split(b"\0"):
        if not raw:
            continue  # padding, or an initiator's extra terminator
        try:
            key, equals, value = raw.decode("utf-8").partition("=")
        except UnicodeDecodeError as error:
            raise errors.PeerError("text keys that are not UTF-8") from error
        if not equals:
            raise errors.PeerError("text that is not key=value")
        if not (_KEY.match(key) or key == "iSCSIProtocolLevel"):
            raise errors.PeerError("a malformed text key")
        if key in seen:
            raise errors.PeerError(f"text key {key} twice")
        seen.add(key)
        pairs.append((key, value))
    return pairs


def serialise(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Return a text data segment."""
    return b"".join(f"{key}={value}\0".encode() for key, value in pairs)


def number(value: str, low: int, high: int) -> int | None:
    """Return a numerical value (RFC 7143 6.1: decimal or 0x hexadecimal), or None if it is invalid or out of range."""
    if not _NUMBER.match(value):
        return None
    parsed = int(value, 16) if value[:2] in ("0x", "0X") else int(value)
    return parsed if low <= parsed <= high else None


def _agree(key: Key, value: str, ours: Parameters) -> str | int | bool | None:
    """Return the result of negotiating `value`, or None if it is refused."""
    if key.kind is Kind.LIST:
        return next((offer for offer in value.split(",") if offer in key.choices), None)
    mine = getattr(ours, key.field)
    if key.kind in (Kind.AND, Kind.OR):
        if value not in ("Yes", "No"):
            return None
        theirs = value == "Yes"
        return bool(mine and theirs) if key.kind is Kind.AND else bool(mine or theirs)
    offered = number(value, key.low, key.high)
    if offered is None:
        return None
    if key.kind is Kind.MINIMUM:
        return min(offered, int(mine))
    return max(offered, int(mine)) if key.kind is Kind.MAXIMUM else offered


def _spell(value: str | int | bool) -> str:
    return ("Yes" if value else "No") if isinstance(value, bool) else str(value)


def negotiate(
    pairs: Iterable[tuple[str, str]], agreed: Parameters, ours: Parameters = OURS, *, full_feature: bool = False
) -> tuple[Parameters, list[tuple[str, str]]]:
    """Negotiate the operational keys of an initiator; return the parameters now in force, and the pairs to answer.

    Both leave out the keys that only the login understands (Kind.DECLARE without a field).  Raise errors.PeerError for
    keys that only targets may send.
    """
    answers: list[tuple[str, str]] = []
    changes: dict[str, str | int | bool] = {}
    for name, value in pairs:
        key = TABLE.get(name)
        if name in ONLY_TARGETS_SEND:
            raise errors.PeerError(f"{name} sent by an initiator")
        if key is None:
            if value != NOT_UNDERSTOOD:
                answers.append((name, NOT_UNDERSTOOD))
        elif full_feature and not key.full_feature:
            answers.append((name, REJECT))
        elif key.kind is Kind.OBSOLETE:
            answers.append((name, key.choices[0]))
        elif key.field:
            result = _agree(key, value, ours) if len(value) <= MAX_VALUE_LENGTH else None
            if result is None:
                answers.append((name, REJECT))
            else:
                changes[key.field] = result
                if key.kind is not Kind.DECLARE:
                    answers.append((name, _spell(result)))
    agreed = dataclasses.replace(agreed, **changes)  # type: ignore[arg-type]  # the table pairs fields with their types
    if agreed.first_burst_length > agreed.max_burst_length:
        # RFC 7143 13.14 forbids it.  Our own two numbers keep the rule, so only a mixture of both sides' offers breaks
        # it.
        agreed = dataclasses.replace(agreed, first_burst_length=agreed.max_burst_length)
    return agreed, answers
