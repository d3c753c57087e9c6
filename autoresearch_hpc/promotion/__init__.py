"""Promotion: which candidate of a round, if any, takes the incumbent's place, told from luck.

Pure functions on frozen values: no files, no clock, no git. `noise` measures how far replicates spread, `dunnett` is
the distribution of the largest of K comparisons with one control, `samples` are values and their differences, `rules`
the settings and answers, `looks` the decision, `effects` what a gain is worth that was picked out for being large.

    judgement = judge(rule, 0, noise, incumbent, candidates, direction)     after the round's array
    judgement = judge(rule, 1, noise, incumbent, candidates, direction)     after a small one, while .again names any
"""

from autoresearch_hpc.promotion.effects import Effect, Prior, as_gain, effect_prior, shrink
from autoresearch_hpc.promotion.looks import judge
from autoresearch_hpc.promotion.noise import KnownNoise, Noise, Replicates, pool
from autoresearch_hpc.promotion.rules import Call, Finding, Judgement, Look, Significant, best
from autoresearch_hpc.promotion.samples import Difference, Sample, difference

__all__ = [
    "Call",
    "Difference",
    "Effect",
    "Finding",
    "Judgement",
    "KnownNoise",
    "Look",
    "Noise",
    "Prior",
    "Replicates",
    "Sample",
    "Significant",
    "as_gain",
    "best",
    "difference",
    "effect_prior",
    "judge",
    "pool",
    "shrink",
]
