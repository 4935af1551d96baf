# SPDX-License-Identifier: Apache-2.0
"""The shell in the manner of targetcli: a tree of what is served, a client of the daemon's control socket.

Nothing is done here: every command is one request or a few (`client.Client`), and what the tree shows is asked for when
it is looked at, once per command line.

    console.py   the command line: grammar, completion, scripts, exit status
    node.py      what all nodes have in common
    root.py      /, /jobs, /alerts and the configuration file
    volumes.py   /volumes
    snapshots.py /volumes/NAME/snapshots
    iscsi.py     /iscsi
    acls.py      /iscsi/IQN/tpg1/acls
"""
