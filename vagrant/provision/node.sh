#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A node logs in, and is ready to put copy-on-write in front of the primary: `systemctl start wolun` when a snapshot is taken.
set -euo pipefail
bash /opt/wolun/vagrant/provision/initiator.sh
install -m 644 /opt/wolun/vagrant/provision/node.yaml /etc/wolun/config.yaml
