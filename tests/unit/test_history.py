"""What the journal's events mean: replayed and applied one by one, they lead to the same state."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from fake_run import NOISE, OVER_BASELINE, FakeRun, commit_of, cookbook, gpu_of, on_two_tiers, told_from_luck

from autoresearch_hpc.errors import JournalError
from autoresearch_hpc.gains import Comparison, Gain
from autoresearch_hpc.history import History, Want
from autoresearch_hpc.journal import Event, read
from autoresearch_hpc.records import Direction, Proposal, Status, Verdict


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path / "a tag")


@pytest.mark.parametrize(
    ("fake", "end"),
    [(cookbook, "the plan is complete"), (told_from_luck, "the plan is complete"), (on_two_tiers, None)],
)
def test_replay_equals_applying_one_by_one_at_every_point(
    tmp_path: Path, fake: Callable[[Path], FakeRun], end: str | None
) -> None:
    events = read(fake(tmp_path / "tag").layout.journal)
    growing = History()
    for number, event in enumerate(events, start=1):
        growing.apply(event)
        assert asdict(growing) == asdict(History.replay(events[:number]))
    assert growing.stopped == end


def test_a_run_that_has_started(tmp_path: Path) -> None:
    history = FakeRun(tmp_path / "tag", metric="score", direction=Direction.max).history()
    assert (history.tag, history.uid, history.metric, history.direction) == ("tag", "abc123", "score", Direction.max)
    assert history.start_commit == "f" * 40
    assert history.started_at == history.last_at == "2026-01-31T12:00:00.000000+00:00"
    assert (history.rounds, history.incumbent, history.stopped, history.interrupted) == ([], None, None, None)
    assert history.outcomes() == ()


def test_nothing_has_happened_in_an_empty_journal() -> None:
    assert asdict(History.replay([])) == asdict(History())
    assert History().started_at is None


def test_a_round_step_by_step(run: FakeRun) -> None:
    run.propose(["a", "b"], submit=False)
    round_ = run.history().rounds[0]
    assert (round_.index, list(round_.entries), round_.committed) == (0, ["r00-c00", "r00-c01"], True)
    assert round_.entries["r00-c01"].proposal == Proposal(title="b", knobs={"MATRIX_LR": 0.04}, origin="plan")
    assert round_.entries["r00-c01"].trial is None
    assert round_.num_arrays == 0
    run.event("submit.intent", round=0, job_name="ar-0", trials=["r00-c00-t0", "r00-c01-t0"])
    trial = run.history().trial("r00-c01-t0")
    assert (trial.job_name, trial.job, trial.result) == ("ar-0", None, None)
    run.event("submit.done", round=0, job_name="ar-0", jobs={"r00-c01-t0": "7_1"})
    history = run.history()
    assert (history.trial("r00-c00-t0").job, history.trial("r00-c01-t0").job) == (None, "7_1")
    assert history.rounds[0].num_arrays == 1
    run.done("r00-c00-t0", 1.0)
    run.done("r00-c01-t0", None, Status.OOM)
    history = run.history()
    assert (history.entry("r00-c00").value, history.entry("r00-c01").value) == (1.0, None)
    assert history.outcomes() == (), "agents hear of a round once it is judged"
    run.judge({"r00-c00": "keep", "r00-c01": "crash"}, {"r00-c00": 1.0})
    history = run.history()
    assert history.incumbent
    assert (history.incumbent.candidate, history.incumbent.commit) == ("r00-c00", commit_of("r00-c00"))
    assert history.rounds[0].judged
    assert history.rounds[0].closed_at
    kept, failed = history.outcomes()
    assert (kept.status, kept.value, kept.verdict, kept.error) == (Status.OK, 1.0, Verdict.KEEP, None)
    assert (failed.status, failed.value, failed.verdict) == (Status.OOM, None, Verdict.CRASH)
    assert failed.error
    assert failed.error.message == "a <bad> value"


def test_a_proposed_round_is_not_yet_committed(run: FakeRun) -> None:
    run.event("round.proposed", round=0, base="f" * 40, proposals={"r00-c00": {"title": "a"}})
    history = run.history()
    assert not history.rounds[0].committed
    assert history.entry("r00-c00").proposal.title == "a"


def test_the_newest_trial_that_was_not_dropped_counts(run: FakeRun) -> None:
    [first] = run.propose(["a"])
    run.done(first, None, Status.LOST)
    run.event("trial.dropped", trial=first, reason="the node went away")
    entry = run.history().entry("r00-c00")
    assert (entry.trial, entry.result, entry.value) == (None, None, None)
    assert entry.trials[0].dropped == "the node went away"
    run.event("submit.intent", round=0, job_name="ar-1", trials=["r00-c00-t1"])
    run.event("submit.done", round=0, job_name="ar-1", jobs={"r00-c00-t1": "9"})
    run.done("r00-c00-t1", 1.0)
    history = run.history()
    assert history.entry("r00-c00").trial is history.trial("r00-c00-t1")
    assert history.entry("r00-c00").value == 1.0
    assert [r.trial for r in history.results()] == ["r00-c00-t0", "r00-c00-t1"]
    assert history.rounds[0].num_arrays == 2


def test_a_submission_that_never_arrived_is_made_again_under_another_name(run: FakeRun) -> None:
    run.propose(["a"], submit=False)
    for name in ("ar-0", "ar-1"):
        run.event("submit.intent", round=0, job_name=name, trials=["r00-c00-t0"])
    entry = run.history().entry("r00-c00")
    assert [(t.id, t.job_name, t.job) for t in entry.trials] == [("r00-c00-t0", "ar-1", None)]


def test_an_interruption_marks_what_was_cancelled_and_a_resumption_clears_it(run: FakeRun) -> None:
    [first, second] = run.propose(["a", "b"])
    run.event("run.interrupted", reason="SIGINT", cancelled=[second])
    history = run.history()
    assert history.interrupted == "SIGINT"
    assert (history.trial(first).cancelled, history.trial(second).cancelled) == (False, True)
    run.wait(3600)
    run.event("run.resumed", pid=1, host="n")
    history = run.history()
    assert (history.interrupted, history.stopped) == (None, None)
    assert history.trial(second).cancelled, "its outcome still says nothing of the candidate"
    run.event("submit.intent", round=0, job_name="ar-1", trials=[second])
    assert not run.history().trial(second).cancelled


def test_the_time_between_two_controllers_is_nobodys(run: FakeRun) -> None:
    run.wait(10)
    run.event("run.interrupted", reason="SIGTERM", cancelled=[])
    run.wait(1000)
    run.event("run.resumed", pid=1, host="n")
    run.wait(5)
    run.event("run.stopped", reason="enough")
    history = run.history()
    assert history.active == [
        ("2026-01-31T12:00:00.000000+00:00", "2026-01-31T12:00:10.000000+00:00"),
        ("2026-01-31T12:16:50.000000+00:00", "2026-01-31T12:16:55.000000+00:00"),
    ]
    assert history.stopped == "enough"


def test_candidates_are_found_by_id_by_name_and_as_the_baseline(run: FakeRun) -> None:
    run.round([("a", 1.0, "keep")])
    run.event("round.proposed", round=1, base="f" * 40, proposals={"r01-c00": {"title": "b", "name": "wide"}})
    history = run.history()
    found = {name: (entry.id if (entry := history.find(name)) else None) for name in ("baseline", "r01-c00", "wide")}
    assert found == {"baseline": "r00-c00", "r01-c00": "r01-c00", "wide": "r01-c00"}
    assert history.find("narrow") is None
    assert History().find("baseline") is None


def test_a_baseline_that_failed_leaves_no_incumbent(run: FakeRun) -> None:
    run.propose(["a"])
    run.done("r00-c00-t0", None)
    run.event("round.judged", round=0, verdicts={"r00-c00": "crash"}, incumbent=None)
    assert run.history().incumbent is None


# what was found


def test_what_a_judgement_found_is_replayed(tmp_path: Path) -> None:
    history = told_from_luck(tmp_path / "tag").history()
    assert (history.noise, history.over_baseline) == (NOISE, OVER_BASELINE)
    baseline, winner = history.entry("r00-c00"), history.entry("r01-c00")
    assert (baseline.finding, len(baseline.values)) == (None, 4)
    assert winner.values == [0.9945, 0.9951, 0.9948]
    assert winner.value == pytest.approx(0.9948), "the mean of all that it ever earned"
    assert winner.finding
    assert winner.finding.words.startswith("promote: +0.005200 ± 0.001300, p=0.0004 of K=3, expected +0.004900 (")
    assert history.entry("r01-c03").finding == Comparison(call="no score")
    assert [o.finding.call if o.finding else None for o in history.outcomes()] == [
        None, "promote", "near miss", "discard", "no score", "discard"
    ]  # fmt: skip


def test_the_standard_error_is_that_of_the_mean(tmp_path: Path, run: FakeRun) -> None:
    history = told_from_luck(tmp_path / "told").history()
    assert history.standard_error(history.entry("r00-c00")) == pytest.approx(0.0006 / 2)
    assert history.standard_error(history.entry("r01-c02")) == pytest.approx(0.0006)
    assert history.standard_error(history.entry("r01-c03")) is None, "it has no value"
    run.round([("baseline", 1.0, "keep")])
    assert run.history().standard_error(run.history().entry("r00-c00")) is None, "nothing is known of the noise"


def test_a_judgement_that_tells_nothing_of_the_noise_takes_nothing_back(run: FakeRun) -> None:
    run.propose(["baseline"])
    run.done("r00-c00-t0", 1.0)
    run.judge({"r00-c00": "keep"}, {"r00-c00": 1.0}, noise=NOISE)
    run.round([("a", 1.1, "discard")])
    assert run.history().noise == NOISE


def test_what_was_gained_on_the_baseline_stands_until_the_incumbent_changes(tmp_path: Path) -> None:
    """A round on another GPU has nothing to say of it: a new incumbent found there has no gain that is known."""
    run = told_from_luck(tmp_path / "told")
    run.propose(["a"])
    same = {"candidate": "r01-c00", "commit": commit_of("r01-c00"), "value": 0.9948}
    run.event("round.judged", round=3, verdicts={"r03-c00": "discard"}, incumbent=same, over_baseline=None)
    assert run.history().over_baseline == OVER_BASELINE
    run.propose(["b"])
    other = {"candidate": "r04-c00", "commit": commit_of("r04-c00"), "value": 0.9}
    run.event("round.judged", round=4, verdicts={"r04-c00": "keep"}, incumbent=other, over_baseline=None)
    assert run.history().over_baseline is None


def test_a_joined_baseline_goes_first_replicates_and_all(run: FakeRun) -> None:
    run.propose(["baseline", "a"], submit=False)
    run.event("trials.wanted", round=0, stage="array", trials={"r00-c00": 2})
    assert list(run.history().rounds[0].missing.items()) == [(("r00-c00", ""), 3), (("r00-c01", ""), 1)]


def test_where_not_all_can_be_run_again_the_best_go_first(run: FakeRun) -> None:
    for trial in run.propose(["a", "b", "c"]):
        run.done(trial, 1.0)
    assert run.history().rounds[0].missing == {}
    run.event("trials.wanted", round=0, stage="look 1", trials={"r00-c02": 1, "r00-c00": 1, "r00-c01": 1})
    assert list(run.history().rounds[0].missing.items()) == [
        (("r00-c02", ""), 1),
        (("r00-c00", ""), 1),
        (("r00-c01", ""), 1),
    ]
    for trial in ("r00-c02-t1", "r00-c00-t1", "r00-c01-t1"):
        run.event("submit.intent", round=0, job_name="ar-1", trials=[trial])
        run.done(trial, 1.0)
    run.event("trials.wanted", round=0, stage="look 2", trials={"r00-c01": 3, "r00-c02": 1})
    assert list(run.history().rounds[0].missing.items()) == [(("r00-c01", ""), 3), (("r00-c02", ""), 1)]


def near_misses(run: FakeRun, keep: bool = False, **gains: Gain) -> None:
    """A round of near misses (named r01_c00) and, after them in it, a winner or none."""
    ids = [name.replace("_", "-") for name in gains]
    trials = run.propose([*ids, "winner"])
    for trial in trials:
        run.done(trial, 0.9)
    last = trials[-1].rpartition("-")[0]
    findings = {id_: Comparison(call="near miss", gain=gain) for id_, gain in zip(ids, gains.values(), strict=True)}
    verdicts = {**dict.fromkeys(ids, "discard"), last: "keep" if keep else "discard"}
    run.judge(verdicts, {last: 0.9}, findings, pool=ids)


def test_the_pool_are_near_misses_since_the_incumbent_changed_best_first(run: FakeRun) -> None:
    assert run.history().pool == ()
    run.round([("baseline", 1.0, "keep")])
    assert run.history().pool == ()
    near_misses(run, r01_c00=Gain(value=0.2, margin=0.2, expected=0.1, expected_margin=0.1))
    near_misses(
        run,
        r02_c00=Gain(value=0.9, margin=0.9, expected=0.05, expected_margin=0.2),
        r02_c01=Gain(value=0.15),  # nothing is known of the noise: taken as it is
    )
    assert run.history().pool == ("r02-c01", "r01-c00", "r02-c00")
    near_misses(run, keep=True, r03_c00=Gain(value=0.3))
    assert run.history().pool == ("r03-c00",), "it lost against the incumbent's round; the earlier ones are history"
    near_misses(run, r04_c00=Gain(value=0.4))
    assert run.history().pool == ("r04-c00", "r03-c00")
    near_misses(run, keep=True)
    assert run.history().pool == ()


# several kinds of GPU, several rounds at a time


@pytest.fixture
def tiers(tmp_path: Path) -> FakeRun:
    return on_two_tiers(tmp_path / "two tiers")


def test_a_round_that_is_proposed_in_parts(run: FakeRun) -> None:
    run.round([("baseline", 1.0, "keep")])
    for trial in run.propose(["a", "b"], tiers=["x", "y"]):
        run.done(trial, 0.9)
    round_ = run.history().rounds[1]
    assert (round_.complete, round_.num_arrays) == (True, 2)
    trials = run.propose(["c"], tiers=["x"], more=True)
    assert trials == ["r01-c02-t0"]
    history = run.history()
    assert len(history.rounds) == 2
    round_ = history.rounds[1]
    assert list(round_.entries) == ["r01-c00", "r01-c01", "r01-c02"]
    assert (round_.committed, round_.complete, round_.missing) == (True, False, {})
    assert [t.id for t in round_.outstanding] == trials
    run.event("round.proposed", round=1, base="f" * 40, proposals={"r01-c03": {"title": "d"}})
    run.done(trials[0], 0.9)
    round_ = run.history().rounds[1]
    assert (round_.committed, round_.complete) == (False, False), "the newest part is not committed"


def test_what_a_round_needs_is_counted_by_candidate_and_tier(run: FakeRun) -> None:
    run.propose(["baseline", "a"], submit=False, tiers=["x", "y"])
    run.event("trials.wanted", round=0, stage="array on y", tier="y", trials={"r00-c00": 2})
    run.event("trials.wanted", round=0, stage="array", tier="x", trials={"r00-c00": 1})
    round_ = run.history().rounds[0]
    baseline, there = Want("r00-c00", "x"), Want("r00-c00", "y")
    assert round_.missing == round_.needed == {baseline: 2, there: 2, Want("r00-c01", "y"): 1}
    assert list(round_.missing) == [baseline, there, Want("r00-c01", "y")], "what was wanted last goes first"
    assert (round_.num_needed("r00-c00"), round_.num_needed("r00-c01")) == (4, 1)
    for number, tier in enumerate("xxyx"):
        run.event("submit.intent", round=0, job_name=f"ar-{number}", tier=tier, trials=[f"r00-c00-t{number}"])
    history = run.history()
    assert history.rounds[0].missing == {there: 1, Want("r00-c01", "y"): 1}, "one too many on x is none on y"
    assert [t.want for t in history.outstanding] == [baseline, baseline, there, baseline]
    for number in range(4):
        run.done(f"r00-c00-t{number}", 1.0)
    assert not run.history().rounds[0].complete
    for trial, tier in (("r00-c00-t4", "y"), ("r00-c01-t0", "y")):
        run.event("submit.intent", round=0, job_name=f"ar-{trial}", tier=tier, trials=[trial])
        assert run.history().rounds[0].missing == ({Want("r00-c01", "y"): 1} if trial == "r00-c00-t4" else {})
        run.done(trial, 1.0)
    assert run.history().rounds[0].complete


def test_a_dropped_trial_is_missing_on_its_tier(run: FakeRun) -> None:
    [trial] = run.propose(["a"], tiers=["x"])
    run.done(trial, None, Status.LOST, tier="x")
    run.event("trial.dropped", trial=trial, reason="lost")
    assert run.history().rounds[0].missing == {Want("r00-c00", "x"): 1}


def test_what_the_budget_has_no_room_for_on_one_tier_stays_on_the_other(run: FakeRun) -> None:
    trials = run.propose(["a", "b"], tiers=["x", "x"])
    for trial in trials:
        run.done(trial, 1.0, tier="x")
    run.event("trials.wanted", round=0, stage="validation", tier="y", trials={"r00-c01": 2, "r00-c00": 2})
    run.event("submit.intent", round=0, job_name="v", tier="y", trials=["r00-c01-t1"])
    run.done("r00-c01-t1", 0.9, tier="y")
    run.event("submit.intent", round=0, job_name="w", tier="y", trials=["r00-c00-t1"])
    run.event("submit.refused", round=0, job_name="w", trials=["r00-c00-t1"], reason="no room")
    run.event("round.shrunk", round=0, tier="y", candidates=["r00-c01", "r00-c00"], reason="budget")
    history = run.history()
    round_ = history.rounds[0]
    assert list(round_.entries) == ["r00-c00", "r00-c01"]
    assert [t.id for t in round_.trials] == [*trials, "r00-c01-t1"], "one that never began is none"
    assert (round_.num_needed("r00-c00"), round_.num_needed("r00-c01")) == (1, 2)
    assert (round_.missing, round_.complete) == ({}, True)
    run.event("trials.wanted", round=0, stage="again", tier="y", trials={"r00-c00": 1})
    run.event("round.shrunk", round=0, tier="x", candidates=["r00-c00"], reason="budget")
    assert run.history().rounds[0].missing == {Want("r00-c00", "y"): 1}


def test_a_candidate_without_any_room_is_left_out_of_its_round(run: FakeRun) -> None:
    run.propose(["a", "b"], submit=False, tiers=["x", "y"])
    run.event("round.shrunk", round=0, tier="y", candidates=["r00-c01"], reason="budget")
    assert list(run.history().rounds[0].entries) == ["r00-c00"]


def test_what_a_candidate_is_worth_is_told_by_the_tier_that_decides(tiers: FakeRun) -> None:
    history = tiers.history()
    assert history.deciding_tier == "h200"
    baseline, winner, screened, broken = (history.entry(id_) for id_ in ("r00-c00", "r01-c00", "r01-c02", "r01-c03"))
    assert winner.values == [0.9449, 0.9451]
    assert winner.value == pytest.approx(0.945)
    assert [r.metric.value for r in winner.screened] == [0.9945]
    assert baseline.values == [0.9505, 0.95, 0.9495, 0.95]
    assert [r.metric.value for r in baseline.screened] == [1.0005, 0.9995, 1.0]
    assert screened.values == [1.01], "for want of another"
    assert (broken.values, broken.screened) == ([], [])
    assert [entry.decided for entry in (baseline, winner, screened, broken)] == [True, True, False, False]
    assert history.incumbent
    assert history.incumbent.value == 0.945


def test_a_validation_without_a_value_decides_nothing(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "decides", deciding_tier="h200")
    [trial] = run.propose(["a"], tiers=["h100"])
    run.done(trial, 1.0)
    run.again("validation", "h200", r00_c00=[None])
    entry = run.history().entry("r00-c00")
    assert (entry.values, entry.decided) == ([1.0], False), "its value is the screening's, and compares with none there"
    run.again("validation again", "h200", r00_c00=[0.9])
    entry = run.history().entry("r00-c00")
    assert (entry.values, entry.decided) == ([0.9], True)


def test_without_a_tier_that_decides_the_newest_kind_counts(run: FakeRun) -> None:
    run.propose(["a"])
    run.done("r00-c00-t0", 1.0)
    run.again("remeasurement", "h200", r00_c00=[0.9, 0.8])
    entry = run.history().entry("r00-c00")
    assert (entry.values, entry.decided) == ([0.9, 0.8], True)
    assert [r.gpu for r in entry.good("h200")] == [gpu_of("h200")] * 2


def test_rounds_are_open_side_by_side(tiers: FakeRun) -> None:
    history = tiers.history()
    assert [r.index for r in history.open_rounds] == [2, 3]
    assert [t.id for t in history.outstanding] == ["r03-c00-t0"]
    tiers.event("trials.wanted", round=2, stage="look", tier="h200", trials={"r01-c00": 1})
    tiers.event("submit.intent", round=2, job_name="x", tier="h200", trials=["r01-c00-t3"])
    history = tiers.history()
    assert [t.id for t in history.outstanding] == ["r01-c00-t3", "r03-c00-t0"], "oldest round first"
    assert history.trial("r01-c00-t3").round == 2, "an incumbent's trial belongs to the round that asked for it"
    tiers.event("round.closed", round=3)
    history = tiers.history()
    assert ([r.index for r in history.open_rounds], [t.id for t in history.outstanding]) == ([2], ["r01-c00-t3"])


def test_rounds_may_be_judged_out_of_order(tiers: FakeRun) -> None:
    same = {"candidate": "r01-c00", "commit": commit_of("r01-c00"), "value": 0.945}
    tiers.done("r03-c00-t0", 1.0)
    tiers.event("round.judged", round=3, verdicts={"r03-c00": "discard"}, incumbent=same)
    tiers.event("round.closed", round=3)
    history = tiers.history()
    assert [r.judged for r in history.rounds] == [True, True, False, True]
    assert [o.candidate for o in history.outcomes()][-2:] == ["r01-c03", "r03-c00"]


def test_agents_may_hear_of_results_before_their_round_is_judged(tiers: FakeRun) -> None:
    """What they hear is the screening's value: every candidate has one, and one kind of GPU is what can be learned."""
    history = tiers.history()
    assert [o.candidate for o in history.outcomes()] == ["r00-c00", "r01-c00", "r01-c01", "r01-c02", "r01-c03"]
    outcomes = {o.candidate: o for o in history.outcomes(unjudged=True)}
    assert list(outcomes)[5:] == ["r02-c00", "r02-c01"], "not r03-c00, which has no result"
    assert {id_: o.value for id_, o in outcomes.items()} == {
        "r00-c00": 1.0, "r01-c00": 0.9945, "r01-c01": 0.9960, "r01-c02": 1.01, "r01-c03": None,
        "r02-c00": 0.9935, "r02-c01": 0.9990,
    }  # fmt: skip
    assert {o.kind for o in outcomes.values()} == {"H100, tier h100", ""}
    assert (outcomes["r00-c00"].num_trials, outcomes["r01-c00"].num_trials) == (3, 1)
    assert (outcomes["r02-c00"].verdict, outcomes["r02-c00"].finding) == (None, None)


def event(name: str, **data: Any) -> Event:
    return Event(seq=5, at="2026-01-31T12:00:00+00:00", event=name, data=data)


@pytest.mark.parametrize(
    "wrong",
    [
        event("run.started", tag="x"),
        event("round.proposed", round=1, base="f", proposals={"r01-c00": {"titel": "x"}}),
        event("round.proposed", round=1, base="f", proposals=3),
        event("round.committed", round=0, candidates=[{"id": "r00-c00"}]),
        event("submit.intent", round=7, job_name="x", trials=[]),
        event("submit.done", round=0, job_name="x", jobs={"r00-c00-t9": "1"}),
        event("submit.done", round=0, job_name="x", jobs={"nonsense": "1"}),
        event("trial.done", trial="r00-c00-t0", result={}),
        event("trial.done", trial="r09-c00-t0", result={}),
        event("round.judged", round=0, verdicts={"r00-c00": "splendid"}, incumbent=None),
        event("round.judged", round=0, verdicts={}, incumbent={"candidate": "r00-c00"}),
        event("round.judged", round=0, verdicts={}, findings={"r00-c00": "discard: +0.1"}, incumbent=None),
        event("round.judged", round=0, verdicts={}, findings={"r00-c00": {"call": "x", "p": "1"}}, incumbent=None),
        event("round.judged", round=0, verdicts={}, findings={}, pool=["r00-c09"], incumbent=None),
        event("round.judged", round=0, verdicts={}, noise={"sd": 0.1}, incumbent=None),
        event("round.judged", round=0, verdicts={}, over_baseline={"valeu": 0.1}, incumbent=None),
        event("run.stopped"),
    ],
    ids=lambda e: e.event,
)
def test_an_event_that_makes_no_sense_is_damage(run: FakeRun, wrong: Event) -> None:
    run.propose(["a"])
    history = run.history()
    with pytest.raises(JournalError, match=rf"^damaged journal: event 5 \({wrong.event}\) makes no sense: .*; restore"):
        history.apply(wrong)


def test_an_event_of_a_later_version(run: FakeRun) -> None:
    with pytest.raises(JournalError, match=r"unknown event 'round\.tasted'"):
        run.history().apply(event("round.tasted"))
