# SPDX-License-Identifier: Apache-2.0
"""The errors of requests to a volume: their text, and the base that keeps them apart from errors of reads and writes."""

from __future__ import annotations

import errno

import pytest

from lun_backends import block_device, refused
from lun_backends.volumes import errors

EVERY_ERROR = [kind for kind in vars(errors).values() if isinstance(kind, type) and kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", EVERY_ERROR)
def test_an_error_names_volume_reason_and_remedy(kind: type[errors.VolumeError]) -> None:
    error = kind("vol0", "there is no snapshot 'a'", "there are: b")
    assert (error.volume, error.reason, error.remedy) == ("vol0", "there is no snapshot 'a'", "there are: b")
    assert str(error) == "vol0: there is no snapshot 'a'; there are: b"


@pytest.mark.parametrize("kind", EVERY_ERROR)
def test_no_error_of_a_request_is_an_error_of_a_read_or_write(kind: type[errors.VolumeError]) -> None:
    assert issubclass(kind, refused.Refused)
    assert not issubclass(kind, block_device.BlockDeviceError)


def test_the_reason_of_an_error_of_the_system_is_its_text() -> None:
    assert errors.why(OSError(errno.ENOSPC, "ignored")) == "No space left on device"


def test_the_reason_of_an_error_of_a_device_is_what_it_says() -> None:
    assert errors.why(block_device.SnapshotInvalid("its map is damaged")) == str(
        block_device.SnapshotInvalid("its map is damaged")
    )
