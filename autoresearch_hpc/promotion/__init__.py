"""Promotion: which candidate of a round, if any, takes the incumbent's place, told from luck.

Pure functions on frozen values: no files, no clock, no git. `noise` measures how far replicates spread, `dunnett` is
the distribution of the largest of K comparisons with one control, `samples` are values and their differences, `rules`
the settings and answers, `stages` the decision, `effects` what a gain is worth that was picked out for being large.

    screening = screen(rule, noise, incumbent, candidates, direction)   after the round's array
    judgement = confirm(rule, noise, incumbent, candidates, direction)  after a second, small one, if it was asked for
"""

from autoresearch_hpc.promotion.effects import Effect, Prior, effect_prior, shrink
from autoresearch_hpc.promotion.noise import KnownNoise, Noise, Replicates, pool
from autoresearch_hpc.promotion.rules import Call, Finding, Judgement, Screening, Significant, best
from autoresearch_hpc.promotion.samples import Difference, Sample, difference
from autoresearch_hpc.promotion.stages import confirm, screen

__all__ = [
    "Call",
    "Difference",
    "Effect",
    "Finding",
    "Judgement",
    "KnownNoise",
    "Noise",
    "Prior",
    "Replicates",
    "Sample",
    "Screening",
    "Significant",
    "best",
    "confirm",
    "difference",
    "effect_prior",
    "pool",
    "screen",
    "shrink",
]
