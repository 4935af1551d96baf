# SPDX-License-Identifier: Apache-2.0
"""Repeated SIGKILL of the daemon under verified load from initiators."""
