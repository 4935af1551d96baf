# SPDX-License-Identifier: Apache-2.0
"""Fuzzing of all code that reads a peer's bytes: guided by coverage with atheris, or with the kept corpus only."""
