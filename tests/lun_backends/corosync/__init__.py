# SPDX-License-Identifier: Apache-2.0
"""Tests of lun_backends/corosync, with real corosync processes in network namespaces."""
