# SPDX-License-Identifier: Apache-2.0
"""The `lio` fabric: the kernel's target carries SCSI to this process through TCMU.

| file           | content                                                                         |
| -------------- | ------------------------------------------------------------------------------- |
| ring.py        | the command ring of one device, in shared memory                                |
| uio.py         | the devices that the kernel shows as /dev/uioN                                  |
| server.py      | the event loop over all rings, and the workers for commands that would block    |
| netlink.py     | the kernel's announcements of devices, and the answers to them                  |
| dbus.py        | the names of the handlers, for stock targetcli                                  |
| aptpl.py       | persistent reservations that outlive the kernel's target                        |
| configfs.py    | the kernel's objects: devices, targets, portals, ACLs, `tcm_loop`               |
| connections.py | the TCP connections of a portal of the kernel's target                          |
| fabric.py      | the whole: LUNs come, go, and survive a crash of the daemon                     |
"""
