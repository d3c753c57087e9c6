"""Whole searches on this machine, from the command line: interrupted, killed, side by side."""

import json
import os
import signal
from collections.abc import Callable

import pytest
import scenarios
from toy import Toy

pytestmark = pytest.mark.usefixtures("no_slurm")


@pytest.fixture
def local(toy: Callable[..., Toy]) -> Callable[..., Toy]:
    """A plan of one round: the baseline and k candidates, two at a time."""

    def make(*, k: int = 3, sleep_s: float = 0.5, **settings: object) -> Toy:
        plan = {"rounds": 0, "baseline": "joined", **settings}
        return toy(cluster="local", k=k, sleep_s=sleep_s, overrides=("cluster.max_parallel=2",), **plan)

    return make


def test_killed_around_every_event(local: Callable[..., Toy]) -> None:
    scenarios.killed_around_every_event(local(), "ladder")


def test_luck_is_told_from_gains_whatever_is_killed(local: Callable[..., Toy]) -> None:
    scenarios.killed_between_looks(local(decide="significant", noise=1.0), "looks")


def test_killed_while_training(local: Callable[..., Toy]) -> None:
    scenarios.killed_while_training(local(k=1, sleep_s=2), "outlived")


def test_killed_before_a_lost_trial_is_dropped(local: Callable[..., Toy]) -> None:
    scenarios.killed_before_a_lost_trial_is_dropped(local(k=1), "lost-last")


def test_terminated(local: Callable[..., Toy]) -> None:
    scenarios.terminated(local(k=1, sleep_s=2), "terminated")


def test_interrupted(local: Callable[..., Toy]) -> None:
    repository = local(k=2, sleep_s=2)
    scenarios.interrupted(repository, "ctrl-c", lambda: scenarios.local_workers(repository))


def test_cancelled(local: Callable[..., Toy]) -> None:
    repository = local(k=1, sleep_s=2)
    scenarios.cancelled(repository, "cancel", lambda: scenarios.local_workers(repository))


def test_two_at_once(local: Callable[..., Toy]) -> None:
    scenarios.two_at_once(local(k=2, sleep_s=4))


def test_multirun_is_a_run_for_each_seed(local: Callable[..., Toy]) -> None:
    toy = local(k=1)
    before = toy.checkout()
    toy.start("-m", *toy.words("sweep", "seed=1,2")).finish()
    assert toy.checkout() == before
    for tag in ("sweep-0", "sweep-1"):
        scenarios.complete(toy, tag, runs=2)
    seeds = [{r["seed"] for r in toy.results(tag)} for tag in ("sweep-0", "sweep-1")]
    assert not seeds[0] & seeds[1]


def test_ctrl_c_ends_a_whole_multirun(local: Callable[..., Toy]) -> None:
    toy = local(k=1, sleep_s=2)
    sweep = toy.start("-m", *toy.words("sweep", "seed=1,2"))
    scenarios.until_training(toy, "sweep-0", sweep)
    sweep.interrupt()
    sweep.finish(3)
    assert toy.journal("sweep-1") == []
    toy.start("-m", *toy.words("sweep", "seed=1,2")).finish()
    scenarios.complete(toy, "sweep-0", runs=2, interruptions=1)


def test_a_signal_in_a_runs_last_moments_ends_a_whole_multirun(local: Callable[..., Toy]) -> None:
    toy = local(k=1)
    scenarios.killed_at(toy, "sweep", "warned", "run.stopped", "seed=1,2", "-m").finish(3)
    scenarios.complete(toy, "sweep-0")
    assert toy.journal("sweep-1") == []


@pytest.mark.parametrize("moment", ["before", "after"])
def test_lost_worker_is_replaced_once(local: Callable[..., Toy], moment: str) -> None:
    """SIGKILL to a worker: its trial says nothing of the candidate, so another follows. Then to the controller."""
    toy = local(k=1, sleep_s=1.5)
    run = scenarios.killed_at(toy, "lost", moment, "trial.dropped")
    scenarios.until_training(toy, "lost", run)
    claim = toy.run_dir("lost") / "rounds/00/r00-c01/trials/t0/claim-0.json"
    scenarios.wait(claim.exists, run)
    os.kill(json.loads(claim.read_text())["pid"], signal.SIGKILL)
    run.finish(-signal.SIGKILL)
    toy.search("lost").finish()
    dropped = [line for line in toy.journal("lost") if line["event"] == "trial.dropped"]
    assert [line["trial"] for line in dropped] == ["r00-c01-t0"]
    assert {r["trial"]: r["status"] for r in toy.results("lost")} == {"r00-c00-t0": "OK", "r00-c01-t1": "OK"}
