# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the kernel scenarios.

A scenario module makes its `Lab` in a module-scoped fixture from `boot_image`: the machines boot once, in parallel, and
are shared by the module.  A red test carries the machines' logs.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.kernel import image, packages
from tests.kernel.lab import Lab


@pytest.fixture(scope="session")
def boot_image() -> image.Image:
    """Return the guests' kernel.  A lab that cannot run here is an error of one line, not a skip."""
    try:
        packages.ensure()
        return image.build()
    except packages.LabUnavailable as reason:
        pytest.fail(str(reason), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Lab):
                report.sections.append(("machines", value.logs()))
    return report
