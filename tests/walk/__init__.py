# SPDX-License-Identifier: Apache-2.0
"""A random walk of a daemon: an initiator, the control socket and `kill -9` do anything, and every byte is compared.

The model is a few byte strings: the volume, and each snapshot as the volume was.  After each step, all LUNs are read and compared
with it.  Nothing here knows how a snapshot is kept.  `python -m tests.walk --steps N` takes N steps.
"""
