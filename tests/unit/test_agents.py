"""One contract that every agent keeps, then what is particular to each."""

import importlib.metadata
import logging
import math
import random
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from autoresearch_hpc import agents
from autoresearch_hpc.agents import Agent, Brief
from autoresearch_hpc.agents.sampling import memorable
from autoresearch_hpc.agents.titles import changes, show
from autoresearch_hpc.config import (
    AgentConfig,
    Baseline,
    CandidateConfig,
    KnobDomain,
    KnobType,
    PlanConfig,
    RoundConfig,
    SpaceConfig,
)
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.records import Direction, Knobs, Outcome, Proposal, SearchState, Status, candidate_id
from autoresearch_hpc.space import Space, from_config

SCRIPT: Knobs = {
    "DEPTH": 8,
    "LR": 0.04,
    "TOTAL_BATCH_SIZE": 2**19,
    "DEVICE_BATCH_SIZE": 128,
    "PATTERN": "SSSL",
    "BETAS": (0.8, 0.95),
}
FIXED: Knobs = {"SEQ_LEN": 2048, "VOCAB_SIZE": 8192}
BOUND = "TOTAL_BATCH_SIZE % (DEVICE_BATCH_SIZE * SEQ_LEN) == 0"
SAMPLERS = ["cmaes", "factorial", "gp", "grid", "random", "tpe"]
ALL = ["plan", *SAMPLERS]


def space(**knobs: KnobDomain) -> Space:
    built = from_config(SpaceConfig(knobs=knobs or DOMAINS, bounds=[BOUND]), SCRIPT)
    assert built is not None
    return built


DOMAINS = {
    "DEPTH": KnobDomain(type=KnobType.int, low=4, high=12),
    "LR": KnobDomain(type=KnobType.float, low=0.005, high=0.2, log=True),
    "TOTAL_BATCH_SIZE": KnobDomain(type=KnobType.pow2, low=2**16, high=2**20),
    "PATTERN": KnobDomain(choices=["SSSL", "L"]),
    "BETAS": KnobDomain(choices=[[0.8, 0.95], [0.9, 0.95]]),
}
SMALL = {"DEPTH": KnobDomain(choices=[6, 8, 10]), "PATTERN": KnobDomain(choices=["SSSL", "L"])}


def plan() -> PlanConfig:
    rounds = [[CandidateConfig(knobs={"DEPTH": 8 + 10 * r + c}) for c in range(1, 5)] for r in range(3)]
    return PlanConfig(name="p", rounds=[RoundConfig(candidates=candidates) for candidates in rounds])


def make(name: str, searched: Space | None = None, *, seed: int = 0, **config: object) -> Agent:
    chosen = plan() if name == "plan" else PlanConfig(name="p", max_rounds=3)
    return build(AgentConfig(name=name, **config), chosen, searched or space(), seed)


def build(config: AgentConfig, chosen: PlanConfig, searched: Space | None, seed: int = 0) -> Agent:
    return agents.build(Brief(config=config, plan=chosen, space=searched, seed=seed, fixed=FIXED))


def outcome(
    index: int,
    knobs: Knobs,
    value: float | None,
    *,
    round_: int = 0,
    proposal: Proposal | None = None,
    status: Status = Status.CRASHED,
) -> Outcome:
    return Outcome(
        candidate=candidate_id(round_, index),
        round=round_,
        proposal=proposal or Proposal(title="x"),
        knobs={**SCRIPT, **knobs},
        status=status if value is None else Status.OK,
        value=value,
    )


def state(
    index: int = 1,
    outcomes: Sequence[Outcome] = (),
    knobs: Knobs = SCRIPT,
    direction: Direction = Direction.min,
) -> SearchState:
    return SearchState(
        index=index,
        direction=direction,
        metric="val_bpb",
        incumbent="r00-c00",
        incumbent_value=1.0,
        incumbent_knobs=knobs,
        source={"train.py": ""},
        outcomes=tuple(outcomes),
    )


def judged(proposals: Sequence[Proposal], round_: int, value: Callable[[Knobs], float | None]) -> list[Outcome]:
    return [
        outcome(i, p.knobs, value({**SCRIPT, **p.knobs}), round_=round_, proposal=p) for i, p in enumerate(proposals)
    ]


def settings(proposals: Sequence[Proposal]) -> list[Knobs]:
    return [p.knobs for p in proposals]


def score(knobs: Knobs) -> float | None:
    """Like a training: one crash, else a smooth function of the knobs."""
    if knobs["DEPTH"] == 12:
        return None
    return abs(float(str(knobs["LR"])) - 0.05) + abs(int(str(knobs["DEPTH"])) - 9) / 100


def search(agent: Agent, rounds: int, k: int = 4) -> tuple[list[Outcome], list[Sequence[Proposal]]]:
    told = [outcome(0, {}, 0.5)]
    agent.tell(told)
    asked = []
    for index in range(1, rounds + 1):
        proposals = agent.ask(state(index, told), k)
        asked.append(proposals)
        heard = judged(proposals, index, score)
        agent.tell(heard)
        told += heard
    return told, asked


# ---- The contract


@pytest.mark.parametrize("name", ALL)
def test_at_most_k_distinct_proposals_signed_by_the_agent(name: str) -> None:
    _, rounds = search(make(name), 3)
    for proposals in rounds:
        assert len(proposals) == 4
        assert len({repr(sorted(p.knobs.items())) for p in proposals}) == 4
        assert all(p.origin == name and p.title and "\n" not in p.title for p in proposals)


@pytest.mark.parametrize("name", ALL)
def test_asking_again_gives_the_same(name: str) -> None:
    agent = make(name)
    agent.tell([outcome(0, {}, 0.5)])
    assert agent.ask(state(), 4) == agent.ask(state(), 4)


@pytest.mark.parametrize("name", ALL)
def test_an_agent_rebuilt_from_the_outcomes_goes_on_the_same(name: str) -> None:
    told, rounds = search(make(name), 3)
    cut = [o for o in told if o.round < 3]
    at_once, one_by_one = make(name), make(name)
    at_once.tell(cut)
    for one in cut:
        one_by_one.tell([one])
    assert at_once.ask(state(3, cut), 4) == one_by_one.ask(state(3, cut), 4) == rounds[2]


@pytest.mark.parametrize("name", SAMPLERS)
def test_another_process_proposes_the_same(name: str) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_agents import *;"
        f"print(settings(search(make({name!r}), 2)[1][1]))"
    )
    env = {"PYTHONHASHSEED": "77", "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == str(settings(search(make(name), 2)[1][1]))
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["cmaes", "gp", "random", "tpe"])
def test_the_seed_and_the_round_decide(name: str) -> None:
    asked = [settings(make(name, seed=s).ask(state(i), 4)) for s, i in ((0, 1), (1, 1), (0, 2))]
    assert asked[0] != asked[1]
    assert asked[0] != asked[2]
    assert asked[1] != asked[2]


@pytest.mark.parametrize("name", SAMPLERS)
def test_proposals_set_the_whole_space_inside_it_and_keep_the_bounds(name: str) -> None:
    told, rounds = search(make(name), 3, k=8)
    built = space()
    for proposals in rounds:
        for proposal in proposals:
            assert tuple(proposal.knobs) == built.names
            assert built.contains(proposal.knobs)
            assert built.check(proposal.knobs, {**SCRIPT, **FIXED}) == []
    assert len({repr(sorted(o.knobs.items())) for o in told}) == len(told) == 25


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_small_space_is_searched_to_its_end_and_no_further(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    _, rounds = search(make(name, space(**SMALL)), 3, k=3)
    assert [len(proposals) for proposals in rounds] == [3, 2, 0]  # 3 x 2 settings, one of them the baseline's
    assert "round=3 agent=" in caplog.text
    tried = {(p.knobs["DEPTH"], p.knobs["PATTERN"]) for proposals in rounds for p in proposals}
    assert tried == {(6, "SSSL"), (6, "L"), (8, "L"), (10, "SSSL"), (10, "L")}


@pytest.mark.parametrize("name", SAMPLERS)
def test_tried_settings_come_again_only_when_asked_to(name: str) -> None:
    agent = make(name, space(**SMALL), allow_repeats=True)
    _, rounds = search(agent, 3, k=6)
    assert [len({repr(p.knobs) for p in proposals}) for proposals in rounds] == [6, 6, 6]


@pytest.mark.parametrize("name", SAMPLERS)
def test_settings_tried_in_another_notation_count_as_tried(name: str) -> None:
    agent = make(name, space(**SMALL))
    past = [({"DEPTH": 6.0}, "a"), ({"DEPTH": 10, "PATTERN": "L"}, "b"), ({"DEPTH": 6, "PATTERN": "L"}, "c")]
    agent.tell([outcome(i, knobs, 1.0) for i, (knobs, _) in enumerate(past)])
    proposals = agent.ask(state(), 6)
    assert {(p.knobs["DEPTH"], p.knobs["PATTERN"]) for p in proposals} == {(8, "L"), (10, "SSSL")}


@pytest.mark.parametrize("name", SAMPLERS)
def test_settings_that_travel_beside_the_script_count_as_tried(name: str) -> None:
    agent = make(name, space(**SMALL))
    first = agent.ask(state(knobs={"DEVICE_BATCH_SIZE": 128, "TOTAL_BATCH_SIZE": 2**19}), 6)
    assert len(first) == 6  # an incumbent without these knobs is no setting of the space
    agent.tell([replace(o, knobs={}) for o in judged(first, 1, lambda _: 1.0)])
    assert agent.ask(state(2, knobs={"DEVICE_BATCH_SIZE": 128, "TOTAL_BATCH_SIZE": 2**19}), 6) == []


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_combination_counts_as_tried_before_its_result_and_after(name: str) -> None:
    """It names only the knobs that it changes."""
    agent, heard = make(name, space(**SMALL)), [outcome(0, {}, 0.5)]
    agent.tell(heard)
    combined = Proposal(title="a + b: DEPTH=6", knobs={"DEPTH": 6}, origin="combine", parts=("a", "b"))
    first = agent.ask(replace(state(1, heard), running=(combined,)), 6)
    heard.append(outcome(1, {"DEPTH": 6}, 0.4, round_=1, proposal=combined))
    agent.tell(heard[1:])
    second = agent.ask(state(2, heard), 6)
    for proposals in (first, second):
        found = {(p.knobs["DEPTH"], p.knobs["PATTERN"]) for p in proposals}
        assert found == {(6, "L"), (8, "L"), (10, "SSSL"), (10, "L")}


@pytest.mark.parametrize("name", SAMPLERS)
def test_bounds_that_nothing_meets_give_no_proposals(name: str) -> None:
    config = SpaceConfig(knobs={"DEPTH": DOMAINS["DEPTH"], "LR": DOMAINS["LR"]}, bounds=["DEPTH > VOCAB_SIZE"])
    assert make(name, from_config(config)).ask(state(), 2) == []


@pytest.mark.parametrize("name", SAMPLERS)
def test_bounds_see_the_incumbents_other_knobs(name: str) -> None:
    proposals = make(name).ask(state(knobs={**SCRIPT, "DEVICE_BATCH_SIZE": 32, "TOTAL_BATCH_SIZE": 2**18}), 32)
    assert min(p.knobs["TOTAL_BATCH_SIZE"] for p in proposals) < 2**18  # what 128 rows would need
    wide = make(name).ask(state(knobs={**SCRIPT, "DEVICE_BATCH_SIZE": 512}), 8)
    assert {p.knobs["TOTAL_BATCH_SIZE"] for p in wide} == {2**20}


@pytest.mark.parametrize("name", SAMPLERS)
def test_floats_have_four_significant_digits(name: str) -> None:
    rates = [p.knobs["LR"] for p in make(name).ask(state(), 8)]
    assert all(isinstance(rate, float) and float(f"{rate:.4g}") == rate for rate in rates)


@pytest.mark.parametrize("name", SAMPLERS)
def test_round_0_can_be_asked_for_before_the_baseline_is_known(name: str) -> None:
    joined = PlanConfig(name="p", k=3, baseline=Baseline.joined)
    agent = build(AgentConfig(name=name), joined, space(**SMALL))
    nobody = replace(state(0), incumbent=None, incumbent_value=None)
    proposals = agent.ask(nobody, 5)
    assert len(proposals) == 5
    assert {"DEPTH": 8, "PATTERN": "SSSL"} not in settings(proposals)  # the baseline itself


# ---- Building


def test_an_unknown_agent_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match="agent=tpee is unknown; the agents are cli, cmaes, factorial, gp, grid, hybrid, llm, plan,"
    ):
        make("tpee")


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_needs_a_space_only_where_the_plan_leaves_rounds_open(name: str) -> None:
    with pytest.raises(ConfigError, match=f"agent={name} has no space to search; choose one, e.g. space=seed"):
        build(AgentConfig(name=name), PlanConfig(name="p"), None)
    agent = build(AgentConfig(name=name), plan(), None)
    assert len(agent.ask(state(1), 1)) == 4


def test_the_plan_agent_alone_needs_candidates_in_every_round() -> None:
    rounds = [RoundConfig(candidates=[CandidateConfig(knobs={"DEPTH": 9})]), RoundConfig(k=3)]
    with pytest.raises(ConfigError, match="round 2 of the plan has no candidates"):
        build(AgentConfig(name="plan"), PlanConfig(name="p", rounds=rounds), None)
    assert build(AgentConfig(name="plan"), PlanConfig(name="p", rounds=rounds, max_rounds=1), None)


def test_explicit_and_proposed_rounds_alternate() -> None:
    rounds = [RoundConfig(candidates=[CandidateConfig(knobs={"DEPTH": 9})]), RoundConfig(k=3)]
    agent = build(AgentConfig(name="random"), PlanConfig(name="p", rounds=rounds), space())
    assert [p.origin for p in agent.ask(state(1), 1)] == ["plan"]
    agent.tell([outcome(0, {}, 1.0)])
    assert [p.origin for p in agent.ask(state(2), 3)] == ["random"] * 3


def test_unknown_options_are_one_line() -> None:
    with pytest.raises(ConfigError, match=r"agent.options=.*shufle"):
        make("grid", options={"shufle": True})


def test_an_agent_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("mine", "test_agents:mine", agents.ENTRY_POINTS)
    found = importlib.metadata.EntryPoints([point])
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found.select(group=group))
    monkeypatch.setitem(sys.modules, "test_agents", sys.modules[__name__])
    monkeypatch.setattr(
        sys.modules[__name__], "mine", lambda brief: _Mine(brief.config.options, brief.seed), raising=False
    )
    agent = make("mine", seed=5, options={"a": 1})
    assert [p.title for p in agent.ask(state(), 1)] == ["{'a': 1} 5"]
    with pytest.raises(
        ConfigError,
        match="the agents are cli, cmaes, factorial, gp, grid, hybrid, llm, mine, plan, random, tpe; or name one",
    ):
        make("other")


def test_an_agent_is_named_by_its_place_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_package", sys.modules[__name__])
    monkeypatch.setattr(sys.modules[__name__], "mine", lambda brief: _Mine(brief.config.options, 0), raising=False)
    assert make("my_package:mine").ask(state(), 1)[0].title == "{} 0"
    for name in ("my_package:other", "no_such_package:Class"):
        with pytest.raises(ConfigError, match=rf"agent\.name={name}: .*name what can be imported"):
            make(name)


class _Mine:
    def __init__(self, options: object, seed: int) -> None:
        self._title = f"{options} {seed}"

    def ask(self, state: SearchState, k: int) -> Sequence[Proposal]:
        return [Proposal(title=self._title)]

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        pass


def test_importing_agents_imports_no_library_of_theirs() -> None:
    heavy = ("cmaes", "numpy", "optuna", "pandas", "scipy", "statsmodels", "torch")
    code = f"import sys, autoresearch_hpc.agents; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- plan


def planned(*rounds: list[CandidateConfig], baseline: Baseline = Baseline.alone) -> Agent:
    config = PlanConfig(name="p", rounds=[RoundConfig(candidates=r) for r in rounds], baseline=baseline)
    return build(AgentConfig(name="plan"), config, None)


def test_candidates_are_proposed_as_they_stand_and_in_full() -> None:
    stated = CandidateConfig(title="t", name="a", parent="baseline", knobs={"BETAS": [0.9, 0.95], "DEPTH": 9})
    agent = planned([stated, CandidateConfig(knobs={"DEPTH": 10})])
    assert agent.ask(state(), 1) == [
        Proposal(title="t", name="a", on="baseline", knobs={"BETAS": (0.9, 0.95), "DEPTH": 9}, origin="plan"),
        Proposal(title="DEPTH 8 -> 10", knobs={"DEPTH": 10}, origin="plan"),
    ]


def test_default_titles_compare_with_what_the_candidate_builds_on() -> None:
    agent = planned(
        [CandidateConfig(name="deep", knobs={"DEPTH": 10})],
        [
            CandidateConfig(parent="deep", knobs={"DEPTH": 12}),
            CandidateConfig(parent="r01-c00", knobs={"DEPTH": 12, "LR": 0.04}),
            CandidateConfig(parent="baseline", knobs={"DEPTH": 12}),
            CandidateConfig(knobs={"DEPTH": 12}),
            CandidateConfig(knobs={"NEW": 3}),
            CandidateConfig(),
            CandidateConfig(parent="deep"),
        ],
    )
    agent.tell([outcome(0, {}, 1.0)])
    agent.tell(judged(agent.ask(state(1), 4), 1, lambda _: 0.9))
    titles = [p.title for p in agent.ask(state(2, knobs={**SCRIPT, "DEPTH": 9}), 4)]
    assert titles == [
        "DEPTH 10 -> 12",
        "DEPTH 10 -> 12",
        "DEPTH 8 -> 12",
        "DEPTH 9 -> 12",
        "NEW=3",
        "replicate of the incumbent",
        "replicate of deep",
    ]


@pytest.mark.parametrize(
    ("parent", "name", "words"),
    [
        ("twin", None, "candidate .* of round 1 builds on 'twin', which no earlier round has"),
        ("later", None, "builds on 'later'"),
        ("r01-c00", None, "builds on 'r01-c00'"),
        ("nobody", None, "builds on 'nobody', .*; name one of baseline, or a candidate's id"),
        (None, "baseline", "a candidate of round 1 is named 'baseline'"),
        (None, "r00-c00", "named 'r00-c00'"),
    ],
)
def test_parents_must_be_earlier(parent: str | None, name: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        planned(
            [CandidateConfig(name="twin"), CandidateConfig(parent=parent, name=name)],
            [CandidateConfig(name="later")],
        )
    assert "\n" not in str(caught.value)


def test_ids_of_earlier_rounds_are_parents_too() -> None:
    agent = planned([CandidateConfig()], [CandidateConfig(parent="r01-c00")])
    assert [p.on for p in agent.ask(state(2), 4)] == ["r01-c00"]
    with pytest.raises(ConfigError, match="of round 0 builds on 'r00-c00'"):
        planned([CandidateConfig(parent="r00-c00")], baseline=Baseline.joined)


def test_a_setting_that_is_no_value_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="candidate odd: a knob holds numbers"):
        planned([CandidateConfig(name="odd", knobs={"DEPTH": {"a": 1}})])


# ---- grid


def test_the_grid_goes_on_where_it_stopped() -> None:
    knobs = {"DEPTH": KnobDomain(type=KnobType.int, low=4, high=8), "PATTERN": KnobDomain(choices=["SSSL", "L"])}
    _, rounds = search(make("grid", space(**knobs)), 3, k=2)
    walked = [(p.knobs["DEPTH"], p.knobs["PATTERN"]) for proposals in rounds for p in proposals]
    assert walked == [(4, "SSSL"), (4, "L"), (6, "SSSL"), (6, "L"), (8, "L")]


def test_a_shuffled_grid_has_one_order_for_all_rounds() -> None:
    def walk(seed: int) -> list[str]:
        agent = make("grid", space(**SMALL), seed=seed, options={"shuffle": True})
        return [str(p.knobs) for proposals in search(agent, 5, k=1)[1] for p in proposals]

    assert walk(1) == walk(1)
    assert sorted(walk(1)) == sorted(walk(2))
    assert len({tuple(walk(seed)) for seed in range(4)}) > 1


# ---- tpe


def quadratic(knobs: Knobs) -> float:
    rate, depth = float(str(knobs["LR"])), int(str(knobs["DEPTH"]))
    return (rate / 0.05 - 1) ** 2 + (depth - 10) ** 2 / 16 + (knobs["PATTERN"] == "L")


@pytest.mark.parametrize("direction", list(Direction))
def test_tpe_finds_better_settings_than_random(direction: Direction) -> None:
    sign = 1 if direction is Direction.min else -1

    def means(name: str, seed: int) -> float:
        agent = make(name, seed=seed)
        told = [outcome(0, {}, sign * quadratic(SCRIPT))]
        agent.tell(told)
        late = []
        for index in range(1, 7):
            heard = judged(agent.ask(state(index, direction=direction), 8), index, lambda k: sign * quadratic(k))
            agent.tell(heard)
            late += [sign * o.value for o in heard if index > 3 and o.value is not None]
        return sum(late) / len(late)

    assert sum(means("tpe", s) for s in range(3)) < 0.6 * sum(means("random", s) for s in range(3))


def history(seed: int, size: int, fail: Callable[[Knobs], Status | None]) -> list[Outcome]:
    rng = random.Random(seed)
    built = space()
    found = []
    for index in range(size):
        knobs = {**SCRIPT, **built.sample(rng)}
        status = fail(knobs)
        value = None if status else 1.0 + rng.random() / 1000
        found.append(outcome(index, knobs, value, status=status or Status.OK))
    return found


@pytest.mark.parametrize("status", [Status.OOM, Status.CRASHED, Status.TIMEOUT, Status.DIVERGED, Status.INVALID])
def test_tpe_keeps_away_from_what_fails(status: Status) -> None:
    agent = make("tpe")
    agent.tell(history(1, 80, lambda knobs: status if int(str(knobs["DEPTH"])) >= 9 else None))
    depths = [int(str(p.knobs["DEPTH"])) for p in agent.ask(state(), 16)]
    assert sum(depth >= 9 for depth in depths) <= 3  # of 16; blind to failures it would be 7


def test_tpe_learns_nothing_from_lost_trials() -> None:
    kept = history(1, 40, lambda _: None)
    lost = [outcome(i, o.knobs, None, status=Status.LOST) for i, o in enumerate(history(2, 40, lambda _: None))]
    with_lost, without = make("tpe"), make("tpe")
    with_lost.tell([*kept, *lost])
    without.tell(kept)
    assert with_lost.ask(state(), 4) == without.ask(state(), 4)


def test_tpe_copes_with_nothing_but_failures_and_with_settings_outside_the_space() -> None:
    agent = make("tpe", startup_trials=1)
    agent.tell([outcome(i, {"DEPTH": depth}, None) for i, depth in enumerate([4, 5, 6, 40])])
    assert len(agent.ask(state(), 4)) == 4


def test_startup_trials_say_when_the_model_takes_over() -> None:
    past = history(3, 20, lambda _: None)
    asked = []
    for startup in (5, 50):
        agent = make("tpe", startup_trials=startup)
        agent.tell(past)
        asked.append(settings(agent.ask(state(), 4)))
    assert asked[0] != asked[1]


def test_tpe_says_nothing_on_the_way(capfd: pytest.CaptureFixture[str]) -> None:
    search(make("tpe", startup_trials=2), 2)
    assert capfd.readouterr() == ("", "")


# ---- cmaes

FLOATS = {
    "A": KnobDomain(type=KnobType.float, low=1e-4, high=0.1, log=True),
    "B": KnobDomain(type=KnobType.float, low=1e-3, high=1.0, log=True),
    "C": KnobDomain(type=KnobType.float, low=0.01, high=10.0, log=True),
    "D": KnobDomain(type=KnobType.float, low=0.0, high=1.0),
    "E": KnobDomain(type=KnobType.float, low=-2.0, high=3.0),
    "F": KnobDomain(type=KnobType.float, low=0.0, high=10.0),
}
FLOATS_SCRIPT: Knobs = {"A": 0.002, "B": 0.02, "C": 0.5, "D": 0.5, "E": 0.5, "F": 5.0}


def floats() -> Space:
    built = from_config(SpaceConfig(knobs=FLOATS))
    assert built is not None
    return built


def bowl(knobs: Knobs) -> float:
    """A quadratic with its minimum away from the middle; its axes are up to ten times as steep as others."""
    a, b, c, d, e, f = (float(str(knobs[name])) for name in FLOATS)
    places = (math.log10(a) / 3 + 4 / 3, math.log10(b) / 3 + 1, math.log10(c) / 3 + 2 / 3, d, (e + 2) / 5, f / 10)
    minimum, steepness = (0.25, 0.7, 0.6, 0.3, 0.8, 0.45), (1, 3, 10, 1, 2, 5)
    return sum(s * (p - m) ** 2 for p, m, s in zip(places, minimum, steepness, strict=True))


def descend(
    name: str, value: Callable[[Knobs], float], *, seed: int = 0, sign: int = 1, again: bool = False, **config: object
) -> list[Knobs]:
    """All settings of 15 rounds of eight on the six floats; `again` builds the agent anew before each round."""
    agent = make(name, floats(), seed=seed, **config)
    told = [replace(outcome(0, {}, sign * value(FLOATS_SCRIPT)), knobs=FLOATS_SCRIPT)]
    agent.tell(told)
    for index in range(1, 16):
        best = min(told, key=lambda o: sign * (o.value or 0.0)).knobs
        direction = Direction.min if sign == 1 else Direction.max
        if again:
            agent = make(name, floats(), seed=seed, **config)
            agent.tell(told)
        asked = agent.ask(state(index, knobs=best, direction=direction), 8)
        heard = [replace(o, knobs=o.proposal.knobs) for o in judged(asked, index, lambda knobs: sign * value(knobs))]
        agent.tell(heard)
        told += heard
    return [o.knobs for o in told]


@pytest.mark.parametrize("sign", [1, -1])
def test_cmaes_goes_down_to_where_random_search_does_not_come(sign: int) -> None:
    def best(name: str) -> float:
        return statistics.median(min(map(bowl, descend(name, bowl, seed=s, sign=sign))) for s in range(10))

    assert best("cmaes") < 0.3 * best("random")
    assert bowl(FLOATS_SCRIPT) > best("random") > 0.1


def test_cmaes_rebuilt_in_every_round_takes_the_same_way() -> None:
    way = descend("cmaes", bowl)
    assert len(way) == 121
    assert descend("cmaes", bowl, again=True) == descend("cmaes", bowl) == way
    assert descend("cmaes", bowl, seed=1) != way


def test_cmaes_hears_outcomes_by_whole_generations_whoever_proposed_them() -> None:
    past = history(3, 20, lambda _: None)
    asked = []
    for size in (0, 3, 4, 7, 8):
        agent = make("cmaes", options={"population": 4})
        agent.tell([replace(o, proposal=replace(o.proposal, origin="plan")) for o in past[:size]])
        asked.append(settings(agent.ask(state(), 4)))
    assert asked[0] == asked[1] != asked[2]
    assert asked[2] == asked[3] != asked[4]


def test_cmaes_learns_nothing_from_lost_trials_and_from_settings_outside_the_space() -> None:
    kept = history(1, 40, lambda _: None)
    lost = [outcome(i, o.knobs, None, status=Status.LOST) for i, o in enumerate(history(2, 20, lambda _: None))]
    cancelled = [replace(o, status=Status.CANCELLED) for o in lost]
    outside = [outcome(i, {"DEPTH": 40}, 0.1) for i in range(20)]
    others, without = make("cmaes"), make("cmaes")
    others.tell([*kept[:20], *lost, *outside, *kept[20:], *cancelled])
    without.tell(kept)
    assert others.ask(state(), 4) == without.ask(state(), 4)


def test_cmaes_keeps_away_from_what_fails() -> None:
    agent = make("cmaes")
    agent.tell(history(1, 80, lambda knobs: Status.OOM if int(str(knobs["DEPTH"])) >= 9 else None))
    depths = [int(str(p.knobs["DEPTH"])) for p in agent.ask(state(knobs={**SCRIPT, "DEPTH": 5}), 16)]
    assert sum(depth >= 9 for depth in depths) <= 3  # of 16; blind to failures it would be 7


def test_cmaes_starts_around_the_incumbent_and_else_in_the_middle() -> None:
    def rates(knobs: Knobs, **options: float) -> list[float]:
        return [float(str(p.knobs["LR"])) for p in make("cmaes", options=options).ask(state(knobs=knobs), 16)]

    sizes: Knobs = {"DEVICE_BATCH_SIZE": 128}
    assert max(rates({**SCRIPT, "LR": 0.006}, sigma=0.02)) < 0.009
    assert all(0.025 < rate < 0.04 for rate in rates({**sizes, "LR": 0.006}, sigma=0.02))  # sqrt(0.005 * 0.2)
    assert max(rates({**SCRIPT, "LR": 0.006})) > 0.02


@pytest.mark.parametrize("size", [100, 3000])
def test_cmaes_survives_what_it_would_not_have_sampled(size: int) -> None:
    """Thousands of times the same setting, then outcomes of others from far outside of what is left of it."""
    agent = make("cmaes", floats())
    far = [{name: domain.sample(random.Random(i)) for name, domain in floats().domains.items()} for i in range(16)]
    told = [replace(outcome(i, {}, 1.0), knobs=FLOATS_SCRIPT) for i in range(size)]
    told += [replace(outcome(i, {}, 0.5 + i), knobs=knobs) for i, knobs in enumerate(far)]
    agent.tell(told)
    proposals = agent.ask(state(knobs=FLOATS_SCRIPT), 8)
    assert len({repr(p.knobs) for p in proposals}) == 8
    assert all(floats().contains(p.knobs) for p in proposals)


def test_cmaes_gives_each_value_of_a_knob_its_share() -> None:
    knobs = {
        "DEPTH": KnobDomain(type=KnobType.int, low=3, high=7),
        "DEVICE_BATCH_SIZE": KnobDomain(type=KnobType.int, low=1, high=100, log=True),
        "TOTAL_BATCH_SIZE": KnobDomain(type=KnobType.pow2, low=2**17, high=2**20),
        "PATTERN": KnobDomain(choices=["SSSL", "L", "S"]),
        "LR": KnobDomain(choices=[0.1]),
    }
    built = from_config(SpaceConfig(knobs=knobs))
    agent = make("cmaes", built, allow_repeats=True, options={"sigma": 1})  # almost uniform
    seen = [p.knobs for i in range(1, 61) for p in agent.ask(state(i), 8)]
    assert Counter(k["LR"] for k in seen) == {0.1: len(seen)}
    assert len(seen) > 400
    for name, num_values in (("DEPTH", 5), ("TOTAL_BATCH_SIZE", 4), ("PATTERN", 3)):
        counted = Counter(k[name] for k in seen)
        assert len(counted) == num_values
        assert min(counted.values()) > 0.6 * len(seen) / num_values
    small = sum(float(str(k["DEVICE_BATCH_SIZE"])) <= 10 for k in seen)
    assert 0.4 < small / len(seen) < 0.65  # half of a logarithmic range
    assert {1, 2, 99} & {k["DEVICE_BATCH_SIZE"] for k in seen}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sigma": 0}, r"agent.options.sigma is 0; .*above 0"),
        ({"sigma": 1.5}, "agent.options.sigma is 1.5"),
        ({"population": 3}, "agent.options.population is 3; give 4 or more"),
        ({"population": 4.5}, "agent.options.population is 4.5"),
        ({"population": "many"}, "agent.options=.*agent=cmaes"),
        ({"popsize": 4}, "agent.options=.*popsize"),
    ],
)
def test_cmaes_refuses_options_that_cannot_work(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        make("cmaes", options=options)
    assert "\n" not in str(caught.value)


# ---- gp


@pytest.mark.parametrize("sign", [1, -1])
def test_gp_goes_down_further_than_cmaes(sign: int) -> None:
    def best(name: str) -> float:
        return statistics.median(min(map(bowl, descend(name, bowl, seed=s, sign=sign))) for s in range(2))

    assert best("gp") < 0.2 * best("cmaes")


def test_gp_rebuilt_in_every_round_takes_the_same_way() -> None:
    assert descend("gp", bowl, again=True) == descend("gp", bowl)


@pytest.mark.parametrize("status", [Status.OOM, Status.CRASHED, Status.TIMEOUT, Status.DIVERGED, Status.INVALID])
def test_gp_keeps_away_from_what_fails(status: Status) -> None:
    agent = make("gp")
    agent.tell(history(1, 80, lambda knobs: status if int(str(knobs["DEPTH"])) >= 9 else None))
    depths = [int(str(p.knobs["DEPTH"])) for p in agent.ask(state(), 16)]
    assert sum(depth >= 9 for depth in depths) <= 2  # of 16; blind to failures it would be 7


def test_gp_learns_nothing_from_lost_trials_and_from_settings_outside_the_space() -> None:
    kept = history(1, 40, lambda _: None)
    lost = [outcome(i, o.knobs, None, status=Status.LOST) for i, o in enumerate(history(2, 20, lambda _: None))]
    outside = [outcome(i, {"DEPTH": 40}, 0.1) for i in range(20)]
    others, without = make("gp"), make("gp")
    others.tell([*kept[:20], *lost, *outside, *kept[20:]])
    without.tell(kept)
    assert others.ask(state(), 4) == without.ask(state(), 4)


def test_a_round_of_gp_does_not_crowd() -> None:
    told = [outcome(i, o.knobs, quadratic(o.knobs)) for i, o in enumerate(history(3, 30, lambda _: None))]
    agent = make("gp")
    agent.tell(told)
    rates = [math.log(float(str(p.knobs["LR"]))) for p in agent.ask(state(), 16)]
    assert statistics.stdev(rates) > 0.05  # 40 times the digits that make two rates different


@pytest.mark.parametrize(
    "values", [[None] * 12, [0.5] * 12, [0.5, *[None] * 11], [0.5, 0.4, *[None] * 10], [1e9, *[1e-9] * 11]]
)
def test_gp_copes_with_failures_alone_and_with_values_that_say_nothing(values: list[float | None]) -> None:
    agent = make("gp")
    agent.tell(
        [outcome(i, o.knobs, v) for i, (o, v) in enumerate(zip(history(4, 12, lambda _: None), values, strict=True))]
    )
    assert len(agent.ask(state(), 4)) == 4


def test_gp_proposes_at_random_before_it_has_heard_enough() -> None:
    past = history(3, 20, lambda _: None)
    asked = []
    for startup in (5, 50):
        agent = make("gp", startup_trials=startup)
        agent.tell(past)
        asked.append(settings(agent.ask(state(), 4)))
    assert asked[0] != asked[1]


# ---- titles


def test_titles_name_what_changes() -> None:
    after = {"LR": 0.05, "DEPTH": 8, "TOTAL_BATCH_SIZE": 2**18, "BETAS": (0.9, 0.95), "PATTERN": "L", "NEW": None}
    assert changes(after, SCRIPT) == (
        "LR 0.04 -> 0.05, TOTAL_BATCH_SIZE 2**19 -> 2**18, BETAS (0.8, 0.95) -> (0.9, 0.95), "
        "PATTERN SSSL -> L, NEW=None"
    )
    assert changes(SCRIPT, SCRIPT) == ""


@pytest.mark.parametrize(
    ("value", "words"),
    [(4096, "2**12"), (2048, "2048"), (4097, "4097"), (0.5, "0.5"), (True, "True"), ((1, ("a",)), "(1, (a))")],
)
def test_values_as_people_write_them(value: object, words: str) -> None:
    assert show(value) == words


@pytest.mark.parametrize("name", ["cmaes", "gp", "tpe"])
def test_who_resumes_proposes_the_same_though_an_incumbent_was_run_again(name: str) -> None:
    """One that ran on was told the older mean, one that resumes only the newest: the state's is what counts."""
    past = [outcome(i, {"LR": 0.01 * (i + 1)}, 1.0 + i / 100) for i in range(12)]
    now = [replace(past[0], value=1.5), *past[1:]]
    ran_on, resumed = make(name, startup_trials=4), make(name, startup_trials=4)
    ran_on.tell(past)
    resumed.tell(now)
    asked = state(3, now)
    assert settings(ran_on.ask(asked, 4)) == settings(resumed.ask(asked, 4))


def test_of_very_many_outcomes_the_best_and_the_newest_are_modelled() -> None:
    few = [3.0, math.nan, 1.0]
    assert memorable(few) == [0, 1, 2]
    luck = random.Random(0)
    values = [math.nan if i % 7 == 0 else luck.random() for i in range(5000)]
    kept = memorable(values)
    assert kept == sorted(set(kept))
    assert len(kept) == 1000
    assert kept[-500:] == list(range(4500, 5000))
    best = sorted(v for v in values[:4500] if not math.isnan(v))[:500]
    assert sorted(values[i] for i in kept[:500]) == best
