#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# PID 1 of every guest: make the few mounts and settings that a machine needs, and run the agent for the host's commands.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
unset BOOT_IMAGE
for word in $(< /proc/cmdline); do
    case $word in lab.*=*) word=${word#lab.}; declare "${word%%=*}=${word#*=}" ;; esac
done
mkdir -p /run/lock/iscsi /run/dbus /run/log /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
chmod 1777 /tmp
modprobe configfs; mount -t configfs none /sys/kernel/config
# Hide the host's configuration, because the host may run a target of its own.
for directory in /etc/target /etc/iscsi/nodes /etc/iscsi/send_targets /var/lib/iscsi /root/.targetcli; do
    mkdir -p $directory; mount -t tmpfs tmpfs $directory
done
ln -sf /proc/self/fd /dev/fd
hostname "$name"; ip link set lo up; ip link set eth0 up; ip address add "$address/24" dev eth0
echo "InitiatorName=iqn.2026-11.test.lab:$name" > /etc/iscsi/initiatorname.iscsi
echo 127.0.0.1 localhost > /etc/hosts
for pair in ${hosts//,/ }; do echo "${pair#*=} ${pair%%=*}" >> /etc/hosts; done
dmesg -C  # from here on, the log shows only the scenarios' effects on the kernel
port=$(basename "$(dirname "$(grep -l lab.agent /sys/class/virtio-ports/*/name)")")
while :; do
    /usr/bin/python3 -S -E "${start%/*}/agent.py" "/dev/$port" || sleep 0.2
done
