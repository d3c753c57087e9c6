"""Least squares of results on coded settings: what each knob does, what two of them do together, and how sure that is.

Terms enter by rank: main effects, squares, interactions of two; each only where the trials tell it from those before
it. What they cannot tell apart is said to be aliased; of such interactions the one stands for all whose knobs matter
most by themselves (effect heredity). Squares that move together, as with centre points alone, are one
curvature. Every result counts with the number of its trials; trials of another kind (GPU, tier, data) have a level of
their own.

The error of a trial is pure: from settings that were run more than once, and from the run's noise. Where there is none
it is what the model leaves over, or else Lenth's pseudo standard error, which takes most effects for nothing. Where the
model does not fit (p < 0.05 against pure error) what it leaves over is taken, too: intervals then hold for what the
model lacks as well. Source: Montgomery 2017, chapters 6 and 11; Lenth 1989; Hamada
and Wu 1992.
"""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoresearch_hpc.effects.coding import Coding, Observation, comparable
from autoresearch_hpc.estimates import SIGNIFICANT, Effect, Effects, Term
from autoresearch_hpc.gains import Noise
from autoresearch_hpc.records import Knobs, Outcome
from autoresearch_hpc.space import Domain, Space

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

__all__ = ["Model", "estimate", "fit"]

_LEAST_GOOD = 3  # observations with a value
_LEAST_OWN = {Term.main: 0.05, Term.curvature: 0.2, Term.interaction: 0.2}  # of a column, not explained by earlier ones
_ALIASED = 0.5  # correlation from which on a term that did not enter is named beside one that did
_TOGETHER = 0.95  # correlation from which on squares are one
_FEW = 3  # residual degrees of freedom below which they say nothing of the error


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The fitted effects and how settings are coded for them."""

    coding: Coding
    effects: Effects

    def predict(self, setting: Knobs, keep: Container[str] | None = None) -> float:
        """The metric, from all terms or from those that `keep` names."""
        return self.effects.predict(self.coding.row(setting), keep)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    term: Term
    factors: tuple[str, ...]
    values: "Vector"

    @property
    def name(self) -> str:
        return Effect(term=self.term, factors=self.factors, estimate=0.0).name


def fit(outcomes: Sequence[Outcome], space: Space, noise: Noise | None = None) -> Model | None:
    """The model of all comparable outcomes; None where no knob was varied among the good ones.

    `noise` is that of one trial. Settings are those of the space; others are not looked at.
    """
    return estimate(comparable(outcomes, space), space.domains, noise)


def estimate(
    observations: Sequence[Observation], domains: Mapping[str, Domain], noise: Noise | None = None
) -> Model | None:
    """The same of what `comparable` has found."""
    import numpy as np

    good = [(o.value, o) for o in observations if o.value is not None]
    settings = [o.setting for _, o in good]
    coding = Coding.of(settings, domains) if good else Coding(codes=())
    if not coding.codes or len(good) < _LEAST_GOOD:
        return None
    y = np.array([value for value, _ in good])
    weights = np.array([float(o.num_trials) for _, o in good])
    blocks = _blocks([o.kind for _, o in good])
    rows = [coding.row(setting) for setting in settings]
    taken, aliases, lost = _choose(_columns(coding, rows, y), blocks, weights)
    if not taken:
        return None
    fitted = _least_squares(y, [*blocks, *(column.values for column in taken)], weights)
    groups = [(o.kind, *row.values()) for row, (_, o) in zip(rows, good, strict=True)]
    first = 1 + len(blocks)
    error = _error(fitted, first, y, weights, groups, noise)
    effects = tuple(
        _effect(column, float(fitted.params[i]), float(fitted.normalized_cov_params[i, i]), error, aliases[column.name])
        for i, column in enumerate(taken, start=first)
    )
    record = Effects(
        factors=tuple(code.factor for code in coding.codes),
        effects=effects,
        centre=float(fitted.params[0]),
        num_outcomes=len(good),
        num_failed=len(observations) - len(good),
        sd=error.sd,
        df=error.df,
        error=error.source,
        lack_of_fit=error.lack_of_fit,
        not_estimated=tuple(lost),
    )
    return Model(coding=coding, effects=record)


def _columns(coding: Coding, rows: Sequence[Mapping[str, float]], y: "Vector") -> list[_Column]:
    """All terms that could be, mains first; of interactions those first whose knobs have large effects themselves."""
    import numpy as np

    coded = {code.name: np.array([row[code.name] for row in rows]) for code in coding.codes}
    mains = [_Column(term=Term.main, factors=(name,), values=values) for name, values in coded.items()]
    squares = [
        _Column(term=Term.curvature, factors=(code.name,), values=coded[code.name] ** 2)
        for code in coding.codes
        if code.numeric and len(set(np.round(coded[code.name], 9))) > 2
    ]
    paired = [code.name for code in coding.codes if code.paired]
    products = [
        _Column(term=Term.interaction, factors=(a, b), values=coded[a] * coded[b])
        for a, b in itertools.combinations(paired, 2)
    ]
    size = {name: abs(_correlation(values, y)) for name, values in coded.items()}
    products.sort(key=lambda column: -size[column.factors[0]] * size[column.factors[1]])
    return [*mains, *_merged(squares), *products]


def _merged(squares: Sequence[_Column]) -> list[_Column]:
    """Squares that cannot be told from each other as their mean."""
    merged: list[list[_Column]] = []
    for square in squares:
        for group in merged:
            if abs(_correlation(group[0].values, square.values)) > _TOGETHER:
                group.append(square)
                break
        else:
            merged.append([square])
    return [
        _Column(
            term=Term.curvature,
            factors=tuple(column.factors[0] for column in group),
            values=sum((column.values for column in group[1:]), group[0].values) / len(group),
        )
        for group in merged
    ]


def _blocks(kinds: Sequence[str]) -> list["Vector"]:
    """A column for each kind of trial but the commonest: a faster GPU's scores differ as a whole."""
    import numpy as np

    others = [kind for kind, _ in Counter(kinds).most_common()[1:]]
    return [np.array([float(kind == other) for kind in kinds]) for other in others]


def _choose(
    columns: Sequence[_Column], blocks: Sequence["Vector"], weights: "Vector"
) -> tuple[list[_Column], Mapping[str, tuple[str, ...]], list[str]]:
    """The columns that enter, what each is aliased with, and what was not estimated at all."""
    import numpy as np

    root = np.sqrt(weights)
    basis = [root / np.linalg.norm(root)]
    for block in blocks:
        own = block * root
        for direction in basis:
            own = own - direction * (direction @ own)
        basis.append(own / np.linalg.norm(own))
    taken: list[_Column] = []
    aliases: dict[str, list[str]] = {}
    lost: list[str] = []
    for column in columns:
        centred = column.values * root
        centred = centred - basis[0] * (basis[0] @ centred)
        own = centred.copy()
        for direction in basis:
            own = own - direction * (direction @ own)
        size, whole = float(own @ own), float(centred @ centred)
        if whole > 1e-9 and size > _LEAST_OWN[column.term] * whole and len(basis) < len(root):
            basis.append(own / math.sqrt(size))
            taken.append(column)
            aliases[column.name] = []
        else:
            near = [t for t in taken if abs(_correlation(t.values, column.values)) > _ALIASED]
            for one in near:
                aliases[one.name].append(column.name)
            lost += [] if near else [column.name]
    return taken, {name: tuple(names) for name, names in aliases.items()}, lost


def _least_squares(y: "Vector", columns: Sequence["Vector"], weights: "Vector") -> Any:
    import numpy as np
    from statsmodels.regression.linear_model import WLS  # statsmodels.api imports twice as much

    matrix = np.column_stack([np.ones(len(y)), *columns])
    return WLS(y, matrix, weights=weights).fit()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Error:
    """Of one trial. Without degrees of freedom nothing is known."""

    sd: float | None
    df: float
    source: str
    lack_of_fit: float | None


def _error(
    fitted: Any, first: int, y: "Vector", weights: "Vector", groups: Sequence[object], noise: Noise | None
) -> _Error:
    import numpy as np
    from scipy import stats

    members: dict[object, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    pure, pure_df = 0.0, float(len(groups) - len(members))
    for own in members.values():
        if len(own) > 1:  # else it says nothing of the error
            pure += float(weights[own] @ (y[own] - np.average(y[own], weights=weights[own])) ** 2)
    left, left_df = float(fitted.ssr), float(len(y) - len(fitted.params))
    unexplained, unexplained_df = max(left - pure, 0.0), left_df - pure_df
    known = noise is not None and noise.known and noise.sd > 0
    total_df = pure_df + (noise.df if noise and known else 0.0)
    total = pure + (noise.df * noise.sd**2 if noise and known else 0.0)
    least = (1e-12 * max(float(np.abs(y).max()), 1e-300)) ** 2  # a metric without any luck has none
    odds = None
    if total_df and total / total_df > least:
        variance = total / total_df
        source = " and ".join(["replicates"] * bool(pure_df) + ["the run's noise"] * known)
        if unexplained_df > 0:
            odds = float(stats.f.sf(unexplained / unexplained_df / variance, unexplained_df, total_df))
        if odds is None or odds >= SIGNIFICANT or left_df < _FEW:
            return _Error(sd=math.sqrt(variance), df=total_df, source=source, lack_of_fit=odds)
    if left_df >= _FEW:
        source = "what the model leaves over"
        return _Error(sd=math.sqrt(max(left / left_df, least)), df=left_df, source=source, lack_of_fit=odds)
    return _lenth(fitted, first, odds)


def _lenth(fitted: Any, first: int, lack_of_fit: float | None) -> _Error:
    """From the effects themselves, the parameters from `first` on, where all are of one precision."""
    import numpy as np

    precision = np.sqrt(np.diag(fitted.normalized_cov_params)[first:])
    sizes = np.abs(np.asarray(fitted.params)[first:]) / precision  # each is of the standard deviation of one trial
    if len(sizes) < 7:
        return _Error(sd=None, df=0.0, source="", lack_of_fit=lack_of_fit)
    rough = 1.5 * statistics.median(sizes)
    pseudo = 1.5 * statistics.median([size for size in sizes if size <= 2.5 * rough])
    source = "Lenth's pseudo standard error"
    return _Error(sd=float(pseudo) or None, df=len(sizes) / 3, source=source, lack_of_fit=lack_of_fit)


def _effect(column: _Column, coefficient: float, variance: float, error: _Error, aliases: tuple[str, ...]) -> Effect:
    from scipy import stats

    scale = 1.0 if column.term is Term.curvature else 2.0
    margin = p = None
    if error.sd is not None and error.df:
        standard = error.sd * math.sqrt(variance)
        margin = scale * standard * float(stats.t.ppf(0.975, error.df))
        p = float(2 * stats.t.sf(abs(coefficient) / standard, error.df))
    return Effect(
        term=column.term, factors=column.factors, estimate=scale * coefficient, margin=margin, p=p, aliases=aliases
    )


def _correlation(a: "Vector", b: "Vector") -> float:
    import numpy as np

    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(np.clip(a @ b / size, -1, 1)) if size > 1e-12 else 0.0
