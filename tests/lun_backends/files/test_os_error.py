# SPDX-License-Identifier: Apache-2.0
"""The words for an OSError."""

from __future__ import annotations

import errno

from lun_backends.files import os_error


def test_the_reason_has_neither_path_nor_number() -> None:
    assert os_error.reason(OSError(errno.ENOSPC, "anything", "/some/path")) == "No space left on device"


def test_an_error_without_a_number_has_a_reason_too() -> None:
    assert os_error.reason(OSError("only a text"))


def test_lack_of_descriptors_is_explained_wherever_it_caused_an_error() -> None:
    lack = OSError(errno.EMFILE, "anything")
    assert "this process may have" in os_error.reason(lack)
    assert os_error.remedy(lack, "free space").startswith("raise the limit of open files")
    try:
        raise ValueError("typed") from lack
    except ValueError as error:
        assert os_error.remedy(error, "free space").startswith("raise the limit of open files")


def test_other_errors_keep_their_remedy() -> None:
    assert os_error.remedy(OSError(errno.ENOSPC, "full"), "free space") == "free space"
    assert os_error.remedy(ValueError("no error of the system"), "free space") == "free space"
    assert "fs.file-max" in os_error.remedy(OSError(errno.ENFILE, "anything"), "free space")
