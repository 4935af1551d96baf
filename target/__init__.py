# SPDX-License-Identifier: Apache-2.0
"""How LUNs are served: the SCSI device server, the fabrics, the daemon and its commands."""

VERSION = "0.1.0"
"""The release, as in setup.cfg (a test compares them); here so that no command needs to look up package metadata."""
