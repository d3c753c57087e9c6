"""`significant`: screen all candidates with one trial each, confirm the few that matter, promote at most one.

Both stages compare means over *all* trials of a candidate and of the incumbent, and both correct for all K candidates
of the round, not only for those that were run again. So confirming only the best of the screening cannot raise the
error: had everyone been run again, the largest statistic would still pass the second bound with chance
alpha - alpha_screen at most, and running fewer can only lower it. The two stages' chances add up to alpha at most.

Source: Magirr, Jaki and Whitehead 2012, "A generalized Dunnett test for multi-arm multi-stage clinical studies with
treatment selection", Biometrika 99; the two bounds by Bonferroni, which costs little and needs no joint integral.
"""

from collections.abc import Sequence
from dataclasses import replace

from autoresearch_hpc.promotion.dunnett import critical
from autoresearch_hpc.promotion.effects import Prior, shrink
from autoresearch_hpc.promotion.noise import Noise
from autoresearch_hpc.promotion.rules import Call, Finding, Judgement, Screening, Significant, tie_break
from autoresearch_hpc.promotion.samples import Difference, Sample, difference
from autoresearch_hpc.records import Direction

__all__ = ["confirm", "screen"]


def screen(
    rule: Significant,
    noise: Noise,
    incumbent: Sample,
    candidates: Sequence[Sample],
    direction: Direction,
    prior: Prior | None = None,
) -> Screening:
    """What the round's array alone says. The incumbent's values include the array's controls."""
    compared = _compare(rule, noise, incumbent, candidates, direction)
    clear = [s for s, d in compared if _passes(rule, d, rule.alpha_screen, len(compared), noise)]
    calls: dict[str, Call] = {}
    promote, again = None, []
    if clear:
        promote = clear[0].candidate
        calls = {s.candidate: Call.NEAR_MISS for s in clear} | {promote: Call.PROMOTE}
    else:
        again = _worth_confirming(rule, noise, compared)
        calls = dict.fromkeys(again, Call.CONFIRM)
    return Screening(
        findings=_findings(rule, noise, candidates, compared, calls, prior),
        promote=promote,
        confirm=tuple(again),
        fresh=rule.fresh if again else 0,
        controls=rule.controls if again else 0,
    )


def confirm(
    rule: Significant,
    noise: Noise,
    incumbent: Sample,
    candidates: Sequence[Sample],
    direction: Direction,
    prior: Prior | None = None,
) -> Judgement:
    """The end of a round whose screening asked for more: all of its candidates, those run again with fresh values.

    The incumbent's values include the second array's controls, and the noise what that array told of it.
    """
    compared = _compare(rule, noise, incumbent, candidates, direction)
    again = [(s, d) for s, d in compared if s.fresh]
    winners = [s for s, d in again if _passes(rule, d, rule.alpha_confirm, len(compared), noise)]
    calls = {s.candidate: Call.NEAR_MISS for s, d in again if d.gain > 0}
    promote = winners[0].candidate if winners else None
    if promote:
        calls[promote] = Call.PROMOTE
    elif simpler := _simpler(rule, noise, compared):
        promote, calls[simpler] = simpler, Call.SIMPLER
    return Judgement(
        findings=_findings(rule, noise, candidates, compared, calls, prior),
        promote=promote,
        pool=tuple(s.candidate for s, _ in again if calls.get(s.candidate) is Call.NEAR_MISS),
    )


Compared = list[tuple[Sample, Difference]]


def _compare(
    rule: Significant, noise: Noise, incumbent: Sample, candidates: Sequence[Sample], direction: Direction
) -> Compared:
    """Everyone who has a score and keeps to the memory cap, best first."""
    eligible = [s for s in sorted(candidates, key=tie_break) if s.all and not _too_large(rule, s)]
    pairs = [(s, difference(s, incumbent, noise, direction, rule.price_per_gb)) for s in eligible]
    return sorted(pairs, key=lambda pair: -pair[1].gain)  # stable: ties stay in order


def _too_large(rule: Significant, sample: Sample) -> bool:
    cap, peak = rule.max_vram_mb, sample.peak_vram_mb
    return cap is not None and peak is not None and peak > cap


def _passes(rule: Significant, observed: Difference, alpha: float, k: int, noise: Noise) -> bool:
    if not noise.known or observed.gain < rule.min_delta or observed.gain <= 0:
        return False
    return observed.t > critical(alpha, k, observed.n, observed.n0, noise.df)


def _worth_confirming(rule: Significant, noise: Noise, compared: Compared) -> list[str]:
    """The best few that are ahead; while the noise is unknown, being ahead at all is enough."""
    ahead = [s for s, d in compared if d.gain > 0 and (d.t >= rule.futility or not noise.known)]
    chosen = [s.candidate for s in ahead[: rule.confirm]]
    if rule.simplify and rule.confirm:
        shorter = (s.candidate for s, d in compared if s.net_lines < 0 and d.gain + rule.simplify_margin > 0)
        first = next(shorter, None)
        chosen += [first] if first and first not in chosen else []
    return chosen


def _simpler(rule: Significant, noise: Noise, compared: Compared) -> str | None:
    """What removes most code among those shown to be worse by less than the margin, corrected for their number."""
    if not rule.simplify or not noise.known:
        return None
    family = [(s, d.shifted(rule.simplify_margin)) for s, d in compared if s.net_lines < 0]
    good = [
        s
        for s, d in family
        if s.fresh and d.gain > 0 and d.t > critical(rule.alpha_confirm, len(family), d.n, d.n0, noise.df)
    ]
    return min(good, key=tie_break).candidate if good else None


def _findings(
    rule: Significant,
    noise: Noise,
    candidates: Sequence[Sample],
    compared: Compared,
    calls: dict[str, Call],
    prior: Prior | None,
) -> tuple[Finding, ...]:
    """One for every candidate, in the order given."""
    differences = {s.candidate: d for s, d in compared}
    findings = []
    for sample in candidates:
        found = Finding(candidate=sample.candidate, call=calls.get(sample.candidate, Call.DISCARD))
        observed = differences.get(sample.candidate)
        if observed is None:
            call = Call.TOO_LARGE if sample.all else Call.FAILED
            findings.append(replace(found, call=call))
            continue
        effect = shrink(observed, prior, noise) if prior else None
        findings.append(replace(found, difference=observed, k=len(compared), df=noise.df, effect=effect))
    return tuple(findings)
