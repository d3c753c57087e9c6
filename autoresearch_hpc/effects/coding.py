"""Knob settings in coded units: -1 at the lowest setting that was tried, +1 at the highest.

On the knob's own scale (a logarithm, an exponent) in between. A choice is -1 or +1; of more than two choices each but
the commonest has a code of its own: +1 where it is the one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoresearch_hpc.config import KnobType
from autoresearch_hpc.estimates import Factor
from autoresearch_hpc.records import Knobs, KnobValue, Outcome, Verdict
from autoresearch_hpc.space import Domain, Space

__all__ = ["Code", "Coding", "Observation", "comparable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Of an outcome what a model is fitted to. `setting` is of the space's knobs; what failed has no value."""

    setting: Knobs
    value: float | None
    num_trials: int
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """How the settings of one knob become a number. Of choices `low` and `high` are 0; `choice` is what +1 means."""

    name: str
    knob: str
    domain: Domain
    low: float
    high: float
    choice: KnobValue
    factor: Factor
    paired: bool = True  # whether its interactions are looked at

    @property
    def numeric(self) -> bool:
        return self.domain.type is not KnobType.choice

    def __call__(self, value: KnobValue) -> float:
        if not self.numeric:
            return 1.0 if value == self.choice else -1.0
        return 2 * (self.domain.position(value) - self.low) / (self.high - self.low) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """The codes of the knobs that were varied, in the space's order."""

    codes: tuple[Code, ...]

    @classmethod
    def of(cls, settings: Sequence[Knobs], domains: Mapping[str, Domain]) -> "Coding":
        """Codes over what these settings, all inside the domains, have tried."""
        codes: list[Code] = []
        for name, domain in domains.items():
            values = [setting[name] for setting in settings]
            if domain.type is KnobType.choice:
                codes += _of_choices(name, domain, values)
            elif len(set(values)) > 1:
                first, last = min(values), max(values)  # type: ignore[type-var]
                low, high = domain.position(first), domain.position(last)
                factor = Factor(name=name, low=str(first), high=str(last))
                codes.append(Code(name=name, knob=name, domain=domain, low=low, high=high, choice=None, factor=factor))
        return cls(codes=tuple(codes))

    @property
    def knobs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(code.knob for code in self.codes))

    def row(self, setting: Knobs) -> dict[str, float]:
        return {code.name: code(setting[code.knob]) for code in self.codes}


def comparable(outcomes: Sequence[Outcome], space: Space) -> list[Observation]:
    """Of the outcomes that differ in nothing but the space's knobs.

    An edit of code that was kept is in all that came after it, so they begin anew with it; others are left out.
    """
    found: list[Observation] = []
    for outcome in outcomes:
        setting = space.setting(outcome)
        if outcome.proposal.files:
            if outcome.verdict is not Verdict.KEEP:
                continue
            found = []
        if setting is not None:
            found.append(
                Observation(
                    setting=setting, value=outcome.value, num_trials=max(outcome.num_trials, 1), kind=outcome.kind
                )
            )
    return found


def _of_choices(name: str, domain: Domain, values: Sequence[KnobValue]) -> list[Code]:
    counts = Counter(values)
    seen = [choice for choice in domain.choices if choice in counts]
    if len(seen) < 2:
        return []
    if len(seen) == 2:
        factor = Factor(name=name, low=str(seen[0]), high=str(seen[1]))
        return [Code(name=name, knob=name, domain=domain, low=0, high=0, choice=seen[1], factor=factor)]
    common = max(seen, key=lambda choice: counts[choice])
    codes = []
    for choice in seen:
        if choice != common:
            own = f"{name}={choice}"
            factor = Factor(name=own, low=str(common), high=str(choice))
            codes.append(
                Code(name=own, knob=name, domain=domain, low=0, high=0, choice=choice, factor=factor, paired=False)
            )
    return codes
