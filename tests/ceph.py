# SPDX-License-Identifier: Apache-2.0
"""A Ceph cluster of one monitor and one OSD, and its S3 gateway, without systemd and cephx.

It is on the loopback address, or in a network namespace.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import hashlib
import hmac
import http.client
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from tests import peers

KEY, SECRET = "key", "secret"
_CRC = ["--ms_mon_client_mode=crc", "--ms_client_mode=crc"]
_CONFIG = """
[global]
fsid = {fsid}
mon_host = {mon}
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
public_addr = {address}
cluster_addr = {address}
ms_bind_port_min = {low}
ms_bind_port_max = {high}
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_crush_update_on_start = false
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
paxos_propose_interval = 0.05
mon_data_avail_crit = 1
mon_data_avail_warn = 2
osd_objectstore = bluestore
bluestore_block_size = 8589934592
osd_memory_target = 939524096
run_dir = {place}
admin_socket = {place}/$name.asok
log_file = {place}/$name.log
pid_file = {place}/$name.pid
mon_data = {place}/mon
osd_data = {place}/osd
"""


class Cluster:
    """A running cluster with one pool, `POOL`."""

    POOL = "wolun"

    def __init__(
        self,
        address: str = "127.0.0.1",
        command: Sequence[str] = (),
        on_host: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """Start it; on another host than this one, `command` begins command lines there, and sockets open in `on_host`."""
        for program in ("ceph-mon", "ceph-osd", "ceph-mgr", "ceph", "radosgw"):
            peers.require(program)
        peers.need_root("a Ceph cluster")
        self.place = Path(tempfile.mkdtemp(prefix="wolun-ceph-"))
        self.address = address
        self._command, self._on_host = command, on_host
        self.conf = self.place / "ceph.conf"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.port = free_port()
        ports = [free_port(), free_port()]
        low = free_port()
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        mon = f"v2:{address}:{ports[0]},v1:{address}:{ports[1]}"
        config = _CONFIG.format(fsid=fsid, mon=mon, address=address, place=self.place, low=low, high=low + 200)
        self.conf.write_text(config, encoding="ascii")
        for name in ("mon", "osd"):
            (self.place / name).mkdir()
        monmap = str(self.place / "monmap")
        self.bucket = ""
        try:
            self._make(fsid, osd, mon, monmap)
        except BaseException:
            self.close()
            raise

    def _make(self, fsid: str, osd: str, mon: str, monmap: str) -> None:
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[{mon}]", monmap)
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap)
        self._start("ceph-mon", "-i", "a")
        self.ceph("osd", "new", osd)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self.start_osd()
        self.ceph("osd", "crush", "add", "osd.0", "1.0", "root=default")
        self.ceph("osd", "pool", "create", self.POOL, "8")

    def ceph(self, *arguments: str) -> str:
        """Run a command of `ceph`."""
        return self._run("timeout", "30", "ceph", *arguments)

    def start_osd(self) -> None:
        self._start("ceph-osd", "-i", "0")

    def start_mgr(self) -> None:
        """Start a manager, without which nothing is marked full."""
        self._start("ceph-mgr", "-i", "a", "--mgr_initial_modules=")

    def start_gateway(self) -> str:
        """Start the S3 gateway with a user and a bucket; return its URL."""
        url = f"http://{self.address}:{self.port}"
        if not self.bucket:
            user = ["user", "create", "--uid=t", "--display-name=t", f"--access-key={KEY}", f"--secret={SECRET}"]
            self._run("radosgw-admin", *_CRC, *user)
        frontend = f"--rgw_frontends=beast endpoint={self.address}:{self.port}"
        self._start("radosgw", "-n", "client.rgw", *_CRC, frontend)
        until = time.monotonic() + 60
        with self._on_host():
            while socket.socket().connect_ex((self.address, self.port)):
                assert time.monotonic() < until, "radosgw does not start"
                time.sleep(0.1)
            if not self.bucket:
                self._make_bucket("bucket")
                self.bucket = "bucket"
        return url

    def _make_bucket(self, name: str) -> None:
        """Send a signed PUT (AWS Signature Version 4): obstore makes no buckets, and curl does not sign for radosgw."""
        host, nothing = f"{self.address}:{self.port}", hashlib.sha256(b"").hexdigest()
        moment = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        signed = {"host": host, "x-amz-content-sha256": nothing, "x-amz-date": moment}
        listed, scope = ";".join(signed), f"{moment[:8]}/us-east-1/s3/aws4_request"
        lines = [f"{key}:{value}\n" for key, value in signed.items()]
        request = "\n".join(["PUT", f"/{name}", "", "".join(lines), listed, nothing])
        text = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(request.encode()).hexdigest()])
        key = f"AWS4{SECRET}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        credential = f"Credential={KEY}/{scope}, SignedHeaders={listed}, Signature={signature}"
        connection = http.client.HTTPConnection(host)
        connection.request("PUT", f"/{name}", headers={**signed, "authorization": f"AWS4-HMAC-SHA256 {credential}"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        connection.close()

    def kill(self, program: str) -> None:
        """Kill a program with SIGKILL."""
        process = self._running.pop(program)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def signal(self, program: str, number: int) -> None:
        """Send a signal to a program."""
        self._running[program].send_signal(number)

    def close(self) -> None:
        for program in list(self._running):
            self.kill(program)
        shutil.rmtree(self.place, ignore_errors=True)

    def _start(self, program: str, *arguments: str) -> None:
        with (self.place / f"{program}.out").open("ab") as output:
            self._running[program] = subprocess.Popen(
                [*self._command, peers.require(program), *arguments, "-f"],
                env=self._environment,
                stdout=output,
                stderr=output,
            )

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            [*self._command, *command], env=self._environment, capture_output=True, text=True, check=False
        )
        assert not done.returncode, (command, done.stderr)
        return done.stdout

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "CEPH_CONF": str(self.conf), "PATH": peers.SEARCH_PATH}


@functools.cache
def cluster() -> Cluster:
    """Return the cluster of this test run; it ends with the run."""
    made = Cluster()
    atexit.register(made.close)
    return made


@functools.cache
def gateway() -> str:
    """Return the URL of the S3 gateway of `cluster`, with a bucket `bucket`."""
    return cluster().start_gateway()


def free_port() -> int:
    """Return a port of the loopback address that nothing listens on."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
