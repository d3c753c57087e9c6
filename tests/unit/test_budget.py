"""Caps on a run: what was used, and whether one more round fits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_run import FakeRun

from autoresearch_hpc.budget import Budget, Room, rounds_without_gain, used
from autoresearch_hpc.config import BudgetConfig
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.history import History
from autoresearch_hpc.records import Status
from autoresearch_hpc.tiers import Tiers

HOUR = 3600.0


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path / "tag")


def spend(run: FakeRun, *hours: float) -> History:
    """A judged round 0 whose trials took so many GPU-hours; two hours of wall time."""
    trials = run.propose([f"t{i}" for i in range(len(hours))])
    run.wait(2 * HOUR)
    for trial, each in zip(trials, hours, strict=True):
        run.done(trial, 1.0, total_s=each * HOUR, phases=_phases(each * HOUR))
    ids = [trial.rpartition("-")[0] for trial in trials]
    run.judge({ids[0]: "keep", **dict.fromkeys(ids[1:], "discard")}, dict.fromkeys(ids, 1.0))
    return run.history()


def _phases(total_s: float) -> Any:
    from autoresearch_hpc.records import Phases

    return Phases(total_s=total_s)


def budget(price: float = 0.0, max_parallel: int | None = None, job_limit_s: float = HOUR, **caps: Any) -> Budget:
    return Budget(config=BudgetConfig(**caps), tiers=one_tier(price, max_parallel), job_limit_s=job_limit_s)


def one_tier(price: float, max_parallel: int | None = None) -> Tiers:
    return Tiers(slots={"": max_parallel}, prices={"": price}, screens=("",))


def reason(history: History, price: float = 0.0, **caps: Any) -> str | None:
    return budget(price, **caps).exhausted(history)


def test_what_was_used(run: FakeRun) -> None:
    amount = used(spend(run, 1.0, 0.5), one_tier(4.0))
    assert (amount.trials, amount.gpu_hours, amount.usd, amount.wall_hours) == (2, 1.5, 6.0, 2.0)


def test_nothing_is_used_at_first() -> None:
    amount = used(History(), one_tier(4.0))
    assert (amount.trials, amount.gpu_hours, amount.usd, amount.wall_hours) == (0, 0, 0, 0)


def test_failed_and_dropped_trials_cost_as_well(run: FakeRun) -> None:
    [trial] = run.propose(["a"])
    run.done(trial, None, Status.LOST, total_s=HOUR, phases=_phases(HOUR))
    run.event("trial.dropped", trial=trial, reason="lost")
    run.event("submit.intent", round=0, job_name="again", trials=["r00-c00-t1"])
    run.done("r00-c00-t1", 1.0, total_s=HOUR, phases=_phases(HOUR))
    assert (used(run.history(), one_tier(1.0)).trials, used(run.history(), one_tier(1.0)).usd) == (2, 2.0)


def test_accounting_knows_better_than_the_worker(run: FakeRun) -> None:
    spend(run, 1.0, 0.5)
    run.event("trial.charged", gpu_s={"r00-c01-t0": 2 * HOUR})
    assert used(run.history(), one_tier(4.0)).gpu_hours == 3.0


def test_without_caps_everything_fits(run: FakeRun) -> None:
    assert budget(1e6, job_limit_s=1e9).room(spend(run, 1000.0)) == Room(trials=None)
    assert Room(trials=None).fits(10_000)


@pytest.mark.parametrize(
    ("caps", "trials"),
    [
        ({"max_trials": 5}, 3),
        ({"max_trials": 2}, 0),
        ({"max_trials": 1}, 0),
        ({"gpu_hours": 4.5}, 3),
        ({"gpu_hours": 4.49}, 2),
        ({"gpu_hours": 1.0}, 0),
        ({"usd": 14.0}, 2),
        ({"usd": 13.99}, 1),
        ({"wall_hours": 3.0}, None),
        ({"wall_hours": 2.99}, 0),
        ({"gpu_hours": 100.0, "max_trials": 3}, 1),
        ({"patience": 1}, None),
        ({"max_rounds": 1}, None),
    ],
    ids=str,
)
def test_a_trial_to_come_counts_at_its_worst(run: FakeRun, caps: dict[str, Any], trials: int | None) -> None:
    history = spend(run, 1.0, 0.5)  # used: 2 trials, 1.5 GPU-hours, 6 USD, 2 h; a trial to come takes at most 1 h
    room = budget(price=4.0, **caps).room(history)
    assert room.trials == trials
    told = reason(history, price=4.0, **caps)
    assert (told is not None) == (trials == 0)
    if trials is not None:
        assert room.cap.startswith("budget.")
        assert told in (None, room.cap)


def test_few_at_once_take_several_waves(run: FakeRun) -> None:
    history = spend(run, 1.0)  # 2 h by the clock
    assert budget(max_parallel=4, wall_hours=5.0).room(history).trials == 12
    assert budget(max_parallel=4, wall_hours=2.9).room(history).trials == 0


def test_what_is_under_way_counts_as_well(run: FakeRun) -> None:
    spend(run, 1.0, 0.5)
    trials = run.propose(["a", "b", "c"])
    assert budget(gpu_hours=5.5).room(run.history()).trials == 1
    assert budget(max_trials=5).room(run.history()).trials == 0
    run.done(trials[0], 1.0, total_s=0.5 * HOUR, phases=_phases(0.5 * HOUR))
    assert budget(gpu_hours=5.5).room(run.history()).trials == 1
    assert budget(gpu_hours=6.0).room(run.history()).trials == 2
    run.event("submit.refused", round=1, job_name="ar-1", trials=[trials[2]], reason="no room")
    assert budget(gpu_hours=5.5).room(run.history()).trials == 2


TWO = Tiers(slots={"h100": 2, "h200": 1}, prices={"h100": 2.0, "h200": 3.0}, screens=("h100",), validates="h200")


def spent_on_two(run: FakeRun) -> History:
    """Two hours on h100, one on h200."""
    for trial, tier, hours in zip(run.propose(["a", "b"], tiers=["h100", "h200"]), TWO.used, (2, 1), strict=True):
        run.done(trial, 1.0, tier=tier, phases=_phases(hours * HOUR))
    return run.history()


def test_each_tier_has_its_price(run: FakeRun) -> None:
    history = spent_on_two(run)
    assert (used(history, TWO).usd, used(history, TWO).gpu_hours) == (2 * 2 + 3, 3.0)
    run.event("trial.charged", gpu_s={"r00-c01-t0": 2 * HOUR})
    assert used(run.history(), TWO).usd == 2 * 2 + 2 * 3


def test_a_trial_to_come_may_be_on_the_dearest_tier_that_is_used(run: FakeRun) -> None:
    spent_on_two(run)
    room = Budget(config=BudgetConfig(usd=13.0), tiers=TWO, job_limit_s=HOUR).room(run.history())
    assert room == Room(trials=2, cap="budget.usd=13: 7.00 used, a trial may cost 3.00")
    run.propose(["c"], tiers=["h100"])
    assert Budget(config=BudgetConfig(usd=13.0), tiers=TWO, job_limit_s=HOUR).room(run.history()).trials == 1
    screening = replace(TWO, validates=None)
    assert Budget(config=BudgetConfig(usd=13.0), tiers=screening, job_limit_s=HOUR).room(run.history()).trials == 2


def test_the_slots_of_all_tiers_that_are_used_take_part_in_a_wave(run: FakeRun) -> None:
    history = spend(run, 1.0)  # 2 h by the clock
    assert Budget(config=BudgetConfig(wall_hours=4.0), tiers=TWO, job_limit_s=HOUR).room(history).trials == 6


def test_what_is_under_way_in_earlier_rounds_counts_as_well(run: FakeRun) -> None:
    run.propose(["a", "b"])
    run.propose(["c"])
    assert budget(max_trials=5).room(run.history()).trials == 2


def test_sums_of_decimals_lose_nothing() -> None:
    assert budget(gpu_hours=0.3, job_limit_s=0.1 * HOUR).room(History()).trials == 3


def test_a_budget_too_small_for_one_trial_stops_the_run_at_once() -> None:
    assert reason(History(), gpu_hours=0.5) == "budget.gpu_hours=0.5: 0.00 used, a trial may take 1.00"


def test_rounds_are_counted_after_the_baseline(run: FakeRun) -> None:
    run.round([("baseline", 1.0, "keep")])
    assert reason(run.history(), max_rounds=1) is None
    run.round([("a", 1.1, "discard")])
    assert reason(run.history(), max_rounds=1) == "budget.max_rounds=1: as many rounds done"


def test_patience_counts_judged_rounds_without_a_new_incumbent(run: FakeRun) -> None:
    assert rounds_without_gain(run.history()) == 0
    run.round([("baseline", 1.0, "keep")])
    assert rounds_without_gain(run.history()) == 0
    run.round([("a", 1.1, "discard")])
    run.round([("b", None, "crash")])
    assert rounds_without_gain(run.history()) == 2
    assert reason(run.history(), patience=3) is None
    assert reason(run.history(), patience=2) == "budget.patience=2: as many rounds without improvement"
    run.propose(["c"])
    assert rounds_without_gain(run.history()) == 2, "a round under way says nothing yet"
    run.done("r03-c00-t0", 0.9)
    run.judge({"r03-c00": "keep"}, {"r03-c00": 0.9})
    assert rounds_without_gain(run.history()) == 0


@pytest.mark.parametrize("name", ["max_rounds", "max_trials", "gpu_hours", "usd", "wall_hours", "patience"])
@pytest.mark.parametrize("value", [0, -1])
def test_impossible_caps(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"budget\.{name}={value}; give a number above 0"):
        BudgetConfig(**{name: value})  # type: ignore[arg-type]
