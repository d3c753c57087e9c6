"""Which kinds of GPU a run's trials use: where candidates are tried, and where one is shown to be better.

Without `cluster.tiers` there is one tier, and everything happens there. With a plan that validates, a round is screened
on one tier and its best are run again on another; with `tiers=any` a round spreads over all of them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from autoresearch_hpc.config import Config

__all__ = ["Tiers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiers:
    """`slots` are the GPUs of each tier that may be used at once, None for any number."""

    slots: Mapping[str, int | None]
    prices: Mapping[str, float]  # per GPU-hour
    screens: tuple[str, ...]  # of candidates: one tier, or all
    validates: str | None = None  # the tier on which one is kept; None: where it was screened
    top: int = 0  # candidates to validate
    seeds: int = 0  # with so many trials each

    @classmethod
    def of(cls, config: Config) -> "Tiers":
        cluster, plan = config.cluster, config.plan
        names, validate = cluster.tier_names, plan.validate
        return cls(
            slots={name: cluster.on(name).max_parallel for name in names},
            prices={name: cluster.on(name).price_per_gpu_hour for name in names},
            screens=names if config.tiers == "any" else (plan.screen or names[0],),
            validates=(validate.tier or names[-1]) if validate.top else None,
            top=validate.top,
            seeds=validate.seeds,
        )

    @property
    def used(self) -> tuple[str, ...]:
        """The tiers that trials run on."""
        further = (self.validates,) if self.validates and self.validates not in self.screens else ()
        return (*self.screens, *further)

    @property
    def num_slots(self) -> int | None:
        """GPUs that the run may use at once; None for any number."""
        return _sum(self.slots[tier] for tier in self.used)

    @property
    def num_screening(self) -> int | None:
        """Of these the ones on which candidates are tried."""
        return _sum(self.slots[tier] for tier in self.screens)

    def price(self, tier: str) -> float:
        """Per GPU-hour; of a tier that is not known, the dearest."""
        return self.prices.get(tier, max(self.prices.values()))

    def spread(self, candidates: Sequence[str], busy: Mapping[str, int]) -> dict[str, str]:
        """Candidate -> tier: one after another to the tier that is least taken, by its slots."""
        taken, places = Counter(busy), {}
        for candidate in candidates:
            tier = min(self.screens, key=lambda name: (taken[name] + 1) / (self.slots[name] or 1))
            taken[tier] += 1
            places[candidate] = tier
        return places


def _sum(slots: Iterable[int | None]) -> int | None:
    known = list(slots)
    return None if None in known else sum(n for n in known if n is not None)
