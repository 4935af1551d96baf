# SPDX-License-Identifier: Apache-2.0
"""What the walk-through's runner makes of a text, and that it notices what is not true."""

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


def test_steps_have_their_machines_and_what_is_shown() -> None:
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
def test_what_is_shown_may_leave_out_what_varies(printed: str) -> None:
    walkthrough.check(Step("node1", "wolun version\n", SHOWN), printed)


@pytest.mark.parametrize(
    "printed", ["", "wolun 1.0 of (2027)\nends", "wolun 1.0 of (2026)\nends\nnot", "wolun 1.0\n2.0 of (2026)\nends"]
)
def test_what_is_shown_must_be_printed(printed: str) -> None:
    with pytest.raises(walkthrough.NotTrue):
        walkthrough.check(Step("node1", "wolun version\n", SHOWN), printed)


def test_where_nothing_is_shown_nothing_is_printed() -> None:
    walkthrough.check(Step("node1", "true\n", None), "")
    with pytest.raises(walkthrough.NotTrue):
        walkthrough.check(Step("node1", "echo\n", None), "something")


def test_the_walk_through_walks_all_of_the_way() -> None:
    steps = list(walkthrough.steps(walkthrough.README.read_text("utf-8")))
    assert {step.machine for step in steps} == {"host", "storage", "node1", "node2", "backup"}
    typed = "".join(step.commands for step in steps)
    assert all(word in typed for word in ("vagrant up", "vagrant halt --force", "vagrant destroy", "sg_get_lba_status"))
