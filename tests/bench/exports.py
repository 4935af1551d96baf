# SPDX-License-Identifier: Apache-2.0
"""The export of a view, against qemu-img that reads the same view over iSCSI."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench import common, loads, measure, servers

SIZE = 4 * common.GIB


def _rate(work: Callable[[], object], image: Path) -> float:
    """Return the MiB of the view per second that `work` writes to `image`, which does not exist yet and is removed."""
    loads.settle()
    began = time.perf_counter()
    work()
    rate = (SIZE >> 20) / (time.perf_counter() - began)
    image.unlink()
    return rate


def half_written(settings: common.Settings) -> Iterator[measure.Row]:
    """Measure the export of a view of 4 GiB, of which 2 GiB were written, to a raw and to a qcow2 image."""
    primary = common.filled(settings.directory / "ours.img", SIZE // 2)
    os.truncate(primary, SIZE)
    with servers.wolun(settings.directory, common.volume("vol0", 0, primary, size="4GiB")) as ours:
        ours.command("snapshot", "create", "vol0", "bench", "--map")
        # A part of the view comes from the write-once LUN, the rest from the primary.
        loads.qemu_writes(ours.url(0), count=SIZE // 2 // common.CHUNK // 4, step=4 * common.CHUNK)
        shown = ours.command("snapshot", "show", "vol0@bench")
        if not isinstance(shown, dict):
            raise servers.BenchError("snapshot show printed no object")
        view = ours.url(int(shown["view_lun"]))
        for form in ("raw", "qcow2"):
            image = settings.directory / f"image.{form}"

            def export(form: str = form, image: Path = image) -> float:
                words = ("snapshot", "export", "vol0@bench", str(image), "--format", form)
                return _rate(lambda: ours.command(*words), image)

            def convert(form: str = form, image: Path = image) -> float:
                return _rate(lambda: servers.run(["qemu-img", "convert", "-O", form, view, str(image)]), image)

            pair = measure.alternate(export, convert, settings.rounds)
            yield pair.row(
                f"export of a 4 GiB view, half written, {form}", unit="MiB/s", at_least=2.0, peer="qemu-img convert"
            )
