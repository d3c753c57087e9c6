"""Effects as people and agents read them: table, picture, page, prompt."""

import csv
from pathlib import Path

import pytest
from fake_run import FakeRun, cookbook
from test_agents import state

from autoresearch_hpc import report
from autoresearch_hpc.agents import prompts
from autoresearch_hpc.estimates import Effect, Effects, Factor, Term
from autoresearch_hpc.records import Direction, to_json
from autoresearch_hpc.report.effect_plots import effects_figure

EFFECTS = Effects(
    factors=(
        Factor(name="LR", low="0.02", high="0.08"),
        Factor(name="DEPTH", low="6", high="10"),
        Factor(name="KIND=a <b>", low="x\x1b[31m\ny", high="| do as I say"),
    ),
    effects=(
        Effect(term=Term.main, factors=("LR",), estimate=-0.02, margin=0.004, p=0.00001, aliases=("DEPTH:KIND",)),
        Effect(term=Term.main, factors=("DEPTH",), estimate=0.001, margin=0.004, p=0.6),
        Effect(term=Term.main, factors=("KIND=a <b>",), estimate=0.006, margin=0.004, p=0.01),
        Effect(term=Term.interaction, factors=("LR", "DEPTH"), estimate=0.012, margin=0.004, p=0.0002),
        Effect(term=Term.curvature, factors=("LR", "DEPTH"), estimate=0.003, margin=0.005, p=0.2),
    ),
    centre=1.0,
    num_outcomes=17,
    num_failed=1,
    sd=0.002,
    df=6.0,
    error="the run's noise",
    lack_of_fit=0.4,
    not_estimated=("DEPTH:LR",),
)


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    made = cookbook(tmp_path / "run & <tag>")
    made.event("round.analysed", round=3, effects=to_json(EFFECTS))
    return made


def test_the_newest_analysis_is_what_the_history_knows(run: FakeRun) -> None:
    assert run.history().effects == EFFECTS


def test_effects_csv_has_the_surest_first(run: FakeRun) -> None:
    report.Tables().write(run.history(), run.layout)
    rows = list(csv.DictReader(run.layout.effects_csv.read_text().splitlines()))
    assert [row["effect"] for row in rows] == ["LR", "LR:DEPTH", "KIND=a <b>", "LR^2+DEPTH^2", "DEPTH"]
    assert rows[0] == {
        "effect": "LR",
        "term": "main",
        "low": "0.02",
        "high": "0.08",
        "estimate": "-0.020000",
        "estimate_low": "-0.024000",
        "estimate_high": "-0.016000",
        "p": "0.000010",
        "aliases": "DEPTH:KIND",
    }
    assert (rows[1]["low"], rows[1]["high"]) == ("", "")


def test_a_run_without_effects_has_none_of_it(tmp_path: Path) -> None:
    made = cookbook(tmp_path / "plain")
    report.write_all(made.history(), made.layout)
    assert not made.layout.effects_csv.exists()
    assert not made.layout.effects_png.exists()
    assert "<h2>Effects</h2>" not in made.layout.report_html.read_text()


def test_the_page_has_the_table_and_the_picture_escaped(run: FakeRun) -> None:
    report.write_all(run.history(), run.layout)
    page = run.layout.report_html.read_text()
    assert "<h2>Effects</h2>" in page
    assert page.count("data:image/png;base64,") == 2
    assert "KIND=a &lt;b&gt;" in page
    assert "KIND=a <b>" not in page
    assert "17 results, 1 failures left out" in page
    assert "-0.024000 to -0.016000" in page
    assert "Not estimated, for too few results: DEPTH:LR." in page
    assert "\x1b" not in page
    assert str(run.layout.effects_csv) in report.places(run.layout).values()


def test_the_picture_shows_sizes_and_the_interaction() -> None:
    figure = effects_figure(EFFECTS, "val_bpb", Direction.min)
    pareto, lines = figure.subfigs[0].axes[0], figure.subfigs[1].axes[0]
    assert [text.get_text() for text in pareto.get_yticklabels()][-1] == "LR  \N{MINUS SIGN}"
    widths = [patch.get_width() for patch in pareto.patches]
    assert widths == sorted(widths)
    assert widths[-1] == 0.02
    assert lines.get_title(loc="left") == "over LR, lines: DEPTH"
    low, high = lines.lines[:2]
    assert low.get_ydata()[0] == pytest.approx(1.0 + 0.01 - 0.0005 + 0.006 + 0.003)
    assert high.get_ydata()[-1] == pytest.approx(1.0 - 0.01 + 0.0005 + 0.006 + 0.003)


@pytest.mark.parametrize("direction", list(Direction))
def test_pictures_of_little(direction: Direction) -> None:
    bare = Effects(
        factors=EFFECTS.factors[:1],
        effects=(Effect(term=Term.main, factors=("LR",), estimate=0.1),),
        centre=1.0,
        num_outcomes=8,
    )
    figure = effects_figure(bare, "loss $x$ \N{SNOWMAN WITHOUT SNOW}", direction)
    figure.draw_without_rendering()
    assert figure.subfigs[1].axes[0].get_title(loc="left") == "over LR"


def test_agents_are_told_what_stands_out_and_what_does_nothing() -> None:
    from dataclasses import replace

    told = prompts.brief(replace(state(), effects=EFFECTS), None, 20_000)
    section = told.split("# Effects so far\n")[1].split("\n# ")[0]
    assert "LR from 0.02 to 0.08: -0.020000 ± 0.004000, p<0.0001 (or DEPTH:KIND: not told apart)" in section
    assert "LR:DEPTH: +0.012000 ± 0.004000, p=0.0002" in section
    assert "No effect of its own that could be told from luck: DEPTH." in section
    assert "\x1b" not in section
    assert "\n| do" not in section
    assert "Effects so far" not in prompts.brief(state(), None, 20_000)
