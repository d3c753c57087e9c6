"""Every combination of the space's grid values, once."""

import random
from collections.abc import Iterable

from autoresearch_hpc.agents.sampling import Sampler, Setting
from autoresearch_hpc.records import Knobs, SearchState
from autoresearch_hpc.space import Space

__all__ = ["GridAgent"]


class GridAgent(Sampler):
    """Walks the grid in its natural order, or with `shuffle` in an order that the seed decides."""

    origin = "grid"

    def __init__(
        self, space: Space, seed: int, fixed: Knobs, *, allow_repeats: bool = False, shuffle: bool = False
    ) -> None:
        super().__init__(space, seed, fixed, allow_repeats=allow_repeats)
        self._shuffle = shuffle

    def _settings(self, state: SearchState, k: int, taken: set[object]) -> Iterable[Setting]:
        if not self._shuffle:
            return self._space.grid()
        order = list(self._space.grid())
        random.Random(self._seed).shuffle(order)  # one order for all rounds
        return order
