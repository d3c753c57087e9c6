import random

import pytest

from autoresearch_hpc import space
from autoresearch_hpc.bounds import Bound
from autoresearch_hpc.config import KnobDomain, KnobType, SpaceConfig
from autoresearch_hpc.errors import ConfigError, KnobError
from autoresearch_hpc.space import Space

FIXED = {"SEQ_LEN": 2048, "VOCAB_SIZE": 8192}
SCRIPT = {
    "DEPTH": 8,
    "LR": 0.04,
    "TOTAL_BATCH_SIZE": 2**19,
    "DEVICE_BATCH_SIZE": 128,
    "PATTERN": "SSSL",
    "BETAS": (0.8, 0.95),
    "HEAD_DIM": 128,
}


def build(bounds: list[str] | None = None, **knobs: KnobDomain) -> Space:
    built = space.from_config(SpaceConfig(knobs=knobs, bounds=bounds or []))
    assert built is not None
    return built


def every_kind(bounds: list[str] | None = None) -> Space:
    return build(
        bounds,
        DEPTH=KnobDomain(type=KnobType.int, low=4, high=24),
        LR=KnobDomain(type=KnobType.float, low=0.005, high=0.2, log=True),
        TOTAL_BATCH_SIZE=KnobDomain(type=KnobType.pow2, low=2**16, high=2**21),
        PATTERN=KnobDomain(choices=["SSSL", "L"]),
        BETAS=KnobDomain(choices=[[0.8, 0.95], [0.9, 0.95]]),
    )


def test_no_knobs_is_no_space() -> None:
    assert space.from_config(SpaceConfig()) is None
    with pytest.raises(ConfigError, match=r"without space\.knobs"):
        space.from_config(SpaceConfig(bounds=["1 < 2"]))


def test_samples_lie_in_the_space_and_spread_over_it() -> None:
    built = every_kind()
    rng = random.Random(0)
    samples = [built.sample(rng) for _ in range(2000)]
    assert all(built.contains(sample) for sample in samples)
    assert {s["DEPTH"] for s in samples} == set(range(4, 25))
    assert {s["TOTAL_BATCH_SIZE"] for s in samples} == {2**e for e in range(16, 22)}
    assert {s["BETAS"] for s in samples} == {(0.8, 0.95), (0.9, 0.95)}
    assert {s["PATTERN"] for s in samples} == {"SSSL", "L"}
    rates = sorted(s["LR"] for s in samples)
    assert 0.028 < rates[1000] < 0.036  # log: the median is sqrt(0.005 * 0.2) = 0.0316
    assert all(float(f"{rate:.4g}") == rate for rate in rates)


def test_log_integers_stay_whole_and_inside() -> None:
    domain = build(N=KnobDomain(type=KnobType.int, low=1, high=100, log=True)).domains["N"]
    rng = random.Random(0)
    values = [domain.sample(rng) for _ in range(1000)]
    assert all(type(v) is int and 1 <= v <= 100 for v in values)
    assert 7 <= sorted(values)[500] <= 14


def test_the_same_seed_gives_the_same_sample() -> None:
    assert every_kind().sample(random.Random("a")) == every_kind().sample(random.Random("a"))
    assert every_kind().sample(random.Random("a")) != every_kind().sample(random.Random("b"))


@pytest.mark.parametrize(
    ("domain", "values"),
    [
        (KnobDomain(type=KnobType.int, low=4, high=24), (4, 14, 24)),
        (KnobDomain(type=KnobType.int, low=1, high=2, points=5), (1, 2)),
        (KnobDomain(type=KnobType.int, low=1, high=100, log=True), (1, 10, 100)),
        (KnobDomain(type=KnobType.float, low=0, high=0.5, points=2), (0.0, 0.5)),
        (KnobDomain(type=KnobType.float, low=0.001, high=0.1, log=True), (0.001, 0.01, 0.1)),
        (KnobDomain(type=KnobType.float, low=0.12344, high=0.9, points=2), (0.12344, 0.9)),
        (KnobDomain(type=KnobType.pow2, low=16, high=256, points=5), (16, 32, 64, 128, 256)),
        (KnobDomain(type=KnobType.pow2, low=64, high=256), (64, 128, 256)),
        (KnobDomain(choices=["a", None, 3, [1, 2]]), ("a", None, 3, (1, 2))),
    ],
)
def test_grid_values(domain: KnobDomain, values: tuple[object, ...]) -> None:
    built = build(X=domain)
    assert tuple(setting["X"] for setting in built.grid()) == values
    assert all(built.contains(setting) for setting in built.grid())
    assert [type(setting["X"]) for setting in built.grid()] == [type(value) for value in values]


def test_the_grid_is_every_combination_with_the_last_knob_fastest() -> None:
    built = build(A=KnobDomain(choices=[1, 2]), B=KnobDomain(choices=["x", "y"]))
    assert [tuple(s.values()) for s in built.grid()] == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]


def test_size_and_all_count_every_value() -> None:
    built = build(
        A=KnobDomain(type=KnobType.int, low=1, high=4),
        B=KnobDomain(type=KnobType.pow2, low=1, high=8),
        C=KnobDomain(choices=[True, False]),
    )
    assert built.size == 32 == len({tuple(s.values()) for s in built.all()})
    assert every_kind().size == float("inf")


@pytest.mark.parametrize(
    ("name", "value", "inside"),
    [
        ("DEPTH", 4, True),
        ("DEPTH", 24.0, True),
        ("DEPTH", 25, False),
        ("DEPTH", 8.5, False),
        ("DEPTH", True, False),
        ("DEPTH", "8", False),
        ("LR", 0.005, True),
        ("LR", 0.0049, False),
        ("TOTAL_BATCH_SIZE", 2**17, True),
        ("TOTAL_BATCH_SIZE", 2**17 + 2, False),
        ("PATTERN", "SL", False),
        ("BETAS", (0.9, 0.95), True),
        ("BETAS", (0.9,), False),
    ],
)
def test_contains(name: str, value: object, inside: bool) -> None:
    setting = {**every_kind().sample(random.Random(0)), name: value}
    assert every_kind().contains(setting) is inside
    assert (every_kind().canonical(setting) is not None) is inside


def test_contains_wants_every_knob_and_ignores_others() -> None:
    setting = every_kind().sample(random.Random(0))
    assert every_kind().contains({**setting, "OTHER": 3})
    assert not every_kind().contains({k: v for k, v in setting.items() if k != "LR"})


def test_canonical_is_what_would_be_written() -> None:
    built = every_kind()
    setting = {**built.sample(random.Random(0)), "DEPTH": 8.0, "LR": 0.0412345, "EXTRA": 1}
    canonical = built.canonical(setting)
    assert canonical is not None
    assert "EXTRA" not in canonical
    assert (canonical["DEPTH"], type(canonical["DEPTH"]), canonical["LR"]) == (8, int, 0.04123)


def test_true_is_not_one() -> None:
    built = build(X=KnobDomain(choices=[True, 1, 0]))
    assert [built.canonical({"X": v}) for v in (1, True, False)] == [{"X": 1}, {"X": True}, None]
    assert built.canonical({"X": 1.0}) == {"X": 1}


@pytest.mark.parametrize(
    ("bound", "settings", "met"),
    [
        ("TOTAL_BATCH_SIZE % (DEVICE_BATCH_SIZE * SEQ_LEN) == 0", {}, True),
        ("TOTAL_BATCH_SIZE % (DEVICE_BATCH_SIZE * SEQ_LEN) == 0", {"TOTAL_BATCH_SIZE": 2**17}, False),
        ("4 <= DEPTH < 8", {}, False),
        ("4 <= DEPTH < 8", {"DEPTH": 4}, True),
        ('PATTERN in ("SSSL", "L")', {}, True),
        ("'X' not in PATTERN and not DEPTH > 8", {}, True),
        ("DEPTH > 8 or LR < 0.01", {}, False),
        ("max(DEPTH, 3, 1) == 8 and min(DEPTH, 9) == 8 and abs(-DEPTH) == +8", {}, True),
        ("DEPTH ** 2 // 3 - 1 == 20 and DEPTH / 16 == 0.5", {}, True),
        ("VOCAB_SIZE >= 8192", {}, True),
        ("HEAD_DIM % (DEPTH - 8) == 0", {}, False),  # a division by zero is not met
        ("2.0 ** (DEPTH * 1000) > 1", {}, False),  # nor is an overflow
    ],
)
def test_bounds(bound: str, settings: dict[str, object], met: bool) -> None:
    violated = every_kind([bound, "1 < 2"]).check(settings, {**FIXED, **SCRIPT})
    assert violated == ([] if met else [bound])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "DEPTH >",
        "DEPTH = 3",
        "DEPTH\n3",
        "__import__('os').system('x')",
        "DEPTH.real",
        "SCRIPT[0]",
        "print(DEPTH)",
        "max(*DEPTH)",
        "max(DEPTH, key=3)",
        "max()",
        "[x for x in DEPTH]",
        "lambda: 3",
        "DEPTH is 3",
        "f'{DEPTH}'",
        "b'x'",
        "~DEPTH",
        "(" * 3000 + "1" + ")" * 3000,
    ],
)
def test_a_bound_outside_the_language_is_refused_when_built(text: str) -> None:
    with pytest.raises(ConfigError, match="bound") as caught:
        every_kind([text])
    assert "\n" not in str(caught.value)


def test_a_bound_with_an_unknown_name_is_refused() -> None:
    config = SpaceConfig(knobs={"DEPTH": KnobDomain(choices=[8])}, bounds=["HEAD_DIMM % 2 == 0"])
    with pytest.raises(ConfigError, match=r"names HEAD_DIMM, which is no knob; did you mean HEAD_DIM\?"):
        space.from_config(config, SCRIPT)
    with pytest.raises(ConfigError, match="names HEAD_DIMM"):
        build(config.bounds, **config.knobs).check({"DEPTH": 8}, FIXED)
    assert space.from_config(SpaceConfig(knobs=config.knobs, bounds=["SEQ_LEN > DEPTH"]), SCRIPT)


def test_a_bound_without_an_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match="bound 'PATTERN < 3' cannot be computed"):
        Bound.parse("PATTERN < 3").holds({"PATTERN": "L"})


@pytest.mark.parametrize(
    ("domain", "name", "words"),
    [
        (KnobDomain(choices=[1]), "DEPHT", "the space's script has no knob DEPHT; did you mean DEPTH?"),
        (KnobDomain(choices=["8"]), "DEPTH", "space.knobs: DEPTH holds a number"),
        (KnobDomain(choices=[8, 9.5]), "DEPTH", "whole number"),
        (KnobDomain(type=KnobType.float, low=1, high=8), "DEPTH", "space.knobs.DEPTH is a range of floats"),
        (KnobDomain(type=KnobType.int, low=1, high=8), "PATTERN", "PATTERN holds a string"),
        (KnobDomain(choices=[[0.8, 0.9], 3]), "BETAS", "BETAS holds a tuple"),
    ],
)
def test_knobs_that_the_script_lacks_or_types_otherwise(domain: KnobDomain, name: str, words: str) -> None:
    with pytest.raises(KnobError) as caught:
        space.from_config(SpaceConfig(knobs={name: domain}), SCRIPT)
    assert words in str(caught.value)


def test_a_script_that_fits_passes() -> None:
    every_kind(["TOTAL_BATCH_SIZE % (DEVICE_BATCH_SIZE * SEQ_LEN) == 0"]).validate_knobs(SCRIPT)


def test_choices_are_plain_and_listed_once() -> None:
    with pytest.raises(ConfigError, match="twice"):
        build(X=KnobDomain(choices=[1, 2, 1.0]))
    with pytest.raises(ConfigError, match=r"space.knobs.X.choices"):
        build(X=KnobDomain(choices=[{"a": 1}]))
    assert build(X=KnobDomain(choices=[1, True])).size == 2
