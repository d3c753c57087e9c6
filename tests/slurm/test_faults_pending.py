"""Trials that wait for what never comes: said in words, given up after cluster.stuck_limit_min, and nothing is lost."""

import re
import time
from collections.abc import Iterator
from datetime import datetime

import pytest
from client import Sandbox
from faults import Faulty, Stage
from witness import Witness

LIMIT_S = 6.0  # cluster.stuck_limit_min=0.1
SOON = "cluster.stuck_limit_min=0.1"
# search -> what squeue calls the reason, what it means
REASONS = {
    "held": ("JobHeldUser", "held by its user; scontrol release lets it go"),
    "limited": ("AssocGrpGRES", "the account's limit is reached"),
    "drained": ("ReqNodeNotAvail, UnavailableNodes:n3", "the nodes that it needs are down, drained or reserved"),
    "dependent": ("DependencyNeverSatisfied", "what it depends on can never come"),
}


@pytest.fixture(scope="module")
def stage(cluster: Sandbox, cluster_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Each reason is met by a search of one round, which is then resumed without it; all at the same time."""
    stage = Stage(tmp_path_factory.mktemp("pending"), cluster)
    user = cluster.run("id", "-un").strip()
    account = "account=poor", "cluster=sandbox"
    try:
        failed = cluster.sbatch("exit 1")
        cluster.wait_state(failed, "FAILED")
        cluster.run("sacctmgr", "-i", "add", "account", "poor", account[1], "GrpTRES=gres/gpu=0")
        cluster.run("sacctmgr", "-i", "add", "user", user, *account)
        causes = {
            "held": "+cluster.sbatch.hold=true",
            "limited": "cluster.account=poor",
            "dependent": f"+cluster.sbatch.dependency=afterok:{failed}",
        }
        for tag, cause in causes.items():
            stage.put_on(tag, wait_in_vain, ("fine a", "fine b"), overrides=(SOON,), cause=cause)
        h200 = (SOON, "cluster.constraint=h200")
        stage.put_on("drained", drain, ("fine a", "fine b"), overrides=h200, baseline="alone")
        stage.put_on(
            "one", hold_one, ("fine a", "fine b", "fine c", "fine d"), overrides=(SOON, "cluster.max_parallel=1")
        )
        yield stage
    finally:
        stage.close()
        cluster.run("sacctmgr", "-i", "delete", "user", user, *account)
        cluster.run("sacctmgr", "-i", "delete", "account", "poor")


def wait_in_vain(run: Faulty) -> None:
    """All trials of the round are given up: the run stops, and goes on once the cause is gone."""
    _, run.said = run.command.finish(4)
    run.start(with_cause=False)
    run.command.finish()


def drain(run: Faulty) -> None:
    """The nodes that the run needs go into maintenance while its baseline runs, and come back."""
    baseline = run.until(lambda: run.jobs().get("r00-c00-t0"), "the baseline's job")
    run.cluster.wait_state(baseline, "RUNNING", "COMPLETED")
    run.cluster.run("scontrol", "update", "nodename=n3", "state=drain", "reason=maintenance")
    try:
        _, run.said = run.command.finish(4)
    finally:
        run.cluster.run("scontrol", "update", "nodename=n3", "state=resume")
    sinfo = ("sinfo", "-h", "-n", "n3", "-p", "main", "-o", "%t")
    run.cluster.wait_until(lambda: run.cluster.run(*sinfo).strip() == "idle", 15, "the node's return")
    run.start()
    run.command.finish()


def hold_one(run: Faulty) -> None:
    """Two tasks of an array that runs one task at a time: one is held, one cancelled before its turn."""
    run.cluster.run("scontrol", "uhold", run.job("fine c"))
    run.cluster.scancel(run.job("fine d"))  # Slurm keeps no record of it: it is out of the array
    run.moment = time.time()
    run.command.finish()


def given_up(stage: Stage, run: Faulty, mode: str, reason: str, meaning: str) -> None:
    first = run.trials(mode)[0]
    assert (first["status"], first["error"]["type"]) == ("LOST", "NeverStarted")
    assert first["error"]["message"] == f"never began: {reason}: {meaning}"
    due = stage.clock.at(run.jobs()[first["trial"]], f"PENDING {reason.split(',')[0]}") + LIMIT_S
    (event,) = [line for line in run.events("trial.given_up") if line["trial"] == first["trial"]]
    assert datetime.fromisoformat(event["at"]).timestamp() > due - 1, "as long as was configured"
    run.tell(f"pending for ever: {reason}, {LIMIT_S:.0f} s over", mode, stage.clock, since=due)


@pytest.mark.parametrize("tag", REASONS)
def test_said_in_words_then_given_up(stage: Stage, tag: str) -> None:
    run = stage.played(tag)
    reason, meaning = REASONS[tag]
    (warning,) = run.warnings(" waits: ")
    assert f"{reason}: {meaning}; given up after 6 s" in warning
    jobs = run.events("submit.done")[-2]["jobs"]
    assert [line["trial"] for line in run.events("trial.given_up")] == list(jobs), "each once, and none of them again"
    for mode in ("fine a", "fine b"):
        given_up(stage, run, mode, reason, meaning)


@pytest.mark.parametrize("tag", REASONS)
def test_lost_round_stops_the_run_in_one_line_and_can_be_resumed(stage: Stage, tag: str) -> None:
    run = stage.played(tag)
    last = run.said.splitlines()[-1]
    assert re.fullmatch(r"autoresearch_hpc: round [01]: every trial was lost, .*tag=" + tag + " goes on", last)
    assert run.statuses() == {"fine a": ["LOST", "OK"], "fine b": ["LOST", "OK"]}
    assert set(run.toy.trained().values()) == {1}
    assert run.events("run.stopped")[0]["reason"] == "the plan is complete"


def test_one_of_an_array_is_given_up_and_the_others_go_on(stage: Stage) -> None:
    run = stage.played("one")
    assert run.statuses() == {"fine a": ["OK"], "fine b": ["OK"], "fine c": ["LOST"], "fine d": ["CANCELLED"]}
    run.tell("scancel of a task that waits", "fine d", stage.clock, since=run.moment)
    given_up(stage, run, "fine c", *REASONS["held"])
    assert run.events("run.stopped")[0]["reason"] == "the plan is complete"
    arrays = Witness(stage.cluster, run.toy, run.tag).arrays(ended=3)  # sacct lists what was ever eligible to run
    assert arrays == {"r00-a0": ["COMPLETED"] * 3}
