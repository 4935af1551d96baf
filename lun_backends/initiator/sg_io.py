# SPDX-License-Identifier: Apache-2.0
"""Commands through a SCSI disk of the Linux kernel: SG_IO on `/dev/sdX` or `/dev/disk/by-id/…`.

`SgIo(path)` opens the device node and closes it with `close`; `execute` does `ioctl(fd, SG_IO, header)`, and
`reset_logical_unit` does `ioctl(fd, SG_SCSI_RESET, SG_SCSI_RESET_DEVICE | SG_SCSI_RESET_NO_ESCALATE)`.

* The caller needs CAP_SYS_RAWIO: without it the kernel sends no PERSISTENT RESERVE OUT (drivers/scsi/scsi_ioctl.c).
  SG_SCSI_RESET needs CAP_SYS_ADMIN as well.
* The node is opened for reading only, which suffices for all commands then.  When a descriptor for writing is closed, udev
  looks at the disk again, and its probes read blank blocks.
* The kernel retries none of these commands, and a path that is gone shows as a host status (DID_…) or as an errno.
* A RESERVATION CONFLICT is a status here.  Reads and writes of the block device show it as EBADE instead.
* A command moves at most `queue/max_hw_sectors_kb`; a larger one fails with EINVAL (`max_transfer` is that number).
* Without NO_ESCALATE, a failed reset of the LUN would reset the whole target, then the host adapter.
* With dm-multipath the node is one path (`/sys/block/dm-N/slaves`), and each path is a nexus that registers by itself.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import threading
from pathlib import Path

from lun_backends import block_device
from lun_backends.block_device import Buffers
from lun_backends.files import backing_file, os_error
from lun_backends.initiator import memory, unit

_SG_IO = 0x2285
_SG_SCSI_RESET = 0x2284
_RESET_DEVICE, _NO_ESCALATE = 0x01, 0x100
_NO_DATA, _TO_DEVICE, _FROM_DEVICE = -1, -2, -3
_SMALLEST_TRANSFER = 64 << 10  # bytes; every host adapter can move that
_SENSE = 96  # bytes; SCSI_SENSE_BUFFERSIZE of the kernel


class _Header(ctypes.Structure):
    """The struct sg_io_hdr of include/scsi/sg.h."""

    _fields_ = (
        ("interface_id", ctypes.c_int),
        ("dxfer_direction", ctypes.c_int),
        ("cmd_len", ctypes.c_ubyte),
        ("mx_sb_len", ctypes.c_ubyte),
        ("iovec_count", ctypes.c_ushort),
        ("dxfer_len", ctypes.c_uint),
        ("dxferp", ctypes.c_void_p),
        ("cmdp", ctypes.c_void_p),
        ("sbp", ctypes.c_void_p),
        ("timeout", ctypes.c_uint),
        ("flags", ctypes.c_uint),
        ("pack_id", ctypes.c_int),
        ("usr_ptr", ctypes.c_void_p),
        ("status", ctypes.c_ubyte),
        ("masked_status", ctypes.c_ubyte),
        ("msg_status", ctypes.c_ubyte),
        ("sb_len_wr", ctypes.c_ubyte),
        ("host_status", ctypes.c_ushort),
        ("driver_status", ctypes.c_ushort),
        ("resid", ctypes.c_int),
        ("duration", ctypes.c_uint),
        ("info", ctypes.c_uint),
    )


class SgIo(unit.Unit):
    """The LUN behind a block device of this host.  Raise backing_file.CannotOpen."""

    def __init__(self, path: Path) -> None:
        """Open the device node; no command is sent yet."""
        super().__init__(str(path))
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise backing_file.CannotOpen(path, os_error.reason(error), "check the device") from error
        self.max_transfer = _max_transfer(self._fd)
        self._users = 0
        self._closed = False
        self._idle = threading.Condition()

    def reset_logical_unit(self, timeout: float = unit.TIMEOUT) -> None:
        """Reset as Unit says.  The kernel's own time limits hold, not `timeout`."""
        # SG_SCSI_RESET takes an int by reference, also on 64-bit machines.
        self._ioctl(_SG_SCSI_RESET, bytearray(struct.pack("i", _RESET_DEVICE | _NO_ESCALATE)))

    def close(self) -> None:
        with self._idle:
            if self._closed:
                return
            self._closed = True
            # A descriptor that is closed under a running ioctl could be given to another file.
            self._idle.wait_for(lambda: not self._users)
            os.close(self._fd)

    def _send(self, cdb: bytes, data_out: Buffers, data_in: Buffers, timeout: float) -> unit.Answer:
        command = ctypes.create_string_buffer(cdb, len(cdb))
        sense = ctypes.create_string_buffer(_SENSE)
        pinned = memory.pin(data_out or data_in)
        header = _Header(
            interface_id=ord("S"),
            dxfer_direction=_TO_DEVICE if data_out else _FROM_DEVICE if data_in else _NO_DATA,
            cmd_len=len(cdb),
            mx_sb_len=_SENSE,
            iovec_count=len(pinned.vector) if len(pinned.vector) > 1 else 0,
            dxfer_len=pinned.length,
            dxferp=pinned.address,
            cmdp=ctypes.addressof(command),
            sbp=ctypes.addressof(sense),
            timeout=max(1, int(timeout * 1000)),
        )
        self._ioctl(_SG_IO, header)
        # A status is an answer even where the kernel adds a host status of its own (DID_NEXUS_FAILURE for a conflict).
        if header.status:
            return unit.Answer(header.status, 0, sense.raw[: header.sb_len_wr])
        if header.host_status or header.driver_status & 0x07:
            raise block_device.NoAnswer(
                f"{self.address} did not answer: host status {header.host_status:02X}h, driver status {header.driver_status:02X}h"
            )
        return unit.Answer(unit.GOOD, pinned.length - header.resid)

    def _ioctl(self, request: int, argument: _Header | bytearray) -> None:
        with self._idle:
            if self._closed:
                raise block_device.DeviceClosed
            self._users += 1
        try:
            fcntl.ioctl(self._fd, request, argument)
        except OSError as error:
            raise self._error(error) from error
        finally:
            with self._idle:
                self._users -= 1
                self._idle.notify_all()

    def _error(self, error: OSError) -> block_device.BlockDeviceError:
        reason = os_error.reason(error)
        if error.errno in (errno.EPERM, errno.EACCES):
            return unit.CannotSend(
                f"{self.address}: {reason}: run wolun as root, or with CAP_SYS_RAWIO and CAP_SYS_ADMIN"
            )
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP):
            return unit.CannotSend(f"{self.address}: {reason}: name a SCSI disk of this host")
        return block_device.NoAnswer(f"{self.address}: {reason}")


def _max_transfer(fd: int) -> int:
    """Return the bytes that the host adapter moves with one command."""
    device = os.fstat(fd).st_rdev
    queue = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/queue/max_hw_sectors_kb")
    try:
        return int(queue.read_text()) << 10
    except (OSError, ValueError):
        return _SMALLEST_TRANSFER
