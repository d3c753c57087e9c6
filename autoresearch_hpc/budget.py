"""Caps on a run: what has been used, and whether one more round fits."""

from dataclasses import dataclass
from datetime import datetime

from autoresearch_hpc.config import BudgetConfig
from autoresearch_hpc.history import History


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What a run has used; a trial's GPU is charged from its worker's start to its result."""

    trials: int
    gpu_hours: float
    wall_hours: float
    usd: float


def used(history: History, price_per_gpu_hour: float) -> Used:
    results = list(history.results())
    gpu_hours = sum(result.phases.total_s or 0.0 for result in results) / 3600
    spans = [datetime.fromisoformat(b) - datetime.fromisoformat(a) for a, b in history.active]
    wall_hours = sum(span.total_seconds() for span in spans) / 3600
    return Used(trials=len(results), gpu_hours=gpu_hours, wall_hours=wall_hours, usd=gpu_hours * price_per_gpu_hour)


def exhausted(
    config: BudgetConfig, history: History, k: int, wall_limit_s: float, price_per_gpu_hour: float
) -> str | None:
    """Why a round of k trials, each as long as its limit allows, would exceed the budget; None where it fits."""
    so_far = used(history, price_per_gpu_hour)
    hours = k * wall_limit_s / 3600
    if config.max_trials is not None and so_far.trials + k > config.max_trials:
        return f"budget.max_trials={config.max_trials}: {so_far.trials} done, the next round has {k}"
    if config.gpu_hours is not None and so_far.gpu_hours + hours > config.gpu_hours:
        return (
            f"budget.gpu_hours={config.gpu_hours:g}: {so_far.gpu_hours:.2f} used, the next round may take {hours:.2f}"
        )
    cost = hours * price_per_gpu_hour
    if config.usd is not None and so_far.usd + cost > config.usd:
        return f"budget.usd={config.usd:g}: {so_far.usd:.2f} used, the next round may cost {cost:.2f}"
    if config.wall_hours is not None and so_far.wall_hours + wall_limit_s / 3600 > config.wall_hours:
        return f"budget.wall_hours={config.wall_hours:g}: {so_far.wall_hours:.2f} used"
    if config.patience is not None and rounds_without_gain(history) >= config.patience:
        return f"budget.patience={config.patience}: as many rounds without improvement"
    return None


def rounds_without_gain(history: History) -> int:
    """Judged rounds since the one that the incumbent comes from."""
    if history.incumbent is None:
        return 0
    newest = max((r.index for r in history.rounds if r.judged), default=0)
    return newest - int(history.incumbent.candidate.split("-")[0][1:])
