"""Verdicts: what a round's results make of its candidates, by the rule that the configuration fixed beforehand.

This is the seam between a run's history and `promotion`, which knows the statistics: here it is chosen which values
count. Only results of one *kind* (GPU model, tier, data, harness, torch) are ever compared. Everything follows from the
history, so a resumed run decides as one that never stopped.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from autoresearch_hpc.config import DecideConfig
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.gains import Comparison, Gain, Noise
from autoresearch_hpc.history import Entry, History, Round
from autoresearch_hpc.promotion import (
    Call,
    Difference,
    Finding,
    KnownNoise,
    Look,
    Prior,
    Replicates,
    Sample,
    Significant,
    as_gain,
    best,
    difference,
    effect_prior,
    pool,
    shrink,
)
from autoresearch_hpc.promotion import Judgement as LookJudgement
from autoresearch_hpc.promotion import judge as judge_look
from autoresearch_hpc.records import Direction, Status, Verdict, candidate_id

__all__ = [
    "BASELINE",
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
BASELINE = candidate_id(0, 0)
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


def beside(history: History, config: DecideConfig) -> dict[str, int]:
    """Trials to send along with the next candidates: of the incumbent, until it has been run often enough."""
    incumbent = history.incumbent
    known = len(history.entry(incumbent.candidate).results) if incumbent else 1  # the baseline is in its own array
    more = num_replicates(config) - known
    return {incumbent.candidate if incumbent else BASELINE: more} if more > 0 else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Further:
    """Trials that a round needs before it can be judged: candidate -> how many."""

    stage: str
    trials: Mapping[str, int]


def further(history: History, round_: Round, config: DecideConfig) -> Further | None:
    """What the results so far ask for; None where the round can be judged."""
    view = _View.of(history, round_)
    if view is None or not any(sample.all for sample in view.candidates):
        return None
    incumbent = view.incumbent.candidate
    if not view.incumbent.all:
        if REMEASUREMENT in round_.stages:  # it failed, or the budget had no room
            return None
        _log.warning("round=%d: %s was never run on %s: a new baseline is taken", round_.index, incumbent, view.kind)
        return Further(stage=REMEASUREMENT, trials={incumbent: num_replicates(config)})
    if config.rule == "best":
        return None
    said = _by_significance(view, config, _noise(history, view.kind, config), None)
    if not said.again:
        return None
    trials = dict.fromkeys(said.again, said.fresh) | ({incumbent: said.controls} if said.controls else {})
    return Further(stage=f"look {view.look + 1}", trials=trials)


def judge(history: History, round_: Round, config: DecideConfig) -> Judgement:
    """The round's verdicts. Without an incumbent the baseline becomes it, for the others to beat."""
    view = _View.of(history, round_)
    verdicts = {e.id: Verdict.DISCARD if e.value is not None else Verdict.CRASH for e in round_.entries.values()}
    if view is None:
        return Judgement(verdicts=verdicts, findings={}, incumbent=None)
    if history.incumbent is None and BASELINE in verdicts:
        verdicts[BASELINE] = Verdict.KEEP
    if not view.incumbent.all:  # nothing to compare with: the budget had no room for a new baseline
        note = f"never compared: the incumbent was not run on {view.kind}"
        findings = {s.candidate: Comparison(call=_NOT_COMPARED, note=note) for s in view.candidates}
        return Judgement(verdicts=verdicts, findings=findings, incumbent=view.incumbent.candidate)
    noise = _noise(history, view.kind, config)
    prior = effect_prior(_differences(history, view.kind, noise), noise)
    said = _RULES[config.rule](view, config, noise, prior)
    findings = {f.candidate: f.record for f in said.findings}
    for id_, kind in view.elsewhere.items():
        findings[id_] = Comparison(call=_NOT_COMPARED, note=f"ran on {kind}, the round's others on {view.kind}")
    if said.promote:
        verdicts[said.promote] = Verdict.KEEP
    return Judgement(
        verdicts=verdicts,
        findings=findings,
        incumbent=said.promote or view.incumbent.candidate,
        noise=noise if noise.known else None,
        pool=said.pool,
        over_baseline=_over_baseline(history, view, said.promote, noise, prior),
    )


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


def _by_best(view: "_View", config: DecideConfig, noise: Noise, prior: Prior | None) -> LookJudgement:
    """Takes numbers at their face value, but says what they are worth where the noise is known."""
    winner = best(view.incumbent, view.candidates, view.direction, config.min_delta)
    k, findings = sum(bool(sample.all) for sample in view.candidates), []
    for sample in view.candidates:
        if not sample.all:
            findings.append(Finding(candidate=sample.candidate, call=Call.FAILED))
            continue
        call = Call.PROMOTE if sample.candidate == winner else Call.DISCARD
        observed = difference(sample, view.incumbent, noise, view.direction)
        effect = shrink(observed, prior, noise) if prior else None
        found = Finding(candidate=sample.candidate, call=call, difference=observed, k=k, df=noise.df, effect=effect)
        findings.append(found)
    return LookJudgement(findings=tuple(findings), promote=winner)


def _by_significance(view: "_View", config: DecideConfig, noise: Noise, prior: Prior | None) -> LookJudgement:
    rule = _significant(config)
    return judge_look(rule, view.look, noise, view.incumbent, view.candidates, view.direction, prior)


_RULES: dict[str, Callable[["_View", DecideConfig, Noise, Prior | None], LookJudgement]] = {
    "best": _by_best,
    "significant": _by_significance,
}


def _over_baseline(
    history: History, view: "_View", winner: str | None, noise: Noise, prior: Prior | None
) -> Gain | None:
    """From the baseline to the new incumbent: the steps between all incumbents, each with every trial of its two.

    The steps add up to the difference of the last and the first, whatever became of those between. What was picked out
    were the steps, so it is they that are shrunk. Their errors partly cancel; the expected gain's margin does not count
    on that.
    """
    kept = [e.id for e in history.entries() if e.verdict is Verdict.KEEP] or [BASELINE]
    chain = [*kept, *([winner] if winner else [])]
    samples = [_sample(history.entry(id_), view.kind, 1) for id_ in chain]
    if len(samples) == 1 or not all(sample.all for sample in samples):
        return None
    steps = [difference(new, old, noise, history.direction) for old, new in pairwise(samples)]
    whole = as_gain(difference(samples[-1], samples[0], noise, history.direction), noise.df)
    effects = [effect for step in steps if prior and (effect := shrink(step, prior, noise))]
    if not effects or whole.margin is None:
        return whole
    expected = math.fsum(effect.gain for effect in effects)
    return replace(whole, expected=expected, expected_margin=math.hypot(*(e.high - e.gain for e in effects)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """A round's values, as far as they can be compared: those of one kind."""

    kind: str
    direction: Direction
    look: int  # how many there were; 0 after the round's own array
    incumbent: Sample
    candidates: tuple[Sample, ...]
    elsewhere: Mapping[str, str]  # candidate -> the kind that it ran on instead

    @classmethod
    def of(cls, history: History, round_: Round) -> "_View | None":
        """None where there is no incumbent: the baseline failed, or was never run."""
        incumbent = history.incumbent.candidate if history.incumbent else BASELINE
        entry = history.find(incumbent)
        if entry is None or entry.value is None:
            return None
        results = [t.result for t in round_.trials if t.dropped is None and t.result and t.result.status is Status.OK]
        kinds = Counter(r.kind for r in results or entry.results if r.status is Status.OK)
        kind = kinds.most_common(1)[0][0]
        rivals = [e for e in round_.entries.values() if e.id != incumbent]
        return cls(
            kind=kind,
            direction=history.direction,
            look=sum(stage.startswith("look") for stage in round_.stages),
            incumbent=_sample(entry, kind, len(entry.trials)),
            candidates=tuple(_sample(e, kind, round_.wanted.get(e.id, 1)) for e in rivals),
            elsewhere={e.id: r.kind for e in rivals if (r := e.result) and e.value is not None and not _of(e, kind)},
        )


def _of(entry: Entry, kind: str) -> list[float]:
    return [r.metric.value for r in entry.results if r.metric.value is not None and r.kind == kind]


def _sample(entry: Entry, kind: str, num_screening: int) -> Sample:
    """A candidate's values: of its first trials, and of those under fresh seeds that followed."""
    first, later = entry.results[:num_screening], entry.results[num_screening:]
    values = [
        [r.metric.value for r in some if r.metric.value is not None and r.kind == kind] for some in (first, later)
    ]
    peaks = [r.peak_vram_mb for r in entry.results if r.peak_vram_mb is not None]
    return Sample(
        candidate=entry.id,
        values=tuple(values[0]),
        fresh=tuple(values[1]),
        net_lines=entry.candidate.net_lines if entry.candidate else 0,
        peak_vram_mb=max(peaks, default=None),
    )


def _noise(history: History, kind: str, config: DecideConfig) -> Noise:
    """From every candidate that was run more than once; a value that it was picked for is no replicate."""
    groups = []
    for entry in history.entries():
        results = entry.results if entry.id == BASELINE else entry.results[1:]
        values = [r.metric.value for r in results if r.metric.value is not None and r.kind == kind]
        groups += [Replicates(kind=kind, values=tuple(values))] if values else []
    known = KnownNoise(sd=config.noise_sd, df=config.noise_df) if config.noise_sd else None
    return pool(groups, known)


def _differences(history: History, kind: str, noise: Noise) -> Iterator[Difference]:
    """Every candidate against the incumbent of its time."""
    bases = {e.candidate.commit: e for e in history.entries() if e.candidate}
    for round_ in history.rounds:
        base = bases.get(round_.base) or history.find(BASELINE)
        if base is None or not _of(base, kind):
            continue
        standing = _sample(base, kind, len(base.trials))
        for entry in round_.entries.values():
            if entry is not base and _of(entry, kind):
                yield difference(_sample(entry, kind, 1), standing, noise, history.direction)


def _significant(config: DecideConfig) -> Significant:
    return Significant(
        alpha=config.alpha,
        looks=tuple(Look(keep=x.keep, fresh=x.fresh, ahead=x.ahead, share=x.share) for x in config.looks),
        replicates=config.replicates,
        controls=config.controls,
        incumbent_trials=config.incumbent_trials,
        min_delta=config.min_delta,
        max_vram_mb=None if config.max_vram_gb is None else config.max_vram_gb * 1024,
        price_per_gb=config.price_per_gb,
        simplify=config.simplify,
        simplify_margin=config.simplify_margin,
    )
