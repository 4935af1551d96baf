# SPDX-License-Identifier: Apache-2.0
"""Installing: `make serve`, the locks, and the numbers of the pages about installing."""
