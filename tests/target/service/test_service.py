# SPDX-License-Identifier: Apache-2.0
"""The service starts and ends its parts in order, and no part knows the service."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import target
from lun_backends import block_device
from target.service import problems
from target.service.service import Service
from tests.target.administration.fabric import BookFabric


def test_no_part_imports_the_service() -> None:
    room = Path(target.__file__).parent / "service"
    importers = {
        path.name
        for path in room.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and (node.module == "target.service.service" or "service" in [name.name for name in node.names])
    }
    assert importers == set()


def test_stopped_service_refuses_jobs_and_closes_its_volumes(service: Service) -> None:
    service.fabric_started(BookFabric("127.0.0.1:3260"))
    device = service.inventory.volume("vol0").device
    service.stop()
    with pytest.raises(problems.Problem, match="the daemon is stopping"):
        service.jobs.start("test", "nothing", lambda job: None)
    device.writev(0, [memoryview(bytes(512))])  # initiators may still write until the fabric has ended
    service.close()
    with pytest.raises(block_device.DeviceClosed):
        device.writev(0, [memoryview(bytes(512))])
