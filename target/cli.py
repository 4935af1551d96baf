# SPDX-License-Identifier: Apache-2.0
"""The `wolun` command."""


def main() -> None:
    """Entry point."""
    raise SystemExit("wolun: not built yet")
