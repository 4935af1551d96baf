# SPDX-License-Identifier: Apache-2.0
"""The jobs of backups without a daemon: jobs that are cancelled or fail, and the files that they leave."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from lun_backends import block_device, write_once
from lun_backends.backups import differences, verification
from lun_backends.backups.pieces import ExportPiece
from lun_backends.stores import contract, thin
from lun_backends.volumes import errors, volume
from target import messages
from target.configuration import reader
from target.exports import jobs as backups
from target.service import jobs, problems
from target.service.service import Service
from tests.lun_backends import store_factory
from tests.lun_backends.rotting import rot
from tests.memory_device import MemoryDevice

MIB = 1 << 20
CHUNK = 64 << 10


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    text = "target: iqn.2026-11.io.wolun:t\nvolumes:\n  - {name: vol0, lun: 0, size: 8MiB}\n"
    opened = Service(reader.parse(text, "f.yaml"), tmp_path / "state")
    owner = opened.inventory.own_volume("vol0")
    owner.device.writev(0, [memoryview(bytes([6]) * 5 * CHUNK)])
    opened.snapshots.create_snapshot("vol0", "a")
    for chunk in range(5):
        owner.device.writev(chunk * CHUNK, [memoryview(bytes([chunk]) * CHUNK)])
    opened.snapshots.create_snapshot("vol0", "b")
    yield opened
    opened.stop()
    opened.close()


def ended(job: jobs.Job) -> messages.Job:
    assert job.wait(30)
    return job.message()


@pytest.mark.parametrize("what", ["verify", "diff", "export"])
def test_cancelled_job_ends_and_leaves_no_file(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The work is endless, so only the cancellation ends it."""
    report = contract.ChunkReport(0, CHUNK, contract.Verdict.GOOD)
    endless: dict[str, tuple[Any, str, Callable[..., Iterator[object]]]] = {
        "verify": (verification, "verify", lambda *_: itertools.repeat(verification.Checked("a", report))),
        "diff": (differences, "differing", lambda *_: itertools.repeat((CHUNK, []))),
        "export": (
            backups,
            "whole_grains",
            lambda *_: itertools.repeat(ExportPiece(0, 4096, memoryview(bytes(4096)))),
        ),
    }
    monkeypatch.setattr(*endless[what])
    out = tmp_path / "out" / "x.qcow2"
    out.parent.mkdir()
    match what:
        case "verify":
            job = backups.verify(service, "vol0", "a")
        case "diff":
            job = backups.diff(service, "vol0", "a", messages.FindChanges(exact=True))
        case _:
            job = backups.export(service, "vol0", "b", messages.Export(str(out), format="qcow2"))
    assert not job.wait(0.2)
    job.cancel()
    assert ended(job).state == "cancelled"
    assert job.result is None
    assert list(out.parent.iterdir()) == []


def test_progress_reaches_its_total(service: Service, tmp_path: Path) -> None:
    for job in (
        backups.verify(service, "vol0", "a"),
        backups.diff(service, "vol0", "a", messages.FindChanges("b", exact=True)),
        backups.export(service, "vol0", "a", messages.Export(str(tmp_path / "a.qcow2"), format="qcow2")),
    ):
        message = ended(job)
        assert (message.state, message.done) == ("done", message.total)


def test_verification_fails_if_the_snapshot_is_deleted_meanwhile(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = verification.verify

    def deleting(owner: volume.Volume, name: str) -> Iterator[verification.Checked]:
        checked = genuine(owner, name)
        yield next(checked)
        assert ended(service.snapshots.delete_snapshot("vol0", "a")).state == "done"
        yield from checked

    monkeypatch.setattr(verification, "verify", deleting)
    message = ended(backups.verify(service, "vol0", "a"))
    assert message.state == "failed"
    assert message.refusal is not None
    assert message.refusal.message.startswith("vol0@a was not verified")


def test_damaged_chunk_is_not_exported_as_good(service: Service, tmp_path: Path) -> None:
    """Rot in the map loses the place of a chunk, and the primary has new data there."""
    owner = service.inventory.own_volume("vol0")
    device = owner.snapshot("a").write_once
    assert isinstance(device, write_once.WriteOnce)
    store_factory.thin_of(device)._map.confirm([3])
    path = thin.files(owner.directory / "snapshots" / str(owner.snapshot("a").uuid))[0]
    with path.open("r+b") as file:
        file.seek(2 * 4096 + 3 * 128 + 88)
        file.write(bytes(8))
    for request in (
        messages.Export(str(tmp_path / "a.img")),
        messages.Export(str(tmp_path / "a.qcow2"), format="qcow2"),
    ):
        message = ended(backups.export(service, "vol0", "a", request))
        assert message.state == "failed"
        assert message.refusal is not None
        assert "lost where the chunk is" in message.refusal.message
        assert not Path(request.path).exists()


@pytest.mark.parametrize("options", [{}, {"format": "qcow2"}, {"format": "qcow2", "since": "a"}])
def test_damage_is_named_and_exported_only_on_request(
    service: Service, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Chunks 1 and 3 of snapshot b are damaged, and chunks 2 and 3 of snapshot a."""
    owner = service.inventory.own_volume("vol0")
    service.snapshots.create_snapshot("vol0", "between")
    for chunk in range(5):
        owner.device.writev(chunk * CHUNK, [memoryview(bytes([9]) * CHUNK)])
    for name, chunks in (("between", (1, 3)), ("a", (2, 3))):
        for chunk in chunks:
            rot(owner.snapshot(name), chunk)
    if "since" in options:
        assert ended(export(service, "a", tmp_path / "a.qcow2", damaged=True)).state == "done"
        options = {**options, "backing": str(tmp_path / "a.qcow2")}
    file = tmp_path / "b.img"
    refused = ended(backups.export(service, "vol0", "b", messages.Export(str(file), **options)))
    assert refused.refusal is not None
    assert refused.refusal.error == "damaged"
    assert "blocks 128 to 135 and 384 to 391 of 'b'" in refused.refusal.message
    assert "--damaged" in refused.refusal.remedy
    assert [(extent.kept_in, extent.lba, extent.blocks) for extent in refused.damage] == [
        ("between", 128, 8),
        ("between", 384, 8),
    ]
    assert not file.exists()
    accepted = ended(backups.export(service, "vol0", "b", messages.Export(str(file), damaged=True, **options)))
    assert (accepted.state, accepted.damage, accepted.damaged_bytes) == ("done", refused.damage, 2 * 4096)
    if not options:
        data = bytearray(bytes([3]) * CHUNK)
        data[77] ^= 1
        assert file.read_bytes()[3 * CHUNK : 4 * CHUNK] == data


def test_exact_comparison_counts_damage_as_changed_only_on_request(service: Service) -> None:
    owner = service.inventory.own_volume("vol0")
    for chunk in range(5):
        owner.device.writev(chunk * CHUNK, [memoryview(bytes([6]) * CHUNK)])  # what snapshot a has
    rot(owner.snapshot("a"), 2)
    refused = ended(backups.diff(service, "vol0", "a", messages.FindChanges(exact=True)))
    assert refused.refusal is not None
    assert refused.refusal.error == "damaged"
    assert "blocks 256 to 263" in refused.refusal.message
    job = backups.diff(service, "vol0", "a", messages.FindChanges(exact=True, damaged=True))
    assert ended(job).damaged_bytes == 4096
    assert isinstance(job.result, messages.Difference)
    assert job.result.extents == (messages.Extent(2 * CHUNK, 4096),)
    assert ended(backups.diff(service, "vol0", "a", messages.FindChanges())).state == "done"  # reads no data


def test_adjacent_damage_is_one_extent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backups, "DAMAGE_NAMED", 2)
    damage: list[messages.Damage] = []
    for offset, reason in ((0, "x"), (CHUNK, "x"), (2 * CHUNK, "y"), (4 * CHUNK, "y"), (5 * CHUNK, "y")):
        report = contract.ChunkReport(offset, CHUNK, contract.Verdict.DAMAGED, reason)
        backups._add(damage, verification.Checked("a", report), 512)
    assert [(extent.offset, extent.length, extent.lba, extent.blocks) for extent in damage] == [
        (0, 2 * CHUNK, 0, 256),
        (2 * CHUNK, CHUNK, 256, 128),
    ]


def export(service: Service, name: str, path: Path, **options: Any) -> jobs.Job:
    request = messages.Export(**{"path": str(path), "overwrite": True, "format": "qcow2", **options})
    return backups.export(service, "vol0", name, request)


def test_image_is_not_replaced_by_one_that_stands_on_it(service: Service, tmp_path: Path) -> None:
    a, b = tmp_path / "a.qcow2", tmp_path / "b.qcow2"
    assert ended(export(service, "a", a)).state == "done"
    assert ended(export(service, "b", b, since="a", backing=str(a))).state == "done"
    service.snapshots.create_snapshot("vol0", "c")
    link = tmp_path / "link.qcow2"
    link.symlink_to(a)
    before = {path: path.read_bytes() for path in (a, b)}
    for place, name, since, below in ((a, "b", "a", a), (a, "c", "b", b), (a, "b", "a", link)):
        with pytest.raises(problems.Problem, match="stands on"):
            export(service, name, place, since=since, backing=str(below))
    assert {path: path.read_bytes() for path in (a, b)} == before
    assert ended(export(service, "c", b, since="a", backing=str(a))).state == "done"  # beside it


@pytest.mark.parametrize("format_", ["raw", "qcow2"])
def test_files_of_a_volume_are_not_replaced(service: Service, tmp_path: Path, format_: str) -> None:
    owner = service.inventory.own_volume("vol0")
    (tmp_path / "link").symlink_to(owner.directory)
    for path in (owner.primary.path, tmp_path / "link" / "volume.json", owner.directory / "snapshots" / "new"):
        request = messages.Export(path=str(path), overwrite=True, format=format_)
        with pytest.raises(problems.Problem, match="belongs to volume vol0"):
            backups.export(service, "vol0", "a", request)


def test_place_that_becomes_a_primary_during_an_export_is_not_replaced(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new.img"

    def meanwhile(*_: object) -> Iterator[ExportPiece]:
        settings = reader.parse(
            f"target: iqn.2026-11.io.wolun:t\nvolumes: [{{name: new, lun: 7, size: 1MiB, primary: {path}}}]\n", "f.yaml"
        )
        service.inventory.add_volume(settings.volumes[0])
        yield ExportPiece(0, 8 * MIB, None)

    monkeypatch.setattr(backups, "whole_grains", meanwhile)
    message = ended(export(service, "a", path))
    assert message.refusal is not None
    assert "it belongs to volume new" in message.refusal.message
    assert path.read_bytes() == bytes(MIB)


def test_base_that_is_too_far_away_is_refused(service: Service, tmp_path: Path) -> None:
    far = "/" + "/".join(["d" * 200] * 6)
    with pytest.raises(problems.Problem, match="more than 1023 bytes"):
        export(service, "b", tmp_path / "b.qcow2", since="a", backing=far, backing_format="raw")


def test_snapshot_in_deletion_is_not_exported(service: Service, tmp_path: Path) -> None:
    owner = service.inventory.own_volume("vol0")
    owner.device.writev(0, [memoryview(bytes(CHUNK))])
    with pytest.raises(errors.DeletionStopped):
        owner.delete_snapshot("b", cancelled=lambda: True)
    with pytest.raises(problems.Problem, match="is being deleted"):
        export(service, "b", tmp_path / "b.qcow2")
    with pytest.raises(problems.Problem, match="is being deleted"):
        backups.export(service, "vol0", "b", messages.Export(str(tmp_path / "b.img")))


def test_request_that_cannot_be_done_begins_no_job(service: Service) -> None:
    with pytest.raises(problems.Problem) as caught:
        backups.diff(service, "vol0", "a", messages.FindChanges("nothing"))
    assert caught.value.code == "no-such-snapshot"
    with pytest.raises(problems.Problem) as caught:
        backups.export(service, "vol0", "a", messages.Export("/x", format="vdi"))
    assert caught.value.code == "bad-request"


def test_grains_are_whole_and_none_comes_twice() -> None:
    device: block_device.BlockDevice = MemoryDevice(10 * 4096 + 512)
    ranges = [(512, 512), (3072, 1024), (4096, 512), (5 * 4096 - 512, 1024), (10 * 4096, 512)]
    grains: list[ExportPiece] = list(backups.whole_grains(device, ranges, 4096))
    assert [(piece.offset, piece.length) for piece in grains] == [
        (0, 4096), (4096, 4096), (4 * 4096, 8192), (10 * 4096, 512),
    ]  # fmt: skip


def test_compressed_exports_have_the_same_content(service: Service, tmp_path: Path) -> None:
    plain, packed, image = tmp_path / "a.img", tmp_path / "a.img.zst", tmp_path / "a.qcow2"
    assert ended(export(service, "a", plain, format="raw")).state == "done"
    assert ended(export(service, "a", packed, format="raw", compress=True)).state == "done"
    assert ended(export(service, "a", image, format="qcow2", compress=True)).state == "done"
    assert zstandard.ZstdDecompressor().decompress(packed.read_bytes()) == plain.read_bytes()
    assert packed.stat().st_size < CHUNK
    assert image.stat().st_size < 5 * CHUNK + 5 * CHUNK
    compared = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(image), str(plain)]
    assert subprocess.run(compared, capture_output=True, timeout=60).returncode == 0
    for kind in ("vhd", "vhdx", "vmdk"):
        with pytest.raises(problems.Problem, match="is not compressed"):
            export(service, "a", tmp_path / f"x.{kind}", format=kind, compress=True)


def test_limited_export_is_slow_and_can_be_cancelled(service: Service, tmp_path: Path) -> None:
    """At 64 bytes a second its first piece would take hours."""
    job = export(service, "a", tmp_path / "a.img", format="raw", limit=64)
    assert not job.wait(0.3)
    job.cancel()
    assert ended(job).state == "cancelled"
    assert not (tmp_path / "a.img").exists()
