"""Samplers that are asked while candidates are under way: for a part of a round, or for the next one."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import optuna
import pytest

from autoresearch_hpc import agents
from autoresearch_hpc.agents import Brief, PlannedAgent
from autoresearch_hpc.agents.gp import GpAgent
from autoresearch_hpc.agents.sampling import Sampler
from autoresearch_hpc.agents.tpe import TpeAgent, _distribution
from autoresearch_hpc.config import (
    AgentConfig,
    CandidateConfig,
    KnobDomain,
    KnobType,
    PlanConfig,
    RoundConfig,
    SpaceConfig,
)
from autoresearch_hpc.records import Direction, Knobs, Outcome, Proposal, SearchState, Status, candidate_id
from autoresearch_hpc.space import Space, from_config

SCRIPT: Knobs = {"DEPTH": 8, "LR": 0.04, "PATTERN": "L"}
DOMAINS = {
    "DEPTH": KnobDomain(type=KnobType.int, low=4, high=12),
    "LR": KnobDomain(type=KnobType.float, low=0.005, high=0.2, log=True, points=5),
    "PATTERN": KnobDomain(choices=["SSSL", "L"]),
}
SMALL = {"DEPTH": KnobDomain(choices=[4, 6, 8, 10]), "PATTERN": KnobDomain(choices=["SSSL", "L"])}
INCREMENTAL = ["cmaes", "gp", "grid", "random", "tpe"]


def space(domains: dict[str, KnobDomain]) -> Space:
    built = from_config(SpaceConfig(knobs=domains), SCRIPT)
    assert built is not None
    return built


def make(name: str, domains: dict[str, KnobDomain] = DOMAINS, seed: int = 0, **options: object) -> PlannedAgent:
    config = AgentConfig(name=name, options=dict(options))
    plan = PlanConfig(name="p", k=16, max_rounds=9)
    return agents.build(Brief(config=config, plan=plan, space=space(domains), seed=seed, fixed={}))


def state(
    running: Sequence[Proposal] = (), num_proposed: int = 0, index: int = 3, outcomes: Sequence[Outcome] = ()
) -> SearchState:
    return SearchState(
        index=index,
        direction=Direction.min,
        metric="val_bpb",
        incumbent="r00-c00",
        incumbent_value=1.0,
        incumbent_knobs=SCRIPT,
        source={"train.py": ""},
        outcomes=tuple(outcomes),
        running=tuple(running),
        num_proposed=num_proposed,
    )


def heard(*settings: tuple[Knobs, float | None]) -> list[Outcome]:
    return [
        Outcome(
            candidate=candidate_id(1, i),
            round=1,
            proposal=Proposal(title="x"),
            knobs={**SCRIPT, **knobs},
            status=Status.CRASHED if value is None else Status.OK,
            value=value,
        )
        for i, (knobs, value) in enumerate(settings)
    ]


def valley(lowest: float = 0.05) -> list[Outcome]:
    """Enough for a model: a smooth valley of the learning rate, DEPTH of no account."""
    rates = [0.005 * 40 ** (i / 15) for i in range(16)]
    return heard(*(({"LR": lr, "DEPTH": 4 + i % 9}, 1 + math.log(lr / lowest) ** 2) for i, lr in enumerate(rates)))


def key(proposal: Proposal) -> tuple[object, ...]:
    return tuple(repr(proposal.knobs[name]) for name in sorted(proposal.knobs))


@pytest.mark.parametrize("name", INCREMENTAL)
def test_what_is_under_way_is_not_proposed_again(name: str) -> None:
    """All of a small space but one setting, and the incumbent's, are under way."""
    everything = [Proposal(title="x", knobs={"DEPTH": d, "PATTERN": p}) for d in (4, 6, 8, 10) for p in ("SSSL", "L")]
    running = [p for p in everything if p.knobs not in ({"DEPTH": 10, "PATTERN": "L"}, {"DEPTH": 8, "PATTERN": "L"})]
    assert len(running) == 6
    left = make(name, SMALL).ask(state(running), 4)
    assert [proposal.knobs for proposal in left] == [{"DEPTH": 10, "PATTERN": "L"}]
    assert make(name, SMALL).ask(state([*running, *left]), 4) == []


@pytest.mark.parametrize("name", INCREMENTAL)
def test_a_proposal_that_sets_only_some_knobs_is_under_way_with_the_incumbents_others(name: str) -> None:
    running = [Proposal(title="x", knobs={"DEPTH": depth}) for depth in (4, 6, 10)]
    running += [
        Proposal(title="a file", files={"train.py": "x"}),
        Proposal(title="out of the space", knobs={"DEPTH": 99}),
    ]
    left = make(name, SMALL).ask(state(running), 9)
    assert {tuple(proposal.knobs.values()) for proposal in left} == {(depth, "SSSL") for depth in (4, 6, 8, 10)}


@pytest.mark.parametrize("outcomes", [[], valley()], ids=["nothing heard", "a model"])
@pytest.mark.parametrize("name", INCREMENTAL)
def test_one_after_another_they_are_all_different(name: str, outcomes: list[Outcome]) -> None:
    """As schedule=async asks: for one whenever a slot comes free, each by another process."""
    running: list[Proposal] = []
    for number in range(12):
        [proposal] = make(name).ask(state(running, number, outcomes=outcomes), 1)
        running.append(proposal)
    assert len({key(proposal) for proposal in running}) == 12
    if name == "grid":
        assert [p.knobs for p in running] == [p.knobs for p in make(name).ask(state(outcomes=outcomes), 12)]


@pytest.mark.parametrize("name", ["cmaes", "gp", "random", "tpe"])
def test_each_part_of_a_round_has_randomness_of_its_own_and_the_same_in_every_process(name: str) -> None:
    [first], [again] = (make(name).ask(state(), 1) for _ in range(2))
    [other] = make(name).ask(state(num_proposed=5), 1)
    [other_again] = make(name).ask(state(num_proposed=5), 1)
    [next_round] = make(name).ask(state(index=4), 1)
    assert key(first) == key(again)
    assert key(other) == key(other_again)
    assert len({key(first), key(other), key(next_round)}) == 3


def sampler(cls: type[Any], **options: object) -> Any:
    made: Sampler = cls(space(DOMAINS), 0, {}, **options)
    return made


def test_gp_expects_little_near_what_is_under_way() -> None:
    """One knob, two valleys of which the left one is deeper: once it is being tried, the right one is next."""
    knob = KnobDomain(type=KnobType.float, low=0.0, high=1.0)
    agent = GpAgent(space({"LR": knob}), 0, {}, startup_trials=3)
    agent.tell(heard(*(({"LR": x}, y) for x, y in [(0.0, 2.0), (0.25, 0.9), (0.5, 2.0), (0.75, 1.0), (1.0, 2.0)])))
    places, values = agent._history(Direction.min)
    pool = np.linspace(0.005, 0.995, 199)[:, None]

    def chosen(*pending: float) -> Iterator[float]:
        running = [Proposal(title="x", knobs={"LR": x}) for x in pending]
        model = agent._model(places, values)
        best = float(model.mean(agent._points(places)).min())
        return (float(str(s["LR"])) for s in agent._chosen(pool, best, model, state(running), set()))

    alone, second, *_ = chosen()
    assert alone == pytest.approx(0.25, abs=0.1)
    assert next(chosen(0.99)) == pytest.approx(alone, abs=0.02), "what is far away does not drive it off"
    assert next(chosen(alone)) == second, "as within one round"
    assert abs(second - alone) > 0.02
    assert next(chosen(*(i / 40 for i in range(20)))) == pytest.approx(0.75, abs=0.15)


def test_gp_asked_one_by_one_crowds_no_more_than_asked_at_once() -> None:
    outcomes = valley()

    def spread(proposals: Sequence[Proposal]) -> float:
        rates = sorted(math.log(proposal.knobs["LR"]) for proposal in proposals)
        return sum(b - a for a, b in pairwise(rates))

    at_once = sampler(GpAgent).ask(state(outcomes=outcomes), 8)
    one_by_one: list[Proposal] = []
    blind: list[Proposal] = []
    for number in range(8):
        one_by_one += sampler(GpAgent).ask(state(one_by_one, number, outcomes=outcomes), 1)
        blind += sampler(GpAgent).ask(state((), number, outcomes=outcomes), 1)
    assert spread(one_by_one) > 0.5 * spread(at_once)
    assert spread(one_by_one) > spread(blind), "had it not heard of what is under way"


def test_gp_takes_no_account_of_what_is_under_way_before_it_has_a_model() -> None:
    running = [Proposal(title="x", knobs={**SCRIPT, "DEPTH": depth}) for depth in (4, 5)]
    assert len(sampler(GpAgent).ask(state(running), 3)) == 3


def test_tpe_knows_what_is_under_way_as_running() -> None:
    agent = sampler(TpeAgent)
    agent.tell(valley())
    running = [Proposal(title="x", knobs={"DEPTH": 6, "LR": 0.01}), Proposal(title="y", knobs={"DEPTH": 99})]
    study = agent._study(state(running), {name: _distribution(d) for name, d in agent._space.domains.items()})
    by_state = {s: [t.params for t in study.trials if t.state is s] for s in optuna.trial.TrialState}
    assert len(by_state[optuna.trial.TrialState.COMPLETE]) == 16
    assert by_state[optuna.trial.TrialState.RUNNING] == [{"DEPTH": 6, "LR": 0.01, "PATTERN": 1}]
    assert len(study.trials) == 17, "what lies outside the space is left out"


# who may be asked for parts


@pytest.mark.parametrize("name", INCREMENTAL)
def test_samplers_may_be_asked_for_parts(name: str) -> None:
    assert make(name).incremental(1)


def test_a_design_is_a_whole_wave() -> None:
    assert not make("factorial").incremental(1)


def test_explicit_candidates_are_no_parts() -> None:
    explicit = RoundConfig(candidates=[CandidateConfig(knobs={"DEPTH": 6})])
    plan = PlanConfig(name="p", rounds=[explicit, RoundConfig(k=3)])

    class Whole:
        """An agent of somebody else's, who has never heard of parts."""

        def ask(self, state: SearchState, k: int) -> Sequence[Proposal]:
            return []

        def tell(self, outcomes: Sequence[Outcome]) -> None:
            pass

    class Parts(Whole):
        incremental = True

    assert [PlannedAgent(plan, Parts()).incremental(index) for index in (1, 2, 3)] == [False, True, True]
    assert [PlannedAgent(plan, Whole()).incremental(index) for index in (1, 2, 3)] == [False, False, False]
