"""What a trial is told."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoresearch_hpc.config import KnobsBy, MetricConfig, Sandbox, TaskConfig, TaskKind
from autoresearch_hpc.files import read_json, sha256_text
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.records import Candidate, Direction, KnobValue, Proposal, TrialSpec, from_json
from autoresearch_hpc.specs import SpecWriter, fill, harness_sha256, metric, plain, trial_seed

CANDIDATE = Candidate(
    id="r01-c00", round=1, proposal=Proposal(title="x"), parent="a" * 40, commit="b" * 40,
    knobs={"LR": 0.5, "BETAS": (0.9, (1, 2)), "NAME": "it's; rm -rf $HOME", "ON": True},
)  # fmt: skip


def writer(root: Path, **task: Any) -> SpecWriter:
    layout = RunLayout(root / "runs 'ü'" / "tag")
    src = layout.src("r01-c00")
    src.mkdir(parents=True, exist_ok=True)
    (src / "train.py").write_text("LR = 0.5\n")
    return SpecWriter(
        tag="tag", seed=1, task=TaskConfig(**task), layout=layout, num_threads=2, data_dir=root / "data",
        data_sha256="d" * 64,
    )  # fmt: skip


def command(line: str, **task: Any) -> dict[str, Any]:
    return {"kind": TaskKind.command, "command": line, "metric": MetricConfig(name="acc", regex="(.)"), **task}


def test_a_spec_is_all_that_a_worker_needs(tmp_path: Path) -> None:
    made = writer(tmp_path, train_s=7.0, pass_env=["MY_*"], sandbox=Sandbox.require, stage="$X", stage_limit_s=9.0)
    spec = made.write(CANDIDATE, "r01-c00-t1", "h100")
    assert from_json(TrialSpec, read_json(made.layout.trial("r01-c00-t1").spec)) == spec
    assert (spec.run, spec.round, spec.candidate, spec.trial) == ("tag", 1, "r01-c00", "r01-c00-t1")
    assert (spec.commit, spec.kind, spec.device, spec.train_s, spec.num_threads) == ("b" * 40, "gpt", "cuda", 7.0, 2)
    assert (spec.data_dir, spec.data_sha256) == (str(tmp_path / "data"), "d" * 64)
    assert spec.src_sha256 == {"train.py": sha256_text("LR = 0.5\n")}
    assert spec.harness_sha256 == harness_sha256()
    assert spec.command is None
    assert (spec.metric.name, spec.metric.value, spec.metric.direction) == ("val_bpb", None, Direction.min)
    assert Path(spec.trial_dir) == made.layout.trial("r01-c00-t1").root
    assert Path(spec.src) == made.layout.src("r01-c00")
    assert spec.submitted_at
    assert spec.inbox == str(made.layout.inbox)
    assert (spec.pass_env, spec.sandbox) == (("MY_*",), "require")
    assert (spec.stage, spec.stage_limit_s) == ("$X", 9.0)


def test_seeds_differ_and_are_stable() -> None:
    seeds = {
        trial_seed(seed, f"r{r:02d}-c{c:02d}-t{t}")
        for seed in range(3)
        for r in range(5)
        for c in range(9)
        for t in (0, 1)
    }
    assert len(seeds) == 3 * 5 * 9 * 2
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert trial_seed(0, "r00-c00-t0") == 806245561
    assert trial_seed(1, "1/r") != trial_seed(11, "/r")


def test_a_trial_written_again_keeps_its_seed(tmp_path: Path) -> None:
    made = writer(tmp_path)
    first = made.write(CANDIDATE, "r01-c00-t0", "h100")
    again = made.write(CANDIDATE, "r01-c00-t0", "h100")
    assert replace(again, submitted_at=None) == replace(first, submitted_at=None)
    assert made.write(CANDIDATE, "r01-c00-t1", "h100").seed != first.seed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.5"),
        (1e-20, "1e-20"),
        (3, "3"),
        ("a b", "a b"),
        (True, "True"),
        ((1, (2, "x")), "1,2,x"),
        (None, "None"),
    ],
)
def test_values_as_text(value: KnobValue, text: str) -> None:
    assert plain(value) == text


def test_a_template_is_filled_with_shell_words() -> None:
    line = fill("python fit.py --lr {LR} --name {NAME} -b{BETAS} '{\"x\": {y}}' {lr} ${HOME} {}", CANDIDATE.knobs)
    assert line == ("python fit.py --lr 0.5 --name 'it'\"'\"'s; rm -rf $HOME' -b0.9,1,2 '{\"x\": {y}}' {lr} ${HOME} {}")


def test_a_value_is_never_a_template_itself() -> None:
    assert fill("{A} {B}", {"A": "{B}", "B": 1}) == "'{B}' 1"


def test_knobs_by_template_by_environment_and_by_rewriting(tmp_path: Path) -> None:
    by_template = writer(tmp_path, **command("fit {LR}", knobs_by=KnobsBy.template)).write(
        CANDIDATE, "r01-c00-t0", "h100"
    )
    assert by_template.command
    assert (by_template.command.command, dict(by_template.command.env)) == ("fit 0.5", {})
    task = command("fit {LR}", knobs_by=KnobsBy.env, env={"A": "1", "LR": "user's default"})
    by_env = writer(tmp_path, **task).write(CANDIDATE, "r01-c00-t0", "h100")
    assert by_env.command
    assert by_env.command.command == "fit {LR}"
    assert by_env.command.env == {
        "A": "1", "LR": "0.5", "BETAS": "0.9,1,2", "NAME": "it's; rm -rf $HOME", "ON": "True",
    }  # fmt: skip
    by_rewriting = writer(tmp_path, **command("fit {LR}", env={"A": "1"})).write(CANDIDATE, "r01-c00-t0", "h100")
    assert by_rewriting.command
    assert (by_rewriting.command.command, by_rewriting.command.env) == ("fit {LR}", {"A": "1"})
    assert (by_rewriting.metric.name, by_rewriting.command.metric_regex) == ("acc", "(.)")


def test_a_metrics_key_is_its_name_unless_said_otherwise(tmp_path: Path) -> None:
    for key, expected in ((None, "acc"), ("val.acc", "val.acc")):
        task = command("fit", metric=MetricConfig(name="acc", json="m.json", key=key, direction=Direction.max))
        spec = writer(tmp_path, **task).write(CANDIDATE, "r01-c00-t0", "h100")
        assert spec.command
        assert spec.command.metric_key == expected
        assert metric(TaskConfig(**task)).direction is Direction.max
