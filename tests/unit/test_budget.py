"""Caps on a run: what was used, and whether one more round fits."""

from pathlib import Path
from typing import Any

import pytest
from fake_run import FakeRun

from autoresearch_hpc.budget import exhausted, rounds_without_gain, used
from autoresearch_hpc.config import BudgetConfig
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.history import History
from autoresearch_hpc.records import Status

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


def reason(history: History, k: int = 2, wall_limit_s: float = HOUR, price: float = 0.0, **caps: Any) -> str | None:
    return exhausted(BudgetConfig(**caps), history, k, wall_limit_s, price)


def test_what_was_used(run: FakeRun) -> None:
    amount = used(spend(run, 1.0, 0.5), 4.0)
    assert (amount.trials, amount.gpu_hours, amount.usd, amount.wall_hours) == (2, 1.5, 6.0, 2.0)


def test_nothing_is_used_at_first() -> None:
    amount = used(History(), 4.0)
    assert (amount.trials, amount.gpu_hours, amount.usd, amount.wall_hours) == (0, 0, 0, 0)


def test_failed_and_dropped_trials_cost_as_well(run: FakeRun) -> None:
    [trial] = run.propose(["a"])
    run.done(trial, None, Status.LOST, total_s=HOUR, phases=_phases(HOUR))
    run.event("trial.dropped", trial=trial, reason="lost")
    run.event("submit.intent", round=0, job_name="again", trials=["r00-c00-t1"])
    run.done("r00-c00-t1", 1.0, total_s=HOUR, phases=_phases(HOUR))
    assert (used(run.history(), 1.0).trials, used(run.history(), 1.0).usd) == (2, 2.0)


def test_without_caps_everything_fits(run: FakeRun) -> None:
    assert reason(spend(run, 1000.0), k=10_000, wall_limit_s=1e9, price=1e6) is None


@pytest.mark.parametrize(
    ("fits", "exceeds"),
    [
        ({"max_trials": 4}, {"max_trials": 3}),
        ({"gpu_hours": 3.5}, {"gpu_hours": 3.49}),
        ({"usd": 14.0}, {"usd": 13.99}),
        ({"wall_hours": 3.0}, {"wall_hours": 2.99}),
        ({"patience": 1}, None),
    ],
    ids=lambda caps: next(iter(caps), None) if caps else "never",
)
def test_the_next_round_counts_at_its_worst(
    run: FakeRun, fits: dict[str, float], exceeds: dict[str, float] | None
) -> None:
    history = spend(run, 1.0, 0.5)  # used: 2 trials, 1.5 GPU-hours, 6 USD, 2 h; next: 2 trials of 1 h
    assert reason(history, price=4.0, **fits) is None
    if exceeds:
        told = reason(history, price=4.0, **exceeds)
        assert told
        assert told.startswith("budget.{}={}: ".format(*next(iter(exceeds.items()))))


def test_a_budget_too_small_for_the_first_round_stops_it() -> None:
    assert reason(History(), k=1, gpu_hours=0.5) == "budget.gpu_hours=0.5: 0.00 used, the next round may take 1.00"


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


@pytest.mark.parametrize("name", ["max_trials", "gpu_hours", "usd", "wall_hours", "patience"])
@pytest.mark.parametrize("value", [0, -1])
def test_impossible_caps(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"budget\.{name}={value}; give a number above 0"):
        BudgetConfig(**{name: value})  # type: ignore[arg-type]
