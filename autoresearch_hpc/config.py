"""The structured schema of everything under conf/, and what values are possible.

Hydra composes the YAML against these classes: unknown keys and wrong types are errors there. `entry.load` turns the
result into plain objects, once; no DictConfig travels further. The classes stay mutable because
OmegaConf makes frozen ones read-only, which forbids overrides; nothing in the package writes to them.

Four parts are modules of their own: `agent_config` says who proposes, `plan_config` what is tried, `task_config` what a
trial executes, `cluster_config` where trials run. The comment behind each field is its documentation:
docs/configuration.md is generated from the five files.
"""

from dataclasses import dataclass, field
from pathlib import Path

from autoresearch_hpc.agent_config import AgentConfig as AgentConfig
from autoresearch_hpc.agent_config import Sandbox as Sandbox
from autoresearch_hpc.cluster_config import ClusterConfig as ClusterConfig
from autoresearch_hpc.cluster_config import ClusterKind as ClusterKind
from autoresearch_hpc.cluster_config import TierConfig as TierConfig
from autoresearch_hpc.errors import require
from autoresearch_hpc.plan_config import Baseline as Baseline
from autoresearch_hpc.plan_config import CandidateConfig as CandidateConfig
from autoresearch_hpc.plan_config import KnobDomain as KnobDomain
from autoresearch_hpc.plan_config import KnobType as KnobType
from autoresearch_hpc.plan_config import PlanConfig as PlanConfig
from autoresearch_hpc.plan_config import RoundConfig as RoundConfig
from autoresearch_hpc.plan_config import SpaceConfig as SpaceConfig
from autoresearch_hpc.plan_config import ValidateConfig as ValidateConfig
from autoresearch_hpc.task_config import Device as Device
from autoresearch_hpc.task_config import Dirty as Dirty
from autoresearch_hpc.task_config import KnobsBy as KnobsBy
from autoresearch_hpc.task_config import MetricConfig as MetricConfig
from autoresearch_hpc.task_config import TaskConfig as TaskConfig
from autoresearch_hpc.task_config import TaskKind as TaskKind

SCHEDULES = ("rounds", "async")


@dataclass
class CorpusConfig:
    """The text, its tokenizer and its packed form."""

    name: str = "python"  # python, climbmix or files
    dir: str = "data"  # where data sets are kept; shared and read-only for trials
    vocab_size: int = 8192  # BPE vocabulary, special tokens included
    seq_len: int = 2048  # tokens of context; a row holds one more
    tokenizer_mb: float = 200.0  # megabytes of text the BPE is trained on
    max_train_mb: float | None = None  # megabytes of training text; default all
    val_mb: float = 10.0  # megabytes of validation text, where the corpus has no shard of its own
    shards: int = 32  # climbmix: how many training shards
    files: list[str] = field(default_factory=list)  # files: paths or globs of txt, jsonl or parquet
    val_files: list[str] = field(default_factory=list)  # files: validation text; default cut from `files`
    text_key: str = "text"  # files: the field or column with the text
    endpoint: str | None = None  # climbmix: another address of the Hugging Face hub
    prepare: bool = False  # prepare missing data at the start of a run (small corpora only)

    def __post_init__(self) -> None:
        require(
            260 <= self.vocab_size <= 65536,
            f"corpus.vocab_size={self.vocab_size}",
            "give 260 to 65536 (uint16 tokens)",
        )
        require(self.seq_len >= 8, f"corpus.seq_len={self.seq_len}", "give at least 8")

    @property
    def path(self) -> Path:
        """The data set's directory: its name says what decides its content."""
        return Path(self.dir) / f"{self.name}-v{self.vocab_size}-t{self.seq_len}"


@dataclass
class BudgetConfig:
    """What a run may spend; checked before each submission."""

    max_rounds: int | None = None  # rounds after the baseline
    max_trials: int | None = None  # trials in all, the baseline and repeated ones included
    gpu_hours: float | None = None  # hours of all trials' GPUs together
    usd: float | None = None  # cost at cluster.price_per_gpu_hour
    llm_usd: float | None = None  # cost of LLM calls, at the agent's prices; when it is used up, a sampler proposes
    wall_hours: float | None = None  # hours of the controller's work
    patience: int | None = None  # rounds without improvement

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require(
                value is None or value > 0,
                f"budget.{name}={value}",
                "give a number above 0, or null for no limit",
            )


@dataclass
class LookConfig:
    """A small array after the round's own: the best candidates again, under fresh seeds."""

    keep: int = 1  # at most so many candidates
    fresh: int = 1  # with so many further trials each
    ahead: float = 1.0  # that are ahead by so many standard errors
    share: float = 0.5  # of decide.alpha, what is spent on keeping one after this look

    def __post_init__(self) -> None:
        for name in ("keep", "fresh", "share"):
            require(getattr(self, name) > 0, f"decide.looks: {name}={getattr(self, name)}", "give a number above 0")


@dataclass
class DecideConfig:
    """When a candidate replaces the incumbent."""

    rule: str = "significant"  # significant: told from luck; best: the best number, taken at its face value
    min_delta: float = 0.0  # how much better it must be at least
    alpha: float = 0.05  # significant: chance a round to keep anything that is no better
    replicates: int = 3  # trials of the incumbent, the baseline first, before it is compared with
    looks: list[LookConfig] = field(
        default_factory=lambda: [
            LookConfig(keep=3, fresh=1, ahead=1.0, share=0.2),
            LookConfig(keep=1, fresh=3, ahead=1.5, share=0.78),
        ]
    )  # further trials of the best, before one is kept
    controls: int = 2  # trials of the incumbent beside a look, at most
    incumbent_trials: int = 6  # until it has had so many
    noise_sd: float | None = None  # standard deviation of a single trial, where it is known beforehand
    noise_df: float = 4.0  # what that is worth, in degrees of freedom
    max_vram_gb: float | None = None  # a candidate that needs more GPU memory is not kept
    price_per_gb: float = 0.0  # by how much a gigabyte more has to make the metric better
    simplify: bool = False  # keep a candidate that removes code at an equal score
    simplify_margin: float = 0.0005  # by how much less code may be worse

    def __post_init__(self) -> None:
        for name in ("min_delta", "controls", "price_per_gb"):
            require(getattr(self, name) >= 0, f"decide.{name}={getattr(self, name)}", "give 0 or more")
        for name in ("replicates", "incumbent_trials", "noise_sd", "noise_df", "max_vram_gb", "simplify_margin"):
            value = getattr(self, name)
            require(value is None or value > 0, f"decide.{name}={value}", "give a number above 0")
        shares = sum(look.share for look in self.looks)
        require(0 < self.alpha < 1, f"decide.alpha={self.alpha}", "give a probability between 0 and 1")
        require(shares < 1, f"the shares of decide.looks add up to {shares:g}", "leave some for the round's own array")


@dataclass
class Config:
    """A run."""

    plan: PlanConfig = field(default_factory=PlanConfig)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    decide: DecideConfig = field(default_factory=DecideConfig)
    schedule: str = "rounds"  # rounds: one after another; async: a slot that comes free is filled at once
    tiers: str = "plan"  # plan: where the plan says; any: a round spreads over all of cluster.tiers
    tag: str | None = None  # the run's name; an existing one is resumed; default from the plan and the time
    seed: int = 0  # of everything random in the search
    repo: str = "."  # the git repository that holds the script
    runs_dir: str = "runs"  # where runs are kept, on a filesystem that the compute nodes see

    def __post_init__(self) -> None:
        require(self.schedule in SCHEDULES, f"schedule={self.schedule} is unknown", f"give {' or '.join(SCHEDULES)}")
        require(self.tiers in ("plan", "any"), f"tiers={self.tiers} is unknown", "give plan or any")
        names, plan = self.cluster.tier_names, self.plan
        require(
            self.tiers == "plan" or len(names) > 1,
            "tiers=any with one kind of GPU",
            "list several in cluster.tiers, or leave it out",
        )
        require(
            self.tiers == "plan" or not (plan.screen or plan.validate.top),
            "tiers=any and a plan that says which tier screens",
            "leave tiers out, or set plan.screen=null plan.validate.top=0",
        )
        require(
            not plan.validate.top or len(names) > 1,
            f"plan {plan.name} validates on a second kind of GPU, and the cluster has one",
            "list two or more in cluster.tiers, or set plan.validate.top=0",
        )
        screens = plan.screen or names[0]
        require(
            not plan.validate.top or (plan.validate.tier or names[-1]) != screens,
            f"plan {plan.name} screens and validates on {screens}",
            "choose two tiers, or set plan.validate.top=0 and let decide.looks run the best again",
        )
        for name in (plan.screen, plan.validate.tier):
            require(
                not name or name in names, f"the plan's tier {name} is none of the cluster's", f"it has {list(names)}"
            )
        if plan.k is None:
            tried_on = names if self.tiers == "any" else (plan.screen or names[0],)
            slots = [self.cluster.on(name).max_parallel for name in tried_on]
            plan.k = sum(number or 0 for number in slots)
            require(all(slots), "plan.k=null, and it is not known how many GPUs there are", "set cluster.max_parallel")
