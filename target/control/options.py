# SPDX-License-Identifier: Apache-2.0
"""The options that many requests share."""

from __future__ import annotations

from typing import Annotated

import fastapi

DryRun = Annotated[bool, fastapi.Query(description="Check everything and change nothing.")]
Force = Annotated[bool, fastapi.Query(description="Go on even if initiators use it.")]
