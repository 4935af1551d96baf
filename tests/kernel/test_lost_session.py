# SPDX-License-Identifier: Apache-2.0
"""Two machines: open-iscsi loses its session while the target's disk is slow, and the barriers of the target wait for the disk.

The primary is a device of dm-delay, so a write is on the medium seconds after the portal gave it to a worker.  The host
loses the session in these seconds.  The portal must not complete a new login of the same initiator port, or a reset by
another initiator, before the lost session's write has ended (RFC 7143 6.3.5, SAM-5 6.3.3).

The kernel's target (LIO) does one LOGICAL UNIT RESET after the other, and each waits for the write.  The fence of a cluster
rests on that (lun_backends/cluster/README.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import pytest

from tests.kernel import image
from tests.kernel.guest_daemon import GuestDaemon, sys_disk
from tests.kernel.lab import Lab
from tests.kernel.machine import Completed, Machine

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1200)]

TARGET = "iqn.2026-11.io.wolun:slow"
INITIATOR, OTHER = "iqn.2026-11.test.lab:first", "iqn.2026-11.test.lab:other"
PORT = 3262
DELAY = 25_000  # milliseconds; more than a login takes on an emulated processor, less than the host waits for a reset
MEDIUM = "/run/medium.img"
SECTORS = 32768
SERVED = f"""
target: {TARGET}
portal:
  listen: 0.0.0.0:{PORT}
access:
  networks: [10.9.0.0/24]
volumes:
  - name: vol0
    lun: 0
    primary: /dev/dm-0
    size: 16MiB
"""
LIO_PORT = 3260
LIO = f"""
set -e
modprobe -a target_core_mod target_core_iblock iscsi_target_mod
mkdir -p /etc/target/pr /var/target/pr
cd /sys/kernel/config/target
mkdir -p core/iblock_0/slow
echo udev_path=/dev/mapper/slow > core/iblock_0/slow/control
echo 5f1e0000-aaaa-4000-8000-000000000002 > core/iblock_0/slow/wwn/vpd_unit_serial
echo 1 > core/iblock_0/slow/enable
group=$PWD/iscsi/iqn.2026-11.test:lio/tpgt_1
mkdir -p $group/np/0.0.0.0:{LIO_PORT} $group/lun/lun_0
ln -s $PWD/core/iblock_0/slow $group/lun/lun_0/slow
for attribute in generate_node_acls=1 cache_dynamic_acls=1 demo_mode_write_protect=0 authentication=0; do
    echo ${{attribute#*=}} > $group/attrib/${{attribute%=*}}
done
echo 1 > $group/enable
"""
STATE = "cat /sys/class/iscsi_session/session{}/state"


@pytest.fixture(scope="module")
def lab(boot_image: image.Image) -> Iterator[Lab]:
    with Lab(boot_image, ["target", "node"]) as machines:
        machines["node"].run("modprobe -a iscsi_tcp sd_mod sg && iscsid")
        machines["target"].run(
            f"modprobe -a loop dm-delay\ntruncate -s {SECTORS * 512} {MEDIUM} && losetup /dev/loop0 {MEDIUM}\n"
            f"DM_DISABLE_UDEV=1 dmsetup create slow --table '{table(0)}'"
        )
        yield machines


def table(delay: int) -> str:
    """Return the device-mapper table of the primary; writes take `delay` milliseconds."""
    return f"0 {SECTORS} delay /dev/loop0 0 0 /dev/loop0 0 {delay}"


@dataclass
class Session:
    """A session of open-iscsi on the machine `node`, under a name of its own."""

    node: Machine
    name: str
    number: str
    disk: str

    @classmethod
    def open(cls, node: Machine, name: str, port: int = PORT) -> Session:
        interface = name.rpartition(":")[2]
        node.run(
            f"iscsiadm -m iface -I {interface} -o new\n"
            f"iscsiadm -m iface -I {interface} -o update -n iface.initiatorname -v {name}\n"
            f"iscsiadm -m discovery -t sendtargets -p target:{port} -I {interface}\n"
            f"for timeout in interval timeout; do iscsiadm -m node -I {interface} -o update "
            "-n node.conn[0].timeo.noop_out_$timeout -v 1; done\n"
            f"iscsiadm -m node -I {interface} --login"
        )
        number = node.output(f"grep -lx {name} /sys/class/iscsi_session/*/initiatorname | tr -dc '0-9\\n'")
        disk = sys_disk(node, f"/sys/class/iscsi_session/session{number}/device/target*/*:0/block/*")
        return cls(node, name, number, disk)

    def close(self) -> None:
        interface = self.name.rpartition(":")[2]
        self.node.run(
            f"iscsiadm -m node -I {interface} --logout; iscsiadm -m node -I {interface} -o delete", check=False
        )
        self.node.run(f"iscsiadm -m iface -I {interface} -o delete", check=False)

    def await_state(self, state: str) -> None:
        self.node.wait_until(f"[ $({STATE.format(self.number)}) = {state} ]")

    def write(self, letter: str) -> Future[Completed]:
        """Begin to fill block 0 with a letter, and to force it to the medium."""
        data = f"head -c 4096 /dev/zero | tr '\\0' {letter}"
        return self.node.submit(f"{data} | dd of={self.disk} bs=4096 count=1 iflag=fullblock oflag=direct,dsync")


@dataclass
class Storage:
    """The machine `target` with the daemon and its slow disk."""

    machine: Machine
    daemon: GuestDaemon

    def delay(self, milliseconds: int) -> None:
        """Set the delay of writes.  Device-mapper ends the delayed ones first."""
        self.machine.run(
            f"export DM_DISABLE_UDEV=1; dmsetup load slow --table '{table(milliseconds)}' && dmsetup resume slow"
        )

    def await_write(self) -> None:
        """Wait until a thread of the daemon waits for the slow disk.  dm-delay does not count what it delays as in flight."""
        self.machine.wait_until(f"cat /proc/$(< {self.daemon.state}/pid)/task/*/stat | grep -q ') D '")

    def on_medium(self) -> str:
        """Return the first letter of block 0 as it is on the medium, below the delay."""
        return self.machine.output(f"head -c 1 {MEDIUM} | tr '\\0' -")


@pytest.fixture
def storage(lab: Lab) -> Iterator[Storage]:
    machine = lab["target"]
    machine.run(
        f"dd if=/dev/zero of=/dev/dm-0 bs=4096 count=1 oflag=direct && [ $(head -c 1 {MEDIUM} | tr '\\0' -) = - ]"
    )
    storage = Storage(machine, GuestDaemon(machine, SERVED, name="slow"))
    storage.daemon.start()
    yield storage
    storage.delay(0)
    storage.daemon.stop()


@pytest.fixture
def first(lab: Lab, storage: Storage) -> Iterator[Session]:
    session = Session.open(lab["node"], INITIATOR)
    yield session
    session.close()


@pytest.mark.parametrize("how", ["closed", "cut"])
def test_a_host_that_lost_its_session_writes_after_its_lost_write(
    lab: Lab, storage: Storage, first: Session, how: str
) -> None:
    storage.delay(DELAY)
    lost = first.write("o")
    storage.await_write()
    if how == "closed":
        storage.machine.run(f"ss -K dst 10.9.0.2 sport = :{PORT}")
        first.await_state("FAILED")
    else:
        lab.switch.cut("target", "node")
        first.await_state("FAILED")
        lab.switch.heal("target", "node")
    assert storage.on_medium() == "-", "the delay was too short for this test"
    first.await_state("LOGGED_IN")
    assert storage.on_medium() == "o"
    storage.delay(0)
    assert lost.result().code == 0, "the host does not write again what it lost"
    assert first.write("n").result().code == 0
    assert storage.on_medium() == "n"


def test_a_reset_by_another_host_waits_for_the_write_of_a_lost_session(
    lab: Lab, storage: Storage, first: Session
) -> None:
    port = storage.machine.output(f"ss -tnH state established sport = :{PORT} | sed 's/.*://'")
    other = Session.open(lab["node"], OTHER)
    storage.delay(DELAY)
    lost = first.write("o")
    storage.await_write()
    storage.machine.run(f"ss -K dst 10.9.0.2 dport = :{port.strip()}")
    first.await_state("FAILED")
    assert storage.on_medium() == "-", "the delay was too short for this test"
    other.node.run(f"sg_reset -d {other.disk}")
    assert storage.on_medium() == "o"
    storage.delay(0)
    assert lost.result().code == 0
    other.close()


def test_two_fences_at_once_wait_for_the_write_on_the_kernels_target(lab: Lab) -> None:
    """PREEMPT and LOGICAL UNIT RESET of two initiators, while the write of a third one is on its way to a slow disk."""
    target, node = lab["target"], lab["node"]
    target.run(f"dd if=/dev/zero of=/dev/mapper/slow bs=4096 count=1 oflag=direct\n{LIO}")
    storage = Storage(target, GuestDaemon(target, SERVED, name="unused"))
    writer, first, second = (
        Session.open(node, f"iqn.2026-11.test.lab:{name}", LIO_PORT) for name in ("writer", "fencer", "helper")
    )

    def reserve(session: Session, *words: str) -> None:
        command = f"sg_persist --no-inquiry --out {' '.join(words)} --prout-type=8 {session.disk}"
        node.run(f"{command} || {command}")  # the first command may meet a unit attention

    for session in (writer, first, second):
        reserve(session, "--register-ignore", "--param-sark=a")
    reserve(first, "--reserve", "--param-rk=a")
    storage.delay(DELAY)
    slow = writer.write("o")
    node.wait_until(f"read -a done < /sys/block/{writer.disk[5:]}/stat; [ ${{done[8]}} -gt 0 ]")  # it is in flight
    resets = []
    for session in (first, second):
        reserve(session, "--register-ignore", "--param-sark=a")
        reserve(session, "--preempt", "--param-rk=a", "--param-sark=0")
        resets.append(node.submit(f"sg_reset --no-esc --device {session.disk}"))
    assert storage.on_medium() == "-", "the delay was too short for this test"
    for reset in resets:
        ended = reset.result()
        assert ended.code == 0, ended.output
        assert storage.on_medium() == "o"
    storage.delay(0)
    assert slow.result().code != 0, "a write that was fenced out succeeds"
    for session in (writer, first, second):
        session.close()
