"""Main effects and two-factor interactions of knobs, from a run's results; see `model` for what is fitted.

A fit is pure. Its libraries are large, so a controller has it done in another process (`apart`).
"""

from collections.abc import Callable, Sequence

from autoresearch_hpc.effects.apart import FitProcess
from autoresearch_hpc.effects.coding import Code, Coding
from autoresearch_hpc.effects.model import Model, fit
from autoresearch_hpc.estimates import Effects
from autoresearch_hpc.gains import Noise
from autoresearch_hpc.records import Outcome
from autoresearch_hpc.space import Space

__all__ = ["MIN_OUTCOMES", "Code", "Coding", "Fit", "FitProcess", "Model", "fit", "worth_telling"]

Fit = Callable[[Sequence[Outcome], Space, Noise | None], Model | None]

MIN_OUTCOMES = 8  # good ones: as many as the smallest design that keeps main effects clear of interactions
_MIN_KNOBS = 2


def worth_telling(outcomes: Sequence[Outcome], space: Space, noise: Noise | None, by: Fit = fit) -> Effects | None:
    """The effects of a run, whoever proposed; None while too few results vary too few knobs."""
    good = sum(outcome.value is not None for outcome in outcomes)
    if good < MIN_OUTCOMES or len(space.names) < _MIN_KNOBS:  # asked first: the libraries take a second to come
        return None
    model = by(outcomes, space, noise)
    if model is None or model.effects.num_outcomes < MIN_OUTCOMES or len(model.coding.knobs) < _MIN_KNOBS:
        return None
    return model.effects
