# SPDX-License-Identifier: Apache-2.0
"""A deterministic simulation of the cluster protocol: nodes run the product's code on simulated devices that fail."""
