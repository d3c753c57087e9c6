"""Settings around a centre, each knob on its own scale: a logarithm, an exponent, the next choice."""

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from autoresearch_hpc.agents.sampling import Setting
from autoresearch_hpc.config import KnobType
from autoresearch_hpc.records import Knobs, KnobValue
from autoresearch_hpc.space import Domain, Space

__all__ = ["Neighbourhood"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbourhood:
    """`span` is how far its low and high levels are from the centre, as a part of each knob's range.

    `turn` picks the other level of a choice: each of the others in its turn.
    """

    space: Space
    centre: Setting
    span: float
    turn: int = 0

    @classmethod
    def of(cls, space: Space, knobs: Knobs, span: float, turn: int) -> "Neighbourhood":
        """Around these settings; one outside of its domain stands at the nearest end, a missing one in the middle."""
        centre = {name: _inside(domain, knobs.get(name)) for name, domain in space.domains.items()}
        return cls(space=space, centre=centre, span=span, turn=turn)

    def domain(self, name: str) -> Domain:
        return self.space.domains[name]

    def moved_to(self, centre: Setting) -> "Neighbourhood":
        return replace(self, centre=centre)

    def levels(self, name: str) -> tuple[KnobValue, KnobValue]:
        """The knob's low and high level: two settings that differ. At an end of its range one is the centre itself."""
        domain, middle = self.domain(name), self.centre[name]
        if domain.type is KnobType.choice:
            others = [choice for choice in domain.choices if domain.position(choice) != domain.position(middle)]
            return middle, others[self.turn % len(others)] if others else middle
        position = domain.position(middle)
        low, high = domain.at(position - self.span), domain.at(position + self.span)
        if domain.type is not KnobType.float:  # a step of the knob's own where the span is less than one
            low = low if low != middle else domain.at(position - _step(domain))
            high = high if high != middle else domain.at(position + _step(domain))
        return low, high

    def corner(self, coded: Mapping[str, int]) -> Setting:
        """The centre with some knobs at their low (-1) or high (+1) level."""
        return self.at({name: self.levels(name)[level > 0] for name, level in coded.items()})

    def at(self, values: Mapping[str, KnobValue]) -> Setting:
        """The centre with some knobs at these values."""
        return {name: values.get(name, value) for name, value in self.centre.items()}

    def spread(self, name: str, position: float) -> KnobValue:
        """The value of the whole domain at a position between 0 and 1; each discrete value has an equal part."""
        domain = self.domain(name)
        if domain.type in (KnobType.choice, KnobType.pow2):
            values = list(domain.values())
            return values[min(int(position * len(values)), len(values) - 1)]
        return domain.at(position)

    def sample(self, rng: random.Random, names: list[str]) -> Setting:
        """At random, some knobs anywhere between their levels."""
        values: dict[str, KnobValue] = {}
        for name in names:
            low, high = self.levels(name)
            domain = self.domain(name)
            if domain.type is KnobType.choice:
                values[name] = rng.choice((low, high))
            else:
                values[name] = domain.at(rng.uniform(domain.position(low), domain.position(high)))
        return self.at(values)

    def repaired(self, setting: Setting, fixed: Knobs) -> Setting | None:
        """The setting if it meets the bounds, else with as few knobs as possible, two at most, back at the centre's."""
        moved = [name for name, value in setting.items() if value != self.centre[name]]
        for count in range(min(2, len(moved)) + 1):
            for names in itertools.combinations(moved, count):
                other = {**setting, **{name: self.centre[name] for name in names}}
                if not self.space.check(other, fixed):
                    return other
        return None


def _step(domain: Domain) -> float:
    """Far enough to come to the next value of a range of whole numbers or powers of two."""
    return 1.0 / max(domain.size - 1, 1.0)


def _inside(domain: Domain, value: KnobValue) -> KnobValue:
    known = domain.canonical(value)
    if known is not None:
        return known
    if domain.type is KnobType.choice or isinstance(value, bool) or not isinstance(value, int | float):
        return domain.at(0.0 if domain.type is KnobType.choice else 0.5)
    return domain.at(0.0 if value < domain.low else 1.0 if value > domain.high else domain.position(value))
