"""A round's values as far as they can be compared: those of one kind, beside the incumbent's of the same kind.

Which values count is chosen here, what they say is `promotion`'s: of a candidate its first trial and those under fresh
seeds that followed, of the noise every value that was no reason to pick a candidate.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from autoresearch_hpc.config import DecideConfig
from autoresearch_hpc.gains import Noise
from autoresearch_hpc.history import Entry, History, Round, Trial, Want
from autoresearch_hpc.promotion import Difference, KnownNoise, Replicates, Sample, difference, pool
from autoresearch_hpc.records import Direction, Status, candidate_id

__all__ = [
    "BASELINE",
    "VALIDATION",
    "View",
    "counting",
    "differences",
    "looked",
    "noise_of",
    "sample_of",
    "standing",
    "views_of",
]

BASELINE = candidate_id(0, 0)
VALIDATION = "validation"  # the stage of a round whose best run again on another tier


def standing(history: History) -> str:
    """The candidate that others are compared with."""
    return history.incumbent.candidate if history.incumbent else BASELINE


def looked(history: History, round_: Round) -> list[str]:
    """The tiers on which the round's candidates were run again, one for each trial."""
    rivals = [entry for entry in round_.entries.values() if entry.id != standing(history)]
    return [trial.tier for entry in rivals for trial in counting(entry)[1:]]


def counting(entry: Entry) -> list[Trial]:
    return [trial for trial in entry.trials if trial.dropped is None]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A round's values, as far as they can be compared: those of one kind, the commonest on its tier."""

    tier: str
    kind: str
    direction: Direction
    look: int  # how many there were; 0 after the round's own array
    validated: bool  # whether these are of a validation: its candidates only
    incumbent: Sample
    candidates: tuple[Sample, ...]
    elsewhere: Mapping[str, str]  # candidate -> the kind that it ran on instead

    @classmethod
    def of(cls, history: History, round_: Round, tier: str) -> "View | None":
        """None where there is no incumbent: the baseline failed, or was never run."""
        incumbent = standing(history)
        entry = history.find(incumbent)
        if entry is None or entry.value is None:
            return None
        results = [t.result for t in round_.trials if t.dropped is None and t.result and t.tier in (tier, "")]
        good = [r for r in results if r.status is Status.OK]
        kinds = Counter(r.kind for r in good or entry.good(tier))
        kind = kinds.most_common(1)[0][0]
        validated = VALIDATION in round_.stages and history.deciding_tier == tier
        rivals = [e for e in round_.entries.values() if e.id != incumbent]
        elsewhere = {e.id: r.kind for e in rivals if (r := e.result) and e.value is not None and not _of(e, kind)}
        if validated:
            elsewhere = {}
            rivals = [e for e in rivals if round_.needed.get(Want(e.id, tier))]
        return cls(
            tier=tier,
            kind=kind,
            direction=history.direction,
            look=sum(stage.startswith("look") for stage in round_.stages),
            validated=validated,
            incumbent=sample_of(entry, kind, len(entry.trials)),
            candidates=tuple(sample_of(e, kind, 1) for e in rivals),
            elsewhere=elsewhere,
        )


def views_of(history: History, round_: Round, tiers: Sequence[str]) -> list[View]:
    """The round on each tier; with several, each candidate where the looks ran, else where its own trial did.

    The first has the looks.
    """
    views = [view for tier in tiers if (view := View.of(history, round_, tier))]
    if len(views) < 2:
        return views
    tiers_looked = looked(history, round_)
    views.sort(key=lambda view: -tiers_looked.count(view.tier))
    taken: set[str] = set()
    parted = []
    for view in views:
        mine = tuple(s for s in view.candidates if s.candidate not in taken and s.all)
        taken |= {s.candidate for s in mine}
        parted.append(replace(view, candidates=mine, elsewhere={}))
    failed = tuple(s for s in views[0].candidates if s.candidate not in taken)
    return [replace(parted[0], candidates=(*parted[0].candidates, *failed)), *parted[1:]]


def _of(entry: Entry, kind: str) -> list[float]:
    return [r.metric.value for r in entry.results if r.metric.value is not None and r.kind == kind]


def sample_of(entry: Entry, kind: str, num_screening: int) -> Sample:
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


def noise_of(history: History, views: Sequence[View], config: DecideConfig) -> Noise:
    """From every candidate that was run more than once; a value that it was picked for is no replicate.

    Of several kinds together: how far trials spread does not depend on the GPU as their mean does.
    """
    groups = []
    for kind in dict.fromkeys(view.kind for view in views):
        for entry in history.entries():
            results = entry.results if entry.id == BASELINE else entry.results[1:]
            values = [r.metric.value for r in results if r.metric.value is not None and r.kind == kind]
            groups += [Replicates(kind=views[0].kind, values=tuple(values))] if values else []
    known = KnownNoise(sd=config.noise_sd, df=config.noise_df) if config.noise_sd else None
    return pool(groups, known)


def differences(history: History, views: Sequence[View], noise: Noise) -> Iterator[Difference]:
    """Every candidate against the incumbent of its time."""
    bases = {e.candidate.commit: e for e in history.entries() if e.candidate}
    for round_ in history.rounds:
        base = bases.get(round_.base) or history.find(BASELINE)
        for kind in dict.fromkeys(view.kind for view in views):
            if base is None or not _of(base, kind):
                continue
            standing = sample_of(base, kind, len(base.trials))
            for entry in round_.entries.values():
                if entry is not base and _of(entry, kind):
                    yield difference(sample_of(entry, kind, 1), standing, noise, history.direction)
