"""The structured schema of everything under conf/, and what values are possible.

Hydra composes the YAML against these classes: unknown keys and wrong types are errors there. `entry.load` turns the
result into plain objects, once; no DictConfig travels further. The classes stay mutable because
OmegaConf makes frozen ones read-only, which forbids overrides; nothing in the package writes to them.

`agent_config` holds the part that says who proposes, `cluster_config` the one that says where trials run. The comment
behind each field is its documentation: docs/configuration.md is generated from the three files.
"""

import math
import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from autoresearch_hpc.agent_config import AgentConfig as AgentConfig
from autoresearch_hpc.agent_config import Sandbox as Sandbox
from autoresearch_hpc.cluster_config import ClusterConfig as ClusterConfig
from autoresearch_hpc.cluster_config import ClusterKind as ClusterKind
from autoresearch_hpc.cluster_config import TierConfig as TierConfig
from autoresearch_hpc.errors import ConfigError, require
from autoresearch_hpc.records import Direction

SCHEDULES = ("rounds", "async")


class KnobType(Enum):
    int = "int"
    float = "float"
    pow2 = "pow2"  # integers that are powers of two, sampled by exponent
    choice = "choice"


class TaskKind(Enum):
    gpt = "gpt"
    command = "command"


class KnobsBy(Enum):
    rewrite = "rewrite"
    env = "env"
    template = "template"


class Device(Enum):
    auto = "auto"
    cuda = "cuda"
    cpu = "cpu"


class Dirty(Enum):
    refuse = "refuse"
    snapshot = "snapshot"


class Baseline(Enum):
    alone = "alone"
    joined = "joined"


@dataclass
class KnobDomain:
    """What a search may do with one knob."""

    type: KnobType = KnobType.choice  # int, float, pow2 (powers of two) or choice
    low: Any = None  # smallest value, of int, float and pow2
    high: Any = None  # largest value
    log: bool = False  # sample on a logarithmic scale
    choices: list[Any] = field(default_factory=list)  # the values, of choice
    points: int = 3  # how many values a grid takes from a range

    def __post_init__(self) -> None:
        if self.type is KnobType.choice:
            require(
                bool(self.choices),
                "a choice knob without choices",
                "give choices: [...], or type, low and high",
            )
            return
        for end in (self.low, self.high):
            number = isinstance(end, int | float) and not isinstance(end, bool) and math.isfinite(end)
            require(number, f"a range of {self.low!r} to {self.high!r}", "give numbers for low and high")
        require(
            self.low < self.high,
            f"a range upside down: low {self.low} is not below high {self.high}",
            "swap them",
        )
        require(
            not self.log or self.low > 0,
            f"a logarithmic range from {self.low}",
            "its low end must be above 0",
        )
        if self.type is not KnobType.float:
            whole = self.low == int(self.low) and self.high == int(self.high)
            require(whole, f"a whole-number range of {self.low} to {self.high}", "use whole ends, or type: float")
        if self.type is KnobType.pow2:
            for end in (self.low, self.high):
                power = end >= 1 and int(end) & (int(end) - 1) == 0
                require(power, f"a pow2 range that ends at {end}", "both ends must be powers of two")
        require(self.points >= 2, f"points: {self.points}", "a grid over a range needs at least 2 points")


@dataclass
class SpaceConfig:
    """A search space: domains of knobs, and conditions between them."""

    knobs: dict[str, KnobDomain] = field(default_factory=dict)  # knob -> domain
    bounds: list[str] = field(
        default_factory=list
    )  # conditions over knobs, SEQ_LEN and VOCAB_SIZE, e.g. "HEAD_DIM % 2 == 0"


@dataclass
class CandidateConfig:
    """One explicit candidate of a plan."""

    title: str = ""  # what results.tsv says; default: the settings
    name: str | None = None  # a name that later candidates can build on
    parent: str | None = None  # the candidate it builds on: a name, an id or "baseline"; default the incumbent
    knobs: dict[str, Any] = field(default_factory=dict)  # settings; none makes a replicate


@dataclass
class RoundConfig:
    """One round of a plan: explicit candidates, or K that the agent proposes."""

    candidates: list[CandidateConfig] = field(default_factory=list)  # explicit candidates
    k: int | None = None  # how many the agent proposes; default plan.k

    def __post_init__(self) -> None:
        require(self.k is None or self.k >= 1, f"k: {self.k}", "a round needs at least one candidate")
        require(
            self.k is None or not self.candidates,
            f"a round with both k: {self.k} and candidates",
            "give one of them: explicit candidates are run as they are",
        )


@dataclass
class ValidateConfig:
    """What follows a round's screening: the best again, on another kind of GPU, before one is kept."""

    tier: str | None = None  # where; default the last of cluster.tiers
    top: int = 0  # so many candidates, the best by their screening; 0: none, and one is kept where it was tried
    seeds: int = 2  # with so many trials each

    def __post_init__(self) -> None:
        require(self.top >= 0, f"plan.validate.top={self.top}", "give 0 or more")
        require(self.seeds >= 1, f"plan.validate.seeds={self.seeds}", "give at least 1")


@dataclass
class PlanConfig:
    """What a run tries, round by round; the files of conf/round/ set it."""

    name: str = MISSING  # the plan's name; the run's tag starts with it
    description: str = ""  # one sentence for people
    k: int | None = 4  # candidates a round; null: as many as GPUs to try them on (cluster.max_parallel, or the tiers')
    combine: int = 1  # of these, at most so many combine near misses, from round 2 on; never more than half; 0: none
    base: dict[str, Any] = field(default_factory=dict)  # knob settings of the baseline, the run's first commit
    baseline: Baseline = Baseline.alone  # round 0 is the baseline alone, or joined by the first round's candidates
    rounds: list[RoundConfig] = field(default_factory=list)  # the rounds; empty: the agent proposes k
    max_rounds: int | None = None  # how many rounds after the baseline; the last of `rounds` repeats
    screen: str | None = None  # the tier on which candidates are tried; default the first of cluster.tiers
    validate: ValidateConfig = field(default_factory=ValidateConfig)  # the best are run again on another tier

    def __post_init__(self) -> None:
        require(self.k is None or self.k >= 1, f"plan.k={self.k}", "a round needs at least one candidate")
        require(self.combine >= 0, f"plan.combine={self.combine}", "give 0 or more")
        require(
            self.max_rounds is None or self.max_rounds >= 0,
            f"plan.max_rounds={self.max_rounds}",
            "give 0 or more",
        )
        names = [c.name for r in self.rounds for c in r.candidates if c.name]
        doubled = sorted({n for n in names if names.count(n) > 1})
        require(not doubled, f"candidate name {', '.join(doubled)} is used twice in the plan", "rename one")

    @property
    def first_round(self) -> int:
        """The first round that has a plan: 0 where the baseline is joined, else 1."""
        return 0 if self.baseline is Baseline.joined else 1

    @property
    def num_rounds(self) -> int:
        """Rounds after round 0, so the last round's index."""
        if self.max_rounds is not None:
            return self.max_rounds
        return self.first_round + max(len(self.rounds), 1) - 1

    def round(self, index: int) -> RoundConfig:
        """The plan of round index; the last of `rounds` repeats.

        With a baseline alone, round 0 is the baseline and has no plan (ValueError), and round i is rounds[i - 1]. With
        a joined baseline rounds[0] runs beside the baseline in round 0, and round i is rounds[i].
        """
        if index < self.first_round:
            raise ValueError(f"round {index} has no plan: the baseline runs alone")
        if not self.rounds:
            return RoundConfig()
        return self.rounds[min(index - self.first_round, len(self.rounds) - 1)]

    def is_open(self, index: int) -> bool:
        """Whether an agent fills round index, rather than the plan itself."""
        return not self.round(index).candidates

    def num_candidates(self, index: int) -> int:
        """How many candidates round index has; at most, where an agent proposes them."""
        planned = self.round(index)
        return len(planned.candidates) or planned.k or self.k or 1


@dataclass
class MetricConfig:
    """The number that decides, for task.kind=command (gpt always earns val_bpb)."""

    name: str = "val_bpb"  # the name in tables
    direction: Direction = Direction.min  # min or max
    json: str | None = None  # a JSON file the script writes, relative to its copy of the repository
    key: str | None = None  # where in that file, dotted; default the metric's name
    regex: str | None = None  # or: a regular expression over the output; group 1 of the last match


_VARIABLES = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\*?")


def _check_regex(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(f"task.metric.regex={pattern} is no regular expression: {error}", "correct it") from None
    require(groups == 1, f"task.metric.regex={pattern} has {groups} groups", r"give one, the number: 'loss: (\S+)'")


@dataclass
class TaskConfig:
    """What a trial executes."""

    kind: TaskKind = TaskKind.gpt  # gpt: our train.py and harness; command: any script
    script: str = "train.py"  # the file whose module-level constants are the knobs
    editable: list[str] = field(default_factory=list)  # files that candidates may change; default the script
    export: list[str] = field(default_factory=list)  # paths of the repository that a trial gets; default editable
    dirty: Dirty = Dirty.refuse  # uncommitted changes in editable files: refuse, or take them along (snapshot)
    device: Device = Device.cuda  # cuda: a trial without its GPU fails; auto: the CPU will do
    train_s: float = 300.0  # training time by the clock (gpt), or the time limit of a command
    startup_limit_s: float = 600.0  # start-up and compilation, free of charge up to here
    overrun_s: float = 3.0  # gpt: the last step may end so much after the clock, or 1 % of train_s; else it is INVALID
    grace_s: float = 60.0  # from the clock's end to a saved checkpoint
    eval_limit_s: float = 300.0  # the evaluation's time limit
    eval_tokens: int = 20971520  # validation tokens that count
    eval_batch_rows: int = 64  # rows in one evaluation batch
    command: str | None = None  # command: the shell line, e.g. "python fit.py"; {KNOB} for knobs by template
    knobs_by: KnobsBy = KnobsBy.rewrite  # command: rewrite constants of `script`, env variables, or the template
    env: dict[str, str] = field(default_factory=dict)  # extra environment of the trial
    pass_env: list[str] = field(default_factory=list)  # your variables that pass into job and trial: NAME or PREFIX*
    sandbox: Sandbox = Sandbox.auto  # gpt: Landlock where there is one; only where; never
    stage: str | None = None  # gpt: a directory of each node's own, for a copy of training data; $NAME is the node's
    stage_limit_s: float = 300.0  # until that copy is there; a trial that waits longer reads the shared files
    metric: MetricConfig = field(default_factory=MetricConfig)

    def __post_init__(self) -> None:
        for name in ("train_s", "startup_limit_s", "grace_s", "eval_limit_s", "stage_limit_s"):
            require(getattr(self, name) > 0, f"task.{name}={getattr(self, name)}", "give seconds above 0")
        require(self.overrun_s >= 0, f"task.overrun_s={self.overrun_s}", "give 0 or more")
        require(self.eval_tokens > 0, f"task.eval_tokens={self.eval_tokens}", "give at least 1")
        for name in self.pass_env:
            require(
                bool(_VARIABLES.fullmatch(name)),
                f"task.pass_env: {name!r} names no environment variable",
                "give names, or the beginning of some and a *: [MY_SETTING, SITE_*]",
            )
        require(
            not self.stage or self.stage.startswith(("/", "$")),
            f"task.stage={self.stage} is no place on a node",
            "give an absolute path, or one that begins with a variable of the node's: /local/scratch, $NODE_SCRATCH",
        )
        if self.kind is TaskKind.command:
            require(
                self.sandbox is not Sandbox.require,
                "task.sandbox=require, but a command is never shut in",
                "leave it out, and let cluster.python put a container around it",
            )
            require(
                bool(self.command),
                "task.kind=command without task.command",
                'say what to run: task.command="..."',
            )
            given = [m for m in (self.metric.json, self.metric.regex) if m]
            require(
                len(given) == 1,
                "the metric needs one source",
                "set either task.metric.json or task.metric.regex",
            )
            if self.metric.regex:
                _check_regex(self.metric.regex)

    @property
    def editable_paths(self) -> list[str]:
        """The files that candidates may change."""
        return self.editable or [self.script]

    @property
    def export_paths(self) -> list[str]:
        """What of the repository a trial gets."""
        return self.export or self.editable_paths

    @property
    def wall_limit_s(self) -> float:
        """The longest a trial may take."""
        gpt = self.kind is TaskKind.gpt
        saved_s = max(self.grace_s, self.overrun_s) if gpt else self.grace_s
        staged_s = self.stage_limit_s if self.stage else 0.0
        return self.startup_limit_s + self.train_s + saved_s + (staged_s + self.eval_limit_s if gpt else 0.0)


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
