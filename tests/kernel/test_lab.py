# SPDX-License-Identifier: Apache-2.0
"""The lab itself: machines boot, see this checkout, reach each other, and lose a link and get it back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel import image
from tests.kernel.lab import CHECKOUT, Lab
from tests.kernel.machine import CommandFailed, MachineGone

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def lab(boot_image: image.Image) -> Iterator[Lab]:
    with Lab(boot_image, ["left", "right"]) as machines:
        yield machines


def test_machine_runs_this_checkout_on_debians_kernel(lab: Lab, boot_image: image.Image) -> None:
    left = lab["left"]
    assert left.output("uname -r") == boot_image.release
    code = "import lun_backends.block_device as b; print(b.__file__)"
    assert left.output(f"cd {CHECKOUT} && .venv/bin/python -c '{code}'") == f"{CHECKOUT}/lun_backends/block_device.py"
    left.run("modprobe -a target_core_user iscsi_target_mod tcm_loop && ls /sys/kernel/config/target")


def test_doctor_finds_the_kernels_target(lab: Lab) -> None:
    lab["left"].put_file("/run/lio.yaml", "{target: iqn.2026-11.io.wolun:doctor, fabric: lio, volumes: []}")
    report = lab["left"].output(f"{CHECKOUT}/.venv/bin/wolun --state-dir /run doctor --config /run/lio.yaml")
    assert "fabric: lio, the kernel's target: can run" in report


def test_failed_command_raises_an_error_with_its_output(lab: Lab) -> None:
    with pytest.raises(CommandFailed, match=r"(?s)on right.*ended with 3.*trouble"):
        lab["right"].run("echo trouble; exit 3")


def test_cut_link_loses_frames_until_healed(lab: Lab) -> None:
    left = lab["left"]
    left.run("busybox ping -c 1 -W 60 right")
    lab.switch.cut("right", "left")
    with pytest.raises(CommandFailed):
        left.run("busybox ping -c 2 -W 1 right")
    lab.switch.heal("left", "right")
    left.run("busybox ping -c 1 -W 60 right")


def test_power_off_ends_running_commands(lab: Lab) -> None:
    running = lab["right"].submit("sleep 100")
    lab["right"].power_off()
    with pytest.raises(MachineGone):
        running.result(10)
    with pytest.raises(MachineGone):
        lab["right"].run("true")
