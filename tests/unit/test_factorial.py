"""agent=factorial beyond the contract of all agents: its designs, how it follows effects, and what that brings."""

import importlib.util
import logging
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from test_agents import SCRIPT, judged, make, outcome, space, state

from autoresearch_hpc.agent_config import DesignConfig, DesignKind
from autoresearch_hpc.agents.neighbourhood import Neighbourhood
from autoresearch_hpc.agents.sampling import Sampler
from autoresearch_hpc.config import AgentConfig, KnobDomain, KnobType
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.gains import Noise
from autoresearch_hpc.records import Knobs, Proposal

WAVES = Path(__file__).parents[2] / "benchmarks" / "waves.py"
LR = KnobDomain(type=KnobType.float, low=0.01, high=0.16, log=True)
DEPTH = KnobDomain(type=KnobType.int, low=4, high=12)
BATCH = KnobDomain(type=KnobType.pow2, low=2**17, high=2**21)
PATTERN = KnobDomain(choices=["SSSL", "L"])
KNOBS = {"LR": LR, "DEPTH": DEPTH, "TOTAL_BATCH_SIZE": BATCH, "PATTERN": PATTERN}
NOISE = Noise(sd=0.001, df=10.0)


def agent(knobs: dict[str, KnobDomain] | None = None, **design: object) -> Sampler:
    made = make("factorial", space(**(knobs or KNOBS)), design=DesignConfig(**design))
    sampler = made._proposer  # type: ignore[attr-defined]
    assert isinstance(sampler, Sampler)
    return sampler


def levels(proposals: Sequence[Proposal], name: str) -> set[object]:
    return {proposal.knobs[name] for proposal in proposals}


# ---- the first wave


def test_two_levels_around_the_incumbent_on_each_knobs_own_scale() -> None:
    proposals = agent().ask(state(), 16)
    assert len(proposals) == 16
    assert levels(proposals, "LR") == {0.02, 0.08}  # a quarter of four octaves to either side of 0.04
    assert levels(proposals, "DEPTH") == {6, 10}
    assert levels(proposals, "TOTAL_BATCH_SIZE") == {2**18, 2**20}
    assert levels(proposals, "PATTERN") == {"SSSL", "L"}
    assert len({str(p.knobs) for p in proposals}) == 16
    assert {p.reasoning for p in proposals} == {
        "two-level design 2^4 full of LR, DEPTH, TOTAL_BATCH_SIZE, PATTERN in 16 runs"
    }


@pytest.mark.parametrize(
    ("k", "name"), [(16, "2^4 full"), (15, "2^(4-1) IV"), (8, "2^(4-1) IV"), (7, "2^(3-1) III"), (2, "2^1 full")]
)
def test_the_largest_design_that_fits_k_is_said(k: int, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    proposals = agent().ask(state(), k)
    assert len(proposals) == k
    assert name in proposals[0].reasoning
    assert name in caplog.text


def test_a_wanted_resolution_leaves_factors_for_later() -> None:
    seven = {**KNOBS, "BETAS": KnobDomain(choices=[[0.8, 0.95], [0.9, 0.95]])}
    assert "2^(5-2) III" in agent(seven).ask(state(), 8)[0].reasoning
    reasoning = agent(seven, resolution=4).ask(state(), 8)[0].reasoning
    assert reasoning.startswith("two-level design 2^(4-1) IV of LR, DEPTH, TOTAL_BATCH_SIZE, PATTERN in 8 runs, BETAS")


def test_named_factors_alone_are_varied() -> None:
    proposals = agent(factors=["DEPTH", "LR"]).ask(state(), 4)
    assert levels(proposals, "TOTAL_BATCH_SIZE") == {SCRIPT["TOTAL_BATCH_SIZE"]}
    assert {(p.knobs["LR"], p.knobs["DEPTH"]) for p in proposals} == {(0.02, 6), (0.02, 10), (0.08, 6), (0.08, 10)}
    few = agent(factors=["PATTERN", "DEPTH"]).ask(state(), 32)
    assert len(few) == 17  # 9 depths and 2 patterns but the incumbent's: no other knob is taken for want of settings
    assert levels(few, "LR") == {SCRIPT["LR"]}
    with pytest.raises(ConfigError, match=r"agent\.design\.factors: NONE is no knob of the space"):
        agent(factors=["NONE"])


def test_one_factor_alone_is_seen_at_many_levels() -> None:
    one = agent({"DEPTH": KnobDomain(type=KnobType.int, low=4, high=16)})
    proposals = one.ask(state(), 6)
    assert [p.knobs["DEPTH"] for p in proposals] == [4, 6, 10, 12, 14, 16]  # 8 is the incumbent's
    told = [outcome(0, {}, 1.25), *judged(proposals, 1, lambda knobs: 1 + (int(str(knobs["DEPTH"])) - 13) ** 2 / 100)]
    one.tell(told)
    following = one.ask(replace(state(2, told, knobs={**SCRIPT, "DEPTH": 12}), noise=NOISE), 2)
    assert following[0].knobs["DEPTH"] == 13  # where the curve has its bottom


@pytest.mark.parametrize("kind", [DesignKind.latin_hypercube, DesignKind.sobol])
def test_designs_that_fill_the_space(kind: DesignKind) -> None:
    proposals = agent(kind=kind).ask(state(), 16)
    rates = sorted(float(str(p.knobs["LR"])) for p in proposals)
    assert rates[0] < 0.015
    assert rates[-1] > 0.11
    assert len(set(rates)) == 16
    assert levels(proposals, "TOTAL_BATCH_SIZE") == {2**18, 2**19, 2**20, 2**21}  # 2**17 breaks the bound
    assert kind.value.replace("_", " ") in proposals[0].reasoning


def test_centre_points_and_replicates() -> None:
    proposals = agent(centre_points=2).ask(state(), 10)
    assert [p.title for p in proposals[-2:]] == [f"centre point {i}: the incumbent's settings" for i in (1, 2)]
    assert proposals[-1].knobs == {name: SCRIPT[name] for name in KNOBS}
    twice = agent(replicates=2).ask(state(), 16)
    assert [p.knobs for p in twice[:8]] == [p.knobs for p in twice[8:]]
    assert twice[8].title.endswith("(replicate 2)")


def test_a_setting_against_the_bounds_is_changed_in_as_few_knobs_as_can_be() -> None:
    wide = {**SCRIPT, "DEVICE_BATCH_SIZE": 256}  # of 2**19 tokens; the low level of 2**18 breaks the bound
    proposals = agent().ask(state(knobs=wide), 16)
    assert levels(proposals, "TOTAL_BATCH_SIZE") <= {2**19, 2**20, 2**21}
    assert levels(proposals, "LR") == {0.02, 0.08}


def test_at_the_end_of_a_range_the_incumbent_is_a_level_itself() -> None:
    near = Neighbourhood.of(space(**KNOBS), {**SCRIPT, "DEPTH": 4, "LR": 0.16}, 0.25, turn=0)
    assert near.levels("DEPTH") == (4, 6)
    assert near.levels("LR") == (0.08, 0.16)
    tiny = Neighbourhood.of(space(**KNOBS), SCRIPT, 0.01, turn=0)
    assert tiny.levels("DEPTH") == (7, 9)  # a span of less than a step takes the step
    assert tiny.levels("TOTAL_BATCH_SIZE") == (2**18, 2**20)


# ---- later waves


def slope(knobs: Knobs) -> float:
    """Better with depth; the rate and the batch depend on each other; the pattern does nothing."""
    rate = 1 if float(str(knobs["LR"])) > 0.04 else -1 if float(str(knobs["LR"])) < 0.04 else 0
    batch = int(str(knobs["TOTAL_BATCH_SIZE"])).bit_length() - 20
    return 1.0 - 0.02 * (int(str(knobs["DEPTH"])) - 8) - 0.01 * rate * batch


def after_one_wave(value: object = slope, k: int = 8) -> tuple[Sampler, list[Proposal]]:
    one = agent()
    told = [outcome(0, {}, value(SCRIPT))]  # type: ignore[operator]
    one.tell(told)
    heard = judged(one.ask(state(1), 16), 1, value)  # type: ignore[arg-type]
    one.tell(heard)
    asked = replace(state(2, [*told, *heard]), noise=NOISE)
    return one, list(one.ask(asked, k))


def test_the_next_wave_goes_down_the_slope_and_drops_the_dead(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    _, proposals = after_one_wave()
    assert levels(proposals, "PATTERN") == {"SSSL"}
    first = proposals[0]
    assert first.knobs["DEPTH"] == 12
    rate, batch = float(str(first.knobs["LR"])), int(str(first.knobs["TOTAL_BATCH_SIZE"]))
    assert (rate > 0.04) == (batch > 2**19)  # the interaction's better corner
    assert first.reasoning.startswith("where the effects say that it is better: DEPTH -0.08")
    assert "alive: LR, DEPTH, TOTAL_BATCH_SIZE" in caplog.text


def test_where_nothing_stands_out_the_next_wave_is_closer() -> None:
    _, proposals = after_one_wave(lambda knobs: 1.0)
    assert all(0.02 < float(str(p.knobs["LR"])) < 0.08 for p in proposals)
    assert "two-level design" in proposals[0].reasoning


def bent(knobs: Knobs) -> float:
    return 1.0 + 0.01 * (int(str(knobs["DEPTH"])) - 8.5) ** 2


def test_where_curvature_shows_a_third_level_is_added() -> None:
    _, proposals = after_one_wave(bent, k=4)
    assert len(levels(proposals, "DEPTH")) >= 3
    assert levels(proposals, "PATTERN") == {"SSSL"}


def test_a_choice_of_many_is_seen_in_turn() -> None:
    kinds = {"PATTERN": KnobDomain(choices=["SSSL", "SSL", "L"]), "LR": LR}
    one = agent(kinds)
    told = [outcome(0, {}, 1.0)]
    seen: set[object] = set()
    for index in (1, 2):
        heard = judged(one.ask(state(index, told), 4), index, lambda knobs: 1.0 + 0.01 * (knobs["PATTERN"] == "SSL"))
        one.tell(heard)
        told += heard
        seen |= {o.knobs["PATTERN"] for o in heard}
    assert seen == {"SSSL", "SSL", "L"}


def test_what_failed_is_no_news_of_the_slope() -> None:
    _, proposals = after_one_wave(lambda knobs: None if knobs["PATTERN"] == "L" else slope(knobs))
    assert proposals[0].knobs["DEPTH"] == 12


def test_a_run_of_nothing_but_failures_goes_on() -> None:
    one = agent()
    one.tell([outcome(0, {}, 1.0), *judged(one.ask(state(1), 8), 1, lambda _: None)])
    assert len(one.ask(state(2), 8)) == 8


def test_a_baseline_that_was_run_again_since_counts_as_it_is_now() -> None:
    """Who resumes is told its newest mean, who goes on heard an older one: both propose the same."""
    one, other = agent(), agent()
    before, after = outcome(0, {}, 1.0), replace(outcome(0, {}, 0.99), num_trials=4)
    heard = judged(one.ask(state(1), 16), 1, slope)
    one.tell([before])
    one.tell(heard)
    other.tell([after, *heard])
    asked = replace(state(2, [after, *heard]), noise=NOISE)
    assert one.ask(asked, 8) == other.ask(asked, 8)
    model = replace(state(2, [before, *heard]), noise=NOISE)
    assert one.ask(model, 8) != one.ask(asked, 8)


def test_unknown_kinds_and_impossible_numbers_are_refused() -> None:
    for bad in ({"span": 0.0}, {"resolution": 2}, {"replicates": 0}, {"centre_points": -1}):
        with pytest.raises(ConfigError, match=rf"agent\.design\.{next(iter(bad))}="):
            DesignConfig(**bad)
    assert AgentConfig(name="factorial").design.kind is DesignKind.auto


# ---- what it brings


@pytest.fixture(scope="module")
def waves() -> ModuleType:
    """The benchmark: a response surface whose truth is known."""
    found = importlib.util.spec_from_file_location("waves", WAVES)
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    sys.modules["waves"] = module
    found.loader.exec_module(module)
    return module


def test_it_finds_more_than_random_and_one_at_a_time(waves: ModuleType) -> None:
    def gap(name: str) -> float:
        return statistics.median(waves.left(waves.search(name, seed, k=16, waves=3)) for seed in range(12))

    ours = gap("factorial")
    assert ours < 0.5 * gap("random")
    assert ours < 0.5 * gap("one at a time")
