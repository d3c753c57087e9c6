"""Random settings: the yardstick of every search."""

from collections.abc import Iterable

from autoresearch_hpc.agents.sampling import Sampler, Setting
from autoresearch_hpc.records import SearchState

__all__ = ["RandomAgent"]


class RandomAgent(Sampler):
    """Samples each knob on its own scale."""

    origin = "random"

    def _settings(self, state: SearchState, k: int, taken: set[object]) -> Iterable[Setting]:
        return self._random_settings(state, k)
