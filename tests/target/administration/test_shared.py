# SPDX-License-Identifier: Apache-2.0
"""Taking part in shared volumes while the daemon runs, and leaving them."""

from __future__ import annotations

import pytest

from target import messages
from target.administration.administration import Administration
from target.service import problems
from target.service.service import Service

PRIMARY = "/nonexistent/primary"
ARCHIVE = messages.ShareVolume("archive", PRIMARY, lun=7, node="alpha")


def shared(admin: Administration) -> list[str]:
    return [volume.name for volume in admin.running().shared]


def test_host_takes_part_and_leaves(admin: Administration, service: Service) -> None:
    admin.share_volume(ARCHIVE, dry_run=True)
    assert shared(admin) == []
    admin.share_volume(ARCHIVE, dry_run=False)
    assert shared(admin) == ["archive"]
    shown = admin.volume("archive")
    assert (shown.state, shown.lun) == ("failed", 7)
    assert shown.sharing is not None
    assert (shown.sharing.node, shown.sharing.state) == ("alpha", "out")
    assert "archive" in {alert.subject for alert in admin.alerts()}
    admin.unshare_volume("archive", force=False, dry_run=True)
    assert shared(admin) == ["archive"]
    admin.unshare_volume("archive", force=False, dry_run=False)
    assert (shared(admin), service.inventory.failed) == ([], {})
    with pytest.raises(problems.Problem, match="there is no volume archive"):
        admin.volume("archive")


def test_host_takes_part_in_a_volume_whose_store_is_ceph(admin: Administration) -> None:
    place = {"pool": "p", "timeout": "5", "conf": "/etc/other.conf"}
    admin.share_volume(messages.ShareVolume("archive", PRIMARY, store="rados", rados=place), dry_run=False)
    (taken,) = admin.running().shared
    assert taken.rados is not None
    assert (taken.rados.pool, taken.rados.namespace, taken.rados.timeout) == ("p", "wolun", 5.0)
    assert admin.volume("archive").store == "rados"


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (messages.ShareVolume("vol0", PRIMARY), "is called vol0 already"),
        (messages.ShareVolume("archive", PRIMARY, lun=1), "LUN 1 is vol1 already"),
        (messages.ShareVolume("archive", "iscsi://nowhere"), "is no device"),
        (messages.ShareVolume("archive", PRIMARY, chunk_size="5KiB"), "is not a chunk size"),
        (messages.ShareVolume("archive", PRIMARY, store="rados"), "write where the objects are"),
        (messages.ShareVolume("archive", PRIMARY, rados={"pool": "p"}), "the store is write-once LUNs"),
        (messages.ShareVolume("archive", PRIMARY, store="rados", rados={"pol": "p"}), "rados.pool: Field required"),
        (
            messages.ShareVolume("archive", PRIMARY, log=PRIMARY, store="rados", rados={"pool": "p"}),
            "the log is in rados",
        ),
        (
            messages.ShareVolume("archive", PRIMARY, store="objects", objects={"url": "s3://b/x"}),
            "too small for objects",
        ),
    ],
)
def test_share_that_a_file_could_not_have_is_refused(
    admin: Administration, request_: messages.ShareVolume, why: str
) -> None:
    with pytest.raises(problems.Problem, match=why):
        admin.share_volume(request_, dry_run=False)
    assert shared(admin) == []


def test_number_of_a_snapshot_is_no_number_for_a_shared_volume(admin: Administration, service: Service) -> None:
    service.snapshots.create_snapshot("vol0", "s")  # it has LUNs 2 and 3
    with pytest.raises(problems.Problem, match="LUN 2 belongs to a snapshot"):
        admin.share_volume(messages.ShareVolume("archive", PRIMARY, lun=2), dry_run=False)
    assert shared(admin) == []


def test_what_is_no_share_cannot_be_left(admin: Administration) -> None:
    with pytest.raises(problems.Problem, match="this host alone"):
        admin.unshare_volume("vol0", force=True, dry_run=False)
    with pytest.raises(problems.Problem, match="there is no volume other"):
        admin.unshare_volume("other", force=True, dry_run=False)


def test_shared_volume_is_not_changed_like_one_of_this_host(admin: Administration) -> None:
    admin.share_volume(ARCHIVE, dry_run=False)
    for refused in (
        lambda: admin.change_volume("archive", messages.ChangeVolume(lun=9), force=True, dry_run=False),
        lambda: admin.resize_volume("archive", 2 << 20),
        lambda: admin.delete_volume("archive", force=True, data=True, dry_run=False),
    ):
        with pytest.raises(problems.Problem, match="archive is a shared volume"):
            refused()
