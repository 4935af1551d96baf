# SPDX-License-Identifier: Apache-2.0
"""Bytes nobody meant, for everything that reads what a peer sent: coverage-guided with atheris, or the kept corpus alone."""
