# SPDX-License-Identifier: Apache-2.0
"""A volume that several nodes write to, with snapshots: the devices and threads below `lun_backends.cluster`."""
