"""Rounds that overlap, on this machine: the best validated on another tier, slots refilled as they come free."""

from collections.abc import Callable

import pytest
import scenarios
from toy import Toy

pytestmark = pytest.mark.usefixtures("no_slurm")


@pytest.fixture
def local(toy: Callable[..., Toy]) -> Callable[..., Toy]:
    """Two rounds after the baseline, two trials at a time."""

    def make(*, k: int = 4, sleep_s: float | str = 0.2, **settings: object) -> Toy:
        plan = {"rounds": 2, "decide": "significant", "noise": 0.02, **settings}
        return toy(cluster="local", k=k, sleep_s=sleep_s, overrides=("cluster.max_parallel=2",), **plan)

    return make


def test_the_best_are_validated_beside_the_next_round(local: Callable[..., Toy]) -> None:
    scenarios.validated_beside_the_next_round(local(), "validated")


def test_slots_are_refilled_as_they_come_free(local: Callable[..., Toy]) -> None:
    scenarios.slots_are_refilled(local(decide="best", k=5, sleep_s="random.uniform(0.1, 1)"), "refilled", 5)


def test_a_round_spreads_over_tiers(local: Callable[..., Toy]) -> None:
    scenarios.spread_over_tiers(local(k=6), "spread")


def test_killed_while_rounds_overlap(local: Callable[..., Toy]) -> None:
    scenarios.overlapping_killed(local(), "killed", scenarios.TWO_TIERS, *scenarios.VALIDATED, "schedule=async")


def test_killed_while_slots_are_refilled(local: Callable[..., Toy]) -> None:
    scenarios.overlapping_killed(local(k=3), "killed", "schedule=async")


def test_joined_to_the_baseline_too(local: Callable[..., Toy]) -> None:
    toy = local(baseline="joined", rounds=1, decide="best")
    toy.search("joined", "schedule=async").finish()
    scenarios.each_once(toy, "joined")


def test_interrupted_while_rounds_overlap(local: Callable[..., Toy]) -> None:
    """Ctrl-C cancels the trials of every open round; they are run again."""
    toy = local(k=3, sleep_s=0.8)
    words = (scenarios.TWO_TIERS, *scenarios.VALIDATED, "schedule=async")
    first = toy.search("ctrl-c", *words)
    scenarios.wait(
        lambda: any(line["event"] == "round.proposed" and line["round"] == 2 for line in toy.journal("ctrl-c")), first
    )
    first.interrupt()
    first.finish(3)
    assert scenarios.local_workers(toy) == 0
    cancelled = toy.journal("ctrl-c")[-1]["cancelled"]
    toy.search("ctrl-c", *words).finish()
    journal = toy.journal("ctrl-c")
    dropped = {line["trial"] for line in journal if line["event"] == "trial.dropped"}
    assert dropped <= set(cancelled)
    assert (journal[-1]["event"], journal[-1]["reason"]) == ("run.stopped", "the plan is complete")


def test_a_budget_ends_a_round_that_is_half_proposed(local: Callable[..., Toy]) -> None:
    toy = local(decide="best")
    out, _ = toy.search("short", "schedule=async", "budget.max_trials=8").finish()
    journal = toy.journal("short")
    assert sum(line["event"] == "trial.done" for line in journal) == 8
    assert {line["round"] for line in journal if line["event"] == "round.judged"} == {0, 1, 2}
    assert "budget.max_trials=8" in out


def test_a_plan_of_explicit_candidates_is_no_different(local: Callable[..., Toy]) -> None:
    """Their rounds are proposed whole; with schedule=async the next one begins when a slot is free."""
    toy = local(decide="best", sleep_s=0.3)
    one, other = ("{candidates:[{knobs:{LR:0.2}},{knobs:{LR:0.3}}]}", "{candidates:[{knobs:{LR:0.4}}]}")
    candidates = f"plan.rounds=[{one},{other}]"
    toy.search("explicit", "schedule=async", candidates, "plan.max_rounds=2").finish()
    scenarios.each_once(toy, "explicit")
    assert [line["round"] for line in toy.journal("explicit") if line["event"] == "round.proposed"] == [0, 1, 2]
