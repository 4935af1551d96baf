#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The storage host serves, through the kernel's target, the primary and a write-once LUN that is still empty.
set -euo pipefail
install -m 644 /opt/wolun/vagrant/provision/storage.yaml /etc/wolun/config.yaml
systemctl enable --now wolun
