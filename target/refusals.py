# SPDX-License-Identifier: Apache-2.0
"""The refusals that commands and the shell make themselves, each with its remedy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from target import explanations, messages


def cancelled(doing: str, job: messages.Job) -> messages.Refusal:
    """Return the refusal for a job that was cancelled, not by this process."""
    message = f"{doing} {job.subject} was cancelled"
    return messages.Refusal("cancelled", message, "run the command again if you did not cancel it")


def no_such_code(code: str) -> messages.Refusal:
    """Return the refusal for an alert code that does not exist."""
    codes = ", ".join(explanations.EXPLANATIONS)
    return messages.Refusal("no-such-code", f"there is no alert code {code}", f"the codes are: {codes}")


def no_such_unit(name: str, units: Sequence[str]) -> messages.Refusal:
    """Return the refusal for a unit that does not exist."""
    return messages.Refusal("no-such-unit", f"there is no unit {name}", f"there are: {', '.join(units) or 'none'}")


def unreadable(file: Path, error: OSError) -> messages.Refusal:
    """Return the refusal for a configuration file that cannot be read."""
    return messages.Refusal("unreadable", f"{file} cannot be read: {error.strerror}", "name a readable file")
