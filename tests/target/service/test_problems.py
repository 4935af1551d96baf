# SPDX-License-Identifier: Apache-2.0
"""Refusals: errors of lower layers become a code, a sentence and a remedy."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.volumes import errors
from target.configuration import settings
from target.service import problems


def translated(error: Exception, remedy: str | None = None) -> problems.Problem:
    with pytest.raises(problems.Problem) as caught, problems.translated("it was not done", remedy):
        raise error
    assert caught.value.__cause__ is error
    return caught.value


def test_error_of_a_volume_keeps_its_code_and_remedy() -> None:
    error = errors.BadName("vol0", "it has a slash", "leave it out")
    problem = translated(error)
    assert (problem.code, problem.status, problem.remedy) == ("bad-name", 422, error.remedy)
    assert problem.message == f"it was not done: {error.reason}"


def test_each_code_of_an_error_of_volumes_is_its_own() -> None:
    codes = list(problems._CODES.values())
    assert len(codes) == len(set(codes))


def test_remedy_of_the_caller_wins() -> None:
    assert translated(errors.BadName("vol0", "it has a slash", "leave it out"), "do this").remedy == "do this"


def test_system_error_is_explained_by_its_reason() -> None:
    problem = translated(OSError(errno.ENOSPC, "x"))
    assert str(problem) == "it was not done: No space left on device: check the disk and the permissions"


def test_file_that_a_process_without_descriptors_cannot_write_needs_no_other_place() -> None:
    full, limited = (
        problems.write_failed(Path("/x.img"), OSError(number, "")) for number in (errno.ENOSPC, errno.EMFILE)
    )
    assert "cannot be written: No space left on device" in str(full)
    assert full.remedy == "choose a place that has room and that the daemon may write to"
    assert limited.remedy == "raise the limit of open files and start the daemon again, or delete snapshots"


def test_error_of_a_device_refers_to_the_log() -> None:
    assert translated(block_device.MediumError(1, False, "rot")).remedy == "see the daemon's log"


@pytest.mark.parametrize("stopped", [errors.DeletionStopped, errors.RollbackStopped])
def test_stop_on_request_is_no_refusal(stopped: type[Exception]) -> None:
    with pytest.raises(stopped), problems.translated("it was not done"):
        raise stopped.__new__(stopped)


def test_unknown_name_gets_the_nearest_or_all() -> None:
    assert problems.no_such_volume("vol9", ["vol0", "db"]).remedy == "did you mean vol0?"
    assert problems.no_such_volume("x", ["vol0", "db"]).remedy == "the volumes are: vol0, db"
    assert problems.no_such_volume("x", []).remedy == "add it to the configuration"
    assert problems.no_such_unit("x", []).remedy == "there are: none"


def test_invalid_value_names_its_key() -> None:
    with pytest.raises(problems.Problem, match=r"^volume a, size: ") as caught:
        problems.validated(settings.Volume, {"name": "a", "lun": 0, "size": "many"}, "volume a")
    assert caught.value.code == "invalid"
