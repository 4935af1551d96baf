# SPDX-License-Identifier: Apache-2.0
"""Hours of sessions that come and go, well and badly, while the daemon's memory is watched."""
