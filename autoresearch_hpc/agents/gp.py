"""Bayesian optimization: a Gaussian process of the scores, and where it expects most improvement.

A round's K settings are chosen one by one, each as if the ones before it had come out as expected, so they do not
crowd. Candidates are changes, small and large, of the best settings so far, and random ones. What failed counts as no
better than the worst that was measured. The model is built anew from the outcomes told.
Source: Jones et al. 1998 (expected improvement), Desautels et al. 2014 (batches), Ament et al. 2023 (logarithms).
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from autoresearch_hpc.agents.cube import fraction, num_cells, value_at
from autoresearch_hpc.agents.gaussian import Process, most_probable
from autoresearch_hpc.agents.sampling import Sampler, Setting, memorable
from autoresearch_hpc.config import KnobType
from autoresearch_hpc.records import Direction, Knobs, SearchState, Status
from autoresearch_hpc.space import Space

if TYPE_CHECKING:  # imported where it is used: only a run with this agent pays for it
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["GpAgent"]

_NO_FAULT = (Status.LOST, Status.CANCELLED)  # say nothing about the setting
_REFIT = 16  # so many outcomes more, and the kernel's lengths are learned again
_LESSONS = 500  # newest outcomes that they are learned from; thousands would take minutes
_PARENTS = 8  # best settings that are varied
_POOL = (600, 200, 500)  # candidates: variations of the best, random ones, variations of the most promising of these
_LEAST = 1e-12  # keeps divisions away from zero
_SCALES = (0.01, 0.3)  # of a variation's steps, as a part of a knob's range


class GpAgent(Sampler):
    """Proposes what promises most improvement; random settings before `startup_trials`."""

    origin = "gp"

    def __init__(
        self, space: Space, seed: int, fixed: Knobs, *, allow_repeats: bool = False, startup_trials: int = 10
    ) -> None:
        super().__init__(space, seed, fixed, allow_repeats=allow_repeats)
        self._startup_trials = startup_trials
        self._domains = tuple(space.domains.values())
        self._learned: dict[int, Floats] = {}

    def _settings(self, state: SearchState, k: int, taken: set[object]) -> Iterable[Setting]:
        return itertools.chain(self._modelled(state, k, taken), self._random_settings(state, k))

    def _modelled(self, state: SearchState, k: int, taken: set[object]) -> Iterator[Setting]:
        import numpy as np

        places, values = self._history(state.direction)
        if len(values) < self._startup_trials or np.isnan(values).all():
            return
        rng = np.random.default_rng(self._rng(state).getrandbits(64))
        model, known = self._model(places, values), memorable(values.tolist())
        places, values = places[known], values[known]
        best = float(model.mean(self._points(places)).min())  # a measured one may have been lucky

        def promise(pool: "Floats") -> "Floats":
            points = self._points(pool)
            variance = model.signal - (model.root(points) ** 2).sum(axis=0)
            return _log_improvement(best, model.mean(points), variance)

        parents = places[np.argsort(values, kind="stable")[:_PARENTS]]  # NaN comes last
        pool = np.concatenate([self._varied(rng, parents, _POOL[0]), rng.random((_POOL[1], len(self._domains)))])
        promising = pool[np.argsort(-promise(pool), kind="stable")[: 2 * _PARENTS]]
        pool = self._snapped(np.concatenate([pool, self._varied(rng, promising, _POOL[2])]))
        yield from self._chosen(pool, best, model, state, taken)

    def _chosen(
        self, pool: "Floats", best: float, model: Process, state: SearchState, taken: set[object]
    ) -> Iterator[Setting]:
        """Of the pool the most promising, and again after it was measured as expected, and so on.

        What is under way is taken to have been measured as expected first.
        """
        import numpy as np

        pending = [self._place(setting) for setting in self._pending(state)]
        pool = np.concatenate([np.array(pending).reshape(len(pending), pool.shape[1]), pool])
        points = self._points(pool)
        mean, root = model.mean(points), model.root(points)
        variance = model.signal - (root**2).sum(axis=0)
        left = np.ones(len(pool), dtype=bool)

        def measured(i: int) -> None:
            nonlocal best, root, variance
            best = min(best, float(mean[i]))
            common = model.prior(points, points[i : i + 1])[:, 0] - root.T @ root[:, i]
            root = np.vstack([root, common / math.sqrt(max(variance[i], 0.0) + model.noise)])
            variance = variance - root[-1] ** 2

        for i in range(len(pending)):
            left[i] = False
            measured(i)
        while left.any():
            promise = np.where(left, _log_improvement(best, mean, variance), -np.inf)
            for i in np.argsort(-promise, kind="stable")[: left.sum()]:
                left[i] = False
                places = zip(self._space.domains.items(), pool[i], strict=True)
                setting = {name: value_at(domain, float(place)) for (name, domain), place in places}
                if self._may(setting, state, taken):
                    break
            else:
                return
            yield setting
            measured(i)

    def _model(self, places: "Floats", values: "Floats") -> Process:
        """Of the outcomes so far; its lengths are those of the newest multiple of _REFIT, so that K=1 is no slower."""
        import numpy as np

        num = len(values) // _REFIT * _REFIT
        lessons = slice(max(num - _LESSONS, 0), num)
        if np.isnan(values[lessons]).all():
            num, lessons = len(values), slice(len(values))
        if num not in self._learned:
            points = self._points(places[lessons])
            self._learned = {num: most_probable(points, _evened(values[lessons]))}
        known = memorable(values.tolist())
        return Process(self._points(places[known]), _evened(values[known]), self._learned[num])

    def _history(self, direction: Direction) -> "tuple[Floats, Floats]":
        """Places (N, knobs) of past settings inside the space, values (N,) to minimize, NaN of what failed."""
        import numpy as np

        sign = 1.0 if direction is Direction.min else -1.0
        rows, values = [], []
        for outcome in self._outcomes:
            setting = self._space.setting(outcome)
            if setting is not None and outcome.status not in _NO_FAULT:
                rows.append(self._place(setting))
                values.append(math.nan if outcome.value is None else sign * outcome.value)
        return np.array(rows).reshape(len(rows), len(self._domains)), np.array(values)

    def _place(self, setting: Knobs) -> list[float]:
        """In the unit cube."""
        return [fraction(domain, setting[name]) for name, domain in self._space.domains.items()]

    def _varied(self, rng: Any, parents: "Floats", num: int) -> "Floats":
        """Children of random parents: some knobs a step away, choices drawn anew."""
        import numpy as np

        children = parents[rng.integers(len(parents), size=num)]
        scale = np.exp(rng.uniform(*np.log(_SCALES), (num, 1)))
        share = rng.uniform(1 / len(self._domains), 1, (num, 1)) ** 2
        moved = rng.random(children.shape) < np.maximum(share, 1.5 / len(self._domains))
        cell = np.array([1 / cells if (cells := num_cells(d)) else 0.0 for d in self._domains])
        steps = rng.standard_normal(children.shape) * np.maximum(scale, cell)
        choice = np.array([d.type is KnobType.choice for d in self._domains])
        anew = np.where(choice, rng.random(children.shape), np.abs(children + steps))
        anew = np.where(anew > 1, np.maximum(2 - anew, 0), anew)  # reflected at both ends
        varied: Floats = np.where(moved, anew, children)
        return varied

    def _snapped(self, places: "Floats") -> "Floats":
        """Each place in the middle of its cell, where it has one."""
        import numpy as np

        cells = np.array([num_cells(d) for d in self._domains])
        width = 1 / np.maximum(cells, 1)
        snapped: Floats = np.where(cells > 0, (np.minimum(places // width, cells - 1) + 0.5) * width, places)
        return snapped

    def _points(self, places: "Floats") -> "Floats":
        """What the kernels see: numbers as they lie, each choice as a dimension of its own."""
        import numpy as np

        columns = []
        for column, domain in zip(self._snapped(places).T, self._domains, strict=True):
            if domain.type is KnobType.choice:
                cell = (column * len(domain.choices)).astype(int)
                columns += [(cell == i) / math.sqrt(2) for i in range(len(domain.choices))]
            else:
                columns.append(column)
        return np.column_stack(columns)


def _evened(values: "Floats") -> "Floats":
    """Values with mean 0 and variance 1: near the best as they are, far away by their logarithm; NaN is the worst."""
    import numpy as np

    above = np.where(np.isnan(values), np.nanmax(values), values) - np.nanmin(values)
    even = np.log1p(above / max(float(np.quantile(above, 0.25)), _LEAST))
    centred: Floats = (even - even.mean()) / (float(even.std()) or 1.0)
    return centred


def _log_improvement(best: float, mean: "Floats", variance: "Floats") -> "Floats":
    """Logarithm of the expected improvement below best."""
    import numpy as np
    from scipy.special import log_ndtr

    spread = np.sqrt(np.maximum(variance, _LEAST))
    ahead = (best - mean) / spread
    density = -(ahead**2) / 2 - math.log(2 * math.pi) / 2
    ratio = np.exp(np.minimum(log_ndtr(ahead) - density, 700.0))
    near = np.log(np.maximum(1 + ahead * ratio, 1e-15))
    far = -2 * np.log(np.maximum(-ahead, 1.0))  # where 1 + ahead * ratio is lost to rounding
    improvement: Floats = np.log(spread) + density + np.where(ahead < -100, far, near)
    return improvement
