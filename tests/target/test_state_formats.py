# SPDX-License-Identifier: Apache-2.0
"""State on disk of an older version is read on, and state of a newer version is refused as what it is.

`states/format-1.tar.xz` is the state directory of the version before `volume.json` got format 2.  vol0 was filled with A, its
first 64 KiB; the snapshot "first" was taken; 16 KiB of B at 0; "second"; 16 KiB of C at 8 KiB.  vol1 (4096-byte blocks,
process-crash) has 64 KiB of F, the snapshot "only", and 8 KiB of G.  A host holds a persistent reservation on vol0.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crc32c
import pytest

from lun_backends import block_device
from lun_backends.stores import chunk_file, superblock
from lun_backends.volumes import identity, manifest
from target.configuration import reader
from target.scsi.reservations import reservation_file
from target.service import left_behind, lun_numbers, pool_file, resting
from target.service.service import Service

CONFIGURATION = """
target: iqn.2026-11.io.wolun:golden
access: {networks: [127.0.0.0/8]}
volumes:
  - {name: vol0, lun: 0, size: 1MiB, chunk_size: 4KiB}
  - {name: vol1, lun: 1, size: 256KiB, block_size: 4096, durability: process-crash, primary: disk.img}
"""
KIB = 1024
FIRST = b"A" * 64 * KIB
SECOND = b"B" * 16 * KIB + b"A" * 48 * KIB
NOW = b"B" * 8 * KIB + b"C" * 16 * KIB + b"A" * 40 * KIB

FIELDS: dict[str, tuple[int, int, dict[Any, str]]] = {
    "volume.json": (
        manifest.FORMAT,
        4,
        {
            manifest.Manifest: "name uuid created_at primary size block_size chunk_size durability snapshots epoch in_use "
            "restoring restoring_damaged identity doubtful notes store format",
            manifest.Notes: "hold expires consistency",
            manifest.SnapshotRecord: "name uuid taken_at state labels scheduled group",
            manifest.PrimaryRecord: "path direct",
            identity.Identity: "clean boot is_disk size generation next device inode changed modified ids sequence written",
        },
    ),
    "luns.json": (
        lun_numbers.FORMAT,
        2,
        {
            lun_numbers._File: "snapshots format",
            lun_numbers.Numbers: "volume view write_once map_view map_write_once",
        },
    ),
    "pool.json": (1, 1, {pool_file._File: "volume log log_lun luns retired_luns format"}),
    "volumes.json": (left_behind.FORMAT, 1, {left_behind._File: "luns set_aside format"}),
    "resting-luns.json": (1, 1, {resting._File: "luns volumes format", resting.Rested: "unit name initiators"}),
    "reservations": (
        1,
        1,
        {
            reservation_file._File: "registrations reservation format",
            reservation_file._Registration: "initiator isid key",
            reservation_file._Reservation: "type initiator isid",
        },
    ),
}
"""For each file: the format that is written, the format with these fields, and the fields of its classes."""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    with tarfile.open(Path(__file__).parent / "states" / "format-1.tar.xz") as archive:
        archive.extractall(tmp_path / "state", filter="data")
    return tmp_path / "state"


@pytest.fixture
def services(state: Path) -> Iterator[list[Service]]:
    running: list[Service] = []
    yield running
    while running:
        end(running)


def start(running: list[Service], state: Path) -> Service:
    running.append(Service(reader.parse(CONFIGURATION, "golden.yaml"), state))
    return running[-1]


def end(running: list[Service]) -> None:
    service = running.pop()
    service.stop()
    service.close()


def read(device: block_device.BlockDevice, length: int = 64 * KIB) -> bytes:
    data = bytearray(length)
    device.readv(0, [memoryview(data)])
    return bytes(data)


def check(service: Service) -> None:
    vol0, vol1 = service.inventory.own_volume("vol0"), service.inventory.volume("vol1")
    assert read(vol0.device) == NOW
    assert read(vol0.snapshot("first").view) == FIRST
    assert read(vol0.snapshot("second").view) == SECOND
    assert read(vol1.snapshot("only").view) == b"F" * 64 * KIB
    shown = {snapshot.name: snapshot for snapshot in service.snapshots.list_snapshots()}
    assert {snapshot.state for snapshot in shown.values()} == {"active"}
    assert {name: snapshot.view_lun for name, snapshot in shown.items()} == {"first": 2, "second": 6, "only": 4}
    assert shown["first"].labels == {"by": "hand"}
    assert list(service.inventory.scsi.luns[0].reservations.state.keys.values()) == [0x1234]


def test_state_of_format_1_is_served_as_it_was(services: list[Service], state: Path) -> None:
    for _ in range(2):  # the second time it has the present format
        check(start(services, state))
        end(services)
    assert json.loads((state / "volumes" / "vol0" / "volume.json").read_text())["format"] == manifest.FORMAT
    service = start(services, state)
    service.reshaping.restore("vol0", "first", force=True).wait()
    assert read(service.inventory.own_volume("vol0").primary) == FIRST
    assert read(service.inventory.own_volume("vol0").snapshot("second").view) == SECOND


@pytest.mark.parametrize("name", FIELDS)
def test_new_fields_come_with_a_new_format(name: str) -> None:
    """A version that does not know a field refuses it; by the format it can say that the file is newer, not damaged.

    If this fails, raise the format of the file, let the old one be read on, and note the new fields here.
    """
    written, of_fields, classes = FIELDS[name]
    for kind, fields in classes.items():
        assert [field.name for field in dataclasses.fields(kind)] == fields.split(), kind
    assert written == of_fields


def raised(path: Path, number: int) -> None:
    """Make a file of JSON one of the format `number`, with a field that nobody knows."""
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": number, "colour": "red"}))


def raised_header(path: Path, number: int, body: int, places: tuple[int, ...]) -> None:
    """Make a map or chunk file one of the format `number`; version and CRC stay where they are in every format."""
    content = bytearray(path.read_bytes())
    for place in places:
        struct.pack_into("<I", content, place + 8, number)
        struct.pack_into("<I", content, place + body, crc32c.crc32c(bytes(content[place : place + body])))
    path.write_bytes(content)


def newer(state: Path, what: str) -> Path:
    vol0 = state / "volumes" / "vol0"
    match what:
        case "luns.json" | "volumes.json" | "resting-luns.json":
            path = state / what
            if not path.exists():
                path.write_text("{}")
            raised(path, lun_numbers.FORMAT + 1 if what == "luns.json" else 2)
        case "volume.json":
            raised(path := vol0 / what, manifest.FORMAT + 1)
        case "reservations":
            (path,) = (vol0 / what).iterdir()
            raised(path, 2)
        case "map":
            path = min((vol0 / "snapshots").glob("*.map"))
            raised_header(path, superblock.LOG + 1, superblock._BODY.size, superblock.COPIES)
        case "one copy of the map's superblock":
            path = min((vol0 / "snapshots").glob("*.map"))
            raised_header(path, superblock.LOG + 1, superblock._BODY.size, superblock.COPIES[1:])
        case _:
            path = min((vol0 / "snapshots").glob("*.chunks"))
            raised_header(path, chunk_file._VERSION + 1, chunk_file._HEADER.size, (0,))
    return path


@pytest.mark.parametrize("what", [*FIELDS, "map", "one copy of the map's superblock", "chunks"])
def test_newer_state_is_refused_as_newer_and_left_alone(services: list[Service], state: Path, what: str) -> None:
    path = newer(state, what)
    changed = path.read_bytes()
    try:
        reason = start(services, state).inventory.failed["vol0"]
    except lun_numbers.Damaged as error:
        reason = str(error)
    assert f"{path}" in reason
    assert "it was made by a newer wolun: it has format" in reason
    assert "start the newer version again" in reason
    assert "backup" not in reason
    if services:
        end(services)
    assert path.read_bytes() == changed
    assert not list(state.rglob("*.invalid"))


def test_refused_volume_is_good_for_the_newer_version(services: list[Service], state: Path) -> None:
    check(start(services, state))
    end(services)
    path = min((state / "volumes" / "vol0" / "snapshots").glob("*.map"))
    before = path.read_bytes()
    newer(state, "map")
    assert "newer wolun" in start(services, state).inventory.failed["vol0"]
    end(services)
    path.write_bytes(before)
    check(start(services, state))


def test_older_version_finds_the_format_first(services: list[Service], state: Path) -> None:
    """It reads the fields of `Manifest` in order, and unknown ones last; so nothing unknown may come in nested records."""
    start(services, state)
    end(services)
    fields: dict[str, Any] = json.loads((state / "volumes" / "vol0" / "volume.json").read_text())
    assert fields["snapshots"][0].keys() == {"name", "uuid", "taken_at", "state", "labels", "scheduled", "group"}
    assert fields["primary"].keys() == {"path", "direct"}
