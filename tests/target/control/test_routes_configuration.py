# SPDX-License-Identifier: Apache-2.0
"""The requests for the configuration as a whole."""

from __future__ import annotations

from pathlib import Path

from target.control.client import Client


def test_configuration_is_saved_cleared_and_restored(client: Client, tmp_path: Path) -> None:
    file = str(tmp_path / "saved.yaml")
    assert not client.save_configuration(file, dry_run=True).backup
    assert not Path(file).exists()
    assert client.save_configuration(file).file == file
    assert "name: vol0" in Path(file).read_text()

    assert all(outcome.refusal is None for outcome in client.clear_configuration(force=False, dry_run=True))
    assert [volume.name for volume in client.volumes()] == ["vol0"]
    assert all(outcome.refusal is None for outcome in client.clear_configuration(force=True, dry_run=False))
    assert client.volumes() == []

    assert all(outcome.refusal is None for outcome in client.restore_configuration(file, force=False, dry_run=False))
    assert [volume.name for volume in client.volumes()] == ["vol0"]
    assert [snapshot.name for snapshot in client.snapshots("vol0")] == ["kept"]
