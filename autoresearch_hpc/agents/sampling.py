"""What the samplers of a space share: what was tried, what may be proposed, and how a setting becomes a proposal."""

import logging
import math
import random
from collections.abc import Iterable, Iterator, Sequence

from autoresearch_hpc.agents.titles import changes
from autoresearch_hpc.records import Knobs, KnobValue, Outcome, Proposal, SearchState
from autoresearch_hpc.space import Space

__all__ = ["Sampler", "Setting", "memorable"]

_log = logging.getLogger(__name__)

Setting = dict[str, KnobValue]
_MOST = 1000  # outcomes that a model rests on: with more it takes seconds, and memory by their square
_ENUMERABLE = 20_000  # spaces up to this size are searched to their last setting


class Sampler:
    """Base of the agents that search a space: a subclass only says which settings to consider, in `_settings`.

    Every proposal sets all knobs of the space, so it means the same setting on any incumbent. None violates a bound
    and, unless allow_repeats, none was tried before; within a round no two are the same in any case. What is still
    under way counts as tried.
    """

    origin = "sampler"
    incremental = True

    def __init__(self, space: Space, seed: int, fixed: Knobs, *, allow_repeats: bool = False) -> None:
        self._space = space
        self._seed = seed
        self._fixed = fixed
        self._allow_repeats = allow_repeats
        self._outcomes: list[Outcome] = []
        self._keys: dict[str, tuple[Knobs, Proposal, object]] = {}  # of candidates: worked out once

    def ask(self, state: SearchState, k: int) -> Sequence[Proposal]:
        if state.outcomes:  # of all, their newest values: an incumbent is run again beside later rounds
            self._outcomes = list(state.outcomes)
        taken = set() if self._allow_repeats else self._tried(state)
        proposals: list[Proposal] = []
        for setting in self._settings(state, k, taken):
            if len(proposals) == k:
                break
            if self._may(setting, state, taken):
                taken.add(self._key(setting))
                title = changes(setting, state.incumbent_knobs) or "repeat of the incumbent's settings"
                reasoning = self._reasoning(setting)
                proposals.append(Proposal(title=title, knobs=setting, origin=self.origin, reasoning=reasoning))
        if len(proposals) < k:
            _log.warning(
                "round=%d agent=%s found %d of %d new settings that meet the bounds",
                *(state.index, self.origin, len(proposals), k),
            )
        return proposals

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        self._outcomes += outcomes

    def _settings(self, state: SearchState, k: int, taken: set[object]) -> Iterable[Setting]:
        """Settings to consider, best first; `taken` grows while they are read. Ends where there are no more."""
        raise NotImplementedError

    def _reasoning(self, setting: Setting) -> str:
        """Why this one, for people; empty where a sampler has nothing to say."""
        return ""

    def _rng(self, state: SearchState) -> random.Random:
        """Randomness of one round, or of one more part of it, the same in every process."""
        part = f"/{state.num_proposed}" if state.num_proposed else ""
        return random.Random(f"{self._seed}/{state.index}{part}/{self.origin}")

    def _random_settings(self, state: SearchState, k: int) -> Iterator[Setting]:
        """Random settings; in a space that can be enumerated every setting, in the end."""
        rng = self._rng(state)
        for _ in range(200 * k):
            yield self._space.sample(rng)
        if self._space.size <= _ENUMERABLE:
            rest = list(self._space.all())
            rng.shuffle(rest)
            yield from rest

    def _may(self, setting: Setting, state: SearchState, taken: set[object]) -> bool:
        if self._key(setting) in taken:
            return False
        return not self._space.check(setting, {**self._fixed, **state.incumbent_knobs})

    def _tried(self, state: SearchState) -> set[object]:
        past = {self._key_of(outcome) for outcome in self._outcomes}
        return past | {self._key(knobs) for knobs in [state.incumbent_knobs, *self._pending(state)]}

    def _key_of(self, outcome: Outcome) -> object:
        known = self._keys.get(outcome.candidate)
        if known and known[0] is outcome.knobs and known[1] is outcome.proposal:
            return known[2]
        key = self._key(effective(outcome))
        self._keys[outcome.candidate] = outcome.knobs, outcome.proposal, key
        return key

    def _pending(self, state: SearchState) -> list[Setting]:
        """Settings of the space that are under way: no value is known of them yet."""
        running = ({**state.incumbent_knobs, **proposal.knobs} for proposal in state.running)
        return [setting for knobs in running if (setting := self._space.canonical(knobs)) is not None]

    def _key(self, knobs: Knobs) -> object:
        """What makes two settings the same: the space's knobs as the space would write them."""
        known = {name: knobs[name] for name in self._space.names if name in knobs}
        canonical = self._space.canonical(known) or known
        return tuple((name, repr(value)) for name, value in canonical.items())


def memorable(values: Sequence[float]) -> list[int]:
    """Which outcomes to model, in order: all, or of very many the newest half and the best of the others.

    Of these values, the smallest are best; NaN is none.
    """
    if len(values) <= _MOST:
        return list(range(len(values)))
    older = len(values) - _MOST // 2
    best = sorted(range(older), key=lambda i: (math.isnan(values[i]), values[i]))[: _MOST // 2]
    return [*sorted(best), *range(older, len(values))]


def effective(outcome: Outcome) -> Knobs:
    """All settings that a candidate ran with, those that travelled beside the script included."""
    return {**outcome.knobs, **outcome.proposal.knobs}
