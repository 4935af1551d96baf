# SPDX-License-Identifier: Apache-2.0
"""Installing: `make serve`, the locks, the numbers of the pages; and by `make installs` all packages, installed and used."""
