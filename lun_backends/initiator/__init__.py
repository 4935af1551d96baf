# SPDX-License-Identifier: Apache-2.0
"""Commands that this host sends to LUNs of other hosts: the transports, and the commands of SPC-4 and SBC-4 that a node needs."""
