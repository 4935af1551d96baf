# SPDX-License-Identifier: Apache-2.0
"""The guests' kernel, modules and initial RAM disk, made once per kernel version and kept in a cache.

Nothing is installed: apt downloads Debian's kernel package, and dpkg-deb unpacks it.  QEMU boots the kernel
uncompressed (through its PVH entry), because decompression takes seconds under software emulation.

Cache layout, under `$XDG_CACHE_HOME/wolun-kernel-lab` (or `~/.cache/…`):

| path                       | content                                                           |
| -------------------------- | ----------------------------------------------------------------- |
| `<release>/vmlinux`        | the ELF kernel                                                    |
| `<release>/lib/modules/…`  | its modules; the guests see them over 9p                          |
| `<release>-<digest>.img`   | the initial RAM disk; the digest covers all files it is made from |
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kernel import packages

HERE = Path(__file__).resolve().parent
BOOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_net", "virtio_console")
XZ_MAGIC = b"\xfd7zXZ\0"
ELF_MAGIC = b"\x7fELF"


@dataclass(frozen=True)
class Image:
    """The files that QEMU needs to boot a guest."""

    release: str
    kernel: Path
    initrd: Path
    modules: Path
    """The directory that the guest sees as /lib/modules/<release>."""


def cache_directory() -> Path:
    """Return the directory that keeps kernels between runs."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "wolun-kernel-lab"


def build() -> Image:
    """Return the image, from the cache if it is there.  Raise LabUnavailable if apt has no kernel for this machine."""
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "lock"):
        release = _newest_release() or _cached_release(cache)
        if release is None:
            raise packages.LabUnavailable(
                "apt knows no linux-image-amd64: run apt-get update on a Debian amd64 machine"
            )
        tree = cache / release
        if not (tree / "vmlinux").exists():
            _unpack_kernel(release, tree)
        initrd = _initrd(cache, release, HERE / "guest/init", BOOT_MODULES)
        return Image(release, tree / "vmlinux", initrd, tree / "lib/modules" / release)


def initrd(release: str, init: Path, boot_modules: Sequence[str]) -> Path:
    """Return an initial RAM disk for the kernel of `build` that runs `init` and loads `boot_modules`."""
    cache = cache_directory()
    with _locked(cache / "lock"):
        return _initrd(cache, release, init, boot_modules)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _output(*command: str) -> str:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout


def _newest_release() -> str | None:
    for _ in range(2):
        match = re.search(r"Depends: linux-image-(\d\S*)", _output("apt-cache", "depends", "linux-image-amd64"))
        if match:
            return match[1]
        if os.geteuid() == 0:  # a fresh container has empty package lists
            _output("apt-get", "update", "-qq")
    return None


def _cached_release(cache: Path) -> str | None:
    return max((path.parent.name for path in cache.glob("*/vmlinux")), default=None)


def _unpack_kernel(release: str, tree: Path) -> None:
    with tempfile.TemporaryDirectory(dir=tree.parent, prefix=".fetch-") as scratch:
        # By default apt downloads as a user without the right to write to this directory, and warns.
        fetch = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", f"linux-image-{release}"]
        done = subprocess.run(fetch, cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        archives = list(Path(scratch).glob("*.deb"))
        if done.returncode or not archives:
            raise packages.LabUnavailable(
                f"apt-get download linux-image-{release} failed: {done.stderr.strip()[-300:]}"
            )
        unpacked = Path(scratch) / "tree"
        subprocess.run(["dpkg-deb", "-x", archives[0], unpacked], check=True)
        subprocess.run([packages.which("depmod") or "depmod", "-b", unpacked, release], check=True)
        packed = (unpacked / f"boot/vmlinuz-{release}").read_bytes()
        # The setup code in front of the payload may hold the magic by chance, so take the first place that decodes.
        for match in re.finditer(re.escape(XZ_MAGIC), packed):
            with contextlib.suppress(lzma.LZMAError):
                kernel = lzma.LZMADecompressor().decompress(packed[match.start() :])
                if kernel.startswith(ELF_MAGIC):
                    break
        else:
            raise packages.LabUnavailable(f"linux-image-{release} is not compressed with xz")
        (unpacked / "vmlinux").write_bytes(kernel)
        shutil.rmtree(tree, ignore_errors=True)
        unpacked.rename(tree)


def _boot_modules(release: str, tree: Path, names: Sequence[str]) -> list[Path]:
    modprobe = [packages.which("modprobe") or "modprobe", "-d", str(tree), "-S", release, "--show-depends"]
    files = dict.fromkeys(
        Path(line.split()[1])
        for name in names
        for line in _output(*modprobe, name).splitlines()
        if line.startswith("insmod ")
    )
    return list(files)


def _initrd(cache: Path, release: str, init: Path, boot_modules: Sequence[str]) -> Path:
    busybox = packages.which("busybox")
    if busybox is None:
        raise packages.LabUnavailable("the kernel lab needs packages: sudo apt-get install busybox-static")
    content = init.read_bytes()
    made_from = Path(busybox).read_bytes() + content + repr((tuple(boot_modules), release)).encode()
    image = cache / f"{release}-{hashlib.sha256(made_from).hexdigest()[:12]}.img"
    if image.exists():
        return image
    with tempfile.TemporaryDirectory(dir=cache, prefix=".initrd-") as scratch:
        root = Path(scratch) / "root"
        for directory in ("bin", "dev", "proc", "sys", "modules"):
            (root / directory).mkdir(parents=True)
        shutil.copy(busybox, root / "bin/busybox")
        modules = _boot_modules(release, cache / release, boot_modules)
        for module in modules:
            shutil.copy(module, root / "modules")
        (root / "modules/order").write_text("".join(f"/modules/{module.name}\n" for module in modules))
        (root / "init").write_bytes(content)
        (root / "init").chmod(0o755)
        built = Path(scratch) / "initrd.img"
        names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        with built.open("wb") as out:
            pack = [packages.which("cpio") or "cpio", "--create", "--format=newc", "--quiet"]
            subprocess.run(pack, cwd=root, input=names.encode(), stdout=out, check=True)
        built.rename(image)
    return image
