# SPDX-License-Identifier: Apache-2.0
"""The errors that a unit's answers become, and the commands that are sent again."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest

from lun_backends import block_device
from lun_backends.block_device import Buffers
from lun_backends.initiator import unit
from lun_backends.initiator.unit import Answer, Sense


class Scripted(unit.Unit):
    """A unit that gives these answers, one after the other, and then the last one for ever."""

    def __init__(self, *answers: Answer) -> None:
        super().__init__("/dev/scripted")
        self.answers = list(answers)
        self.sent = 0

    def reset_logical_unit(self, timeout: float = 0.0) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def _send(self, cdb: bytes, data_out: Buffers, data_in: Buffers, timeout: float) -> Answer:
        self.sent += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def check(key: int, asc: int) -> Answer:
    return Answer(unit.CHECK_CONDITION, 0, bytes((0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0)) + asc.to_bytes(2))


GOOD = Answer(unit.GOOD)
ATTENTION = check(unit.UNIT_ATTENTION, unit.REPORTED_LUNS_DATA_HAS_CHANGED)
LOST = check(unit.UNIT_ATTENTION, unit.REGISTRATIONS_PREEMPTED)
BECOMING_READY, MANUAL = check(0x2, 0x0401), check(0x2, 0x0403)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit, "_FIRST_PAUSE", 0.0001)


@pytest.mark.parametrize(
    "answers",
    [
        (GOOD,),
        (Answer(unit.CONDITION_MET),),
        (Answer(unit.BUSY), Answer(unit.BUSY), GOOD),
        (Answer(unit.TASK_SET_FULL), GOOD),
        (BECOMING_READY, ATTENTION, GOOD),
    ],
)
def test_command_ends_well_after_these_answers(answers: Iterable[Answer]) -> None:
    lun = Scripted(*answers)
    lun.execute(bytes(6))
    assert len(lun.answers) == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(unit.RESERVATION_CONFLICT), block_device.ReservationConflict),
        (Answer(unit.TASK_ABORTED), unit.TaskAborted),
        (check(0xB, 0x2F00), unit.TaskAborted),
        (MANUAL, unit.CheckCondition),
        (check(unit.ILLEGAL_REQUEST, unit.LOGICAL_UNIT_NOT_SUPPORTED), unit.CheckCondition),
        (Answer(0x30), unit.CannotSend),  # ACA ACTIVE: wolun sends no command with NACA
    ],
)
def test_command_is_sent_once_and_fails(answer: Answer, kind: type[Exception]) -> None:
    lun = Scripted(answer)
    with pytest.raises(kind):
        lun.execute(bytes(6))
    assert lun.sent == 1


def test_attentions_are_kept_in_order_until_they_are_taken() -> None:
    lun = Scripted(ATTENTION, LOST, GOOD)
    lun.execute(bytes(6))
    assert lun.take_attentions() == [unit.REPORTED_LUNS_DATA_HAS_CHANGED, unit.REGISTRATIONS_PREEMPTED]
    assert lun.take_attentions() == []


def test_unit_without_an_end_of_attentions_is_broken() -> None:
    lun = Scripted(ATTENTION)
    with pytest.raises(unit.CheckCondition):
        lun.execute(bytes(6))


def test_unit_that_stays_busy_gives_no_answer() -> None:
    began = time.monotonic()
    with pytest.raises(block_device.NoAnswer, match=r"busy for 0\.05 s"):
        Scripted(Answer(unit.BUSY)).execute(bytes(6), timeout=0.05)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("raw", "sense"),
    [
        ("f00008000000070a00000000000000000000", Sense(8, 0, 7)),
        ("700005ffffffff0a00000000250000000000", Sense(5, 0x2500)),
        ("7203110000000000", Sense(3, 0x1100)),
        ("720800000000000c000a80000000000100000000", Sense(8, 0, 1 << 32)),
        ("720800000000000c000a00000000000000000005", Sense(8, 0)),  # not VALID
        ("7208000000000014 02060000c0000200 000a80000000000000000009", Sense(8, 0, 9)),
        ("720800000000ffff000a", Sense(8, 0)),
        ("f00008", Sense(8, 0)),  # cut: a block that nobody named must not count as blank
        ("720800000000000c000a8000000000", Sense(8, 0)),
        ("", Sense(0, 0)),
    ],
)
def test_sense_data_of_both_formats(raw: str, sense: Sense) -> None:
    assert unit.decode_sense(bytes.fromhex(raw)) == sense
