# SPDX-License-Identifier: Apache-2.0
"""Two machines: a target, served by the kernel or by our own portal, and open-iscsi as the initiator."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from tests.kernel import image
from tests.kernel.guest_daemon import GuestDaemon, sys_disk
from tests.kernel.lab import Lab
from tests.kernel.machine import Completed, Machine

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1200)]

SECRET = "a-good-long-secret"
OTHER_SECRET = "another-long-secret"
TARGET_SECRET = "the-targets-own-secret"
INITIATOR = "iqn.2026-11.test.lab:node"
KERNEL = f"""
target: iqn.2026-11.io.wolun:kernel
fabric: lio
access:
  initiators:
    - name: {INITIATOR}
      chap:
        name: node
        secret_file: secret
        target_name: target
        target_secret_file: target-secret
        algorithms: [md5]
volumes:
  - name: vol0
    lun: 0
    size: 64MiB
"""
PORTAL = f"""
target: iqn.2026-11.io.wolun:portal
portal:
  listen: 0.0.0.0:3261
access:
  networks: [10.9.0.0/24]
  initiators:
    - name: {INITIATOR}
      chap:
        name: node
        secret_file: secret
        target_name: target
        target_secret_file: target-secret
volumes:
  - name: vol0
    lun: 0
    size: 64MiB
"""

TAKEN = """
target: iqn.2026-11.io.wolun:taken
fabric: lio
lio:
  listen: [10.9.0.1:3265, 10.9.0.1:3266]
access:
  networks: [0.0.0.0/0]
volumes:
  - name: vol0
    lun: 0
    size: 64MiB
"""


@pytest.fixture(scope="module")
def lab(boot_image: image.Image) -> Iterator[Lab]:
    with Lab(boot_image, ["target", "node"]) as machines:
        machines["node"].run("modprobe -a iscsi_tcp sd_mod ext4 && iscsid")
        yield machines


@dataclass
class Initiator:
    """open-iscsi on the machine `node`, with one target at one portal."""

    node: Machine
    target: str
    portal: str
    served: GuestDaemon
    interface: str = "default"

    def iscsiadm(self, arguments: str, *, check: bool = True) -> Completed:
        return self.node.run(f"iscsiadm {arguments}", check=check)

    def node_record(self, arguments: str, *, check: bool = True) -> Completed:
        return self.iscsiadm(f"-m node -I {self.interface} -T {self.target} -p {self.portal} {arguments}", check=check)

    def discover(self) -> str:
        return self.iscsiadm(f"-m discovery -t sendtargets -p {self.portal} -I {self.interface}", check=False).output

    def set(self, name: str, value: str) -> None:
        self.node_record(f"-o update -n {name} -v '{value}'")

    def use_chap(self, user: str, secret: str, target_secret: str = TARGET_SECRET) -> None:
        self.set("node.session.auth.authmethod", "CHAP")
        self.set("node.session.auth.username", user)
        self.set("node.session.auth.password", secret)
        self.set("node.session.auth.username_in", "target")
        self.set("node.session.auth.password_in", target_secret)
        self.set("node.session.auth.chap_algs", "MD5")

    def known_as(self, name: str) -> Initiator:
        """Return an initiator on the same machine with another initiator name."""
        self.iscsiadm(f"-m iface -I {name} -o new")
        self.iscsiadm(f"-m iface -I {name} -o update -n iface.initiatorname -v iqn.2026-11.test.lab:{name}")
        return replace(self, interface=name)

    def await_end(self) -> None:
        """Wait until the target has ended the only session, and delete the session from open-iscsi."""
        self.node.wait_until("! iscsiadm -m session -P 1 | grep -q 'iSCSI Session State: LOGGED_IN'")
        self.node_record("--logout", check=False)

    def log_in(self, *, check: bool = True) -> Completed:
        return self.node_record("--login", check=check)

    def log_out(self) -> None:
        self.node_record("--logout")

    def disk(self, lun: int = 0) -> str:
        """Return the disk of a LUN of the only session."""
        return sys_disk(self.node, f"/sys/class/iscsi_session/session*/device/target*/*:{lun}/block/*")


@pytest.fixture(params=["kernel", "portal"])
def initiator(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Initiator]:
    """Yield an initiator for each fabric; its daemon, `initiator.served`, has just started with a new volume."""
    fabric = request.param
    daemon = GuestDaemon(lab["target"], KERNEL if fabric == "kernel" else PORTAL, name=fabric)
    daemon.put("secret", SECRET)
    daemon.put("target-secret", TARGET_SECRET)
    daemon.start()
    yield Initiator(
        lab["node"], f"iqn.2026-11.io.wolun:{fabric}", f"10.9.0.1:{3260 if fabric == 'kernel' else 3261}", daemon
    )
    daemon.stop()
    # find fails if a whole directory is gone, which is as good as an empty one
    left = "find /sys/kernel/config/target/{core,iscsi}/ -name 'user_*' -o -name 'iqn*' 2> /dev/null || true"
    assert not lab["target"].output(left)


def test_only_the_initiator_with_an_entry_and_the_right_secrets_uses_the_volume(lab: Lab, initiator: Initiator) -> None:
    node = lab["node"]
    assert initiator.target in initiator.discover()

    # The target refuses a login without CHAP, with a wrong secret, and with a wrong name.
    assert initiator.log_in(check=False).code
    initiator.use_chap("node", OTHER_SECRET)
    assert initiator.log_in(check=False).code
    initiator.use_chap("nobody", SECRET)
    assert initiator.log_in(check=False).code
    # The initiator refuses a target that cannot prove its own identity.
    initiator.use_chap("node", SECRET, "a-secret-of-somebody-else")
    assert initiator.log_in(check=False).code

    initiator.use_chap("node", SECRET)
    initiator.log_in()
    disk = initiator.disk()
    node.run(
        f"mkfs.ext4 -q {disk} && mkdir -p /run/volume && mount {disk} /run/volume\n"
        "fio --name=load --directory=/run/volume --size=8m --rw=randrw --bs=4k --iodepth=8 --ioengine=libaio "
        "--direct=1 --verify=crc32c --end_fsync=1\n"
        "sha256sum /run/volume/* > /run/sums; umount /run/volume"
    )
    initiator.log_out()
    initiator.log_in()
    disk = initiator.disk()
    node.run(f"fsck.ext4 -fn {disk} && mount {disk} /run/volume && sha256sum -c /run/sums && umount /run/volume")
    initiator.log_out()

    # An initiator without an entry is refused despite the right secret, and discovery does not list the target.
    stranger = initiator.known_as("stranger")
    assert stranger.target not in stranger.discover()
    stranger.node_record("-o new")
    stranger.use_chap("node", SECRET)
    assert stranger.log_in(check=False).code
    stranger.iscsiadm("-m iface -I stranger -o delete", check=False)


def test_kernels_target_serves_on_what_can_be_bound_and_takes_up_the_rest(lab: Lab) -> None:
    target, taken = lab["target"], "10.9.0.1:3266"
    # An address that this machine does not have is no example: LIO binds it (IP_FREEBIND).
    listens = "import signal, socket; s = socket.create_server(('10.9.0.1', 3266)); signal.pause()"
    target.run(f'python3 -c "{listens}" & echo $! > /run/holder')
    target.wait_until("ss -tlnH sport = :3266 | grep -q .")
    served = GuestDaemon(target, TAKEN, name="taken")
    served.start()
    alerts = json.loads(served.wolun("--json", "status"))["alerts"]
    assert [(alert["code"], alert["subject"]) for alert in alerts] == [("portal-unbound", taken)]
    discovery = "iscsiadm -m discovery -t sendtargets -p 10.9.0.1:3265"
    assert taken not in lab["node"].output(discovery)
    target.end("/run/holder")
    target.wait_until(f"! {served.command} --json status | grep -q portal-unbound")
    assert taken in lab["node"].output(discovery)
    served.stop()

    target.run(f'python3 -c "{listens}" & echo $! > /run/holder')
    target.wait_until("ss -tlnH sport = :3266 | grep -q .")
    served.put("config.yaml", TAKEN.replace("10.9.0.1:3265, ", ""))
    served.start(f"cannot listen on {taken}: the kernel cannot bind it")
    target.wait_until(f"! kill -0 $(< {served.state}/pid)")
    assert not target.output("ls /sys/kernel/config/target/iscsi | grep taken || true")
    target.end("/run/holder")


@pytest.mark.parametrize("initiator", ["kernel"], indirect=True)
def test_access_to_the_kernels_target_changes_during_use(initiator: Initiator) -> None:
    served, known = initiator.served, f"/iscsi/{initiator.target}/tpg1"
    assert initiator.target in initiator.discover()
    initiator.use_chap("node", SECRET)
    initiator.log_in()
    initiator.disk()
    proof = f"mutual_userid=target mutual_password={TARGET_SECRET}"
    script = f"""
        ls {known}/sessions
        /volumes create other 64MiB
        /volumes/vol0 delete
        {known}/acls delete {INITIATOR}
        {known}/acls/{INITIATOR} create 7 other read_only=true
        /volumes delete vol0
        {known}/acls/{INITIATOR} set auth userid=node password={OTHER_SECRET} {proof}
        """
    said = served.machine.run(f"{served.command} shell --keep-going 2>&1 <<'END'\n{script}\nEND", check=False).output
    assert f"o- {INITIATOR} ." in said
    assert "[from 10.9.0.2]" in said
    assert f"volume vol0 is in use by {INITIATOR} from 10.9.0.2" in said
    assert f"the right to log in is in use by {INITIATOR} from 10.9.0.2" in said
    assert f"a LUN that would disappear is in use by {INITIATOR} (LUN 0)" in said
    initiator.log_out()

    assert initiator.log_in(check=False).code  # the secret has changed
    served.wolun("shell", f"{known}/acls/{INITIATOR} create 7 other read_only=true")
    initiator.use_chap("node", OTHER_SECRET)
    initiator.log_in()
    disk = initiator.disk(lun=7)
    assert initiator.node.run(f"dd if=/dev/zero of={disk} count=8 oflag=direct", check=False).code
    served.wolun("shell", f"{known}/acls delete {INITIATOR} force=true")
    initiator.await_end()
    assert initiator.log_in(check=False).code

    # Any initiator may log in now, here at a new portal.
    served.wolun("shell", f"{known} set access networks=0.0.0.0/0 anybody=true")
    served.wolun("shell", f"{known}/portals create 10.9.0.1 3270")
    assert "10.9.0.1:3270" in served.wolun("shell", "diff")
    at_new_portal = replace(initiator, portal="10.9.0.1:3270")
    assert initiator.target in at_new_portal.discover()
    at_new_portal.log_in()
    script = f"""
        {known}/portals delete 10.9.0.1 3270
        {known}/portals create 10.9.0.1 3260
        {known}/portals delete 10.9.0.1 3270 force=true
        {known}/portals delete 0.0.0.0 3260
        """
    said = served.machine.run(f"{served.command} shell --keep-going 2>&1 <<'END'\n{script}\nEND", check=False).output
    assert "portal 10.9.0.1:3270 is in use by an unknown initiator from 10.9.0.2" in said
    assert "portal 10.9.0.1:3260" in said
    assert "portal 0.0.0.0:3260 is in use by all initiators: it is the only one" in said
    at_new_portal.await_end()
    # The portal is gone.  Ask with bash, because iscsiadm would try for two minutes.
    assert "Connection refused" in initiator.node.run("exec {there}<> /dev/tcp/10.9.0.1/3270", check=False).output

    # From the first entry on, only initiators with an entry may log in.  The daemon ends the session of an initiator
    # without one, and refuses an initiator without one that had logged out.
    passing = initiator.known_as("passing")
    assert passing.target in passing.discover()
    passing.log_in()
    passing.log_out()
    initiator.discover()
    initiator.log_in()
    entry = f"{known}/acls create iqn.2026-11.test.lab:somebody-else"
    refused = served.machine.run(f"{served.command} shell '{entry} yes=true' 2>&1", check=False)
    assert f"the right to log in is in use by {INITIATOR}" in refused.output
    served.wolun("shell", f"{entry} force=true")
    initiator.await_end()
    assert initiator.log_in(check=False).code
    assert passing.log_in(check=False).code
    passing.iscsiadm("-m iface -I passing -o delete", check=False)
    # An initiator that gets an entry sees the LUNs again, as before.
    served.wolun("shell", f"{known}/acls create {INITIATOR}")
    initiator.log_in()
    initiator.disk()
    initiator.log_out()
