"""Designed waves: a factorial around the incumbent, then along what it has shown.

The first wave varies all knobs at once, each at two levels around the incumbent, in the fraction of the highest
resolution that fits K. From then on the effects of all results decide (`effects`): dead knobs stay where the incumbent
has them, a part of the wave goes down the slope and to the best that the model predicts, the others are a design of
the knobs that are alive, around that place, with a third level where curvature shows. Waves that bring nothing better
draw it closer. Source: Box and Wilson 1951; Myers, Montgomery and Anderson-Cook 2016.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from autoresearch_hpc import designs, effects
from autoresearch_hpc.agent_config import DesignConfig, DesignKind
from autoresearch_hpc.agents.neighbourhood import Neighbourhood
from autoresearch_hpc.agents.sampling import Sampler, Setting
from autoresearch_hpc.agents.slope import Slope
from autoresearch_hpc.config import KnobType
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.records import Knobs, Outcome, Proposal, SearchState
from autoresearch_hpc.space import Space

__all__ = ["FactorialAgent"]

_log = logging.getLogger(__name__)

_SHRINK = 0.6  # of the span, for each wave since the incumbent's
_LEAST_SPAN = 0.05
_SHARE = 0.5  # of a later wave's slots that go where the model says it is better
_TRIES = 20  # random settings looked at for each slot that a design leaves
_LEFTOVER = "random in the same neighbourhood: the design leaves slots"

Wave = Iterator[tuple[Setting, str]]


class FactorialAgent(Sampler):
    """Proposes designs; what is left of a wave is filled with random settings of the same neighbourhood."""

    origin = "factorial"
    incremental = False  # a design is a whole wave

    def __init__(
        self,
        space: Space,
        seed: int,
        fixed: Knobs,
        *,
        allow_repeats: bool = False,
        design: DesignConfig | None = None,
        fit: effects.Fit = effects.fit,
    ) -> None:
        """Raises ConfigError for a factor that is no knob of the space."""
        super().__init__(space, seed, fixed, allow_repeats=allow_repeats)
        self._design, self._fit = design or DesignConfig(), fit
        named = self._design.factors or list(space.names)
        if unknown := [name for name in named if name not in space.domains]:
            raise ConfigError(f"agent.design.factors: {', '.join(unknown)} is no knob of the space", "name its knobs")
        self._factors = [name for name in space.names if name in named and space.domains[name].size > 1]
        self._reasons: dict[object, str] = {}

    def ask(self, state: SearchState, k: int) -> Sequence[Proposal]:
        extra = min(self._design.centre_points, k - 1)
        each = self._design.replicates
        once = super().ask(state, max((k - extra) // each, 1))
        repeated = [
            replace(proposal, title=f"{proposal.title} (replicate {i})") if i > 1 else proposal
            for i in range(1, each + 1)
            for proposal in once
        ]
        centre = self._space.canonical(state.incumbent_knobs)
        if centre is None or not once:
            return repeated[:k]
        points = [
            Proposal(title=f"centre point {i}: the incumbent's settings", knobs=centre, origin=self.origin)
            for i in range(1, extra + 1)
        ]
        return [*repeated[: k - len(points)], *points]

    def _reasoning(self, setting: Setting) -> str:
        return self._reasons.get(self._key(setting), "")

    def _settings(self, state: SearchState, k: int, taken: set[object]) -> Iterable[Setting]:
        self._reasons = {}
        near = self._neighbourhood(state)
        for setting, reason in itertools.chain(self._wave(state, k, near), self._leftover(state, k, near)):
            allowed = near.repaired(setting, {**self._fixed, **state.incumbent_knobs})
            if allowed is not None:
                self._reasons.setdefault(self._key(allowed), reason)
                yield allowed
        yield from self._anywhere(state, k, near)

    def _heard(self, state: SearchState) -> list[Outcome]:
        """Every outcome as it stands now: an incumbent's mean changes with the controls beside later rounds."""
        return list({outcome.candidate: outcome for outcome in (*self._outcomes, *state.outcomes)}.values())

    # where

    def _neighbourhood(self, state: SearchState) -> Neighbourhood:
        idle = self._idle_waves(state)
        span = max(self._design.span * _SHRINK**idle, min(_LEAST_SPAN, self._design.span))
        return Neighbourhood.of(self._space, state.incumbent_knobs, span, turn=self._num_waves())

    def _num_waves(self) -> int:
        return len({o.round for o in self._outcomes if o.proposal.origin == self.origin})

    def _idle_waves(self, state: SearchState) -> int:
        """Waves since the incumbent's: they have found nothing better. The first may only just have begun to look."""
        since = next((o.round for o in self._outcomes if o.candidate == state.incumbent), 0)
        return len({o.round for o in self._outcomes if o.proposal.origin == self.origin and o.round > since})

    # what

    def _wave(self, state: SearchState, k: int, near: Neighbourhood) -> Wave:
        kind, waves = self._kind(), self._num_waves()
        if kind is DesignKind.grid:
            yield from self._grid(near, k)
        if waves == 0:
            if kind in (DesignKind.latin_hypercube, DesignKind.sobol):
                yield from self._filling(state, k, near, kind)
            elif kind is DesignKind.two_level:
                yield from self._two_level(state, k, near, self._factors)
            return
        model = self._fit(self._heard(state), self._space, state.noise)
        slope = Slope(model, self._factors, near, state.direction) if model else None
        if slope is None or not slope.alive:
            _log.info("round=%d agent=%s no effect stands out: span %.3g", state.index, self.origin, near.span)
            yield from self._two_level(state, k, near, self._in_turn(waves))
            return
        yield from self._after(state, k, near, slope)

    def _kind(self) -> DesignKind:
        """One factor alone is looked at at many levels."""
        if self._design.kind is not DesignKind.auto:
            return self._design.kind
        return DesignKind.grid if len(self._factors) == 1 else DesignKind.two_level

    def _after(self, state: SearchState, k: int, near: Neighbourhood, slope: Slope) -> Wave:
        """A wave that knows the effects of those before it."""
        told = ", ".join(f"{effect.name} {effect.words}" for effect in slope.told[:3])
        alive, new = slope.alive, [name for name in self._factors if slope.untried(name)]
        _log.info(
            "round=%d agent=%s alive: %s; not yet tried in full: %s; span %.3g; %s",
            *(state.index, self.origin, ", ".join(alive), ", ".join(new) or "none", near.span, told),
        )
        best = slope.best(self._rng(state))
        downhill = max(1, round(k * _SHARE))
        for setting in itertools.islice(slope.downhill(best), downhill):
            yield setting, f"where the effects say that it is better: {told}"
        around = near.moved_to(best)
        yield from self._two_level(state, k - downhill, around, [*new, *alive] if new else alive)
        curved = slope.curved or [name for name in alive if near.domain(name).type is not KnobType.choice]
        yield from self._three_levels(around, curved)
        rng = self._rng(state)
        for _ in range(_TRIES * k):
            yield around.sample(rng, alive), _LEFTOVER

    def _two_level(self, state: SearchState, k: int, near: Neighbourhood, factors: Sequence[str]) -> Wave:
        count = designs.factors_that_fit(len(factors), k, self._design.resolution)
        design = designs.largest(count, k) if count else None
        if design is None:
            return
        names = factors[:count]
        fixed = f", {', '.join(factors[count:])} as the incumbent has them" if count < len(factors) else ""
        reason = f"two-level design {design.name} of {', '.join(names)} in {design.num_runs} runs{fixed}"
        _log.info("round=%d agent=%s %s, span %.3g", state.index, self.origin, reason, near.span)
        for row in design.rows:
            yield near.corner(dict(zip(names, row, strict=True))), reason

    def _three_levels(self, near: Neighbourhood, curved: Sequence[str]) -> Wave:
        for row in designs.axial(len(curved), range(len(curved))):
            levels = {name: level for name, level in zip(curved, row, strict=True) if level}
            yield near.corner(levels), f"a third level of {next(iter(levels))}, where curvature shows"

    def _grid(self, near: Neighbourhood, k: int) -> Wave:
        axes = [near.domain(name).grid() for name in self._factors]
        if len(axes) == 1:  # as many levels as there are slots, the incumbent's beside them
            axes = [near.domain(self._factors[0]).spread(k + 1)]
        reason = f"grid of {' x '.join(map(str, map(len, axes)))} levels of {', '.join(self._factors)}"
        for values in designs.full_grid(axes):
            yield near.at(dict(zip(self._factors, values, strict=True))), reason

    def _filling(self, state: SearchState, k: int, near: Neighbourhood, kind: DesignKind) -> Wave:
        make = designs.latin_hypercube if kind is DesignKind.latin_hypercube else designs.sobol
        reason = f"{kind.value.replace('_', ' ')} of {', '.join(self._factors)} in {k} runs"
        _log.info("round=%d agent=%s %s", state.index, self.origin, reason)
        for point in make(len(self._factors), k, self._rng(state).getrandbits(32)):
            positions = zip(self._factors, point, strict=True)
            yield near.at({name: near.spread(name, position) for name, position in positions}), reason

    def _in_turn(self, waves: int) -> list[str]:
        """The factors, those first that an earlier wave had no room for."""
        first = waves % max(len(self._factors), 1)
        return [*self._factors[first:], *self._factors[:first]]

    def _anywhere(self, state: SearchState, k: int, near: Neighbourhood) -> Iterable[Setting]:
        """What every sampler ends with; of named factors these alone."""
        if not self._design.factors:
            return self._random_settings(state, k)
        named = Space(domains={name: near.domain(name) for name in self._factors})
        within = FactorialAgent(named, self._seed, self._fixed)
        return (near.at(setting) for setting in within._random_settings(state, k))

    def _leftover(self, state: SearchState, k: int, near: Neighbourhood) -> Wave:
        rng = self._rng(state)
        for _ in range(_TRIES * k):
            yield near.sample(rng, self._factors), _LEFTOVER
