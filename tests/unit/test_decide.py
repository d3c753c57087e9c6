import pytest

from autoresearch_hpc import decide
from autoresearch_hpc.config import DecideConfig
from autoresearch_hpc.decide import Entry, Judgement, Standing
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.records import Direction, Status, Verdict

KEEP, DISCARD, CRASH = Verdict.KEEP, Verdict.DISCARD, Verdict.CRASH


def entry(index: int, value: float | None, diff_lines: int = 2, **more: object) -> Entry:
    status = Status.CRASHED if value is None else Status.OK
    fields = {"status": status, "value": value, "diff_lines": diff_lines, **more}
    return Entry(candidate=f"r01-c{index:02d}", **fields)


def judge(*entries: Entry, against: float | None = 1.0, direction: str = "min", min_delta: float = 0.0) -> Judgement:
    incumbent = None if against is None else Standing(candidate="r00-c00", value=against)
    return decide.judge(Direction(direction), incumbent, entries, DecideConfig(min_delta=min_delta))


def words(judgement: Judgement) -> list[Verdict]:
    return list(judgement.verdicts.values())


def test_the_best_that_beats_the_incumbent_is_kept() -> None:
    judgement = judge(entry(0, 0.99), entry(1, 0.98), entry(2, 1.01), entry(3, None))
    assert words(judgement) == [DISCARD, KEEP, DISCARD, CRASH]
    assert judgement.standing == Standing(candidate="r01-c01", value=0.98)
    assert judgement.winner == "r01-c01"


def test_maximizing() -> None:
    judgement = judge(entry(0, 1.5), entry(1, 1.7), entry(2, 0.1), direction="max")
    assert (words(judgement), judgement.winner) == ([DISCARD, KEEP, DISCARD], "r01-c01")


def test_nothing_better_leaves_the_incumbent() -> None:
    judgement = judge(entry(0, 1.0), entry(1, 1.2))
    assert words(judgement) == [DISCARD, DISCARD]
    assert judgement.standing == Standing(candidate="r00-c00", value=1.0)
    assert judgement.winner is None


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.OK])
def test_a_failure_is_never_kept(status: Status) -> None:
    judgement = judge(entry(0, None, status=status))
    assert (words(judgement), judgement.winner) == ([CRASH], None)


def test_a_whole_round_of_failures_or_none() -> None:
    assert words(judge(entry(0, None), entry(1, None))) == [CRASH, CRASH]
    assert judge().standing == Standing(candidate="r00-c00", value=1.0)


@pytest.mark.parametrize(("value", "kept"), [(0.9995, False), (0.99901, False), (0.999, True), (0.99, True)])
def test_min_delta_as_people_count_it(value: float, kept: bool) -> None:
    assert words(judge(entry(0, value), min_delta=0.001)) == [KEEP if kept else DISCARD]
    assert words(judge(entry(0, 2 - value), min_delta=0.001, direction="max")) == [KEEP if kept else DISCARD]


def test_min_delta_survives_binary_floats() -> None:
    assert 1.010748 - 1.010648 < 0.0001  # what a plain comparison would say
    assert words(judge(entry(0, 1.010648), against=1.010748, min_delta=0.0001)) == [KEEP]


def test_zero_min_delta_still_asks_for_better() -> None:
    assert words(judge(entry(0, 1.0))) == [DISCARD]
    assert words(judge(entry(0, 1.0 - 1e-15))) == [KEEP]


def test_ties_go_to_the_smaller_diff_then_the_lower_id() -> None:
    assert judge(entry(0, 0.9, 8), entry(1, 0.9, 2), entry(2, 0.9, 4)).winner == "r01-c01"
    assert judge(entry(2, 0.9), entry(1, 0.9), entry(3, 0.9)).winner == "r01-c01"
    assert judge(entry(100, 0.9), entry(99, 0.9)).winner == "r01-c99"


def test_a_metric_of_zero_or_below_is_a_value_like_others() -> None:
    assert judge(entry(0, 0.0), entry(1, -2.0), entry(2, 0.5)).winner == "r01-c01"
    assert judge(entry(0, -1.0), entry(1, 0.0), against=-2.0, direction="max").winner == "r01-c01"


def test_the_baseline_becomes_the_incumbent() -> None:
    judgement = judge(entry(0, 1.0, 0, baseline=True), against=None)
    assert words(judgement) == [KEEP]
    assert judgement.standing == Standing(candidate="r01-c00", value=1.0)
    assert judgement.winner == "r01-c00"


def test_joined_candidates_are_judged_against_the_baseline() -> None:
    better = judge(entry(0, 1.0, baseline=True), entry(1, 1.1), entry(2, 0.9), entry(3, None), against=None)
    assert words(better) == [KEEP, DISCARD, KEEP, CRASH]
    assert better.winner == "r01-c02"
    none = judge(entry(0, 1.0, 5, baseline=True), entry(1, 1.0, 0), against=None)
    assert (words(none), none.winner) == ([KEEP, DISCARD], "r01-c00")


def test_a_failed_baseline_leaves_no_standing() -> None:
    judgement = judge(entry(0, None, baseline=True), entry(1, 0.9), against=None)
    assert judgement == Judgement(
        verdicts={"r01-c00": CRASH, "r01-c01": DISCARD},
        standing=None,
        winner=None,
    )


def test_a_first_round_needs_a_baseline() -> None:
    with pytest.raises(ValueError, match="without a baseline"):
        judge(entry(0, 1.0), against=None)


@pytest.mark.parametrize(
    ("status", "value"), [(Status.OK, None), (Status.OK, float("nan")), (Status.OK, float("inf")), (Status.OOM, 1.0)]
)
def test_status_and_value_must_agree(status: Status, value: float | None) -> None:
    with pytest.raises(ValueError, match="with value"):
        Entry(candidate="r01-c00", status=status, value=value)


def test_rules_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(direction: object, incumbent: Standing | None, entries: object, config: object) -> Judgement:
        return Judgement(verdicts={}, standing=incumbent, winner=None)

    monkeypatch.setitem(decide.RULES, "never", never)
    incumbent = Standing(candidate="r00-c00", value=1.0)
    assert decide.judge(Direction.min, incumbent, [entry(0, 0.1)], DecideConfig(rule="never")).winner is None
    assert decide.judge(Direction.min, incumbent, [entry(0, 0.1)], DecideConfig(rule="best")).winner == "r01-c00"


def test_an_unknown_rule_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"decide.rule=bset is unknown; the rules are best"):
        decide.find("bset")
