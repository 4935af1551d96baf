# SPDX-License-Identifier: Apache-2.0
"""Text keys and their negotiation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.iscsi import errors, keys
from target.iscsi.keys import OURS, Parameters


def negotiate(key: str, value: str, *, full_feature: bool = False) -> tuple[Parameters, list[tuple[str, str]]]:
    return keys.negotiate([(key, value)], Parameters(), OURS, full_feature=full_feature)


@pytest.mark.parametrize(
    ("key", "offer", "answer", "field", "agreed"),
    [
        ("HeaderDigest", "CRC32C,None", "CRC32C", "header_digest", "CRC32C"),
        ("HeaderDigest", "None,CRC32C", "None", "header_digest", "None"),
        ("DataDigest", "X-other,CRC32C", "CRC32C", "data_digest", "CRC32C"),
        ("DataDigest", "X-other", "Reject", "data_digest", "None"),
        ("MaxConnections", "8", "1", "max_connections", 1),
        ("InitialR2T", "No", "No", "initial_r2t", False),
        ("InitialR2T", "Yes", "Yes", "initial_r2t", True),
        ("ImmediateData", "No", "No", "immediate_data", False),
        ("ImmediateData", "Yes", "Yes", "immediate_data", True),
        ("ImmediateData", "yes", "Reject", "immediate_data", True),
        ("MaxBurstLength", "16776192", "1048576", "max_burst_length", 1048576),
        ("MaxBurstLength", "0x1000", "4096", "max_burst_length", 4096),
        ("MaxBurstLength", "511", "Reject", "max_burst_length", 262144),
        ("MaxBurstLength", "many", "Reject", "max_burst_length", 262144),
        ("FirstBurstLength", "8192", "8192", "first_burst_length", 8192),
        ("DefaultTime2Wait", "5", "5", "default_time2wait", 5),
        ("DefaultTime2Wait", "0", "2", "default_time2wait", 2),
        ("DefaultTime2Retain", "20", "0", "default_time2retain", 0),
        ("MaxOutstandingR2T", "16", "8", "max_outstanding_r2t", 8),
        ("MaxOutstandingR2T", "0", "Reject", "max_outstanding_r2t", 1),
        ("DataPDUInOrder", "No", "Yes", "data_pdu_in_order", True),
        ("DataSequenceInOrder", "No", "Yes", "data_sequence_in_order", True),
        ("ErrorRecoveryLevel", "2", "0", "error_recovery_level", 0),
        ("iSCSIProtocolLevel", "2", "1", "protocol_level", 1),
    ],
)
def test_negotiation_follows_the_kind_of_the_key(key: str, offer: str, answer: str, field: str, agreed: object) -> None:
    parameters, answers = negotiate(key, offer)
    assert answers == [(key, answer)]
    assert getattr(parameters, field) == agreed


def test_keys_that_are_not_negotiated_have_answers_of_their_own() -> None:
    assert negotiate("MaxRecvDataSegmentLength", "65536")[0].max_recv_data_segment_length == 65536
    assert negotiate("MaxRecvDataSegmentLength", "65536")[1] == []
    assert negotiate("OFMarker", "Yes")[1] == [("OFMarker", "No")]
    assert negotiate("X-com.example.thing", "1")[1] == [("X-com.example.thing", "NotUnderstood")]
    assert negotiate("HeaderDigest", "CRC32C", full_feature=True)[1] == [("HeaderDigest", "Reject")]
    with pytest.raises(errors.PeerError):
        negotiate("TargetAddress", "192.0.2.1:3260,1")


def test_first_burst_never_exceeds_max_burst() -> None:
    parameters, _ = keys.negotiate([("MaxBurstLength", "4096"), ("FirstBurstLength", "65536")], Parameters())
    assert (parameters.first_burst_length, parameters.max_burst_length) == (4096, 4096)


@pytest.mark.parametrize(
    "text", [b"novalue\0", b"Key=1\0Key=2\0", b"lower=1\0", b"Key=\xff\0", b"=x\0", b"K" * 64 + b"=1\0"]
)
def test_malformed_text_is_the_peers_error(text: bytes) -> None:
    with pytest.raises(errors.PeerError):
        keys.parse(text)


@given(st.binary(max_size=300))
def test_any_bytes_are_parsed_or_refused(text: bytes) -> None:
    try:
        pairs = keys.parse(text)
        keys.negotiate(pairs, Parameters())
    except errors.PeerError:
        return
    assert keys.parse(keys.serialise(pairs)) == pairs
