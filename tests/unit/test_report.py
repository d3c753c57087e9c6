"""Tables, summary, picture, HTML report and the report command, on a run's directory as a controller leaves it."""

import csv
import html.parser
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from fake_run import CONFIG, NOISE, OVER_BASELINE, FakeRun, commit_of, cookbook, on_two_tiers, told_from_luck
from rich.console import Console

from autoresearch_hpc import report
from autoresearch_hpc.config import ClusterConfig, Config, PlanConfig, TierConfig
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.gains import Comparison, Gain
from autoresearch_hpc.layout import all_runs, find_run
from autoresearch_hpc.records import Direction, Phases, Status
from autoresearch_hpc.report import formats
from autoresearch_hpc.report.__main__ import main
from autoresearch_hpc.report.plots import progress_figure, write_progress_png
from autoresearch_hpc.report.settings import Settings, read_settings, settings_of
from autoresearch_hpc.report.summary import summarize
from autoresearch_hpc.report.tables import Tables
from autoresearch_hpc.report.wording import render, render_text

HOSTILE = 'runs of Zoë\'s "team" 試'


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return cookbook(tmp_path / HOSTILE / "cook book")


@pytest.fixture
def told(tmp_path: Path) -> FakeRun:
    return told_from_luck(tmp_path / HOSTILE / "told")


# tables


def test_candidates_csv_has_the_gain_with_its_noise(told: FakeRun) -> None:
    Tables().write(told.history(), told.layout)
    with told.layout.candidates_csv.open(newline="") as file:
        rows = {row["candidate"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["r00-c00", "r01-c00", "r01-c01", "r01-c02", "r01-c03", "r02-c00"]
    assert list(rows["r01-c00"].items()) == [
        ("candidate", "r01-c00"), ("round", "1"), ("commit", commit_of("r01-c00")[:7]), ("verdict", "keep"),
        ("num_trials", "3"), ("value", "0.994800"), ("standard_error", "0.000346"),
        ("gain", "0.005200"), ("gain_low", "0.003900"), ("gain_high", "0.006500"), ("p", "0.000420"), ("k", "3"),
        ("expected", "0.004900"), ("expected_low", "0.003500"), ("expected_high", "0.006300"),
        ("call", "promote"), ("title", "wider"),
    ]  # fmt: skip
    near, failed, baseline = rows["r01-c01"], rows["r01-c03"], rows["r00-c00"]
    assert (near["verdict"], near["call"], near["expected_low"]) == ("discard", "near miss", "-0.000300")
    assert (failed["verdict"], failed["num_trials"], failed["value"], failed["call"]) == ("crash", "0", "", "no score")
    assert (failed["standard_error"], failed["gain"], failed["p"], failed["k"]) == ("", "", "", "")
    assert (baseline["num_trials"], baseline["value"], baseline["standard_error"]) == ("4", "1.000000", "0.000300")
    assert (baseline["gain"], baseline["call"]) == ("", "")


def test_candidates_csv_leaves_empty_what_is_not_known(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "r")
    run.round([("baseline", 1.0, "keep")])
    run.propose(["a\ntitle, of two lines"])
    run.done("r01-c00-t0", 0.9)
    Tables().write(run.history(), run.layout)
    with run.layout.candidates_csv.open(newline="") as file:
        _, row = csv.DictReader(file)
    assert (row["title"], row["value"], row["num_trials"]) == ("a title, of two lines", "0.900000", "1")
    assert (row["verdict"], row["standard_error"], row["gain"], row["call"]) == ("", "", "", "")


def test_every_trial_that_counts_has_its_candidates_verdict(told: FakeRun) -> None:
    Tables().write(told.history(), told.layout)
    with told.layout.trials_csv.open(newline="") as file:
        verdicts = [(row["trial"], row["verdict"]) for row in csv.DictReader(file)]
    assert verdicts[:5] == [(f"r00-c00-t{i}", "keep") for i in range(4)] + [("r01-c00-t0", "keep")]
    assert len(verdicts) == 12


def test_results_tsv_is_upstreams_format(run: FakeRun) -> None:
    Tables().write(run.history(), run.layout)
    lines = run.layout.results_tsv.read_text().splitlines()
    assert lines[0] == "commit\tval_bpb\tmemory_gb\tstatus\tdescription"
    assert lines[1] == f"{commit_of('r00-c00')[:7]}\t1.010748\t44.0\tkeep\tr00-c00: baseline"
    assert lines[5] == f"{commit_of('r01-c03')[:7]}\t\t\tcrash\tr01-c03: MATRIX_LR 0.04 -> 5"
    assert len(lines) == 14
    assert all(line.count("\t") == 4 for line in lines)


def test_results_tsv_has_only_judged_candidates_and_one_line_each(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "r", metric="loss\tof it", direction=Direction.max)
    run.round([("a\ttitle\nof  two lines\x85", 2e-9, "keep")])
    run.propose(["not judged"])
    Tables().write(run.history(), run.layout)
    head, *lines = run.layout.results_tsv.read_text().splitlines()
    assert head.split("\t")[1] == "loss of it"
    assert [line.split("\t")[1::3] for line in lines] == [["2.000000e-09", "r00-c00: a title of two lines"]]


def test_trials_csv_has_every_field_of_every_trial(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "r")
    trials = run.propose(['=1+1, "quoted"\nand broken'])
    run.done(trials[0], None, Status.LOST)
    run.event("trial.dropped", trial=trials[0], reason="the node went away")
    run.event("submit.intent", round=0, job_name="ar-0b", trials=["r00-c00-t1"])
    run.done("r00-c00-t1", 0.5, num_params=7)
    run.judge({"r00-c00": "keep"}, {"r00-c00": 0.5})
    Tables().write(run.history(), run.layout)
    with run.layout.trials_csv.open(newline="") as file:
        lost, ok = csv.DictReader(file)
    assert (lost["trial"], lost["status"], lost["dropped"], lost["verdict"]) == (
        "r00-c00-t0",
        "LOST",
        "the node went away",
        "",
    )
    assert lost["metric.value"] == ""
    assert lost["error.message"] == "a <bad> value"
    assert (ok["metric.value"], ok["verdict"], ok["phases.train_s"]) == ("0.5", "keep", "300.0")
    assert (ok["slurm.job_id"], ok["gpu.visible"], ok["num_params"], ok["error.type"]) == ("42", "0", "7", "")
    assert ok["title"] == '=1+1, "quoted"\nand broken'


def test_a_table_is_replaced_whole_or_not_at_all(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    Tables().write(run.history(), run.layout)
    before = run.layout.results_tsv.read_bytes()
    run.round([("one more", 0.9, "keep")])
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        Tables().write(run.history(), run.layout)
    assert run.layout.results_tsv.read_bytes() == before
    assert not list(run.layout.root.glob("*.tmp"))


# summary


def test_summary_counts_and_sums(run: FakeRun) -> None:
    summary = summarize(run.history(), read_settings(run.layout.config))
    assert [row.num_candidates for row in summary.rounds] == [1, 4, 4, 4]
    assert [row.base for row in summary.rounds] == ["start", "r00-c00", "r00-c00", "r02-c02"]
    assert [row.verdict for row in summary.rounds] == ["keep", "discard", "keep", "keep"]
    assert [row.best_candidate for row in summary.rounds] == ["r00-c00", "r01-c01", "r02-c02", "r03-c02"]
    assert (summary.rounds[1].num_ok, summary.rounds[1].num_failed) == (3, 1)
    assert (summary.num_experiments, summary.num_failed, summary.num_trials) == (13, 1, 13)
    assert summary.active_s == summary.elapsed_s == 2400
    assert summary.sequential_s == summary.trial_s == summary.gpu_s == 12 * 480 + 60
    assert summary.speed_up == pytest.approx(5820 / 2400)
    assert summary.useful == pytest.approx(3600 / 5820)
    assert summary.cost_usd == pytest.approx(5820 / 3600 * 2)
    assert (summary.baseline, summary.best, summary.best_candidate) == (1.010748, 0.998559, "r03-c02")
    assert summary.over_baseline
    assert summary.over_baseline.value == pytest.approx(0.012189)
    assert (summary.baseline_trials, summary.best_trials, summary.noise, summary.kept) == (1, 1, None, ())


def test_every_trial_is_counted_and_every_candidate_once(told: FakeRun) -> None:
    summary = summarize(told.history(), read_settings(told.layout.config))
    assert (summary.num_experiments, summary.num_failed, summary.num_trials) == (6, 1, 12)
    assert [(row.num_candidates, row.num_ok, row.num_failed) for row in summary.rounds] == [
        (1, 1, 0),
        (4, 3, 1),
        (1, 1, 0),
    ]
    assert [row.num_trials for row in summary.rounds] == [3, 7, 2], "the incumbent's controls are the round's"
    assert summary.sequential_s == summary.trial_s == summary.gpu_s == 11 * 480 + 60
    assert summary.train_s == 11 * 300
    assert summary.cost_usd == pytest.approx((11 * 480 + 60) / 3600 * 2)
    assert (summary.best, summary.best_trials, summary.noise) == (pytest.approx(0.9948), 3, NOISE)
    assert (summary.baseline, summary.baseline_trials) == (1.0, 4)
    assert summary.over_baseline == OVER_BASELINE
    assert [(id_, gain.expected) for id_, gain in summary.kept] == [("r01-c00", 0.0049)]


def test_a_candidate_is_ok_if_any_of_its_trials_is(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "r")
    run.propose(["baseline", "a", "b"])
    for trial, value in zip(("r00-c00-t0", "r00-c01-t0", "r00-c02-t0"), (1.0, 0.9, None), strict=True):
        run.done(trial, value)
    run.again("look 1", r00_c01=[None], r00_c02=[0.95])
    summary = summarize(run.history())
    assert (summary.rounds[0].num_ok, summary.rounds[0].num_failed, summary.num_failed) == (3, 0, 0)
    assert (summary.leading, summary.leading_trials) == (0.9, 1), "a failure is no value of its own"
    assert summary.sequential_s == 3 * 480 + 2 * 60


def test_the_rows_number_is_that_of_the_candidate_it_names(tmp_path: Path) -> None:
    """A winner need not have the best number: less code, or the price of memory."""
    run = FakeRun(tmp_path / "r")
    run.round([("baseline", 1.0, "keep")])
    run.round([("simpler", 1.0001, "keep"), ("larger", 0.9, "discard")])
    row = summarize(run.history()).rounds[1]
    assert (row.best, row.best_candidate, row.title) == (1.0001, "r01-c00", "simpler")


def test_a_joined_rounds_winner_is_not_the_baseline(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "r")
    run.round([("baseline", 1.0, "keep"), ("a", 0.9, "keep")])
    row = summarize(run.history()).rounds[0]
    assert (row.winner, row.best, row.title) == ("r00-c01", 0.9, "a")


def test_interruptions_are_not_wall_time_and_dropped_trials_are_not_sequential_time(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "r")
    trials = run.propose(["baseline"])
    run.wait(100)
    run.done(trials[0], None, Status.LOST, phases=Phases(total_s=50.0))
    run.event("trial.dropped", trial=trials[0], reason="node lost")
    run.wait(10_000)
    run.event("run.resumed", pid=2, host="h")
    run.event("submit.intent", round=0, job_name="again", trials=["r00-c00-t1"])
    run.wait(500)
    run.done("r00-c00-t1", 1.0)
    summary = summarize(run.history())
    assert (summary.active_s, summary.elapsed_s) == (600, 10_600)
    assert (summary.trial_s, summary.sequential_s) == (530, 480)
    assert (summary.num_experiments, summary.num_trials) == (1, 2)
    assert "with interruptions" in render_text(summary)


def test_a_value_that_was_not_judged_is_leading_not_best(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "r", metric="accuracy", direction=Direction.max)
    run.round([("baseline", 0.5, "keep")])
    trials = run.propose(["a", "b", "c"])
    run.done(trials[0], 0.4)
    assert summarize(run.history()).leading is None
    run.done(trials[1], 0.7)
    summary = summarize(run.history())
    assert (summary.best, summary.leading, summary.leading_candidate) == (0.5, 0.7, "r01-c01")
    assert summary.rounds[-1].verdict == "running"


@pytest.mark.parametrize("width", [80, 60, 200])
def test_the_table_fits_the_terminal(run: FakeRun, width: int) -> None:
    run.round([("a title that is longer than any terminal " * 5 + "[bold]\x1b[31m", 0.9, "keep")])
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render(summarize(run.history()), {"results": "x/results.tsv"}))
    lines = console.export_text().splitlines()
    assert max(len(line) for line in lines) <= width
    assert any("0.998559" in line and " keep " in line for line in lines)
    assert any("…" in line for line in lines)
    assert "\x1b" not in "".join(lines)


def test_the_plain_summary_names_times_and_places(run: FakeRun) -> None:
    text = render_text(summarize(run.history(), read_settings(run.layout.config)), {"results": "r/results.tsv"})
    assert "best val_bpb  0.998559  r03-c02" in text
    assert "better by 0.012189 (1.21%), noise unknown\n" in text
    assert "kept" not in text
    assert "13 experiments, 1 failed (1 CRASHED); 13 trials" in text
    assert "wall time: 40 min 00 s" in text
    assert "GPU time: 1.62 h, 62% of it training, $3.23" in text
    assert "the same trials one after another: 1 h 37 min; speed-up 2.4x" in text
    assert text.endswith("results  r/results.tsv")
    assert "\x1b" not in text


def test_the_summary_says_what_is_behind_its_numbers(told: FakeRun) -> None:
    text = render_text(summarize(told.history(), read_settings(told.layout.config)))
    lines = text.splitlines()
    assert lines[-9:] == [
        f"best val_bpb   0.994800  r01-c00, 3 trials, noise 0.000600, commit {commit_of('r01-c00')[:7]}",
        "baseline       1.000000  4 trials; better by 0.005200 ± 0.001250 (0.52%)",
        "expected gain  0.004700  (0.003200 to 0.006200), less the luck of being picked",
        "kept r01-c00   +0.005200 ± 0.001300, expected +0.004900",
        "6 experiments, 1 failed (1 CRASHED); 12 trials",
        "wall time: 30 min 00 s",
        "GPU time: 1.48 h, 62% of it training, $2.97",
        "the same trials one after another: 1 h 29 min; speed-up 3.0x",
        "between rounds: 0.0 s without a trial, 0.0 s of it the agent's; at most 0.0 s",
    ]
    assert max(map(len, lines)) <= 80


def test_what_gpus_waited_for_and_what_the_agent_cost(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "r")
    run.round([("baseline", 1.0, "keep")])
    for wait_s in (3.0, 7.0):
        run.event("agent.calling", call="r01/propose", at_most_usd=0.5)
        run.wait(wait_s)
        run.event("agent.called", call="r01/propose", usd=0.02, prompt_tokens=1000, answer_tokens=234)
        run.event("agent.calling", call="r01/propose-repair-1", at_most_usd=0.25)
        run.round([("a", 0.9, "keep")])
    run.wait(100.0)
    run.event("run.resumed", pid=1, host="h")  # nobody waited for a controller that was not there
    run.round([("b", 0.9, "discard")])
    summary = summarize(run.history())
    assert [pause.total_s for pause in summary.pauses] == [3.0, 7.0]
    assert [pause.thought_s for pause in summary.pauses] == [3.0, 7.0]
    text = render_text(summary)
    assert "between rounds: 5.0 s without a trial, 5.0 s of it the agent's; at most 7.0 s" in text
    assert "agent: 2 calls, 1,000 + 234 tokens, $0.5200" in text, "a call without an answer counts in full, each time"


def test_a_near_miss_is_no_plain_discard(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "r")
    run.round([("baseline", 1.0, "keep")])
    run.done(run.propose(["a"])[0], 0.99)
    found = Comparison(call="near miss", gain=Gain(value=0.01, margin=0.02))
    run.judge({"r01-c00": "discard"}, {}, {"r01-c00": found}, pool=["r01-c00"])
    assert [row.verdict for row in summarize(run.history()).rounds] == ["keep", "near miss"]


def test_winners_beyond_the_newest_are_only_counted(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "r")
    run.round([("baseline", 1.0, "keep")])
    for index in range(1, 13):
        run.done(run.propose(["better"])[0], 1.0 - index / 10)
        id_ = f"r{index:02d}-c00"
        found = Comparison(call="promote", gain=Gain(value=0.1, margin=0.01))
        run.judge({id_: "keep"}, {id_: 1.0 - index / 10}, {id_: found}, NOISE)
    kept = [line for line in render_text(summarize(run.history())).splitlines() if line.startswith("kept")]
    assert len(kept) == 9
    assert kept[0].split()[1:] == ["4", "candidates", "before", "these"]
    assert [line.split()[1] for line in kept[1:]] == [f"r{i:02d}-c00" for i in range(5, 13)]
    assert kept[-1].endswith("+0.100000 ± 0.010000")


def test_a_best_that_never_ran_as_the_baseline_did_is_not_compared_with_it(told: FakeRun) -> None:
    text = told.layout.journal.read_text().replace('"over_baseline": {', '"left_out": {')
    told.layout.journal.write_text(text)
    [line] = [x for x in render_text(summarize(told.history())).splitlines() if x.startswith("baseline")]
    assert line.endswith("4 trials; never run on the same kind of GPU and data as the best")


def test_a_run_that_has_only_begun_has_a_summary(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "r")
    summary = summarize(run.history())
    assert (summary.best, summary.speed_up, summary.useful, summary.over_baseline) == (None, None, None, None)
    assert "none yet" in render_text(summary)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.7, "1 min 00 s"),
        (3599.7, "1 h 00 min"),
        (7199, "2 h 00 min"),
    ],
)
def test_durations_round_without_sixties(seconds: float, text: str) -> None:
    assert formats.duration(seconds) == text


def test_settings_are_read_leniently(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    assert read_settings(path) == Settings()
    path.write_text("plan: [not, a, group]\ntask: {train_s: true}\nbudget: 3\n")
    assert read_settings(path) == Settings()
    path.write_text("plan: {unclosed")
    assert read_settings(path) == Settings()
    path.write_text("plan: {rounds: [{}, {}], baseline: joined, max_rounds: null}\n")
    assert read_settings(path).num_rounds == 1
    limits = "startup_limit_s: 1, train_s: 2, grace_s: 4, eval_limit_s: 8, stage_limit_s: 16"
    path.write_text(f"task: {{{limits}, stage: null}}\n")
    assert read_settings(path).wall_limit_s == 15
    path.write_text(f"task: {{{limits}, stage: /local}}\n")
    assert read_settings(path).wall_limit_s == 31


# several kinds of GPU


@pytest.fixture
def tiers(tmp_path: Path) -> FakeRun:
    run = on_two_tiers(tmp_path / "two tiers")
    priced = "tiers: {h100: {price_per_gpu_hour: 2.0}, h200: {price_per_gpu_hour: 3.0, gres: 'gpu:1'}, other: null}"
    run.layout.config.write_text(CONFIG.replace("price_per_gpu_hour: 2.0", f"price_per_gpu_hour: 9.0, {priced}"))
    return run


def test_each_tiers_trials_are_told_at_its_price(tiers: FakeRun) -> None:
    settings = read_settings(tiers.layout.config)
    assert settings.prices == {"h100": 2.0, "h200": 3.0}
    assert [settings.price(name) for name in ("h100", "h200", "other", "")] == [2.0, 3.0, 9.0, 9.0]
    summary = summarize(tiers.history(), settings)
    h100, h200 = 8 * 480 + 60, 9 * 480
    assert [(use.tier, use.num_trials, use.trial_s) for use in summary.tiers] == [("h100", 9, h100), ("h200", 9, h200)]
    assert [use.cost_usd for use in summary.tiers] == [pytest.approx(h100 / 1800), pytest.approx(h200 / 1200)]
    assert summary.cost_usd == pytest.approx(h100 / 1800 + h200 / 1200)
    text = render_text(summary)
    assert "\non h100: 9 trials, 1.08 h, $2.17\n" in text
    assert "\non h200: 9 trials, 1.20 h, $3.60\n" in text


def test_a_loaded_configurations_settings_have_every_tiers_price() -> None:
    cluster = ClusterConfig(price_per_gpu_hour=9.0, tiers={"a": TierConfig(price_per_gpu_hour=2.0), "b": TierConfig()})
    assert settings_of(Config(plan=PlanConfig(name="p"), cluster=cluster)).prices == {"a": 2.0, "b": 9.0}


def test_one_tier_is_not_told_by_itself_and_no_price_is_no_cost(tiers: FakeRun, run: FakeRun) -> None:
    assert summarize(run.history(), read_settings(run.layout.config)).tiers == ()
    summary = summarize(tiers.history())
    assert ([use.cost_usd for use in summary.tiers], summary.cost_usd) == ([None, None], None)
    assert "\non h200: 9 trials, 1.20 h\n" in render_text(summary)


def test_a_rounds_best_is_one_that_was_validated(tiers: FakeRun) -> None:
    summary = summarize(tiers.history())
    assert [(row.best, row.best_candidate) for row in summary.rounds] == [
        (0.95, "r00-c00"), (pytest.approx(0.945), "r01-c00"), (0.944, "r02-c00"), (None, None)
    ]  # fmt: skip
    assert (summary.best, summary.best_trials, summary.baseline) == (pytest.approx(0.945), 2, 0.95)


def test_leading_is_who_beats_the_incumbent_where_it_is_decided(tiers: FakeRun) -> None:
    """Of all open rounds; a screening's value says nothing of it, however good."""
    assert summarize(tiers.history()).leading_candidate == "r02-c00"
    tiers.done("r03-c00-t0", 0.1)
    summary = summarize(tiers.history())
    assert (summary.leading, summary.leading_candidate) == (0.944, "r02-c00")
    tiers.again("validation", "h200", r03_c00=[0.9430])
    assert summarize(tiers.history()).leading_candidate == "r03-c00"
    assert summarize(tiers.history()).rounds[-1].best == 0.943
    [trial] = tiers.propose(["d"], tiers=["h100"], more=True)
    tiers.done(trial, 0.1)
    assert summarize(tiers.history()).rounds[-1].best_candidate == "r03-c00", "not 0.1, which is of another kind"


def test_before_a_validation_a_rounds_best_is_that_of_its_screening(tiers: FakeRun) -> None:
    tiers.done("r03-c00-t0", 0.9)
    summary = summarize(tiers.history())
    assert (summary.rounds[-1].best, summary.leading_candidate) == (0.9, "r02-c00")


# the picture


def _ink(path: Path) -> float:
    """The fraction of pixels that are not white."""
    return float(np.mean(matplotlib.image.imread(path)[:, :, :3].min(axis=2) < 0.9))


def test_progress_png_is_drawn_for_a_run_in_any_state(tmp_path: Path) -> None:
    empty = FakeRun(tmp_path / "empty")
    write_progress_png(empty.history(), tmp_path / "empty.png")
    assert 0 < _ink(tmp_path / "empty.png") < 0.02
    failed = FakeRun(tmp_path / "failed")
    failed.round([("baseline", None, "crash")])
    write_progress_png(failed.history(), tmp_path / "failed.png")
    full = cookbook(tmp_path / "full")
    write_progress_png(full.history(), tmp_path / "full.png")
    assert _ink(tmp_path / "full.png") > _ink(tmp_path / "empty.png")


def test_the_picture_shows_kept_discarded_failed_and_far_off_values(run: FakeRun) -> None:
    axes = progress_figure(run.history()).axes[0]
    marks = {c.get_label(): len(c.get_offsets()) for c in axes.collections}
    assert marks == {"kept": 3, "discarded": 7, "discarded, off the scale": 2, "failed": 1}
    line = next(line for line in axes.lines if line.get_label() == "running best")
    assert list(line.get_xdata()) == [1, 8, 12, 13]
    assert list(line.get_ydata()) == [1.010748, 1.008112, 0.998559, 0.998559]


def test_a_candidate_is_one_point_with_the_standard_error_of_its_mean(told: FakeRun) -> None:
    axes = progress_figure(told.history()).axes[0]
    marks = {c.get_label(): c for c in axes.collections}
    kept, discarded = marks["kept"].get_offsets(), marks["discarded"].get_offsets()
    assert np.allclose(kept, [(1, 1.0), (2, 0.9948)])
    assert np.allclose(discarded, [(3, 0.9985), (6, 0.9990)])
    bars = [s for c in axes.collections if hasattr(c, "get_segments") for s in c.get_segments()]
    assert np.allclose(
        sorted((s[0][0], s[1][1] - s[0][1]) for s in bars),
        [(1, 0.0006), (2, 2 * 0.0006 / 3**0.5), (3, 2 * 0.0006 / 2**0.5), (6, 2 * 0.0006)],
    )
    assert axes.get_title(loc="left") == "told: 6 experiments of 12 trials, 2 kept, 1 failed"
    low, high = axes.get_ylim()
    assert low < min(s[0][1] for s in bars)
    assert max(s[1][1] for s in bars) < high


def test_what_was_only_screened_is_drawn_apart(tiers: FakeRun) -> None:
    axes = progress_figure(tiers.history()).axes[0]
    marks = {c.get_label(): c.get_offsets() for c in axes.collections}
    assert np.allclose(marks["kept"], [(1, 0.95), (2, 0.945)])
    assert np.allclose(marks["discarded"], [(3, 0.9485), (6, 0.944)])
    high = axes.get_ylim()[1]
    assert np.allclose(marks["screened only, on another GPU"], [(4, high), (7, high)]), "beyond the upper edge"
    assert "discarded, off the scale" not in marks, "they are on another scale"
    assert len(marks["failed"]) == 1
    bars = [s for c in axes.collections if hasattr(c, "get_segments") for s in c.get_segments()]
    assert sorted(s[0][0] for s in bars) == [1, 2, 3, 6], "what is not compared has no error either"


def test_what_was_screened_lies_where_its_value_is_or_at_the_nearest_edge(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "r", deciding_tier="h200")
    for trial in run.propose(["baseline", "a", "b", "c"], tiers=["h100"] * 4):
        run.done(trial, {"r00-c01-t0": 0.2, "r00-c02-t0": 0.95, "r00-c03-t0": 1.8}.get(trial, 1.0))
    run.again("array on h200", "h200", r00_c00=[1.0])
    run.again("validation", "h200", r00_c01=[0.9])
    run.judge(
        {"r00-c00": "keep", "r00-c01": "keep", "r00-c02": "discard", "r00-c03": "discard"},
        {"r00-c00": 1.0, "r00-c01": 0.9},
    )
    [trial] = run.propose(["d"], tiers=["h100"])
    run.done(trial, 0.1)
    axes = progress_figure(run.history()).axes[0]
    low, high = axes.get_ylim()
    marks = {c.get_label(): c.get_offsets() for c in axes.collections}
    assert np.allclose(marks["screened only, on another GPU"], [(3, 0.95), (4, high), (5, low)])
    assert np.allclose(marks["kept"], [(1, 1.0), (2, 0.9)])


def test_without_known_noise_there_are_no_bars(run: FakeRun) -> None:
    assert not [c for c in progress_figure(run.history()).axes[0].collections if hasattr(c, "get_segments")]


@pytest.mark.parametrize("direction", list(Direction))
def test_labels_overlap_neither_each_other_nor_points(tmp_path: Path, direction: Direction) -> None:
    run = FakeRun(tmp_path / "r", direction=direction)
    sign = -1 if direction is Direction.min else 1
    for index in range(25):
        rows = [(f"KNOB_{index} 0.{index} -> {index}.5, OTHER_KNOB 1 -> 2", 1 + sign * 0.01 * index**0.5, "keep")]
        run.round([*rows, ("no", 1 - sign * 0.01, "discard"), ("no", None, "crash")])
    figure = progress_figure(run.history())
    labels = [t for t in figure.axes[0].texts if "KNOB" in t.get_text()]
    boxes = [label.get_window_extent() for label in labels]
    assert len(boxes) >= 5
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    points = np.vstack([c.get_offsets() for c in figure.axes[0].collections if c.get_label() in ("kept", "discarded")])
    pixels = figure.axes[0].transData.transform(points)
    assert not [box for box in boxes if any(box.contains(x, y) for x, y in pixels)]
    assert len({label.get_text() for label in labels}) == len(labels)
    assert labels[0].get_text().startswith("KNOB_24 ")  # the newest is placed first


def test_titles_with_mathematics_or_foreign_letters_are_drawn_as_text(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "tag $x^2$ 学習", metric="m_$1$")
    run.round([("LR $\\frac{1$ 学習 \x07", 1.0, "keep"), ("b", 1.1, "discard")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_progress_png(run.history(), tmp_path / "p.png")
    texts = [t.get_text() for t in progress_figure(run.history()).axes[0].texts]
    assert "LR $\\frac{1$ ??" in texts


def test_drawing_leaves_matplotlib_as_it_was(run: FakeRun) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import matplotlib; before = dict(dict.items(matplotlib.rcParams))\n"
        "from pathlib import Path; from autoresearch_hpc import history, journal, report, layout\n"
        "l = layout.RunLayout(Path(sys.argv[2])); h = history.History.replay(journal.read(l.journal))\n"
        "report.write_all(h, l); assert dict(dict.items(matplotlib.rcParams)) == before\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, root, str(run.layout.root)],
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "DISPLAY"},
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
    assert run.layout.report_html.exists()


# the page


class _Page(html.parser.HTMLParser):
    """Checks that tags nest, and keeps what matters."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report_html_is_one_file_and_everything_in_it_is_escaped(run: FakeRun) -> None:
    evil = "<script>alert('1')</script> & \"more\" <b>"
    trials = run.propose([evil, "ok"])
    run.layout.diff("r04-c00").write_bytes(b"--- a/x\n+++ b/x\n-<old> \xff\n+<img src=x onerror=y>\n")
    run.done(trials[0], None)
    run.done(trials[1], 0.99)
    run.judge({"r04-c00": "crash", "r04-c01": "keep"}, {"r04-c01": 0.99})
    report.write_all(run.history(), run.layout)
    page = _Page(run.layout.report_html.read_text())
    tags = [tag for tag, _ in page.seen]
    assert "script" not in tags
    assert tags.count("img") == 1
    image = next(attributes["src"] for tag, attributes in page.seen if tag == "img")
    assert image is not None
    assert image.startswith("data:image/png;base64,")
    assert not [a for _, a in page.seen for name in ("href", "src") if (a.get(name) or "data:").startswith("http")]
    assert evil in page.text
    assert "<img src=x onerror=y>" in page.text
    assert "ValueError: a <bad> value" in page.text
    assert tags.count("details") == 15
    assert "0.990000" in page.text


def test_report_html_tells_gains_with_their_noise(told: FakeRun) -> None:
    report.write_all(told.history(), told.layout)
    page = _Page(told.layout.report_html.read_text())
    for words in (
        "r01-c00, 3 trials, noise 0.000600",  # the incumbent
        "baseline 1.000000, 4 trials",
        "± 0.001500; observed +0.005200 ± 0.001250",
        "0.994800 (0.000346)",  # a mean with its standard error
        "+0.005200 ± 0.001300+0.004900",  # a winner's gain and what is expected of it
        "discard, near miss",
        "p=0.071 of K=3",
        "trials: 0.994500, 0.995100, 0.994800",
    ):
        assert words in page.text
    assert "crash, no score" not in page.text
    assert [f"r00-c00-t{i}" in page.text for i in range(5)] == [True] * 4 + [False], "a bar for every trial"


def test_a_huge_diff_is_cut(run: FakeRun) -> None:
    run.layout.diff("r00-c00").write_text("+x\n" * 1_000_000)
    report.write_all(run.history(), run.layout)
    assert run.layout.report_html.stat().st_size < 3_000_000
    assert "2,900,000 characters more in diff.patch" in run.layout.report_html.read_text()


def test_the_bars_add_up(run: FakeRun) -> None:
    report.write_all(run.history(), run.layout)
    page = _Page(run.layout.report_html.read_text())
    bars = [a for tag, a in page.seen if tag == "rect" and a["height"] == "14"]
    widths = [float(a["width"] or 0) for a in bars[:6]]
    assert widths[3] / sum(widths) == pytest.approx(300 / 485, abs=0.001)
    assert "r01-c03-t0: startup 40 s" in page.text
    assert "1 min 05 s CRASHED" in page.text


# the command


def test_report_makes_everything_again(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    runs_dir = str(run.layout.root.parent)
    assert main(["cook book", "--runs-dir", runs_dir]) == 0
    out = capsys.readouterr().out
    assert "0.998559" in out
    assert "the plan is complete" in out
    layout = run.layout
    tables = (layout.results_tsv, layout.candidates_csv, layout.trials_csv)
    for path in (*tables, layout.progress_png, layout.report_html):
        assert path.stat().st_size > 100
    before = run.layout.journal.read_bytes()
    assert main([str(run.layout.root), "--runs-dir", "nowhere"]) == 0
    assert run.layout.journal.read_bytes() == before


def test_an_unknown_run_is_one_line_with_the_runs_there_are(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    (run.layout.root.parent / "not a run").mkdir()
    assert main(["cok", "--runs-dir", str(run.layout.root.parent)]) == 2
    err = capsys.readouterr().err
    assert err.endswith("there are: cook book\n")
    assert err.count("\n") == 1


def test_a_damaged_journal_is_one_line(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    content = run.layout.journal.read_bytes().splitlines(keepends=True)
    run.layout.journal.write_bytes(b"".join([content[0], b"{torn\n", *content[2:]]))
    assert main([str(run.layout.root)]) == 1
    assert "damaged journal" in capsys.readouterr().err


def test_a_directory_that_cannot_be_written_is_one_line(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run.layout.results_tsv.mkdir()
    assert main([str(run.layout.root)]) == 2
    err = capsys.readouterr().err
    assert "cannot write" in err
    assert err.count("\n") == 1


def test_find_run_prefers_the_tag_and_knows_the_newest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none was started yet"):
        find_run(None, tmp_path / "runs")
    for index, tag in enumerate(("b", "a", "c")):
        run = FakeRun(tmp_path / "runs" / tag)
        os.utime(run.layout.journal, (index, index))
    assert [r.root.name for r in all_runs(tmp_path / "runs")] == ["c", "a", "b"]
    assert find_run(None, tmp_path / "runs").root.name == "c"
    assert find_run("a", tmp_path / "runs").root == tmp_path / "runs" / "a"
    assert find_run(str(tmp_path / "runs" / "b"), tmp_path).root.name == "b"
    with pytest.raises(ConfigError, match="there are: a, b, c"):
        find_run("d", tmp_path / "runs")
