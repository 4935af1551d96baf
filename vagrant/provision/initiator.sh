#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Log in to the storage host, which may still be starting, and wait for its two LUNs.  node.sh and backup.sh run this.
set -euo pipefail
# A session waits for a missing storage host without limit, and comes back after a reboot.
sed -i 's/^node.startup = .*/node.startup = automatic/' /etc/iscsi/iscsid.conf
systemctl restart iscsid
portal=$(getent hosts storage | cut -d' ' -f1):3260
deadline=$((SECONDS + 900))
until iscsiadm -m discovery -t sendtargets -p "$portal" 2>/dev/null; do
    [[ $SECONDS -lt $deadline ]] || { echo "no target on $portal after 15 minutes" >&2; exit 1; }
    sleep 2
done
iscsiadm -m session 2>/dev/null || iscsiadm -m node -p "$portal" --login
until [[ -b /dev/lab/primary && -b /dev/lab/write-once ]]; do
    [[ $SECONDS -lt $deadline ]] || { echo "the LUNs do not appear" >&2; exit 1; }
    sleep 0.2
done
