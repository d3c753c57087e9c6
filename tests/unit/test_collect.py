"""Results come in, or are made up for trials that left none."""

from dataclasses import replace
from pathlib import Path

import pytest

from autoresearch_hpc import collect
from autoresearch_hpc.cluster import JobState
from autoresearch_hpc.files import write_json_atomic
from autoresearch_hpc.layout import TrialPaths
from autoresearch_hpc.records import Direction, Metric, Status, TrialResult, TrialSpec, from_json, to_json


@pytest.fixture
def paths(tmp_path: Path) -> TrialPaths:
    root = tmp_path / "t 'ü'"
    root.mkdir()
    return TrialPaths(root)


def spec(paths: TrialPaths, kind: str = "gpt") -> TrialSpec:
    return TrialSpec(
        run="tag", round=1, candidate="r01-c00", trial="r01-c00-t0", commit="a" * 40, seed=3, tier="h100", kind=kind,
        src="src", trial_dir=str(paths.root), metric=Metric(name="val_bpb", value=None, direction=Direction.min),
        device="cuda", train_s=1, startup_limit_s=1, grace_s=1, eval_limit_s=1, data_sha256="d" * 64,
        submitted_at="2026-01-31T12:00:00.000+00:00",
    )  # fmt: skip


def ok(paths: TrialPaths) -> TrialResult:
    made = collect.missing_result(spec(paths), JobState("COMPLETED", ended=True), "")
    return replace(made, status=Status.OK, metric=replace(made.metric, value=1.0), error=None)


def test_a_result_is_read_where_it_is_this_trials(paths: TrialPaths) -> None:
    assert collect.read_result(paths, "tag", "r01-c00-t0") is None
    result = ok(paths)
    write_json_atomic(paths.result, to_json(result))
    assert collect.read_result(paths, "tag", "r01-c00-t0") == result
    assert collect.read_result(paths, "other", "r01-c00-t0") is None
    assert collect.read_result(paths, "tag", "r01-c00-t1") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"run": "tag"}', '{"schema": 2}', "\0\0", '"x"'])
def test_a_damaged_result_is_none(paths: TrialPaths, text: str) -> None:
    paths.result.write_text(text)
    assert collect.read_result(paths, "tag", "r01-c00-t0") is None


def test_a_result_that_cannot_be_read_is_none(paths: TrialPaths) -> None:
    paths.result.mkdir()
    assert collect.read_result(paths, "tag", "r01-c00-t0") is None
    paths.root.joinpath("x").touch()
    assert collect.read_result(TrialPaths(paths.root / "x"), "tag", "r01-c00-t0") is None


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (JobState("NODE_FAIL", ended=True), Status.LOST),
        (JobState("TIMEOUT", ended=True, status=Status.TIMEOUT), Status.TIMEOUT),
        (JobState("OUT_OF_MEMORY", ended=True, status=Status.OOM), Status.OOM),
        (JobState("CANCELLED", ended=True, status=Status.CANCELLED), Status.CANCELLED),
    ],
)
def test_what_the_cluster_said_becomes_the_result(paths: TrialPaths, state: JobState, status: Status) -> None:
    result = collect.missing_result(spec(paths), state, "last\nlines")
    assert result.status is status
    assert result.metric.value is None
    assert result.error
    assert (result.error.type, result.error.tail) == ("NoResult", "last\nlines")
    assert result.error.message == f"the job ended as {state.word} and left no result"
    assert (result.started_at, result.data_sha256) == ("2026-01-31T12:00:00.000+00:00", "d" * 64)
    assert from_json(TrialResult, to_json(result)) == result
    assert collect.is_infrastructure(result) is (status is Status.LOST)


def test_who_evaluates_depends_on_the_kind(paths: TrialPaths) -> None:
    state = JobState("FAILED", ended=True)
    assert collect.missing_result(spec(paths), state, "").evaluator == "trusted"
    assert collect.missing_result(spec(paths, "command"), state, "").evaluator == "self-reported"


def test_the_log_tail(paths: TrialPaths) -> None:
    assert collect.log_tail(paths) == ""
    paths.log.write_bytes(b"".join(b"line %d\n" % i for i in range(100)) + b"\xff\n")
    lines = collect.log_tail(paths).splitlines()
    assert len(lines) == 40
    assert lines[-2:] == ["line 99", "\ufffd"]
    assert collect.log_tail(paths, 1) == "\ufffd"


def test_the_tail_of_a_huge_log_is_cheap(paths: TrialPaths) -> None:
    with paths.log.open("wb") as file:
        file.truncate(1 << 31)  # a hole of 2 GB
        file.seek(0, 2)
        file.write(b"\nlast")
    assert collect.log_tail(paths, 1) == "last"


def test_the_claim_names_the_job_that_has_the_trial(tmp_path: Path) -> None:
    paths = TrialPaths(tmp_path)
    assert collect.claimant(paths) is None
    paths.claim(0).write_text('{"job": "12_3", "pid": 1}')
    assert collect.claimant(paths) == "12_3"
    paths.claim(0).write_text('{"job": null, "pid": 1}')
    assert collect.claimant(paths) is None
    paths.claim(0).write_text('{"job": "12')
    assert collect.claimant(paths) is None
