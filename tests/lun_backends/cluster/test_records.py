# SPDX-License-Identifier: Apache-2.0
"""Records of the log: what is encoded is decoded, and what is damaged is refused with the reason."""

from __future__ import annotations

import uuid

import crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lun_backends.cluster import records
from lun_backends.cluster.records import Record, Type

VOLUME = uuid.UUID(int=1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
IDENTITY = st.none() | st.uuids().filter(lambda identity: identity.int)
RECORDS = st.builds(
    Record,
    st.sampled_from(Type),
    st.just(VOLUME),
    st.integers(0, 2**64 - 1),
    IDENTITY,
    IDENTITY,
    st.integers(0, 2**64 - 1),
    st.integers(-(2**63), 2**63 - 1),
    TEXT,
    TEXT,
    st.dictionaries(TEXT, TEXT, max_size=3),
    TEXT,
)


@given(RECORDS, st.integers(0, 2**32))
def test_record_survives_its_block(record: Record, position: int) -> None:
    block = records.encode(record, position, 4096)
    assert len(block) == 4096
    assert records.decode(block, position, VOLUME) == record


@given(RECORDS, st.integers(8, 300), st.integers(1, 255))
def test_changed_byte_is_damage_or_padding(record: Record, at: int, bits: int) -> None:
    block = bytearray(records.encode(record, 5, 4096))
    block[at] ^= bits
    try:
        assert records.decode(bytes(block), 5, VOLUME) == record
    except records.RecordDamaged as damage:
        assert damage.position == 5


def test_record_of_another_volume_is_foreign() -> None:
    block = records.encode(Record(Type.EPOCH, uuid.UUID(int=2)), 0, 512)
    with pytest.raises(records.RecordForeign, match="of volume 00000000-0000-0000-0000-000000000002"):
        records.decode(block, 0, VOLUME)


def test_record_of_another_block_is_foreign() -> None:
    block = records.encode(Record(Type.EPOCH, VOLUME), 3, 512)
    with pytest.raises(records.RecordForeign, match="holds record 3"):
        records.decode(block, 4, VOLUME)


def test_block_without_magic_holds_no_record() -> None:
    with pytest.raises(records.NoRecord, match="block 9 of the log holds no record"):
        records.decode(bytes(512), 9, VOLUME)


def test_half_a_record_is_torn() -> None:
    block = records.encode(Record(Type.EPOCH, VOLUME, name="nightly"), 0, 512)
    with pytest.raises(records.RecordTorn):
        records.decode(block[:100].ljust(512, b"\0"), 0, VOLUME)
    with pytest.raises(records.RecordTorn):
        records.decode(block[:20], 0, VOLUME)


def test_record_of_a_newer_version_asks_for_an_update() -> None:
    block = bytearray(records.encode(Record(Type.EPOCH, VOLUME), 0, 512))
    block[8] = 2
    used = block.rstrip(b"\0")
    end = len(used) - 4
    block[end : end + 4] = crc32c.crc32c(bytes(block[:end])).to_bytes(4, "little")
    with pytest.raises(records.RecordUnknown, match="update this node"):
        records.decode(bytes(block), 0, VOLUME)


def test_text_that_does_not_fit_names_its_size_and_the_remedy() -> None:
    with pytest.raises(records.RecordTooLong, match=r"take \d+ bytes .* room for 408: use fewer or shorter labels"):
        records.encode(Record(Type.EPOCH, VOLUME, labels={"why": "x" * 500}), 0, 512)
