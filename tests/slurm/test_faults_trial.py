"""What may happen to a trial, by its own fault and at the hands of others; each leaves the rest of its array alone."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest
from client import Sandbox
from faults import Faulty, Stage
from witness import Witness

OWN = {  # mode -> status, type of the error, what its message says
    "exit": ("CRASHED", "ExitStatus", "exit status 3"),
    "raise": ("CRASHED", "KeyError", "weights"),
    "memory": ("OOM", "MemoryError", ""),
    "cuda": ("OOM", "torch.OutOfMemoryError", "CUDA out of memory"),
    "abort": ("CRASHED", "SIGABRT", "ended by signal SIGABRT"),
    "hang": ("TIMEOUT", "Timeout", "the command took longer than 11 s"),
    "silent": ("INVALID", "NoMetric", "no match"),
    "nan": ("DIVERGED", "Diverged", "the metric is nan"),
}
UNUSABLE = ("empty", "torn", "other", "older")  # result files that are not this trial's
HANDS = ("fine", "cancel", "stopped", "told", "killed", "requeue", "held", *UNUSABLE)
ALL = ("wait a", "wait b", "wait c")


@pytest.fixture(scope="module")
def stage(cluster: Sandbox, cluster_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("trial"), cluster)
    try:
        stage.put_on("hands", lay_hands, HANDS, ("fine",))
        stage.put_on("own", finish, ["fine", *OWN], ("fine",), train_s=10)
        unseen = ("cluster.setup=['test $SLURM_ARRAY_TASK_ID != 1 || exit 0']", "cluster.late_result_s=5")
        stage.put_on("unseen", finish, ("fine a", "fine b", "deadly"), overrides=unseen)
        stage.put_on("whole", cancel_the_array, ALL, ("fine",), baseline="alone")
        yield stage
    finally:
        stage.close()


def finish(run: Faulty) -> None:
    run.command.finish()


def cancel_the_array(run: Faulty) -> None:
    for mode in ALL:
        run.training(mode)
    run.cluster.scancel(run.job(ALL[0]).split("_")[0])
    run.command.finish()


def lay_hands(run: Faulty) -> None:
    """Everything at once, to one array."""
    cluster = run.cluster
    for mode in HANDS[1:]:
        run.training(mode)
    cluster.scancel(run.job("cancel"))
    Thread(target=_keep_stopped, args=[run.training("stopped")["pid"]], daemon=True).start()
    cluster.run("scontrol", "update", f"jobid={run.job('stopped')}", "EndTime=now+1")
    cluster.run("scontrol", "update", f"jobid={run.job('told')}", "EndTime=now+61")
    for mode in ("requeue", "older"):
        cluster.run("scontrol", "requeue", run.job(mode))
    cluster.run("scontrol", "requeuehold", run.job("held"))
    good = json.loads(run.until(lambda: _text(run.folder("fine") / "result.json"), "a good result"))
    leave = {
        "empty": "",
        "torn": json.dumps(good)[:200],
        "other": json.dumps(good | {"metric": good["metric"] | {"value": -1.0}}),
    }
    for mode, text in leave.items():
        _put_result(run, mode, text)
    for mode in ("killed", *leave):
        run.signal_worker(mode, signal.SIGKILL)
    run.until(lambda: run.warnings("held"), "the word that a trial is held")
    cluster.run("scontrol", "release", run.job("held"))
    run.training("older", attempt=1)
    trial = {"candidate": run.candidates["older"], "trial": f"{run.candidates['older']}-t0", "attempt": 0}
    _put_result(run, "older", json.dumps(good | trial | {"metric": good["metric"] | {"value": -1.0}}))
    time.sleep(2)  # the controller looks at it, as it was announced
    run.signal_worker("older", signal.SIGKILL, attempt=1)
    run.command.finish(timeout_s=120)


def _keep_stopped(pid: int) -> None:
    """A process that cannot react, and not even Slurm's SIGCONT helps it."""
    with suppress(ProcessLookupError):
        while True:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.005)


def _put_result(run: Faulty, mode: str, text: str) -> None:
    """Leave a result file as a worker would, and announce it."""
    place = run.folder(mode) / "result.json"
    place.with_name("draft").write_text(text, encoding="utf-8")
    place.with_name("draft").replace(place)
    (run.toy.run_dir(run.tag) / "inbox" / f"{run.candidates[mode]}-t0").touch()


def _text(path: Path) -> str | None:
    return path.read_text("utf-8") if path.exists() else None


@pytest.mark.parametrize("mode", OWN)
def test_a_candidates_own_fault_is_its_status_and_is_not_tried_again(stage: Stage, mode: str) -> None:
    run = stage.played("own")
    status, type_, message = OWN[mode]
    (result,) = run.trials(mode)
    assert (result["status"], result["error"]["type"]) == (status, type_)
    assert message in result["error"]["message"]
    assert result["metric"]["value"] is None
    run.told_by_worker({"hang": "hang that ignores SIGTERM"}.get(mode, mode), mode)


def test_the_rest_of_the_array_and_the_run_go_on(stage: Stage) -> None:
    run = stage.played("own")
    expected = {mode: [status] for mode, (status, *_) in OWN.items()} | {"fine": ["OK"]}
    assert run.statuses() == expected
    assert run.events("run.stopped")[0]["reason"] == "the plan is complete"
    assert set(run.toy.trained().values()) == {1}
    arrays = Witness(stage.cluster, run.toy, run.tag).arrays(ended=11)
    assert arrays == {"r00-a0": ["COMPLETED"] * 10, "r01-a0": ["COMPLETED"]}


def test_cancelled_by_hand_is_not_tried_again(stage: Stage) -> None:
    run = stage.played("hands")
    assert run.statuses()["cancel"] == ["CANCELLED"]
    run.tell("scancel of one task", "cancel", stage.clock)


def test_slurms_time_limit(stage: Stage) -> None:
    run = stage.played("hands")
    assert run.statuses()["stopped"] == ["TIMEOUT"]
    assert run.statuses()["told"] == ["TIMEOUT"]
    assert run.trials("told")[0]["error"]["message"] == "the job's time limit is near (SIGUSR2)"
    assert "ended as TIMEOUT" in run.trials("stopped")[0]["error"]["message"]
    run.tell("Slurm's time limit, its worker stopped (SIGSTOP)", "stopped", stage.clock)
    run.told_by_worker("Slurm's warning before its time limit", "told")


def test_worker_killed(stage: Stage) -> None:
    run = stage.played("hands")
    assert run.statuses()["killed"] == ["LOST", "OK"]
    run.tell("worker killed, no result", "killed", stage.clock)
    first, second = run.nodes("killed")
    assert first != second, "tried again on another node"


def test_job_that_ends_well_without_a_result(stage: Stage) -> None:
    run = stage.played("unseen")
    assert run.statuses()["fine a"] == ["LOST", "OK"]
    assert run.statuses()["fine b"] == ["OK"]
    assert "ended as COMPLETED" in run.trials("fine a")[0]["error"]["message"]
    run.tell("job COMPLETED without a result (late_result_s=5)", "fine a", stage.clock)


def test_retries_have_a_bound_and_go_to_other_nodes(stage: Stage) -> None:
    """A candidate that takes its worker with it each time looks like an infrastructure fault."""
    run = stage.played("unseen")
    assert run.statuses()["deadly"] == ["LOST"] * 3, "cluster.max_retries=2"
    assert len(set(run.nodes("deadly"))) == 3
    run.accepted_once()
    assert run.events("run.stopped")[0]["reason"] == "the plan is complete"


@pytest.mark.parametrize("mode", UNUSABLE)
def test_result_that_is_not_this_trials_is_not_accepted(stage: Stage, mode: str) -> None:
    run = stage.played("hands")
    assert run.statuses()[mode] == ["LOST", "OK"]
    first, second = run.trials(mode)
    assert "left a result that cannot be used" in first["error"]["message"]
    assert first["attempt"] == (1 if mode == "older" else 0)
    assert second["metric"]["value"] > 0
    run.tell(f"result file {mode}", mode, stage.clock)


@pytest.mark.parametrize("mode", ["requeue", "held"])
def test_requeued_by_hand_is_one_trial_with_another_attempt(stage: Stage, mode: str) -> None:
    run = stage.played("hands")
    (result,) = run.trials(mode)
    assert (result["status"], result["attempt"]) == ("OK", 1)
    assert run.toy.trained()[run.candidates[mode]] == 2
    run.told_by_worker("scontrol requeue" + ("hold and release" if mode == "held" else ""), mode)


def test_hands_on_one_trial_leave_the_others_alone(stage: Stage) -> None:
    run = stage.played("hands")
    assert run.statuses()["fine"] == ["OK"]
    run.accepted_once()
    assert run.events("run.stopped")[0]["reason"] == "the plan is complete"
    assert len(run.warnings("job requeued in held state: held by")) == 1
    retried = {line["trial"].rpartition("-")[0] for line in run.events("trial.dropped")}
    assert retried == {run.candidates[mode] for mode in ("killed", *UNUSABLE)}
    dropped = len(run.events("trial.dropped"))
    arrays = Witness(stage.cluster, run.toy, run.tag).arrays(ended=len(HANDS) + 1 + dropped + 1)
    assert sorted(arrays["r00-a0"]) == sorted(
        ["CANCELLED by 0"] + ["TIMEOUT"] + ["FAILED"] * (1 + len(UNUSABLE)) + ["COMPLETED"] * 5
    )


def test_whole_array_cancelled_by_hand(stage: Stage) -> None:
    """The round is judged, none of its trials is tried again, and the next round follows."""
    run = stage.played("whole")
    assert run.statuses() == {mode: ["CANCELLED"] for mode in ALL} | {"fine": ["OK"]}
    for mode in ALL:
        run.tell("scancel of the whole array", mode, stage.clock)
    verdicts = run.events("round.judged")[1]["verdicts"]
    assert set(verdicts.values()) == {"crash"}
    assert run.events("round.judged")[1]["incumbent"]["candidate"] == "r00-c00"
    assert run.events("run.stopped")[0]["reason"] == "the plan is complete"
