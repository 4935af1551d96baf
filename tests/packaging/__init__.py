# SPDX-License-Identifier: Apache-2.0
"""Installing: `make serve`, the wheel, the Debian package and the container image, each installed and used."""
