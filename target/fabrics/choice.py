# SPDX-License-Identifier: Apache-2.0
"""The choice of the fabric, by the configuration."""

from __future__ import annotations

from target.configuration import settings
from target.fabrics import access
from target.fabrics.fabric import Fabric
from target.fabrics.kernel import KernelFabric
from target.fabrics.portal import PortalFabric
from target.scsi import scsi_target


def make(configured: settings.Settings, served: scsi_target.ScsiTarget, policy: access.Access) -> Fabric:
    """Make the fabric that the configuration names.  Raises CannotStart."""
    if configured.fabric is settings.Fabric.LIO:
        return KernelFabric(configured, served, policy)
    return PortalFabric(configured, served, policy)
