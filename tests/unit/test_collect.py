"""Results come in, or are made up for trials that left none."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_run import FakeRun

from autoresearch_hpc import collect
from autoresearch_hpc.cluster import JobState
from autoresearch_hpc.files import write_json_atomic
from autoresearch_hpc.history import Trial
from autoresearch_hpc.layout import TrialPaths
from autoresearch_hpc.records import Direction, Metric, SlurmJob, Status, TrialResult, TrialSpec, from_json, to_json


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
    made = collect.missing_result(
        spec(paths), trial(), JobState("COMPLETED", ended=True), paths, paths.root / "job.out"
    )
    return replace(made, status=Status.OK, metric=replace(made.metric, value=1.0), error=None)


def trial(**more: object) -> Trial:
    given = {
        "id": "r01-c00-t0",
        "candidate": "r01-c00",
        "round": 1,
        "job_name": "j",
        "submitted_at": "",
        "job": "12_0",
        **more,
    }
    return Trial(**given)  # type: ignore[arg-type]


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
    paths.log.write_text("last\nlines")
    result = collect.missing_result(spec(paths), trial(), state, paths, paths.root / "job.out")
    assert result.status is status
    assert result.metric.value is None
    assert result.error
    assert (result.error.type, result.error.tail) == ("NoResult", "last\nlines")
    assert result.error.message == f"the job ended as {state.word} and left no result"
    assert (result.started_at, result.data_sha256) == ("2026-01-31T12:00:00.000+00:00", "d" * 64)
    assert (result.slurm, result.phases.total_s) == (None, None)
    assert from_json(TrialResult, to_json(result)) == result
    assert collect.is_infrastructure(result) is (status is Status.LOST)


def test_who_evaluates_depends_on_the_kind(paths: TrialPaths) -> None:
    state = JobState("FAILED", ended=True)
    assert collect.missing_result(spec(paths), trial(), state, paths, paths.root / "job.out").evaluator == "trusted"
    assert (
        collect.missing_result(spec(paths, "command"), trial(), state, paths, paths.root / "job.out").evaluator
        == "self-reported"
    )


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


def test_a_job_that_had_begun_is_charged_from_its_claim_and_its_node_is_named(paths: TrialPaths) -> None:
    paths.claim(0).write_text('{"at": "2026-01-31T12:00:00+00:00"}')
    paths.claim(1).write_text('{"at": "2026-01-31T13:00:00+00:00"}')
    paths.result.write_text("{")
    state = JobState("FAILED", ended=True, node="n7")
    result = collect.missing_result(spec(paths), trial(), state, paths, paths.root / "job.out")
    assert result.error
    assert result.error.message == "the job ended as FAILED on n7 and left a result that cannot be used"
    assert (result.attempt, result.host, result.started_at) == (1, "n7", "2026-01-31T13:00:00+00:00")
    assert result.slurm
    assert (result.slurm.job_id, result.slurm.nodelist) == ("12_0", "n7")
    assert result.phases.total_s
    assert result.phases.total_s > 3600


@pytest.mark.parametrize(("launch_failed", "again"), [(True, True), (False, False)])
def test_a_trial_given_up_is_lost_and_tried_again_where_its_launch_failed(
    paths: TrialPaths, launch_failed: bool, again: bool
) -> None:
    given_up = trial(given_up="never began: AssocGrpGRES", launch_failed=launch_failed)
    cancelled = JobState("CANCELLED", ended=True, status=Status.CANCELLED, node="n1" if launch_failed else None)
    result = collect.missing_result(spec(paths), given_up, cancelled, paths, paths.root / "job.out")
    assert result.status is Status.LOST
    assert result.error
    assert result.error.message == "never began: AssocGrpGRES"
    assert collect.is_infrastructure(result) is again
    given_up.result = result
    assert collect.is_nodes_fault(given_up) is launch_failed


def test_a_job_cancelled_on_a_node_before_its_worker_began_failed_to_launch(paths: TrialPaths) -> None:
    on_node = JobState("CANCELLED", ended=True, status=Status.CANCELLED, node="n1")
    assert collect.missing_result(spec(paths), trial(), on_node, paths, paths.root / "job.out").status is Status.LOST
    waiting = JobState("CANCELLED", ended=True, status=Status.CANCELLED)
    assert (
        collect.missing_result(spec(paths), trial(), waiting, paths, paths.root / "job.out").status is Status.CANCELLED
    )
    paths.claim(0).write_text('{"at": "2026-01-31T12:00:00+00:00"}')
    assert (
        collect.missing_result(spec(paths), trial(), on_node, paths, paths.root / "job.out").status is Status.CANCELLED
    )


def test_only_the_newest_attempts_result_counts(paths: TrialPaths) -> None:
    earlier = ok(paths)
    write_json_atomic(paths.result, to_json(earlier))
    paths.claim(0).touch()
    assert collect.read_result(paths, "tag", "r01-c00-t0") == earlier
    paths.claim(1).touch()
    assert collect.read_result(paths, "tag", "r01-c00-t0") is None, "a node that was cut off wrote it too late"
    write_json_atomic(paths.result, to_json(replace(earlier, attempt=1)))
    assert collect.read_result(paths, "tag", "r01-c00-t0") == replace(earlier, attempt=1)


def test_a_worker_that_had_to_stop_is_believed_once_its_job_has_ended(paths: TrialPaths) -> None:
    stopped = replace(ok(paths), status=Status.CANCELLED, metric=spec(paths).metric)
    assert not collect.is_final(stopped, trial(), None)
    assert not collect.is_final(stopped, trial(), JobState("RUNNING", ended=False))
    assert not collect.is_final(stopped, trial(), JobState("REQUEUED", ended=False))
    assert collect.is_final(stopped, trial(), JobState("CANCELLED", ended=True, status=Status.CANCELLED))
    assert collect.is_final(stopped, trial(), JobState("COMPLETED", ended=True))
    assert not collect.is_final(stopped, trial(), JobState("PREEMPTED", ended=True))
    assert not collect.is_final(stopped, trial(), JobState("NODE_FAIL", ended=True))
    held = trial(given_up="never began again")
    assert not collect.is_final(stopped, held, JobState("CANCELLED", ended=True, status=Status.CANCELLED))
    assert collect.is_final(ok(paths), trial(), None)


def test_a_node_is_faulty_once_it_has_lost_several_candidates(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "tag")
    trials = run.propose(["a", "b", "c"])
    lost = {"status": Status.LOST, "value": None}
    slurm = [SlurmJob(job_id="1", nodelist=node) for node in ("n1", "n1", "n2")]
    for id_, job in zip(trials, slurm, strict=True):
        result = run.result(id_, **lost)  # type: ignore[arg-type]
        run.event("trial.done", trial=id_, result=to_json(replace(result, slurm=job)))
    assert collect.faulty_nodes(run.history(), 1) == {"n1", "n2"}
    assert collect.faulty_nodes(run.history(), 2) == {"n1"}
    assert collect.faulty_nodes(run.history(), 3) == set()
    run.event("trial.dropped", trial=trials[0], reason="lost")
    again = run.result("r00-c00-t1", **lost)  # type: ignore[arg-type]
    run.event("submit.intent", round=0, job_name="again", trials=["r00-c00-t1"])
    run.event("trial.done", trial="r00-c00-t1", result=to_json(replace(again, slurm=slurm[0])))
    assert collect.faulty_nodes(run.history(), 3) == set(), "the same candidate twice may be the cause itself"


def test_the_inbox_tells_of_results_and_is_looked_at_once_a_second(tmp_path: Path) -> None:
    looked = []
    sys.addaudithook(lambda event, args: looked.append(args[0]) if event == "os.scandir" else None)
    inbox = collect.Inbox(tmp_path / "in 'box'", every_s=0.3)
    begun = time.monotonic()
    assert inbox.look({"a", "b"}) == set()
    for name in ("a", "left over", "c"):
        (tmp_path / "in 'box'" / name).touch()
    assert inbox.look({"a", "b"}) == set(), "too early"
    while not (found := inbox.look({"a", "b"})):
        time.sleep(0.01)
    assert found == {"a"}
    assert 0.3 <= time.monotonic() - begun < 1
    assert len([path for path in looked if "in 'box'" in str(path)]) == 2
    assert [path.name for path in (tmp_path / "in 'box'").iterdir()] == ["a"], "what nobody expects is cleared away"
    inbox.clear("a")
    inbox.clear("a")
    assert list((tmp_path / "in 'box'").iterdir()) == []
