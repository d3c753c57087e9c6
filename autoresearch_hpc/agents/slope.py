"""Where the effects of past waves say that it is better: which knobs are alive, the way down, the best predicted."""

import random
from collections.abc import Iterable, Iterator, Sequence

from autoresearch_hpc.agents.neighbourhood import Neighbourhood
from autoresearch_hpc.agents.sampling import Setting
from autoresearch_hpc.config import KnobType
from autoresearch_hpc.effects import Model
from autoresearch_hpc.estimates import Effect, Term
from autoresearch_hpc.records import Direction, KnobValue

__all__ = ["ALIVE", "Slope"]

ALIVE = 0.1  # below this chance a term keeps its knobs in the search: to lose one costs more than to keep one
_NO_ODDS = 0.3  # of the largest term: what counts where nothing is known of the error
_REACH = 2.0  # spans from the centre to which the model is believed
_NUM_SAMPLES = 400
_STEPS = 6


class Slope:
    """The model's terms that stand out, read as a map around the centre of a neighbourhood."""

    def __init__(self, model: Model, factors: Sequence[str], near: Neighbourhood, direction: Direction) -> None:
        self._model, self._near = model, near
        self._sign = 1.0 if direction is Direction.min else -1.0
        self._knob_of = {code.name: code.knob for code in model.coding.codes}
        largest = max(abs(effect.estimate) for effect in model.effects.effects)
        self.told: list[Effect] = [
            effect
            for effect in model.effects.by_size
            if (effect.p < ALIVE if effect.p is not None else abs(effect.estimate) >= _NO_ODDS * largest)
        ]
        self._keep = frozenset(effect.name for effect in self.told)
        knobs = self._knobs(effect for effect in self.told if effect.term is not Term.curvature)
        single = self._knobs(e for e in self.told if e.term is Term.curvature and len(e.factors) == 1)
        # a curvature of several knobs at once does not say whose it is
        standing = knobs | single or self._knobs(self.told)
        self.alive = [name for name in factors if name in standing]

    def _knobs(self, told: Iterable[Effect]) -> set[str]:
        return {self._knob_of[name] for effect in told for name in effect.factors}

    @property
    def curved(self) -> list[str]:
        """Knobs in a curvature that stands out."""
        names = self._knobs(effect for effect in self.told if effect.term is Term.curvature)
        return [name for name in self.alive if name in names]

    def untried(self, name: str) -> bool:
        """Whether the knob, or one of its choices, was not varied yet."""
        domain = self._near.domain(name)
        codes = [code for code in self._model.coding.codes if code.knob == name]
        return not codes or (domain.type is KnobType.choice and len(codes) + 1 < domain.size and domain.size > 2)

    def predicted(self, setting: Setting) -> float:
        """Lower is better, whatever the metric's direction."""
        return self._sign * self._model.predict(setting, self._keep)

    def best(self, rng: random.Random) -> Setting:
        """The best predicted near the centre, dead knobs as the centre has them."""
        best = dict(self._near.centre)
        candidates = [*self._path(), *(self._sample(rng) for _ in range(_NUM_SAMPLES))]
        best = min([best, *candidates], key=self.predicted)
        for _ in range(_STEPS):  # one knob after the other, to the best of what is left
            for name in self.alive:
                best = min([best, *({**best, name: value} for value in self._values(name))], key=self.predicted)
        return best

    def downhill(self, best: Setting) -> Iterator[Setting]:
        """The best predicted, then the way to it and beyond."""
        yield best
        for share in (0.5, 1.5, 0.75, 0.25, 2.0):
            yield self._near.at({name: self._between(name, best[name], share) for name in self.alive})
        yield from self._path()

    def _path(self) -> list[Setting]:
        """Steepest descent from the centre, half a span a step for the knob that matters most."""
        where, path = dict(self._near.centre), []
        for _ in range(int(2 * _REACH)):
            slopes = {name: self._slope(where, name) for name in self.alive}
            largest = max(map(abs, slopes.values()), default=0.0)
            if not largest:
                break
            for name, slope in slopes.items():
                domain = self._near.domain(name)
                if domain.type is KnobType.choice:
                    where[name] = min(self._values(name), key=lambda v, n=name: self.predicted({**where, n: v}))  # type: ignore[misc]
                else:
                    step = -self._near.span / 2 * slope / largest
                    where[name] = domain.at(domain.position(where[name]) + step)
            path.append(dict(where))
        return path

    def _slope(self, where: Setting, name: str) -> float:
        domain = self._near.domain(name)
        if domain.type is KnobType.choice:
            return 0.0
        position = domain.position(where[name])
        low, high = domain.at(position - self._near.span), domain.at(position + self._near.span)
        apart = domain.position(high) - domain.position(low)
        return (self.predicted({**where, name: high}) - self.predicted({**where, name: low})) / apart if apart else 0.0

    def _values(self, name: str) -> list[KnobValue]:
        """What the model may be asked about: within reach of the centre, or tried."""
        domain = self._near.domain(name)
        if domain.type is KnobType.choice:
            tried = {code.choice for code in self._model.coding.codes if code.knob == name}
            return [c for c in domain.choices if c in tried or c == self._near.centre[name]]
        middle, reach = domain.position(self._near.centre[name]), _REACH * self._near.span
        return [domain.at(middle + reach * i / 5) for i in range(-5, 6)]

    def _sample(self, rng: random.Random) -> Setting:
        return self._near.at({name: rng.choice(self._values(name)) for name in self.alive})

    def _between(self, name: str, best: KnobValue, share: float) -> KnobValue:
        domain = self._near.domain(name)
        if domain.type is KnobType.choice:
            return best
        middle = domain.position(self._near.centre[name])
        return domain.at(middle + share * (domain.position(best) - middle))
