"""CMA-ES, by the library cmaes: a normal distribution that moves, widens and turns towards where it was good.

It lives in the unit cube, each knob on its own scale; whole numbers and choices are cells of equal width, choices in
the order in which the space lists them. The optimizer is built anew whenever a round is asked for: it starts at the
incumbent and hears all outcomes, in order and by whole generations, whoever proposed them. What does not fill a
generation yet waits, so K need not be the size of a population.
Source: Hansen and Ostermeier 2001; Hansen 2011 (arXiv 1110.4181) on points that it did not sample itself.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from autoresearch_hpc.agents.cube import fraction, value_at
from autoresearch_hpc.agents.sampling import Sampler, Setting
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.records import Direction, Knobs, SearchState, Status
from autoresearch_hpc.space import Space

if TYPE_CHECKING:  # imported where it is used: only a run with this agent pays for it
    import cmaes
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CmaEsAgent"]

_TRIES = 20  # samples looked at for each one wanted, before random ones fill the round
_MIN_POPULATION = 4  # of fewer no covariance can be learned
_FLAT = 1e-12  # keeps divisions by a length away from zero
_NO_FAULT = (Status.LOST, Status.CANCELLED)  # say nothing about the setting


class CmaEsAgent(Sampler):
    """Proposes samples of the distribution, random settings where they are used up.

    `sigma` is its first standard deviation, as a part of each knob's range; `population` how many outcomes it takes for
    one step, 4 + 3 ln d for d knobs where none is given.
    """

    origin = "cmaes"

    def __init__(
        self,
        space: Space,
        seed: int,
        fixed: Knobs,
        *,
        allow_repeats: bool = False,
        sigma: float = 0.25,
        population: int | None = None,
    ) -> None:
        """Raises ConfigError for a sigma or a population that cannot work."""
        super().__init__(space, seed, fixed, allow_repeats=allow_repeats)
        if not 0 < sigma <= 1:
            raise ConfigError(f"agent.options.sigma is {sigma}", "it is a part of a knob's range: above 0, at most 1")
        if population is not None and (population < _MIN_POPULATION or population != int(population)):
            raise ConfigError(
                f"agent.options.population is {population}", f"give {_MIN_POPULATION} or more, or nothing"
            )
        self._sigma = sigma
        self._population = int(population or 4 + math.floor(3 * math.log(len(space.names))))

    def _settings(self, state: SearchState, k: int, taken: set[object]) -> Iterable[Setting]:
        return itertools.chain(self._modelled(state, k), self._random_settings(state, k))

    def _modelled(self, state: SearchState, k: int) -> Iterator[Setting]:
        optimizer = self._optimizer(state)
        for _ in range(_TRIES * k):
            point = optimizer.ask()
            domains = self._space.domains.items()
            yield {name: value_at(domain, float(u)) for (name, domain), u in zip(domains, point, strict=True)}

    def _optimizer(self, state: SearchState) -> "cmaes.CMA":
        import cmaes
        import numpy as np

        num_dims = len(self._space.names)
        optimizer = cmaes.CMA(
            mean=np.array(self._point(state.incumbent_knobs) or [0.5] * num_dims),
            sigma=self._sigma,
            bounds=np.array([[0.0, 1.0]] * num_dims),
            seed=self._rng(state).getrandbits(32),
            population_size=self._population,
        )
        history = self._history(state.direction)
        for begin in range(0, len(history) - self._population + 1, self._population):
            generation = history[begin : begin + self._population]
            optimizer.tell([(_near(optimizer, np.array(point)), value) for point, value in generation])
        return optimizer

    def _history(self, direction: Direction) -> list[tuple[list[float], float]]:
        """Past points inside the space with values to minimize; a failure is no better than the worst measured."""
        sign = 1.0 if direction is Direction.min else -1.0
        measured = [sign * outcome.value for outcome in self._outcomes if outcome.value is not None]
        worst = max(measured, default=0.0)
        return [
            (point, worst if outcome.value is None else sign * outcome.value)
            for outcome in self._outcomes
            if outcome.status not in _NO_FAULT and (point := self._place(self._space.setting(outcome))) is not None
        ]

    def _point(self, knobs: Knobs) -> list[float] | None:
        return self._place(self._space.canonical(knobs))

    def _place(self, setting: Knobs | None) -> list[float] | None:
        if setting is None:
            return None
        return [fraction(domain, setting[name]) for name, domain in self._space.domains.items()]


def _near(optimizer: "cmaes.CMA", point: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """The point, or as far towards it as a sample may lie: one from far outside would blow up the distribution."""
    import numpy as np

    axes, lengths = optimizer._eigen_decomposition()  # the library does not give its covariance away
    step = point - optimizer.mean
    distance = float(np.linalg.norm(axes.T @ step / np.maximum(lengths, _FLAT))) / optimizer._sigma
    limit = math.sqrt(optimizer.dim) + 2 * optimizer.dim / (optimizer.dim + 2)  # Source: Hansen 2011
    near: NDArray[np.float64] = optimizer.mean + step * min(1.0, limit / max(distance, _FLAT))
    return near
