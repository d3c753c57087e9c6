"""Asking a real Slurm about jobs: while it answers, is slow, is silent, forgets or tells nonsense."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, ended, wait, words
from client import Sandbox, booted

from autoresearch_hpc.cluster import Cluster, JobState, Wait, questions, queue
from autoresearch_hpc.cluster.commands import warn_once
from autoresearch_hpc.config import ClusterConfig
from autoresearch_hpc.errors import ClusterError
from autoresearch_hpc.layout import TrialPaths
from autoresearch_hpc.records import Status

Broken = Callable[[str, str], Path]

SILENT = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
NO_ACCOUNTING = "echo 'Slurm accounting storage is disabled' >&2; exit 1"


def state(place: Cluster, jobs: Mapping[str, str]) -> JobState | None:
    """Of the only job."""
    (job,) = jobs
    return place.poll(jobs).get(job)


def word(place: Cluster, jobs: Mapping[str, str]) -> str | None:
    found = state(place, jobs)
    return found.word if found else None


def is_running(place: Cluster, jobs: Mapping[str, str]) -> None:
    wait(lambda: word(place, jobs) == "RUNNING", "a running job")


def running(bench: Bench, name: str, **settings: Any) -> tuple[Cluster, Mapping[str, str]]:
    """One job that runs and would for a minute; its worker is there."""
    place = bench.place(**settings)
    submission = bench.submission(name, ["sleep 60"])
    jobs = bench.launch(place, submission)
    is_running(place, jobs)
    wait(TrialPaths(next(iter(submission.trials.values())).parent).claim(0).exists, "the claim")
    return place, jobs


# how often


@pytest.mark.timeout(200)
def test_six_commands_a_minute_while_nothing_changes(on_slurm: Bench, broken: Broken) -> None:
    """Also with accounting that goes on owing the charges of a job."""
    squeue, scontrol = broken("squeue", '"$REAL" "$@"'), broken("scontrol", '"$REAL" "$@"')
    place = on_slurm.place(queue_poll_s=ClusterConfig().queue_poll_s)
    shorter = on_slurm.launch(place, on_slurm.submission("quiet", ["true"]))
    sacct = broken("sacct", f'echo "{next(iter(shorter.values()))}|quiet|RUNNING|7|n0|gres/gpu=1"')
    wait(lambda: ended(place, shorter), "the end of one")
    later = on_slurm.place(sbatch={"begin": "now+1hour"})
    longer = {"waits": next(iter(on_slurm.launch(later, on_slurm.submission("quiet-too", ["true"])).values()))}
    wait(lambda: word(place, longer) == "PENDING", "the other one")

    def calls() -> int:
        return sum(len(log.read_text().splitlines()) for log in (squeue, scontrol, sacct) if log.exists())

    settled = time.monotonic() + 14  # the soon questions after the change
    while time.monotonic() < settled + 60:
        place.poll(longer)
        assert place.charges(shorter) == {}
        if time.monotonic() < settled:
            before = calls()
        time.sleep(0.5)
    assert sacct.exists(), "it was asked at all"
    assert 4 <= calls() - before <= 6


def test_the_last_charge_is_told_soon(on_slurm: Bench) -> None:
    """Though sacct was asked for another's a moment ago, and squeue has not told that the last job has ended."""
    place = on_slurm.place(queue_poll_s=60)
    submission = on_slurm.submission("last", ["echo loss: 1", "sleep 23; echo loss: 1"])
    jobs = on_slurm.launch(place, submission)
    first, last = jobs
    wait(lambda: ended(place, {first: jobs[first]}), "the end of one")
    while not TrialPaths(submission.trials[last].parent).result.exists():
        place.poll(jobs)
        charged = place.charges({first: jobs[first]})
        time.sleep(0.2)
    assert charged
    wait(lambda: place.charges({last: jobs[last]}), "the last charge", 12)


def test_news_comes_soon_after_something_was_done_and_one_question_serves_all(on_slurm: Bench, broken: Broken) -> None:
    calls = broken("squeue", '"$REAL" "$@"')
    place = on_slurm.place(queue_poll_s=60, sbatch={"begin": "now+1hour"})
    jobs: dict[str, str] = {}
    for k in range(3):
        launched = on_slurm.launch(place, on_slurm.submission(f"news-{k}", ["true"]))
        jobs |= {f"{trial}-{k}": job for trial, job in launched.items()}
    wait(lambda: words(place, jobs) == {"PENDING": 3}, "three jobs", 6)
    place.cancel({"one": next(iter(jobs.values()))})
    wait(lambda: words(place, jobs) == {"CANCELLED": 1, "PENDING": 2}, "the end of one", 5)
    arrays = [job.split("_")[0] for job in jobs.values()]
    lines = [line for line in calls.read_text().splitlines() if any(array in line for array in arrays)]
    assert len(lines) <= 4
    assert all(array in line for array in arrays for line in lines)


def test_nobody_asks_while_nobody_wants_to_know(
    on_slurm: Bench, broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_INTEREST_S", 1.0)
    calls = broken("squeue", '"$REAL" "$@"')
    place, jobs = running(on_slurm, "thinking", queue_poll_s=0.2)
    time.sleep(1.5)
    before = len(calls.read_text().splitlines())
    time.sleep(1.5)
    assert len(calls.read_text().splitlines()) == before
    assert place.poll(jobs) == {}, "what was heard long ago is no news"
    is_running(place, jobs)
    assert len(calls.read_text().splitlines()) > before


# slow, silent, broken


def test_slow_answers_keep_nobody_waiting(on_slurm: Bench, broken: Broken) -> None:
    """A sacct that takes its time keeps no news of squeue back, and neither keeps the controller or its exit back."""
    place, jobs = running(on_slurm, "slow")
    other = on_slurm.launch(place, on_slurm.submission("slow-too", ["sleep 4; echo loss: 1"]))
    other = {f"{trial}-too": job for trial, job in other.items()}
    array = next(iter(jobs.values())).split("_")[0]
    broken("sacct", "sleep 60")
    broken("squeue", f'"$REAL" "$@" | grep -v ^{array}_')
    both = {**jobs, **other}
    begin = slowest = time.monotonic()
    slowest = 0.0
    while word(place, {"x": next(iter(other.values()))}) != "COMPLETED":
        assert time.monotonic() - begin < 15
        asked = time.monotonic()
        place.poll(both)
        slowest = max(slowest, time.monotonic() - asked)
        time.sleep(0.05)
    assert slowest < 0.5


def test_exit_does_not_wait_for_questions(on_slurm: Bench, broken: Broken) -> None:
    broken("squeue", "sleep 60")
    broken("sacct", "sleep 60")
    script = """
import time
from autoresearch_hpc.cluster.slurm import SlurmCluster
from autoresearch_hpc.config import ClusterConfig
place = SlurmCluster(ClusterConfig())
print(place.poll({"t": "1_0"}), place.charges({"t": "1_0"}))
time.sleep(1)
"""
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("{} {}\n", 0), done.stderr
    assert time.monotonic() - begin < 15


def test_silent_queue_is_no_news(
    on_slurm: Bench, broken: Broken, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(queue, "_FORGOTTEN_S", 0.2)
    warn_once.cache_clear()
    place = on_slurm.place(queue_poll_s=0.2)
    submission = on_slurm.submission("silent", ["true", "sleep 60"])
    jobs = on_slurm.launch(place, submission)
    short, long = submission.trials
    wait(lambda: words(place, jobs) == {"COMPLETED": 1, "RUNNING": 1}, "one that has ended, one that runs")
    broken("squeue", SILENT)
    broken("sacct", "exit 1")
    wait(lambda: long not in place.poll(jobs), "silence")
    for _ in range(10):
        assert list(place.poll(jobs)) == [short], "an end stays an end"
        time.sleep(0.1)
    assert place.adopt(submission) is None
    said = [record.message for record in caplog.records]
    assert sum("squeue failed" in line for line in said) == 1
    broken("squeue", '"$REAL" "$@"')
    wait(lambda: words(place, jobs) == {"COMPLETED": 1, "RUNNING": 1}, "the same as before")


def test_daemon_stopped_and_started_again(on_slurm: Bench, cluster: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    place, jobs = running(on_slurm, "restarted")
    os.kill(int((cluster.state / "run/slurmctld.pid").read_text()), signal.SIGTERM)
    try:
        wait(lambda: place.poll(jobs) == {}, "silence", 30)
        monkeypatch.setattr("autoresearch_hpc.cluster.slurm._CANCEL_TRIES_S", 1.0)
        with pytest.raises(ClusterError, match="scancel failed"):
            place.cancel(jobs)
    finally:
        cluster.tool("up")
    is_running(place, jobs)


def test_watching_survives_whatever_happens(
    on_slurm: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place, jobs = running(on_slurm, "surviving", queue_poll_s=0.1)
    told, failures = questions.squeue, []

    def fails(asked: set[str]) -> Any:
        if asked == set(jobs.values()):  # and not another test's
            failures.append(1)
            if len(failures) < 5:
                raise RuntimeError("injected")
        return told(asked)

    monkeypatch.setattr(questions, "squeue", fails)
    wait(lambda: (place.poll(jobs), len(failures) > 5)[1], "more questions")
    is_running(place, jobs)
    assert sum(record.levelno >= logging.ERROR for record in caplog.records) == 1


# jobs that squeue does not list


def hidden(broken: Broken, jobs: Mapping[str, str], *, name: str = "") -> None:
    """A squeue that answers, and has forgotten these jobs."""
    array = next(iter(jobs.values())).split("_")[0]
    broken("squeue", f'"$REAL" "$@" | grep -v ^{array}_; true')


def test_end_of_a_forgotten_job_is_sacts(on_slurm: Bench, broken: Broken) -> None:
    place = on_slurm.place()
    submission = on_slurm.submission("forgotten", ["sleep 2"])
    jobs = on_slurm.launch(place, submission)
    hidden(broken, jobs)
    wait(lambda: ended(place, jobs), "the end", 60)
    found = state(place, jobs)
    assert found
    assert found.word == "COMPLETED"
    assert found.node


def test_end_of_a_forgotten_job_without_accounting(on_slurm: Bench, broken: Broken) -> None:
    calls = broken("sacct", NO_ACCOUNTING)
    place = on_slurm.place()
    jobs = on_slurm.launch(place, on_slurm.submission("unaccounted", ["sleep 1"]))
    hidden(broken, jobs)
    wait(lambda: word(place, jobs) == "COMPLETED", "the end, as scontrol tells it", 40)
    assert not place.accounts
    assert place.charges(jobs) == {}
    time.sleep(1)
    assert len(calls.read_text().splitlines()) == 1, "it is asked no more"


@pytest.mark.parametrize(
    "sacct",
    ['echo "JOB|forgotten-for-ever|RUNNING|5|n0|gres/gpu=1"', "exit 1", "true", NO_ACCOUNTING, "exit 127"],
    ids=["stale", "refusing", "ignorant", "off", "missing"],
)
def test_job_that_nobody_knows_is_gone(
    on_slurm: Bench, broken: Broken, monkeypatch: pytest.MonkeyPatch, sacct: str
) -> None:
    place, jobs = running(on_slurm, "forgotten-for-ever")
    monkeypatch.setattr(queue, "_FORGOTTEN_S", 2.0)
    broken("sacct", sacct.replace("JOB", next(iter(jobs.values()))))
    broken("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    hidden(broken, jobs)
    wait(lambda: place.poll(jobs) == {}, "doubt")
    begin = time.monotonic()
    wait(lambda: state(place, jobs) == JobState("UNKNOWN", ended=True), "the verdict")
    assert time.monotonic() - begin > 1
    assert Status.LOST is JobState("UNKNOWN", ended=True).status


# finding submissions again


def test_submission_is_found_wherever_it_is_remembered(
    on_slurm: Bench, cluster: Sandbox, broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = on_slurm.submission("remembered", ["true", "sleep 60", "sleep 60"])
    place = on_slurm.place(max_parallel=2)
    jobs = on_slurm.launch(place, submission)
    wait(lambda: words(place, jobs) == {"COMPLETED": 1, "RUNNING": 2}, "one ended, two running")
    array = next(iter(jobs.values())).split("_")[0]
    cluster.wait_until(lambda: len(cluster.sacct(*jobs.values())) == 3, what="the accounting's news")
    broken("squeue", f'"$REAL" "$@" | grep -v ^{array}_0; true')  # it forgets what ended some time ago
    assert on_slurm.place().adopt(submission) == jobs
    broken("sacct", "exit 1")
    assert on_slurm.place().adopt(submission) == jobs, "an array is submitted whole"
    broken("squeue", "true")
    successor = on_slurm.place()
    assert successor.adopt(submission) is None, "sacct may know better, but does not answer"
    monkeypatch.setattr("autoresearch_hpc.cluster.slurm._SACCT_PATIENCE_S", 0.5)
    time.sleep(0.6)
    assert successor.adopt(submission) == {}, "it goes on failing"
    broken("sacct", NO_ACCOUNTING)
    assert on_slurm.place().adopt(submission) == {}
    broken("sacct", f'echo "{array}_0|COMPLETED|n0"; echo "{array}_[2-3%2]|PENDING|None assigned"')
    first, _, third = submission.trials
    assert on_slurm.place().adopt(submission) == {first: f"{array}_0", third: f"{array}_2"}
    broken("squeue", SILENT)
    assert on_slurm.place().adopt(submission) is None


def test_array_cancelled_while_it_waited_is_found_and_its_end_told(on_slurm: Bench, cluster: Sandbox) -> None:
    """Slurm then keeps one record for all of the tasks, without their indices."""
    place = on_slurm.place(sbatch={"begin": "now+1hour"})
    submission = on_slurm.submission("never-begun", ["true"] * 3)
    jobs = on_slurm.launch(place, submission)
    wait(lambda: words(place, jobs) == {"PENDING": 3}, "the array")
    assert {s.wait for s in place.poll(jobs).values()} == {Wait.turn}
    cluster.scancel(next(iter(jobs.values())).split("_")[0])
    wait(lambda: words(place, jobs) == {"CANCELLED": 3}, "its end", 10)
    assert {s.status for s in place.poll(jobs).values()} == {Status.CANCELLED}
    assert on_slurm.place().adopt(submission) == jobs


# what states mean


def test_job_cancelled_by_hand(on_slurm: Bench, cluster: Sandbox) -> None:
    place = on_slurm.place(max_parallel=1)
    submission = on_slurm.submission("by-hand", ["sleep 60", "sleep 60"])
    jobs = on_slurm.launch(place, submission)
    first, _ = submission.trials
    wait(TrialPaths(submission.trials[first].parent).claim(0).exists, "the claim")
    cluster.scancel(*jobs.values())
    wait(lambda: words(place, jobs) == {"CANCELLED": 2}, "the end")
    assert all(s.ended and s.status is Status.CANCELLED for s in place.poll(jobs).values())
    wait(lambda: on_slurm.results(submission), "the result of the one that ran")
    assert {t: r.status for t, r in on_slurm.results(submission).items()} == {first: Status.CANCELLED}


def test_node_that_is_lost_is_told(on_slurm: Bench, cluster: Sandbox) -> None:
    place, jobs = running(on_slurm, "lost", sbatch={"no-requeue": True, "nodelist": "n3"})
    try:
        cluster.kill_node("n3")
        wait(lambda: ended(place, jobs), "the end", 15)
        found = state(place, jobs)
        assert found
        assert (found.word, found.status, found.node) == ("NODE_FAIL", Status.LOST, "n3")
    finally:
        cluster.start_slurmd("n3")


def test_requeued_job_has_not_ended_and_all_of_its_attempts_are_charged(on_slurm: Bench, cluster: Sandbox) -> None:
    place, jobs = running(on_slurm, "requeued")
    time.sleep(2)
    cluster.run("scontrol", "requeue", next(iter(jobs.values())))
    wait(lambda: word(place, jobs) in ("PENDING", "REQUEUED"), "it waits again")
    assert not any(s.ended for s in place.poll(jobs).values())
    is_running(place, jobs)
    time.sleep(2)
    place.cancel(jobs)
    wait(lambda: ended(place, jobs), "the end")
    wait(lambda: place.charges(jobs), "the charges")
    (charged,) = place.charges(jobs).values()
    rows = cluster.sacct(*jobs.values(), fields="State,ElapsedRaw", duplicates=True)
    assert len(rows) == 2
    assert charged == sum(int(row["ElapsedRaw"]) for row in rows) >= 4


@contextlib.contextmanager
def limited(cluster: Sandbox, kind: str, name: str, limit: str) -> Iterator[None]:
    cluster.run("sacctmgr", "-i", "modify", kind, name, "set", limit)
    try:
        yield
    finally:
        cluster.run("sacctmgr", "-i", "modify", kind, name, "set", f"{limit.rpartition('=')[0]}=-1")


def waits(place: Cluster, jobs: Mapping[str, str], reason: str) -> JobState:
    """The state of the only job, once it waits for this reason."""
    wait(lambda: (s := state(place, jobs)) and s.reason.startswith(reason), reason)
    found = state(place, jobs)
    assert found
    return found


@pytest.mark.parametrize(
    ("settings", "reason", "meaning"),
    [
        ({"sbatch": {"hold": True}}, "JobHeldUser", Wait.stuck),
        ({"sbatch": {"begin": "now+1hour"}}, "BeginTime", Wait.turn),
        (
            {"sbatch": {"dependency": "afterok:DONE_BADLY", "kill-on-invalid-dep": "no"}},
            "DependencyNeverSatisfied",
            Wait.stuck,
        ),
        ({"sbatch": {"nodes": 9}}, "PartitionConfig|PartitionNodeLimit", Wait.stuck),
    ],
    ids=["held", "later", "dependency", "size"],
)
def test_what_a_job_waits_for(
    on_slurm: Bench, cluster: Sandbox, settings: dict[str, Any], reason: str, meaning: Wait
) -> None:
    if "dependency" in settings["sbatch"]:
        failed = cluster.sbatch("exit 1")
        cluster.wait_state(failed)
        settings = {"sbatch": settings["sbatch"] | {"dependency": f"afterok:{failed}"}}
    place = on_slurm.place(**settings)
    jobs = on_slurm.launch(place, on_slurm.submission("waiting", ["true"]))
    wait(lambda: (s := state(place, jobs)) and s.reason.split(":")[0] in reason.split("|"), reason)
    found = state(place, jobs)
    assert found
    assert (found.wait, found.ended, found.word) == (meaning, False, "PENDING")
    assert len(found.reason) > len(reason.split("|")[0]) + 5, "in words"


def test_group_limit_is_a_turn_only_while_own_jobs_run(on_slurm: Bench, cluster: Sandbox) -> None:
    with limited(cluster, "account", "lab", "GrpTRES=gres/gpu=1"):
        place = on_slurm.place(max_parallel=2)
        jobs = on_slurm.launch(place, on_slurm.submission("group-limit", ["sleep 60", "sleep 60"]))
        first, second = ({trial: job} for trial, job in jobs.items())
        wait(
            lambda: (s := place.poll(jobs).get(next(iter(second)))) and s.reason.startswith("AssocGrpGRES"),
            "AssocGrpGRES",
        )
        assert place.poll(jobs)[next(iter(second))].wait is Wait.turn
        elsewhere = on_slurm.place()
        assert waits(elsewhere, second, "AssocGrpGRES").wait is Wait.stuck
        place.cancel(first)
        is_running(place, second)


def test_drained_node_that_a_job_needs(on_slurm: Bench, cluster: Sandbox) -> None:
    cluster.run("scontrol", "update", "nodename=n3", "state=drain", "reason=maintenance")
    try:
        place = on_slurm.place(sbatch={"nodelist": "n3"})
        jobs = on_slurm.launch(place, on_slurm.submission("drained", ["true"]))
        found = waits(place, jobs, "ReqNodeNotAvail")
        assert found.wait is Wait.stuck
        assert "n3" in found.reason
    finally:
        cluster.run("scontrol", "update", "nodename=n3", "state=resume")


def test_job_held_after_a_failed_launch(on_slurm: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prolog = tmp_path / "prolog.sh"
    prolog.write_text("#!/bin/sh\nexit 1\n")
    prolog.chmod(0o755)
    options = (
        "--nodes",
        "gpu:h100:2",
        "--accounting",
        "none",
        "--set",
        f"Prolog={prolog}",
        "--set",
        "PrologFlags=Alloc",
    )
    with booted(tmp_path / "prolog", *options) as sick, monkeypatch.context() as patch:
        for name, value in sick.settings_environment.items():
            patch.setenv(name, value)
        place = on_slurm.place()
        jobs = place.launch(on_slurm.submission("sick", ["true"]))
        wait(lambda: (s := state(place, jobs)) and s.wait is Wait.failed, "the failed launch", 15)
        found = state(place, jobs)
        assert found
        assert not found.ended
        assert "launch failed requeued held" in found.reason


@pytest.mark.parametrize("node", ["n7", None])
def test_end_of_a_failed_launch_waits_for_the_name_of_its_node(
    on_slurm: Bench, broken: Broken, monkeypatch: pytest.MonkeyPatch, node: str | None
) -> None:
    """squeue never tells it, sacct a moment later; or not at all."""
    monkeypatch.setattr(queue, "_PLACE_PATIENCE_S", 60.0)  # the test says when it is over
    place = on_slurm.place(sbatch={"begin": "now+1hour"})
    jobs = on_slurm.launch(place, on_slurm.submission("nowhere", ["true"]))
    broken("sacct", "true")
    broken("squeue", '"$REAL" "$@" | sed "s/|PENDING|.*/|PENDING||launch failed requeued held/"')
    wait(lambda: (s := state(place, jobs)) and s.wait is Wait.failed, "the failed launch")
    place.cancel(jobs)
    wait(lambda: not place.poll(jobs), "an end that is held back")
    if node:
        broken("sacct", f'echo "{next(iter(jobs.values()))}|nowhere|NODE_FAIL|0|{node}|gres/gpu=1"')
    else:
        monkeypatch.setattr(queue, "_PLACE_PATIENCE_S", 0.0)
    wait(lambda: word(place, jobs) == "CANCELLED", "the end")
    found = state(place, jobs)
    assert found
    assert found.node == node


# cancelling


def test_cancel_of_very_many_and_of_strangers(on_slurm: Bench, broken: Broken, cluster: Sandbox) -> None:
    place = on_slurm.place(max_parallel=1)
    jobs = on_slurm.launch(place, on_slurm.submission("many", ["sleep 60"] * 3))
    timed_out = "scancel: error: Kill job error on job id 1: Socket timed out on send/recv operation"
    calls = broken("scancel", f'[ $(wc -l < "$CALLS") -gt 1 ] || {{ echo "{timed_out}" >&2; exit 1; }}; "$REAL" "$@"')
    strangers = {f"s{k}": f"{900_000_000 + k % 7}_{k}" for k in range(4000)}
    place.cancel({**strangers, **jobs})
    wait(lambda: words(place, jobs) == {"CANCELLED": 3}, "the end")
    assert all(len(line) < 100_000 for line in calls.read_text().splitlines())
