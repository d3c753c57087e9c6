"""Verdicts from a run's history: which values count, what a round still needs, who is kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_run import FakeRun

from autoresearch_hpc import decide
from autoresearch_hpc.config import DecideConfig, LookConfig
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.gains import Gain
from autoresearch_hpc.history import Round
from autoresearch_hpc.records import Direction, Gpu, Status, to_json
from autoresearch_hpc.tiers import Tiers

BASELINE = "r00-c00"
ONE = Tiers(slots={"": None}, prices={"": 0.0}, screens=("",))
BEST = DecideConfig(rule="best")
SIGNIFICANT = DecideConfig(noise_sd=0.0005, noise_df=50)  # a known noise: figures can be followed by hand


class Search:
    """A run whose trials earn what they are told to, in any number."""

    def __init__(self, root: Path, direction: Direction = Direction.min) -> None:
        self.run = FakeRun(root / "tag", direction=direction)

    def round(self, *titles: str) -> None:
        self.run.propose(list(titles), submit=False)

    def earn(self, candidate: str, *values: float | None, **more: Any) -> None:
        """Further trials of the candidate, in the newest round."""
        for value in values:
            index = len(self.history.entry(candidate).trials)
            trial, round_ = f"{candidate}-t{index}", self.newest.index
            self.run.event("submit.intent", round=round_, job_name=f"ar-{round_}-{index}", trials=[trial])
            self.run.event("trial.done", trial=trial, result=to_json(self.run.result(trial, value, **more)))

    def want(self, stage: str, **trials: int) -> None:
        self.run.event("trials.wanted", round=self.newest.index, stage=stage, trials=trials)

    def judge(self, config: DecideConfig) -> decide.Judgement:
        """Judge the newest round and journal it."""
        judgement = decide.judge(self.history, self.newest, config, ONE)
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
    def history(self) -> Any:
        return self.run.history()

    @property
    def newest(self) -> Round:
        rounds: list[Round] = self.history.rounds
        return rounds[-1]

    def further(self, config: DecideConfig) -> decide.Further | None:
        return decide.further(self.history, self.newest, config, ONE)


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return Search(tmp_path)


@pytest.fixture
def begun(search: Search) -> Search:
    """With a baseline of 1.0."""
    search.round("baseline")
    search.earn(BASELINE, 0.9995, 1.0, 1.0005)
    search.judge(SIGNIFICANT)
    return search


def verdicts(judgement: decide.Judgement) -> dict[str, str]:
    return {id_: str(verdict) for id_, verdict in judgement.verdicts.items()}


def test_an_unknown_rule_is_told_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"decide.rule=worst is unknown; the rules are best, significant"):
        decide.require_known(DecideConfig(rule="worst"))
    decide.require_known(BEST)
    decide.require_known(DecideConfig())


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"replicates": 0},
        {"min_delta": -1.0},
        {"noise_sd": 0.0},
        {"looks": [LookConfig(share=0.5), LookConfig(share=0.5)]},
    ],
    ids=str,
)
def test_impossible_rules(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="decide"):
        DecideConfig(**wrong)


# the rule that takes numbers at their face value


def test_best_keeps_the_best_number_and_asks_for_nothing_more(search: Search) -> None:
    search.round("baseline", "a", "b", "c")
    for candidate, value in ((BASELINE, 1.0), ("r00-c01", 0.99), ("r00-c02", 0.98), ("r00-c03", None)):
        search.earn(candidate, value)
    assert decide.beside(search.history, BEST, ONE) == {}
    assert search.further(BEST) is None
    judgement = search.judge(BEST)
    assert judgement.incumbent == "r00-c02"
    assert verdicts(judgement) == {BASELINE: "keep", "r00-c01": "discard", "r00-c02": "keep", "r00-c03": "crash"}
    assert {id_: finding.words for id_, finding in judgement.findings.items()} == {
        "r00-c01": "discard: +0.010000, noise unknown, K=2",
        "r00-c02": "promote: +0.020000, noise unknown, K=2",
        "r00-c03": "no score",
    }
    assert judgement.over_baseline == Gain(value=pytest.approx(0.02))


def test_best_tells_what_its_numbers_are_worth_where_the_noise_is_known(search: Search) -> None:
    config = replace(BEST, noise_sd=0.01, noise_df=30.0)
    search.round("baseline", "a", "b")
    for candidate, value in ((BASELINE, 1.0), ("r00-c01", 0.999), ("r00-c02", 1.02)):
        search.earn(candidate, value)
    judgement = search.judge(config)
    found = judgement.findings["r00-c01"]
    assert judgement.incumbent == "r00-c01", "the best number, luck or not"
    assert found.p is not None
    assert found.p > 0.5
    assert found.gain
    assert found.gain.margin == pytest.approx(2.04 * 0.01 * 2**0.5, rel=0.01)
    assert found.gain.expected == pytest.approx(0.0002, abs=0.0003)
    assert judgement.noise
    assert judgement.noise.sd == pytest.approx(0.01)


def test_best_of_the_other_direction(tmp_path: Path) -> None:
    search = Search(tmp_path, Direction.max)
    search.round("baseline", "a", "b")
    for candidate, value in ((BASELINE, 0.5), ("r00-c01", 0.4), ("r00-c02", 0.6)):
        search.earn(candidate, value)
    assert search.judge(BEST).incumbent == "r00-c02"


def test_a_baseline_that_failed_leaves_no_incumbent(search: Search) -> None:
    search.round("baseline", "a")
    search.earn(BASELINE, None)
    search.earn("r00-c01", 0.9)
    judgement = search.judge(BEST)
    assert judgement.incumbent is None
    assert verdicts(judgement) == {BASELINE: "crash", "r00-c01": "discard"}


# the rule that tells gains from luck


def test_the_baseline_is_run_several_times_and_stands_for_their_mean(search: Search) -> None:
    search.round("baseline")
    assert decide.beside(search.history, SIGNIFICANT, ONE) == {"": 2}
    search.earn(BASELINE, 1.0, 0.9, 1.1)
    assert search.further(SIGNIFICANT) is None
    judgement = search.judge(SIGNIFICANT)
    assert judgement.incumbent == BASELINE
    assert search.history.incumbent.value == 1.0


def test_a_clear_gain_is_kept_at_once(begun: Search) -> None:
    begun.round("a", "b")
    assert decide.beside(begun.history, SIGNIFICANT, ONE) == {}
    begun.earn("r01-c00", 0.99)
    begun.earn("r01-c01", 1.0)
    assert begun.further(SIGNIFICANT) is None
    judgement = begun.judge(SIGNIFICANT)
    assert judgement.incumbent == "r01-c00"
    found = judgement.findings["r01-c00"]
    assert found.words.startswith("promote: +0.010000 ± ")
    assert "of K=2, expected +0.0" in found.words
    assert (found.k, found.num_trials, found.num_incumbent_trials) == (2, 1, 3)
    assert found.gain
    assert found.gain.expected
    assert 0.009 < found.gain.expected < 0.010, "picked out for being large: it shrinks"
    assert judgement.findings["r01-c01"].words.startswith("discard: +0.000000 ± ")
    assert judgement.noise
    assert judgement.noise.words.startswith("noise sd=0.0005")
    assert begun.history.noise == judgement.noise
    assert begun.history.entry("r01-c00").finding == found
    assert begun.history.outcomes()[1].finding == found


def test_luck_is_not_kept(begun: Search) -> None:
    """A standard deviation ahead of the baseline: the best number of the round, and nothing more."""
    begun.round("a", "b")
    begun.earn("r01-c00", 0.9990)
    begun.earn("r01-c01", 1.0010)
    first = begun.further(SIGNIFICANT)
    assert first
    assert (first.stage, first.trials) == ("look 1", {"r01-c00": 1, BASELINE: 2})
    begun.want("look 1", **first.trials)  # type: ignore[arg-type]
    begun.earn("r01-c00", 1.0003)
    begun.earn(BASELINE, 1.0, 1.0)
    assert begun.further(SIGNIFICANT) is None
    judgement = begun.judge(SIGNIFICANT)
    assert judgement.incumbent == BASELINE
    assert verdicts(judgement) == {"r01-c00": "discard", "r01-c01": "discard"}
    assert begun.history.entry("r01-c00").value == pytest.approx(0.99965), "the mean of its trials, not the lucky one"


def test_a_small_gain_is_kept_after_fresh_seeds_have_confirmed_it(begun: Search) -> None:
    begun.round("a", "b")
    begun.earn("r01-c00", 0.9990)
    begun.earn("r01-c01", 1.0010)
    seen = []
    while more := begun.further(SIGNIFICANT):
        seen.append(more.stage)
        begun.want(more.stage, **more.trials)  # type: ignore[arg-type]
        for candidate, count in more.trials.items():
            begun.earn(candidate, *[{BASELINE: 1.0}.get(candidate, 0.9990)] * count)
    assert seen == ["look 1", "look 2"]
    assert begun.judge(SIGNIFICANT).incumbent == "r01-c00"


def confirm(search: Search, config: DecideConfig, **again: float) -> None:
    """Whatever the rule asks to be run again earns this; what is not named, the baseline's value."""
    while more := search.further(config):
        search.want(more.stage, **more.trials)  # type: ignore[arg-type]
        for candidate, count in more.trials.items():
            search.earn(candidate, *[again.get(candidate.replace("-", "_"), 1.0)] * count)


def test_near_misses_are_kept_in_a_pool(begun: Search) -> None:
    """Both look better under fresh seeds too, but not by so much that it could not be luck."""
    begun.round("a", "b", "c")
    begun.earn("r01-c00", 0.9990)
    begun.earn("r01-c01", 0.9992)
    begun.earn("r01-c02", 1.0010)
    confirm(begun, SIGNIFICANT, r01_c00=0.9998, r01_c01=0.9997)
    judgement = begun.judge(SIGNIFICANT)
    assert judgement.incumbent == BASELINE
    assert {id_: f.call for id_, f in judgement.findings.items()} == {
        "r01-c00": "near miss", "r01-c01": "near miss", "r01-c02": "discard"
    }  # fmt: skip
    assert set(judgement.pool) == {"r01-c00", "r01-c01"}
    gains = [f.gain.value for id_ in judgement.pool if (f := judgement.findings[id_]).gain]
    assert gains == sorted(gains, reverse=True)
    assert begun.history.pool == judgement.pool


def test_what_was_gained_on_the_baseline_adds_up_and_is_shrunk_step_by_step(begun: Search) -> None:
    begun.round("a")
    begun.earn("r01-c00", 0.9930)
    assert begun.judge(SIGNIFICANT).incumbent == "r01-c00"
    begun.round("b")
    assert decide.beside(begun.history, SIGNIFICANT, ONE) == {"": 2}
    begun.want("array", **{"r01-c00": 2})
    begun.earn("r01-c00", 0.9960, 0.9960)  # its first trial was a lucky one
    begun.earn("r02-c00", 0.9880)
    judgement = begun.judge(SIGNIFICANT)
    assert judgement.incumbent == "r02-c00"
    gain = judgement.over_baseline
    assert gain
    assert gain.value == pytest.approx(1.0 - 0.9880), "of the means, whatever became of the incumbents between"
    assert gain.margin == pytest.approx(2.01 * 0.0005 * (1 + 1 / 3) ** 0.5, rel=0.1)
    assert gain.expected
    assert gain.expected_margin
    assert 0.0100 < gain.expected < gain.value
    assert gain.expected_margin > gain.margin, "two steps' errors"
    assert begun.history.over_baseline == gain


def test_the_baseline_has_gained_nothing_on_itself(begun: Search) -> None:
    begun.round("a")
    begun.earn("r01-c00", 1.0010)
    judgement = begun.judge(SIGNIFICANT)
    assert (judgement.incumbent, judgement.over_baseline) == (BASELINE, None)


def test_over_the_memory_cap_is_told(begun: Search) -> None:
    begun.round("a")
    begun.earn("r01-c00", 0.9, peak_vram_mb=90 * 1024)
    judgement = begun.judge(replace(SIGNIFICANT, max_vram_gb=80.0))
    assert judgement.incumbent == BASELINE
    assert judgement.findings["r01-c00"].words == "over the memory cap"


@pytest.mark.parametrize("k", [1, 2, 4, 16])
@pytest.mark.parametrize("simplify", [False, True])
def test_looks_never_ask_for_more_than_the_plan_says(begun: Search, k: int, simplify: bool) -> None:
    config = replace(SIGNIFICANT, simplify=simplify)
    begun.round(*(str(i) for i in range(k)))
    for i in range(k):
        begun.earn(f"r01-c{i:02d}", 0.9990)
    asked = []
    while more := begun.further(config):
        asked.append(sum(more.trials.values()))
        begun.want(more.stage, **more.trials)  # type: ignore[arg-type]
        for candidate, count in more.trials.items():
            begun.earn(candidate, *[1.0 if candidate == BASELINE else 0.9995] * count)
    most = decide.most_further(config, k)
    assert len(asked) == len(most) == 2
    assert all(a <= b for a, b in zip(asked, most, strict=True))
    assert simplify or asked == most, "these candidates ask for all there is"
    assert decide.most_further(BEST, k) == []


def test_fresh_trials_that_the_budget_had_no_room_for_confirm_nothing(begun: Search) -> None:
    begun.round("a")
    begun.earn("r01-c00", 0.9985)
    more = begun.further(SIGNIFICANT)
    assert more
    begun.want(more.stage, **more.trials)  # type: ignore[arg-type]
    begun.run.event("round.shrunk", round=1, candidates=list(more.trials), reason="budget")
    assert begun.newest.complete
    assert begun.further(SIGNIFICANT) is None
    assert begun.judge(SIGNIFICANT).incumbent == BASELINE


def test_a_failed_candidate_is_never_kept(begun: Search) -> None:
    begun.round("a")
    begun.earn("r01-c00", None, status=Status.OOM)
    assert begun.further(SIGNIFICANT) is None
    assert verdicts(begun.judge(SIGNIFICANT)) == {"r01-c00": "crash"}


def test_without_any_replicates_or_known_noise_nothing_is_kept(search: Search) -> None:
    config = DecideConfig(replicates=1, looks=[])
    search.round("baseline", "a")
    search.earn(BASELINE, 1.0)
    search.earn("r00-c01", 0.5)
    judgement = search.judge(config)
    assert judgement.incumbent == BASELINE
    found = judgement.findings["r00-c01"]
    assert found.words == "discard: +0.500000, noise unknown, K=1"
    assert (found.p, found.gain) == (None, Gain(value=0.5)), "no number stands for what is not known"
    assert judgement.noise is None


# kinds


H200 = {"gpu": Gpu(name="H200", count=1)}


def test_results_of_another_gpu_are_not_compared(begun: Search) -> None:
    begun.round("a", "b", "c")
    begun.earn("r01-c00", 1.0)
    begun.earn("r01-c01", 1.0)
    begun.earn("r01-c02", 0.9, **H200)
    for config in (BEST, SIGNIFICANT):
        judgement = decide.judge(begun.history, begun.newest, config, ONE)
        assert judgement.incumbent == BASELINE
        found = judgement.findings["r01-c02"]
        assert found.words == "ran on H200, tier h100, the round's others on H100, tier h100"
        assert (found.call, found.gain) == ("not compared", None)


@pytest.mark.parametrize("config", [BEST, SIGNIFICANT], ids=lambda config: config.rule)
def test_a_changed_gpu_takes_a_new_baseline_and_says_so(
    begun: Search, config: DecideConfig, caplog: pytest.LogCaptureFixture
) -> None:
    begun.round("a", "b")
    begun.earn("r01-c00", 0.90, **H200)
    begun.earn("r01-c01", 0.97, **H200)
    more = begun.further(config)
    assert more
    assert (more.stage, more.trials) == ("remeasurement", {BASELINE: 1 if config is BEST else 3})
    assert f"{BASELINE} was never run on H200, tier h100: a new baseline is taken" in caplog.text
    begun.want(more.stage, **more.trials)  # type: ignore[arg-type]
    begun.earn(BASELINE, *[0.95] * more.trials[BASELINE], **H200)
    assert begun.further(config) is None
    judgement = begun.judge(config)
    assert judgement.incumbent == "r01-c00", "0.90 against 0.95, not against the other kind's 1.0"
    assert judgement.over_baseline
    assert judgement.over_baseline.value == pytest.approx(0.05)


def test_a_gain_on_a_baseline_of_another_kind_is_not_told(begun: Search) -> None:
    begun.round("a")
    begun.earn("r01-c00", 0.90)
    assert begun.judge(SIGNIFICANT).incumbent == "r01-c00"
    begun.round("b")
    begun.earn("r02-c00", 0.80, **H200)
    begun.want("remeasurement", **{"r01-c00": 3})
    begun.earn("r01-c00", 0.85, 0.85, 0.85, **H200)
    judgement = begun.judge(SIGNIFICANT)
    assert judgement.incumbent == "r02-c00"
    assert judgement.over_baseline is None, "the baseline never ran on an H200"


def test_a_new_baseline_that_failed_ends_the_round_without_a_comparison(begun: Search) -> None:
    begun.round("a")
    begun.earn("r01-c00", 0.5, **H200)
    begun.want("remeasurement", **{BASELINE: 3})
    begun.earn(BASELINE, None, None, None, **H200)
    assert begun.further(SIGNIFICANT) is None
    judgement = begun.judge(SIGNIFICANT)
    assert judgement.incumbent == BASELINE
    assert judgement.findings["r01-c00"].words == "never compared: the incumbent was not run on H200, tier h100"
    assert judgement.findings["r01-c00"].call == "not compared"


def test_data_and_harness_are_part_of_the_kind(begun: Search) -> None:
    begun.round("a")
    begun.earn("r01-c00", 0.5, data_sha256="d" * 64)
    assert begun.further(SIGNIFICANT) is not None
    history = begun.history
    results = [t.result for t in history.trials()]
    assert results[-1] == replace(results[-1], data_sha256="d" * 64)
