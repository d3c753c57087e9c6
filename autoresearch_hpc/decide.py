"""Verdicts: what a round's results make of its candidates, by the rule that the configuration fixed beforehand.

This is the seam between a run's history and `promotion`, which knows the statistics: here it is chosen which values
count. Only results of one *kind* (GPU model, tier, data, harness, torch) are ever compared. Everything follows from the
history, so a resumed run decides as one that never stopped.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from autoresearch_hpc.config import DecideConfig
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.history import Entry, History, Round
from autoresearch_hpc.promotion import (
    Difference,
    Finding,
    KnownNoise,
    Look,
    Noise,
    Replicates,
    Sample,
    Significant,
    best,
    difference,
    effect_prior,
    pool,
)
from autoresearch_hpc.promotion import Judgement as LookJudgement
from autoresearch_hpc.promotion import judge as judge_look
from autoresearch_hpc.records import Status, TrialResult, Verdict, candidate_id

__all__ = ["BASELINE", "Further", "Judgement", "beside", "further", "judge", "require_known"]

_log = logging.getLogger(__name__)
BASELINE = candidate_id(0, 0)
REMEASUREMENT = "remeasurement"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A verdict for every candidate, what is to be said of each, and the incumbent from now on.

    `incumbent` is None after a baseline that failed. `noise` says how far replicates spread.
    """

    verdicts: Mapping[str, Verdict]
    findings: Mapping[str, str]
    incumbent: str | None
    noise: str = ""


def require_known(config: DecideConfig) -> None:
    """Raise ConfigError where there is no such rule."""
    if config.rule not in _RULES:
        raise ConfigError(f"decide.rule={config.rule} is unknown", f"the rules are {', '.join(sorted(_RULES))}")


def beside(history: History, round_: Round, config: DecideConfig) -> dict[str, int]:
    """Trials to send along with the round's candidates: of the incumbent, until it has been run often enough."""
    incumbent = history.incumbent.candidate if history.incumbent else BASELINE
    known = len(history.entry(incumbent).results) or round_.wanted.get(incumbent, 0)
    more = _num_replicates(config) - known
    return {incumbent: more} if more > 0 else {}


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
        return Further(stage=REMEASUREMENT, trials={incumbent: _num_replicates(config)})
    if config.rule == "best":
        return None
    said = _significance(history, round_, view, config)
    if not said.again:
        return None
    trials = dict.fromkeys(said.again, said.fresh) | ({incumbent: said.controls} if said.controls else {})
    return Further(stage=f"look {_num_looks(round_) + 1}", trials=trials)


def judge(history: History, round_: Round, config: DecideConfig) -> Judgement:
    """The round's verdicts. Without an incumbent the baseline becomes it, for the others to beat."""
    view = _View.of(history, round_)
    verdicts = {e.id: Verdict.DISCARD if e.value is not None else Verdict.CRASH for e in round_.entries.values()}
    if view is None:
        return Judgement(verdicts=verdicts, findings={}, incumbent=None)
    if history.incumbent is None and BASELINE in verdicts:
        verdicts[BASELINE] = Verdict.KEEP
    if not view.incumbent.all:  # nothing to compare with: the budget had no room for a new baseline
        findings = {s.candidate: f"never compared: the incumbent was not run on {view.kind}" for s in view.candidates}
        return Judgement(verdicts=verdicts, findings=findings, incumbent=view.incumbent.candidate)
    winner, findings, noise = _RULES[config.rule](history, round_, view, config)
    for id_, kind in view.elsewhere.items():
        findings[id_] = f"ran on {kind}, where the incumbent did not"
    if winner:
        verdicts[winner] = Verdict.KEEP
    return Judgement(verdicts=verdicts, findings=findings, incumbent=winner or view.incumbent.candidate, noise=noise)


_Answer = tuple[str | None, dict[str, str], str]


def _by_best(history: History, round_: Round, view: "_View", config: DecideConfig) -> _Answer:
    return best(view.incumbent, view.candidates, history.direction, config.min_delta), {}, ""


def _by_significance(history: History, round_: Round, view: "_View", config: DecideConfig) -> _Answer:
    said = _significance(history, round_, view, config)
    findings = {f.candidate: _words(f) for f in said.findings if f.difference}
    return said.promote, findings, _noise(history, view.kind, config).words


_RULES: dict[str, Callable[[History, Round, "_View", DecideConfig], _Answer]] = {
    "best": _by_best,
    "significant": _by_significance,
}


def _significance(history: History, round_: Round, view: "_View", config: DecideConfig) -> LookJudgement:
    noise = _noise(history, view.kind, config)
    prior = effect_prior(_differences(history, view.kind, noise), noise)
    rule, look = _significant(config), _num_looks(round_)
    return judge_look(rule, look, noise, view.incumbent, view.candidates, history.direction, prior)


def _num_looks(round_: Round) -> int:
    return sum(stage.startswith("look") for stage in round_.stages)


def _num_replicates(config: DecideConfig) -> int:
    return 1 if config.rule == "best" else config.replicates


def _words(finding: Finding) -> str:
    shrunk = f", expected {finding.effect.words}" if finding.effect else ""
    return f"{finding.call.value}: {finding.words}{shrunk}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """A round's values, as far as they can be compared: those of one kind."""

    kind: str
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
        kinds = Counter(map(_kind, results)) or Counter(_kind(r) for r in entry.results if r.status is Status.OK)
        kind = kinds.most_common(1)[0][0]
        rivals = [e for e in round_.entries.values() if e.id != incumbent]
        return cls(
            kind=kind,
            incumbent=_sample(entry, kind, len(entry.trials)),
            candidates=tuple(_sample(e, kind, round_.wanted.get(e.id, 1)) for e in rivals),
            elsewhere={e.id: _kind(r) for e in rivals if (r := e.result) and e.value is not None and not _of(e, kind)},
        )


def _kind(result: TrialResult) -> str:
    """What must be equal for two values to be compared, in words."""
    parts = [result.gpu.name or "CPU", f"tier {result.tier}"]
    parts += [f"torch {result.torch}"] if result.torch else []
    parts += [f"data {result.data_sha256[:8]}"] if result.data_sha256 else []
    parts += [f"harness {result.harness_sha256[:8]}"] if result.harness_sha256 else []
    return ", ".join(parts)


def _of(entry: Entry, kind: str) -> list[float]:
    return [r.metric.value for r in entry.results if r.metric.value is not None and _kind(r) == kind]


def _sample(entry: Entry, kind: str, num_screening: int) -> Sample:
    """A candidate's values: of its first trials, and of those under fresh seeds that followed."""
    first, later = entry.results[:num_screening], entry.results[num_screening:]
    values = [
        [r.metric.value for r in some if r.metric.value is not None and _kind(r) == kind] for some in (first, later)
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
        values = [r.metric.value for r in results if r.metric.value is not None and _kind(r) == kind]
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
