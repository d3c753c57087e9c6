"""What agents hear of a run's candidates.

A value from another kind of GPU than the baseline's is shifted by what a candidate differs that ran on both.
"""

from collections.abc import Iterable, Mapping
from statistics import mean

from autoresearch_hpc.entries import Entry, mean_of, values_of
from autoresearch_hpc.records import Outcome, Status


class Outcomes:
    """Remembers what it has told, so that hearing of ten thousand candidates again costs next to nothing."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[int, float, Outcome]] = {}  # the entry's version, its shift

    def of(self, entries: Iterable[Entry], shifts: Mapping[str, float]) -> tuple[Outcome, ...]:
        """One for each entry, in their order."""
        return tuple(self._outcome(entry, shifts) for entry in entries)

    def _outcome(self, entry: Entry, shifts: Mapping[str, float]) -> Outcome:
        """As it was told before, unless something has changed."""
        told = self._told.get(entry.id)
        if told and told[0] == entry.version and told[1] == shifts.get(told[2].kind, 0.0):
            return told[2]
        result, screened = entry.result, entry.screened
        shift, value = shifts.get(screened[-1].kind, 0.0) if screened else 0.0, mean_of(values_of(screened))
        outcome = Outcome(
            candidate=entry.id,
            round=entry.place[0],
            proposal=entry.proposal,
            knobs=entry.candidate.knobs if entry.candidate else {},
            status=result.status if result else Status.LOST,
            value=value + shift if value is not None else None,
            verdict=entry.verdict,
            finding=entry.finding,
            error=result.error if result else None,
            fingerprint=entry.candidate.fingerprint if entry.candidate else "",
            peak_vram_mb=result.peak_vram_mb if result else None,
            num_trials=max(len(screened), 1),
            kind=screened[-1].kind if screened else "",
        )
        self._told[entry.id] = entry.version, shift, outcome
        return outcome


def kind_shifts(baseline: Entry | None, mixed: Iterable[Entry]) -> dict[str, float]:
    """Kind of GPU -> what brings its values to the level of the baseline's: by the first candidate that ran on both.

    `mixed` are those whose trials ran on several kinds.
    """
    shifts: dict[str, float] = {}
    if baseline is None or not baseline.screened:
        return shifts
    main = baseline.screened[-1].kind
    for entry in sorted(mixed, key=lambda entry: entry.place):
        by_kind: dict[str, list[float]] = {}
        for result in entry.results:
            if result.metric.value is not None:
                by_kind.setdefault(result.kind, []).append(result.metric.value)
        if main in by_kind:
            for kind in by_kind.keys() - {main} - shifts.keys():
                shifts[kind] = mean(by_kind[main]) - mean(by_kind[kind])
    return shifts
