# SPDX-License-Identifier: Apache-2.0
"""Nodes that find and open the devices of a shared volume at a real `wolun serve`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.files import backing_file
from lun_backends.initiator import libiscsi
from lun_backends.initiator.discovery import Discovery, Lun, Portals, VolumeNotFound
from lun_backends.initiator.unit import Unit
from lun_backends.volumes import errors
from target.configuration import settings
from target.service import shared_devices
from target.service.shared_devices import Opener
from tests.daemon import IQN, Daemon
from tests.lun_backends.shared.rig import wait

SECRETS = ("the secret of the node", "that of the storage")
STORAGE = "write_once:\n  - {volume: archive, size: 1MiB, pool: 2}\n"
VOLUMES = "  - {name: archive, lun: 0, size: 1MiB}\n  - {name: other, lun: 7, size: 1MiB}\n"


def secrets(directory: Path) -> None:
    for name, secret in zip(("node", "storage"), SECRETS, strict=True):
        (directory / name).write_text(secret)
        (directory / name).chmod(0o600)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("storage")
    (directory / "state").mkdir()
    secrets(directory / "state")
    access = (
        "  networks: [127.0.0.0/8]\n  initiators:\n"
        f"    - name: {shared_devices.initiator_name('proven')}\n"
        "      chap: {name: proven, secret_file: node, target_name: storage, target_secret_file: storage}\n"
        f"    - name: {shared_devices.initiator_name('plain')}\n"
    )
    with Daemon(directory, VOLUMES, extra=STORAGE, access=access) as running:
        yield running


@pytest.fixture
def opener(tmp_path: Path) -> Iterator[Opener]:
    secrets(tmp_path)
    made = Opener(tmp_path)
    yield made
    made.close()


def shared(storage: Daemon, lun: int = 0, name: str = "archive", **keys: object) -> settings.SharedVolume:
    primary = f"iscsi://{storage.portal}/{IQN}/{lun}"
    return settings.SharedVolume.model_validate({"name": name, "primary": primary, "lun": 1, **keys})


def test_node_proves_itself_and_so_does_the_storage_host(storage: Daemon, opener: Opener, tmp_path: Path) -> None:
    chap = {"name": "proven", "secret_file": "node", "target_name": "storage", "target_secret_file": "storage"}
    owner = opener.open(shared(storage, chap=chap), "proven", tmp_path)
    try:
        wait(lambda: owner.shared.status.state == "armed")
        assert [node.initiator for node in owner.shared.nodes()] == [shared_devices.initiator_name("proven")]
    finally:
        owner.close()


@pytest.mark.parametrize("chap", [None, {"name": "proven", "secret_file": "storage"}])
def test_node_without_the_right_secret_is_refused(
    storage: Daemon, opener: Opener, tmp_path: Path, chap: object
) -> None:
    with pytest.raises(block_device.NoAnswer, match="cannot be reached"):
        opener.open(shared(storage, chap=chap), "proven", tmp_path)


def test_secret_that_others_can_read_is_refused(storage: Daemon, opener: Opener, tmp_path: Path) -> None:
    (tmp_path / "node").chmod(0o644)
    with pytest.raises(errors.VolumeError, match="correct the file of `chap`"):
        opener.open(shared(storage, chap={"name": "proven", "secret_file": "node"}), "proven", tmp_path)


def test_primary_of_another_volume_is_refused(storage: Daemon, opener: Opener, tmp_path: Path) -> None:
    with pytest.raises(errors.VolumeError, match="is not its primary"):
        opener.open(shared(storage, 7), "plain", tmp_path)


def test_volume_without_a_log_is_refused_with_the_way_to_get_one(
    storage: Daemon, opener: Opener, tmp_path: Path
) -> None:
    with pytest.raises(VolumeNotFound, match="`write_once` with `pool`"):
        opener.open(shared(storage, 7, "other"), "plain", tmp_path)


def test_log_and_pool_that_the_configuration_names_have_to_say_what_they_are(
    storage: Daemon, opener: Opener, tmp_path: Path
) -> None:
    (pool,) = storage.json("status")["pools"]
    at = f"iscsi://{storage.portal}/{IQN}"
    log, blank = pool["log_lun"], pool["luns"][-1]
    for keys, why in (
        ({"log": f"{at}/{blank['lun']}"}, "is not the log of a volume"),
        ({"log": f"{at}/0"}, "does not say that it is a write-once LUN"),
        ({"pool": [f"{at}/7"]}, "does not say that it is a write-once LUN"),
    ):
        with pytest.raises(errors.VolumeError, match=why):
            opener.open(shared(storage, **keys), "plain", tmp_path)
    named = shared(storage, log=f"{at}/{log}", pool=[f"{at}/{blank['lun']}"])
    owner = opener.open(named, "plain", tmp_path)
    try:
        wait(lambda: owner.shared.status.state == "armed")
        assert owner.shared.pool_left() == 1
        taken = owner.create_snapshot("named")
        assert str(taken.listed.lun) == blank["identity"]
    finally:
        owner.close()


class Renamed(Portals):
    """The LUNs of a portal as disks of the kernel, which get other names when the host logs in anew."""

    login = "first"

    def luns(self) -> Iterator[Lun]:
        return (replace(lun, address=f"{self.login} {lun.address}") for lun in super().luns())

    def open(self, address: str) -> Unit | None:
        login, _, address = address.partition(" ")
        if login != self.login:
            raise backing_file.CannotOpen(Path(address), "it does not exist", "correct the path")
        return super().open(address)


def test_write_once_lun_is_found_under_its_new_name(storage: Daemon) -> None:
    initiator = libiscsi.Initiator(shared_devices.initiator_name("plain"))
    try:
        disks = Renamed(initiator, [(storage.portal, IQN)])
        found = Discovery([disks]).find("archive")
        pool = shared_devices.Pool(Discovery([disks]), found.volume)
        pool.look()
        disks.login = "second"
        lun = pool.find(next(iter(found.pool)))
        assert lun is not None
        lun.device.close()
    finally:
        initiator.close()
