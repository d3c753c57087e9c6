"""The table on a terminal: what it shows, how often it draws, and that the terminal is left as it was."""

import io
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_run import FakeRun, on_two_tiers, told_from_luck
from rich.console import Console

from autoresearch_hpc.config import Config, PlanConfig
from autoresearch_hpc.live import LiveView, PlainView, open_view, screen
from autoresearch_hpc.progress import Watch
from autoresearch_hpc.records import Status
from autoresearch_hpc.report.settings import Settings, read_settings, settings_of


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path / "a run")


@pytest.fixture
def told(tmp_path: Path) -> FakeRun:
    return told_from_luck(tmp_path / "told")


@pytest.fixture
def going(run: FakeRun) -> tuple[FakeRun, list[str]]:
    """A run in round 1: one result, one failure, one training, one waiting."""
    run.round([("baseline", 1.010748, "keep")])
    trials = run.propose(["first", "second", "third [red]", "fourth"])
    run.wait(100)
    run.done(trials[0], 1.002310)
    run.done(trials[1], None, Status.OOM)
    run.claim(trials[2], "train", ago_s=90)
    return run, trials


def _text(run: FakeRun, width: int = 80, max_rows: int | None = None, **states: str) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    settings = read_settings(run.layout.config)
    names = {name.replace("_", "-"): word for name, word in states.items()}
    with console.capture() as capture:
        console.print(screen(run.history(), settings, Watch(run.layout), names, run.now, max_rows))
    return capture.get()


def test_the_screen_shows_states_times_values_best_and_budget(going: tuple[FakeRun, list[str]]) -> None:
    text = _text(going[0], r01_c03_t0="PENDING")
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[0] == "a run: round 1 of 3, 2 of 4 trials done"
    assert lines[1].split() == ["candidate", "state", "time/limit", "trials", "val_bpb", "title"]
    assert lines[3].split() == ["r01-c00", "OK", "8:00", "1/1", "1.002310", "first"]
    assert lines[4].split() == ["r01-c01", "OOM", "1:00", "1/1", "second"]
    assert lines[5].split() == ["r01-c02", "training", "1:30/21:00", "0/1", "third", "[red]"]
    assert lines[6].split() == ["r01-c03", "queued", "1:40", "0/1", "fourth"]
    assert lines[7] == "best so far: 1.010748 (r00-c00, 1 trial)"
    assert lines[8] == "not yet judged: 1.002310 (r01-c00, 1 trial)"
    assert lines[9] == "used: 3 of 40 trials, 0.28 GPU hours, $0.57 of $10.00, 0.19 of 2 h wall time"
    assert max(map(len, lines)) <= 80


def test_before_the_first_round_and_with_the_baseline_alone(run: FakeRun) -> None:
    assert _text(run).startswith("a run: the first round is being proposed\nbest so far: no val_bpb yet\n")
    run.propose(["baseline"])
    assert _text(run).startswith("a run: baseline, 0 of 1 trial done\n")


def test_a_look_shows_what_runs_again_and_what_the_numbers_stand_on(told: FakeRun) -> None:
    """In the third round: the winner of the second is the incumbent, and is run again beside a look."""
    [trial] = told.propose(["one more"])
    told.done(trial, 0.9900)
    told.event("trials.wanted", round=3, stage="look 1", trials={"r03-c00": 1, "r01-c00": 2})
    for again in ("r03-c00-t1", "r01-c00-t3", "r01-c00-t4"):
        told.event("submit.intent", round=3, job_name="ar-3-1", trials=[again])
        told.event("submit.done", round=3, job_name="ar-3-1", jobs={again: "9"})
    told.done("r01-c00-t3", 0.9948)
    told.claim("r03-c00-t1", "train", ago_s=30)
    lines = [line.rstrip() for line in _text(told).splitlines()]
    assert lines[0] == "told: round 3 of 3, look 1, 2 of 4 trials done"
    assert lines[3].split() == ["r03-c00", "training", "0:30/21:00", "1/2", "0.990000", "one", "more"]
    assert lines[4].split() == ["r01-c00", "queued", "0:00", "1/2", "0.994800", "the", "incumbent,", "again"]
    assert lines[5:8] == [
        "best so far: 0.994800 (r01-c00, 4 trials, noise 0.000600), baseline 1.000000",
        "not yet judged: 0.990000 (r03-c00, 1 trial)",
        "kept r01-c00: +0.005200 ± 0.001300, expected +0.004900",
    ]
    assert lines[8].startswith("used: 14 of 40 trials")
    assert max(map(len, lines)) <= 80


def test_the_candidates_of_all_open_rounds_are_shown_of_earlier_ones_those_that_run(tmp_path: Path) -> None:
    run = on_two_tiers(tmp_path / "tiers")
    assert [line.split()[0] for line in _text(run).splitlines()[3:5]] == ["r03-c00", "best"]
    run.event("trials.wanted", round=2, stage="again", tier="h200", trials={"r02-c01": 1, "r01-c00": 1})
    run.event("submit.intent", round=2, job_name="x", tier="h200", trials=["r02-c01-t1"])
    lines = [line.split() for line in _text(run).splitlines()[3:6]]
    assert lines[0] == ["r02-c01", "submitting", "1/2", "0.999000", "b"]
    assert lines[1][4:] == ["0.945000", "the", "incumbent,", "again"], "of h200 alone: no mean of two kinds"
    assert lines[1][0] == "r01-c00"
    assert lines[2][0] == "r03-c00"
    for round_ in (2, 3):
        run.event("round.closed", round=round_)
    rows = _text(run).splitlines()[3:]
    assert [row.split()[0] for row in rows if row.startswith("r0")] == ["r03-c00"], "without an open one the newest"


def test_the_baselines_replicates_are_counted(run: FakeRun) -> None:
    run.propose(["baseline"])
    run.event("trials.wanted", round=0, stage="array", trials={"r00-c00": 2})
    run.done("r00-c00-t0", 1.0)
    text = _text(run)
    assert text.startswith("a run: baseline, 1 of 3 trials done\n")
    assert "not yet judged: 1.000000 (r00-c00, 1 trial)" in text


def test_a_round_that_is_taller_than_the_terminal_keeps_what_runs(run: FakeRun) -> None:
    trials = run.propose([f"title {i}" for i in range(40)])
    for trial in trials[:30]:
        run.done(trial, 1.0)
    for trial in trials[30:33]:
        run.claim(trial, "train")
    text = _text(run, max_rows=6)
    rows = [line for line in text.splitlines() if line.startswith("r00-")]
    assert len(rows) == 5
    assert sum("training" in row for row in rows) == 3
    assert "and 35 more" in text


def test_nothing_is_used_up_where_nothing_is_limited(run: FakeRun) -> None:
    run.layout.config.unlink()
    run.round([("baseline", 1.0, "keep")])
    assert "used: 1 trial, 0.13 GPU hours, 10 min 00 s wall time" in _text(run)


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def terminal() -> Console:
    return Console(width=80, height=24, file=io.StringIO(), force_terminal=True, color_system=None, stderr=True)


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    logger = logging.getLogger("autoresearch_hpc")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield logger
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def _output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_it_draws_at_most_four_times_a_second(going: tuple[FakeRun, list[str]], terminal: Console) -> None:
    clock = _Clock()
    view = LiveView(going[0].layout, Settings(), terminal, clock)
    history = going[0].history()
    for step in range(101):
        clock.now = step * 0.01
        view.update(history, {})
    assert 4 <= _output(terminal).count("candidate  state") <= 5
    view.close()


def test_a_result_appears_with_the_next_drawing(going: tuple[FakeRun, list[str]], terminal: Console) -> None:
    run, trials = going
    clock = _Clock()
    view = LiveView(run.layout, Settings(), terminal, clock)
    view.update(run.history(), {})
    run.done(trials[2], 0.987654)
    clock.now += 0.3
    view.update(run.history(), {})
    assert "0.987654" in _output(terminal)
    view.close()
    view.close()


def test_the_cursor_is_back_and_the_table_gone_when_closed(going: tuple[FakeRun, list[str]], terminal: Console) -> None:
    view = LiveView(going[0].layout, Settings(), terminal, _Clock())
    view.update(going[0].history(), {})
    assert "\x1b[?25l" in _output(terminal)  # hidden
    view.close()
    assert _output(terminal).rindex("\x1b[?25h") > _output(terminal).rindex("\x1b[?25l")
    assert _output(terminal).endswith("\x1b[2K")


def test_closing_a_view_that_never_drew_writes_nothing(run: FakeRun, terminal: Console) -> None:
    LiveView(run.layout, Settings(), terminal).close()
    assert _output(terminal) == ""


def test_log_lines_stay_off_the_screen_while_warnings_show_above_the_table(
    going: tuple[FakeRun, list[str]], terminal: Console, log: logging.Logger, tmp_path: Path
) -> None:
    screen_handler = logging.StreamHandler()
    file_handler = logging.FileHandler(tmp_path / "controller.log")
    log.handlers[:] = [screen_handler, file_handler]
    log.setLevel(logging.INFO)
    view = LiveView(going[0].layout, Settings(), terminal, _Clock())
    view.update(going[0].history(), {})
    stream = screen_handler.stream
    log.info("an ordinary line")
    log.warning("a [b]warning[/b]")
    view.note("asking the cluster [to cancel]")
    view.close()
    file_handler.close()
    out = _output(terminal)
    assert "an ordinary line" not in out
    assert "a [b]warning[/b]" in out
    assert "asking the cluster [to cancel]" in out
    assert (tmp_path / "controller.log").read_text() == "an ordinary line\na [b]warning[/b]\n"
    assert (screen_handler.level, screen_handler.stream) == (logging.NOTSET, sys.stderr)
    assert stream is not sys.stderr


def test_without_a_terminal_only_notes_are_logged(run: FakeRun, caplog: pytest.LogCaptureFixture) -> None:
    view = open_view(Config(plan=PlanConfig(name="p")), run.layout, shared=True)
    assert isinstance(view, PlainView)
    with caplog.at_level(logging.INFO, "autoresearch_hpc"):
        view.update(run.history(), {})
        view.note("100 % done")
        view.close()
    assert caplog.messages == ["100 % done"]


@pytest.mark.parametrize(("term", "kind"), [("xterm", "LiveView"), ("dumb", "PlainView")])
def test_a_terminal_gets_the_table(run: FakeRun, term: str, kind: str) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom autoresearch_hpc import history, journal, layout, live\n"
        "from autoresearch_hpc.config import Config, PlanConfig\n"
        "l = layout.RunLayout(Path(sys.argv[1]))\n"
        "view = live.open_view(Config(plan=PlanConfig(name='p')), l, shared=True)\n"
        "view.update(history.History.replay(journal.read(l.journal)), {})\nview.close()\nprint(type(view).__name__)"
    )
    run.propose(["the baseline"])
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(run.layout.root)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "TERM": term, "COLUMNS": "80", "LINES": "24"},
    )
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
    except OSError:  # Linux says so when the other side is closed
        pass
    os.close(ours)
    assert done.stdout == f"{kind}\n"
    assert (re.search(rb"r00-c00 .*the baseline", seen) is not None) == (kind == "LiveView")


def test_settings_of_a_configuration_are_those_of_its_file(run: FakeRun) -> None:
    from omegaconf import OmegaConf

    config = Config(plan=PlanConfig(name="p", description="d", max_rounds=7))
    run.layout.config.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    assert read_settings(run.layout.config) == settings_of(config)
    config = Config(plan=PlanConfig(name="p"))
    config.task.eval_limit_s, config.budget.usd, config.cluster.price_per_gpu_hour = 12.5, 3.0, 1.5
    run.layout.config.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    assert read_settings(run.layout.config) == settings_of(config)
