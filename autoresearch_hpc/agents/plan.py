"""The plan's own candidates, one by one as conf/round/ states them."""

import re
from collections.abc import Sequence

from autoresearch_hpc.agents.titles import changes
from autoresearch_hpc.config import CandidateConfig, PlanConfig
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.records import Knobs, Outcome, Proposal, SearchState, knob_value

__all__ = ["BASELINE", "PlanAgent"]

BASELINE = "baseline"  # the name of round 0's first candidate
_ID = re.compile(r"r(\d+)-c\d+")


class PlanAgent:
    """Proposes all explicit candidates of the round asked for, however large k is; none where the round has none."""

    def __init__(self, plan: PlanConfig) -> None:
        """Raises ConfigError for a candidate that builds on one of its own or a later round, or on nothing known."""
        _validate(plan)
        self._plan = plan
        self._outcomes: list[Outcome] = []

    def ask(self, state: SearchState, k: int) -> Sequence[Proposal]:
        return [self._proposal(candidate, state) for candidate in self._plan.round(state.index).candidates]

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        self._outcomes += outcomes

    def _proposal(self, candidate: CandidateConfig, state: SearchState) -> Proposal:
        knobs = _settings(candidate)
        before = self._knobs_of(candidate.parent, state)
        title = candidate.title or changes(knobs, before) or f"replicate of {candidate.parent or 'the incumbent'}"
        return Proposal(title=title, knobs=knobs, on=candidate.parent, name=candidate.name, origin="plan")

    def _knobs_of(self, parent: str | None, state: SearchState) -> Knobs:
        """The settings that a candidate starts from; empty where its parent has not been heard of."""
        if parent is None:
            return state.incumbent_knobs
        if parent == BASELINE:
            return self._outcomes[0].knobs if self._outcomes else state.incumbent_knobs
        named = [o for o in self._outcomes if parent in (o.proposal.name, o.candidate)]
        return named[-1].knobs if named else {}


def _validate(plan: PlanConfig) -> None:
    earlier = {BASELINE}
    for position, planned in enumerate(plan.rounds):
        index = position + plan.first_round
        names = {candidate.name for candidate in planned.candidates if candidate.name}
        for name in names:
            if name == BASELINE or _ID.fullmatch(name):
                raise ConfigError(f"a candidate of round {index} is named {name!r}", "choose another name")
        for candidate in planned.candidates:
            _settings(candidate)
            parent = candidate.parent
            if parent is None or parent in earlier or _is_id_before(index, parent):
                continue
            raise ConfigError(
                f"candidate {candidate.name or candidate.title or candidate.knobs} of round {index} builds on"
                f" {parent!r}, which no earlier round has",
                f"name one of {', '.join(sorted(earlier))}, or a candidate's id",
            )
        earlier |= names


def _settings(candidate: CandidateConfig) -> Knobs:
    try:
        return {name: knob_value(value) for name, value in candidate.knobs.items()}
    except ValueError as error:
        raise ConfigError(f"candidate {candidate.name or candidate.title}: {error}") from error


def _is_id_before(index: int, word: str) -> bool:
    found = _ID.fullmatch(word)
    return found is not None and int(found[1]) < index
