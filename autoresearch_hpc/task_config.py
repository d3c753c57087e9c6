"""The part of the schema that says what a trial executes; `config` holds the rest, and says how both are read.

The comment behind each field is its documentation: docs/configuration.md is generated from it.
"""

import re
from dataclasses import dataclass, field
from enum import Enum

from autoresearch_hpc.agent_config import Sandbox
from autoresearch_hpc.errors import ConfigError, require
from autoresearch_hpc.records import Direction


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
