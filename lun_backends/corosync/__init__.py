# SPDX-License-Identifier: Apache-2.0
"""Optional messages between nodes of a cluster, over corosync.  Nothing depends on them (README.md)."""
