# SPDX-License-Identifier: Apache-2.0
"""Images for standard output and for a FIFO, and exports whose client dies, with a real daemon."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from lun_backends.backups import frames
from lun_backends.stores import thin
from target.control import client
from tests import daemon

MIB = 1 << 20
SIZE = 16 * MIB
VOLUMES = "  - {name: vol0, lun: 0, size: 16MiB}\n  - {name: vol1, lun: 1, size: 16MiB}\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Daemon]:
    """Serve vol0, whose snapshot `a` has data and holes."""
    with daemon.Daemon(tmp_path_factory.mktemp("daemon"), VOLUMES) as running:
        with running.session() as session:
            session.settle(0)
            for lba in (0, 8192, 32640):
                cdb = b"\x2a\x00" + lba.to_bytes(4, "big") + b"\x00" + (128).to_bytes(2, "big") + b"\x00"
                assert session.command(0, cdb, out=os.urandom(64 << 10)).status == 0
        running.run("snapshot", "create", "vol0", "a")
        yield running


@pytest.fixture(scope="module")
def image(served: daemon.Daemon, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("image") / "a.img"
    served.run("snapshot", "export", "vol0@a", str(path))
    return path.read_bytes()


def wolun(served: daemon.Daemon, *words: str | Path) -> list[str | Path]:
    return [daemon.PROGRAM, "--state-dir", served.state, *words]


def last_job(served: daemon.Daemon) -> str:
    """Return the state of the newest job, when it has ended."""
    asked = client.Client(served.state)
    try:
        *_, job = asked.watch(asked.jobs()[-1])
    finally:
        asked.close()
    return job.state


def test_dash_is_standard_output(served: daemon.Daemon, image: bytes, tmp_path: Path) -> None:
    done = subprocess.run(
        wolun(served, "snapshot", "export", "vol0@a", "-"), capture_output=True, cwd=tmp_path, timeout=60, check=True
    )
    assert done.stdout == image
    assert done.stderr == b"wolun: vol0@a is written as a raw image\n"
    assert not list(tmp_path.iterdir())


def test_standard_output_compressed_and_as_a_stream(served: daemon.Daemon, image: bytes) -> None:
    words = wolun(served, "snapshot", "export", "vol0@a", "-")
    packed = subprocess.run([*words, "--format", "raw", "--compress"], capture_output=True, timeout=60, check=True)
    assert packed.stderr == b""
    assert zstandard.ZstdDecompressor().decompressobj().decompress(packed.stdout) == image
    stream = subprocess.run([*words, "--format", "stream"], capture_output=True, timeout=60, check=True).stdout
    *_, last = frames.Reader(io.BytesIO(stream).read).frames()
    assert last.kind is frames.Kind.END


def test_standard_output_takes_no_qcow2(served: daemon.Daemon) -> None:
    for words in (("--format", "qcow2"), ("--format", "raw", "--since", "vol0@b")):
        done = served.run("snapshot", "export", "vol0@a", "-", *words, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert "standard output takes raw images and streams only" in done.stderr
    refused = served.run("shell", "/volumes/vol0/snapshots/a export -", check=False)
    assert "wolun snapshot export vol0@a - > FILE" in refused.stderr


def test_refusal_of_a_stream_is_told(served: daemon.Daemon) -> None:
    done = served.run("snapshot", "export", "vol0@nothing", "-", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "vol0 has no snapshot nothing" in done.stderr


def test_reader_of_standard_output_that_ends_early_ends_the_export(served: daemon.Daemon) -> None:
    process = subprocess.Popen(
        wolun(served, "snapshot", "export", "vol0@a", "-"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(60) != 0
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    assert last_job(served) == "cancelled"


def test_stream_breaks_before_its_end_if_there_is_damage(served: daemon.Daemon) -> None:
    with served.session() as session:
        session.settle(1)
        assert session.command(1, b"\x2a\0\0\0\x20\0\0\0\x80\0", out=b"x" * (64 << 10)).status == 0
    taken = served.json("snapshot", "create", "vol1", "damaged")
    with served.session() as session:
        session.settle(1)
        assert session.command(1, b"\x2a\0\0\0\x20\0\0\0\x80\0", out=bytes(64 << 10)).status == 0
    path = thin.files(served.state / "volumes" / "vol1" / "snapshots" / taken["uuid"])[1]
    with path.open("r+b") as file:
        file.seek((64 << 10) + 7)
        file.write(b"rot")
    words = wolun(served, "snapshot", "export", "vol1@damaged", "-")
    refused = subprocess.run(words, capture_output=True, timeout=60)
    assert refused.returncode == 1
    assert len(refused.stdout) < SIZE
    assert b"damage in blocks 8192 to 8199 of 'damaged'" in refused.stderr
    accepted = subprocess.run([*words, "--damaged"], capture_output=True, timeout=60, check=True)
    assert len(accepted.stdout) == SIZE
    assert b"4 KiB of vol1@damaged are damaged" in accepted.stderr
    assert "Traceback" not in (served.directory / "stderr").read_text()


def test_fifo_is_written_to_and_stays(served: daemon.Daemon, image: bytes, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for words, said in (
        (("--format", "qcow2"), "a qcow2 image is not written from front to back"),
        (("--format", "qcow2", "--force"), "a qcow2 image is not written from front to back"),
    ):
        refused = served.run("snapshot", "export", "vol0@a", str(fifo), *words, check=False)
        assert (refused.returncode, said in refused.stderr) == (1, True)
    with subprocess.Popen(wolun(served, "snapshot", "export", "vol0@a", fifo)) as process:
        assert fifo.read_bytes() == image
    assert process.returncode == 0
    assert fifo.is_fifo()
    assert list(tmp_path.iterdir()) == [fifo]


def test_socket_and_directory_are_not_replaced(served: daemon.Daemon, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        for place in (path, tmp_path):
            words = ("--force", "--format", "raw")
            refused = served.run("snapshot", "export", "vol0@a", str(place), *words, check=False)
            assert "it is no file" in refused.stderr
    assert path.is_socket()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_client_that_dies_ends_its_export(served: daemon.Daemon, tmp_path: Path, number: signal.Signals) -> None:
    """Nothing reads the FIFO, so only the end of the client ends the job."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(wolun(served, "snapshot", "export", "vol0@a", fifo)) as process:
        _wait_for_job(served)
        process.send_signal(number)
    assert last_job(served) == "cancelled"


def test_export_that_nothing_holds_goes_on(served: daemon.Daemon, image: bytes, tmp_path: Path) -> None:
    """A program requests it through the control socket and closes the connection."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    asked = client.Client(served.state)
    asked.export("vol0", "a", fifo, overwrite=False)
    asked.close()
    assert fifo.read_bytes() == image
    assert last_job(served) == "done"


def _wait_for_job(served: daemon.Daemon) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        jobs = served.json("status")["jobs"]
        if jobs and jobs[-1]["state"] == "running":
            return
    raise AssertionError(json.dumps(jobs))
