"""What the controller journals of a judgement and tells agents; whole rounds are in tests/e2e and tests/slurm."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_run import COMMIT, FakeRun, told_from_luck

from autoresearch_hpc.budget import Budget
from autoresearch_hpc.config import BudgetConfig, Config, DecideConfig, PlanConfig
from autoresearch_hpc.controller import Controller
from autoresearch_hpc.effects import FitProcess
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.history import History
from autoresearch_hpc.journal import Journal, read
from autoresearch_hpc.ledger import Ledger
from autoresearch_hpc.records import Candidate, Outcome, Proposal, SearchState, to_json
from autoresearch_hpc.tiers import Tiers


class Listener:
    """An agent that proposes nothing and keeps what it is asked and told."""

    def __init__(self) -> None:
        self.asked: list[SearchState] = []
        self.wanted: list[int] = []
        self.told: list[Outcome] = []

    def ask(self, state: SearchState, k: int) -> Sequence[Proposal]:
        self.asked.append(state)
        self.wanted.append(k)
        return []

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        self.told += outcomes

    def incremental(self, index: int) -> bool:
        return False

    def prepare(self, state: SearchState, k: int) -> None:
        self.asked.append(state)

    def close(self) -> None:
        pass


class Seat:
    """A controller over a run's journal; what makes commits and trains is not there."""

    def __init__(self, run: FakeRun, journal: Journal, decide: DecideConfig) -> None:
        self.run, self.agent, self.ledger = run, Listener(), Ledger(journal)
        self.combined: list[Proposal] = []
        absent: Any = SimpleNamespace()
        config = Config(plan=PlanConfig(name="p", max_rounds=9), decide=decide)
        self.controller = Controller(
            config,
            layout=run.layout,
            ledger=self.ledger,
            repo=SimpleNamespace(working_text=lambda path: f"what {path} says"),  # type: ignore[arg-type]
            agent=self.agent,  # type: ignore[arg-type]
            maker=SimpleNamespace(sources=lambda commit: {"train.py": f"# {commit}"}),  # type: ignore[arg-type]
            combiner=SimpleNamespace(propose=lambda history, index, k: self.combined),  # type: ignore[arg-type]
            fanout=absent,
            budget=Budget(config=BudgetConfig(), tiers=Tiers.of(config), job_limit_s=1.0),
            fit=FitProcess(),
            stop=absent,
        )


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return told_from_luck(tmp_path / "told")


@pytest.fixture
def seat(run: FakeRun) -> Iterator[Seat]:
    [trial] = run.propose(["a"])
    run.done(trial, 0.9940)
    run.again("look 1", r03_c00=[0.9942])
    run.again("look 2", r03_c00=[0.9941] * 3)
    with Journal(run.layout.journal) as journal:
        yield Seat(run, journal, DecideConfig(noise_sd=0.0008, noise_df=50.0))


def test_an_agent_is_asked_with_the_noise_and_the_near_misses(seat: Seat) -> None:
    seat.controller._proposer.propose(4)
    [state] = seat.agent.asked
    assert state.incumbent == "r01-c00"
    assert state.incumbent_value == pytest.approx(0.9948)
    assert state.noise
    assert state.noise.sd == 0.0006
    assert state.pool == ("r01-c01",)
    assert state.program == "what program.md says"
    assert state.failed == {}
    assert [proposal.title for proposal in state.running] == ["a"], "round 3 is not judged yet"
    near = next(outcome for outcome in state.outcomes if outcome.candidate == state.pool[0])
    assert near.finding
    assert near.finding.words.startswith("near miss: +0.001500 ± 0.001300, p=0.071 of K=3, expected +0.000900 (")


def test_combinations_take_slots_of_the_agent_which_hears_of_them(seat: Seat) -> None:
    assert seat.controller._proposer.propose(4) == []
    seat.combined = [Proposal(title="both", parts=("r01-c01", "r03-c00"))]
    assert seat.controller._proposer.propose(4) == seat.combined
    assert seat.agent.wanted == [4, 3]
    assert [set(seat.combined[0].parts) in [set(p.parts) for p in s.running] for s in seat.agent.asked] == [False, True]


def test_a_judgement_is_journaled_in_numbers_and_replays_to_the_same_state(seat: Seat) -> None:
    round_ = seat.ledger.history.rounds[-1]
    seat.controller._judge(round_)
    again = History.replay(read(seat.run.layout.journal))
    assert asdict(again) == asdict(seat.ledger.history)
    found = again.entry("r03-c00").finding
    assert found
    assert found.gain
    assert found.gain.value == pytest.approx(0.9948 - 0.9941)
    assert (found.k, found.num_trials, found.num_incumbent_trials) == (1, 5, 3)
    assert again.noise
    assert again.noise.measured_df > 0
    assert again.over_baseline
    assert seat.agent.told[-1].finding == found
    assert again.incumbent
    assert again.incumbent.candidate == "r01-c00"
    assert set(again.pool) == {"r01-c01", "r03-c00"}, "about 1.3 standard errors ahead, and not proven"


def test_a_judgement_of_unknown_noise_is_journaled_too(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "r")
    run.round([("baseline", 1.0, "keep")])
    run.done(run.propose(["a"])[0], 0.5)
    with Journal(run.layout.journal) as journal:
        seat = Seat(run, journal, DecideConfig(rule="best"))
        seat.controller._judge(seat.ledger.history.rounds[-1])
    history = run.history()
    assert history.noise is None
    assert history.over_baseline
    assert (history.over_baseline.value, history.over_baseline.margin) == (0.5, None)
    assert history.entry("r01-c00").finding
    assert history.entry("r01-c00").finding.words == "promote: +0.500000, noise unknown, K=1"  # type: ignore[union-attr]


def committing(tmp_path: Path, **on: str | None) -> tuple[Seat, list[tuple[str, str]], Journal]:
    """A controller with a round of candidates c00, c01, ... of which each builds on what is given; what was made."""
    run, made = FakeRun(tmp_path / "r"), []
    run.round([("baseline", 1.0, "keep")])
    proposals = {f"r01-{name}": to_json(Proposal(title=name, on=parent)) for name, parent in on.items()}
    run.event("round.proposed", round=1, base=COMMIT, proposals=proposals)
    journal = Journal(run.layout.journal)
    seat = Seat(run, journal, DecideConfig(rule="best"))

    def make(id_: str, round_: int, proposal: Proposal, parent: str, knobs: object) -> Candidate:
        made.append((id_, parent))
        return Candidate(id=id_, round=round_, proposal=proposal, parent=parent, commit=f"commit of {id_}")

    seat.controller._committer._maker = SimpleNamespace(make=make)  # type: ignore[assignment]
    return seat, made, journal


def test_candidates_may_build_on_others_of_their_round(tmp_path: Path) -> None:
    seat, made, journal = committing(tmp_path, c00="r01-c02", c01=None, c02="r01-c01")
    with journal:
        seat.controller._commit(seat.ledger.history.rounds[-1])
    base = seat.ledger.history.entry("r00-c00").candidate
    assert base
    assert made == [("r01-c01", base.commit), ("r01-c02", "commit of r01-c01"), ("r01-c00", "commit of r01-c02")]
    assert list(seat.ledger.history.rounds[-1].needed) == [
        ("r01-c00", "default"),
        ("r01-c01", "default"),
        ("r01-c02", "default"),
    ]


@pytest.mark.parametrize("on", [{"c00": "r01-c00"}, {"c00": "r01-c01", "c01": "r01-c00"}, {"c00": "nobody"}], ids=str)
def test_candidates_that_build_on_nothing_are_refused(tmp_path: Path, on: dict[str, str | None]) -> None:
    seat, _, journal = committing(tmp_path, **on)
    with journal, pytest.raises(ConfigError, match="which is no earlier candidate"):
        seat.controller._commit(seat.ledger.history.rounds[-1])
