# SPDX-License-Identifier: Apache-2.0
"""The lab of `vagrant/`, in a box that is made here: `python -m tests.lab`, or `make lab`.

| file           | content                                                                          |
| -------------- | -------------------------------------------------------------------------------- |
| __main__.py    | the whole run, in namespaces of its own: make a box, bring it up, walk, clean up |
| box.py, box/   | a Debian 12 box for Vagrant's libvirt provider, made with mmdebstrap             |
| hypervisor.py  | libvirtd, started by hand                                                        |
| walkthrough.py | the blocks of vagrant/README.md: commands for each machine, and their output     |
"""
