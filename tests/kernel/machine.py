# SPDX-License-Identifier: Apache-2.0
"""One virtual machine: QEMU under software emulation, and a command channel into it.

The QEMU process dies with the thread that started it (`PR_SET_PDEATHSIG`), so nothing keeps running when pytest is
killed. Start machines from pytest's main thread.  All output of QEMU goes to files, because a pipe would fill.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import shlex
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.kernel import image, network

START = Path(__file__).resolve().parent / "guest/start.sh"
MEMORY = 768  # MiB
BOOT_TIMEOUT = 400.0  # seconds; a boot takes 7 on an idle machine with two cores
COMMAND_TIMEOUT = 400.0  # seconds, by default: most commands take seconds, but a busy machine takes far longer
GRACE = 30.0  # seconds that the agent gets in addition to a command's own time


class MachineGone(Exception):
    """The machine was powered off, or died, before it answered."""


@dataclass(frozen=True)
class Completed:
    """The result of a command."""

    command: str
    code: int
    output: str


@dataclass(eq=False)
class CommandFailed(Exception):
    """A command in a guest ended with a status that is not 0."""

    machine: str
    completed: Completed

    def __str__(self) -> str:
        done = self.completed
        return f"on {self.machine}: {done.command.strip()}\nended with {done.code}:\n{done.output}"


class Machine:
    """A guest named `name`.  It starts booting at once; `wait_ready` waits until it takes commands."""

    def __init__(
        self,
        name: str,
        *,
        address: str,
        number: int,
        hosts: dict[str, str],
        boot: image.Image,
        switch: network.Switch,
        directory: Path,
        memory: int = MEMORY,
        processors: int = 1,
    ) -> None:
        self.name = name
        self.address = address
        self.console = directory / f"{name}.console"
        self._errors = directory / f"{name}.qemu"
        self._control = directory / f"{name}.control"
        self._monitor = directory / f"{name}.monitor"
        self._replies: dict[int, tuple[str, concurrent.futures.Future[Completed]]] = {}
        self._lock = threading.Lock()
        self._number = 0
        self._ready = threading.Event()
        parameters = {
            "start": START,
            "modules": boot.modules,
            "name": name,
            "address": address,
            "hosts": ",".join(f"{host}={ip}" for host, ip in hosts.items()),
        }
        # On a busy host an emulated timer may look broken to the kernel, which then stops: no_timer_check prevents
        # that.
        append = [
            "console=ttyS0 panic=-1 quiet mitigations=off no_timer_check net.ifnames=0 random.trust_cpu=on nokaslr audit=0",
            *(f"lab.{key}={value}" for key, value in parameters.items()),
        ]
        self._command = [
            *("setpriv", "--pdeathsig", "KILL", "--"),
            # Guests of type microvm hung now and then.  Most work is slower on two vCPUs.  Without tb-size, QEMU takes
            # 1.5 GB for translated code.
            *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi,tb-size=128", "-cpu", "max"),
            *("-smp", str(processors), "-m", str(memory), "-display", "none", "-no-reboot", "-nodefaults"),
            *("-serial", f"file:{self.console}"),
            *("-kernel", str(boot.kernel), "-initrd", str(boot.initrd), "-append", " ".join(append)),
            *("-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"),
            *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
            "-netdev",
            f"dgram,id=net,local.type=unix,local.path={switch.machine_path(name)}"
            f",remote.type=unix,remote.path={switch.switch_path(name)}",
            *("-device", f"virtio-net-pci,netdev=net,mac=52:54:00:09:00:{number:02x}"),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,path={self._control},server=on,wait=off"),
            *("-device", "virtserialport,chardev=agent,name=lab.agent"),
            *("-qmp", f"unix:{self._monitor},server=on,wait=off"),
            *("-object", "rng-random,filename=/dev/urandom,id=random", "-device", "virtio-rng-pci,rng=random"),
        ]
        self.power_on()

    def power_on(self) -> None:
        """Boot the machine, after `power_off`; what was in its memory is gone, and so are its files."""
        self._ready.clear()
        self._channel = socket.socket(socket.AF_UNIX)
        with self._errors.open("ab") as errors:
            self._qemu = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True
            )
        # Connect before the guest's agent says that it is ready: a message to a port without a listener is lost.
        self._connect()
        self._reader = threading.Thread(target=self._read, name=f"{self.name} channel", daemon=True)
        self._reader.start()

    @property
    def running(self) -> bool:
        """Whether QEMU runs."""
        return self._qemu.poll() is None

    def wait_ready(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Wait until the guest takes commands.  Raise MachineGone if it does not in `timeout` seconds."""
        if not self._ready.wait(timeout) or not self.running:
            raise MachineGone(f"{self.name} did not come up:\n{self.console_tail()}")

    def submit(self, command: str, *, timeout: float = COMMAND_TIMEOUT) -> concurrent.futures.Future[Completed]:
        """Start a shell command (bash, in a session of its own) and return its future.

        The agent ends the command after `timeout` seconds.  The future may raise MachineGone.
        """
        reply: concurrent.futures.Future[Completed] = concurrent.futures.Future()
        with self._lock:
            self._number += 1
            number = self._number
            self._replies[number] = (command, reply)
            request = {"id": number, "command": command, "timeout": timeout}
            try:
                self._channel.sendall(json.dumps(request).encode() + b"\n")
            except OSError as error:
                del self._replies[number]
                raise MachineGone(f"{self.name} is off") from error
        return reply

    def run(self, command: str, *, timeout: float = COMMAND_TIMEOUT, check: bool = True) -> Completed:
        """Run a shell command to its end.  With `check`, raise CommandFailed if the status is not 0."""
        completed = self.submit(command, timeout=timeout).result(timeout + GRACE)
        if check and completed.code:
            raise CommandFailed(self.name, completed)
        return completed

    def output(self, command: str, *, timeout: float = COMMAND_TIMEOUT) -> str:
        """Run a command and return its output, stripped.  Raise CommandFailed if the status is not 0."""
        return self.run(command, timeout=timeout).output.strip()

    def put_file(self, path: str, content: str) -> None:
        """Make a file in the guest."""
        self.run(f"printf %s {shlex.quote(content)} > {path}")

    def wait_until(self, command: str, *, timeout: float = COMMAND_TIMEOUT) -> str:
        """Repeat a command until it succeeds, and return its last output.

        Raise CommandFailed if the command does not succeed in `timeout` seconds.
        """
        # A program for each round, like sleep, would take a tenth of a second of the only processor.  `read` and the
        # subshell start none.  A redirection behind the subshell would leave its errors in the output.
        return self.output(
            f'exec {{never}}<> <(:)\nuntil said=$(exec 2> /run/wait-until\n{command}\n); do read -rt 0.1 -u $never; done\necho "$said"',
            timeout=timeout,
        )

    def end(self, pid_file: str, *, signal: str = "TERM") -> None:
        """Send a signal to a process and wait for its end.  Raise CommandFailed if the process had already ended."""
        self.run(f"pid=$(< {pid_file}) && kill -{signal} $pid && tail --pid=$pid -s 0.1 -f /dev/null")

    def pause(self) -> None:
        """Stop the machine's processors in the midst of whatever they do (QMP `stop`)."""
        self._ask_hypervisor("stop")

    def resume(self) -> None:
        """Let the machine go on, after `pause` (QMP `cont`)."""
        self._ask_hypervisor("cont")

    def _ask_hypervisor(self, command: str) -> None:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(GRACE)
            monitor.connect(str(self._monitor))
            with monitor.makefile("rw", encoding="utf-8") as words:
                words.readline()  # its greeting
                for name in ("qmp_capabilities", command):
                    words.write(json.dumps({"execute": name}))
                    words.flush()
                    while "return" not in (answer := json.loads(words.readline())):
                        assert "event" in answer, answer

    def power_off(self) -> None:
        """Pull the plug: nothing is flushed, and no connection is closed.  A second call does nothing."""
        self._qemu.kill()
        self._qemu.wait()
        self._reader.join()
        self._channel.close()
        self._control.unlink(missing_ok=True)
        self._monitor.unlink(missing_ok=True)

    def console_tail(self, lines: int = 60) -> str:
        """Return the last lines of the guest's console and of QEMU's errors."""
        text = "".join(path.read_text("utf-8", "replace") for path in (self.console, self._errors) if path.exists())
        return "\n".join(text.splitlines()[-lines:])

    def logs(self, lines: int = 150) -> str:
        """Return the last lines of the console, the kernel log and the guest's /run/log, to explain a red test."""
        parts = [f"--- {self.name}: console", self.console_tail()]
        if self.running and self._ready.is_set():
            with contextlib.suppress(MachineGone, TimeoutError):
                script = (
                    f'dmesg | tail -n {lines}; for log in /run/log/*; do echo "--- $log"; tail -n {lines} $log; done'
                )
                parts += [f"--- {self.name}: dmesg and /run/log", self.run(script, timeout=20, check=False).output]
        return "\n".join(parts)

    def _connect(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                self._channel.connect(str(self._control))
                return
            except OSError:
                if not self.running or time.monotonic() > deadline:
                    self._qemu.kill()
                    raise MachineGone(f"QEMU of {self.name} ended:\n{self.console_tail()}") from None
                time.sleep(0.02)

    def _read(self) -> None:
        buffer = b""
        while data := self._receive():
            *lines, buffer = (buffer + data).split(b"\n")
            for line in filter(None, lines):
                message = json.loads(line)
                if "ready" in message:
                    self._ready.set()
                    continue
                with self._lock:
                    command, reply = self._replies.pop(message["id"])
                reply.set_result(Completed(command, message["code"], message["output"]))
        with self._lock:
            orphans, self._replies = list(self._replies.values()), {}
        self._ready.set()  # let `wait_ready` return, because the machine is gone
        for command, reply in orphans:
            reply.set_exception(MachineGone(f"{self.name} went off during: {command}"))

    def _receive(self) -> bytes:
        try:
            return self._channel.recv(1 << 16)
        except OSError:
            return b""
