# SPDX-License-Identifier: Apache-2.0
"""The checker names the defect of each sector: stale, misplaced, torn or foreign."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import crc32c
import pytest

from lun_backends.volumes import volume
from tests.powercut import check, promises, workload
from tests.powercut.promises import SECTOR, Violation

PER_CHUNK = 4096 // SECTOR
# The store's own checksum sees this before the checker does. It cannot tell two sectors apart that each end with their
# own checksum, because all such sectors have one CRC.
NOTICED_BY_CHECKSUM = "snapshot s cannot be read: .* CRC32C is 0x[0-9a-f]{8}, was 0x[0-9a-f]{8} when written"


def torn(at: int, part: int) -> bytes:
    """Return the first `part` bytes of write 9 and the rest of write 5."""
    return promises.sector(9, at)[:part] + promises.sector(5, at)[part:]


SPOILED: dict[str, Callable[[int], bytes]] = {
    "stale: write 1, promised 9": lambda at: promises.sector(1, at),
    "stale: write 0, promised 9": lambda at: bytes(SECTOR),
    "of another write: write 10, promised 9": lambda at: promises.sector(10, at),
    "misplaced: write 9 of sector 12": lambda at: promises.sector(9, at + 1),
    "torn: write 5 of sector 11, write 9 of sector 11": lambda at: torn(at, 256),
    "torn: zeroes, write 9 of sector 11": lambda at: promises.sector(9, at)[:496] + bytes(16),
    "foreign: a checksum is wrong": lambda at: promises.sector(9, at)[:511] + b"\x5a",
}


def spoil(path: Path, expected: bytes, data: bytes) -> None:
    """Replace a sector in the file that has it."""
    whole = path.read_bytes()
    assert whole.count(expected) == 1
    path.write_bytes(whole.replace(expected, data))


@pytest.mark.parametrize("wrong", SPOILED)
@pytest.mark.parametrize("of", ["the volume", "a snapshot"])
def test_defect_of_a_sector_is_named(tmp_path: Path, wrong: str, of: str) -> None:
    scenario = workload.Scenario("", 4096, 512, 8 * 4096, 0)
    promised = promises.Promises(workload.create(tmp_path, scenario), PER_CHUNK)
    opened = workload.open_volume(tmp_path)

    def write(serial: int, version: int) -> None:
        promised.take(promises.WriteBegins(serial, 8, 8, version))
        opened.device.writev(8 * SECTOR, [memoryview(promises.content(version, 8, 8))], fua=True)
        promised.take(promises.WriteEnds(serial, True))

    write(1, 9)
    path = tmp_path / workload.PRIMARY
    if of == "a snapshot":
        promised.take(promises.CreateBegins("s"))
        path = opened.directory / "snapshots" / f"{opened.create_snapshot('s').uuid}.chunks"
        promised.take(promises.CreateEnds("s"))
        write(2, 11)
    check.check(opened, promised)
    opened.close()
    data = SPOILED[wrong](11)
    spoil(path, promises.sector(9, 11), data)
    caught = of == "a snapshot" and crc32c.crc32c(data) != crc32c.crc32c(promises.sector(9, 11))
    opened = volume.Volume.open(opened.directory)
    with pytest.raises(Violation, match=NOTICED_BY_CHECKSUM if caught else f"sector 11( of the volume)?: {wrong}"):
        check.check(opened, promised)
    opened.close()


def test_a_write_among_several_that_may_be_there_is_not_stale() -> None:
    assert promises.complaint(4, [3, 9]) == "of another write: write 4, promised one of [3, 9]"
    assert promises.complaint(2, [9, 3]) == "stale: write 2, promised one of [3, 9]"
