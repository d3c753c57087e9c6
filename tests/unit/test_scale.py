"""What must not grow with a run: a controller's work for one event is the same after ten trials and thousands.

Work is counted in Python's own instructions, which no busy machine changes. benchmarks/journal.py has the seconds.
"""

import dataclasses
import math
import random
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from fake_run import START, FakeRun, commit_of

from autoresearch_hpc import collect
from autoresearch_hpc.budget import Budget, used
from autoresearch_hpc.config import BudgetConfig
from autoresearch_hpc.history import History
from autoresearch_hpc.journal import Event, Journal, read
from autoresearch_hpc.ledger import Ledger
from autoresearch_hpc.records import (
    Candidate,
    Gpu,
    Proposal,
    Status,
    TrialResult,
    Verdict,
    candidate_id,
    to_json,
    trial_id,
)
from autoresearch_hpc.report.summary import base_of, figures, summarize
from autoresearch_hpc.report.tables import Tables
from autoresearch_hpc.tally import Tally
from autoresearch_hpc.tiers import Tiers

TIERS = Tiers(slots={"a": 4, "b": None}, prices={"a": 2.0, "b": 3.0}, screens=("a", "b"))


def instructions(act: Callable[[], object]) -> int:
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[FakeRun, FakeRun]:
    """The same run after 5 and after 80 rounds of 12; of each the last round is still open."""
    made = []
    for rounds in (5, 80):
        run = FakeRun(tmp_path_factory.mktemp("scale") / "tag")
        run.round([("baseline", 1.0, "keep")])
        for _ in range(rounds):
            run.round([(f"c{i}", 1.1 if i else None, "discard" if i else "crash") for i in range(12)])
        run.propose([f"c{i}" for i in range(12)])
        run.done(trial_id(candidate_id(rounds + 1, 0), 0), 1.2)
        made.append(run)
    return made[0], made[1]


def next_result(history: History, run: FakeRun) -> Callable[[], None]:
    trial = history.outstanding[0]
    data = {"trial": trial.id, "result": to_json(run.result(trial.id, 1.0))}
    return lambda: history.apply(Event(seq=0, at=run.now.isoformat(), event="trial.done", data=data))


BUDGET = Budget(config=BudgetConfig(max_trials=9999, gpu_hours=1e6, usd=1e6), tiers=TIERS, job_limit_s=60.0)
FLAT: dict[str, Callable[[History, FakeRun], Callable[[], object]]] = {
    "a result": next_result,
    "room in the budget": lambda history, _: lambda: BUDGET.room(history),
    "what was used": lambda history, _: lambda: used(history, TIERS),
    "what is under way": lambda history, _: lambda: history.outstanding,
    "a candidate by its id": lambda history, _: lambda: history.find(list(history.rounds[-1].entries)[3]),
    "the baseline": lambda history, _: lambda: history.find("baseline"),
    "faulty nodes": lambda history, _: lambda: collect.faulty_nodes(history, 2),
    "the live table's figures": lambda history, run: lambda: figures(history, now=run.now),
    "winners": lambda history, _: lambda: history.kept,
    "where a round began": lambda history, _: lambda: base_of(history, commit_of("r00-c00")),
}  # fmt: skip


@pytest.mark.parametrize("what", FLAT)
def test_the_work_for_an_event_does_not_grow_with_the_run(runs: tuple[FakeRun, FakeRun], what: str) -> None:
    small, large = (instructions(FLAT[what](run.history(), run)) for run in runs)
    assert 0 < large <= 1.05 * small + 20, "in 16 times as many trials"


def test_what_agents_hear_is_made_anew_only_where_something_changed(runs: tuple[FakeRun, FakeRun]) -> None:
    _, run = runs
    history = run.history()
    first = instructions(lambda: history.outcomes(unjudged=True))
    before = {outcome.candidate: outcome for outcome in history.outcomes(unjudged=True)}
    changed = history.outstanding[0].candidate
    next_result(history, run)()
    again = instructions(lambda: history.outcomes(unjudged=True))
    after = {outcome.candidate: outcome for outcome in history.outcomes(unjudged=True)}
    assert again < first / 3
    assert after.keys() - before.keys() == {changed}
    assert all(after[id_] is outcome for id_, outcome in before.items())


def test_a_resumed_run_hears_its_journal_event_by_event(runs: tuple[FakeRun, FakeRun], tmp_path: Path) -> None:
    path, history = tmp_path / "journal.jsonl", History()
    path.write_bytes(runs[0].layout.journal.read_bytes() + b"{torn")
    with Journal(path, history.apply) as journal:
        assert journal.events == [], "nothing of it is kept"
        ledger = Ledger(journal, history=history)
        assert dataclasses.asdict(ledger.history) == dataclasses.asdict(runs[0].history())
        ledger.record("run.stopped", reason="x")
    assert History.replay(read(path)).stopped == history.stopped == "x"


# what is kept up to date equals what is worked out anew


class Wild:
    """Any events that make sense, in any order, on two kinds of GPU; values are coarse, so that sums would round."""

    def __init__(self, run: FakeRun, seed: int) -> None:
        self.run, self.random, self.history = run, random.Random(seed), History()
        self._at, self._calls = START, 0
        self.event(
            "run.started",
            **{"tag": "wild", "uid": "u", "start_commit": "f" * 40, "config_sha256": "c", "metric": "val_bpb"},
            direction="min",
            deciding_tier=self.random.choice(["", "b"]),
        )

    def event(self, name: str, **data: object) -> None:
        self._at += timedelta(seconds=1)
        self.history.apply(Event(seq=0, at=self._at.isoformat(), event=name, data=data))

    def play(self, moves: int) -> Iterator[History]:
        for _ in range(moves):
            self.random.choice([self._propose, self._done, self._done, self._done, self._more, self._drop, self._charge,
                                self._judge, self._close, self._shrink, self._call])()  # fmt: skip
            yield self.history

    def _propose(self) -> None:
        index = len(self.history.rounds)
        ids = [candidate_id(index, i) for i in range(self.random.randint(1, 4))]
        proposals = {id_: Proposal(title=id_, name=f"name of {id_}") for id_ in ids}
        base = self.random.choice(["f" * 40, *(c.commit for e in self.history.entries() if (c := e.candidate))])
        self.event("round.proposed", round=index, base=base, proposals={i: to_json(p) for i, p in proposals.items()})
        made = [
            to_json(Candidate(id=i, round=index, proposal=p, parent=base, commit=commit_of(i)))
            for i, p in proposals.items()
        ]
        tiers = {id_: self.random.choice("ab") for id_ in ids}
        self.event("round.committed", round=index, candidates=made, tiers=tiers)
        for id_, tier in tiers.items():
            self._submit(index, id_, tier)

    def _submit(self, index: int, id_: str, tier: str) -> None:
        trial = trial_id(id_, len(self.history.entry(id_).trials))
        self.event("submit.intent", round=index, job_name=f"job of {trial}", tier=tier, trials=[trial])
        self.event("submit.done", round=index, job_name=f"job of {trial}", jobs={trial: "7"})

    def _done(self) -> None:
        waiting = [trial for trial in self.history.trials() if trial.job_name and not trial.result]
        if waiting:
            trial = self.random.choice(waiting)
            status = self.random.choice([Status.OK, Status.OK, Status.OK, Status.OOM, Status.LOST])
            value = 1 + self.random.random() / 7 if status is Status.OK else None
            gpu = Gpu(name=f"GPU {trial.tier}", count=self.random.randint(0, 2))
            total_s = self.random.random() * 10 ** self.random.randint(-3, 3)
            result = self.run.result(trial.id, value, status, gpu=gpu, total_s=total_s)
            phases = dataclasses.replace(result.phases, total_s=total_s)
            result = dataclasses.replace(result, tier=trial.tier, phases=phases)
            self.event("trial.done", trial=trial.id, result=to_json(result))

    def _more(self) -> None:
        entries = [(r, e) for r in self.history.open_rounds for e in r.entries.values() if e.candidate]
        if entries:
            round_, entry = self.random.choice(entries)
            tier = self.random.choice("ab")
            self.event("trials.wanted", round=round_.index, stage="look", tier=tier, trials={entry.id: 1})
            self._submit(round_.index, entry.id, tier)

    def _drop(self) -> None:
        if ended := [trial for trial in self.history.trials() if trial.result and trial.dropped is None]:
            self.event("trial.dropped", trial=self.random.choice(ended).id, reason="x")

    def _charge(self) -> None:
        ended = [trial.id for trial in self.history.trials() if trial.result]
        some = self.random.sample(ended, min(len(ended), 2))
        self.event("trial.charged", gpu_s={id_: self.random.random() * 1000 for id_ in some})

    def _judge(self) -> None:
        for round_ in self.history.open_rounds:
            if not round_.judged and any(entry.value is not None for entry in round_.entries.values()):
                best = self.random.choice([e for e in round_.entries.values() if e.value is not None])
                verdicts = {id_: "keep" if id_ == best.id else "discard" for id_ in round_.entries}
                incumbent = {"candidate": best.id, "commit": commit_of(best.id), "value": best.value}
                sd = self.random.random()
                noise = self.random.choice([None, {"sd": sd, "df": 2.0, "kind": "x", "measured_df": 1.0}])
                self.event("round.judged", round=round_.index, verdicts=verdicts, incumbent=incumbent, noise=noise)
                return

    def _close(self) -> None:
        if judged := [round_ for round_ in self.history.open_rounds if round_.judged]:
            self.event("round.closed", round=self.random.choice(judged).index)

    def _shrink(self) -> None:
        wants = [(r, want) for r in self.history.open_rounds if not r.judged for want in r.needed]
        if wants:
            round_, want = self.random.choice(wants)
            self.event("round.shrunk", round=round_.index, tier=want.tier, candidates=[want.candidate], reason="x")

    def _call(self) -> None:
        self._calls += self.random.random() < 0.7
        self.event("agent.calling", call=f"r00/{self._calls}", at_most_usd=self.random.random())
        if self.random.random() < 0.8:
            told = {"usd": self.random.random() / 3, "prompt_tokens": 1, "answer_tokens": 2}
            self.event("agent.called", call=f"r00/{self._calls}", **told)


def anew(history: History) -> History:
    """The same state, of which nothing is remembered but what it is."""
    fresh = History(**{field.name: getattr(history, field.name) for field in dataclasses.fields(history)})
    fresh.tally = Tally()
    for call in fresh.calls.values():
        fresh.tally.call(call, 0.0)
    for round_ in fresh.rounds:
        if round_.closed_at is None:
            fresh.tally.open[round_.index] = round_
    for entry in fresh.entries():
        fresh.tally.entry(entry)
        entry.version -= 1
        for trial in entry.trials:
            fresh.tally.trial(trial)
    return fresh


@pytest.mark.parametrize("seed", range(12))
def test_sums_and_indices_are_what_a_walk_through_everything_finds(tmp_path: Path, seed: int) -> None:
    wild = Wild(FakeRun(tmp_path / "tag"), seed)
    tables, layout = Tables(), wild.run.layout
    files = (layout.results_tsv, layout.candidates_csv, layout.trials_csv)
    for move, history in enumerate(wild.play(150)):
        trials = [trial for trial in history.trials() if trial.result]
        results: list[TrialResult] = [trial.result for trial in trials if trial.result]
        amount = used(history, TIERS)
        held_s = {t: math.fsum(x.held_s for x in trials if x.tier == t) for t in {x.tier for x in trials}}
        assert {tier: s for tier, s in history.tally.held_s.items() if history.tally.num_ended[tier]} == held_s
        assert amount.trials == len(trials)
        assert amount.gpu_hours == pytest.approx(sum(held_s.values()) / 3600, rel=1e-12)
        assert amount.usd == pytest.approx(sum(s * TIERS.price(t) for t, s in held_s.items()) / 3600, rel=1e-12)
        on_gpu = (
            x.gpu_s if x.gpu_s is not None else x.held_s * r.gpu.count for x, r in zip(trials, results, strict=True)
        )
        assert history.tally.on_gpu_s == pytest.approx(math.fsum(on_gpu), rel=1e-12)
        assert history.llm_usd == pytest.approx(math.fsum(c.cost_usd for c in history.calls.values()), rel=1e-12)
        assert history.open_rounds == [round_ for round_ in history.rounds if round_.closed_at is None]
        assert history.kept == [entry for entry in history.entries() if entry.verdict is Verdict.KEEP]
        assert set(history.tally.mixed) == {entry.id for entry in history.entries() if not entry.one_kind}
        lost = {trial.id for trial in trials if trial.result and trial.result.status is Status.LOST}
        assert set(history.tally.lost) == lost
        for entry in history.entries():
            assert history.find(entry.id) is history.find(f"name of {entry.id}") is entry
            if entry.candidate and len(history.rounds) < 100:
                assert base_of(history, entry.candidate.commit) == entry.id
        if move % 10 == 0:
            fresh = anew(history)
            assert history.outcomes() == fresh.outcomes()
            assert history.outcomes(unjudged=True) == fresh.outcomes(unjudged=True)
            assert summarize(history) == summarize(fresh)
            tables.write(history, wild.run.layout)
            kept_up = [path.read_text() for path in files]
            Tables().write(fresh, wild.run.layout)
            assert kept_up == [path.read_text() for path in files]
