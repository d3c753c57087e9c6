"""What `python -m autoresearch_hpc.plan` says of a configuration."""

from pathlib import Path

import pytest

from autoresearch_hpc.plan import main


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two plans of its own, far from the package's."""
    here = tmp_path / 'a "repo" of Zoë\'s'
    (here / "conf" / "round").mkdir(parents=True)
    (here / "conf" / "round" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /agent: grid\n"
        "plan:\n"
        "  name: mine\n"
        "  description: Two rounds of mine\n"
        "  k: 3\n"
        "  base: {DEPTH: 4}\n"
        "  rounds:\n"
        "    - candidates:\n"
        '        - {title: "warm [bold]up", knobs: {WARMUP_RATIO: 0.1}}\n'
        "        - {parent: baseline, knobs: {DEPTH: 5, MATRIX_LR: 0.05}}\n"
        "        - {}\n"
        "    - k: 5\n"
        "space:\n"
        "  knobs:\n"
        "    DEPTH: {choices: [2, 4]}\n"
        "    MATRIX_LR: {type: float, low: 0.01, high: 0.1, log: true, points: 4}\n"
        '  bounds: ["DEPTH > 1"]\n'
    )
    monkeypatch.chdir(here)
    monkeypatch.setenv("COLUMNS", "80")
    return here


def _plan(capsys: pytest.CaptureFixture[str], *overrides: str) -> list[str]:
    assert main(["+round=mine", *overrides]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return [line.rstrip() for line in out.splitlines()]


def test_rounds_space_time_and_cost(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = _plan(capsys, "cluster=slurm", "cluster.price_per_gpu_hour=2", "cluster.partition=gpu")
    assert lines[0] == "mine: Two rounds of mine"
    assert lines[4:9] == [
        "    0  1  baseline, 3 trials: DEPTH=4",
        "    1  3  warm [bold]up",
        "          DEPTH=5, MATRIX_LR=0.05 (on baseline)",
        "          replicate",
        "    2  5  proposed by grid",
    ]
    text = "\n".join(lines)
    assert "DEPTH      2, 4" in text
    assert "MATRIX_LR  0.01 to 0.1 (float, log)" in text
    assert "bound: DEPTH > 1" in text
    assert "grid: 8 settings" in text
    assert "trial         5 min 00 s of training, at most 21 min 00 s in all, one GPU" in text
    assert "trials        11 in 3 rounds, all of a round at once" in text
    # look 1: 3 candidates once and 2 controls; look 2: 1 candidate 3 times, 1 control; a new incumbent: 2 controls
    assert "looks         with controls, at most 11 further trials a round, 20 in all" in text
    assert "GPU hours     0.92 of training, at most 10.85" in text  # (11 + 20) x 21 min
    assert "cost          $1.83 of training, at most $21.70 at $2.00 per GPU hour" in text
    assert "wall time     15 min 00 s of training, at most 2 h 27 min" in text  # 7 arrays of 21 min
    assert "decision      significant, alpha=0.05, min_delta=0" in text
    assert "--partition=gpu --gpus-per-node=1 --time=" in text
    assert "budget        no limits" in text
    assert "warning: the grid has 8 settings, the plan has room for 5" in text
    assert max(map(len, lines)) <= 80


def test_warnings(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(
        _plan(
            capsys, "cluster=slurm", "cluster.max_parallel=2", "cluster.gpus=null", "cluster.time_min=5",
            "budget.usd=1", "budget.max_trials=4", "budget.gpu_hours=0.5", "agent=random",
        )
    )  # fmt: skip
    assert "5 trials a round, 2 at once: a round takes 3 waves" in text
    assert "no GPU is asked for" in text
    assert "cluster.time_min=5 is shorter than a trial's limits, 21 min" in text
    assert "budget.usd has no effect without cluster.price_per_gpu_hour" in text
    assert "budget.max_trials=4 ends the run before its 11 trials" in text
    assert "budget.gpu_hours=0.5 may end the run early: at most 10.85 would be used" in text
    assert "the grid has" not in text.partition("trial  ")[2]
    # 2 + 2 + 3 waves; with looks: the last array has 2 controls, then 5 and 4 trials in either round
    assert "wall time     35 min 00 s of training, at most 6 h 18 min" in text


def test_trials_that_are_taken_at_face_value_have_no_looks(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(_plan(capsys, "decide=best", "cluster=slurm"))
    assert "0  1  baseline: DEPTH=4" in text
    assert "trials        9 in 3 rounds, all of a round at once" in text
    assert "looks" not in text
    assert "GPU hours     0.75 of training, at most 3.15" in text
    assert "wall time     15 min 00 s of training, at most 1 h 03 min" in text
    assert "decision      best, min_delta=0" in text


@pytest.mark.parametrize(
    ("overrides", "looks"),
    [
        (["decide.looks=[]"], "at most 2 further trials a round, 2 in all"),
        (["decide.replicates=1"], "at most 10 further trials a round, 20 in all"),
        (["decide.incumbent_trials=3"], "at most 8 further trials a round, 14 in all"),
        (
            ["decide.simplify=true"],
            "at most 15 further trials a round, 27 in all",
        ),  # one candidate more in each look, if there is
        (["plan.baseline=joined"], "at most 11 further trials a round, 20 in all"),
    ],
)
def test_what_looks_may_ask_for(
    overrides: list[str], looks: str, repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [line] = [line for line in _plan(capsys, *overrides, "cluster=slurm") if line.startswith("looks")]
    assert line == f"looks         with controls, {looks}"


def test_a_budget_that_has_room_for_the_plan_but_not_for_all_looks(
    repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for trials, words in ((11, "may end the run early: with all looks it has 31 trials"), (31, "")):
        text = " ".join(_plan(capsys, "cluster=slurm", f"budget.max_trials={trials}", "agent=random"))
        said = text.partition(f"warning: budget.max_trials={trials} ")[2]
        assert said == words


def test_nothing_to_warn_of(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = _plan(capsys, "cluster=slurm", "cluster.gpus=null", "cluster.gres=gpu:h100:1", "agent=random")
    assert not [line for line in lines if line.startswith("warning")]
    assert any("--gres=gpu:h100:1" in line for line in lines)


def test_a_joined_baseline_is_counted_in_round_0(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = _plan(capsys, "plan.baseline=joined", "cluster=slurm")
    assert lines[4:6] == ["    0  4  baseline, 3 trials: DEPTH=4", "          warm [bold]up"]
    assert any(line.startswith("trials        11 in 2 rounds") for line in lines)


def test_a_baseline_and_nothing_else(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = _plan(capsys, "plan.max_rounds=0", "cluster=slurm")
    assert any(line.startswith("trials        3 in 1 round,") for line in lines)
    assert not [line for line in lines if line.startswith("looks")]


def test_many_rounds_are_cut_in_the_middle(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = _plan(capsys, "plan.max_rounds=100", "cluster=slurm")
    shown = [line.split()[0] for line in lines if "proposed by grid" in line or line.strip() == "..."]
    assert shown == ["2", "3", "4", "5", "6", "7", "8", "...", "100"]
    assert any(line.startswith("trials        501 in 101 rounds") for line in lines)


def test_this_machine_has_no_sbatch_line(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = _plan(capsys, "cluster=local", "cluster.max_parallel=1", "task.device=cpu")
    assert any(line.startswith("cluster       this machine") for line in lines)
    assert not [line for line in lines if line.startswith("sbatch")]
    assert any(line.endswith("in all, CPU") for line in lines)


# several kinds of GPU

TWO_TIERS = (
    "tiers:\n"
    "  h100: {gres: 'gpu:h100:1', max_parallel: 2, price_per_gpu_hour: 2.0, partition: big}\n"
    "  h200: {gres: 'gpu:h200:1', max_parallel: 1, price_per_gpu_hour: 3.0}\n"
)


@pytest.fixture
def tiers(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a cluster of two kinds of GPU."""
    monkeypatch.setenv("COLUMNS", "200")
    (repo / "conf" / "cluster").mkdir()
    (repo / "conf" / "cluster" / "both.yaml").write_text(f"kind: slurm\ngpus: null\n{TWO_TIERS}")
    return repo


def test_a_validation_is_counted_and_priced_at_its_tier(tiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(_plan(capsys, "cluster=both", "plan.validate.top=2", "plan.validate.seeds=2", "agent=random"))
    assert "trials        11 in 3 rounds, 2 at once" in text
    assert "tier          h100: candidates are tried, 2 GPUs at once, $2.00 per GPU hour" in text
    assert "tier          h200: the best 2 of a round again, 2 seeds each, 1 GPU at once, $3.00 per GPU hour" in text
    assert "looks         with controls, at most 2 further trials a round, 2 in all" in text, "no looks but controls"
    # the baseline 3; each round 2 x 2, 2 controls, and 3 of a new incumbent
    assert "validation    at most 21 trials of the best, the incumbent among them" in text
    assert "GPU hours     0.92 of training, at most 11.90" in text  # (11 + 2 + 21) x 21 min
    assert "cost          $1.83 of training, at most $31.15\n" in text  # 13 x 0.70 + 21 x 1.05
    assert "sbatch        h100: --partition=big --gres=gpu:h100:1 --time=" in text
    assert "sbatch        h200: --gres=gpu:h200:1 --time=" in text
    assert "--array=0-(K-1)%2" in text
    assert "--array=0-(K-1)%1" in text
    assert "warning: no GPU" not in text


def test_a_tier_that_the_plan_does_not_use_is_not_told(tiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(_plan(capsys, "cluster=both", "plan.screen=h200"))
    assert "tier          h200: candidates are tried, 1 GPU at once, $3.00 per GPU hour" in text
    assert "h100" not in text.replace("tiers h100, h200", "")
    assert "validation" not in text
    assert "looks         with controls, at most 11 further trials a round, 20 in all" in text
    assert "at most $32.55 at $3.00 per GPU hour" in text  # 31 x 1.05


def test_a_round_that_spreads_costs_at_most_the_dearest(tiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(_plan(capsys, "cluster=both", "tiers=any", "schedule=async", "agent=random"))
    assert "trials        11 in 3 rounds, 3 at once" in text
    assert "tier          h100: candidates are tried, 2 GPUs at once" in text
    assert "tier          h200: candidates are tried, 1 GPU at once" in text
    assert "at most $32.55\n" in text
    assert "schedule      async: a slot that comes free is filled with a candidate of the next round" in text


def test_a_validation_may_end_the_run_early(tiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("cluster=both", "plan.validate.top=2", "agent=random")
    text = "\n".join(_plan(capsys, *given, "budget.usd=31", "budget.gpu_hours=11.8", "budget.max_trials=33"))
    assert "budget.usd=31 may end the run early: it may cost up to $31.15" in text
    assert "budget.gpu_hours=11.8 may end the run early: at most 11.90 would be used" in text
    assert "budget.max_trials=33 may end the run early" in text
    text = "\n".join(_plan(capsys, *given, "budget.usd=31.2", "budget.gpu_hours=12", "budget.max_trials=34"))
    assert "may end the run early" not in text
    assert "budget.usd has no effect" not in text, "tiers have prices, though the cluster has none"


def test_the_packages_tiers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["+round=tiers", "cluster=two_tiers"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "trials        159 in 13 rounds, 13 at once" in lines
    assert "tier          h100: candidates are tried, 13 GPUs at once, $2.00 per GPU hour" in lines
    assert "tier          h200: the best 3 of a round again, 2 seeds each, 3 GPUs at once, $3.00 per GPU hour" in lines
    assert "validation    at most 135 trials of the best, the incumbent among them" in lines
    assert main(["+round=tiers"]) == 2
    assert "validates on a second kind of GPU, and the cluster has one" in capsys.readouterr().err


@pytest.mark.parametrize("plan", ["quickstart", "linear", "cookbook", "knobs", "width"])
def test_every_plan_of_the_package_can_be_shown(
    plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    assert main([f"+round={plan}", "cluster=slurm"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"{plan}: ")
    assert max(map(len, out.splitlines())) <= 80


def test_nothing_is_touched(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(repo.rglob("*"))
    _plan(capsys, "runs_dir=runs")
    assert sorted(repo.rglob("*")) == before


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "+round=quickstart"),
        (["+round=mien"], "did you mean +round=mine?"),
        (["+round=mine", "plan.k=0"], "at least one candidate"),
        (["+round=mine", "task.trian_s=3"], "did you mean task.train_s?"),
        (["+round=mine", "space.bounds=['DEPTH >']"], "DEPTH >"),
    ],
)
def test_wrong_input_is_one_line(
    overrides: list[str], said: str, repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(overrides) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_who_edits_the_code_and_what_that_may_cost(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(_plan(capsys, "agent=llm", "agent.model=m", "budget.llm_usd=5"))
    assert "agent         m at https://api.openai.com/v1\n" in text
    assert "budget        llm_usd=5" in text
    assert "budget.llm_usd has no effect without agent.usd_per_million_in and _out" in text
    text = "\n".join(_plan(capsys, "agent=hybrid", "agent.drafter=cli", "agent.cli.command=[codex,exec]"))
    assert "agent         codex for 30% of the slots, gp the others\n" in text
