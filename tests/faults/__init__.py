# SPDX-License-Identifier: Apache-2.0
"""Disks that fail: layers that inject errors, and how volumes react to them."""
