# SPDX-License-Identifier: Apache-2.0
"""The words for an OSError."""

from __future__ import annotations

import errno

from lun_backends.files import os_error


def test_the_reason_has_neither_path_nor_number() -> None:
    assert os_error.reason(OSError(errno.ENOSPC, "anything", "/some/path")) == "No space left on device"


def test_an_error_without_a_number_has_a_reason_too() -> None:
    assert os_error.reason(OSError("only a text"))
