# SPDX-License-Identifier: Apache-2.0
"""The lab of `vagrant/`, from a box that is made here to a walk-through that is run: `python -m tests.lab`, or `make lab`.

| file            | what it is                                                                             |
| --------------- | -------------------------------------------------------------------------------------- |
| __main__.py     | everything, in namespaces of its own: make the box, bring it up, walk, take it down       |
| box.py, box/    | a Debian 12 box for Vagrant's libvirt provider, made with mmdebstrap                     |
| hypervisor.py   | libvirtd, started by hand                                                              |
| walkthrough.py  | the blocks of vagrant/README.md: what is typed on which machine, and what is shown       |
"""
