# SPDX-License-Identifier: Apache-2.0
"""Hours of orderly and broken sessions, while the daemon's memory is watched."""
