# SPDX-License-Identifier: Apache-2.0
"""Messages are equal after a way through JSON, and JSON that does not fit is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from target import codec, messages

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

REFUSAL = messages.Refusal("in-use", "volume v is in use", "stop using it first")
VERIFICATION = messages.Verification(
    "v", "s", False, 4096, 0, 512, (messages.Damage("s", 8, 1, 4096, 512, "wrong checksum"),), ("v/s: no header",)
)
MESSAGES = (
    REFUSAL,
    messages.Job(1, "export", "v@s", "failed", 10, 20, REFUSAL),
    messages.Job(2, "export", "v@s", "done", 20, 20, None),
    messages.Snapshot("v", "s", "", "", "active", "", 1, 2, 3, 0.5, None, 4, labels={"purpose": "backup"}),
    messages.Access(("::1/128",), (messages.Initiator("iqn.2026-11.org.example:a", luns=()),), True),
    messages.Access((), None, False),
    messages.ChangeLabels({"kept": "yes", "removed": None}),
    VERIFICATION,
)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_is_the_same_after_json(message: DataclassInstance) -> None:
    assert codec.decode(type(message), json.loads(json.dumps(codec.encode(message)))) == message


def test_unknown_keys_are_ignored() -> None:
    assert codec.decode(messages.Refusal, {**codec.encode(REFUSAL), "since_version": "2.0"}) == REFUSAL


def test_a_missing_key_takes_its_default() -> None:
    assert codec.decode(messages.MappedLun, {"lun": 3, "unit": "v"}) == messages.MappedLun(3, "v", read_only=False)


def test_a_missing_key_without_default_is_refused() -> None:
    with pytest.raises(KeyError, match="remedy"):
        codec.decode(messages.Refusal, {"error": "in-use", "message": "volume v is in use"})


@pytest.mark.parametrize("lun", ["0", None, [0]])
def test_a_value_of_another_type_is_refused(lun: object) -> None:
    with pytest.raises(TypeError, match="is not of type int"):
        codec.decode(messages.MappedLun, {"lun": lun, "unit": "v"})


def test_a_whole_number_is_accepted_as_a_float() -> None:
    taken = messages.Taken("v", "s", "", "", "active", "", 1, 0, 0, 0.0, 1, 2, 0.0, "", "")
    decoded = codec.decode(messages.Taken, {**codec.encode(taken), "writes_held_seconds": 1})
    assert type(decoded.writes_held_seconds) is float


def test_fields_fill_a_larger_message() -> None:
    snapshot = messages.Snapshot("v", "s", "", "", "active", "", 1, 2, 3, 0.5, 1, 2, labels={"a": "b"})
    details = messages.SnapshotDetails(**codec.fields(snapshot), chunk_size=4096, view_url="", write_once_url="")
    assert codec.fields(details) == {
        **codec.fields(snapshot),
        "chunk_size": 4096,
        "view_url": "",
        "write_once_url": "",
        "outside_bytes": 0,
    }
