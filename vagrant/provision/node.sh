#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Log a node in.  `systemctl start wolun` puts copy-on-write in front of the primary and so takes the snapshot.
set -euo pipefail
bash /opt/wolun/vagrant/provision/initiator.sh
install -m 644 /opt/wolun/vagrant/provision/node.yaml /etc/wolun/wolun.yaml
