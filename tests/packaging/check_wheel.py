# SPDX-License-Identifier: Apache-2.0
"""The Python package: `pip install` of the wheel and of the source archive, with the files that are no modules."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import target

DATA = {
    "share/man/man1/wolun.1",
    "share/man/man1/wolun-snapshot-create.1",
    "share/bash-completion/completions/wolun",
    "share/zsh/site-functions/_wolun",
    "share/wolun/wolun.service",
    "share/wolun/wolun.service.lio.conf",
    "share/wolun/wolun.sysusers.conf",
    "share/wolun/full.yaml",
    "share/wolun/quickstart.yaml",
    "share/wolun/README.md",
}


def test_wheel_installs_with_unit_examples_manual_and_completion(debs: Path, tmp_path: Path) -> None:
    (wheel,) = debs.parent.glob("dist/wolun-*.whl")
    made = tmp_path / "venv"
    venv.create(made)  # without pip: the one that runs these tests installs
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--python", str(made)]
    # The packages that wolun needs come from this environment: the registry was asked for them when it was made.
    subprocess.run([*pip, "install", "--no-index", "--no-deps", str(wheel)], check=True)
    assert {name for name in DATA if not (made / name).is_file()} == set()
    (site,) = made.glob("lib/*/site-packages")
    (site / "others.pth").write_text(next(path for path in sys.path if path.endswith("site-packages")) + "\n")
    done = subprocess.run(
        [made / "bin/wolun", "config", "check", made / "share/wolun/full.yaml"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"{made}/share/wolun/full.yaml: good\n"), done.stderr
    said = subprocess.run(
        [made / "bin/wolun", "serve", "--help"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "/etc/wolun/wolun.yaml" in said.stdout  # it is no checkout


def test_archive_has_what_the_wheel_has(debs: Path) -> None:
    (wheel,) = debs.parent.glob("dist/wolun-*.whl")
    with tarfile.open(debs.parent / f"dist/wolun-{target.VERSION}.tar.gz") as archive, zipfile.ZipFile(wheel) as packed:
        sources = {name.partition("/")[2] for name in archive.getnames()}
        modules = {name for name in packed.namelist() if name.endswith((".py", ".js", ".css", ".html", ".svg"))}
    assert len(modules) > 200
    assert modules - sources == set()
    assert {"build/man/wolun.1", "config/wolun.service", "README.md", "LICENSE"} <= sources
