"""When the controller asks for candidates, how many, and when it judges: rounds that overlap, and some that grow."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_run import FakeRun, commit_of, gpu_of

from autoresearch_hpc.budget import Budget
from autoresearch_hpc.config import (
    Baseline,
    BudgetConfig,
    CandidateConfig,
    ClusterConfig,
    Config,
    DecideConfig,
    PlanConfig,
    RoundConfig,
    TierConfig,
    ValidateConfig,
)
from autoresearch_hpc.controller import Controller
from autoresearch_hpc.effects import FitProcess
from autoresearch_hpc.history import History, Round
from autoresearch_hpc.journal import Journal, read
from autoresearch_hpc.ledger import Ledger
from autoresearch_hpc.records import Candidate, Knobs, Outcome, Proposal, SearchState, Status, to_json
from autoresearch_hpc.stopping import StopRequest
from autoresearch_hpc.tiers import Tiers

BEST = DecideConfig(rule="best")
SIGNIFICANT = DecideConfig(noise_sd=0.0005, noise_df=50)
TWO = {"h100": TierConfig(max_parallel=4), "h200": TierConfig(max_parallel=2)}


class Author:
    """Proposes as many as it is asked for, and has so many in all; keeps what it is asked."""

    def __init__(self, incremental: bool = True, num: int = 1000) -> None:
        self._incremental, self._left = incremental, num
        self.asked: list[tuple[int, int]] = []  # round, candidates
        self.states: list[SearchState] = []
        self.prepared: list[int] = []
        self.told: list[Outcome] = []

    def ask(self, state: SearchState, k: int) -> Sequence[Proposal]:
        self.asked.append((state.index, k))
        self.states.append(state)
        number = min(k, self._left)
        self._left -= number
        return [Proposal(title=f"edit {state.index}/{state.num_proposed + i}") for i in range(number)]

    def incremental(self, index: int) -> bool:
        return self._incremental

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        self.told += outcomes

    def prepare(self, state: SearchState, k: int) -> None:
        self.prepared.append(state.index)

    def close(self) -> None:
        pass


class Maker:
    """Commits that nobody makes."""

    def make(self, id_: str, round_: int, proposal: Proposal, parent: str, knobs: Knobs) -> Candidate:
        return Candidate(id=id_, round=round_, proposal=proposal, parent=parent, commit=commit_of(id_))

    def sources(self, commit: str) -> Mapping[str, str]:
        return {"train.py": f"# {commit}"}

    def script_knobs(self, commit: str) -> Knobs:
        return {}

    def edit(self, proposal: Proposal, commit: str) -> Mapping[str, str | None]:
        return {}


class Trainer:
    """In the place of Fanout: submits what is missing as far as there are slots, and one trial after another ends."""

    def __init__(self, desk: "Desk", value: Callable[[str, str], float | None]) -> None:
        self._desk, self._value = desk, value
        self.most: dict[str, int] = {}

    def train(self, *rounds: Round, until: Callable[[], bool]) -> None:
        passes = itertools.count()
        while not until():
            assert next(passes) < 200, "it waits for what never comes"
            for round_ in rounds:
                self._desk.submit(round_, within_slots=True)
            outstanding = self._desk.history.outstanding
            for tier in {trial.tier for trial in outstanding}:
                number = sum(trial.tier == tier for trial in outstanding)
                self.most[tier] = max(self.most.get(tier, 0), number)
            if outstanding:
                trial = outstanding[0]
                self._desk.end(trial.id, self._value(trial.candidate, trial.tier))

    def take_over(self, *rounds: Round) -> None:
        pass

    def require_one(self, round_: Round) -> None:
        pass

    def settle(self) -> None:
        pass

    def interrupt(self) -> list[str]:
        return []


class Desk:
    """A controller over a journal, whose trials end when the test says so."""

    def __init__(
        self, root: Path, author: Author, decide: DecideConfig = BEST, budget: BudgetConfig | None = None, **more: Any
    ) -> None:
        plan = more.pop("plan", {})
        cluster = more.pop("cluster", {"max_parallel": 4, "tier": "h100"})
        self.config = Config(
            plan=PlanConfig(name="p", **{"k": 8, "max_rounds": 9, **plan}),
            cluster=ClusterConfig(**cluster),
            decide=decide,
            **{"schedule": "async", **more},
        )
        self.tiers, self.author, self.advanced = Tiers.of(self.config), author, list[str]()
        self.budget = budget or BudgetConfig()
        self.run = FakeRun(root / "tag", deciding_tier=self.tiers.validates)
        self.journal = Journal(self.run.layout.journal)
        self.begin()

    def begin(self, value: Callable[[str, str], float | None] = lambda candidate, tier: 1.0) -> None:
        """As a controller that starts, or starts again, does."""
        self.ledger = Ledger(self.journal)
        self.trainer = Trainer(self, value)
        self.controller = Controller(
            self.config,
            layout=self.run.layout,
            ledger=self.ledger,
            repo=SimpleNamespace(  # type: ignore[arg-type]
                working_text=lambda path: "", advance=lambda tag, commit: self.advanced.append(commit)
            ),
            agent=self.author,  # type: ignore[arg-type]
            maker=Maker(),  # type: ignore[arg-type]
            combiner=SimpleNamespace(propose=lambda history, index, k: []),  # type: ignore[arg-type]
            fanout=self.trainer,  # type: ignore[arg-type]
            budget=Budget(config=self.budget, tiers=self.tiers, job_limit_s=3600.0),
            fit=FitProcess(),
            stop=StopRequest("resume"),
        )

    def restart(self) -> None:
        """The controller was killed; another one takes the run."""
        self.journal.close()
        self.journal = Journal(self.run.layout.journal)
        self.begin()

    @property
    def history(self) -> History:
        return self.ledger.history

    @property
    def open(self) -> list[int]:
        return [round_.index for round_ in self.history.open_rounds]

    @property
    def sizes(self) -> list[int]:
        return [len(round_.entries) for round_ in self.history.rounds]

    def submit(self, round_: Round, within_slots: bool = False) -> list[str]:
        """What the round lacks; as far as its tiers have slots for it, if asked."""
        submitted = []
        for want, number in list(round_.missing.items()):
            for _ in range(number):
                taken = sum(trial.tier == want.tier for trial in self.history.outstanding)
                slots = self.tiers.slots[want.tier]
                if within_slots and slots and taken >= slots + self.config.cluster.backlog:
                    break
                trial = f"{want.candidate}-t{len(self.history.entry(want.candidate).trials)}"
                at = {"round": round_.index, "job_name": f"job-{trial}"}
                self.ledger.record("submit.intent", **at, tier=want.tier, trials=[trial])
                self.ledger.record("submit.done", **at, jobs={trial: trial})
                submitted.append(trial)
        return submitted

    def end(self, trial: str, value: float | None = 1.0) -> None:
        tier = self.history.trial(trial).tier
        result = self.run.result(trial, value, tier=tier, gpu=gpu_of(tier))
        self.ledger.record("trial.done", trial=trial, result=to_json(result))

    def go(self, **ended: float | None) -> str | None:
        """Trials of these candidates have ended (r01_c00=0.9, the oldest of each); the controller goes on, and all that
        it wants is submitted."""
        for name, value in ended.items():
            id_ = name.replace("_", "-")
            self.end(next(t.id for t in self.history.entry(id_).trials if t.result is None), value)
        reason = self.controller._go_on()
        for round_ in self.history.open_rounds:
            self.submit(round_)
        return reason

    def stages(self, index: int) -> list[str]:
        return self.history.rounds[index].stages


@pytest.fixture
def desks(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    made: list[Desk] = []

    def make(author: Author | None = None, *args: Any, **more: Any) -> Desk:
        made.append(Desk(tmp_path / str(len(made)), author or Author(), *args, **more))
        return made[-1]

    yield make
    for desk in made:
        desk.journal.close()


# a slot that comes free is filled


def test_as_many_as_there_are_free_slots_and_never_more_than_the_plan_has(desks: Callable[..., Desk]) -> None:
    desk = desks(plan={"k": 6})
    assert desk.go() is None
    assert (desk.author.asked, desk.sizes) == ([], [1]), "the baseline alone"
    assert desk.go() is None
    assert desk.author.asked == [], "nobody knows yet whether the baseline runs at all"
    desk.go(r00_c00=1.0)
    assert (desk.open, desk.author.asked) == ([1], [(1, 4)])
    desk.go()
    assert desk.author.asked == [(1, 4)], "no slot is free"
    desk.go(r01_c01=1.1)
    assert desk.author.asked[1:] == [(1, 1)]
    desk.go(r01_c00=1.1, r01_c02=1.1)
    assert desk.author.asked[2:] == [(1, 1), (2, 1)], "the round has six; the next one opens, though this is not judged"
    assert (desk.open, desk.sizes) == ([1, 2], [1, 6, 1])
    assert list(desk.history.rounds[1].entries) == [f"r01-c0{i}" for i in range(6)]
    assert [state.num_proposed for state in desk.author.states] == [0, 4, 5, 0]
    assert not desk.history.rounds[1].judged
    desk.go(r01_c03=1.1, r01_c04=1.1)
    assert (desk.open, desk.sizes) == ([1, 2], [1, 6, 3])
    desk.go(r01_c05=1.1)
    assert (desk.open, desk.sizes) == ([2], [1, 6, 4]), "all six are there"
    assert desk.history.rounds[1].judged


def test_agents_hear_of_each_result_and_of_what_is_under_way(desks: Callable[..., Desk]) -> None:
    desk = desks()
    desk.go()
    desk.go(r00_c00=1.0)
    desk.go(r01_c01=0.9, r01_c03=None)
    state = desk.author.states[-1]
    assert [(o.candidate, o.value, o.status) for o in state.outcomes] == [
        ("r00-c00", 1.0, Status.OK), ("r01-c01", 0.9, Status.OK), ("r01-c03", None, Status.CRASHED)
    ]  # fmt: skip
    assert [proposal.title for proposal in state.running] == ["edit 1/0", "edit 1/2"]
    assert (state.index, state.num_proposed) == (1, 4)
    assert (state.incumbent, state.incumbent_value) == ("r00-c00", 1.0)


def test_a_backlog_waits_in_the_queue(desks: Callable[..., Desk]) -> None:
    desk = desks(cluster={"max_parallel": 2, "backlog": 3, "tier": "h100"})
    desk.go()
    desk.go(r00_c00=1.0)
    assert desk.author.asked == [(1, 5)]


def test_without_a_limit_of_the_cluster_the_plans_k_is_what_trains_at_once(desks: Callable[..., Desk]) -> None:
    desk = desks(cluster={"tier": "h100"}, plan={"k": 3})
    desk.go()
    desk.go(r00_c00=1.0)
    desk.go(r01_c00=1.0)
    assert desk.author.asked == [(1, 3), (2, 1)]


def test_what_waits_for_a_slot_takes_it(desks: Callable[..., Desk]) -> None:
    """Two replicates of the baseline are in the queue beside the first candidates, one candidate is not yet."""
    desk = desks(None, SIGNIFICANT)
    desk.go()
    desk.go(r00_c00=1.0)
    assert desk.open == [0, 1], "the baseline runs; what its replicates say is not needed for proposals"
    assert desk.author.asked == [(1, 2)]
    desk.end("r00-c00-t1", 1.0)
    desk.controller._go_on()  # what it proposes stays here
    assert desk.author.asked == [(1, 2), (1, 1)]
    desk.controller._go_on()
    assert desk.author.asked == [(1, 2), (1, 1)]


def test_at_most_four_rounds_are_open(desks: Callable[..., Desk]) -> None:
    desk = desks(plan={"k": 2}, cluster={"max_parallel": 20, "tier": "h100"})
    desk.go()
    desk.go(r00_c00=1.0)
    assert (desk.open, desk.sizes) == ([1, 2, 3, 4], [1, 2, 2, 2, 2])
    desk.go(r01_c00=1.0, r02_c00=1.0, r02_c01=1.0)
    assert desk.open == [1, 3, 4, 5]
    assert [round_.judged for round_ in desk.history.rounds] == [True, False, True, False, False, False]


def test_no_more_rounds_than_the_plan_has(desks: Callable[..., Desk]) -> None:
    desk = desks(plan={"k": 2, "max_rounds": 2})
    desk.go()
    desk.go(r00_c00=1.0)
    assert desk.open == [1, 2]
    desk.go(r02_c00=1.0, r02_c01=1.0)
    assert (desk.open, desk.sizes) == ([1], [1, 2, 2]), "the newest is over, an older one is not"
    assert desk.go(r01_c00=1.0, r01_c01=1.0) == "the plan is complete"
    assert desk.open == []


def test_a_joined_baseline_is_beside_the_first_part(desks: Callable[..., Desk]) -> None:
    desk = desks(plan={"k": 4, "baseline": Baseline.joined})
    desk.go()
    assert (desk.author.asked, desk.sizes) == ([(0, 3)], [4])
    desk.go(r00_c01=1.0)
    assert len(desk.author.asked) == 1, "the baseline has no value yet"
    desk.go(r00_c00=1.0)
    assert desk.author.asked[1:] == [(0, 1), (1, 1)], "four candidates, the baseline not counted"
    assert list(desk.history.rounds[0].entries) == [f"r00-c0{i}" for i in range(5)]
    assert desk.author.states[1].num_proposed == 4


@pytest.mark.parametrize("explicit", [False, True])
def test_who_proposes_whole_rounds_is_asked_once(desks: Callable[..., Desk], explicit: bool) -> None:
    rounds = [RoundConfig(candidates=[CandidateConfig(knobs={"A": i}) for i in range(8)])] if explicit else []
    desk = desks(Author(incremental=False), plan={"rounds": rounds})
    desk.go()
    desk.go(r00_c00=1.0)
    assert (desk.author.asked, desk.sizes) == ([(1, 8)], [1, 8])
    desk.go(r01_c00=1.0)
    assert desk.author.asked == [(1, 8)], "as many as there are slots still wait for one, or train"


def test_thinking_ahead_begins_once_a_round_is_all_proposed(desks: Callable[..., Desk]) -> None:
    desk = desks(plan={"k": 5})
    desk.go()
    assert desk.author.prepared == [1]
    desk.go(r00_c00=1.0)
    assert desk.author.prepared == [1], "the first round has four of its five"
    desk.go(r01_c00=1.0)
    assert desk.author.prepared == [1, 2]


# a round that does not get all of its candidates


def test_a_round_is_judged_with_what_it_has_once_the_budget_is_used_up(desks: Callable[..., Desk]) -> None:
    desk = desks(None, BEST, BudgetConfig(max_trials=7))
    desk.go()
    desk.go(r00_c00=1.0)
    desk.go(r01_c00=1.0, r01_c01=1.0)
    assert (desk.sizes, desk.author.asked) == ([1, 6], [(1, 4), (1, 2)])
    assert desk.go(r01_c02=1.0) is None
    assert not desk.history.rounds[1].judged
    assert not desk.controller._schedule.may_go_on(), "there is nothing to do but to wait for the others"
    desk.end("r01-c03-t0", 1.0)
    desk.end("r01-c04-t0", 1.0)
    desk.end("r01-c05-t0", 0.9)
    assert desk.controller._schedule.may_go_on()
    assert desk.go() == "budget.max_trials=7: 7 done"
    assert (desk.open, desk.sizes) == ([], [1, 6])
    assert desk.history.incumbent
    assert desk.history.incumbent.candidate == "r01-c05"


def test_a_budget_that_has_room_for_replicates_only_is_named(desks: Callable[..., Desk]) -> None:
    desk = desks(None, SIGNIFICANT, BudgetConfig(max_trials=6), plan={"k": 2}, schedule="rounds")
    desk.go()
    desk.go(r00_c00=1.0)
    desk.go(r00_c00=1.0)
    assert desk.go(r00_c00=1.0) is None
    desk.go(r01_c00=0.5)
    assert desk.go(r01_c01=1.0) == "budget.max_trials=6: 5 done", "the new incumbent needs two more trials"
    assert (desk.author.asked, desk.sizes) == ([(1, 2)], [1, 2])


def test_a_round_is_judged_with_what_it_has_once_the_agent_has_nothing_more(desks: Callable[..., Desk]) -> None:
    desk = desks(Author(num=3))
    desk.go()
    desk.go(r00_c00=1.0)
    assert desk.sizes == [1, 3]
    assert desk.go(r01_c00=1.0, r01_c01=1.0, r01_c02=1.0) == "the agent has nothing more to propose"
    assert (desk.open, desk.sizes) == ([], [1, 3])
    assert desk.history.rounds[1].judged


def test_a_part_that_is_over_is_no_round_that_is_over(desks: Callable[..., Desk]) -> None:
    desk = desks()
    desk.go()
    desk.go(r00_c00=1.0)
    desk.go(r01_c00=1.0, r01_c01=1.0, r01_c02=1.0, r01_c03=1.0)
    assert (desk.open, desk.sizes) == ([1], [1, 8])
    assert not desk.history.rounds[1].judged


# going on


def test_a_successor_goes_on_in_the_middle_of_a_round(desks: Callable[..., Desk]) -> None:
    desk = desks()
    desk.go()
    desk.go(r00_c00=1.0)
    before = asdict(desk.history)
    desk.restart()
    assert asdict(desk.history) == before
    assert [o.candidate for o in desk.author.told] == ["r00-c00", "r00-c00"], "what was judged is told again"
    desk.go()
    assert desk.author.asked == [(1, 4)]
    desk.go(r01_c02=1.0)
    assert desk.author.asked == [(1, 4), (1, 1)]
    assert list(desk.history.rounds[1].entries) == [f"r01-c0{i}" for i in range(5)]
    assert desk.author.states[-1].num_proposed == 4
    assert desk.stages(1) == ["array"]


def test_a_part_that_was_proposed_and_not_committed_is_committed(desks: Callable[..., Desk]) -> None:
    desk = desks()
    desk.go()
    desk.go(r00_c00=1.0)
    more = {"r01-c04": to_json(Proposal(title="killed here"))}
    desk.end("r01-c00-t0")
    desk.ledger.record("round.proposed", round=1, base="f" * 40, proposals=more)
    desk.restart()
    desk.go()
    assert desk.author.asked == [(1, 4)], "it is what fills the slot"
    assert desk.history.rounds[1].committed
    assert desk.history.entry("r01-c04").trials
    committed = [e.data["candidates"] for e in read(desk.run.layout.journal) if e.event == "round.committed"]
    assert [[c["id"] for c in made] for made in committed] == [
        ["r00-c00"], ["r01-c00", "r01-c01", "r01-c02", "r01-c03"], ["r01-c04"]
    ]  # fmt: skip


# judged for itself, against the incumbent of that moment


def test_an_older_round_does_not_bring_back_what_a_newer_one_has_beaten(desks: Callable[..., Desk]) -> None:
    desk = desks(plan={"k": 2})
    desk.go()
    desk.go(r00_c00=1.0)
    desk.go(r02_c00=0.8, r02_c01=1.0)
    assert desk.history.incumbent
    assert desk.history.incumbent.candidate == "r02-c00"
    base = desk.history.rounds[3].base
    assert base == commit_of("r02-c00"), "what is proposed now builds on it"
    assert desk.history.rounds[1].base == commit_of("r00-c00")
    desk.go(r01_c00=0.9, r01_c01=1.0)
    assert desk.history.incumbent.candidate == "r02-c00", "0.9 beats the baseline that it was built on, not this"
    finding = desk.history.entry("r01-c00").finding
    assert finding
    assert finding.gain
    assert finding.gain.value == pytest.approx(-0.1)
    assert desk.advanced == [commit_of("r00-c00"), commit_of("r02-c00"), commit_of("r02-c00")]


# one round after another


def test_without_async_a_round_begins_when_the_last_one_is_over(desks: Callable[..., Desk]) -> None:
    desk = desks(schedule="rounds")
    desk.go()
    desk.go(r00_c00=1.0)
    assert (desk.author.asked, desk.sizes) == ([(1, 8)], [1, 8]), "a whole round, whatever the slots"
    desk.go(**{f"r01_c0{i}": 1.0 for i in range(7)})
    assert (desk.open, len(desk.author.asked)) == ([1], 1)
    desk.go(r01_c07=1.0)
    assert (desk.open, desk.author.asked[1:]) == ([2], [(2, 8)])
    assert desk.author.states[1].running == ()


@pytest.fixture
def validating(desks: Callable[..., Desk]) -> Desk:
    """Round 1 of two candidates is about to be screened on h100, its best to be validated on h200."""
    plan = {"k": 2, "validate": ValidateConfig(top=1, seeds=1)}
    desk = desks(schedule="rounds", plan=plan, cluster={"gpus": None, "tiers": TWO})
    desk.go()
    assert [t.tier for t in desk.history.outstanding] == ["h200", "h100"]
    desk.go(r00_c00=0.9)
    desk.go(r00_c00=1.0)
    return desk


def test_the_baseline_is_asked_for_on_both_tiers_once(validating: Desk) -> None:
    desk = validating
    assert desk.stages(0) == ["array on h200", "array"]
    assert [(t.id, t.tier) for t in desk.history.entry("r00-c00").trials] == [
        ("r00-c00-t0", "h200"), ("r00-c00-t1", "h100")
    ]  # fmt: skip
    assert desk.stages(1) == ["array on h200", "array"]
    assert [e.data["trials"] for e in read(desk.run.layout.journal) if e.event == "trials.wanted"] == [
        {"r00-c00": 1}, {}, {}, {}
    ]  # fmt: skip


def test_agents_hear_of_the_baseline_as_of_all_others_what_it_is_worth_where_candidates_are_tried(
    validating: Desk,
) -> None:
    """Its first trial was on the other tier."""
    desk = validating
    assert desk.history.incumbent
    assert desk.history.incumbent.value == 0.9
    [outcome] = desk.author.states[0].outcomes
    assert (outcome.value, outcome.kind) == (1.0, "H100, tier h100")


def test_the_next_round_is_screened_while_the_last_one_is_validated(validating: Desk) -> None:
    desk = validating
    desk.go(r01_c00=0.99)
    assert (desk.open, desk.author.asked) == ([1], [(1, 2)]), "not before all are screened"
    desk.go(r01_c01=0.98)
    assert (desk.open, desk.author.asked) == ([1, 2], [(1, 2), (2, 2)])
    assert desk.stages(1)[-1] == "validation"
    assert [t.tier for t in desk.history.rounds[1].outstanding] == ["h200"]
    state = desk.author.states[-1]
    assert [o.candidate for o in state.outcomes] == ["r00-c00", "r01-c00", "r01-c01"], "heard before it is judged"
    assert state.running == ()
    assert state.incumbent == "r00-c00"


def test_no_third_round_before_the_first_is_over(validating: Desk) -> None:
    desk = validating
    desk.go(r01_c00=0.99, r01_c01=0.98)
    desk.go(r02_c00=0.97, r02_c01=0.96)
    assert (desk.open, desk.stages(2)[-1]) == ([1, 2], "validation")
    desk.go(r01_c01=0.89)
    assert (desk.open, desk.sizes) == ([2, 3], [1, 2, 2, 2])
    assert desk.history.incumbent
    assert (desk.history.incumbent.candidate, desk.history.incumbent.value) == ("r01-c01", 0.89)
    assert desk.history.rounds[3].base == commit_of("r01-c01")
    desk.go(r02_c01=0.895)
    assert desk.history.incumbent.candidate == "r01-c01", "0.895 beats the baseline, not what has won since"


def test_a_round_that_is_over_before_an_older_one_lets_the_next_begin(validating: Desk) -> None:
    desk = validating
    desk.go(r01_c00=0.99, r01_c01=0.98)
    desk.go(r02_c00=None, r02_c01=None)
    assert (desk.open, desk.history.rounds[2].judged) == ([1, 3], True)


def test_async_does_not_wait_for_the_validation(desks: Callable[..., Desk]) -> None:
    plan = {"k": 2, "validate": ValidateConfig(top=1, seeds=1)}
    desk = desks(plan=plan, cluster={"gpus": None, "tiers": TWO})
    desk.go()
    desk.go(r00_c00=0.9)
    assert len(desk.author.asked) == 2, "three slots of h100 are free: h200 has none for candidates"
    assert desk.author.asked == [(1, 2), (2, 1)]


# places


def test_a_round_spreads_over_what_is_least_busy_and_the_baseline_does_not(desks: Callable[..., Desk]) -> None:
    desk = desks(plan={"k": 20}, tiers="any", cluster={"gpus": None, "tiers": dict(reversed(TWO.items()))})
    desk.go()
    assert [(t.id, t.tier) for t in desk.history.outstanding] == [("r00-c00-t0", "h100"), ("r00-c00-t1", "h200")]
    desk.go(r00_c00=1.0)
    tiers = [trial.tier for trial in desk.history.rounds[1].trials]
    assert desk.author.asked == [(1, 5)], "six slots, one of them still taken"
    assert (tiers.count("h200"), tiers.count("h100")) == (1, 4)
    desk.go(r00_c00=1.0)
    assert desk.history.rounds[1].trials[-1].tier == "h200", "where a slot came free"


# whole runs


def worth(candidate: str, tier: str) -> float | None:
    """Later candidates are better; every third one fails; h200 gives less."""
    number = int(candidate[1:3]) * 10 + int(candidate[5:7])
    if number % 3 == 2:
        return None
    return (0.9 if tier == "h200" else 1.0) - number / 1000


@pytest.mark.parametrize("rule", [BEST, SIGNIFICANT], ids=lambda rule: rule.rule)
@pytest.mark.parametrize("schedule", ["rounds", "async"])
@pytest.mark.parametrize("kind", ["one", "validated", "any"])
def test_a_whole_run(desks: Callable[..., Desk], rule: DecideConfig, schedule: str, kind: str) -> None:
    cluster = {"max_parallel": 3, "tier": "h100"} if kind == "one" else {"gpus": None, "tiers": TWO}
    validate = ValidateConfig(top=int(kind == "validated"), seeds=2)
    plan = {"k": 5, "max_rounds": 4, "validate": validate}
    more = {"tiers": "any"} if kind == "any" else {}
    desk = desks(None, rule, plan=plan, schedule=schedule, cluster=cluster, **more)
    desk.begin(worth)
    assert desk.controller.run() == "the plan is complete"
    history = desk.history
    assert desk.sizes == [1, 5, 5, 5, 5]
    assert all(round_.judged and round_.closed_at and round_.complete for round_ in history.rounds)
    assert history.incumbent
    assert history.incumbent.candidate == "r04-c03", "the best of all that can run"
    slots = {"h100": 3} if kind == "one" else {"h100": 4, "h200": 2}
    assert all(most <= slots[tier] for tier, most in desk.trainer.most.items())
    assert desk.trainer.most["h100"] == slots["h100"]
    assert desk.author.told[-1].verdict is not None
    assert asdict(History.replay(read(desk.run.layout.journal))) == asdict(history)
    asked = [k for _, k in desk.author.asked]
    assert (max(asked) == 5 and len(asked) == 4) == (schedule == "rounds")


def test_a_run_that_is_killed_after_any_event_comes_to_the_same_end(desks: Callable[..., Desk], tmp_path: Path) -> None:
    plan = {"k": 2, "max_rounds": 2, "validate": ValidateConfig(top=1, seeds=1)}
    settings: dict[str, Any] = {"plan": plan, "cluster": {"gpus": None, "tiers": TWO}, "schedule": "async"}
    desk = desks(None, **settings)
    desk.begin(worth)
    desk.controller.run()
    lines = desk.run.layout.journal.read_text().splitlines(keepends=True)
    for number in range(2, len(lines)):
        twin = desks(None, **settings)
        twin.journal.close()
        twin.run.layout.journal.write_text("".join(lines[:number]))
        twin.journal = Journal(twin.run.layout.journal)
        twin.begin(worth)
        if not twin.history.stopped:
            twin.controller.run()
        assert twin.sizes == desk.sizes
        assert twin.history.incumbent == desk.history.incumbent
        ended = sorted(t.id for t in twin.history.trials() if t.result)
        assert ended == sorted(t.id for t in desk.history.trials() if t.result), f"killed after {lines[number - 1]}"
