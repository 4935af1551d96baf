# SPDX-License-Identifier: Apache-2.0
"""A shell like targetcli: a tree of the served objects, and a client of the daemon's control socket.

The shell has no state of its own.  Each command is one request to the daemon or a few (`client.Client`), and the tree
requests its content when it is shown, at most once per command line.

    console.py   the command line: grammar, completion, scripts, exit status
    node.py      the parts that all nodes share
    root.py      /, /jobs, /alerts and the configuration file
    volumes.py   /volumes
    snapshots.py /volumes/NAME/snapshots
    iscsi.py     /iscsi
    acls.py      /iscsi/IQN/tpg1/acls
"""
