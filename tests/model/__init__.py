# SPDX-License-Identifier: Apache-2.0
"""The model of the cluster protocol (`cluster.pml`), which spin searches for an order of steps that makes a snapshot wrong."""
