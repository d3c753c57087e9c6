"""Caps on a run: what has been used, and how many more trials fit.

A trial that is under way or still to come is charged with the longest that its job may hold a GPU, so that no cap is
ever exceeded; one that has ended with what it took.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from autoresearch_hpc.config import BudgetConfig
from autoresearch_hpc.history import History
from autoresearch_hpc.tiers import Tiers


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What a run has used."""

    trials: int
    gpu_hours: float
    wall_hours: float
    usd: float


def used(history: History, tiers: Tiers) -> Used:
    """A trial's GPU is charged by the cluster's accounting, else from its worker's start to its result."""
    held_s = history.tally.held_s
    gpu_hours = sum(held_s.values()) / 3600
    usd = sum(seconds * tiers.price(tier) for tier, seconds in held_s.items()) / 3600
    spans = [datetime.fromisoformat(b) - datetime.fromisoformat(a) for a, b in history.active]
    wall_hours = sum(span.total_seconds() for span in spans) / 3600
    return Used(trials=history.tally.num_ended.total(), gpu_hours=gpu_hours, wall_hours=wall_hours, usd=usd)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How many more trials fit, None for any number; and the cap that allows no more, in words."""

    trials: int | None
    cap: str = ""

    def fits(self, count: int) -> bool:
        return self.trials is None or count <= self.trials


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The caps of a run, and what decides how far they reach: `job_limit_s` is the longest a trial may hold its GPU."""

    config: BudgetConfig
    tiers: Tiers
    job_limit_s: float

    def room(self, history: History) -> Room:
        """What fits beside what has ended and what is under way."""
        rooms = list(self._rooms(history))
        return min(
            rooms, key=lambda room: room.trials if room.trials is not None else math.inf, default=Room(trials=None)
        )

    def _rooms(self, history: History) -> Iterator[Room]:
        config, so_far, max_parallel = self.config, used(history, self.tiers), self.tiers.num_slots
        under_way = len(history.outstanding)
        hours = self.job_limit_s / 3600
        usd = hours * max(map(self.tiers.price, self.tiers.used))
        if config.max_trials is not None:
            words = f"budget.max_trials={config.max_trials}: {so_far.trials} done"
            yield _room(config.max_trials - so_far.trials - under_way, words)
        if config.gpu_hours is not None:
            words = f"budget.gpu_hours={config.gpu_hours:g}: {so_far.gpu_hours:.2f} used, a trial may take {hours:.2f}"
            yield _room((config.gpu_hours - so_far.gpu_hours) / hours - under_way, words)
        if config.usd is not None and usd:
            words = f"budget.usd={config.usd:g}: {so_far.usd:.2f} used, a trial may cost {usd:.2f}"
            yield _room((config.usd - so_far.usd) / usd - under_way, words)
        if config.wall_hours is not None:
            waves = math.floor((config.wall_hours - so_far.wall_hours) / hours + 1e-9)
            words = (
                f"budget.wall_hours={config.wall_hours:g}: {so_far.wall_hours:.2f} used, a trial may take {hours:.2f}"
            )
            if waves < 1 or max_parallel:
                yield _room(waves * (max_parallel or 0) - under_way, words)

    def remaining(self, history: History) -> Iterator[str]:
        """What is left of each cap, a sentence each."""
        config, so_far = self.config, used(history, self.tiers)
        left = {
            "rounds": _left(config.max_rounds, max(0, len(history.rounds) - 1)),
            "trials": _left(config.max_trials, so_far.trials),
            "GPU-hours": _left(config.gpu_hours, so_far.gpu_hours),
            "hours": _left(config.wall_hours, so_far.wall_hours),
            "dollars for GPUs": _left(config.usd, so_far.usd),
            "dollars for proposals": _left(config.llm_usd, history.llm_usd),
        }
        for what, amount in left.items():
            if amount is not None:
                yield f"Left of the budget: {amount:.4g} {what}."

    def exhausted(self, history: History) -> str | None:
        """Why no further round may begin; None where one may."""
        config, index = self.config, len(history.rounds)
        if config.max_rounds is not None and index > config.max_rounds:
            return f"budget.max_rounds={config.max_rounds}: as many rounds done"
        if config.patience is not None and rounds_without_gain(history) >= config.patience:
            return f"budget.patience={config.patience}: as many rounds without improvement"
        room = self.room(history)
        return None if room.fits(1) else room.cap


def _left(cap: float | None, used_up: float) -> float | None:
    return None if cap is None else max(0.0, cap - used_up)


def _room(trials: float, cap: str) -> Room:
    return Room(trials=max(0, math.floor(trials + 1e-9)), cap=cap)  # 0.3 h hold three trials of 0.1 h


def rounds_without_gain(history: History) -> int:
    """Judged rounds since the one that the incumbent comes from."""
    if history.incumbent is None:
        return 0
    newest = next((r.index for r in reversed(history.rounds) if r.judged), 0)
    return newest - int(history.incumbent.candidate.split("-")[0][1:])
