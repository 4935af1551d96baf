#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Serve the primary and an empty write-once LUN through the kernel's target.
set -euo pipefail
install -m 644 /opt/wolun/vagrant/provision/storage.yaml /etc/wolun/wolun.yaml
systemctl enable --now wolun
