# SPDX-License-Identifier: Apache-2.0
"""The settings of all property tests: no deadline, because a loaded machine is no fault of the code."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("without-deadline", deadline=None)
hypothesis.settings.load_profile("without-deadline")
