"""The schema: what is possible, and what is refused in one line."""

import dataclasses
from typing import Any

import pytest
from omegaconf import OmegaConf

from autoresearch_hpc import config as schema
from autoresearch_hpc.complaints import did_you_mean
from autoresearch_hpc.config import (
    Baseline,
    BudgetConfig,
    CandidateConfig,
    ClusterConfig,
    Config,
    CorpusConfig,
    DecideConfig,
    KnobDomain,
    KnobType,
    MetricConfig,
    PlanConfig,
    RoundConfig,
    Sandbox,
    TaskConfig,
    TaskKind,
)
from autoresearch_hpc.entry import compose, load
from autoresearch_hpc.errors import ConfigError


def refused(make: Any, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make(**settings)
    text = str(caught.value)
    assert "\n" not in text
    assert "; " in text, "a cause and a remedy"
    return text


def domain(kind: str, **settings: Any) -> dict[str, Any]:
    return {"type": KnobType(kind), **settings}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (domain("float", low=2, high=1), "upside down: low 2 is not below high 1"),
        (domain("float", low=1, high=1), "upside down"),
        (domain("float", low=1), "a range of 1 to None"),
        (domain("float", low="1", high=2), "a range of '1' to 2"),
        (domain("float", low=True, high=2), "a range of True to 2"),
        (domain("float", low=1, high=float("inf")), "a range of 1 to inf"),
        (domain("int", low=float("nan"), high=2), "a range of nan to 2"),
        (domain("float", low=0, high=1, log=True), "a logarithmic range from 0"),
        (domain("int", low=1.5, high=3), "a whole-number range of 1.5 to 3"),
        (domain("pow2", low=3, high=8), "a pow2 range that ends at 3"),
        (domain("pow2", low=0, high=8), "a pow2 range that ends at 0"),
        (domain("float", low=1, high=2, points=1), "points: 1"),
        (domain("choice"), "a choice knob without choices"),
    ],
)
def test_domains_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    assert words in refused(KnobDomain, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        domain("float", low=-1, high=1),
        domain("int", low=1.0, high=2.0, log=True),
        domain("pow2", low=1, high=2**21),
        domain("choice", choices=[None]),
    ],
)
def test_domains_that_can(settings: dict[str, Any]) -> None:
    assert KnobDomain(**settings).points == 3


COMMAND = {"kind": TaskKind.command, "command": "x"}


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (PlanConfig, {"k": 0}, "plan.k=0"),
        (PlanConfig, {"max_rounds": -1}, "plan.max_rounds=-1"),
        (RoundConfig, {"k": 0}, "k: 0"),
        (RoundConfig, {"k": 1, "candidates": [CandidateConfig()]}, "both k: 1 and candidates"),
        (PlanConfig, {"rounds": [RoundConfig(candidates=[CandidateConfig(name="a")] * 2)]}, "name a is used twice"),
        (TaskConfig, {"train_s": 0.0}, "task.train_s=0.0"),
        (TaskConfig, {"grace_s": -1.0}, "task.grace_s=-1.0"),
        (TaskConfig, {"eval_tokens": 0}, "task.eval_tokens=0"),
        (TaskConfig, {"pass_env": ["FINE", "MY-VAR"]}, "task.pass_env: 'MY-VAR' names no environment variable"),
        (TaskConfig, {"pass_env": ["*"]}, "task.pass_env: '*' names no"),
        (TaskConfig, {"pass_env": ["A*B"]}, "task.pass_env: 'A*B' names no"),
        (TaskConfig, {"pass_env": ["A=b"]}, "task.pass_env: 'A=b' names no"),
        (TaskConfig, {"kind": TaskKind.command}, "without task.command"),
        (TaskConfig, {**COMMAND, "sandbox": Sandbox.require}, "task.sandbox=require, but a command is never shut in"),
        (TaskConfig, COMMAND, "the metric needs one source"),
        (TaskConfig, {**COMMAND, "metric": MetricConfig(json="a", regex="(b)")}, "the metric needs one source"),
        (TaskConfig, {**COMMAND, "metric": MetricConfig(regex="(")}, "is no regular expression"),
        (TaskConfig, {**COMMAND, "metric": MetricConfig(regex="a")}, "has 0 groups"),
        (TaskConfig, {**COMMAND, "metric": MetricConfig(regex="(a)(b)")}, "has 2 groups"),
        (CorpusConfig, {"vocab_size": 100}, "corpus.vocab_size=100"),
        (CorpusConfig, {"vocab_size": 65537}, "corpus.vocab_size=65537"),
        (CorpusConfig, {"seq_len": 7}, "corpus.seq_len=7"),
        (ClusterConfig, {"max_parallel": 0}, "cluster.max_parallel=0"),
        (ClusterConfig, {"gpus": 1, "gres": "gpu:1"}, "both ask for GPUs"),
        (ClusterConfig, {"gpus": -1}, "cluster.gpus=-1"),
        (ClusterConfig, {"cpus": 0}, "cluster.cpus=0"),
        (ClusterConfig, {"mem_gb": 0.0}, "cluster.mem_gb=0.0"),
        (ClusterConfig, {"time_min": 0}, "cluster.time_min=0"),
        (ClusterConfig, {"poll_s": 0.0}, "cluster.poll_s=0.0"),
        (ClusterConfig, {"queue_poll_s": 0.0}, "cluster.queue_poll_s=0.0"),
        (ClusterConfig, {"max_retries": -1}, "cluster.max_retries=-1"),
        (ClusterConfig, {"price_per_gpu_hour": -1.0}, "cluster.price_per_gpu_hour=-1.0"),
        (DecideConfig, {"min_delta": -0.1}, "decide.min_delta=-0.1"),
        (BudgetConfig, {"usd": 0.0}, "budget.usd=0.0"),
    ],
)
def test_values_that_cannot_be(make: Any, settings: dict[str, Any], words: str) -> None:
    assert words in refused(make, **settings)


def test_the_rounds_of_a_plan() -> None:
    one, two = RoundConfig(candidates=[CandidateConfig()] * 3), RoundConfig(k=7)
    plan = PlanConfig(name="p", rounds=[one, two])
    assert (plan.first_round, plan.num_rounds) == (1, 2)
    assert (plan.round(1), plan.round(2), plan.round(9)) == (one, two, two)
    assert [plan.num_candidates(i) for i in (1, 2, 3)] == [3, 7, 7]
    with pytest.raises(ValueError, match="the baseline runs alone"):
        plan.round(0)
    joined = PlanConfig(name="p", rounds=[one, two], baseline=Baseline.joined)
    assert (joined.first_round, joined.num_rounds, joined.round(0), joined.round(1)) == (0, 1, one, two)
    assert PlanConfig(name="p", rounds=[one], max_rounds=5).num_rounds == 5
    assert PlanConfig(name="p", k=9).num_candidates(1) == 9


def test_the_wall_limit() -> None:
    limits = {"train_s": 1.0, "startup_limit_s": 2.0, "grace_s": 4.0, "eval_limit_s": 8.0}
    assert TaskConfig(**limits).wall_limit_s == 15  # type: ignore[arg-type]
    assert TaskConfig(**COMMAND, metric=MetricConfig(regex="(x)"), **limits).wall_limit_s == 7  # type: ignore[arg-type]
    limits["stage_limit_s"] = 16.0
    assert TaskConfig(**limits).wall_limit_s == 15, "nothing is staged"  # type: ignore[arg-type]
    assert TaskConfig(stage="/local", **limits).wall_limit_s == 31  # type: ignore[arg-type]


def test_a_place_to_stage_is_on_the_node() -> None:
    assert TaskConfig(stage="$NODE_DISK/x").stage == "$NODE_DISK/x"
    with pytest.raises(ConfigError, match=r"task\.stage=scratch is no place on a node; give an absolute path"):
        TaskConfig(stage="scratch")


def test_a_configuration_is_plain_objects() -> None:
    loaded = load(compose(["+round=cookbook", "budget.usd=3"]))
    assert isinstance(loaded, Config)
    assert isinstance(loaded.plan.rounds[0].candidates[0], CandidateConfig)
    assert type(loaded.plan.rounds[0].candidates[0].knobs) is dict
    assert loaded.budget.usd == 3.0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+round=cookbook", "+task.foo=1"], "unknown key task.foo"),
        (["+round=cookbook", "+task.trian_s=1"], "unknown key task.trian_s; did you mean task.train_s?"),
        (["+round=cookbook", "++plan.foo.bar=1"], "unknown key plan.foo"),
        (["+round=cookbook", "+foo=1"], "unknown key foo"),
        (["+round=cookbook", "task.script=${nope}"], "Interpolation key 'nope' not found"),
        (["+round=cookbook", "task.script=???"], "no value for task.script"),
        (["+round=cookbook", "task.pass_env=[1X]"], "task.pass_env: '1X' names no environment variable"),
        (["+round=cookbook", "task.sandbox=requier"], "sandbox"),
        ([], "no round plan; add +round=NAME, for a start +round=quickstart"),
    ],
)
def test_what_loading_refuses(overrides: list[str], words: str) -> None:
    def read() -> None:
        load(compose(overrides))

    assert words in refused(read)


def test_the_trials_barrier_is_configured() -> None:
    loaded = load(compose(["+round=cookbook", "task.sandbox=require", "task.pass_env=[SITE_*,_X1]"]))
    assert (loaded.task.sandbox, loaded.task.pass_env) == (Sandbox.require, ["SITE_*", "_X1"])
    assert load(compose(["+round=cookbook", "task.sandbox=none"])).task.sandbox is Sandbox.none


def test_keys_of_a_users_own_are_welcome_where_they_belong() -> None:
    loaded = load(compose(["+round=cookbook", "+task.env.A=b", "+plan.base.LR=2", "+cluster.sbatch.reservation=r"]))
    assert (loaded.task.env, loaded.plan.base, loaded.cluster.sbatch) == ({"A": "b"}, {"LR": 2}, {"reservation": "r"})


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("task.trian_s", "task.train_s"),
        ("clustr.partition", "cluster.partition"),
        ("plan.rounds[0].candidates[3].titel", "plan.rounds.candidates.title"),
        ("budget.gpu_hour", "budget.gpu_hours"),
        ("seeed", "seed"),
        ("spce", "space"),
    ],
)
def test_a_guess_at_what_was_meant(wrong: str, right: str) -> None:
    assert did_you_mean(wrong) == f"did you mean {right}?"


def test_no_guess_is_better_than_a_wild_one() -> None:
    assert did_you_mean("xyzzy") == "docs/configuration.md lists all keys"


def test_every_class_of_the_schema_has_defaults_that_are_possible() -> None:
    classes = [c for c in vars(schema).values() if dataclasses.is_dataclass(c)]
    assert len(classes) >= 13
    for cls in classes:
        if cls is not KnobDomain:  # a domain without choices is none
            OmegaConf.structured(cls)
            cls()  # type: ignore[operator]
