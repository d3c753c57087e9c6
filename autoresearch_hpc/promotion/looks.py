"""`significant`: one trial each, then fresh seeds for the few that matter; at most one is promoted.

Every look compares means over *all* trials of a candidate and of the incumbent, and corrects for all K candidates of
the round, not only for those that were run again. So going on with the best alone cannot raise the error: had everyone
been run again, the largest statistic would pass the look's bound with the chance spent on it, and running fewer can
only lower that. The looks' chances add up to alpha.

Where a round's trials ran on several kinds of GPU, each candidate is compared with the incumbent's trials on its own
kind, and the chance is shared out among the kinds by their numbers of candidates. Two that pass on different kinds are
not promoted on that: the next look, which has a single kind, tells which is better.

Source: Magirr, Jaki and Whitehead 2012, "A generalized Dunnett test for multi-arm multi-stage clinical studies with
treatment selection", Biometrika 99; the looks' bounds by Bonferroni, which costs little and needs no joint integral.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from autoresearch_hpc.promotion.dunnett import critical
from autoresearch_hpc.promotion.effects import Prior, shrink
from autoresearch_hpc.promotion.noise import Noise
from autoresearch_hpc.promotion.rules import Call, Finding, Judgement, Significant, tie_break
from autoresearch_hpc.promotion.samples import Difference, Sample, difference
from autoresearch_hpc.records import Direction

__all__ = ["judge"]


class Compared(NamedTuple):
    """A candidate's difference to the incumbent, both on one kind of GPU, as one of `k` there."""

    sample: Sample
    observed: Difference
    k: int
    group: int  # which kind


def judge(
    rule: Significant,
    look: int,
    noise: Noise,
    incumbent: Sample,
    candidates: Sequence[Sample],
    direction: Direction,
    prior: Prior | None = None,
    elsewhere: Sequence[tuple[Sample, Sequence[Sample]]] = (),
) -> Judgement:
    """The judgement after `look` small arrays, 0 being the round's own array.

    `candidates` are always all of the round's, `incumbent` has every value that it ever earned, this round's controls
    included, and `noise` knows what they told. `elsewhere` has the same for each further kind of GPU: the incumbent
    there, and the candidates that ran there only. With `prior` the findings carry shrunk effects.
    """
    groups = [(incumbent, candidates), *elsewhere]
    compared = [found for i, group in enumerate(groups) for found in _compare(rule, *group, i, noise, direction)]
    compared.sort(key=lambda found: -found.observed.gain)  # stable: ties stay in order
    everyone = [sample for _, samples in groups for sample in samples]
    still_in = [c for c in compared if len(c.sample.fresh) > sum(each.fresh for each in rule.looks[: look - 1])]
    still_in = still_in if look else compared
    passed = [c for c in still_in if _passes(rule, look, c, len(compared), noise)]
    passing, contested = [c.sample.candidate for c in passed], _contested(rule, look, passed)
    promote = passing[0] if passing and not contested else None
    calls = dict.fromkeys(passing, Call.NEAR_MISS) | ({promote: Call.PROMOTE} if promote else {})
    again = [] if promote else contested or _worth_running(rule, look, still_in, noise)
    if again:
        return Judgement(
            findings=_findings(rule, everyone, compared, dict.fromkeys(again, Call.CONFIRM), noise, prior),
            again=tuple(again),
            fresh=rule.looks[look].fresh,
            controls=rule.controls_at_look(incumbent),
        )
    near = [s.candidate for s, d, *_ in compared if s.fresh and d.gain > 0 and d.t >= rule.near_miss]
    calls = dict.fromkeys(near, Call.NEAR_MISS) | calls
    if not promote and (simpler := _simpler(rule, compared, noise)):
        promote, calls[simpler] = simpler, Call.SIMPLER
    return Judgement(
        findings=_findings(rule, everyone, compared, calls, noise, prior),
        promote=promote,
        pool=tuple(s.candidate for s, *_ in compared if calls.get(s.candidate) is Call.NEAR_MISS),
    )


def _compare(
    rule: Significant, incumbent: Sample, candidates: Sequence[Sample], group: int, noise: Noise, direction: Direction
) -> list[Compared]:
    """Everyone who has a score and keeps to the memory cap; of equals the simpler first."""
    eligible = [s for s in sorted(candidates, key=tie_break) if s.all and not _too_large(rule, s)]
    return [
        Compared(s, difference(s, incumbent, noise, direction, rule.price_per_gb), len(eligible), group)
        for s in eligible
    ]


def _too_large(rule: Significant, sample: Sample) -> bool:
    cap, peak = rule.max_vram_mb, sample.peak_vram_mb
    return cap is not None and peak is not None and peak > cap


def _passes(rule: Significant, look: int, found: Compared, num_compared: int, noise: Noise) -> bool:
    observed = found.observed
    if not noise.known or observed.gain <= 0 or observed.gain < rule.min_delta:
        return False
    spend = rule.spend(look) * found.k / num_compared
    return observed.t > critical(spend, found.k, observed.n, observed.n0, noise.df)


def _contested(rule: Significant, look: int, passed: Sequence[Compared]) -> list[str]:
    """The best that passed and those on other kinds whose gain may be as large (two standard errors)."""
    if look == len(rule.looks) or not passed:
        return []
    best, *others = passed
    rivals = [
        c.sample.candidate
        for c in others
        if c.group != best.group
        and best.observed.gain - c.observed.gain < 2 * math.hypot(best.observed.se, c.observed.se)
    ]
    return [best.sample.candidate, *rivals[: max(1, rule.looks[look].keep - 1)]] if rivals else []


def _worth_running(rule: Significant, look: int, still_in: Sequence[Compared], noise: Noise) -> list[str]:
    """Who goes to the next look. While the noise is unknown, being ahead at all is enough."""
    if look == len(rule.looks):
        return []
    following = rule.looks[look]
    ahead = [s.candidate for s, d, *_ in still_in if d.gain > 0 and (d.t >= following.ahead or not noise.known)]
    chosen = ahead[: following.keep]
    if rule.simplify:  # the best that removes code and may be as good goes along
        shorter = [s.candidate for s, d, *_ in still_in if s.net_lines < 0 and d.gain + rule.simplify_margin > 0]
        chosen += [name for name in shorter[:1] if name not in chosen]
    return chosen


def _simpler(rule: Significant, compared: Sequence[Compared], noise: Noise) -> str | None:
    """What removes most code among those shown to be worse by less than the margin, corrected for their number.

    An error rate of its own, alpha: it is another claim, and is tested once, when the round ends (until the last look
    whoever could pass is run again).
    """
    if not rule.simplify or not noise.known:
        return None
    family = [(s, d.shifted(rule.simplify_margin)) for s, d, *_ in compared if s.net_lines < 0]
    proven = [s for s, d in family if s.fresh and d.t > critical(rule.alpha, len(family), d.n, d.n0, noise.df)]
    return min(proven, key=tie_break).candidate if proven else None


def _findings(
    rule: Significant,
    candidates: Sequence[Sample],
    compared: Sequence[Compared],
    calls: Mapping[str, Call],
    noise: Noise,
    prior: Prior | None,
) -> tuple[Finding, ...]:
    """One for every candidate, in the order given."""
    by_candidate = {found.sample.candidate: found for found in compared}
    findings = []
    for sample in candidates:
        found = by_candidate.get(sample.candidate)
        if found is None:
            call = Call.TOO_LARGE if sample.all else Call.FAILED
            findings.append(Finding(candidate=sample.candidate, call=call))
            continue
        findings.append(
            Finding(
                candidate=sample.candidate,
                call=calls.get(sample.candidate, Call.DISCARD),
                difference=found.observed,
                k=len(compared),
                k_alike=found.k,
                df=noise.df,
                effect=shrink(found.observed, prior, noise) if prior else None,
            )
        )
    return tuple(findings)
