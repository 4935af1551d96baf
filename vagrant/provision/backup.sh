#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The backup host logs in, and is ready to read the snapshot: `systemctl start wolun` when it has been taken.
set -euo pipefail
bash /opt/wolun/vagrant/provision/initiator.sh
install -m 644 /opt/wolun/vagrant/provision/backup.yaml /etc/wolun/config.yaml
