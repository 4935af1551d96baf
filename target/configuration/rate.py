# SPDX-License-Identifier: Apache-2.0
"""The configuration's group `rate`: how many commands and bytes per second a volume or an initiator may have."""

from __future__ import annotations

from typing import Annotated

import pydantic

from target.configuration import values
from target.configuration.values import Problems

NO_RATE = "the kernel's target sends the commands of all initiators through one ring, in order: use fabric: portal"
"""The reason why `fabric: lio` has no limits."""


class Rate(values.Group):
    """A limit of commands and bytes per second. Commands beyond it wait, and sessions take turns."""

    iops: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Commands per second that read or change blocks. Left out: any number."""

    bandwidth: Annotated[values.Size, pydantic.Field(ge=1)] | None = None
    """Bytes per second, read and written together, like 100MiB. Left out: any number."""

    burst: values.Seconds = 1.0
    """Seconds of that which may come at once after a pause."""

    def problems(self) -> Problems:
        """Return the problems of values beside their neighbours."""
        return {} if self.iops or self.bandwidth else {(): "it limits nothing: write iops, bandwidth, or both"}
