# SPDX-License-Identifier: Apache-2.0
"""The refusals that commands and the shell make themselves: each has a code, a sentence and a remedy."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from target import explanations, messages, refusals


def test_a_cancelled_job_is_named_by_what_it_did() -> None:
    job = messages.Job(1, "export", "vol0@monday", "cancelled", 1, 4, None)
    assert refusals.cancelled("exporting", job) == messages.Refusal(
        "cancelled", "exporting vol0@monday was cancelled", "run the command again if you did not cancel it"
    )


def test_an_unknown_alert_code_is_answered_with_all_codes() -> None:
    refusal = refusals.no_such_code("low-spice")
    assert (refusal.error, refusal.message) == ("no-such-code", "there is no alert code low-spice")
    assert len(explanations.EXPLANATIONS) > 5
    assert all(code in refusal.remedy for code in explanations.EXPLANATIONS)


def test_an_unreadable_file_is_named_with_the_reason() -> None:
    error = OSError(errno.EACCES, os.strerror(errno.EACCES), "/else")
    refusal = refusals.unreadable(Path("/etc/wolun/wolun.yaml"), error)
    assert refusal.error == "unreadable"
    assert refusal.message == "/etc/wolun/wolun.yaml cannot be read: Permission denied"
    assert refusal.remedy == "name a readable file"
