"""Every plan, space and agent under conf/ composes, loads and can be proposed; the published ones hold their facts."""

from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from autoresearch_hpc import agents, entry, knobs, space
from autoresearch_hpc.bundle import bundle_dir
from autoresearch_hpc.config import Baseline, CandidateConfig, Config, KnobDomain, KnobType, PlanConfig, RoundConfig
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.records import Direction, Knobs, Outcome, Proposal, SearchState, Status, candidate_id

CONF = Path(__file__).parents[2] / "conf"
PLANS = sorted(path.stem for path in (CONF / "round").glob("*.yaml"))
SPACES = sorted(path.stem for path in (CONF / "space").glob("*.yaml"))

# The knobs of the published scripts, with upstream's values.
SCRIPT = (bundle_dir() / "train.py").read_text(encoding="utf-8")
UPSTREAM = knobs.read(SCRIPT)
FIXED: Knobs = {"SEQ_LEN": 2048, "VOCAB_SIZE": 8192}

# Of every experiment: its round, what it builds on, and what it sets there.
COOKBOOK = {
    "c1": (0, None, {"EMBEDDING_LR": 0.4}),
    "c2": (0, None, {"WEIGHT_DECAY": 0.1}),
    "c3": (0, None, {"WINDOW_PATTERN": "L"}),
    "c4": (1, None, {"WARMDOWN_RATIO": 0.3}),
    "c5": (1, None, {"ADAM_BETAS": (0.9, 0.95)}),
    "c6": (1, None, {"MATRIX_LR": 0.05}),
    "c7": (1, None, {"WARMUP_RATIO": 0.05}),
    "c8": (2, "baseline", {"DEPTH": 6}),
    "c9": (2, "baseline", {"ASPECT_RATIO": 56}),
    "c10": (2, "baseline", {"TOTAL_BATCH_SIZE": 2**18}),
    "c11": (2, "baseline", {"DEPTH": 6, "TOTAL_BATCH_SIZE": 2**18}),
    "c12": (3, "c10", {"MATRIX_LR": 0.05}),
    "c13": (3, "c10", {"WARMDOWN_RATIO": 0.3}),
    "c14": (3, "c10", {"EMBEDDING_LR": 0.5}),
    "c15": (3, "c10", {"DEPTH": 10}),
}
COOKBOOK_TITLES = [
    "c1: EMBEDDING_LR 0.6 -> 0.4",
    "c2: WEIGHT_DECAY 0.2 -> 0.1",
    "c3: WINDOW_PATTERN SSSL -> L (full attn)",
    "c4: WARMDOWN_RATIO 0.5 -> 0.3",
    "c5: ADAM_BETAS (0.8,0.95) -> (0.9,0.95)",
    "c6: MATRIX_LR 0.04 -> 0.05",
    "c7: WARMUP_RATIO 0.0 -> 0.05",
    "c8: DEPTH 8 -> 6 (smaller model)",
    "c9: ASPECT_RATIO 64 -> 56",
    "c10: TOTAL_BATCH_SIZE 2^19 -> 2^18",
    "c11: depth=6 + batch 2^18 (combo)",
    "c12: c10 + MATRIX_LR 0.04 -> 0.05 (combine winners)",
    "c13: c10 + WARMDOWN_RATIO 0.5 -> 0.3",
    "c14: c10 + EMBEDDING_LR 0.6 -> 0.5",
    "c15: c10 + DEPTH 8 -> 10",
]


def load(*overrides: str) -> Config:
    entry.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return entry.load(compose("config", list(overrides)))


def state(index: int, base: Knobs) -> SearchState:
    return SearchState(
        index=index,
        direction=Direction.min,
        metric="val_bpb",
        incumbent="r00-c00",
        incumbent_value=1.0,
        incumbent_knobs=base,
        source={"train.py": SCRIPT},
        outcomes=(),
    )


def rounds_of(loaded: Config) -> list[list[Proposal]]:
    """All proposals of a plan, round by round, as a controller would ask for them."""
    base = knobs.read(knobs.rewrite(SCRIPT, loaded.plan.base))
    fixed: Knobs = {"SEQ_LEN": loaded.corpus.seq_len, "VOCAB_SIZE": loaded.corpus.vocab_size}
    searched = space.from_config(loaded.space)
    editing = loaded.agent.name in agents.EDITING  # nobody is asked here: its sampler fills every slot
    config = replace(loaded.agent, name=loaded.agent.sampler) if editing else loaded.agent
    brief = agents.Brief(config=config, plan=loaded.plan, space=searched, seed=loaded.seed, fixed=fixed)
    agent = agents.build(brief)
    agent.tell([_outcome(0, 0, Proposal(title="baseline"), base)])
    rounds = []
    for index in range(loaded.plan.first_round, loaded.plan.num_rounds + 1):
        proposals = list(agent.ask(state(index, base), loaded.plan.num_candidates(index)))
        agent.tell([_outcome(index, i, proposal, base) for i, proposal in enumerate(proposals, start=1)])
        rounds.append(proposals)
    return rounds


def _outcome(round_: int, index: int, proposal: Proposal, base: Knobs) -> Outcome:
    return Outcome(
        candidate=candidate_id(round_, index),
        round=round_,
        proposal=proposal,
        knobs={**base, **proposal.knobs},
        status=Status.OK,
        value=1.0 + index / 100,
    )


def test_the_plans_are_there() -> None:
    assert {"linear", "cookbook", "knobs", "width"} <= set(PLANS)
    assert {"none", "seed", "h200"} <= set(SPACES)


def words(name: str) -> list[str]:
    """What a plan needs on the command line."""
    return [f"+round={name}", *(["cluster=two_tiers"] if name == "tiers" else [])]


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_composes_says_what_it_is_and_proposes_full_rounds(name: str) -> None:
    text = (CONF / "round" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# @package _global_\n# ")
    loaded = load(*words(name))
    assert loaded.plan.name == name
    assert loaded.plan.description.endswith(".")
    first = loaded.plan.first_round
    rounds = rounds_of(loaded)
    assert len(rounds) == loaded.plan.num_rounds + 1 - first
    for index, proposals in enumerate(rounds, start=first):
        assert len(proposals) == loaded.plan.num_candidates(index) >= 1


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_fits_the_published_script(name: str) -> None:
    loaded = load(*words(name))
    if searched := space.from_config(loaded.space):
        searched.validate_knobs(UPSTREAM)
    source = knobs.rewrite(SCRIPT, loaded.plan.base)
    for proposals in rounds_of(loaded):
        for proposal in proposals:
            assert knobs.read(knobs.rewrite(source, proposal.knobs)) == {**knobs.read(source), **proposal.knobs}


@pytest.mark.parametrize("name", [name for name in SPACES if name != "none"])
def test_every_space_loads_and_fits_the_published_script(name: str) -> None:
    built = space.from_config(load("+round=linear", f"space={name}").space, UPSTREAM)
    assert built is not None
    if name != "quickstart":  # that one is for tiny settings
        assert built.contains({**UPSTREAM, "WINDOW_PATTERN": "SSSL"})
        assert built.check(UPSTREAM, FIXED) == []


@pytest.mark.parametrize("name", ["plan", "cmaes", "gp", "grid", "random", "tpe"])
def test_every_agent_is_a_config_file(name: str) -> None:
    assert load("+round=cookbook", f"agent={name}").agent.name == name
    assert (CONF / "agent" / f"{name}.yaml").read_text(encoding="utf-8").startswith("# ")


def test_linear_is_one_candidate_a_round() -> None:
    loaded = load("+round=linear")
    assert (loaded.plan.k, loaded.plan.num_rounds, loaded.plan.baseline) == (1, 12, Baseline.alone)
    assert loaded.agent.name == "gp"
    assert load("+round=linear", "agent=random", "plan.max_rounds=3").plan.num_rounds == 3


def test_knobs_is_the_default_sampler_at_k_16() -> None:
    loaded = load("+round=knobs")
    assert (loaded.plan.k, loaded.agent.name) == (16, "gp")
    assert set(loaded.space.knobs) == set(load("+round=linear").space.knobs)
    assert {"DEPTH", "ASPECT_RATIO", "TOTAL_BATCH_SIZE", "ADAM_BETAS"} < set(loaded.space.knobs)


def test_the_cookbook_is_the_published_16_experiments() -> None:
    loaded = load("+round=cookbook")
    assert loaded.plan.baseline is Baseline.joined
    assert loaded.cluster.max_parallel is None
    assert loaded.plan.base == {}
    rounds = rounds_of(loaded)
    assert [len(proposals) for proposals in rounds] == [3, 4, 4, 4]
    found = {p.name: (index, p.on, dict(p.knobs)) for index, proposals in enumerate(rounds) for p in proposals}
    assert found == COOKBOOK
    assert [p.title for proposals in rounds for p in proposals] == COOKBOOK_TITLES


def test_the_cookbooks_titles_say_what_the_knobs_do() -> None:
    for title, (_, _, settings) in zip(COOKBOOK_TITLES, COOKBOOK.values(), strict=True):
        name, value = next(iter(settings.items()))
        shown = str(value).replace(" ", "").replace("262144", "2^18")
        assert title.endswith("(combo)") or f"{name} " in title
        assert title.endswith("(combo)") or f"-> {shown}" in title


def test_width_is_six_widths_in_one_round() -> None:
    loaded = load("+round=width")
    assert (loaded.plan.num_rounds, loaded.plan.baseline) == (0, Baseline.joined)
    [proposals] = rounds_of(loaded)
    all_knobs = [{**UPSTREAM, **p.knobs} for p in proposals]
    raw = [int(str(k["DEPTH"])) * int(str(k["ASPECT_RATIO"])) for k in all_knobs]
    widths = [-(-width // 128) * 128 for width in raw]
    assert widths == [256, 384, 640, 768, 896, 1024]
    assert [p.name for p in proposals] == [f"w{width}" for width in widths]
    assert all(p.title.startswith(f"width {width}: ") for p, width in zip(proposals, widths, strict=True))
    assert all(2**19 % (int(str(k["DEVICE_BATCH_SIZE"])) * 2048) == 0 for k in all_knobs)


def test_the_h200_space_is_the_published_one() -> None:
    def of(kind: str, low: float, high: float, log: bool = False) -> KnobDomain:
        return KnobDomain(type=KnobType(kind), low=low, high=high, log=log)

    loaded = load("+round=knobs", "space=h200").space
    assert loaded.knobs == {
        "DEPTH": of("int", 4, 24),
        "ASPECT_RATIO": of("int", 32, 128),
        "HEAD_DIM": of("pow2", 64, 256),
        "DEVICE_BATCH_SIZE": of("pow2", 32, 256),
        "TOTAL_BATCH_SIZE": of("pow2", 65_536, 2_097_152),
        "EMBEDDING_LR": of("float", 0.01, 2, log=True),
        "UNEMBEDDING_LR": of("float", 0.0005, 0.05, log=True),
        "MATRIX_LR": of("float", 0.005, 0.2, log=True),
        "SCALAR_LR": of("float", 0.05, 2, log=True),
        "WEIGHT_DECAY": of("float", 0, 0.5),
        "WARMUP_RATIO": of("float", 0, 0.3),
        "WARMDOWN_RATIO": of("float", 0.1, 0.8),
        "FINAL_LR_FRAC": of("float", 0, 0.2),
        "WINDOW_PATTERN": KnobDomain(choices=["SSSL", "SSLL", "SLSL", "LLLL", "SSSS", "LSSL"]),
    }
    built = space.from_config(loaded, UPSTREAM)
    assert built is not None
    assert len(built.check({**UPSTREAM, "TOTAL_BATCH_SIZE": 2**17}, FIXED)) == 1
    assert len(built.check({**UPSTREAM, "HEAD_DIM": 65}, FIXED)) == 1


# ---- How rounds and indices go together (PlanConfig)


def one(name: str) -> RoundConfig:
    return RoundConfig(candidates=[CandidateConfig(name=name)])


def test_with_a_baseline_alone_round_i_is_the_ith() -> None:
    plan = PlanConfig(name="p", rounds=[one("a"), one("b")])
    assert (plan.first_round, plan.num_rounds) == (1, 2)
    assert [plan.round(i).candidates[0].name for i in (1, 2, 3)] == ["a", "b", "b"]
    with pytest.raises(ValueError, match="round 0 has no plan"):
        plan.round(0)


def test_with_a_joined_baseline_the_first_round_is_round_0() -> None:
    plan = PlanConfig(name="p", rounds=[one("a"), one("b")], baseline=Baseline.joined)
    assert (plan.first_round, plan.num_rounds) == (0, 1)
    assert [plan.round(i).candidates[0].name for i in (0, 1, 2)] == ["a", "b", "b"]


@pytest.mark.parametrize(
    ("baseline", "rounds", "max_rounds", "num_rounds"),
    [
        ("alone", 0, None, 1),
        ("alone", 0, 5, 5),
        ("alone", 2, 5, 5),
        ("alone", 2, 0, 0),
        ("joined", 0, None, 0),
        ("joined", 1, None, 0),
        ("joined", 4, None, 3),
        ("joined", 4, 1, 1),
        ("joined", 0, 3, 3),
    ],
)
def test_num_rounds_is_the_last_rounds_index(
    baseline: str, rounds: int, max_rounds: int | None, num_rounds: int
) -> None:
    named = [one(str(i)) for i in range(rounds)]
    plan = PlanConfig(name="p", rounds=named, baseline=Baseline(baseline), max_rounds=max_rounds)
    assert plan.num_rounds == num_rounds


def test_num_candidates() -> None:
    plan = PlanConfig(name="p", k=5, rounds=[one("a"), RoundConfig(k=3), RoundConfig()])
    assert [plan.num_candidates(i) for i in (1, 2, 3, 4)] == [1, 3, 5, 5]
    assert PlanConfig(name="p", k=2).num_candidates(1) == 2


def test_a_round_is_explicit_or_proposed() -> None:
    with pytest.raises(ConfigError, match="a round with both k: 3 and candidates"):
        RoundConfig(candidates=[CandidateConfig()], k=3)
