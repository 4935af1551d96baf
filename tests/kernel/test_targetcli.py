# SPDX-License-Identifier: Apache-2.0
"""targetcli, unchanged: it lists our handlers and makes devices of them, with and without a running tcmu-runner."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel import image
from tests.kernel.guest_daemon import TCMU_SERVICE_IS_THERE, GuestDaemon, loopback_disk
from tests.kernel.lab import CHECKOUT, Lab
from tests.kernel.machine import Machine

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1200)]

CONFIGURATION = """
target: iqn.2026-11.io.wolun:targetcli
fabric: lio
volumes:
  - name: vol0
    lun: 0
    size: 64MiB
    snapshots: [first]
"""
WWN = "naa.5001405000000001"
POLICY = CHECKOUT / "config/org.kernel.TCMUService1.wolun.conf"


@pytest.fixture(scope="module")
def lab(boot_image: image.Image) -> Iterator[Lab]:
    with Lab(boot_image, ["solo"]) as machines:
        yield machines


@pytest.fixture(params=["alone", "beside tcmu-runner"])
def solo(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Machine]:
    """Yield the machine with a system bus; tcmu-runner either runs, or the bus does not know it."""
    machine = lab["solo"]
    with_runner = request.param != "alone"
    machine.run("modprobe -a sd_mod tcm_loop target_core_user; mkdir -p /run/hidden")
    if with_runner:
        machine.run("mv /run/hidden/tcmu-runner.conf /etc/dbus-1/system.d/")
    else:
        # As if tcmu-runner were not installed: the bus has only our policy, and cannot start tcmu-runner.
        machine.run(f"cp {POLICY} /etc/dbus-1/system.d/; mv /etc/dbus-1/system.d/tcmu-runner.conf /run/hidden/")
        machine.run("rm /usr/share/dbus-1/system-services/org.kernel.TCMUService1.service")
    machine.run("dbus-daemon --system --fork --print-pid > /run/bus")
    if with_runner:
        machine.run("tcmu-runner > /run/log/tcmu-runner.log 2>&1 & echo $! > /run/runner")
        machine.wait_until(TCMU_SERVICE_IS_THERE)
    yield machine
    if with_runner:
        machine.end("/run/runner")  # first, because tcmu-runner ends by itself when the bus ends
    machine.end("/run/bus")
    machine.run("rm -f /run/dbus/pid")


def test_targetcli_lists_our_handlers_and_makes_devices(solo: Machine) -> None:
    daemon = GuestDaemon(solo, CONFIGURATION)
    daemon.start()
    solo.wait_until(f"grep -q 'targetcli lists.*user:snapview' {daemon.log}")

    listed = solo.output("targetcli ls /backstores 1")
    for handler in ("copyonwrite", "writeonce", "snapview"):
        assert f"user:{handler} " in listed
    assert "by its name: <volume>" in solo.output("targetcli /backstores/user:copyonwrite help create")

    wrong = solo.run("targetcli /backstores/user:copyonwrite create mine 64M nosuch", check=False)
    assert "does not serve copyonwrite/nosuch; it serves" in wrong.output
    solo.run("targetcli /backstores/user:copyonwrite create mine 64M vol0")
    solo.run("targetcli /backstores/user:snapview create then 64M vol0@first")
    solo.run(
        f"targetcli << END\n/loopback create {WWN}\n/loopback/{WWN}/luns create /backstores/user:copyonwrite/mine\n"
        f"/loopback/{WWN}/luns create /backstores/user:snapview/then\nEND"
    )
    volume, view = loopback_disk(solo, 0), loopback_disk(solo, 1)
    solo.run(
        f"head -c 1M /dev/urandom > /run/data; dd if=/run/data of={volume} oflag=direct bs=64k status=none\n"
        f"cmp -n 1048576 /run/data {daemon.state}/volumes/vol0/primary.img\n"
        f"dd if={view} iflag=direct bs=64k count=16 status=none | cmp -n 1048576 - /dev/zero"
    )

    # After a crash and a restart, the daemon also takes over devices that targetcli made.
    daemon.kill()
    daemon.start()
    solo.run(f"dd if={volume} iflag=direct bs=64k count=16 status=none | cmp -n 1048576 - /run/data")

    solo.run(
        f"targetcli << END\n/loopback delete {WWN}\n/backstores/user:copyonwrite delete mine\n"
        "/backstores/user:snapview delete then\nEND"
    )
    assert not solo.run("ls -d /sys/kernel/config/target/core/user_*/mine", check=False).output.startswith("/sys")
    daemon.stop()
