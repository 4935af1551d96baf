# SPDX-License-Identifier: Apache-2.0
"""libiscsi as the tests' initiator: it sends any CDB, and returns status and raw sense data.

This is a thin ctypes layer over Debian's `libiscsi7`.  The structures are those of its public header `scsi-lowlevel.h`.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass
from typing import Any, Self

from tests import peers

_READ, _WRITE, _NONE = 1, 2, 0
_OWN_STATUS = 0x0F000000  # libiscsi's own codes, for commands without a status: cancelled, timed out, connection lost
_NORMAL, _NO_DIGEST, _DIGEST = 2, 0, 2


class _Sense(ctypes.Structure):
    _fields_ = (
        ("error_type", ctypes.c_ubyte),
        ("key", ctypes.c_int),
        ("ascq", ctypes.c_int),
        ("flags", ctypes.c_ubyte),  # three one-bit fields; the next member shares their word
        ("bit_pointer", ctypes.c_ubyte),
        ("field_pointer", ctypes.c_uint16),
    )


class _Data(ctypes.Structure):
    _fields_ = (("size", ctypes.c_int), ("data", ctypes.POINTER(ctypes.c_ubyte)))


class _OutData(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("data", ctypes.POINTER(ctypes.c_ubyte)))


class _Task(ctypes.Structure):
    _fields_ = (
        ("status", ctypes.c_int),
        ("cdb_size", ctypes.c_int),
        ("xfer_dir", ctypes.c_int),
        ("expxferlen", ctypes.c_int),
        ("cdb", ctypes.c_ubyte * 16),
        ("residual_status", ctypes.c_int),
        ("residual", ctypes.c_size_t),
        ("sense", _Sense),
        ("datain", _Data),
    )


class LibiscsiError(Exception):
    """libiscsi could not connect, log in or send; the message is its own."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one CDB: SAM-5 status, data-in, and raw sense data without its length prefix."""

    status: int
    data: bytes
    sense: bytes

    @property
    def key(self) -> int:
        """The sense key."""
        return self.sense[1] & 0xF if self.sense and self.sense[0] & 0x7F >= 0x72 else self.sense[2] & 0xF

    @property
    def asc(self) -> tuple[int, int]:
        """The additional sense code and its qualifier."""
        if self.sense[0] & 0x7F >= 0x72:
            return self.sense[2], self.sense[3]
        return self.sense[12], self.sense[13]

    @property
    def information(self) -> int | None:
        """The INFORMATION field, or None when it is not valid (SPC-5 4.4.3 and 4.4.2.2)."""
        if self.sense[0] & 0x7F < 0x72:
            return int.from_bytes(self.sense[3:7], "big") if self.sense[0] & 0x80 else None
        position = 8
        while position + 1 < len(self.sense):
            if self.sense[position] == 0:
                return int.from_bytes(self.sense[position + 4 : position + 12], "big")
            position += self.sense[position + 1] + 2
        return None


def _library() -> Any:
    peers.require("iscsi-ls", package="libiscsi-bin")
    library = ctypes.CDLL("libiscsi.so.7")
    for name in ("iscsi_create_context", "scsi_create_task", "iscsi_scsi_command_sync"):
        getattr(library, name).restype = ctypes.c_void_p
    library.iscsi_get_error.restype = ctypes.c_char_p
    return library


class Session:
    """One logged-in session: `Session("127.0.0.1:3260", "iqn…")`; a context manager that logs out."""

    def __init__(
        self,
        portal: str,
        target: str,
        *,
        initiator: str = "iqn.2026-11.io.wolun:test",
        chap: tuple[str, str] | None = None,
        mutual: tuple[str, str] | None = None,
        digests: bool = False,
    ) -> None:
        self._library = _library()
        self._context = ctypes.c_void_p(self._library.iscsi_create_context(initiator.encode()))
        self._library.iscsi_set_noautoreconnect(self._context, 1)
        self._library.iscsi_set_targetname(self._context, target.encode())
        self._library.iscsi_set_session_type(self._context, _NORMAL)
        self._library.iscsi_set_header_digest(self._context, _DIGEST if digests else _NO_DIGEST)
        if chap is not None:
            self._library.iscsi_set_initiator_username_pwd(self._context, *(word.encode() for word in chap))
        if mutual is not None:
            self._library.iscsi_set_target_username_pwd(self._context, *(word.encode() for word in mutual))
        for step in ("connect", "login"):
            arguments = (portal.encode(),) if step == "connect" else ()
            if getattr(self._library, f"iscsi_{step}_sync")(self._context, *arguments) != 0:
                error = self._error()
                self._library.iscsi_destroy_context(self._context)
                raise LibiscsiError(f"{step}: {error}")

    def _error(self) -> str:
        return (self._library.iscsi_get_error(self._context) or b"").decode(errors="replace").strip()

    def command(self, lun: int, cdb: bytes, *, out: bytes = b"", read: int = 0) -> Answer:
        """Send `cdb` with data-out `out`, or expect `read` bytes of data-in.  Return the answer."""
        direction, length = (_WRITE, len(out)) if out else (_READ, read) if read else (_NONE, 0)
        raw = self._library.scsi_create_task(len(cdb), (ctypes.c_ubyte * 16)(*cdb), direction, length)
        payload = (ctypes.c_ubyte * max(1, len(out))).from_buffer_copy(out or b"\0")
        data = _OutData(len(out), ctypes.cast(payload, ctypes.POINTER(ctypes.c_ubyte)))
        answered = self._library.iscsi_scsi_command_sync(
            self._context, lun, ctypes.c_void_p(raw), ctypes.byref(data) if out else None
        )
        if not answered:
            raise LibiscsiError(f"command: {self._error()}")
        task = ctypes.cast(answered, ctypes.POINTER(_Task)).contents
        content = ctypes.string_at(task.datain.data, task.datain.size) if task.datain.size else b""
        status = task.status
        if status >= _OWN_STATUS:
            self._library.scsi_free_scsi_task(ctypes.c_void_p(answered))
            raise LibiscsiError(f"the command got no answer: {self._error()}")
        self._library.scsi_free_scsi_task(ctypes.c_void_p(answered))
        if status == 0x02:
            return Answer(status, b"", content[2 : 2 + int.from_bytes(content[:2], "big")])
        return Answer(status, content, b"")

    def settle(self, lun: int) -> None:
        """Take the unit attentions of a new session, so that the next command gets its own answer."""
        for _ in range(8):
            if self.command(lun, bytes(6)).status == 0:
                return

    def close(self) -> None:
        """Log out and free the session; a session that has ended is only freed."""
        self._library.iscsi_logout_sync(self._context)
        self._library.iscsi_destroy_context(self._context)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
