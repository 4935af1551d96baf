# SPDX-License-Identifier: Apache-2.0
"""The protocol of snapshots that several nodes take while they write, without I/O; README.md of this room describes it."""
