#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Log the backup host in.  Once the snapshot has been taken, `systemctl start wolun` makes it readable here.
set -euo pipefail
bash /opt/wolun/vagrant/provision/initiator.sh
install -m 644 /opt/wolun/vagrant/provision/backup.yaml /etc/wolun/wolun.yaml
