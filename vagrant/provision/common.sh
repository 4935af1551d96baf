#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Set up what every machine of the lab needs: names, open-iscsi, and the checkout that lies in /opt/wolun.
#
# usage: common.sh NAME HOST=ADDRESS...
#
# The script may run again: it skips the steps that are done.
set -euo pipefail
name=$1
shift
here=/opt/wolun/vagrant/provision

for pair in "$@"; do
    grep -q "[[:space:]]${pair%%=*}\$" /etc/hosts || echo "${pair#*=} ${pair%%=*}" >>/etc/hosts
done

wanted=()
command -v iscsiadm >/dev/null || wanted+=(open-iscsi)
command -v sg_get_lba_status >/dev/null || wanted+=(sg3-utils)
[[ -x /opt/wolun/.venv/bin/wolun ]] || wanted+=(python3-venv)
if [[ ${#wanted[@]} -gt 0 ]]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -y -q --no-install-recommends "${wanted[@]}"
fi

if [[ ! -x /opt/wolun/.venv/bin/wolun ]]; then
    python3 -m venv /opt/wolun/.venv
    /opt/wolun/.venv/bin/pip install -q --disable-pip-version-check --editable '/opt/wolun[lio]'
fi
ln -sf /opt/wolun/.venv/bin/wolun /usr/local/bin/wolun

mkdir -p /etc/wolun /etc/iscsi /etc/udev/rules.d
echo "InitiatorName=iqn.2026-11.io.wolun.lab:$name" >/etc/iscsi/initiatorname.iscsi
install -m 644 "$here/70-wolun-lab.rules" /etc/udev/rules.d/
udevadm control --reload
install -D -m 644 -t /etc/dbus-1/system.d /opt/wolun/config/org.kernel.TCMUService1.wolun.conf
install -m 644 /opt/wolun/config/wolun.service /etc/systemd/system/
# On a busy host an emulated machine may need more than the minute and a half that systemd waits for a start.
mkdir -p /etc/systemd/system/wolun.service.d
install -m 644 /opt/wolun/config/wolun.service.lio.conf /etc/systemd/system/wolun.service.d/lio.conf
printf '[Service]\nTimeoutStartSec=600\n' >/etc/systemd/system/wolun.service.d/lab.conf
systemctl daemon-reload
