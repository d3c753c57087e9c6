"""Sums and indices over a run's trials, kept up to date as they change: no question has to walk through all of them.

`History` tells of every change and answers from here. A sum is a whole number of the smallest float, so it is exact: it
does not depend on the order in which trials came and changed, and what was added can be taken away again.
"""

from collections import Counter, defaultdict

from autoresearch_hpc.entries import Call, Entry, Round, Trial
from autoresearch_hpc.records import Status, Verdict

__all__ = ["Tally"]

_BITS = 1074  # of the fraction of the smallest float there is


class Tally:
    """Of one history. A trial, an entry or a call is told again as it is now, in the place of what was known of it."""

    def __init__(self) -> None:
        self.num_ended: Counter[str] = Counter()  # trials with a result, by tier
        self.open: dict[int, Round] = {}  # rounds that are not over
        self.lost: dict[str, Trial] = {}  # trials of which their node, or their job, left nothing
        self.kept: dict[str, Entry] = {}  # winners, the baseline among them
        self.mixed: dict[str, Entry] = {}  # candidates whose trials ran on several kinds of GPU
        self.by_commit: dict[str, Entry] = {}
        self._held_s: defaultdict[str, int] = defaultdict(int)  # tier -> seconds
        self._on_gpu_s = 0
        self._calls_usd = 0
        self._parts: dict[str, tuple[str, int, int]] = {}  # trial -> its share of the sums

    @property
    def held_s(self) -> dict[str, float]:
        """Tier -> how long its ended trials held their GPUs, in seconds, dropped ones included."""
        return {tier: _float(total) for tier, total in self._held_s.items()}

    @property
    def on_gpu_s(self) -> float:
        """GPU-seconds of all ended trials; by the cluster's accounting, where that has told."""
        return _float(self._on_gpu_s)

    @property
    def calls_usd(self) -> float:
        return _float(self._calls_usd)

    def trial(self, trial: Trial) -> None:
        if part := self._parts.pop(trial.id, None):
            tier, held, on_gpu = part
            self.num_ended[tier] -= 1
            self._held_s[tier] -= held
            self._on_gpu_s -= on_gpu
            self.lost.pop(trial.id, None)
        if trial.result is None:
            return
        held = _units(trial.held_s)
        on_gpu = held if trial.gpu_s is not None else held * trial.result.gpu.count
        self._parts[trial.id] = trial.tier, held, on_gpu
        self.num_ended[trial.tier] += 1
        self._held_s[trial.tier] += held
        self._on_gpu_s += on_gpu
        if trial.result.status is Status.LOST:
            self.lost[trial.id] = trial

    def entry(self, entry: Entry) -> None:
        entry.version += 1
        if entry.candidate:
            self.by_commit.setdefault(entry.candidate.commit, entry)
        _member(self.kept, entry, entry.verdict is Verdict.KEEP)
        _member(self.mixed, entry, len(entry.trials) > 1 and not entry.one_kind)

    def gone(self, entry: Entry) -> None:
        """It left the history with all that it had."""
        for index in (self.kept, self.mixed):
            index.pop(entry.id, None)
        if entry.candidate and self.by_commit.get(entry.candidate.commit) is entry:
            del self.by_commit[entry.candidate.commit]

    def call(self, call: Call, before_usd: float) -> None:
        self._calls_usd += _units(call.cost_usd) - _units(before_usd)


def _units(value: float) -> int:
    numerator, denominator = value.as_integer_ratio()  # a power of two
    return numerator << (_BITS + 1 - denominator.bit_length())


def _float(units: int) -> float:
    """The float that is nearest."""
    return units / (1 << _BITS)


def _member(index: dict[str, Entry], entry: Entry, belongs: bool) -> None:
    if belongs:
        index[entry.id] = entry
    else:
        index.pop(entry.id, None)
