# SPDX-License-Identifier: Apache-2.0
"""Addresses of scatter lists, for C code that reads or fills them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from lun_backends.block_device import Buffers


class IoVector(ctypes.Structure):
    """The struct iovec of readv(2); sg_iovec_t and libiscsi's struct scsi_iovec have the same layout."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


@dataclass(frozen=True, slots=True)
class Pinned:
    """A scatter list whose buffers stay where they are as long as this object lives."""

    vector: ctypes.Array[IoVector]
    address: int | None  # of the only buffer, or else of the vector; None without buffers
    length: int  # bytes of all buffers
    _kept: tuple[object, ...]


def pin(buffers: Buffers) -> Pinned:
    """Return the addresses of the buffers.  Read-only ones are copied, because ctypes does not return their address."""
    kept = tuple(
        (ctypes.c_char * len(buffer)).from_buffer(buffer)
        if not buffer.readonly
        else ctypes.create_string_buffer(bytes(buffer), len(buffer))
        for buffer in buffers
        if len(buffer)
    )
    vector = (IoVector * len(kept))(*(IoVector(ctypes.addressof(buffer), len(buffer)) for buffer in kept))
    address = ctypes.addressof(kept[0]) if len(kept) == 1 else ctypes.addressof(vector) if kept else None
    return Pinned(vector, address, sum(map(len, kept)), kept)
