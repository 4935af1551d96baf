# SPDX-License-Identifier: Apache-2.0
"""Services that are nodes of one shared volume, whose storage host is a real portal in this process."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lun_backends.shared.devices import RECORD
from lun_backends.volumes import policy
from target import messages
from target.configuration import reader, settings
from target.exports import jobs
from target.service import jobs as service_jobs
from target.service import nodes, problems, shared_devices
from target.service.service import Service
from target.service.shared_volume import SharedOwner
from tests.lun_backends.shared import rig

IQN = "iqn.2026-11.io.wolun:t"
CHUNK = rig.CHUNK
Start = Callable[..., Service]


@pytest.fixture
def array(tmp_path: Path) -> Iterator[rig.Array]:
    made = rig.Array(tmp_path)
    yield made
    made.close()


@pytest.fixture
def start(array: rig.Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Return a function that starts the service of a node, and waits until it takes part."""
    running: list[Service] = []

    def opened(
        _: object, configured: settings.SharedVolume, node: str, directory: Path, listener: policy.Listener
    ) -> SharedOwner:
        rules = policy.Policy(on_error=configured.on_error, max_snapshots=configured.max_snapshots)
        return SharedOwner(rig.open_node(array, node, rules=rules), directory)

    def begin(name: str, extra: str = "", *, armed: bool = True, following: bool = True) -> Service:
        primary = "iscsi://192.0.2.1/iqn.2026-11.io.wolun:storage/0"
        shared = f"shared:\n  - {{name: archive, node: {name}, primary: '{primary}', lun: 0{extra}}}\n"
        text = f"target: {IQN}\naccess: {{networks: [127.0.0.0/8]}}\n{shared}volumes:\n  - {{name: own, lun: 1, size: 1MiB}}\n"
        service = Service(reader.parse(text, "f.yaml"), tmp_path / name)
        running.append(service)
        if following:
            service.nodes.start()
        if armed and following:
            rig.wait(lambda: sharing(service).state == "armed")
        return service

    monkeypatch.setattr(shared_devices.Opener, "open", opened)
    monkeypatch.setattr(nodes, "LOOK", 0.05)
    monkeypatch.setattr(nodes, "RETRY", 0.05)
    yield begin
    for service in running:
        service.stop()
        service.close()


def sharing(service: Service) -> messages.Sharing:
    found = service.nodes.sharing("archive")
    assert found is not None
    return found


def names(service: Service) -> list[str]:
    return [snapshot.name for snapshot in service.snapshots.list_snapshots("archive")]


def codes(service: Service) -> set[str]:
    return {alert.code for alert in service.status.alerts()}


def write(service: Service, chunk: int, fill: int) -> None:
    device = service.inventory.volume("archive").device
    device.writev(chunk * CHUNK, [memoryview(bytes([fill]) * CHUNK)])


def view_of(service: Service, name: str) -> bytes:
    """Return the first bytes of a snapshot, from its LUN on that node."""

    def lun() -> int | None:
        listed = {shown.name: shown.view_lun for shown in service.snapshots.list_snapshots("archive")}
        number = listed.get(name)
        return number if number in service.inventory.scsi.luns else None

    rig.wait(lambda: lun() is not None)
    number = lun()
    assert number is not None
    data = bytearray(8 * CHUNK)
    service.inventory.scsi.luns[number].device.readv(0, [memoryview(data)])
    return bytes(data)


def ended(job: service_jobs.Job) -> messages.Job:
    assert job.wait(rig.PATIENCE)
    return job.message()


def test_snapshot_of_one_node_has_its_view_on_every_node(start: Start) -> None:
    alpha, beta = start("alpha"), start("beta")
    write(beta, 1, 0x11)
    taken = alpha.snapshots.create_snapshot("archive", "first", {"why": "test"})
    write(alpha, 1, 0x22)
    write(beta, 2, 0x33)
    rig.wait(lambda: names(beta) == ["first"])
    assert (taken.volume, taken.labels, taken.state) == ("archive", {"why": "test"}, "active")
    for node in (alpha, beta):
        image = view_of(node, "first")
        assert image[CHUNK : 2 * CHUNK] == b"\x11" * CHUNK
        assert not any(image[2 * CHUNK :])
    assert sharing(beta).epoch == 1
    write(beta, 1, 0x44)  # alpha has preserved it
    assert [(sharing(node).copies, sharing(node).futile_copies) for node in (alpha, beta)] == [(1, 0), (1, 1)]


def test_deletion_on_one_node_takes_the_view_from_every_node(start: Start) -> None:
    alpha, beta = start("alpha"), start("beta")
    for name in ("old", "new"):
        alpha.snapshots.create_snapshot("archive", name)
        write(beta, 1, len(name))
    rig.wait(lambda: len(beta.inventory.scsi.luns) == 4)
    assert ended(alpha.snapshots.delete_snapshot("archive", "old")).state == "done"
    rig.wait(lambda: names(beta) == ["new"] and len(beta.inventory.scsi.luns) == 3)
    assert names(alpha) == ["new"]


def test_newest_snapshot_is_hidden_until_the_next_one(start: Start) -> None:
    alpha = start("alpha")
    for name in ("a", "b"):
        alpha.snapshots.create_snapshot("archive", name)
        write(alpha, 1, ord(name))
    assert ended(alpha.snapshots.delete_snapshot("archive", "b")).state == "done"
    (_, hidden) = alpha.snapshots.list_snapshots("archive")
    assert (hidden.state, hidden.view_lun) == ("deleting", None)
    with pytest.raises(problems.Problem, match="being deleted"):
        jobs.export(alpha, "archive", "b", messages.Export("/tmp/never"))
    alpha.snapshots.create_snapshot("archive", "c")
    rig.wait(lambda: names(alpha) == ["a", "c"])
    assert view_of(alpha, "a")[CHUNK : 2 * CHUNK] == bytes(CHUNK)


def test_snapshots_are_exported_compared_and_verified_on_any_node(start: Start, tmp_path: Path) -> None:
    alpha, beta = start("alpha"), start("beta")
    write(alpha, 0, 1)
    alpha.snapshots.create_snapshot("archive", "first")
    write(beta, 0, 2)
    write(alpha, 3, 3)
    rig.wait(lambda: names(beta) == ["first"])
    job = jobs.export(beta, "archive", "first", messages.Export(str(tmp_path / "image")))
    assert ended(job).state == "done"
    image = (tmp_path / "image").read_bytes()
    assert image[:CHUNK] == b"\x01" * CHUNK
    assert not any(image[CHUNK:])
    job = jobs.diff(beta, "archive", "first", messages.FindChanges())
    assert ended(job).state == "done"
    assert isinstance(job.result, messages.Difference)
    assert {extent.offset // CHUNK for extent in job.result.extents} == {0, 3}
    job = jobs.verify(alpha, "archive", "first")
    assert ended(job).state == "done"
    assert isinstance(job.result, messages.Verification)
    assert (job.result.sound, job.result.good_bytes) == (True, 2 * CHUNK)
    changes = alpha.snapshots.changes("archive", "first", 256)
    assert [cell for cell, part in enumerate(changes.cells) if part] == [0, 3]


def test_volume_is_rolled_back_for_all_nodes(start: Start) -> None:
    alpha, beta = start("alpha"), start("beta")
    write(beta, 5, 1)
    alpha.snapshots.create_snapshot("archive", "before")
    write(beta, 5, 2)
    write(alpha, 6, 3)
    assert ended(alpha.reshaping.restore("archive", "before", force=True)).state == "done"
    for node in (alpha, beta):
        rig.wait(lambda node=node: sharing(node).state == "armed")  # type: ignore[misc]
        data = bytearray(8 * CHUNK)
        node.inventory.volume("archive").device.readv(0, [memoryview(data)])
        assert data[5 * CHUNK : 6 * CHUNK] == b"\x01" * CHUNK
        assert not any(data[6 * CHUNK :])


def test_requests_that_a_shared_volume_cannot_carry_out_are_refused_with_the_reason(start: Start) -> None:
    alpha = start("alpha")
    alpha.snapshots.create_snapshot("archive", "s")
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: alpha.snapshots.label_snapshot("archive", "s", {"_hold": "b"}), "no key for a label"),
        (lambda: alpha.snapshots.create_group("g", ["archive", "own"]), "fenced by itself"),
        (lambda: alpha.reshaping.resize("archive", 2 << 20), "size of its primary"),
        (lambda: alpha.snapshots.create_snapshot("archive", "s"), "there is a snapshot"),
        (lambda: alpha.snapshots.create_snapshot("archive", "n", {"_schedule": "1"}), "no key for a label"),
        (lambda: alpha.nodes.list_nodes("own"), "this host alone"),
        (lambda: alpha.nodes.expel("archive", "nobody", force=False), "seen no node nobody"),
        (lambda: alpha.nodes.expel("archive", "alpha", force=True), "does not expel itself"),
    ]
    for request, why in refused:
        with pytest.raises(problems.Problem, match=why) as refusal:
            request()
        assert refusal.value.remedy


def test_what_one_node_says_about_a_snapshot_is_known_to_all(start: Start) -> None:
    alpha, beta = start("alpha"), start("beta")
    alpha.snapshots.create_snapshot("archive", "a", {"by": "hand"}, hold="audit", expires="2099-01-01T00:00:00Z")
    alpha.snapshots.create_snapshot("archive", "b")
    rig.wait(lambda: names(beta) == ["a", "b"])
    shown = beta.snapshots.show_snapshot("archive", "a")
    assert (shown.hold, shown.expires, shown.labels) == ("audit", "2099-01-01T00:00:00.000Z", {"by": "hand"})
    with pytest.raises(problems.Problem, match="is held: audit"):
        beta.snapshots.delete_snapshot("archive", "a", force=True)
    beta.snapshots.label_snapshot("archive", "a", {"by": None, "for": "them"})
    changed = beta.snapshots.change_snapshot("archive", "a", messages.ChangeSnapshot(name="new", hold="", expires=""))
    assert (changed.name, changed.hold, changed.expires) == ("new", "", None)
    rig.wait(lambda: names(alpha) == ["new", "b"])
    assert alpha.snapshots.show_snapshot("archive", "new").labels == {"for": "them"}
    with pytest.raises(problems.Problem, match="there is a snapshot named b"):
        alpha.snapshots.change_snapshot("archive", "new", messages.ChangeSnapshot(name="b"))
    ended(alpha.snapshots.delete_snapshot("archive", "new"))
    rig.wait(lambda: names(beta) == ["b"])


def test_nodes_are_listed_and_one_is_expelled(start: Start) -> None:
    alpha, beta = start("alpha"), start("beta")
    alpha.snapshots.create_snapshot("archive", "s")
    rig.wait(lambda: all(node.registered for node in alpha.nodes.list_nodes("archive")))
    listed = {node.name: node for node in alpha.nodes.list_nodes("archive")}
    assert listed["alpha"].this
    assert listed["alpha"].last_seen is not None
    after = {node.name: node for node in alpha.nodes.expel("archive", "beta", force=True)}
    assert (after["beta"].expelled, after["alpha"].expelled) == (True, False)
    rig.wait(lambda: "node-expelled" in codes(beta) and sharing(beta).state == "out")
    with pytest.raises(problems.Problem, match="this node is expelled"):
        beta.snapshots.create_snapshot("archive", "never")
    write(alpha, 1, 1)


def test_volume_whose_storage_does_not_answer_is_an_alert_and_opened_later(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = shared_devices.Opener.open
    down = True

    def maybe(self: shared_devices.Opener, *arguments: object) -> SharedOwner:
        if down:
            raise OSError("no route to host")
        return works(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shared_devices.Opener, "open", maybe)
    alpha = start("alpha", armed=False)
    rig.wait(lambda: "no route to host" in alpha.inventory.failed.get("archive", ""))
    assert "volume-failed" in codes(alpha)
    assert (sharing(alpha).state, sharing(alpha).problem) == ("out", "no route to host")
    with pytest.raises(problems.Problem, match="no route to host"):
        alpha.snapshots.create_snapshot("archive", "s")
    down = False
    rig.wait(lambda: sharing(alpha).state == "armed")
    assert "volume-failed" not in codes(alpha)


def test_empty_pool_is_an_alert_before_it_refuses_a_snapshot(
    start: Start, array: rig.Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "POOL_LOOK", 0.0)
    alpha = start("alpha")
    rig.wait(lambda: sharing(alpha).pool == rig.POOL)
    for number in range(rig.POOL):
        alpha.snapshots.create_snapshot("archive", f"s{number}")
    rig.wait(lambda: "pool-empty" in codes(alpha))
    with pytest.raises(problems.Problem, match="no blank write-once LUN"):
        alpha.snapshots.create_snapshot("archive", "more")


def test_pool_is_asked_only_when_it_may_have_changed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "COUNT", 0.0)
    monkeypatch.setattr(nodes, "POOL_LOOK", 0.0)
    monkeypatch.setattr(nodes, "LOOK", 0.01)
    alpha = start("alpha")
    rig.wait(lambda: sharing(alpha).pool == rig.POOL)
    shared = alpha.nodes._owner("archive").shared
    looks: list[int] = []
    counts: list[int] = []

    def look() -> int:
        looks.append(0)
        return rig.POOL - 1

    monkeypatch.setattr(shared, "pool_left", look)
    monkeypatch.setattr(alpha.nodes._owner("archive"), "count", lambda: counts.append(0))
    rig.wait(lambda: len(counts) > 20)
    assert len(looks) <= 1
    alpha.snapshots.create_snapshot("archive", "s")
    rig.wait(lambda: sharing(alpha).pool == rig.POOL - 1)


def test_log_that_gets_full_is_an_alert(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    alpha = start("alpha")
    status = alpha.nodes._owner("archive").shared.status
    monkeypatch.setattr(nodes, "LOG_HIGH", (status.log_used + 1) / status.log_size)
    assert "log-full" not in codes(alpha)
    alpha.snapshots.create_snapshot("archive", "s")
    rig.wait(lambda: "log-full" in codes(alpha))


def test_damaged_log_is_an_alert(start: Start, array: rig.Array) -> None:
    alpha = start("alpha")
    at = sharing(alpha).epoch
    assert at == 0
    end = alpha.nodes._owner("archive").shared.status.log_used * RECORD
    array.log.data[end : end + RECORD] = b"\xee" * RECORD
    array.log.written[end // 512 : (end + RECORD) // 512] = [True] * (RECORD // 512)
    rig.wait(lambda: "log-damaged" in codes(alpha) and sharing(alpha).state == "out")


def test_one_node_takes_the_snapshot_of_a_period(start: Start) -> None:
    schedule = ", schedule: hourly, keep: {hourly: 2}"
    both = [start("alpha", schedule), start("beta", schedule)]
    for node in both:
        node.scheduler.look()
    for node in both:
        node.scheduler.wait()
        assert node.scheduler.unkept() == {}
    hour = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H00Z")
    for node in both:
        rig.wait(lambda node=node: names(node) == [f"auto-{hour}"])  # type: ignore[misc]
        (taken,) = node.snapshots.list_snapshots("archive")
        assert (taken.scheduled, taken.labels) == (True, {})
    for node in both:
        node.scheduler.look()
        node.scheduler.wait()
        assert names(node) == [f"auto-{hour}"]


def test_status_and_numbers_of_luns_outlive_the_service(start: Start) -> None:
    alpha, beta = start("alpha"), start("beta")
    beta.snapshots.create_snapshot("archive", "one")
    rig.wait(lambda: names(alpha) == ["one"])
    first = view_of(alpha, "one")
    (listed,) = alpha.snapshots.list_snapshots("archive")
    alpha.stop()
    alpha.close()
    beta.snapshots.create_snapshot("archive", "two")
    again = start("alpha")
    rig.wait(lambda: names(again) == ["one", "two"])
    assert view_of(again, "one") == first
    assert next(again.snapshots.list_snapshots("archive")).view_lun == listed.view_lun
    (own, shared) = again.status.status().volumes
    assert (own.sharing, shared.name, shared.state, shared.snapshots) == (None, "archive", "online", 2)


def test_status_asks_no_device_and_shows_what_was_counted_last(start: Start, array: rig.Array) -> None:
    alpha = start("alpha")
    alpha.snapshots.create_snapshot("archive", "s")
    write(alpha, 1, 1)
    (listed,) = alpha.snapshots.list_snapshots("archive")
    assert listed.preserved_bytes == CHUNK
    alpha.nodes.stop()
    before = {lun: dict(device.commands) for lun, device in array.luns.items()}
    shown = next(volume for volume in alpha.status.status().volumes if volume.name == "archive")
    assert (shown.snapshots, shown.preserved_bytes) == (1, CHUNK)
    assert {lun: dict(device.commands) for lun, device in array.luns.items()} == before


def test_a_fabric_keeps_what_a_killed_node_served_until_the_snapshots_are_known(start: Start) -> None:
    alpha = start("alpha")
    alpha.snapshots.create_snapshot("archive", "first")
    beta = start("beta", following=False)
    seen: list[set[int]] = []
    beta.inventory.scsi.on_change(
        lambda: seen.append(set() if beta.inventory.scsi.expected else set(beta.inventory.scsi.luns))
    )
    assert beta.inventory.scsi.expected == {"archive"}
    beta.nodes.start()
    rig.wait(lambda: not beta.inventory.scsi.expected)
    assert view_of(beta, "first")
    known = next(luns for luns in seen if luns)
    assert known == set(beta.inventory.scsi.luns)
