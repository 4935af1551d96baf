# SPDX-License-Identifier: Apache-2.0
"""The base of the errors of an administrator's request.

`BlockDeviceError` is the base of the errors of reads and writes, which target/scsi turns into sense data.  No read or write
raises an error of this kind.
"""

from __future__ import annotations


class Refused(Exception):
    """A request that cannot be carried out; `reason` says why, `remedy` says what to do."""

    reason: str
    remedy: str
