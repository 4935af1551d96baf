# SPDX-License-Identifier: Apache-2.0
"""Images in the formats of other hypervisors: VHD by a writer of our own, VHDX and VMDK through `qemu-img`.

A fixed VHD is the raw image and a footer of 512 bytes (Microsoft's "Virtual Hard Disk Image Format Specification", 1.0).  The
other two need the whole raw image first: it is written to a file without a name in the directory of the image, sparse,
and `qemu-img` converts it.  So for a moment they take the room of their data twice.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from target.exports import image_file
from target.service import jobs, problems

QEMU_IMG = ("vhdx", "vmdk")
"""The formats that `qemu-img` writes."""

VHD_MAXIMUM = 2040 << 30
"""The largest VHD, in bytes."""

_EPOCH = 946684800  # seconds from 1970 to 2000, when VHD's time begins
_POLL = 0.1  # seconds between looks at the conversion
# cookie, features, version, no other header, time, creator ("win ": QEMU then takes the size from the next field and not
# from the geometry), its version, its system, original and current size, cylinders, heads, sectors, fixed, checksum,
# UUID, not saved, reserved
_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427s")
_CHECKSUM = slice(64, 68)


class Vhd:
    """A writer of a fixed VHD; see `image_file.Image`."""

    def __init__(self, fd: int, size: int) -> None:
        """Take an empty file.  Raises OSError."""
        self._raw = image_file.Raw(fd, size)
        self._fd = fd
        self._size = size

    def write(self, offset: int, data: memoryview) -> None:
        self._raw.write(offset, data)

    def finish(self) -> None:
        os.pwrite(self._fd, footer(self._size, uuid.uuid4(), int(time.time())), self._size)
        self._raw.finish()


def footer(size: int, identity: uuid.UUID, now: int) -> bytes:
    """Return the footer of a fixed VHD of `size` bytes, made `now` (seconds since 1970)."""
    cylinders, heads, sectors = geometry(size)
    fields = (
        b"conectix", 2, 0x00010000, 0xFFFFFFFFFFFFFFFF, max(0, now - _EPOCH), b"win ", 0x000A0000, b"Wi2k", size, size,
        cylinders, heads, sectors, 2,
    )  # fmt: skip
    packed = bytearray(_FOOTER.pack(*fields, 0, identity.bytes, 0, b""))
    packed[_CHECKSUM] = (~sum(packed) & 0xFFFFFFFF).to_bytes(4)
    return bytes(packed)


def geometry(size: int) -> tuple[int, int, int]:
    """Return cylinders, heads and sectors per track by the specification's appendix; they cover at most `size` bytes."""
    total = min(size // 512, 65535 * 16 * 255)
    if total >= 65535 * 16 * 63:
        return total // 255 // 16, 16, 255
    sectors, tracks = 17, total // 17
    heads = max(4, -(-tracks // 1024))
    if tracks >= heads * 1024 or heads > 16:
        sectors, heads, tracks = 31, 16, total // 31
    if tracks >= heads * 1024:
        sectors, heads, tracks = 63, 16, total // 63
    return tracks // heads, heads, sectors


class Converted:
    """A writer of a format that `qemu-img` knows; see `image_file.Image`.  `undo` closes what it opens."""

    def __init__(
        self,
        fd: int,
        size: int,
        path: Path,
        image_format: str,
        cancelled: Callable[[], bool],
        undo: contextlib.ExitStack,
    ) -> None:
        """Take the empty file that will be at `path`.  Raises OSError."""
        self._plain = undo.enter_context(tempfile.TemporaryFile(dir=path.parent))  # noqa: SIM115 - `undo` is one
        self._raw = image_file.Raw(self._plain.fileno(), size)
        self._fd = fd
        self._path = path
        self._format = image_format
        self._cancelled = cancelled

    def write(self, offset: int, data: memoryview) -> None:
        self._raw.write(offset, data)

    def finish(self) -> None:
        """Convert, and make the image durable.  Raises jobs.Cancelled, Problem, OSError."""
        plain = self._plain.fileno()
        command = [program(self._path), "convert", "-f", "raw", "-O", self._format]
        with (
            tempfile.TemporaryFile() as said,
            subprocess.Popen(
                [*command, f"/proc/self/fd/{plain}", f"/proc/self/fd/{self._fd}"],
                pass_fds=(plain, self._fd),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
            ) as process,
        ):
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL)
                    break
                if self._cancelled():
                    process.kill()
                    raise jobs.Cancelled
            if process.returncode:
                said.seek(0)
                lines = said.read().decode(errors="replace").strip().splitlines() or [f"status {process.returncode}"]
                raise problems.file_failed(self._path, f"qemu-img cannot convert to {self._format}: {lines[-1]}")
        os.fsync(self._fd)


def program(path: Path) -> str:
    """Return the path of `qemu-img`, which is to write `path`.  Raises Problem if it is not installed."""
    found = shutil.which("qemu-img")
    if found is None:
        remedy = "apt install qemu-utils, or export raw and convert the file elsewhere"
        raise problems.file_failed(path, "its format needs qemu-img, which is not installed", remedy)
    return found


def check(path: Path, image_format: str, size: int) -> None:
    """Refuse what cannot be written, before anything is.  Raises Problem."""
    if image_format in QEMU_IMG:
        program(path)
    if image_format == "vhd" and size > VHD_MAXIMUM:
        raise problems.file_failed(path, "a VHD has at most 2040 GiB", "export as vhdx")
