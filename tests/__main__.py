# SPDX-License-Identifier: Apache-2.0
"""All tests, in two processes side by side: `python -m tests`.

The virtual machines of tests/kernel and tests/lab wait most of the time for one processor, so the other tests run
beside them.  pytest prints the other tests as they run, and the output of the machines follows when both have ended.
The status is that of the first process that failed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
MACHINES = ("tests/kernel", "tests/lab")


def main() -> int:
    """Run both halves; return 0 if all tests passed, and otherwise pytest's status of a half that failed."""
    pytest = [sys.executable, "-m", "pytest"]
    rest = [*pytest, *(f"--ignore={folder}" for folder in MACHINES)]
    with tempfile.TemporaryFile() as output:
        sys.stdout.write(f"{' and '.join(MACHINES)} run beside the other tests; their output follows at the end\n")
        sys.stdout.flush()
        with subprocess.Popen(
            [*pytest, *MACHINES], stdout=output, stderr=subprocess.STDOUT, cwd=HERE.parent
        ) as machines:
            try:
                first = subprocess.run(rest, cwd=HERE.parent).returncode
                second = machines.wait()
            except KeyboardInterrupt:
                # Ctrl-C reaches the two processes as well; both of them end by themselves.
                second = first = machines.wait()
        output.seek(0)
        sys.stdout.buffer.write(output.read())
    return first or second


if __name__ == "__main__":
    sys.exit(main())
