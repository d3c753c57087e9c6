"""What a round begins with: how many candidates there is room for, what the agent is told, and what it proposes."""

import logging
from dataclasses import replace

from autoresearch_hpc import decide, views
from autoresearch_hpc.agents import PlannedAgent
from autoresearch_hpc.budget import Budget, Room
from autoresearch_hpc.candidates import CandidateMaker
from autoresearch_hpc.combine import Combiner
from autoresearch_hpc.config import Baseline, Config
from autoresearch_hpc.history import History
from autoresearch_hpc.records import Knobs, Proposal, SearchState, Verdict, knob_value
from autoresearch_hpc.repo import Repo
from autoresearch_hpc.schedule import Schedule
from autoresearch_hpc.tiers import Tiers

_log = logging.getLogger(__name__)


class Proposer:
    """Asks the agent, and adds what is not its own: the baseline, and combinations of near misses."""

    def __init__(
        self,
        config: Config,
        *,
        history: History,
        repo: Repo,
        agent: PlannedAgent,
        maker: CandidateMaker,
        combiner: Combiner,
        budget: Budget,
        schedule: Schedule,
        tiers: Tiers,
    ) -> None:
        self._config, self._history, self._repo, self._agent = config, history, repo, agent
        self._maker, self._combiner, self._budget = maker, combiner, budget
        self._schedule, self._tiers = schedule, tiers

    def reason_to_stop(self) -> str | None:
        """Why nothing more is proposed: the end of the plan, or a cap; None while there is room."""
        index, begun = self._schedule.next_place()
        if begun:
            room = self._budget.room(self._history)
            return None if room.fits(1) else room.cap
        if index > self._config.plan.num_rounds:
            return "the plan is complete"
        room = self._room_beside(0)
        starved = index > 0 and self._config.plan.is_open(index) and not room.fits(1)
        return self._budget.exhausted(self._history) or (room.cap if starved else None)

    def propose(self, index: int, begun: int = 0) -> list[Proposal]:
        """Candidates for a round that has `begun` ones already."""
        plan = self._config.plan
        proposals: list[Proposal] = []
        if index == 0 and not begun:
            base = {name: knob_value(value) for name, value in plan.base.items()}
            proposals.append(Proposal(title="baseline", knobs=base, origin="plan"))
            if plan.baseline is Baseline.alone:
                return proposals
        if k := self._room_for(index, len(proposals), begun):
            combined = self._combiner.propose(self._history, index, k)
            state, others = self._state(index, begun), k - len(combined)
            state = replace(state, running=(*state.running, *combined))
            proposals += [*combined, *(self._agent.ask(state, others) if others else [])]
            self._tell_costs(index)
        return proposals

    def prepare(self, index: int) -> None:
        """Have the agent draft round `index` while others train."""
        self._agent.prepare(self._state(index), self._config.plan.num_candidates(index))

    def _tell_costs(self, index: int) -> None:
        calls = self._history.calls_of(index)
        if calls:
            tokens = sum(call.prompt_tokens for call in calls), sum(call.answer_tokens for call in calls)
            usd, all_usd = sum(call.cost_usd for call in calls), self._history.llm_usd
            _log.info("round=%d calls=%d tokens=%d+%d usd=%.4f of %.4f", index, len(calls), *tokens, usd, all_usd)

    def _room_for(self, index: int, others: int, begun: int) -> int:
        """How many candidates of round `index` the budget has room for, beside `others` and the replicates."""
        room, k = self._room_beside(others), self._schedule.num_wanted(index, begun, others)
        if self._config.plan.is_open(index) and room.trials is not None and room.trials < k:
            k = room.trials
            _log.info("round=%d shrunk to %d: %s", index, k + others, room.cap)
        return k

    def _room_beside(self, others: int) -> Room:
        """What the budget has room for beside so many candidates and the replicates of a round."""
        room = self._budget.room(self._history)
        needed = others + sum(decide.beside(self._history, self._config.decide, self._tiers).values())
        return room if room.trials is None else replace(room, trials=max(0, room.trials - needed))

    def _state(self, index: int, begun: int = 0) -> SearchState:
        history = self._history
        outcomes = history.outcomes(unjudged=self._schedule.overlapping)
        heard = {outcome.candidate for outcome in outcomes}
        under_way = [entry for round_ in history.open_rounds for entry in round_.entries.values()]
        incumbent = history.incumbent
        entry = history.entry(incumbent.candidate) if incumbent else history.find(views.BASELINE)
        if entry and entry.candidate:
            knobs, source = entry.candidate.knobs, self._maker.sources(entry.candidate.commit)
        else:
            knobs, source = self._start()
        return SearchState(
            index=index,
            direction=history.direction,
            metric=history.metric,
            incumbent=incumbent.candidate if incumbent else None,
            incumbent_value=next((o.value for o in outcomes if entry and o.candidate == entry.id and incumbent), None),
            incumbent_knobs=knobs,
            source=source,
            outcomes=outcomes,
            program=self._repo.working_text(self._config.agent.program) or "",
            noise=history.noise,
            pool=history.pool,
            failed=self._failed(),
            running=tuple(entry.proposal for entry in under_way if entry.id not in heard),
            num_proposed=begun,
            remaining=tuple(self._budget.remaining(history)),
            effects=history.effects,
        )

    def _start(self) -> tuple[Knobs, dict[str, str]]:
        """Settings and editable files of a baseline that is not committed yet."""
        start = self._history.start_commit
        base = {name: knob_value(value) for name, value in self._config.plan.base.items()}
        edited = self._maker.edit(Proposal(title="baseline", knobs=base), start)
        return {**self._maker.script_knobs(start), **base}, {**self._maker.sources(start), **edited}

    def _failed(self) -> dict[str, dict[str, str]]:
        """The files of the newest judged round's failed candidates."""
        judged = [round_ for round_ in self._history.rounds if round_.judged]
        entries = judged[-1].entries.values() if judged else ()
        failed = [e for e in entries if e.verdict is Verdict.CRASH and e.id != views.BASELINE and e.candidate]
        return {entry.id: self._maker.sources(entry.candidate.commit) for entry in failed if entry.candidate}
