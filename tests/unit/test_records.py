"""The values that travel: exact in JSON and back, and strict about everything else."""

import json
import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from autoresearch_hpc.gains import Comparison, Gain, Noise
from autoresearch_hpc.records import (
    Candidate,
    CommandSpec,
    Direction,
    Failure,
    Gpu,
    Metric,
    Outcome,
    Phases,
    Proposal,
    SlurmJob,
    Status,
    TrialResult,
    TrialSpec,
    Verdict,
    candidate_id,
    from_json,
    knob_value,
    to_json,
    trial_id,
)

PROPOSAL = Proposal(
    title="größer",
    knobs={"BETAS": (0.8, (1, 2)), "N": 3, "X": 1.0, "S": "a", "B": True, "NONE": None},
    files={"a b.py": "x = 1\n"},
    on="baseline",
)
RESULT = TrialResult(
    run="tag",
    round=3,
    candidate="r03-c02",
    trial="r03-c02-t0",
    attempt=1,
    commit="a" * 40,
    status=Status.OK,
    metric=Metric(name="val_bpb", value=0.9931, direction=Direction.min),
    evaluator="trusted",
    seed=7,
    tier="h100",
    host="n0",
    started_at="2026-01-31T12:00:00.000+00:00",
    ended_at="2026-01-31T12:05:00.000+00:00",
    gpu=Gpu(name="H100", uuid="GPU-1", count=1, visible="0"),
    slurm=SlurmJob(job_id="42", array_job_id="40", array_task_id=2),
    phases=Phases(queue_s=1.0, total_s=300.0),
    steps=100,
)
SPEC = TrialSpec(
    run="tag", round=3, candidate="r03-c02", trial="r03-c02-t0", commit="a" * 40, seed=7, tier="h100", kind="command",
    src="/a b/src", trial_dir="/a b/t0", metric=Metric(name="loss", value=None, direction=Direction.max), device="cpu",
    train_s=1.0, startup_limit_s=2.0, grace_s=4.0, eval_limit_s=8.0, src_sha256={"train.py": "0" * 64},
    command=CommandSpec(command="python fit.py", env={"A": "b"}, metric_regex="(x)"),
)  # fmt: skip
GAIN = Gain(value=0.01, margin=0.0012, expected=0.0098, expected_margin=0.0018)
FOUND = Comparison(call="promote", gain=GAIN, p=0.0031, k=4, num_trials=2, num_incumbent_trials=5)
RECORDS = [
    PROPOSAL,
    Candidate(id="r00-c00", round=0, proposal=PROPOSAL, parent="0" * 40, commit="1" * 40, knobs={"N": 1}),
    RESULT,
    replace(
        RESULT,
        status=Status.OOM,
        metric=replace(RESULT.metric, value=None),
        error=Failure(type="E", message="m", tail="t"),
        slurm=None,
    ),
    SPEC,
    Outcome(
        candidate="r00-c00", round=0, proposal=PROPOSAL, knobs={"A": (1, "b")}, status=Status.LOST, value=None,
        verdict=Verdict.CRASH,
    ),
    Outcome(
        candidate="r01-c00", round=1, proposal=PROPOSAL, knobs={}, status=Status.OK, value=0.99, verdict=Verdict.KEEP,
        finding=FOUND,
    ),
    FOUND,
    Comparison(call="not compared", note="ran on H200, the round's others on H100"),
    Gain(value=-0.5),
    Noise(sd=0.0006, df=6.0, kind="H100", measured_df=2.0),
]  # fmt: skip


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_json_and_back_is_exact(record: object) -> None:
    text = json.dumps(to_json(record), allow_nan=False)
    again = from_json(type(record), json.loads(text))
    assert again == record
    assert json.dumps(to_json(again)) == text


@pytest.mark.parametrize(
    ("found", "words", "odds"),
    [
        (
            FOUND,
            "promote: +0.010000 ± 0.001200, p=0.003 of K=4, expected +0.009800 (+0.008000 to +0.011600)",
            "+0.010000 ± 0.001200, p=0.003 of K=4",
        ),
        (replace(FOUND, gain=Gain(value=-0.5), p=None), "promote: -0.500000, noise unknown, K=4", None),
        (replace(FOUND, p=0.00031, gain=replace(GAIN, expected=None)), None, "+0.010000 ± 0.001200, p=0.0003 of K=4"),
        (replace(FOUND, p=0.0), None, "+0.010000 ± 0.001200, p<0.0001 of K=4"),
        (Comparison(call="no score"), "no score", ""),
        (Comparison(call="not compared", note="ran elsewhere"), "ran elsewhere", ""),
    ],
)
def test_a_comparison_in_words(found: Comparison, words: str | None, odds: str | None) -> None:
    assert words is None or found.words == words
    assert odds is None or found.odds == odds


def test_the_noise_of_a_mean() -> None:
    noise = Noise(sd=0.0006, df=6.0)
    assert noise.standard_error(1) == 0.0006
    assert noise.standard_error(4) == pytest.approx(0.0003)
    assert noise.standard_error(0) is None
    assert Noise(sd=math.inf, df=0.0).standard_error(4) is None


def test_records_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        RESULT.seed = 1  # type: ignore[misc]


def damaged(**changes: Any) -> dict[str, Any]:
    payload = json.loads(json.dumps(to_json(RESULT)))
    for key, value in changes.items():
        node = payload
        *parents, last = key.split("__")
        for parent in parents:
            node = node[parent]
        if value is ...:
            del node[last]
        else:
            node[last] = value
    return payload


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bogus": 1}, "bogus"),
        ({"run": ...}, "run"),
        ({"round": "3"}, "expected int, found '3'"),
        ({"round": True}, "expected int, found True"),
        ({"round": 3.0}, "expected int, found 3.0"),
        ({"seed": None}, "expected int, found None"),
        ({"host": 3}, "expected str, found 3"),
        ({"status": "FINE"}, "FINE"),
        ({"metric__direction": "up"}, "up"),
        ({"metric__value": "1"}, "expected float"),
        ({"metric": 3}, "metric"),
        ({"gpu__count": "1"}, "expected int"),
        ({"phases__extra": 1}, "extra"),
        ({"schema": 2}, "schema 2, expected 1"),
        ({"metric__value": None}, "status OK with metric value None"),
        ({"status": "CRASHED"}, "status CRASHED with metric value 0.9931"),
    ],
)
def test_another_shape_is_refused_and_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r"^not a TrialResult: ") as caught:
        from_json(TrialResult, damaged(**changes))
    assert words in str(caught.value)


@pytest.mark.parametrize("payload", [None, [], "text", 3])
def test_what_is_no_object_is_refused(payload: Any) -> None:
    with pytest.raises(ValueError, match="not a TrialResult"):
        from_json(TrialResult, payload)


def test_whole_numbers_are_welcome_where_floats_are_meant() -> None:
    result = from_json(TrialResult, damaged(metric__value=1, phases__total_s=300))
    assert (result.metric.value, result.phases.total_s) == (1.0, 300.0)
    assert isinstance(result.metric.value, float)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_is_finite(value: float) -> None:
    with pytest.raises(ValueError, match=f"a metric of {value}"):
        replace(RESULT, metric=replace(RESULT.metric, value=value))


def test_zero_is_a_metric_like_any_other() -> None:
    assert replace(RESULT, metric=replace(RESULT.metric, value=0.0)).status is Status.OK


def test_knob_values() -> None:
    assert knob_value([1, [2.5, "a"], None, True]) == (1, (2.5, "a"), None, True)
    for wrong in ({"a": 1}, {1, 2}, b"x", object()):
        with pytest.raises(ValueError, match="a knob holds numbers"):
            knob_value(wrong)
    for number in (float("nan"), [1, float("inf")]):
        with pytest.raises(ValueError, match="set a finite number"):
            knob_value(number)


def test_directions() -> None:
    assert Direction.min.better(1, 2)
    assert not Direction.min.better(2, 2)
    assert Direction.max.better(2, 1)
    assert not Direction.max.better(2, 2)


def test_ids() -> None:
    assert candidate_id(3, 2) == "r03-c02"
    assert candidate_id(123, 456) == "r123-c456"
    assert trial_id("r03-c02", 1) == "r03-c02-t1"
