"""The decision: by hand, its symmetries, its ties and its error rate."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from autoresearch_hpc.promotion import (
    Call,
    Judgement,
    Look,
    Noise,
    Prior,
    Replicates,
    Sample,
    Significant,
    best,
    judge,
    pool,
)
from autoresearch_hpc.promotion.dunnett import p_value
from autoresearch_hpc.records import Direction

RULE = Significant()
KNOWN = Noise(sd=1.0, df=math.inf)
INCUMBENT = Sample(candidate="r00-c00", values=(), fresh=(0.0, 0.0, 0.0))


def one(index: int, *values: float, **more: object) -> Sample:
    """A candidate; its first value is the array's."""
    return Sample(candidate=f"r01-c{index:02d}", values=values[:1], fresh=values[1:], **more)


def at(look: int, *samples: Sample, rule: Significant = RULE, noise: Noise = KNOWN, **more: object) -> Judgement:
    """Judged with the higher the better, so that a value is its gain over the incumbent's 0."""
    return judge(rule, look, noise, INCUMBENT, samples, Direction.max, **more)


def calls(judgement: Judgement) -> list[Call]:
    return [finding.call for finding in judgement.findings]


# by hand: a difference's standard error is sqrt(1 + 1/3) = 1.1547 after the array


def test_a_clear_win_needs_no_confirmation() -> None:
    judgement = at(0, one(0, 0.1), one(1, 6.0), one(2, -9.0))
    assert (judgement.promote, judgement.again, judgement.controls) == ("r01-c01", (), 0)
    assert calls(judgement) == [Call.DISCARD, Call.PROMOTE, Call.DISCARD]


def test_two_clear_wins_leave_one_to_be_combined() -> None:
    judgement = at(0, one(0, 6.0), one(1, 6.5))
    assert (judgement.promote, judgement.pool) == ("r01-c01", ("r01-c00",))
    assert calls(judgement) == [Call.NEAR_MISS, Call.PROMOTE]


def test_the_best_three_that_are_ahead_are_run_again() -> None:
    judgement = at(0, one(0, 1.3), one(1, 2.5), one(2, 1.0), one(3, 1.2), one(4, 1.4), one(5, -1.0))
    assert judgement.again == ("r01-c01", "r01-c04", "r01-c00")
    assert (judgement.promote, judgement.fresh, judgement.controls) == (None, 1, 2)
    assert calls(judgement).count(Call.CONFIRM) == 3


def test_nobody_ahead_ends_the_round() -> None:
    judgement = at(0, one(0, 1.1), one(1, -1.0))  # 1.1 is 0.95 standard errors
    assert (judgement.promote, judgement.again, judgement.pool) == (None, (), ())
    assert calls(judgement) == [Call.DISCARD, Call.DISCARD]


def test_a_fresh_seed_unmasks_luck() -> None:
    judgement = at(1, one(0, 3.0, -2.0), one(1, 1.5, 0.5), one(2, 0.0))
    assert (judgement.promote, judgement.again, judgement.pool) == (None, (), ("r01-c01",))
    assert calls(judgement) == [Call.DISCARD, Call.NEAR_MISS, Call.DISCARD]


def test_the_last_look_promotes_or_pools() -> None:
    won = at(2, one(0, 2.5, 2.0, 2.0, 2.0, 2.0), one(1, 1.5, 1.0), one(2, 0.0))
    assert (won.promote, won.again, won.pool) == ("r01-c00", (), ("r01-c01",))
    missed = at(2, one(0, 2.5, 0.5, 1.0, 0.5, 0.5), one(1, 0.0))
    assert (missed.promote, missed.pool) == (None, ("r01-c00",))


def test_the_same_values_do_not_pass_among_more_candidates() -> None:
    values = one(0, 1.6, 1.6, 1.6, 1.6, 1.6)  # 2.19 standard errors
    few, many = at(2, values), at(2, values, *(one(i, -1.0) for i in range(1, 16)))
    assert (few.promote, many.promote) == ("r01-c00", None)


def test_those_that_were_not_run_again_cannot_win_later() -> None:
    judgement = at(1, one(0, 5.9), one(1, 1.5, 1.5), rule=replace(RULE, alpha=0.001))
    assert judgement.again == ("r01-c01",)


def test_the_words_carry_the_numbers() -> None:
    judgement = at(0, one(0, 2.0), one(1, 0.0), Sample(candidate="r01-c02", values=()))
    words = [finding.words for finding in judgement.findings]
    p = p_value(2.0 / math.sqrt(4 / 3), 2, 1, 3, math.inf)
    assert words[0] == f"+2.000000 ± 2.263171, p={p:.3f} of K=2"
    assert words[2] == "no score"
    tiny = at(0, one(0, 0.000412), noise=Noise(sd=0.0001, df=10)).findings[0].words
    assert tiny.startswith("+0.000412 ± 0.000257, p=0.00")


def test_findings_carry_shrunk_effects_when_asked() -> None:
    (finding,) = at(0, one(0, 2.0), prior=Prior(sds=(math.sqrt(4 / 3),), weights=(1.0,))).findings
    assert finding.effect is not None
    assert finding.effect.gain == pytest.approx(1.0)
    assert at(0, one(0, 2.0)).findings[0].effect is None


# several kinds of GPU


def on_two_kinds(look: int, here: list[Sample], there: list[Sample], rule: Significant = RULE) -> Judgement:
    """Their incumbent is worth 100 more there."""
    other = replace(INCUMBENT, fresh=(100.0, 100.0, 100.0))
    return judge(rule, look, KNOWN, INCUMBENT, here, Direction.max, elsewhere=[(other, there)])


def test_each_kind_has_its_own_incumbent_and_its_share_of_the_chance() -> None:
    here, there = [one(0, 1.0)], [one(1, 103.0), one(2, 99.0), one(3, 98.0)]
    judgement = on_two_kinds(0, here, there)
    assert [f.candidate for f in judgement.findings] == ["r01-c00", "r01-c01", "r01-c02", "r01-c03"]
    assert [f.difference and f.difference.gain for f in judgement.findings] == [1.0, 3.0, -1.0, -2.0]
    assert [(f.k, f.k_alike) for f in judgement.findings] == [(4, 1), (4, 3), (4, 3), (4, 3)]
    se = math.sqrt(1 + 1 / 3)
    assert judgement.findings[0].p == pytest.approx(4 * p_value(1.0 / se, 1, 1, 3, math.inf))
    assert judgement.findings[1].p == pytest.approx(4 / 3 * p_value(3.0 / se, 3, 1, 3, math.inf))
    assert judgement.findings[3].p == 1.0


def test_a_lead_that_passes_alone_may_not_pass_with_its_kinds_share() -> None:
    single = replace(RULE, looks=())
    hopeless = [one(i, 90.0) for i in range(1, 8)]
    assert at(0, one(0, 2.1), rule=single).promote == "r01-c00"
    assert on_two_kinds(0, [one(0, 2.1)], hopeless, single).promote is None
    assert on_two_kinds(0, [one(0, 3.2)], hopeless, single).promote == "r01-c00"


def test_contested_by_another_kind_goes_to_a_look_and_by_the_same_one_does_not() -> None:
    judgement = on_two_kinds(0, [one(0, 7.0), one(1, 6.9)], [one(2, 106.8), one(3, 106.0), one(4, 100.0)])
    assert (judgement.promote, judgement.again) == (None, ("r01-c00", "r01-c02", "r01-c03"))
    assert [f.call for f in judgement.findings if f.candidate in judgement.again] == [Call.CONFIRM] * 3
    assert on_two_kinds(0, [one(0, 7.0), one(1, 6.9)], [one(2, 100.0)]).promote == "r01-c00"
    far = on_two_kinds(0, [one(0, 20.0)], [one(2, 106.8)])  # two standard errors of their difference are 3.3
    assert (far.promote, far.pool) == ("r01-c00", ("r01-c02",))


def test_after_the_last_look_the_best_is_kept_whoever_comes_near() -> None:
    single = replace(RULE, looks=())
    assert on_two_kinds(0, [one(0, 7.0)], [one(1, 107.1)], single).promote == "r01-c01"


def test_two_kinds_without_a_gain_promote_in_five_percent_at_most() -> None:
    single, rng, kept = replace(RULE, looks=()), np.random.default_rng(0), 0
    for _ in range(2000):
        kinds = [
            (replace(INCUMBENT, fresh=tuple(rng.normal(size=3))), [one(4 * j + i, rng.normal()) for i in range(k)])
            for j, k in enumerate((4, 1))
        ]
        kept += judge(single, 0, KNOWN, *kinds[0], Direction.max, elsewhere=kinds[1:]).promote is not None
    assert 0.03 < kept / 2000 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 2000)


# what cannot win


def test_without_a_score_nobody_wins() -> None:
    judgement = at(0, Sample(candidate="r01-c00", values=()), one(1, -1.0))
    assert calls(judgement) == [Call.FAILED, Call.DISCARD]
    assert judgement.findings[1].k == 1  # a failure is no comparison
    assert at(0) == Judgement(findings=())
    assert at(2, Sample(candidate="r01-c00", values=())).promote is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_is_finite(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        one(0, value)


def test_an_incumbent_without_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match="has no value"):
        judge(RULE, 0, KNOWN, Sample(candidate="r00-c00", values=()), [one(0, 1.0)], Direction.max)


def test_min_delta_is_asked_for_as_well() -> None:
    samples = one(0, 6.0), one(1, 0.0)
    assert at(0, *samples, rule=replace(RULE, min_delta=6.1)).promote is None
    assert at(0, *samples, rule=replace(RULE, min_delta=5.9)).promote == "r01-c00"


def test_over_the_memory_cap_nobody_wins() -> None:
    rule = replace(RULE, max_vram_mb=80_000)
    judgement = at(0, one(0, 9.0, peak_vram_mb=80_001), one(1, 6.0, peak_vram_mb=80_000), one(2, 5.9), rule=rule)
    assert calls(judgement) == [Call.TOO_LARGE, Call.PROMOTE, Call.NEAR_MISS]


def test_memory_has_a_price() -> None:
    rule, incumbent = replace(RULE, price_per_gb=0.5), replace(INCUMBENT, peak_vram_mb=40 * 1024)
    more, same = one(0, 6.4, peak_vram_mb=42 * 1024), one(1, 6.0, peak_vram_mb=40 * 1024)
    judgement = judge(rule, 0, KNOWN, incumbent, [more, same], Direction.max)
    assert judgement.promote == "r01-c01"
    assert judgement.findings[0].difference is not None
    assert judgement.findings[0].difference.gain == pytest.approx(5.4)
    assert at(0, more, same).promote == "r01-c00"


# noise


def test_unknown_noise_promotes_nothing_but_measures_it() -> None:
    unknown = pool([])
    judgement = at(0, one(0, 1e9), one(1, -1.0), noise=unknown)
    assert (judgement.promote, judgement.again) == (None, ("r01-c00",))
    assert judgement.findings[0].words == "+1000000000.000000, noise unknown, K=2"
    assert at(2, one(0, 1e9, 1e9), noise=unknown).promote is None


def test_little_knowledge_asks_for_more() -> None:
    """2 degrees of freedom, of which one baseline of three replicates is all: 6 sd are no clear win any more."""
    assert at(0, one(0, 6.0), one(1, 0.0), noise=Noise(sd=1.0, df=2)).promote is None
    assert at(0, one(0, 6.0), one(1, 0.0), noise=Noise(sd=1.0, df=30)).promote == "r01-c00"


def test_a_script_without_noise_keeps_any_gain() -> None:
    exact = pool([Replicates(kind="cpu", values=(0.0, 0.0, 0.0))])
    judgement = at(0, one(0, 1e-6), one(1, 0.0), noise=exact)
    assert judgement.promote == "r01-c00"
    assert judgement.findings[0].words == "+0.000001 ± 0.000000, p<0.0001 of K=2"
    assert at(0, one(0, 0.0), noise=exact).promote is None


# less code


SHORTER = replace(RULE, simplify=True, simplify_margin=2.5)


def test_less_code_at_an_equal_score_is_promoted() -> None:
    equal = one(0, 0.1, 0.0, 0.0, -0.1, 0.0, net_lines=-12)
    judgement = at(2, equal, one(1, 0.0), rule=SHORTER)
    assert (judgement.promote, calls(judgement)) == ("r01-c00", [Call.SIMPLER, Call.DISCARD])
    assert at(2, equal, one(1, 0.0)).promote is None  # only where it was asked for
    assert at(2, replace(equal, net_lines=0), rule=SHORTER).promote is None
    assert at(2, equal, rule=replace(SHORTER, simplify_margin=0.5)).promote is None  # not shown to be so close
    assert at(1, one(0, 9.0), one(1, 0.1, 0.0, net_lines=-12), rule=SHORTER).promote is None  # not at its last look


def test_less_code_is_shown_equal_by_fresh_seeds_and_among_as_many_as_remove_any() -> None:
    lucky = one(0, 0.9, net_lines=-12)  # 2.9 standard errors above the margin
    assert at(2, lucky, one(1, *[-0.5] * 5), rule=SHORTER).promote is None
    equal, others = one(0, *[-1.0] * 5, net_lines=-12), [one(i, -9.0, net_lines=-1) for i in range(1, 16)]
    assert at(2, equal, rule=SHORTER).promote == "r01-c00"  # 2.05 standard errors above the margin
    assert at(2, equal, *others, rule=SHORTER).promote is None
    assert at(2, equal, *(replace(s, net_lines=0) for s in others), rule=SHORTER).promote == "r01-c00"


def test_what_removes_code_goes_along_to_be_shown_equal() -> None:
    judgement = at(0, one(0, 2.0), one(1, -0.5, net_lines=-3), one(2, -3.0, net_lines=-9), rule=SHORTER)
    assert judgement.again == ("r01-c00", "r01-c01")


def test_a_better_score_comes_before_less_code() -> None:
    better, shorter = one(0, *[2.5] * 5), one(1, *[0.0] * 5, net_lines=-12)
    assert at(2, better, shorter, rule=SHORTER).promote == "r01-c00"


def test_most_code_removed_wins() -> None:
    family = [one(i, *[0.5 - i / 10] * 5, net_lines=lines) for i, lines in enumerate([-1, -30, -30, -2])]
    assert at(2, *family, rule=SHORTER).promote == "r01-c01"


# ties and symmetries


def test_ties_go_to_less_code_then_the_lower_id() -> None:
    assert at(0, one(0, 6.0, net_lines=4), one(1, 6.0, net_lines=2), one(2, 6.0, net_lines=2)).promote == "r01-c01"
    assert at(0, one(100, 6.0), one(99, 6.0)).promote == "r01-c99"


@pytest.fixture
def rounds() -> list[tuple[int, list[Sample]]]:
    """Rounds of all sorts, at every look."""
    rng, found = np.random.default_rng(0), []
    for look, k in itertools.product((0, 1, 2), (1, 2, 5, 16)):
        for _ in range(5):
            num = [1, 2, 5][look]
            samples = [one(i, *map(float, rng.normal(rng.choice([0, 2, 4]), 1, num))) for i in range(k)]
            found.append((look, samples))
    return found


def mapped(samples: list[Sample], change: Callable[[float], float]) -> list[Sample]:
    return [replace(s, values=tuple(map(change, s.values)), fresh=tuple(map(change, s.fresh))) for s in samples]


def outcome(judgement: Judgement) -> tuple[object, ...]:
    return judgement.promote, judgement.again, judgement.pool, calls(judgement)


def test_every_kind_of_round_is_among_them(rounds: list[tuple[int, list[Sample]]]) -> None:
    seen = {call for look, samples in rounds for call in calls(at(look, *samples))}
    assert seen >= {Call.PROMOTE, Call.CONFIRM, Call.NEAR_MISS, Call.DISCARD}


def test_minimizing_is_maximizing_the_negative(rounds: list[tuple[int, list[Sample]]]) -> None:
    for look, samples in rounds:
        flipped = judge(RULE, look, KNOWN, INCUMBENT, mapped(samples, lambda v: -v), Direction.min)
        assert outcome(flipped) == outcome(at(look, *samples))


def test_neither_shift_nor_scale_matters(rounds: list[tuple[int, list[Sample]]]) -> None:
    for look, samples in rounds:
        incumbent = replace(INCUMBENT, fresh=(8.0, 8.0, 8.0))
        changed = judge(
            RULE, look, Noise(sd=0.25, df=math.inf), incumbent, mapped(samples, lambda v: 8 + v / 4), Direction.max
        )
        assert outcome(changed) == outcome(at(look, *samples))


def test_order_does_not_matter(rounds: list[tuple[int, list[Sample]]]) -> None:
    for look, samples in rounds:
        ordered, backwards = at(look, *samples), at(look, *reversed(samples))
        assert outcome(backwards)[:3] == outcome(ordered)[:3]
        assert [f.candidate for f in backwards.findings] == [s.candidate for s in reversed(samples)]


def test_better_values_never_cost_a_winner_its_place(rounds: list[tuple[int, list[Sample]]]) -> None:
    for look, samples in rounds:
        winner = at(look, *samples).promote
        raised = [replace(s, values=(s.values[0] + 1,)) if s.candidate == winner else s for s in samples]
        assert at(look, *raised).promote == winner


def test_every_number_is_one(rounds: list[tuple[int, list[Sample]]]) -> None:
    for look, samples in rounds:
        for finding in at(look, *samples, noise=Noise(sd=1.0, df=3)).findings:
            assert finding.p is not None
            assert 0 <= finding.p <= 1
            assert "nan" not in finding.words


# the design


def test_controls_fill_up_what_the_incumbent_lacks() -> None:
    lucky = Sample(candidate="r03-c02", values=(1.0,))
    assert (RULE.controls_along(lucky), RULE.controls_along(INCUMBENT)) == (2, 0)
    counts = [replace(INCUMBENT, fresh=(0.0,) * n) for n in (3, 5, 6, 9)]
    assert [RULE.controls_at_look(sample) for sample in counts] == [2, 1, 0, 0]


def test_the_looks_spend_alpha_and_no_more() -> None:
    assert [RULE.spend(look) for look in range(3)] == pytest.approx([0.001, 0.01, 0.039])
    assert Significant(looks=()).spend(0) == RULE.alpha
    assert at(0, one(0, 4.0), rule=Significant(looks=())).promote == "r01-c00"
    with pytest.raises(ValueError, match="of which the looks spend"):
        Significant(looks=(Look(keep=1, fresh=1, ahead=0.0, share=1.0),))
    with pytest.raises(ValueError, match="does nothing"):
        Significant(looks=(Look(keep=0, fresh=1, ahead=0.0, share=0.5),))


def play(effects: list[float], rng: np.random.Generator, rule: Significant) -> str | None:
    """One round against an incumbent of three trials, the noise measured by those and what the round adds."""
    incumbent = replace(INCUMBENT, fresh=tuple(rng.normal(size=3).tolist()))
    samples = [one(i, float(rng.normal(e))) for i, e in enumerate(effects)]
    old = Replicates(kind="", values=tuple(rng.normal(size=8).tolist()))
    for look in range(len(rule.looks) + 1):
        groups = [old, *(Replicates(kind="", values=s.fresh) for s in (incumbent, *samples))]
        judgement = judge(rule, look, pool(groups), incumbent, samples, Direction.max)
        if not judgement.again:
            return judgement.promote
        for i, sample in enumerate(samples):
            if sample.candidate in judgement.again:
                more = rng.normal(effects[i], size=judgement.fresh).tolist()
                samples[i] = replace(sample, fresh=(*sample.fresh, *more))
        incumbent = replace(incumbent, fresh=(*incumbent.fresh, *rng.normal(size=judgement.controls).tolist()))
    raise AssertionError("a round without an end")


@pytest.mark.parametrize("k", [1, 4, 16])
def test_a_round_without_a_gain_promotes_in_five_percent_at_most(k: int) -> None:
    eager = replace(
        RULE, looks=(Look(keep=16, fresh=1, ahead=-9.0, share=0.2), Look(keep=16, fresh=3, ahead=-9.0, share=0.78))
    )
    for rule, low in ((RULE, 0.001), (eager, 0.02)):  # all of alpha is used only where everyone is run again
        rng = np.random.default_rng(k)
        rate = np.mean([play([0.0] * k, rng, rule) is not None for _ in range(1500)])
        assert low < rate <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1500)


def test_nor_beside_hopeless_ones_and_a_real_gain_is_found() -> None:
    rng = np.random.default_rng(0)
    beside = [play([0.0] * 4 + [-50.0] * 12, rng, RULE) for _ in range(1000)]
    assert np.mean([winner is not None for winner in beside]) <= 0.05
    found = [play([0.0] * 15 + [4.0], rng, RULE) for _ in range(300)]
    assert np.mean([winner == "r01-c15" for winner in found]) > 0.9
    assert np.mean([winner not in (None, "r01-c15") for winner in found]) <= 0.05


# best


def test_best_takes_numbers_at_their_face_value() -> None:
    assert best(INCUMBENT, [one(0, 0.1), one(1, 0.2), one(2, -3.0)], Direction.max) == "r01-c01"
    assert best(INCUMBENT, [one(0, 0.1), one(1, 0.2), one(2, -3.0)], Direction.min) == "r01-c02"
    assert best(INCUMBENT, [one(0, 0.0), Sample(candidate="r01-c01", values=())], Direction.max) is None
    assert best(INCUMBENT, [one(0, 0.1), one(1, 0.1, net_lines=-1)], Direction.max) == "r01-c01"
    assert best(INCUMBENT, [one(0, 0.3)], Direction.max, min_delta=0.3) == "r01-c00"
    assert best(INCUMBENT, [one(0, 0.3)], Direction.max, min_delta=0.31) is None
