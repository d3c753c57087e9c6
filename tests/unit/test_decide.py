"""Verdicts from a run's history: which values count, what a round still needs, who is kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_run import FakeRun

from autoresearch_hpc import decide
from autoresearch_hpc.config import DecideConfig, LookConfig
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.history import Round
from autoresearch_hpc.records import Direction, Gpu, Status, to_json

BASELINE = "r00-c00"
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
        judgement = decide.judge(self.history, self.newest, config)
        standing = self.history.entry(judgement.incumbent) if judgement.incumbent else None
        self.run.event(
            "round.judged",
            round=self.newest.index,
            verdicts={id_: str(verdict) for id_, verdict in judgement.verdicts.items()},
            findings=dict(judgement.findings),
            noise=judgement.noise,
            incumbent=standing
            and {"candidate": standing.id, "commit": standing.candidate.commit, "value": standing.value},  # type: ignore[union-attr]
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
        return decide.further(self.history, self.newest, config)


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
    assert decide.beside(search.history, search.newest, BEST) == {}
    assert search.further(BEST) is None
    judgement = search.judge(BEST)
    assert judgement.incumbent == "r00-c02"
    assert verdicts(judgement) == {BASELINE: "keep", "r00-c01": "discard", "r00-c02": "keep", "r00-c03": "crash"}


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
    assert decide.beside(search.history, search.newest, SIGNIFICANT) == {BASELINE: 2}
    search.earn(BASELINE, 1.0, 0.9, 1.1)
    assert search.further(SIGNIFICANT) is None
    judgement = search.judge(SIGNIFICANT)
    assert judgement.incumbent == BASELINE
    assert search.history.incumbent.value == 1.0


def test_a_clear_gain_is_kept_at_once(begun: Search) -> None:
    begun.round("a", "b")
    assert decide.beside(begun.history, begun.newest, SIGNIFICANT) == {}
    begun.earn("r01-c00", 0.99)
    begun.earn("r01-c01", 1.0)
    assert begun.further(SIGNIFICANT) is None
    judgement = begun.judge(SIGNIFICANT)
    assert judgement.incumbent == "r01-c00"
    assert judgement.findings["r01-c00"].startswith("promote: +0.010000 ± ")
    assert "of K=2" in judgement.findings["r01-c00"]
    assert "expected +" in judgement.findings["r01-c00"]
    assert judgement.findings["r01-c01"].startswith("discard: +0.000000 ± ")
    assert judgement.noise.startswith("noise sd=0.0005")
    assert begun.history.entry("r01-c00").finding == judgement.findings["r01-c00"]
    assert begun.history.outcomes()[1].finding == judgement.findings["r01-c00"]


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
    assert "noise unknown" in judgement.findings["r00-c01"]
    assert "noise unknown" in judgement.noise


# kinds


H200 = {"gpu": Gpu(name="H200", count=1)}


def test_results_of_another_gpu_are_not_compared(begun: Search) -> None:
    begun.round("a", "b", "c")
    begun.earn("r01-c00", 1.0)
    begun.earn("r01-c01", 1.0)
    begun.earn("r01-c02", 0.9, **H200)
    for config in (BEST, SIGNIFICANT):
        judgement = decide.judge(begun.history, begun.newest, config)
        assert judgement.incumbent == BASELINE
        assert judgement.findings["r01-c02"] == "ran on H200, tier h100, where the incumbent did not"


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
    assert begun.judge(config).incumbent == "r01-c00", "0.90 against 0.95, not against the other kind's 1.0"


def test_a_new_baseline_that_failed_ends_the_round_without_a_comparison(begun: Search) -> None:
    begun.round("a")
    begun.earn("r01-c00", 0.5, **H200)
    begun.want("remeasurement", **{BASELINE: 3})
    begun.earn(BASELINE, None, None, None, **H200)
    assert begun.further(SIGNIFICANT) is None
    judgement = begun.judge(SIGNIFICANT)
    assert judgement.incumbent == BASELINE
    assert judgement.findings["r01-c00"] == "never compared: the incumbent was not run on H200, tier h100"


def test_data_and_harness_are_part_of_the_kind(begun: Search) -> None:
    begun.round("a")
    begun.earn("r01-c00", 0.5, data_sha256="d" * 64)
    assert begun.further(SIGNIFICANT) is not None
    history = begun.history
    results = [t.result for t in history.trials()]
    assert results[-1] == replace(results[-1], data_sha256="d" * 64)
