# SPDX-License-Identifier: Apache-2.0
"""The choice of the fabric."""

from __future__ import annotations

from pathlib import Path

import pytest

from target.configuration import reader
from target.fabrics import access, choice
from target.fabrics.kernel import KernelFabric
from target.fabrics.portal import PortalFabric
from target.scsi.scsi_target import ScsiTarget

IQN = "iqn.2026-11.io.wolun:t"


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("portal: {listen: ['127.0.0.1:0']}", PortalFabric),
        ("fabric: portal\nportal: {listen: ['127.0.0.1:0']}", PortalFabric),
        ("fabric: lio\nlio: {listen: ['127.0.0.1:3260']}", KernelFabric),
    ],
)
def test_fabric_is_the_configured_one(line: str, kind: type) -> None:
    text = f"target: {IQN}\n{line}\nvolumes: [{{name: vol0, lun: 0, size: 1MiB}}]\n"
    configured = reader.parse(text, "f.yaml")
    rules = access.Rules.read(configured.access, Path())
    fabric = choice.make(configured, ScsiTarget(IQN), access.Access(rules))
    assert isinstance(fabric, kind)
    fabric.close(0)
