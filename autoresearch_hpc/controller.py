"""The loop: ask for K proposals, commit them, train them at once, keep the winner, roll the rest back, ask again.

Every step is journaled so that it can be taken up again: intent before effect, and effects that do no harm when they
are repeated. The controller that starts a run and the one that resumes it are the same code.

Rounds follow each other, but two things let them overlap: while the best of a round are validated on their own tier,
the next round is screened; and with `schedule=async` a slot that comes free is filled with a candidate of the next
round. Each round is judged for itself, against the incumbent of that moment.
"""

import logging
from collections import Counter
from collections.abc import Mapping

from autoresearch_hpc import decide, effects, report, space, views
from autoresearch_hpc.agents import PlannedAgent
from autoresearch_hpc.budget import Budget
from autoresearch_hpc.candidates import CandidateMaker
from autoresearch_hpc.combine import Combiner
from autoresearch_hpc.committing import Committer
from autoresearch_hpc.config import Config
from autoresearch_hpc.errors import AutoresearchError, ClusterError, InterruptedRun
from autoresearch_hpc.fanout import Fanout
from autoresearch_hpc.history import Entry, Round
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.ledger import Ledger
from autoresearch_hpc.proposing import Proposer
from autoresearch_hpc.records import candidate_id, to_json
from autoresearch_hpc.repo import Repo
from autoresearch_hpc.schedule import Schedule
from autoresearch_hpc.stopping import StopRequest
from autoresearch_hpc.tiers import Tiers

_log = logging.getLogger(__name__)


class Controller:
    """Runs one search to its end."""

    def __init__(
        self,
        config: Config,
        *,
        layout: RunLayout,
        ledger: Ledger,
        repo: Repo,
        agent: PlannedAgent,
        maker: CandidateMaker,
        combiner: Combiner,
        fanout: Fanout,
        budget: Budget,
        fit: effects.FitProcess,
        stop: StopRequest,
    ) -> None:
        self._config, self._layout, self._repo = config, layout, repo
        self._record, self._history = ledger.record, ledger.history
        self._agent, self._fanout, self._stop = agent, fanout, stop
        self._fit, self._tables = fit, report.Tables()
        self._space = space.from_config(config.space)
        self._tiers = Tiers.of(config)
        self._schedule = Schedule(config, self._tiers, self._history, agent.incremental)
        self._committer = Committer(self._history, maker)
        self._proposer = Proposer(
            config,
            history=self._history,
            repo=repo,
            agent=agent,
            maker=maker,
            combiner=combiner,
            budget=budget,
            schedule=self._schedule,
            tiers=self._tiers,
        )
        self._thought_of = 0  # the newest round that the agent was told to think of
        self._agent.tell(self._history.outcomes())

    def run(self) -> str:
        """Go on to the end and return why it ended. Raises InterruptedRun when a signal asked to stop."""
        try:
            self._fanout.take_over(*self._history.open_rounds)
            while (reason := self._go_on()) is None:
                self._fanout.train(*self._history.open_rounds, until=self._schedule.may_go_on)
            self._fanout.settle()
            self._record("run.stopped", reason=reason)
            return reason
        except InterruptedRun as error:
            self._agent.close()
            cancelled = self._fanout.interrupt()
            self._record("run.interrupted", reason=self._stop.reason or str(error), cancelled=cancelled)
            raise
        except ClusterError as error:
            self._record("run.interrupted", reason=str(error), cancelled=[])
            raise
        finally:
            self._agent.close()
            self._fit.close()

    def _go_on(self) -> str | None:
        """Do all that need not wait for a trial; why the run is over, None while it is not."""
        schedule = self._schedule
        schedule.no_more = None
        for round_ in self._history.open_rounds:
            self._advance(round_)
        while schedule.may_propose():
            schedule.no_more = self._proposer.reason_to_stop() or self._open_round()
            for round_ in self._history.open_rounds:
                self._advance(round_)
        return None if self._history.open_rounds else schedule.no_more

    def _advance(self, round_: Round) -> None:
        """Take the round as far as its results allow."""
        self._commit(round_)
        self._think_ahead(round_)
        self._want_more(round_)
        if round_.complete and self._schedule.is_full(round_):
            self._fanout.require_one(round_)
            self._judge(round_)
            self._close(round_)

    # proposing

    def _open_round(self) -> str | None:
        """A new round, or more of the newest; why not, where the agent proposes nothing."""
        index, begun = self._schedule.next_place()
        proposals = self._proposer.propose(index, begun)
        if not proposals:
            return "the agent has nothing more to propose"
        ids = [candidate_id(index, begun + i) for i in range(len(proposals))]
        self._record(
            "round.proposed",
            round=index,
            base=self._base,
            proposals={id_: to_json(p) for id_, p in zip(ids, proposals, strict=True)},
        )
        return None

    def _think_ahead(self, round_: Round) -> None:
        """While this round trains let the agent draft the next one, and have ready what will be needed at its end."""
        index = round_.index + 1
        if (
            self._thought_of < index <= self._config.plan.num_rounds
            and not round_.judged
            and self._schedule.is_full(round_)
        ):
            self._thought_of = index
            if self._space and sum(len(r.entries) for r in self._history.rounds) >= effects.MIN_OUTCOMES:
                self._fit.start()
            self._proposer.prepare(index)

    @property
    def _base(self) -> str:
        return self._history.incumbent.commit if self._history.incumbent else self._history.start_commit

    # committing

    def _commit(self, round_: Round) -> None:
        """Make every proposal a commit on the candidate that it builds on."""
        made = self._committer.commit(round_)
        if not made:
            return
        tiers = self._places([candidate.id for candidate in made])
        self._record("round.committed", round=round_.index, candidates=[to_json(c) for c in made], tiers=tiers)
        for candidate in made:
            title = round_.entries[candidate.id].proposal.title
            _log.info("round=%d candidate=%s commit=%s %s", round_.index, candidate.id, candidate.commit[:7], title)

    def _places(self, candidates: list[str]) -> dict[str, str]:
        """On which tier each is tried."""
        busy = Counter(trial.tier for trial in self._history.outstanding)
        places = self._tiers.spread(candidates, busy)
        return {id_: self._tiers.screens[0] if id_ == views.BASELINE else tier for id_, tier in places.items()}

    # training

    def _want_more(self, round_: Round) -> None:
        """Ask for the trials beside the candidates' own, then for whatever the results ask for: confirmations, say."""
        rule, tiers = self._config.decide, self._tiers
        for tier in reversed(tiers.used):
            stage = "array" if tier == tiers.used[0] else f"array on {tier}"
            if not {stage, "array"} & set(round_.stages):
                count = decide.beside(self._history, rule, tiers).get(tier, 0)
                self._want(round_, stage, tier, {views.standing(self._history): count} if count else {})
        if round_.complete and not round_.judged and self._schedule.is_full(round_):
            if more := decide.further(self._history, round_, rule, tiers):
                self._want(round_, more.stage, more.tier, more.trials)

    def _want(self, round_: Round, stage: str, tier: str, trials: Mapping[str, int]) -> None:
        self._record("trials.wanted", round=round_.index, stage=stage, tier=tier, trials=dict(trials))
        if trials:
            named = ", ".join(f"{count} x {id_}" for id_, count in trials.items())
            _log.info("round=%d %s: %s", round_.index, stage, named)

    # judging

    def _judge(self, round_: Round) -> None:
        """Decide what is kept; the agent hears of it."""
        if round_.judged:
            return
        judgement = decide.judge(self._history, round_, self._config.decide, self._tiers)
        self._record(
            "round.judged",
            round=round_.index,
            verdicts={id_: verdict.value for id_, verdict in judgement.verdicts.items()},
            findings={id_: to_json(finding) for id_, finding in judgement.findings.items()},
            noise=to_json(judgement.noise) if judgement.noise else None,
            pool=list(judgement.pool),
            incumbent=self._standing(judgement.incumbent),
            over_baseline=to_json(judgement.over_baseline) if judgement.over_baseline else None,
        )
        for id_, finding in judgement.findings.items():
            _log.info("round=%d candidate=%s %s", round_.index, id_, finding.words)
        self._agent.tell([o for o in self._history.outcomes() if o.round == round_.index])

    def _standing(self, id_: str | None) -> dict[str, object] | None:
        if id_ is None:
            return None
        entry = self._history.entry(id_)
        assert entry.candidate
        return {"candidate": id_, "commit": entry.candidate.commit, "value": entry.value}

    def _close(self, round_: Round) -> None:
        """Move the branch to the incumbent and bring the tables up to date."""
        incumbent = self._history.incumbent
        if incumbent is None:
            self._tables.write(self._history, self._layout)
            self._record("run.stopped", reason="the baseline failed")
            raise _baseline_failed(self._history.entry(views.BASELINE), self._layout)
        self._repo.advance(self._history.tag, incumbent.commit)
        self._analyse(round_)
        self._tables.write(self._history, self._layout)
        self._record("round.closed", round=round_.index)
        _log.info(
            "round=%d incumbent=%s %s=%.6f", round_.index, incumbent.candidate, self._history.metric, incumbent.value
        )

    def _analyse(self, round_: Round) -> None:
        """Note what all results together tell of the space's knobs, once they are enough to tell anything."""
        outcomes, noise = self._history.outcomes(), self._history.noise
        found = self._space and effects.worth_telling(outcomes, self._space, noise, self._fit)
        if found:
            self._record("round.analysed", round=round_.index, effects=to_json(found))
            sure = [effect for effect in found.by_size if effect.significant]
            told = "; ".join(f"{effect.name} {effect.words}" for effect in sure[:5]) or "none stands out"
            _log.info("round=%d effects of %d: %s", round_.index, len(found.effects), told)


def _baseline_failed(baseline: Entry, layout: RunLayout) -> AutoresearchError:
    result = baseline.result
    assert result
    cause = f"{result.status}: {result.error.message}" if result.error else str(result.status)
    return AutoresearchError(f"the baseline failed ({cause})", f"see {layout.trial(result.trial).log}")
