# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.fuzz.one TARGET [libFuzzer's arguments]`: fuzz one target until it breaks or the process is stopped."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["target", "lun_backends"]):
    from tests.fuzz import targets


def main() -> None:
    """Fuzz the target; never return."""
    targets.watch()
    name = sys.argv[1]
    itself = f"{sys.executable} -m tests.fuzz.one {name}"  # merging runs this again, through a shell
    atheris.Setup([itself, *sys.argv[2:]], targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
