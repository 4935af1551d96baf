# SPDX-License-Identifier: Apache-2.0
"""Opening a store's file, and the typed errors."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.files import storage_io
from lun_backends.stores import store_file


def test_the_descriptor_is_closed_if_the_body_raises(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        store_file.opened(storage_io.SYSTEM, tmp_path / "f", os.O_RDWR | os.O_CREAT) as fd,
    ):
        raise RuntimeError
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with store_file.opened(storage_io.SYSTEM, tmp_path / "f", os.O_RDWR) as fd:
        pass
    os.close(fd)  # it stays open for its owner


def test_a_missing_file_and_an_unreachable_one_have_errors_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(store_file.StoreMissing, match=f"{tmp_path}/none does not exist; restore the file"):
        store_file.opened(storage_io.SYSTEM, tmp_path / "none", os.O_RDWR).__enter__()
    with pytest.raises(store_file.StoreUnavailable, match="Is a directory"):
        store_file.opened(storage_io.SYSTEM, tmp_path, os.O_RDWR).__enter__()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, block_device.SpaceExhausted),
        (errno.EDQUOT, block_device.SpaceExhausted),
        (errno.EFBIG, block_device.SpaceExhausted),
        (errno.EIO, store_file.StoreUnavailable),
        (errno.EROFS, store_file.StoreUnavailable),
    ],
)
def test_an_os_error_becomes_a_typed_one(code: int, kind: type[Exception]) -> None:
    assert type(store_file.typed(Path("f"), OSError(code, "x"))) is kind


def test_errors_are_block_device_errors_and_name_file_and_remedy() -> None:
    damage = store_file.StoreDamaged(Path("/s/x.map"), "magic", "is wrong", store_file.RESTORE)
    assert str(damage) == f"/s/x.map: magic: is wrong; {store_file.RESTORE}"
    assert issubclass(store_file.StoreError, block_device.BlockDeviceError)
