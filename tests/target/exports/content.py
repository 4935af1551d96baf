# SPDX-License-Identifier: Apache-2.0
"""The content of a snapshot that a test exports, as the pieces that a backup yields."""

from __future__ import annotations

from collections.abc import Iterator

from lun_backends.backups.pieces import ExportPiece


def pieces(*parts: bytes | int) -> Iterator[ExportPiece]:
    """Yield pieces of data (bytes) and holes (their lengths)."""
    offset = 0
    for part in parts:
        length = part if isinstance(part, int) else len(part)
        yield ExportPiece(offset, length, None if isinstance(part, int) else memoryview(part))
        offset += length
