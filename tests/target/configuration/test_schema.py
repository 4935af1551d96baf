# SPDX-License-Identifier: Apache-2.0
"""The JSON schema: it describes every key, and config/ follows it."""

from __future__ import annotations

import json
from typing import Any

import yaml

from target.configuration import schema
from tests.target.configuration.files import CONFIG


def groups() -> list[dict[str, Any]]:
    """Return the schemas of all groups of keys."""
    whole = schema.json_schema()
    parts = [whole, *whole["$defs"].values()]
    parts += [choice for part in parts for choice in part.get("anyOf", ())]  # a group that a plain word can stand for
    return [part for part in parts if "properties" in part]


def test_full_example_names_every_key() -> None:
    def keys(value: object) -> set[str]:
        if isinstance(value, dict):
            return set(value) | {key for item in value.values() for key in keys(item)}
        return {key for item in value for key in keys(item)} if isinstance(value, list) else set()

    named = {key for group in groups() for key in group["properties"]}
    assert keys(yaml.safe_load((CONFIG / "full.yaml").read_text())) == named


def test_schema_file_is_current() -> None:
    assert json.loads((CONFIG / "schema.json").read_text()) == schema.json_schema(), (
        "run `wolun config schema > config/schema.json`"
    )


def test_each_key_and_group_is_described() -> None:
    for group in groups():
        assert group["description"], group["title"]
        for key, described in group["properties"].items():
            assert described.get("description"), f"{group['title']}: {key}"
