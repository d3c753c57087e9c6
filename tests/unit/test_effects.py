"""Effects from results whose truth is known: they are found, their intervals hold, and what cannot be told is said."""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from autoresearch_hpc import designs, effects
from autoresearch_hpc.config import KnobDomain, KnobType, SpaceConfig
from autoresearch_hpc.estimates import Effect, Effects, Term
from autoresearch_hpc.gains import Noise
from autoresearch_hpc.records import Knobs, Outcome, Proposal, Status, Verdict, candidate_id, from_json, to_json
from autoresearch_hpc.space import Space, from_config

NAMES = "ABCDEFG"
SD = 0.01
NOISE = Noise(sd=SD, df=8.0)


def space(num: int = 5, **more: KnobDomain) -> Space:
    unit = {name: KnobDomain(type=KnobType.float, low=-1.0, high=1.0) for name in NAMES[:num]}
    built = from_config(SpaceConfig(knobs={**unit, **more}))
    assert built is not None
    return built


def outcome(knobs: Knobs, value: float | None, index: int = 0, num_trials: int = 1, **proposal: object) -> Outcome:
    return Outcome(
        candidate=candidate_id(1, index),
        round=1,
        proposal=Proposal(title="x", **proposal),
        knobs=knobs,
        status=Status.CRASHED if value is None else Status.OK,
        value=value,
        num_trials=num_trials,
    )


def coded(row: Sequence[float]) -> Knobs:
    return {name: float(level) for name, level in zip(NAMES, row, strict=False)}


def results(rows: Sequence[Sequence[float]], truth: Callable[..., float], seed: int, sd: float = SD) -> list[Outcome]:
    luck = random.Random(seed)
    return [outcome(coded(row), truth(*row) + luck.gauss(0, sd), i) for i, row in enumerate(rows)]


def found(outcomes: Sequence[Outcome], searched: Space, noise: Noise | None = NOISE) -> Effects:
    model = effects.fit(outcomes, searched, noise)
    assert model is not None
    return model.effects


def by_name(estimated: Effects) -> dict[str, Effect]:
    return {effect.name: effect for effect in estimated.effects}


def surface(a: float, b: float, c: float, d: float, e: float) -> float:
    """Effects of A, B, A:B and C; D and E do nothing."""
    return 1.0 - 0.05 * a + 0.02 * b + 0.03 * a * b + 0.01 * c


TRUE = {"A": -0.1, "B": 0.04, "C": 0.02, "D": 0.0, "E": 0.0, "A:B": 0.06}
FIVE = designs.two_level(5, 4).rows


def test_effects_without_luck_are_exact() -> None:
    estimated = by_name(found(results(FIVE, surface, 0, sd=0.0), space()))
    assert len(estimated) == 15  # resolution V: five knobs and all their pairs, none aliased
    for name, effect in estimated.items():
        assert effect.estimate == pytest.approx(TRUE.get(name, 0.0), abs=1e-12)
        assert effect.aliases == ()


def test_what_is_there_is_found_and_nothing_much_else() -> None:
    estimated = by_name(found(results(FIVE, surface, 1), space()))
    assert {name for name, effect in estimated.items() if effect.significant} >= {"A", "B", "A:B", "C"}
    assert found(results(FIVE, surface, 1), space()).by_size[0].name == "A"


@pytest.mark.parametrize(
    ("rows", "noise"),
    [
        (FIVE, "known"),
        ([*FIVE, *FIVE[:6]], "replicates"),
        (designs.two_level(5, 5).rows, "none"),
    ],
    ids=["the run's noise", "replicates", "what is left over"],
)
def test_intervals_hold_the_truth_as_often_as_they_say(rows: Sequence[Sequence[int]], noise: str) -> None:
    held = total = 0
    for seed in range(150):
        known = None
        if noise == "known":  # itself an estimate, of eight degrees of freedom
            luck = random.Random(-seed - 1)
            sd = (sum(luck.gauss(0, SD) ** 2 for _ in range(8)) / 8) ** 0.5
            known = Noise(sd=sd, df=8.0)
        for name, effect in by_name(found(results(rows, surface, seed), space(), known)).items():
            assert effect.margin is not None
            held += abs(effect.estimate - TRUE.get(name, 0.0)) <= effect.margin
            total += 1
    assert 0.93 <= held / total <= 0.975


def test_aliases_of_a_half_fraction_are_named() -> None:
    rows = designs.two_level(4, 3).rows
    estimated = found(results(rows, lambda a, b, c, d: 1 + 0.1 * c + 0.1 * d + 0.2 * c * d, 0), space(4))
    told = by_name(estimated)
    pairs = [{name, *effect.aliases} for name, effect in told.items() if effect.term is Term.interaction]
    assert sorted(map(sorted, pairs)) == [["A:B", "C:D"], ["A:C", "B:D"], ["A:D", "B:C"]]
    assert told["C:D"].aliases == ("A:B",)  # C and D matter by themselves
    assert told["A"].aliases == ()


def test_aliases_of_a_saturated_design_stand_beside_main_effects() -> None:
    rows = designs.two_level(7, 3).rows
    told = by_name(found(results(rows, lambda *x: 1 + 0.1 * x[0], 0), space(7)))
    assert set(told) == set(NAMES)
    assert set(told["A"].aliases) == {"B:D", "C:E", "F:G"}


def test_centre_points_show_curvature_but_not_whose() -> None:
    rows = [*designs.two_level(3, 3).rows, *[(0, 0, 0)] * 3]
    bent = by_name(found(results(rows, lambda a, b, c: 1 + 0.08 * a * a + 0.02 * b, 3), space(3)))
    assert bent["A^2+B^2+C^2"].significant
    assert bent["A^2+B^2+C^2"].estimate == pytest.approx(0.08, abs=0.02)
    flat = by_name(found(results(rows, lambda a, b, c: 1 + 0.02 * b, 3), space(3)))
    assert not flat["A^2+B^2+C^2"].significant


def test_third_levels_say_whose_the_curvature_is() -> None:
    rows = [*designs.two_level(3, 3).rows, (0, 0, 0), *designs.axial(3, range(3))]
    told = by_name(found(results(rows, lambda a, b, c: 1 + 0.08 * a * a + 0.02 * b, 3), space(3)))
    assert told["A^2"].significant
    assert told["A^2"].estimate == pytest.approx(0.08, abs=0.03)
    assert not told["B^2"].significant
    assert not told["C^2"].significant


def test_lack_of_fit_is_seen_and_widens_the_intervals() -> None:
    rows = [(a, b) for a, b in itertools.product((-1, -0.5, 0, 0.5, 1), repeat=2)]
    good = found(results(rows, lambda a, b: 1 + 0.1 * a + 0.05 * a * b, 1), space(2))
    assert good.lack_of_fit is not None
    assert good.lack_of_fit > 0.05
    assert good.error == "the run's noise"
    bad = found(results(rows, lambda a, b: 1 + 0.2 * a**3 * b**2, 1), space(2))
    assert bad.lack_of_fit is not None
    assert bad.lack_of_fit < 0.001
    assert bad.error == "what the model leaves over"
    assert bad.sd is not None
    assert bad.sd > 2 * SD


def test_replicates_are_pure_error() -> None:
    rows = [*designs.two_level(3, 3).rows] * 2
    estimated = found(results(rows, lambda a, b, c: 1 + 0.1 * a, 2), space(3), None)
    assert estimated.error == "replicates"
    assert estimated.df == 8
    assert estimated.lack_of_fit is not None
    pooled = found(results(rows, lambda a, b, c: 1 + 0.1 * a, 2), space(3), NOISE)
    assert pooled.error == "replicates and the run's noise"
    assert pooled.df == 16


def test_without_any_error_lenth_tells_the_few_from_the_many() -> None:
    estimated = found(results(FIVE, surface, 4), space(), None)
    assert estimated.error == "Lenth's pseudo standard error"
    assert {e.name for e in estimated.effects if e.significant} == {"A", "B", "A:B", "C"}


def test_of_very_few_results_nothing_is_known_of_the_error() -> None:
    estimated = found(results([(-1, -1), (1, -1), (-1, 1), (1, 1)], lambda a, b: a, 0), space(2), None)
    assert estimated.sd is None
    assert all(effect.margin is None and effect.p is None for effect in estimated.effects)


def test_failures_are_left_out_and_counted() -> None:
    outcomes = results(FIVE, surface, 1)
    outcomes[3] = outcome(outcomes[3].knobs, None)
    estimated = found(outcomes, space())
    assert (estimated.num_outcomes, estimated.num_failed) == (15, 1)
    assert estimated.effects[0].estimate == pytest.approx(-0.1, abs=0.03)


def test_a_result_counts_by_its_trials() -> None:
    rows = [(-1.0,), (1.0,), (-1.0,), (1.0,)]
    values = [1.0, 2.0, 4.0, 2.0]
    outcomes = [outcome(coded(row), value, i) for i, (row, value) in enumerate(zip(rows, values, strict=True))]
    outcomes[0] = outcome(coded(rows[0]), 1.0, num_trials=9)
    assert found(outcomes, space(1)).effects[0].estimate == pytest.approx(2.0 - 1.3)


def test_scales_of_knobs_are_their_own() -> None:
    searched = space(
        0,
        LR=KnobDomain(type=KnobType.float, low=0.01, high=1.0, log=True),
        BATCH=KnobDomain(type=KnobType.pow2, low=2**10, high=2**20),
        KIND=KnobDomain(choices=["x", "y"]),
    )
    rows = itertools.product((0.01, 0.1, 1.0), (2**12, 2**14, 2**16), ("x", "y"))
    steps = {0.01: -1, 0.1: 0, 1.0: 1, 2**12: -1, 2**14: 0, 2**16: 1, "x": -1, "y": 1}
    outcomes = []
    for i, (lr, batch, kind) in enumerate(rows):
        value = 0.1 * steps[lr] - 0.2 * steps[batch] + 0.3 * steps[kind]
        outcomes.append(outcome({"LR": lr, "BATCH": batch, "KIND": kind}, value, i))
    estimated = found(outcomes, searched, None)
    told = by_name(estimated)
    assert [told[name].estimate for name in ("LR", "BATCH", "KIND")] == pytest.approx([0.2, -0.4, 0.6])
    assert told["LR^2"].estimate == pytest.approx(0.0, abs=1e-9)
    assert [(f.low, f.high) for f in estimated.factors] == [("0.01", "1.0"), ("4096", "65536"), ("x", "y")]


def test_each_of_many_choices_is_compared_with_the_commonest() -> None:
    searched = space(1, KIND=KnobDomain(choices=["x", "y", "z"]))
    worth = {"x": 0.0, "y": 0.5, "z": -0.25}
    kinds = ["x", "x", "x", "y", "z", "x", "y", "z"]
    outcomes = [outcome({"A": (-1.0) ** i, "KIND": kind}, worth[kind], i) for i, kind in enumerate(kinds)]
    told = by_name(found(outcomes, searched, None))
    assert told["KIND=y"].estimate == pytest.approx(0.5)
    assert told["KIND=z"].estimate == pytest.approx(-0.25)
    assert all(effect.term is Term.main for effect in told.values())  # its interactions are not looked at


def test_edits_of_code_do_not_enter_and_a_kept_one_begins_anew() -> None:
    outcomes = results(FIVE, surface, 1)
    edited = outcome(outcomes[0].knobs, 0.1, files={"train.py": "x"})
    assert found([*outcomes, edited], space()).num_outcomes == 16
    kept = Outcome(
        candidate="r02-c00", round=2, proposal=edited.proposal, knobs=edited.knobs, status=Status.OK, value=0.1,
        verdict=Verdict.KEEP,
    )  # fmt: skip
    assert found([*outcomes, kept, *outcomes], space()).num_outcomes == 17


def test_trials_of_another_kind_have_a_level_of_their_own() -> None:
    """A third of the wave on a GPU that scores better, whatever the knobs: nothing of it is taken for an effect."""
    rows = designs.two_level(5, 5).rows
    outcomes = results(rows, surface, 1)
    mixed = [
        replace(o, kind="H200" if i % 3 == 0 else "H100", value=(o.value or 0.0) - 0.5 * (i % 3 == 0))
        for i, o in enumerate(outcomes)
    ]
    told = by_name(found(mixed, space()))
    for name in ("A", "B", "C", "D", "E", "A:B"):
        margin = told[name].margin
        assert margin is not None
        assert abs(told[name].estimate - TRUE[name]) <= 1.5 * margin
        assert margin < 0.02
    kinds_alone = [replace(o, kind=f"kind {i}") for i, o in enumerate(outcomes)]
    assert effects.fit(kinds_alone, space(), NOISE) is None


def test_settings_outside_the_space_do_not_enter() -> None:
    outcomes = [*results(FIVE, surface, 1), outcome({**coded(FIVE[0]), "A": 7.0}, 1.0), outcome({"A": 0.0}, 1.0)]
    assert found(outcomes, space()).num_outcomes == 16


def test_nothing_is_told_of_nothing() -> None:
    assert effects.fit([], space()) is None
    assert effects.fit([outcome(coded([0, 0, 0, 0, 0]), 1.0, i) for i in range(5)], space()) is None
    assert effects.fit([outcome(coded(row), None, i) for i, row in enumerate(FIVE)], space()) is None


def test_worth_telling_from_eight_results_of_two_knobs() -> None:
    eight = results(designs.two_level(3, 3).rows, lambda a, b, c: a, 0)
    assert effects.worth_telling(eight, space(3), NOISE) is not None
    assert effects.worth_telling(eight[:7], space(3), NOISE) is None
    one_knob = results([(x, 0.0, 0.0) for x in (-1, -0.7, -0.4, -0.1, 0.1, 0.4, 0.7, 1)], lambda a, b, c: a, 0)
    assert effects.worth_telling(one_knob, space(3), NOISE) is None


def test_random_settings_are_fitted_as_far_as_they_go() -> None:
    luck = random.Random(0)
    rows = [[luck.uniform(-1, 1) for _ in range(5)] for _ in range(14)]
    estimated = found(results(rows, surface, 0), space())
    assert {"A", "B", "C", "D", "E"} <= set(by_name(estimated))
    assert len(estimated.effects) < 14
    assert estimated.not_estimated or any(effect.aliases for effect in estimated.effects)
    assert by_name(estimated)["A"].significant


def test_a_metric_without_any_luck() -> None:
    told = by_name(found(results(FIVE, surface, 0, sd=0.0), space(), None))
    assert told["A"].p is not None
    assert told["A"].p < 1e-6
    constant = found([outcome(coded(row), 1.0, i) for i, row in enumerate(FIVE)], space(), None)
    assert not any(effect.significant for effect in constant.effects)


def test_json_and_back() -> None:
    estimated = found(results(FIVE, surface, 1), space())
    assert from_json(Effects, to_json(estimated)) == estimated
    with pytest.raises(ValueError, match="not a Effects"):
        from_json(Effects, {**to_json(estimated), "more": 1})


def test_the_model_predicts() -> None:
    model = effects.fit(results(FIVE, surface, 0, sd=0.0), space(), NOISE)
    assert model is not None
    for row in ((0.5, 0.5, 0, 0, 0), (-1, 1, 1, -1, 1)):
        assert model.predict(coded(row)) == pytest.approx(surface(*row))
    assert model.predict(coded((1, 1, 1, 1, 1)), keep={"A"}) == pytest.approx(0.95)
