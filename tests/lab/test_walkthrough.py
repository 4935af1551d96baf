# SPDX-License-Identifier: Apache-2.0
"""The walk-through's runner: it reads steps from a text, and notices output that differs."""

from __future__ import annotations

import pytest

from tests.lab import walkthrough
from tests.lab.walkthrough import Step

TEXT = """
```sh host
vagrant up
```
```yaml
key: value
```
```sh node1 node2
wolun version
```
```text
wolun ... of 2026
ends
```
"""


def test_steps_have_machines_and_expected_output() -> None:
    shown = "wolun ... of 2026\nends\n"
    assert list(walkthrough.steps(TEXT)) == [
        Step("host", "vagrant up\n", None),
        Step("node1", "wolun version\n", shown),
        Step("node2", "wolun version\n", shown),
    ]


SHOWN = "wolun ... of (2026)\n...\nends\n"


@pytest.mark.parametrize(
    "printed",
    ["wolun 1.0 of (2026)\nends", "wolun 1.0 of (2026)\nin\nbetween\n\nends\n", "wolun  of (2026)\nends\nends"],
)
def test_dots_stand_for_output_that_varies(printed: str) -> None:
    walkthrough.check(Step("node1", "wolun version\n", SHOWN), printed)


@pytest.mark.parametrize(
    "printed", ["", "wolun 1.0 of (2027)\nends", "wolun 1.0 of (2026)\nends\nnot", "wolun 1.0\n2.0 of (2026)\nends"]
)
def test_other_output_is_refused(printed: str) -> None:
    with pytest.raises(walkthrough.NotTrue):
        walkthrough.check(Step("node1", "wolun version\n", SHOWN), printed)


def test_step_without_expected_output_must_print_nothing() -> None:
    walkthrough.check(Step("node1", "true\n", None), "")
    with pytest.raises(walkthrough.NotTrue):
        walkthrough.check(Step("node1", "echo\n", None), "something")


def test_readme_uses_all_machines() -> None:
    steps = list(walkthrough.steps(walkthrough.README.read_text("utf-8")))
    assert {step.machine for step in steps} == {"host", "storage", "node1", "node2", "backup"}
    typed = "".join(step.commands for step in steps)
    assert all(word in typed for word in ("vagrant up", "vagrant halt --force", "vagrant destroy", "sg_get_lba_status"))
