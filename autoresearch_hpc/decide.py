"""Verdicts: what a round's results make of its candidates, by the rule that the configuration fixed beforehand.

This is the seam between a run's history and `promotion`, which knows the statistics; `views` chooses which values
count. Only results of one *kind* (GPU model, tier, data, harness, torch) are ever compared. Everything follows from the
history, so a resumed run decides as one that never stopped.

Where the plan validates, the best of a round by their screening are run again on another tier, and what is kept is
decided there alone: those trials were not picked for their values, so they are a sample of their own. With `tiers=any`
each candidate is compared on the kind that it ran on, and the looks bring the contested ones onto one.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from autoresearch_hpc.config import DecideConfig
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.gains import Comparison, Gain, Noise
from autoresearch_hpc.history import History, Round
from autoresearch_hpc.promotion import (
    Call,
    Finding,
    Look,
    Prior,
    Significant,
    as_gain,
    best,
    difference,
    effect_prior,
    shrink,
)
from autoresearch_hpc.promotion import Judgement as LookJudgement
from autoresearch_hpc.promotion import judge as judge_look
from autoresearch_hpc.records import Direction, Verdict
from autoresearch_hpc.tiers import Tiers
from autoresearch_hpc.views import (
    BASELINE,
    VALIDATION,
    View,
    counting,
    differences,
    looked,
    noise_of,
    sample_of,
    standing,
    views_of,
)

__all__ = [
    "Further",
    "Judgement",
    "beside",
    "further",
    "judge",
    "most_further",
    "num_replicates",
    "require_known",
]

_log = logging.getLogger(__name__)
REMEASUREMENT = "remeasurement"
_NOT_COMPARED = "not compared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A verdict for every candidate, what is to be said of each, and the incumbent from now on.

    `incumbent` is None after a baseline that failed. `noise` says how far replicates spread, None where nothing is
    known of it. `pool` are the round's near misses, best first. `over_baseline` is what the incumbent has gained on the
    baseline; None while it is the baseline, or where the two were never run on the same kind.
    """

    verdicts: Mapping[str, Verdict]
    findings: Mapping[str, Comparison]
    incumbent: str | None
    noise: Noise | None = None
    pool: tuple[str, ...] = ()
    over_baseline: Gain | None = None


def require_known(config: DecideConfig) -> None:
    """Raise ConfigError where there is no such rule."""
    if config.rule not in _RULES:
        raise ConfigError(f"decide.rule={config.rule} is unknown", f"the rules are {', '.join(sorted(_RULES))}")


def beside(history: History, config: DecideConfig, tiers: Tiers) -> dict[str, int]:
    """Tier -> trials to send along with the next candidates: of the incumbent, until it has been run often enough."""
    more = {tier: num_replicates(config) - _num_trials(history, tier, tiers) for tier in tiers.used}
    return {tier: count for tier, count in more.items() if count > 0}


def _num_trials(history: History, tier: str, tiers: Tiers) -> int:
    """Trials of the incumbent there: run, under way or waiting for a slot. The baseline's first is in its own array."""
    entry = history.find(standing(history))
    if entry is None or entry.candidate is None:
        return int(tier == tiers.screens[0])
    begun = [trial.tier for trial in entry.trials if trial.dropped is None and (trial.job_name or trial.result)]
    lacking = [(want, n) for round_ in history.open_rounds for want, n in round_.missing.items()]
    waiting = sum(n for want, n in lacking if want.candidate == entry.id and want.tier in (tier, ""))
    return sum(each in (tier, "") for each in begun) + waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class Further:
    """Trials that a round needs before it can be judged, on one tier: candidate -> how many."""

    stage: str
    tier: str
    trials: Mapping[str, int]


def further(history: History, round_: Round, config: DecideConfig, tiers: Tiers) -> Further | None:
    """What the results so far ask for; None where the round can be judged."""
    views = views_of(history, round_, tiers.screens)
    if not any(sample.all for view in views for sample in view.candidates):
        return None
    for view in views:
        if not view.incumbent.all and any(sample.all for sample in view.candidates):
            return _remeasured(round_, view, config)
    if tiers.validates:
        return _validation(history, round_, views[0], config, tiers)
    if config.rule == "best":
        return _contested(history, round_, views, config, tiers)
    said = _by_significance(views, config, noise_of(history, views, config), None)
    if not said.again:
        return None
    trials = dict.fromkeys(said.again, said.fresh) | (
        {views[0].incumbent.candidate: said.controls} if said.controls else {}
    )
    return Further(stage=f"look {views[0].look + 1}", tier=_one_tier(history, round_, said.again, tiers), trials=trials)


def _remeasured(round_: Round, view: View, config: DecideConfig) -> Further | None:
    """The incumbent on a kind that it was never run on, once: it may fail, or the budget may have no room."""
    stage = f"{REMEASUREMENT} on {view.tier}" if view.tier else REMEASUREMENT
    if stage in round_.stages:
        return None
    incumbent = view.incumbent.candidate
    _log.warning("round=%d: %s was never run on %s: a new baseline is taken", round_.index, incumbent, view.kind)
    return Further(stage=stage, tier=view.tier, trials={incumbent: num_replicates(config)})


def _validation(history: History, round_: Round, screened: View, config: DecideConfig, tiers: Tiers) -> Further | None:
    """The best of the round on the other tier, with controls; None once they were run there."""
    assert tiers.validates
    if VALIDATION in round_.stages:
        view = View.of(history, round_, tiers.validates)
        lost = view and not view.incumbent.all and any(sample.all for sample in view.candidates)
        return _remeasured(round_, view, config) if view and lost else None
    best_first = sorted(
        (sample for sample in screened.candidates if sample.all),
        key=lambda sample: (sample.mean if history.direction is Direction.min else -sample.mean, sample.candidate),
    )
    trials = {sample.candidate: tiers.seeds for sample in best_first[: tiers.top]}
    known = _num_trials(history, tiers.validates, tiers)
    if config.rule == "significant" and (controls := min(config.controls, config.incumbent_trials - known)) > 0:
        trials[screened.incumbent.candidate] = controls
    return Further(stage=VALIDATION, tier=tiers.validates, trials=trials)


def _contested(
    history: History, round_: Round, views: Sequence[View], config: DecideConfig, tiers: Tiers
) -> Further | None:
    """The best of each kind that beats the incumbent there, brought onto one."""
    winners = [best(v.incumbent, v.candidates, v.direction, config.min_delta) for v in views]
    ahead = [winner for winner in winners if winner]
    if views[0].look or len(ahead) < 2:
        return None
    tier = _one_tier(history, round_, ahead, tiers)
    elsewhere = [id_ for id_ in ahead if all(trial.tier != tier for trial in history.entry(id_).trials)]
    return Further(stage="look 1", tier=tier, trials=dict.fromkeys(elsewhere, 1))


def _one_tier(history: History, round_: Round, candidates: Sequence[str], tiers: Tiers) -> str:
    """Where a look runs: where the looks before it ran, else where most of these candidates have run already."""
    if len(tiers.screens) == 1:
        return tiers.screens[0]
    ran = looked(history, round_) or [t.tier for id_ in candidates for t in counting(history.entry(id_))]
    return min(tiers.screens, key=lambda tier: -ran.count(tier))


def judge(history: History, round_: Round, config: DecideConfig, tiers: Tiers) -> Judgement:
    """The round's verdicts. Without an incumbent the baseline becomes it, for the others to beat."""
    views = views_of(history, round_, (tiers.validates,) if tiers.validates else tiers.screens)
    verdicts = {e.id: Verdict.DISCARD if e.value is not None else Verdict.CRASH for e in round_.entries.values()}
    if not views:
        return Judgement(verdicts=verdicts, findings={}, incumbent=None)
    view = views[0]
    if history.incumbent is None and BASELINE in verdicts:
        verdicts[BASELINE] = Verdict.KEEP
    findings = _screened_out(history, round_, config, tiers) if tiers.validates else {}
    if tiers.validates and VALIDATION not in round_.stages:  # nothing had a score, or the round is the baseline's
        views = [replace(view, candidates=(), elsewhere={})]
    for each in views:
        if not each.incumbent.all:  # nothing to compare with: the budget had no room for a new baseline
            note = f"never compared: the incumbent was not run on {each.kind}"
            findings |= {s.candidate: Comparison(call=_NOT_COMPARED, note=note) for s in each.candidates}
    views = [each for each in views if each.incumbent.all]
    if not views:
        return Judgement(verdicts=verdicts, findings=findings, incumbent=view.incumbent.candidate)
    noise = noise_of(history, views, config)
    prior = effect_prior(differences(history, views, noise), noise)
    said = _RULES[config.rule](views, config, noise, prior)
    findings |= {f.candidate: f.record for f in said.findings}
    for each in views:
        for id_, kind in each.elsewhere.items():
            note = f"ran on {kind}, the round's others on {each.kind}"
            findings[id_] = Comparison(call=_NOT_COMPARED, note=note)
    if said.promote:
        verdicts[said.promote] = Verdict.KEEP
    return Judgement(
        verdicts=verdicts,
        findings=findings,
        incumbent=said.promote or view.incumbent.candidate,
        noise=noise if noise.known else None,
        pool=said.pool,
        over_baseline=_over_baseline(history, views, said.promote, noise, prior),
    )


def _screened_out(history: History, round_: Round, config: DecideConfig, tiers: Tiers) -> dict[str, Comparison]:
    """What the screening said of each candidate; of those that were validated, that is said instead."""
    views = [view for view in views_of(history, round_, tiers.screens) if view.incumbent.all]
    if not views:
        return {}
    noise = noise_of(history, views, config)
    prior = effect_prior(differences(history, views, noise), noise)
    said = _by_best(views, config, noise, prior)
    found = [f if f.difference is None else replace(f, call=Call.SCREENED_OUT) for f in said.findings]
    return {finding.candidate: finding.record for finding in found}


def most_further(config: DecideConfig, k: int) -> list[int]:
    """Trials of each look after a round of k candidates, at most: controls included, failures not."""
    if config.rule == "best":
        return []
    sizes, still_in, controls = [], k, max(0, config.incumbent_trials - config.replicates)
    for look in config.looks:
        still_in = min(still_in, look.keep + config.simplify)
        along = min(config.controls, controls)
        controls -= along
        sizes.append(still_in * look.fresh + along)
    return sizes


def num_replicates(config: DecideConfig) -> int:
    """Trials that an incumbent has before it is compared with."""
    return 1 if config.rule == "best" else config.replicates


def _by_best(views: Sequence[View], config: DecideConfig, noise: Noise, prior: Prior | None) -> LookJudgement:
    """Takes numbers at their face value, but says what they are worth where the noise is known.

    Of winners on several kinds the one that the look was won by; without one, the one with the largest gain.
    """
    winners: dict[str, float] = {}
    k, findings = sum(bool(sample.all) for view in views for sample in view.candidates), []
    for view in views:
        winner = best(view.incumbent, view.candidates, view.direction, config.min_delta)
        for sample in view.candidates:
            if not sample.all:
                findings.append(Finding(candidate=sample.candidate, call=Call.FAILED))
                continue
            observed = difference(sample, view.incumbent, noise, view.direction)
            if sample.candidate == winner and (view is views[0] or not view.look):
                winners[winner] = observed.gain
            effect = shrink(observed, prior, noise) if prior else None
            findings.append(
                Finding(
                    candidate=sample.candidate, call=Call.DISCARD, difference=observed, k=k, df=noise.df, effect=effect
                )
            )
    promote = max(winners, key=lambda id_: winners[id_], default=None)
    called = [replace(f, call=Call.PROMOTE) if f.candidate == promote else f for f in findings]
    return LookJudgement(findings=tuple(called), promote=promote)


def _by_significance(views: Sequence[View], config: DecideConfig, noise: Noise, prior: Prior | None) -> LookJudgement:
    first, others = views[0], [(view.incumbent, view.candidates) for view in views[1:]]
    return judge_look(
        _significant(config, validated=first.validated),
        *(first.look, noise, first.incumbent, first.candidates, first.direction, prior),
        elsewhere=others,
    )


_RULES: dict[str, Callable[[Sequence[View], DecideConfig, Noise, Prior | None], LookJudgement]] = {
    "best": _by_best,
    "significant": _by_significance,
}


def _over_baseline(
    history: History, views: Sequence[View], winner: str | None, noise: Noise, prior: Prior | None
) -> Gain | None:
    """From the baseline to the new incumbent: the steps between all incumbents, each with every trial of its two.

    The steps add up to the difference of the last and the first, whatever became of those between. What was picked out
    were the steps, so it is they that are shrunk. Their errors partly cancel; the expected gain's margin does not count
    on that.
    """
    kept = [entry.id for entry in history.kept] or [BASELINE]
    chain = [*kept, *([winner] if winner else [])]
    known = ([sample_of(history.entry(id_), view.kind, 1) for id_ in chain] for view in views)
    samples = next((each for each in known if all(sample.all for sample in each)), [])
    if len(samples) < 2:
        return None
    steps = [difference(new, old, noise, history.direction) for old, new in pairwise(samples)]
    whole = as_gain(difference(samples[-1], samples[0], noise, history.direction), noise.df)
    effects = [effect for step in steps if prior and (effect := shrink(step, prior, noise))]
    if not effects or whole.margin is None:
        return whole
    expected = math.fsum(effect.gain for effect in effects)
    return replace(whole, expected=expected, expected_margin=math.hypot(*(e.high - e.gain for e in effects)))


def _significant(config: DecideConfig, *, validated: bool = False) -> Significant:
    """The rule; a validation takes the place of the looks, with all of alpha to spend."""
    looks = (
        () if validated else tuple(Look(keep=x.keep, fresh=x.fresh, ahead=x.ahead, share=x.share) for x in config.looks)
    )
    return Significant(
        alpha=config.alpha,
        looks=looks,
        replicates=config.replicates,
        controls=config.controls,
        incumbent_trials=config.incumbent_trials,
        min_delta=config.min_delta,
        max_vram_mb=None if config.max_vram_gb is None else config.max_vram_gb * 1024,
        price_per_gb=config.price_per_gb,
        simplify=config.simplify,
        simplify_margin=config.simplify_margin,
    )
