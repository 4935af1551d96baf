# SPDX-License-Identifier: Apache-2.0
"""The daemon recognises its own files, whatever way a path leads to them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from lun_backends.stores import thin
from target import messages
from target.administration.administration import Administration
from target.fabrics.fabric import Fabric
from target.service import own_files, problems
from target.service.service import Service
from tests.target.service.conftest import Serve

VOL0 = "it belongs to volume vol0"


@pytest.fixture
def shown(serve: Serve, tmp_path: Path) -> Service:
    """Return a service of vol0, whose primary is outside the state directory, behind a link, and of vol1, which fails."""
    os.truncate(os.open(tmp_path / "disk", os.O_CREAT | os.O_RDWR), 1 << 20)
    (tmp_path / "link").symlink_to("disk")
    (tmp_path / "broken").write_bytes(bytes(512))
    service = serve(
        f"  - {{name: vol0, lun: 0, primary: {tmp_path / 'link'}}}\n"
        f"  - {{name: vol1, lun: 1, size: 1MiB, primary: {tmp_path / 'broken'}}}\n"
        "shared: [{name: far, snapshot: s, primary: %s, write_once: /nowhere, lun: 2}]\n" % _touch(tmp_path / "far")
    )
    service.snapshots.create_snapshot("vol0", "s")
    return service


def _touch(path: Path) -> Path:
    path.touch()
    return path


def _store(service: Service) -> Path:
    owner = service.inventory.own_volume("vol0")
    return thin.files(owner.directory / "snapshots" / str(owner.snapshot("s").uuid))[1]


def _symbolic(path: Path, at: Path) -> Path:
    at.symlink_to(path)
    return at


def _hard(path: Path, at: Path) -> Path:
    os.link(path, at, follow_symlinks=True)
    return at


def _through_a_directory(path: Path, at: Path) -> Path:
    at.symlink_to(path.parent)
    return at / path.name


def _by_descriptor(path: Path, _at: Path) -> Path:
    return Path(f"/proc/self/fd/{os.open(path, os.O_RDONLY)}")


@pytest.mark.parametrize("way", [_symbolic, _hard, _through_a_directory, _by_descriptor])
@pytest.mark.parametrize("what", ["disk", "link", "broken", "far", "store", "manifest", "numbers"])
def test_own_file_is_known_by_each_of_its_names(
    shown: Service, tmp_path: Path, way: Callable[[Path, Path], Path], what: str
) -> None:
    path, whose = {
        "disk": (tmp_path / "disk", VOL0),
        "link": (tmp_path / "link", VOL0),
        "broken": (tmp_path / "broken", "it belongs to volume vol1"),
        "far": (tmp_path / "far", "it belongs to the shared volume far"),
        "store": (_store(shown), VOL0),
        "manifest": (tmp_path / "state" / "volumes" / "vol0" / "volume.json", VOL0),
        "numbers": (tmp_path / "state" / "luns.json", f"it is in the state directory {tmp_path / 'state'}"),
    }[what]
    assert own_files.claim(shown.inventory, path) == whose
    assert own_files.claim(shown.inventory, way(path, tmp_path / "way")) == whose


def test_primary_that_lost_its_name_is_known(shown: Service, tmp_path: Path) -> None:
    (tmp_path / "disk").rename(tmp_path / "moved")
    assert own_files.claim(shown.inventory, tmp_path / "moved") == VOL0


def test_new_file_in_an_own_directory_is_known(shown: Service, tmp_path: Path) -> None:
    """The directory of the snapshots is on another disk, behind a link."""
    snapshots = shown.inventory.own_volume("vol0").directory / "snapshots"
    snapshots.rename(tmp_path / "elsewhere")
    snapshots.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "below").mkdir()
    for place in ("elsewhere/new", "elsewhere/below/new", "state/volumes/vol0/snapshots/new"):
        assert own_files.claim(shown.inventory, tmp_path / place) == VOL0
    assert "in the state directory" in own_files.claim(shown.inventory, tmp_path / "state" / "new")
    assert own_files.claim(shown.inventory, tmp_path / "new") == ""
    assert own_files.claim(shown.inventory, tmp_path / "missing" / "new") == ""


def test_bind_mount_leads_to_an_own_file(shown: Service, tmp_path: Path) -> None:
    """The mounts are in a namespace of a process of their own, where a child of it looks for the files."""
    shown.stop()
    shown.close()
    for name in ("directory", "file"):
        _touch(tmp_path / name) if name == "file" else (tmp_path / name).mkdir()
    program = (
        "import pathlib, sys; from target.configuration import reader; from target.service import own_files, service;"
        "at = pathlib.Path(sys.argv[1]);"
        "served = service.Service(reader.parse(sys.argv[2], 'f.yaml'), at / 'state');"
        "print(*(own_files.claim(served.inventory, at / name) for name in ('directory/new', 'file')), sep='\\n');"
        "served.stop(); served.close()"
    )
    text = f"target: iqn.2026-11.io.wolun:t\nvolumes: [{{name: vol0, lun: 0, primary: {tmp_path / 'link'}}}]\n"
    script = (
        'mount --bind "$1/state/volumes" "$1/directory" && mount --bind "$1/disk" "$1/file" && "$2" -c "$3" "$1" "$4"'
    )
    done = subprocess.run(
        [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
            tmp_path,
            sys.executable,
            program,
            text,
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == [f"it is in the state directory {tmp_path / 'state'}", VOL0], done.stderr


def test_configuration_is_not_saved_among_the_files_of_a_volume(shown: Service, tmp_path: Path) -> None:
    admin = Administration(shown, cast(Fabric, None), tmp_path / "wolun.yaml", shown.inventory.settings)
    for place in ("disk", "state/volumes/vol0/new"):
        with pytest.raises(problems.Problem, match="belongs to volume vol0"):
            admin.save(messages.ConfigurationFile(str(tmp_path / place)), dry_run=False)
    assert not (tmp_path / "state/volumes/vol0/new").exists()


def test_configuration_does_not_replace_what_is_no_file(shown: Service, tmp_path: Path) -> None:
    """A device, like /dev/null, is refused in the same way."""
    admin = Administration(shown, cast(Fabric, None), tmp_path / "wolun.yaml", shown.inventory.settings)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    for name in ("fifo", "directory"):
        with pytest.raises(problems.Problem, match="it is no regular file"):
            admin.save(messages.ConfigurationFile(str(tmp_path / name)), dry_run=False)
    assert (tmp_path / "fifo").is_fifo()
