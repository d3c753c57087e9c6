"""When candidates may be proposed, and for which round: rounds follow each other, but two things let them overlap.

While the best of a round are validated on their own tier, the next one is screened; and with `schedule=async` a slot
that comes free is filled with a candidate of the same round, or of the next. Read from the history alone, so that who
resumes decides alike.
"""

from collections.abc import Callable

from autoresearch_hpc import views
from autoresearch_hpc.config import Config
from autoresearch_hpc.history import History, Round
from autoresearch_hpc.tiers import Tiers

__all__ = ["Schedule"]

_MAX_OPEN = {"rounds": 2, "async": 4}  # rounds at a time: their incumbents would be older and older


class Schedule:
    """`no_more` says why nothing is proposed now, where something has been tried; its user sets and clears it.

    `incremental` tells of a round's index whether a part of it may be asked for.
    """

    def __init__(self, config: Config, tiers: Tiers, history: History, incremental: Callable[[int], bool]) -> None:
        self._plan, self._tiers, self._history, self._incremental = config.plan, tiers, history, incremental
        self._async = config.schedule == "async"
        self._max_open = _MAX_OPEN[config.schedule]
        self._backlog = config.cluster.backlog
        self.no_more: str | None = None

    @property
    def overlapping(self) -> bool:
        """Whether a round may be proposed before the last one is judged."""
        return self._async or self._tiers.validates is not None

    def may_propose(self) -> bool:
        """Whether the time has come for a new round, or for more of the newest."""
        open_, newest = self._history.open_rounds, self._history.rounds[-1] if self._history.rounds else None
        if self.no_more or newest is None or newest.closed_at is not None:
            return self.no_more is None
        if not newest.committed or not self._baseline_known():
            return False
        if not self.is_full(newest):
            return self._num_free() > 0
        if len(open_) >= self._max_open or newest.index >= self._plan.num_rounds:
            return False
        if self._async:
            return self._num_free() > 0
        return self._tiers.validates is not None and all(views.VALIDATION in round_.stages for round_ in open_)

    def may_go_on(self) -> bool:
        """Whether there is anything to do but to wait for trials."""
        return self.may_propose() or any(r.complete and self.is_full(r) for r in self._history.open_rounds)

    def is_full(self, round_: Round) -> bool:
        """Whether all of the round's candidates are proposed."""
        if not self._async or round_ is not self._history.rounds[-1] or self.no_more:
            return True
        return self._num_lacking(round_) <= 0 or not self._incremental(round_.index)

    def next_place(self) -> tuple[int, int]:
        """The round to propose for, and how many candidates it has already."""
        rounds = self._history.rounds
        if rounds and not self.is_full(rounds[-1]):
            return rounds[-1].index, len(rounds[-1].entries)
        return len(rounds), 0

    def num_wanted(self, index: int, begun: int, others: int) -> int:
        """How many candidates to propose for a round that has `begun` ones, beside `others` that are not an agent's."""
        k = self._plan.num_candidates(index)
        if not (self._async and self._incremental(index)):
            return k
        lacking = self._num_lacking(self._history.rounds[index]) if begun else k
        return min(lacking, max(1, self._num_free() - others))

    def _baseline_known(self) -> bool:
        return self._history.incumbent is not None or bool(self._history.entry(views.BASELINE).values)

    def _num_free(self) -> int:
        """Slots for candidates that nothing fills."""
        screens, next_round = self._tiers.screens, self.next_place()[0]
        slots = self._tiers.num_screening or self._plan.num_candidates(next_round)
        busy = sum(trial.tier in screens for trial in self._history.outstanding)
        lacking = [(want, n) for round_ in self._history.open_rounds for want, n in round_.missing.items()]
        return slots + self._backlog * len(screens) - busy - sum(n for want, n in lacking if want.tier in screens)

    def _num_lacking(self, round_: Round) -> int:
        """Candidates that the plan has for the round, and that are not proposed yet."""
        if round_.index < self._plan.first_round:
            return 0
        agents = sum(entry.id != views.BASELINE for entry in round_.entries.values())
        return self._plan.num_candidates(round_.index) - agents
