# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the kernel scenarios.

A scenario module makes its `Lab` in a module-scoped fixture from `boot_image`.  The machines boot once, in parallel,
and all tests of the module share them.  The report of a red test has the machines' logs.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.kernel import image, packages
from tests.kernel.lab import Lab


@pytest.fixture(scope="session")
def boot_image() -> image.Image:
    """Return the guests' kernel.  If the lab cannot run here, fail with one line; no test is skipped."""
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
