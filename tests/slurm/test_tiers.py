"""Two kinds of GPU on a real Slurm: a tier is a gres, arrays of both lie side by side, slots are kept."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import scenarios
from client import Sandbox
from toy import Toy
from witness import Witness

pytestmark = pytest.mark.usefixtures("empty_queue")

TIERS = "+cluster.tiers={screen:{gres:'gpu:h100:1',max_parallel:2},validate:{gres:'gpu:h200:1',max_parallel:1}}"
PLAIN = "cluster.gpus=null"


@pytest.fixture
def slurm(toy: Callable[..., Toy]) -> Callable[..., Toy]:
    """Two rounds after the baseline."""

    def make(*, k: int = 4, sleep_s: float | str = 1.0, **settings: Any) -> Toy:
        plan = {"rounds": 2, "decide": "significant", "noise": 0.02, **settings}
        return toy(cluster="slurm", k=k, sleep_s=sleep_s, overrides=(PLAIN,), **plan)

    return make


def nodes_of(toy: Toy, tag: str) -> dict[str, set[str]]:
    """Tier -> the nodes that its trials ran on."""
    found = defaultdict(set)
    for result in toy.results(tag):
        found[result["tier"]].add(result["slurm"]["nodelist"])
    return found


def test_the_best_are_validated_on_the_other_kind(cluster: Sandbox, slurm: Callable[..., Toy]) -> None:
    toy = slurm()
    scenarios.validated_beside_the_next_round(toy, "validated", TIERS)
    nodes = nodes_of(toy, "validated")
    assert nodes["validate"] == {"n3"}, "the sandbox's h200s are in one node"
    assert nodes["screen"] <= {"n0", "n1", "n2"}
    told = [line for line in toy.journal("validated") if line["event"] == "submit.intent"]
    arrays = Witness(cluster, toy, "validated").arrays(ended=sum(len(line["trials"]) for line in told))
    assert len(arrays) == len(told), "every array was submitted once"
    at_once = _most_at_once(toy, "validated")
    assert at_once["screen"] <= 2
    assert at_once["validate"] == 1


def test_slots_are_refilled(slurm: Callable[..., Toy]) -> None:
    toy = slurm(decide="best", k=5, sleep_s="random.uniform(0.2, 2)")
    toy.overrides.append("cluster.max_parallel=2")
    toy.overrides.remove(PLAIN)
    scenarios.slots_are_refilled(toy, "refilled", 5)
    assert _most_at_once(toy, "refilled") == {"default": 2}


def test_a_controller_that_is_killed_finds_the_arrays_of_both_kinds(slurm: Callable[..., Toy]) -> None:
    toy = slurm(sleep_s=2.0)
    words = (TIERS, *scenarios.VALIDATED, "schedule=async")
    first = toy.search("killed", *words)

    def both_at_work() -> bool:
        lines = toy.journal("killed")
        done = {line["trial"] for line in lines if line["event"] == "trial.done"}
        told = [line for line in lines if line["event"] == "submit.intent" and line["round"] > 0]
        return {line["tier"] for line in told if set(line["trials"]) - done} == {"screen", "validate"}

    scenarios.wait(both_at_work, first, timeout_s=60)
    first.kill()
    time.sleep(1)
    toy.search("killed", *words).finish()
    scenarios.each_once(toy, "killed")


def _most_at_once(toy: Toy, tag: str) -> dict[str, int]:
    """Tier -> the most trials that were at work at one time."""
    most: dict[str, int] = {}
    for tier in nodes_of(toy, tag):
        mine = [(r["started_at"], r["ended_at"]) for r in toy.results(tag) if r["tier"] == tier]
        most[tier] = max(sum(begin <= at < end for begin, end in mine) for at, _ in mine)
    return most
