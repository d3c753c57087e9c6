"""Main effects and two-factor interactions of knobs, from a run's results. Pure; see `model` for what is fitted."""

from autoresearch_hpc.effects.coding import Code, Coding, comparable
from autoresearch_hpc.effects.model import Model, fit

__all__ = ["MIN_FACTORS", "MIN_OUTCOMES", "Code", "Coding", "Model", "comparable", "fit", "worth_telling"]

from autoresearch_hpc.estimates import Effects
from autoresearch_hpc.gains import Noise
from autoresearch_hpc.records import Outcome
from autoresearch_hpc.space import Space

MIN_OUTCOMES = 8  # good ones: a half fraction of four factors, the smallest that tells main effects from interactions
MIN_FACTORS = 2


def worth_telling(outcomes: "list[Outcome] | tuple[Outcome, ...]", space: Space, noise: Noise | None) -> Effects | None:
    """The effects of a run, whoever proposed; None while too few results vary too few knobs."""
    model = fit(outcomes, space, noise)
    if model is None or model.effects.num_outcomes < MIN_OUTCOMES or len(model.coding.knobs) < MIN_FACTORS:
        return None
    return model.effects
