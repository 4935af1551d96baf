# SPDX-License-Identifier: Apache-2.0
"""The locks in `.ci` agree: what serving and the packages need is there, at the versions that developers have."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def pins(name: str) -> dict[str, str]:
    """Return the version of each package of a lock."""
    text = (PROJECT / ".ci" / name).read_text()
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", text, re.MULTILINE))


def wanted(*places: str) -> set[str]:
    """Return the packages that setup.cfg names, as locks spell them."""
    parser = configparser.ConfigParser()
    parser.read(PROJECT / "setup.cfg")
    lines = parser["options"]["install_requires"].split("\n")
    for place in places:
        lines += parser["options.extras_require"][place].split("\n")
    names = (re.match(r"[A-Za-z0-9._-]+", line) for line in lines)
    return {name[0].replace(".", "-").replace("_", "-").lower() for name in names if name}


def test_each_lock_has_all_that_setup_names() -> None:
    """A package that is added to setup.cfg alone would be missing after `make serve`."""
    assert wanted("editable") <= set(pins("serve.txt"))
    assert wanted("lio", "objects") <= set(pins("package.txt"))


def test_locks_have_the_versions_of_the_developers() -> None:
    everything = pins("requirements.txt").items()
    assert pins("serve.txt").items() <= everything
    assert pins("package.txt").items() <= everything
