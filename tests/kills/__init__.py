# SPDX-License-Identifier: Apache-2.0
"""SIGKILL of the daemon under verified load from an initiator, again and again."""
