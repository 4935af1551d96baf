# SPDX-License-Identifier: Apache-2.0
"""The kept corpus, without a fuzzer: none of its inputs breaks a target."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import targets

CORPUS = Path(__file__).with_name("corpus")


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    logger = logging.getLogger("target")
    level = logger.level
    targets.watch()
    yield
    for handler in [handler for handler in logger.handlers if isinstance(handler, targets.Watch)]:
        logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_the_corpus_breaks_nothing(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        try:
            targets.TARGETS[name](path.read_bytes())
        except Exception as error:
            raise AssertionError(f"{path} breaks {name}") from error
