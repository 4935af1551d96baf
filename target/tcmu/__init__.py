# SPDX-License-Identifier: Apache-2.0
"""The `lio` fabric: the kernel's target carries SCSI to us through TCMU.

| file         | what it is                                                                        |
| ------------ | --------------------------------------------------------------------------------- |
| ring.py      | the command ring of one device, in shared memory                                  |
| uio.py       | the devices that the kernel shows as /dev/uioN                                    |
| server.py    | the event loop over all rings, and the workers for what would block               |
| netlink.py   | the kernel's announcements of devices, and our answers                            |
| aptpl.py     | persistent reservations that outlive the kernel's target                          |
| configfs.py  | the kernel's objects: devices, targets, portals, ACLs, `tcm_loop`                 |
| fabric.py    | all of it together: LUNs come, go, and survive a crash of the daemon              |
"""
