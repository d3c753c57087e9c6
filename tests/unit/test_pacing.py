"""When a submission is tried again, and how large."""

import logging

import pytest

from autoresearch_hpc.errors import ClusterError, NoAnswerError, NoRoomError
from autoresearch_hpc.pacing import Pacing


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pacing(clock: Clock) -> Pacing:
    return Pacing(patience_s=600, clock=clock)


def test_nothing_holds_the_first_submission_back(pacing: Pacing) -> None:
    assert pacing.due
    assert pacing.size is None


def test_where_there_is_no_room_half_is_tried_until_one_does_not_fit(pacing: Pacing, clock: Clock) -> None:
    sizes = []
    for count in (40, 20, 10, 5, 2):
        pacing.refused(count, NoRoomError("QOSMaxSubmitJobPerUserLimit"))
        sizes.append(pacing.size)
        assert pacing.due
    assert sizes == [20, 10, 5, 2, 1]
    pacing.refused(1, NoRoomError("QOSMaxSubmitJobPerUserLimit"))
    assert pacing.size == 1
    assert not pacing.due
    pacing.one_ended()
    assert pacing.due, "a trial that has ended has made room"
    pacing.refused(1, NoRoomError("QOSMaxSubmitJobPerUserLimit"))
    clock.now += 3.9
    assert not pacing.due
    clock.now += 0.2
    assert pacing.due, "twice the first pause"


def test_room_that_comes_back_is_used(pacing: Pacing) -> None:
    pacing.refused(8, NoRoomError("limit"))
    for size in (8, 16, 32):
        pacing.accepted()
        assert pacing.size == size


def test_pauses_grow_up_to_a_minute_and_start_anew_after_an_answer(pacing: Pacing, clock: Clock) -> None:
    pauses = []
    for _ in range(8):
        pacing.unanswered(NoAnswerError("timed out"))
        begun = clock.now
        while not pacing.due:
            clock.now += 1
        pauses.append(clock.now - begun)
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]
    pacing.accepted()
    pacing.unanswered(NoAnswerError("timed out"))
    clock.now += 2
    assert pacing.due


def test_patience_ends(pacing: Pacing, clock: Clock) -> None:
    pacing.unanswered(NoAnswerError("sbatch: timed out"))
    clock.now += 600
    pacing.unanswered(NoAnswerError("sbatch: timed out"))
    clock.now += 1
    with pytest.raises(ClusterError, match="Slurm has not answered for 10 min: sbatch: timed out; start again"):
        pacing.unanswered(NoAnswerError("sbatch: timed out"))


def test_each_trouble_is_told_once(pacing: Pacing, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            pacing.unanswered(NoAnswerError("timed out"))
        for count in (4, 2, 1, 1):
            pacing.refused(count, NoRoomError("limit"))
    assert [record.message for record in caplog.records] == [
        "timed out; trying again",
        "waiting for room in the queue: limit",
    ]


def test_what_may_be_on_its_way_is_looked_for_soon(pacing: Pacing, clock: Clock) -> None:
    pacing.look_again()
    assert not pacing.due
    clock.now += 1
    assert pacing.due
