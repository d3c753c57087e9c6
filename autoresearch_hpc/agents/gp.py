"""Bayesian optimization with Gaussian processes: one of the scores, one of what fails.

Failures teach where not to look and nothing else: they are no scores. A round's K settings are chosen one after
another, each as if the ones before it had come out as expected, so they do not crowd. Candidates are changes, small and
large, of the best settings so far, and random ones; the models are built anew from the outcomes told.
Source: Jones et al. 1998 (expected improvement), Gardner et al. 2014 (times the chance to succeed), Desautels et al.
2014 (batches), Ament et al. 2023 (logarithms).
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from autoresearch_hpc.agents.cube import fraction, num_cells, value_at
from autoresearch_hpc.agents.gaussian import Process, most_probable
from autoresearch_hpc.agents.sampling import Sampler, Setting, effective
from autoresearch_hpc.config import KnobType
from autoresearch_hpc.records import Direction, Knobs, SearchState, Status
from autoresearch_hpc.space import Space

if TYPE_CHECKING:  # imported where it is used: only a run with this agent pays for it
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["GpAgent"]

_NO_FAULT = (Status.LOST, Status.CANCELLED)  # say nothing about the setting
_REFIT = 16  # so many outcomes more, and the kernels' lengths are learned again
_PARENTS = 8  # best settings that are varied
_POOL = (600, 200, 500)  # candidates: variations of the best, random ones, variations of the most promising of these
_SCALES = (0.01, 0.3)  # of a variation's steps, as a part of a knob's range


class GpAgent(Sampler):
    """Proposes what promises most improvement times its chance to run; random settings before `startup_trials`."""

    origin = "gp"

    def __init__(
        self, space: Space, seed: int, fixed: Knobs, *, allow_repeats: bool = False, startup_trials: int = 10
    ) -> None:
        super().__init__(space, seed, fixed, allow_repeats=allow_repeats)
        self._startup_trials = startup_trials
        self._domains = tuple(space.domains.values())
        self._learned: dict[tuple[str, int], Floats] = {}

    def _settings(self, state: SearchState, k: int, taken: set[object]) -> Iterable[Setting]:
        return itertools.chain(self._modelled(state, k, taken), self._random_settings(state, k))

    def _modelled(self, state: SearchState, k: int, taken: set[object]) -> Iterator[Setting]:
        import numpy as np

        places, values = self._history(state.direction)
        ok = ~np.isnan(values)
        if len(places) < self._startup_trials or ok.sum() < 2:
            return
        rng = np.random.default_rng(self._rng(state).getrandbits(64))
        score, fits = self._models(places, values)
        best = float(score.mean(self._points(places[ok])).min())

        def promise(pool: "Floats") -> "Floats":
            points = self._points(pool)
            spread = np.sqrt(np.maximum(score.signal - (score.root(points) ** 2).sum(axis=0), 1e-12))
            return _log_improvement(best, score.mean(points), spread) + _log_chance(fits, points)

        parents = places[ok][np.argsort(values[ok], kind="stable")[:_PARENTS]]
        pool = np.concatenate([self._varied(rng, parents, _POOL[0]), rng.random((_POOL[1], len(self._domains)))])
        promising = pool[np.argsort(-promise(pool), kind="stable")[: 2 * _PARENTS]]
        pool = self._snapped(np.concatenate([pool, self._varied(rng, promising, _POOL[2])]))
        yield from self._chosen(pool, best, score, fits, state, taken)

    def _chosen(
        self, pool: "Floats", best: float, score: Process, fits: Process | None, state: SearchState, taken: set[object]
    ) -> Iterator[Setting]:
        """Of the pool the most promising, and again after it was measured as expected, and so on."""
        import numpy as np

        points = self._points(pool)
        mean, root, chance = score.mean(points), score.root(points), _log_chance(fits, points)
        variance = score.signal - (root**2).sum(axis=0)
        left = np.ones(len(pool), dtype=bool)
        while left.any():
            spread = np.sqrt(np.maximum(variance, 1e-12))
            promise = np.where(left, _log_improvement(best, mean, spread) + chance, -np.inf)
            for i in np.argsort(-promise, kind="stable")[: left.sum()]:
                left[i] = False
                setting = {
                    name: value_at(d, u) for (name, d), u in zip(self._space.domains.items(), pool[i], strict=True)
                }
                if self._may(setting, state, taken):
                    break
            else:
                return
            yield setting
            best = min(best, float(mean[i]))
            common = (score.prior(points, points[i : i + 1])[:, 0] - root.T @ root[:, i]) / math.sqrt(
                max(variance[i], 1e-12) + score.noise
            )
            root = np.vstack([root, common])
            variance = variance - common**2

    def _models(self, places: "Floats", values: "Floats") -> tuple[Process, Process | None]:
        """Of transformed scores, and of 1 where a setting ran and 0 where it failed; None where all ran."""
        import numpy as np

        ok, points = ~np.isnan(values), self._points(places)
        measured = _evened(values[ok])
        num = len(values) - len(values) % _REFIT if len(values) >= _REFIT else len(values)
        early = ok[:num].sum()
        if early < 2:
            num, early = len(values), ok.sum()
        if ("score", num) not in self._learned:
            self._learned = {("score", num): most_probable(points[ok][:early], _evened(values[ok][:early]))}
            self._learned["fits", num] = most_probable(points[:num], ok[:num] - 1.0)
        fits = None if ok.all() else Process(points, ok - 1.0, self._learned["fits", num])
        return Process(points[ok], measured, self._learned["score", num]), fits

    def _history(self, direction: Direction) -> "tuple[Floats, Floats]":
        """Places (N, knobs) of past settings inside the space, values (N,) to minimize, NaN of what failed."""
        import numpy as np

        sign = 1.0 if direction is Direction.min else -1.0
        rows, values = [], []
        for outcome in self._outcomes:
            setting = self._space.canonical(effective(outcome))
            if setting is not None and outcome.status not in _NO_FAULT:
                rows.append([fraction(d, setting[name]) for name, d in self._space.domains.items()])
                values.append(math.nan if outcome.value is None else sign * outcome.value)
        return np.array(rows).reshape(len(rows), len(self._domains)), np.array(values)

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
    """Values of variance 1 with their mean at 0: near the best as they are, far from it by their logarithm."""
    import numpy as np

    above = values - values.min()
    even = np.log1p(above / max(float(np.quantile(above, 0.25)), 1e-12))
    spread = float(even.std())
    centred: Floats = (even - even.mean()) / (spread or 1.0)
    return centred


def _log_chance(fits: Process | None, points: "Floats") -> "Floats":
    """Logarithm of the chance that a setting runs."""
    import numpy as np

    if fits is None:
        return np.zeros(len(points))
    chance: Floats = np.log(np.clip(1 + fits.mean(points), 1e-3, 1))
    return chance


def _log_improvement(best: float, mean: "Floats", spread: "Floats") -> "Floats":
    """Logarithm of the expected improvement below best."""
    import numpy as np
    from scipy.special import log_ndtr

    ahead = (best - mean) / spread
    density = -(ahead**2) / 2 - math.log(2 * math.pi) / 2
    ratio = ahead * np.exp(np.minimum(log_ndtr(ahead) - density, 700))
    far = np.log(1 / np.maximum(ahead**2, 1))  # to first order; the rest is lost to rounding out there
    near = np.log(np.maximum(1 + ratio, 1e-15))
    improvement: Floats = np.log(spread) + density + np.where(ahead < -100, far, near)
    return improvement
