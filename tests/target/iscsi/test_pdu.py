# SPDX-License-Identifier: Apache-2.0
"""PDUs on the wire: encoding, finding, and damage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.iscsi import pdu
from target.iscsi.pdu import Digests

ALL_DIGESTS = [Digests(header, data) for header in (False, True) for data in (False, True)]


def find(raw: bytes, digests: Digests = pdu.NO_DIGESTS, limit: int = 8192) -> pdu.Pdu | None:
    return pdu.find(memoryview(raw), 0, len(raw), digests, limit)


def test_crc32c_is_the_one_of_the_rfc() -> None:
    # RFC 7143 appendix A.4: 32 bytes of zeroes and of ones, as they are sent.
    assert pdu.digest_bytes(pdu.digest(bytes(32))) == bytes.fromhex("aa36918a")
    assert pdu.digest_bytes(pdu.digest(b"\xff" * 32)) == bytes.fromhex("43aba862")
    assert pdu.digest_bytes(pdu.digest(bytes(range(32)))) == bytes.fromhex("4e79dd46")


@given(
    digests=st.sampled_from(ALL_DIGESTS),
    data=st.binary(max_size=70),
    words=st.integers(0, 3),
    behind=st.binary(max_size=9),
)
def test_an_encoded_pdu_is_found(digests: Digests, data: bytes, words: int, behind: bytes) -> None:
    ahs = bytes(range(words * 4))
    raw = pdu.encode(bytes(range(48)), data, digests, ahs)
    parsed = find(raw + behind, digests)
    assert parsed is not None
    assert (bytes(parsed.ahs), bytes(parsed.data), parsed.end, parsed.data_digest_ok) == (ahs, data, len(raw), True)
    for end in (0, 47, len(raw) - 1):
        assert find(raw[:end], digests) is None


def test_damage_is_noticed() -> None:
    both = Digests(header=True, data=True)
    raw = bytearray(pdu.encode(bytes(48), b"data", both))
    raw[-6] ^= 1
    parsed = find(bytes(raw), both)
    assert parsed is not None
    assert not parsed.data_digest_ok
    raw[20] ^= 1
    with pytest.raises(pdu.HeaderDigestError):
        find(bytes(raw), both)


def test_a_long_data_segment_is_refused_before_its_data_arrives() -> None:
    with pytest.raises(pdu.DataSegmentTooLong):
        find(bytes(4) + (8193).to_bytes(4, "big") + bytes(40))


def test_additional_headers_are_split_by_type() -> None:
    cdb = b"\0\x05\x01\0" + b"wxyz" + b"\0\0\0\0"[:0]
    length = b"\0\x05\x02\0" + (4096).to_bytes(4, "big")
    assert pdu.extra_headers(memoryview(cdb + length)) == {1: b"\0wxyz", 2: b"\0\0\0\x10\0"}
    for broken in (b"\0\x09\x01\0abcd", b"\0\x05", cdb + cdb):
        with pytest.raises(ValueError):
            pdu.extra_headers(memoryview(broken))


def test_the_two_formats_of_an_answer_agree() -> None:
    assert pdu.RESPONSE.size == pdu.REQUEST.size == pdu.SCSI_COMMAND.size == pdu.DATA_OUT.size == pdu.BHS_LENGTH
