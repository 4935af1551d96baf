# SPDX-License-Identifier: Apache-2.0
"""The status page: the control socket's requests, chosen and guarded, over TCP."""
