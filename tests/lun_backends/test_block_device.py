# SPDX-License-Identifier: Apache-2.0
"""The contract's own parts: scatter lists, the texts of errors, and the optional methods of a device."""

from __future__ import annotations

import dataclasses
import inspect
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lun_backends import block_device, damage
from tests.memory_device import MemoryDevice

ERRORS = [
    error
    for _, error in inspect.getmembers(block_device, inspect.isclass)
    if issubclass(error, block_device.BlockDeviceError) and error is not block_device.BlockDeviceError
]
DAMAGE = damage.Damage(512, 1024, "CRC32C is 1, was 2 when written", uuid.UUID(int=1))
VALUES = {
    "int": 7,
    "float": 1.5,
    "bool": True,
    "str": "the words",
    "BlockDeviceError": block_device.BlankBlock(3),
    "Damage": DAMAGE,
}
NOT_IN_THE_TEXT = (True, DAMAGE)  # the direction has words of its own, and the damage is in `reason`


class Least(block_device.BlockDevice):
    """A device with the abstract methods only."""

    size, block_size = 4096, 512

    def readv(self, offset: int, buffers: block_device.Buffers) -> None:
        raise AssertionError("a call that must not wait")

    def writev(self, offset: int, buffers: block_device.Buffers, *, fua: bool = False) -> None:
        raise AssertionError("a call that must not wait")

    write_zeroes = flush = extents = close = MemoryDevice.close  # type: ignore[assignment]  # never called


@given(st.lists(st.binary(max_size=20), max_size=6), st.data())
def test_a_slice_of_a_scatter_list_is_that_of_its_bytes(pieces: list[bytes], dice: st.DataObject) -> None:
    buffers = [memoryview(bytearray(piece)) for piece in pieces]
    whole = b"".join(pieces)
    start = dice.draw(st.integers(0, len(whole)))
    length = dice.draw(st.integers(0, len(whole) - start))
    taken = block_device.slice_buffers(buffers, start, length)
    assert b"".join(taken) == whole[start : start + length]
    assert block_device.total_length(taken) == length
    for part in taken:
        part[:] = b"\xee" * len(part)  # the parts are views, not copies
    assert b"".join(buffers) == whole[:start] + b"\xee" * length + whole[start + length :]


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_names_all_of_its_fields(error: type[block_device.BlockDeviceError]) -> None:
    fields: dict[str, object] = (
        {field.name: VALUES[str(field.type)] for field in dataclasses.fields(error)}
        if dataclasses.is_dataclass(error)
        else {}
    )
    text = str(error(**fields))
    assert text
    assert all(str(value) in text for value in fields.values() if value not in NOT_IN_THE_TEXT)


def test_by_default_a_device_does_nothing_without_waiting() -> None:
    device = Least()
    view = [memoryview(bytearray(512))]
    assert not device.read_now(0, 512, view)
    assert not device.write_now(0, 512, view)
    assert not device.prepare_now([(0, 512)])
    device.prepare_writes([(0, 512)])
    with pytest.raises(block_device.NotSupported, match="atomic read-modify-write"), device.exclusive():
        pass
