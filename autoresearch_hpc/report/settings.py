"""The few settings that a reader of a run needs, from its config.yaml, without Hydra and its import time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoresearch_hpc.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What was planned and what it may cost; a limit that is None is none."""

    plan: str = ""
    description: str = ""
    num_rounds: int | None = None  # after round 0
    agent: str = ""
    cluster: str = ""
    train_s: float | None = None
    wall_limit_s: float | None = None  # of one trial, in the worst case
    price_per_gpu_hour: float = 0.0
    prices: Mapping[str, float] = field(default_factory=dict)  # of tiers that have their own
    num_slots: int | None = None  # GPUs at most at once, where that was said
    max_trials: int | None = None
    gpu_hours: float | None = None
    usd: float | None = None
    wall_hours: float | None = None

    def price(self, tier: str) -> float:
        """Per GPU-hour."""
        return self.prices.get(tier, self.price_per_gpu_hour)


def settings_of(config: "Config") -> Settings:
    """The settings of a loaded configuration."""
    task, budget = config.task, config.budget
    return Settings(
        plan=config.plan.name,
        description=config.plan.description,
        num_rounds=config.plan.num_rounds,
        agent=config.agent.name,
        cluster=config.cluster.kind.value,
        train_s=task.train_s,
        wall_limit_s=task.wall_limit_s,
        price_per_gpu_hour=config.cluster.price_per_gpu_hour,
        num_slots=_num_slots([config.cluster.on(name).max_parallel for name in config.cluster.tier_names]),
        prices={name: config.cluster.on(name).price_per_gpu_hour for name in config.cluster.tiers},
        max_trials=budget.max_trials,
        gpu_hours=budget.gpu_hours,
        usd=budget.usd,
        wall_hours=budget.wall_hours,
    )


def read_settings(path: Path) -> Settings:
    """The settings in a run's config.yaml; where it is missing or of another version, what can be read of it."""
    import yaml  # type: ignore[import-untyped]

    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        content = yaml.load(path.read_text(encoding="utf-8"), loader)
    except (OSError, ValueError, yaml.YAMLError):
        return Settings()
    group = _Groups(content if isinstance(content, dict) else {})
    plan, task, budget, cluster = group("plan"), group("task"), group("budget"), group("cluster")
    rounds = plan.get("rounds")
    planned = max(len(rounds), 1) - (plan.get("baseline") == "joined") if isinstance(rounds, list) else None
    limits = [_number(task.get(key)) for key in ("startup_limit_s", "train_s", "grace_s", "eval_limit_s")]
    known = [limit for limit in limits if limit is not None]
    staged_s = (_number(task.get("stage_limit_s")) or 0.0) if task.get("stage") else 0.0
    return Settings(
        plan=str(plan.get("name") or ""),
        description=str(plan.get("description") or ""),
        num_rounds=_whole(plan.get("max_rounds"), planned),
        agent=str(group("agent").get("name") or ""),
        cluster=str(cluster.get("kind") or ""),
        train_s=limits[1],
        wall_limit_s=_wall_limit_s(str(task.get("kind")), *known, staged_s=staged_s) if len(known) == 4 else None,
        price_per_gpu_hour=_number(cluster.get("price_per_gpu_hour")) or 0.0,
        num_slots=_num_slots([_whole(tier.get("max_parallel"), None) for tier in _tiers(cluster)]),
        prices=dict(_prices(cluster.get("tiers"))),
        max_trials=_whole(budget.get("max_trials"), None),
        gpu_hours=_number(budget.get("gpu_hours")),
        usd=_number(budget.get("usd")),
        wall_hours=_number(budget.get("wall_hours")),
    )


class _Groups:
    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content

    def __call__(self, name: str) -> Mapping[str, Any]:
        group = self._content.get(name)
        return group if isinstance(group, dict) else {}


def _tiers(cluster: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What the cluster says of each tier; of one without a list, the cluster itself."""
    tiers = cluster.get("tiers")
    listed = [tier for tier in tiers.values() if isinstance(tier, dict)] if isinstance(tiers, dict) else []
    return [{"max_parallel": cluster.get("max_parallel"), **tier} for tier in listed] or [cluster]


def _num_slots(slots: Sequence[int | None]) -> int | None:
    return None if None in slots else sum(number or 0 for number in slots)


def _prices(tiers: object) -> Iterator[tuple[str, float]]:
    for name, tier in tiers.items() if isinstance(tiers, dict) else ():
        price = _number(tier.get("price_per_gpu_hour")) if isinstance(tier, dict) else None
        if price is not None:
            yield str(name), price


def _wall_limit_s(
    kind: str, startup_s: float, train_s: float, grace_s: float, eval_s: float, *, staged_s: float
) -> float:
    return startup_s + train_s + grace_s + (0.0 if kind == "command" else eval_s + staged_s)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: object, default: int | None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else default
