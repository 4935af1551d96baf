# SPDX-License-Identifier: Apache-2.0
"""The tests that need a kernel: they run in Debian's kernel, which QEMU emulates, on one or several machines at once.

| file           | content                                                                             |
| -------------- | ----------------------------------------------------------------------------------- |
| packages.py    | the lab's Debian packages: installed, or named in one line                          |
| image.py       | kernel, modules and initial RAM disk, fetched and built once into a cache           |
| network.py     | the Ethernet switch between the machines; a test can cut its links                  |
| machine.py     | one virtual machine: boot, run commands, power off                                  |
| lab.py         | a set of machines on one network; it leaves nothing behind                          |
| guest/         | the programs inside: the RAM disk's init, start script, command agent               |
| cluster.py     | four machines that share a volume; recorder.py and halting.py run in them           |
| test_*.py      | the scenarios                                                                       |
| cluster_*.py   | snapshots of that volume under every disturbance, by `make cluster-lab` alone       |

Every machine sees the host's root file system, read-only over 9p, under a tmpfs overlay of its own.  It runs this
checkout with this checkout's `.venv`.  The files that it writes vanish with the machine.
"""
