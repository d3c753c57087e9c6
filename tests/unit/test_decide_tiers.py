"""Verdicts where a run has several kinds of GPU: a validation on another one, and rounds that spread over all."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_run import FakeRun, gpu_of

from autoresearch_hpc import decide
from autoresearch_hpc.config import DecideConfig, LookConfig
from autoresearch_hpc.history import History, Round
from autoresearch_hpc.records import Direction, Status, to_json
from autoresearch_hpc.tiers import Tiers

BASELINE = "r00-c00"
VALIDATED = Tiers(
    slots={"h100": 13, "h200": 3},
    prices={"h100": 2.0, "h200": 3.0},
    screens=("h100",),
    validates="h200",
    top=2,
    seeds=2,
)
ANY = Tiers(slots={"h100": 2, "h200": 2}, prices={"h100": 2.0, "h200": 3.0}, screens=("h100", "h200"))
THREE = Tiers(slots=dict.fromkeys("abc", 2), prices=dict.fromkeys("abc", 1.0), screens=("a", "b", "c"))
BEST = DecideConfig(rule="best")
SIGNIFICANT = DecideConfig(noise_sd=0.0005, noise_df=50)  # a known noise: figures can be followed by hand


class Search:
    """A run on several tiers whose trials earn what they are told to, in any number."""

    def __init__(self, root: Path, tiers: Tiers, direction: Direction = Direction.min) -> None:
        self.run = FakeRun(root / "tag", direction=direction, deciding_tier=tiers.validates)
        self.tiers = tiers

    def round(self, *titles: str, on: str = "") -> list[str]:
        """On the first tier, or each on the one whose number it has here."""
        places = [self.tiers.screens[int(digit)] for digit in on or "0" * len(titles)]
        return [trial.removesuffix("-t0") for trial in self.run.propose(list(titles), submit=False, tiers=places)]

    def earn(self, candidate: str, *values: float | None, on: str = "", **more: Any) -> None:
        """Further trials of the candidate, in the newest round; by default where it is tried."""
        for value in values:
            trial = self.submit(candidate, on)
            tier = self.history.trial(trial).tier
            place = {"tier": tier, "gpu": gpu_of(tier)} | more
            self.run.event("trial.done", trial=trial, result=to_json(self.run.result(trial, value, **place)))

    def submit(self, candidate: str, on: str = "") -> str:
        index, round_ = len(self.history.entry(candidate).trials), self.newest.index
        own = next((want.tier for want in self.newest.needed if want.candidate == candidate), "")
        trial = f"{candidate}-t{index}"
        self.run.event("submit.intent", round=round_, job_name=f"ar-{trial}-{round_}", tier=on or own, trials=[trial])
        return trial

    def want(self, stage: str, tier: str, **trials: int) -> None:
        wanted = {id_.replace("_", "-"): count for id_, count in trials.items()}
        self.run.event("trials.wanted", round=self.newest.index, stage=stage, tier=tier, trials=wanted)

    def follow(self, more: decide.Further | None, **earned: float | None) -> decide.Further:
        """Run what is asked for; each trial earns what is said of its candidate."""
        assert more
        self.want(more.stage, more.tier, **more.trials)
        for candidate, count in more.trials.items():
            self.earn(candidate, *[earned[candidate.replace("-", "_")]] * count, on=more.tier)
        return more

    def look(self, config: DecideConfig) -> decide.Judgement:
        return decide.judge(self.history, self.newest, config, self.tiers)

    def judge(self, config: DecideConfig) -> decide.Judgement:
        """Judge the newest round and journal it."""
        judgement = self.look(config)
        standing = self.history.entry(judgement.incumbent) if judgement.incumbent else None
        self.run.event(
            "round.judged",
            round=self.newest.index,
            verdicts={id_: str(verdict) for id_, verdict in judgement.verdicts.items()},
            findings={id_: to_json(finding) for id_, finding in judgement.findings.items()},
            noise=judgement.noise and to_json(judgement.noise),
            pool=list(judgement.pool),
            incumbent=standing
            and {"candidate": standing.id, "commit": standing.candidate.commit, "value": standing.value},  # type: ignore[union-attr]
            over_baseline=judgement.over_baseline and to_json(judgement.over_baseline),
        )
        return judgement

    @property
    def history(self) -> History:
        return self.run.history()

    @property
    def newest(self) -> Round:
        return self.history.rounds[-1]

    def further(self, config: DecideConfig) -> decide.Further | None:
        return decide.further(self.history, self.newest, config, self.tiers)

    def beside(self, config: DecideConfig) -> dict[str, int]:
        return decide.beside(self.history, config, self.tiers)


def calls(judgement: decide.Judgement) -> dict[str, str]:
    return {id_: finding.call for id_, finding in judgement.findings.items()}


# screened on one kind, validated on another


@pytest.fixture
def begun(tmp_path: Path) -> Search:
    """A baseline of 1.0 on h100 and of 0.9 on h200, three trials each."""
    search = Search(tmp_path, VALIDATED)
    search.round("baseline")
    for tier, values in (("h200", (0.8995, 0.9, 0.9005)), ("h100", (0.9995, 1.0, 1.0005))):
        search.want("array" if tier == "h100" else "array on h200", tier, r00_c00=2 if tier == "h100" else 3)
        search.earn(BASELINE, *values, on=tier)
    search.judge(SIGNIFICANT)
    return search


def screened(search: Search, *values: float | None) -> list[str]:
    """A round that earned these on h100."""
    ids = search.round(*(f"edit {i}" for i in range(len(values))))
    for id_, value in zip(ids, values, strict=True):
        search.earn(id_, value)
    return ids


def test_the_baseline_is_run_on_both_kinds_and_stands_for_its_value_where_one_is_kept(tmp_path: Path) -> None:
    search = Search(tmp_path, VALIDATED)
    assert search.beside(SIGNIFICANT) == {"h100": 2, "h200": 3}, "its first is in its own array"
    search.round("baseline")
    assert search.beside(SIGNIFICANT) == {"h100": 2, "h200": 3}
    assert search.beside(BEST) == {"h200": 1}
    search.earn(BASELINE, 1.0)
    search.earn(BASELINE, 0.9, on="h200")
    assert search.beside(SIGNIFICANT) == {"h100": 2, "h200": 2}
    assert search.beside(BEST) == {}
    assert search.further(SIGNIFICANT) is None, "there is nothing to validate"
    judgement = search.judge(SIGNIFICANT)
    assert (judgement.incumbent, judgement.findings) == (BASELINE, {})
    assert search.history.incumbent
    assert search.history.incumbent.value == 0.9


def test_trials_of_the_incumbent_that_are_under_way_count_by_their_tier(tmp_path: Path) -> None:
    search = Search(tmp_path, VALIDATED)
    search.round("baseline")
    for _ in range(2):
        search.submit(BASELINE)
    search.submit(BASELINE, on="h200")
    assert search.beside(SIGNIFICANT) == {"h100": 1, "h200": 2}
    lost = search.submit(BASELINE, on="h200")
    search.run.done(lost, None, Status.LOST, tier="h200")
    search.run.event("trial.dropped", trial=lost, reason="the node went away")
    assert search.beside(SIGNIFICANT) == {"h100": 1, "h200": 2}


def test_trials_of_the_incumbent_that_wait_for_a_slot_count_as_well(tmp_path: Path) -> None:
    """They were asked for by an earlier round that is open still: nobody has to ask again."""
    search = Search(tmp_path, VALIDATED)
    search.round("baseline")
    search.want("array on h200", "h200", r00_c00=3)
    search.want("array", "h100", r00_c00=2)
    search.earn(BASELINE, 1.0)
    search.submit(BASELINE, on="h200")
    search.round("a")
    assert search.beside(SIGNIFICANT) == {}


def test_the_best_by_their_screening_are_run_again_on_the_other_kind(begun: Search) -> None:
    screened(begun, 0.999, 1.2, 0.998, None, 0.997)
    assert begun.further(SIGNIFICANT) == decide.Further(
        stage="validation", tier="h200", trials={"r01-c04": 2, "r01-c02": 2, BASELINE: 2}
    )


def test_where_higher_is_better_the_highest_are_validated(tmp_path: Path) -> None:
    search = Search(tmp_path, VALIDATED, Direction.max)
    search.round("baseline")
    for tier in ("h100", "h200"):
        search.earn(BASELINE, 0.5, 0.5, 0.5, on=tier)
    search.judge(SIGNIFICANT)
    screened(search, 0.51, 0.4, 0.53)
    more = search.follow(search.further(SIGNIFICANT), r01_c00=0.5, r01_c02=0.52, r00_c00=0.5)
    assert list(more.trials) == ["r01-c02", "r01-c00", BASELINE]
    judgement = search.judge(SIGNIFICANT)
    assert judgement.incumbent == "r01-c02"
    assert judgement.findings["r01-c02"].gain
    assert judgement.findings["r01-c02"].gain.value == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("config", "before", "controls"),
    [
        (SIGNIFICANT, 3, 2),
        (SIGNIFICANT, 5, 1),
        (SIGNIFICANT, 6, 0),
        (replace(SIGNIFICANT, controls=1), 3, 1),
        (replace(SIGNIFICANT, controls=0), 3, 0),
        (replace(SIGNIFICANT, incumbent_trials=4), 3, 1),
        (BEST, 3, 0),
    ],
)
def test_a_validation_has_controls_until_the_incumbent_has_been_run_often_enough_there(
    begun: Search, config: DecideConfig, before: int, controls: int
) -> None:
    begun.earn(BASELINE, *[0.9] * (before - 3), on="h200")
    screened(begun, 0.999)
    more = begun.further(config)
    assert more
    assert more.trials == {"r01-c00": 2} | ({BASELINE: controls} if controls else {})


def test_controls_that_wait_for_a_slot_are_not_asked_for_again(begun: Search) -> None:
    screened(begun, 0.999)
    begun.want("validation", "h200", r01_c00=2, r00_c00=2)
    screened(begun, 0.999)
    more = begun.further(SIGNIFICANT)
    assert more
    assert more.trials == {"r02-c00": 2, BASELINE: 1}, "of six trials three are there and two are wanted"


def test_where_nothing_has_a_score_nothing_is_validated(begun: Search) -> None:
    screened(begun, None, None)
    assert begun.further(SIGNIFICANT) is None
    judgement = begun.judge(SIGNIFICANT)
    assert judgement.incumbent == BASELINE
    assert calls(judgement) == dict.fromkeys(("r01-c00", "r01-c01"), "no score")
    assert set(judgement.verdicts.values()) == {"crash"}


def test_only_what_was_earned_on_the_validating_kind_decides(begun: Search) -> None:
    """The one that leads by far where it was tried is no better there; the other one is."""
    screened(begun, 0.9, 0.99, 0.995, None)
    begun.follow(begun.further(SIGNIFICANT), r01_c00=0.9, r01_c01=0.895, r00_c00=0.9)
    assert begun.further(SIGNIFICANT) is None, "no looks after a validation"
    judgement = begun.judge(SIGNIFICANT)
    assert judgement.incumbent == "r01-c01"
    assert begun.history.incumbent
    assert begun.history.incumbent.value == pytest.approx(0.895)
    assert judgement.verdicts == {
        "r01-c00": "discard", "r01-c01": "keep", "r01-c02": "discard", "r01-c03": "crash"
    }  # fmt: skip
    won = judgement.findings["r01-c01"]
    assert won.gain
    assert (won.call, won.gain.value) == ("promote", pytest.approx(0.005))
    assert (won.k, won.num_trials, won.num_incumbent_trials) == (2, 2, 5)
    assert judgement.over_baseline
    assert judgement.over_baseline.value == pytest.approx(0.005)
    assert judgement.noise
    assert judgement.noise.kind.startswith("H200")


def test_the_others_are_screened_out_by_what_they_earned_there(begun: Search) -> None:
    screened(begun, 0.9, 0.99, 0.995, None)
    begun.follow(begun.further(SIGNIFICANT), r01_c00=0.9, r01_c01=0.9, r00_c00=0.9)
    judgement = begun.judge(SIGNIFICANT)
    assert calls(judgement) == {
        "r01-c00": "discard", "r01-c01": "discard", "r01-c02": "screened out", "r01-c03": "no score"
    }  # fmt: skip
    out = judgement.findings["r01-c02"]
    assert out.gain
    assert out.gain.value == pytest.approx(0.005), "against 1.0, the incumbent on h100"
    assert (out.k, out.num_trials, out.num_incumbent_trials) == (3, 1, 3)
    assert out.words.startswith("screened out: +0.005000 ± ")


def test_a_validation_spends_all_of_alpha_and_screening_values_are_no_part_of_it(begun: Search) -> None:
    """0.0009 with two seeds against five: enough for 5 % of two, not for the 2 % of alpha that no look leaves."""
    assert decide.most_further(SIGNIFICANT, 4), "a rule with looks"
    screened(begun, 0.5, 0.999)
    begun.follow(begun.further(SIGNIFICANT), r01_c00=0.9 - 0.00105, r01_c01=0.9, r00_c00=0.9)
    judgement = begun.look(SIGNIFICANT)
    p = judgement.findings["r01-c00"].p
    assert p is not None
    assert 0.001 < p < 0.05
    assert judgement.incumbent == "r01-c00"
    strict = begun.look(replace(SIGNIFICANT, alpha=p / 2))
    assert strict.incumbent == BASELINE


def test_what_looked_better_under_validation_may_be_combined(begun: Search) -> None:
    screened(begun, 0.5, 0.51, 0.52)
    begun.follow(begun.further(SIGNIFICANT), r01_c00=0.9, r01_c01=0.9 - 0.0005, r00_c00=0.9)
    judgement = begun.judge(SIGNIFICANT)
    assert judgement.incumbent == BASELINE
    assert calls(judgement) == {"r01-c00": "discard", "r01-c01": "near miss", "r01-c02": "screened out"}
    assert judgement.pool == begun.history.pool == ("r01-c01",)


def test_best_takes_the_best_of_a_validation(begun: Search) -> None:
    screened(begun, 0.9, 0.99, 0.995)
    more = begun.follow(begun.further(BEST), r01_c00=0.8999, r01_c01=0.8998)
    assert more.trials == {"r01-c00": 2, "r01-c01": 2}
    assert begun.further(BEST) is None
    judgement = begun.judge(BEST)
    assert judgement.incumbent == "r01-c01"
    assert calls(judgement) == {"r01-c00": "discard", "r01-c01": "promote", "r01-c02": "screened out"}


def test_the_next_round_is_compared_with_the_winners_validation(begun: Search) -> None:
    screened(begun, 0.9)
    begun.follow(begun.further(SIGNIFICANT), r01_c00=0.89, r00_c00=0.9)
    assert begun.judge(SIGNIFICANT).incumbent == "r01-c00"
    assert begun.beside(SIGNIFICANT) == {"h100": 2, "h200": 1}
    screened(begun, 0.8)
    begun.want("array on h200", "h200", r01_c00=1)
    begun.earn("r01-c00", 0.89, on="h200")
    more = begun.follow(begun.further(SIGNIFICANT), r02_c00=0.89, r01_c00=0.89)
    assert more.trials == {"r02-c00": 2, "r01-c00": 2}
    judgement = begun.judge(SIGNIFICANT)
    assert judgement.incumbent == "r01-c00", "0.89 is the incumbent's too, though it leads by 0.1 on h100"
    found = judgement.findings["r02-c00"]
    assert found.gain
    assert (found.gain.value, found.num_incumbent_trials) == (pytest.approx(0.0), 5)


def test_an_incumbent_that_never_ran_on_the_validating_kind_is_measured_there_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    search = Search(tmp_path, VALIDATED)
    search.round("baseline")
    search.earn(BASELINE, 1.0, 1.0, 1.0)  # of those on h200 the budget had room for none
    search.judge(SIGNIFICANT)
    screened(search, 0.9)
    search.follow(search.further(replace(SIGNIFICANT, controls=0)), r01_c00=0.85)
    more = search.further(SIGNIFICANT)
    assert more == decide.Further(stage="remeasurement on h200", tier="h200", trials={BASELINE: 3})
    assert f"{BASELINE} was never run on H200, tier h200" in caplog.text
    search.follow(more, r00_c00=None)
    assert search.further(SIGNIFICANT) is None, "once"
    judgement = search.look(SIGNIFICANT)
    assert judgement.incumbent == BASELINE
    assert judgement.findings["r01-c00"].words == "never compared: the incumbent was not run on H200, tier h200"
    search.earn(BASELINE, 0.9, on="h200")
    assert search.look(SIGNIFICANT).incumbent == "r01-c00"


def test_an_incumbent_that_never_ran_where_candidates_are_tried_is_measured_there(begun: Search) -> None:
    [id_] = begun.round("a")
    begun.earn(id_, 0.9, gpu=gpu_of("b200"))
    more = begun.further(SIGNIFICANT)
    assert more == decide.Further(stage="remeasurement on h100", tier="h100", trials={BASELINE: 3})
    begun.want(more.stage, more.tier, r00_c00=3)
    for _ in range(3):
        begun.earn(BASELINE, 0.95, on="h100", gpu=gpu_of("b200"))
    validation = begun.further(SIGNIFICANT)
    assert validation
    assert (validation.stage, validation.tier) == ("validation", "h200")


def test_what_the_budget_could_not_validate_is_screened_out(begun: Search) -> None:
    screened(begun, 0.9, 0.91)
    more = begun.further(SIGNIFICANT)
    assert more
    begun.want(more.stage, more.tier, **more.trials)
    begun.run.event("round.shrunk", round=1, tier="h200", candidates=list(more.trials), reason="budget")
    assert begun.newest.complete
    assert list(begun.newest.entries) == ["r01-c00", "r01-c01"]
    assert begun.further(SIGNIFICANT) is None
    judgement = begun.judge(SIGNIFICANT)
    assert judgement.incumbent == BASELINE
    assert calls(judgement) == dict.fromkeys(("r01-c00", "r01-c01"), "screened out")


def test_a_validation_that_failed_wins_nothing(begun: Search) -> None:
    screened(begun, 0.9, 0.91)
    begun.follow(begun.further(SIGNIFICANT), r01_c00=None, r01_c01=0.9, r00_c00=0.9)
    for config in (SIGNIFICANT, BEST):
        judgement = begun.look(config)
        assert judgement.incumbent == BASELINE
        assert calls(judgement) == {"r01-c00": "no score", "r01-c01": "discard"}


# a round over all kinds


@pytest.fixture
def spread(tmp_path: Path) -> Search:
    """A baseline of 1.0 on h100 and of 0.9 on h200, three trials each; then a round is spread over both."""
    search = Search(tmp_path, ANY)
    search.round("baseline")
    for tier, value in (("h200", 0.9), ("h100", 1.0)):
        search.want(f"array on {tier}", tier, r00_c00=3)
        search.earn(BASELINE, value - 0.0005, value, value + 0.0005, on=tier)
    search.judge(SIGNIFICANT)
    return search


def raced(search: Search, on: str, *values: float) -> list[str]:
    """A round whose candidates are this much better than the baseline on their kind."""
    ids = search.round(*(f"edit {i}" for i in range(len(values))), on=on)
    for id_, digit, gain in zip(ids, on, values, strict=True):
        search.earn(id_, (1.0, 0.9)[int(digit)] - gain)
    return ids


def test_a_spread_rounds_baseline_is_run_on_every_kind(tmp_path: Path) -> None:
    search = Search(tmp_path, ANY)
    assert search.beside(SIGNIFICANT) == {"h100": 2, "h200": 3}
    assert search.beside(BEST) == {"h200": 1}


@pytest.mark.parametrize("config", [BEST, SIGNIFICANT], ids=lambda config: config.rule)
def test_each_is_compared_on_the_kind_that_it_ran_on(spread: Search, config: DecideConfig) -> None:
    raced(spread, "0011", 0.01, -0.01, 0.0, -0.02)
    assert spread.further(config) is None, "an uncontested winner is promoted at once"
    judgement = spread.judge(config)
    assert judgement.incumbent == "r01-c00", "though 0.9 is the better number on h200"
    gains = {id_: found.gain.value for id_, found in judgement.findings.items() if found.gain}
    assert gains == {
        "r01-c00": pytest.approx(0.01), "r01-c01": pytest.approx(-0.01),
        "r01-c02": pytest.approx(0.0), "r01-c03": pytest.approx(-0.02),
    }  # fmt: skip
    assert {found.k for found in judgement.findings.values()} == {4}
    assert calls(judgement)["r01-c02"] == "discard"


def test_a_winner_on_the_second_kind_is_kept_too(spread: Search) -> None:
    raced(spread, "0011", 0.0, -0.01, 0.01, -0.02)
    assert spread.further(SIGNIFICANT) is None
    judgement = spread.judge(SIGNIFICANT)
    assert judgement.incumbent == "r01-c02"
    assert judgement.over_baseline, "both ran on h200"
    assert judgement.over_baseline.value == pytest.approx(0.01)


def test_kinds_share_the_chance(spread: Search) -> None:
    """What would pass among its own kind alone does not with that kind's share of the chance."""
    config = replace(SIGNIFICANT, looks=[])
    [alone] = raced(spread, "0", 0.0013)
    p = spread.look(config).findings[alone].p
    assert p is not None
    raced(spread, "0111", 0.0013, -1.0, -1.0, -1.0)
    shared = spread.look(config).findings["r02-c00"].p
    assert shared == pytest.approx(4 * p, rel=0.02), "corrected for its kind, then for its kind's share"
    assert p < 0.05 < shared
    assert spread.look(config).incumbent == BASELINE
    raced(spread, "0", 0.0013)
    assert spread.look(config).incumbent == "r03-c00"


def test_two_that_pass_on_different_kinds_are_brought_onto_one(spread: Search) -> None:
    raced(spread, "0101", 0.0050, 0.0049, 0.0, 0.0)
    more = spread.further(SIGNIFICANT)
    assert more == decide.Further(stage="look 1", tier="h100", trials={"r01-c00": 1, "r01-c01": 1, BASELINE: 2})
    spread.want(more.stage, more.tier, **more.trials)
    spread.earn("r01-c00", 0.9970, on="h100")
    spread.earn("r01-c01", 0.9940, on="h100")
    spread.earn(BASELINE, 1.0, 1.0, on="h100")
    assert spread.further(SIGNIFICANT) is None
    judgement = spread.judge(SIGNIFICANT)
    assert judgement.incumbent == "r01-c01"
    found = judgement.findings["r01-c01"]
    assert found.gain
    assert found.gain.value == pytest.approx(0.006), "on h100, where the look was"
    assert (found.num_trials, found.num_incumbent_trials) == (1, 5)
    assert calls(judgement)["r01-c00"] == "near miss"


def test_a_lead_that_no_other_kind_can_reach_is_not_contested(spread: Search) -> None:
    raced(spread, "01", 0.1000, 0.0050)
    assert spread.further(SIGNIFICANT) is None
    judgement = spread.judge(SIGNIFICANT)
    assert judgement.incumbent == "r01-c00"
    assert judgement.pool == ("r01-c01",)


def test_two_of_the_same_kind_need_no_look(spread: Search) -> None:
    raced(spread, "0011", 0.0050, 0.0049, 0.0, 0.0)
    assert spread.further(SIGNIFICANT) is None
    assert spread.judge(SIGNIFICANT).incumbent == "r01-c00"


def test_a_look_goes_where_most_of_its_candidates_have_run_and_the_next_one_too(spread: Search) -> None:
    """Nobody passes, three are promising: one comes from h100, and stays on h200 when it alone is left."""
    raced(spread, "0110", 0.0012, 0.0012, 0.0011, 0.0)
    first = spread.further(SIGNIFICANT)
    assert first
    assert (first.stage, first.tier) == ("look 1", "h200")
    assert first.trials == {"r01-c00": 1, "r01-c01": 1, "r01-c02": 1, BASELINE: 2}
    spread.follow(first, r01_c00=0.9 - 0.0012, r01_c01=0.9, r01_c02=0.9, r00_c00=0.9)
    second = spread.further(SIGNIFICANT)
    assert second
    assert (second.stage, second.tier) == ("look 2", "h200")
    assert second.trials == {"r01-c00": 3, BASELINE: 1}
    spread.follow(second, r01_c00=0.9 - 0.0012, r00_c00=0.9)
    judgement = spread.judge(SIGNIFICANT)
    assert judgement.incumbent == "r01-c00"
    found = judgement.findings["r01-c00"]
    assert (found.num_trials, found.num_incumbent_trials) == (4, 6), "all of its trials on h200, none from h100"


def test_best_lets_the_winners_of_two_kinds_meet_on_one(spread: Search) -> None:
    raced(spread, "0101", 0.010, 0.020, 0.005, -0.1)
    more = spread.further(BEST)
    assert more == decide.Further(stage="look 1", tier="h100", trials={"r01-c01": 1})
    spread.follow(more, r01_c01=0.995)
    assert spread.further(BEST) is None
    judgement = spread.judge(BEST)
    assert judgement.incumbent == "r01-c00", "by 0.010 against 0.005 on h100, whatever it was on h200"
    assert calls(judgement)["r01-c01"] == "discard"


def test_best_of_three_kinds_is_told_where_the_winners_met(tmp_path: Path) -> None:
    """Two of them have a winner; the first one has none, and no say in it."""
    search = Search(tmp_path, THREE)
    search.round("baseline")
    for tier in "abc":
        search.earn(BASELINE, 1.0, on=tier)
    search.judge(BEST)
    for id_, value in zip(search.round("x", "y", "z", on="012"), (1.1, 0.9, 0.8), strict=True):
        search.earn(id_, value)
    more = search.further(BEST)
    assert more == decide.Further(stage="look 1", tier="b", trials={"r01-c02": 1})
    search.follow(more, r01_c02=0.95)
    assert search.judge(BEST).incumbent == "r01-c01"


def test_what_failed_is_told_once_and_never_kept(spread: Search) -> None:
    ids = spread.round("a", "b", "c", on="010")
    for id_, value in zip(ids, (None, None, 0.9), strict=True):
        spread.earn(id_, value)
    judgement = spread.judge(SIGNIFICANT)
    assert judgement.incumbent == "r01-c02"
    assert calls(judgement) == {"r01-c00": "no score", "r01-c01": "no score", "r01-c02": "promote"}
    assert judgement.findings["r01-c02"].k == 1


def test_an_incumbent_that_never_ran_on_one_kind_is_measured_there(spread: Search) -> None:
    raced(spread, "0", 0.01)
    assert spread.judge(SIGNIFICANT).incumbent == "r01-c00"
    assert spread.beside(SIGNIFICANT) == {"h100": 2, "h200": 3}
    raced(spread, "01", 0.02, 0.02)
    more = spread.further(SIGNIFICANT)
    assert more == decide.Further(stage="remeasurement on h200", tier="h200", trials={"r01-c00": 3})


def test_noise_is_told_from_the_replicates_of_all_kinds(spread: Search) -> None:
    """Means differ by kind, the spread does not: three trials on each are four degrees of freedom, not five."""
    config = DecideConfig(looks=[LookConfig()])
    raced(spread, "01", 0.0, 0.0)
    noise = spread.look(config).noise
    assert noise
    assert noise.measured_df == 4
    assert noise.sd == pytest.approx(0.0005, rel=0.01), "not the 0.05 between the kinds"
    raced(spread, "0", 0.0)
    assert spread.look(config).noise == noise, "also where a round had one kind only"
